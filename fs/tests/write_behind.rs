//! Writing behind: what is in flight reads back, counts as written only when it is, and fails loudly. The
//! simulated device performs such writes as late as it may.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use std::path::Path;
use std::sync::Arc;

use lavafs::device::{
    AlignedBuf, Fault, FaultOn, FaultPlan, FaultWhen, OpenMode, create_image, open,
};
use lavafs::{
    CheckMode, CreateOptions, FileRef, FileSystem, LavaFs, MkfsOptions, MountOptions, check, mkfs,
};

use common::{formatted, mount};

const BUFFER: u64 = 256 << 10;

fn pattern(len: u64, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at % 251) as u8 ^ (at >> 12) as u8 ^ seed)
        .collect()
}

/// Appends in steps too short and too crooked to skip the buffer.
fn append(file: &FileRef, bytes: &[u8]) {
    for step in bytes.chunks(10_007) {
        file.append(step).unwrap();
    }
}

fn create(fs: &LavaFs, path: &str) -> FileRef {
    fs.create(Path::new(path), &CreateOptions::default())
        .unwrap()
}

fn contents(file: &FileRef) -> Vec<u8> {
    let mut bytes = vec![0; file.size().lower() as usize];
    assert_eq!(file.read_at(0, &mut bytes).unwrap(), bytes.len());
    bytes
}

#[test]
fn what_is_in_flight_reads_back_and_is_written_once() {
    let device = formatted(64 << 20, &MkfsOptions::default());
    let fs = mount(&device);
    let file = create(&fs, "/file");
    file.fsync().unwrap();
    let bytes = pattern(4 * BUFFER + 5000, 1);
    let before = fs.counters();
    append(&file, &bytes);
    assert_eq!((fs.counters() - before).write_bytes, 0, "all is in flight");
    assert!(contents(&file) == bytes);
    file.fdatasync().unwrap();
    let cost = fs.counters() - before;
    assert!(
        cost.write_bytes < 4 * BUFFER + 5000 + 512 + 3 * 4096,
        "{cost:?}"
    );
    assert!(contents(&file) == bytes);
}

#[test]
fn a_file_has_eight_buffers_in_flight_at_most_and_a_mount_what_its_option_says() {
    let device = formatted(256 << 20, &MkfsOptions::default());
    let fs = mount(&device);
    let before = fs.counters();
    let one = create(&fs, "/one");
    append(&one, &pattern(20 * BUFFER, 1));
    assert_eq!((fs.counters() - before).write_bytes, 12 * BUFFER);
    let files: Vec<FileRef> = (0..10).map(|n| create(&fs, &format!("/{n}"))).collect();
    for file in &files {
        append(file, &pattern(20 * BUFFER, 2));
    }
    let written = (fs.counters() - before).write_bytes;
    assert!(written >= 220 * BUFFER - (4 << 20), "{written}");

    drop((one, files));
    fs.unmount().unwrap();
    let options = MountOptions {
        background: false,
        write_behind: 0,
        ..MountOptions::default()
    };
    let fs = LavaFs::mount(device, &options).unwrap();
    let before = fs.counters();
    append(&create(&fs, "/at-once"), &pattern(3 * BUFFER, 3));
    assert!((fs.counters() - before).write_bytes >= 3 * BUFFER);
}

/// A long append in aligned memory went straight to the device beside buffers in flight; a reader across both
/// got nothing at all for its bytes, and no error.
#[test]
fn what_is_written_at_once_beside_what_is_in_flight_reads_back() {
    let device = formatted(64 << 20, &MkfsOptions::default());
    let fs = mount(&device);
    let file = create(&fs, "/file");
    let bytes = pattern(4 * BUFFER, 1);
    append(&file, &bytes[..BUFFER as usize]);
    let mut aligned = AlignedBuf::zeroed(BUFFER as usize);
    aligned.copy_from_slice(&bytes[BUFFER as usize..2 * BUFFER as usize]);
    file.append(&aligned).unwrap();
    append(&file, &bytes[2 * BUFFER as usize..]);
    assert!(contents(&file) == bytes);
}

/// The same where other files took the shares that the file had needed to go on with as much in flight.
#[test]
fn what_found_no_share_beside_what_is_in_flight_reads_back() {
    let device = formatted(64 << 20, &MkfsOptions::default());
    let fs = mount(&device);
    let file = create(&fs, "/file");
    let mut bytes = pattern(8 * BUFFER, 1);
    append(&file, &bytes);
    let others: Vec<FileRef> = (0..2).map(|n| create(&fs, &format!("/{n}"))).collect();
    for other in &others {
        append(other, &pattern(8 * BUFFER, 3));
    }
    for round in 0..4 {
        let more = pattern(BUFFER, round);
        append(&file, &more);
        bytes.extend_from_slice(&more);
        assert!(contents(&file) == bytes, "round {round}");
    }
}

