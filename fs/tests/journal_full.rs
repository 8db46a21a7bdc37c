//! A journal that is full: what was accepted is kept, what cannot be kept is refused at once.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{formatted, mount};
use lavafs::device::{AlignedBuf, Fault, FaultOn, FaultPlan, FaultWhen, SimDevice};
use lavafs::{
    BLOCK_SIZE, CheckMode, CreateOptions, Error, FileRef, FileSize, FileSystem, LavaFs,
    MkfsOptions, check,
};

const OPEN: usize = 20;

fn device() -> Arc<SimDevice> {
    let options = MkfsOptions {
        journal_size: Some(64 * BLOCK_SIZE),
        ..MkfsOptions::default()
    };
    formatted(64 << 20, &options)
}

fn create(fs: &LavaFs, path: &str) -> lavafs::Result<FileRef> {
    fs.create(Path::new(path), &CreateOptions::default())
}

fn contents(index: usize) -> Vec<u8> {
    vec![index as u8 + 1; 3000 + index]
}

const SMALL: usize = 400;

fn create_small(fs: &LavaFs) {
    for at in 0..SMALL {
        create(fs, &format!("/small{at}")).unwrap();
    }
}

/// Makes names until the journal takes no more, and then extents of the small files.
fn fill(fs: &LavaFs) {
    let error = (0..).find_map(|at: usize| create(fs, &format!("/{at:0200}")).err());
    assert!(matches!(error, Some(Error::NoSpace { .. })), "{error:?}");
    let refused = (0..SMALL).position(|at| {
        let file = fs.open(Path::new(&format!("/small{at}"))).unwrap();
        let outcome = file.append(&[1; 4096]).and_then(|_| file.fsync());
        matches!(outcome, Err(Error::NoSpace { .. }))
    });
    assert!(refused.is_some(), "the journal takes any number of extents");
}

/// No checkpoint can be read back.
fn unreadable_journal() -> FaultPlan {
    let journal = FaultWhen::Within {
        offset: 3 * BLOCK_SIZE,
        len: 2 * 64 * BLOCK_SIZE,
    };
    FaultPlan::new(1).rule(FaultOn::Read, journal, Fault::Eio)
}

/// Commits files one by one until the journal is full, and returns how many it took.
fn commit_until_refused(fs: &LavaFs) -> usize {
    let refused = (0..).find(|at| {
        drop(create(fs, &format!("/{at}")).unwrap());
        fs.commit().is_err()
    });
    refused.unwrap()
}

/// A close wrote out what was buffered, found no room in the journal for the extent, and logged it:
/// the bytes were gone, though the append had been accepted, and so was the space reserved for them.
#[test]
fn buffered_bytes_that_were_accepted_survive_a_close_on_a_full_journal() {
    let device = device();
    let fs = mount(&device);
    create_small(&fs);
    let open: Vec<_> = (0..OPEN)
        .map(|at| create(&fs, &format!("/open{at}")).unwrap())
        .collect();
    for (index, file) in open.iter().enumerate() {
        file.append(&contents(index)).unwrap();
    }
    fill(&fs);
    drop(open);
    fs.commit().unwrap();
    let used: u64 = fs.space().total - fs.space().free;
    let fs = {
        let crashed = Arc::new(device.crash(3));
        let report = check(crashed.clone(), CheckMode::ReadOnly).unwrap();
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(used, report.used_blocks * BLOCK_SIZE);
        drop(fs);
        mount(&crashed)
    };
    for index in 0..OPEN {
        let file = fs.open(Path::new(&format!("/open{index}"))).unwrap();
        let expected = contents(index);
        assert_eq!(file.size(), FileSize::Exact(expected.len() as u64));
        let mut bytes = vec![0; expected.len()];
        file.read_at(0, &mut bytes).unwrap();
        assert!(bytes == expected, "file {index}");
    }
}