#[test]
fn a_failed_write_behind_fails_the_sync_and_every_change_after_it() {
    let device = formatted(64 << 20, &MkfsOptions::default());
    let fs = mount(&device);
    let file = create(&fs, "/file");
    append(&file, &pattern(BUFFER, 1));
    file.fdatasync().unwrap();
    append(&file, &pattern(3 * BUFFER, 2));
    let fails_once = FaultPlan::new(1).rule(FaultOn::Write, FaultWhen::Nth(1), Fault::Eio);
    device.set_faults(Some(fails_once));
    file.fdatasync().unwrap_err();
    file.fdatasync().unwrap_err();
    file.append(b"x").unwrap_err();
    fs.create(Path::new("/other"), &CreateOptions::default())
        .unwrap_err();
    drop((file, fs));

    // What was synced before is there, and nothing after it is said to be.
    let again = mount(&Arc::new(device.crash(7)));
    let file = again.open(Path::new("/file")).unwrap();
    file.settle(BUFFER).unwrap();
    let mut bytes = vec![0; BUFFER as usize];
    file.read_at(0, &mut bytes).unwrap();
    assert!(bytes == pattern(BUFFER, 1));
}

/// A buffer whose write had failed was forgotten, and readers were given what the device held in its
/// place: the bytes of a file that had been removed.
#[test]
fn bytes_whose_write_failed_are_not_read_from_the_device() {
    let device = formatted(64 << 20, &MkfsOptions::default());
    let fs = mount(&device);
    let gone = create(&fs, "/gone");
    append(&gone, &pattern(8 * BUFFER, 1));
    gone.fsync().unwrap();
    drop(gone);
    fs.unlink(Path::new("/gone")).unwrap();
    fs.commit().unwrap();
    for failing in 0..3 {
        let device = Arc::new(device.duplicate());
        let fs = mount(&device);
        let file = create(&fs, "/file");
        let bytes = pattern(3 * BUFFER, 2);
        append(&file, &bytes);
        let fails_once =
            FaultPlan::new(1).rule(FaultOn::Write, FaultWhen::Nth(failing), Fault::Eio);
        device.set_faults(Some(fails_once));
        file.fdatasync().unwrap_err();
        assert!(contents(&file) == bytes, "write {failing}");
    }
}

/// The blocks of a removed or cut file go to other files; a late write would land in those.
#[test]
fn no_write_in_flight_reaches_blocks_that_were_freed() {
    let device = formatted(16 << 20, &MkfsOptions::default());
    let fs = mount(&device);
    for round in 0..20u8 {
        let gone = create(&fs, "/gone");
        append(&gone, &pattern(6 * BUFFER, round));
        match round % 3 {
            0 => fs.unlink(Path::new("/gone")).unwrap(),
            1 => gone.truncate(100).unwrap(),
            _ => {}
        }
        drop(gone);
        let _ = fs.unlink(Path::new("/gone"));
        fs.sync_dir(Path::new("/")).unwrap();
        let kept = create(&fs, "/kept");
        let bytes = pattern(30 * BUFFER, !round);
        append(&kept, &bytes);
        kept.fsync().unwrap();
        assert!(contents(&kept) == bytes, "round {round}");
        drop(kept);
        fs.unlink(Path::new("/kept")).unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
    }
    fs.unmount().unwrap();
    assert!(
        check(device, CheckMode::ReadOnly)
            .unwrap()
            .problems
            .is_empty()
    );
}

/// A thread that ends takes its I/O with it; a write must not go that way.
#[test]
fn appends_of_a_thread_that_ended_are_written_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let device = create_image(&image, 64 << 20, false).unwrap();
    mkfs(device.as_ref(), &MkfsOptions::default()).unwrap();
    let fs = LavaFs::mount(device, &MountOptions::default()).unwrap();
    let mut all = Vec::new();
    let file = create(&fs, "/file");
    for round in 0..20u8 {
        let bytes = pattern(2 * BUFFER + 777 * u64::from(round), round);
        let handle = file.clone();
        let appended = bytes.clone();
        std::thread::spawn(move || append(&handle, &appended))
            .join()
            .unwrap();
        all.extend_from_slice(&bytes);
        assert!(contents(&file) == all, "round {round}");
    }
    file.fdatasync().unwrap();
    drop(file);
    fs.unmount().unwrap();

    let device = open(&image, OpenMode::ReadWrite).unwrap();
    let fs = LavaFs::mount(device, &MountOptions::default()).unwrap();
    assert!(contents(&fs.open(Path::new("/file")).unwrap()) == all);
}