/// On a full journal an append to a file without an extent is refused before anything is appended, and
/// accepted again when names were removed.
#[test]
fn an_append_without_room_for_its_extent_is_refused_whole() {
    let device = device();
    let fs = mount(&device);
    create_small(&fs);
    let last = create(&fs, "/last").unwrap();
    fill(&fs);
    assert!(fs.space().free > fs.space().total / 2);
    assert!(matches!(last.append(&[1; 100]), Err(Error::NoSpace { .. })));
    assert_eq!(last.size(), FileSize::Exact(0));
    for at in 0..40 {
        fs.unlink(Path::new(&format!("/{at:0200}"))).unwrap();
    }
    last.append(&[1; 100]).unwrap();
    last.fsync().unwrap();
    drop(last);
    fs.unmount().unwrap();
    assert!(check(device, CheckMode::ReadOnly).unwrap().is_clean());
}

/// Promises of room end with the handle that needed them.
#[test]
fn opening_and_closing_files_does_not_use_the_journal_up() {
    let device = device();
    let fs = mount(&device);
    for round in 0..6000 {
        let file = fs.open(Path::new("/f")).or_else(|_| create(&fs, "/f"));
        let file = file.unwrap();
        file.append(&[1; 10]).unwrap();
        if round % 3 == 0 {
            file.truncate(0).unwrap();
        }
        if round % 7 == 0 {
            fs.unlink(Path::new("/f")).unwrap();
        }
    }
    create(&fs, "/another").unwrap().append(&[1]).unwrap();
    fs.unmount().unwrap();
}

/// Without a thread in the background the commit that finds the journal half full makes a checkpoint. Its failure was
/// returned as the commit's, though what that had been asked for was durable.
#[test]
fn a_commit_fails_only_where_it_made_nothing_durable() {
    let device = device();
    let fs = mount(&device);
    device.set_faults(Some(unreadable_journal()));
    let durable = || {
        let after = mount(&Arc::new(device.crash(1)));
        after.list(Path::new("/")).unwrap().len()
    };
    let refused = commit_until_refused(&fs);
    assert_eq!(durable(), refused);
    device.set_faults(None);
    fs.commit().unwrap();
    assert_eq!(durable(), refused + 1);
}

/// A long append that failed before anything was written counted in the checksum over what the next fsync covers, so that
/// recovery did not believe that one's size: synced bytes were lost.
#[test]
fn an_append_that_failed_takes_nothing_from_the_next_sync() {
    let device = device();
    let fs = mount(&device);
    let file = create(&fs, "/file").unwrap();
    file.append(&[1; 5000]).unwrap();
    file.fsync().unwrap();
    device.set_faults(Some(unreadable_journal()));
    commit_until_refused(&fs);
    // The cut must be durable before anything is written behind it.
    file.truncate(4096).unwrap();
    file.append(&AlignedBuf::zeroed(64 << 10)).unwrap_err();
    assert_eq!(file.size(), FileSize::Exact(4096));
    device.set_faults(None);
    file.append(&[2; 1000]).unwrap();
    file.fsync().unwrap();
    let after = mount(&Arc::new(device.crash(1)));
    let file = after.open(Path::new("/file")).unwrap();
    assert_eq!(file.size(), FileSize::Exact(5096));
}

/// An append that failed in its middle left its first part in the file.
#[test]
fn an_append_that_failed_leaves_nothing_in_the_file() {
    let device = device();
    let fs = mount(&device);
    let file = create(&fs, "/file").unwrap();
    file.append(&[1; 5000]).unwrap();
    file.fsync().unwrap();
    device.set_faults(Some(unreadable_journal()));
    commit_until_refused(&fs);
    file.truncate(100).unwrap();
    file.append(&[2; 50]).unwrap();
    file.append(&vec![3; 600 << 10]).unwrap_err();
    assert_eq!(file.size(), FileSize::Exact(150));
    device.set_faults(None);
    file.append(&[4; 50]).unwrap();
    file.fsync().unwrap();
    let after = mount(&Arc::new(device.crash(1)));
    let file = after.open(Path::new("/file")).unwrap();
    let mut bytes = [0; 300];
    assert_eq!(file.read_at(0, &mut bytes).unwrap(), 200);
    let parts = [&bytes[..100], &bytes[100..150], &bytes[150..200]];
    for (part, byte) in parts.into_iter().zip([1, 2, 4]) {
        assert!(part.iter().all(|&found| found == byte), "{byte}");
    }
}
