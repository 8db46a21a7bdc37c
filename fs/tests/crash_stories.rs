//! Bugs that the crash explorer found, one test each, with the story of the crash.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{formatted, mount};
use lavafs::device::SimDevice;
use lavafs::{
    BLOCK_SIZE, CheckMode, CreateOptions, FileSize, FileSystem, MkfsOptions, TailPolicy, check,
    mkfs,
};

fn device() -> Arc<SimDevice> {
    formatted(4 << 20, &MkfsOptions::default())
}

/// An fsync had journaled an exact size, and the fdatasync after it a record that the file may be
/// longer. That record claimed to be covered by a checksum of all bytes below its size, but had
/// none; recovery found it the last record, compared, and dropped it. The synced bytes behind the
/// exact size were never looked for.
#[test]
fn bytes_that_fdatasync_added_behind_an_fsync_are_found_again() {
    let device = device();
    let fs = mount(&device);
    let file = fs
        .create(Path::new("/f"), &CreateOptions::default())
        .unwrap();
    file.append(&[1; 1000]).unwrap();
    file.fsync().unwrap();
    file.append(&[2; 500]).unwrap();
    file.fdatasync().unwrap();
    let after = mount(&Arc::new(device.crash(1)));
    let file = after.open(Path::new("/f")).unwrap();
    let mut bytes = [0; 1500];
    assert_eq!(file.read_unverified(0, &mut bytes).unwrap(), 1500);
    assert_eq!(bytes[..1000], [1; 1000]);
    assert_eq!(bytes[1000..], [2; 500]);
    assert!(file.size().lower() >= 1000);
}

/// A file was cut and appended to, and the sync wrote the block in which it was cut before the cut
/// was in the journal. A crash between the two brought back the old size and generation with the
/// new bytes below it.
#[test]
fn a_cut_is_durable_before_its_block_is_written_again() {
    let device = device();
    let fs = mount(&device);
    let file = fs
        .create(Path::new("/f"), &CreateOptions::default())
        .unwrap();
    file.append(&[1; 1000]).unwrap();
    file.fsync().unwrap();
    let old = file.generation();
    device.record();
    file.truncate(100).unwrap();
    file.append(&[2; 900]).unwrap();
    file.fdatasync().unwrap();
    let recording = device.take_recording();
    for at in 0..=recording.ops().len() {
        for seed in 0..16 {
            let after = mount(&Arc::new(recording.crash(at, seed)));
            let file = after.open(Path::new("/f")).unwrap();
            let mut bytes = vec![0; file.size().lower() as usize];
            file.read_at(0, &mut bytes).unwrap();
            if file.generation() == old {
                assert_eq!(bytes, [1; 1000], "crash {seed} at {at}");
            } else {
                assert_eq!(bytes[..100], [1; 100], "crash {seed} at {at}");
                assert!(bytes[100..].iter().all(|&byte| byte == 2));
            }
        }
    }
}

/// A sync pads a sealed file to the logical block. After the file was settled or cut elsewhere,
/// the padding began in the middle of a block of which nothing was in memory, and the write was
/// not aligned.
#[test]
fn a_sealed_file_is_padded_from_wherever_it_was_cut() {
    let device = device();
    let fs = mount(&device);
    let options = CreateOptions {
        tail: TailPolicy::Seal,
        ..CreateOptions::default()
    };
    let file = fs.create(Path::new("/f"), &options).unwrap();
    file.append(&[1; 700]).unwrap();
    file.fsync().unwrap();
    file.settle(600).unwrap();
    file.fdatasync().unwrap();
    assert_eq!(file.size(), FileSize::Exact(1024));
    let mut bytes = [9; 1024];
    file.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes[..600], [1; 600]);
    assert_eq!(bytes[600..], [0; 424]);
}

/// A checkpoint had written the operations to carry over, an unlink among them, and a crash came
/// before its header. The next mount made its checkpoint with the same epoch in the same place,
/// without anything to carry. The record of the unlink lay right behind it, was of the right
/// epoch and number, and the mount after that replayed it: the file was gone.
#[test]
fn a_switch_cut_short_leaves_nothing_that_a_later_one_revives() {
    let device = device();
    let fs = mount(&device);
    fs.create(Path::new("/keep"), &CreateOptions::default())
        .unwrap();
    fs.commit().unwrap();
    device.record();
    fs.unlink(Path::new("/keep")).unwrap();
    fs.checkpoint().unwrap();
    let recording = device.take_recording();
    for at in 0..=recording.ops().len() {
        for seed in 0..16 {
            let crashed = Arc::new(recording.crash(at, seed));
            let there = || mount(&crashed).metadata(Path::new("/keep")).is_ok();
            let first = there();
            assert_eq!(there(), first, "crash {seed} at {at}");
        }
    }
}

/// A file whose size was uncertain since a crash was renamed and fsynced. That made durable what was
/// enqueued when the file was opened, and not the rename.
#[test]
fn fsync_of_an_unsettled_file_makes_its_new_name_durable() {
    let device = device();
    let fs = mount(&device);
    let file = fs
        .create(Path::new("/old"), &CreateOptions::default())
        .unwrap();
    file.append(&[1; 100]).unwrap();
    file.fdatasync().unwrap();
    let crashed = Arc::new(device.crash(1));
    let fs = mount(&crashed);
    let file = fs.open(Path::new("/old")).unwrap();
    assert!(matches!(file.size(), FileSize::Between { .. }));
    fs.rename(Path::new("/old"), Path::new("/new")).unwrap();
    file.fsync().unwrap();
    let after = mount(&Arc::new(crashed.crash(2)));
    assert!(after.metadata(Path::new("/new")).is_ok());
}

/// As above, but the file was closed after the cut and opened again: the new handle knew of no cut
/// to wait for.
#[test]
fn a_cut_is_durable_before_its_block_is_written_by_a_later_handle() {
    let device = device();
    let fs = mount(&device);
    let file = fs
        .create(Path::new("/f"), &CreateOptions::default())
        .unwrap();
    file.append(&[1; 1000]).unwrap();
    file.fsync().unwrap();
    let old = file.generation();
    device.record();
    file.truncate(100).unwrap();
    drop(file);
    let file = fs.open(Path::new("/f")).unwrap();
    file.append(&[2; 900]).unwrap();
    file.fdatasync().unwrap();
    let recording = device.take_recording();
    for at in 0..=recording.ops().len() {
        for seed in 0..16 {
            let after = mount(&Arc::new(recording.crash(at, seed)));
            let file = after.open(Path::new("/f")).unwrap();
            if file.generation() == old {
                let mut bytes = [0; 1000];
                file.read_at(0, &mut bytes).unwrap();
                assert_eq!(bytes, [1; 1000], "crash {seed} at {at}");
            }
        }
    }
}

/// A crash left a size in the journal's last record, and the data that it was to become durable with was lost;
/// recovery did not believe it. A repair then removed a file that had been open and nameless, by a further
/// record behind that one, and crashed in its turn: now the size was in a record that another followed, and
/// was believed, over bytes that nobody had written.
#[test]
fn a_repair_makes_no_size_believed_that_recovery_dropped() {
    let device = formatted(2 << 20, &MkfsOptions::default());
    let fs = mount(&device);
    let create = |path| {
        let path = Path::new(path);
        fs.create(path, &CreateOptions::default()).unwrap()
    };
    let file = create("/f");
    let nameless = create("/gone");
    fs.unlink(Path::new("/gone")).unwrap();
    fs.commit().unwrap();
    file.append(&[1; 4096]).unwrap();
    device.record();
    file.fsync().unwrap();
    let recording = device.take_recording();
    for at in 0..=recording.ops().len() {
        for seed in 0..16 {
            let damaged = Arc::new(recording.crash(at, seed));
            damaged.flip_bit(BLOCK_SIZE + 100, 0);
            damaged.record();
            let report = check(damaged.clone(), CheckMode::Preen).unwrap();
            assert!(!report.is_clean() && report.problems[0].corrected);
            let repair = damaged.take_recording();
            for at_repair in 0..=repair.ops().len() {
                let after = mount(&Arc::new(repair.crash(at_repair, seed)));
                let file = after.open(Path::new("/f")).unwrap();
                let mut bytes = vec![0; file.size().lower() as usize];
                file.read_at(0, &mut bytes).unwrap();
                let written = bytes.iter().all(|&byte| byte == 1);
                assert!(written, "crash {seed} at {at}, and at {at_repair}");
            }
        }
    }
    drop(nameless);
}

/// A device was formatted anew with the uuid that it had, as scripts with a fixed one do. Records of the earlier
/// filesystem lay behind the new one's, of the same epoch, since that begins anew too, and with later
/// sequence numbers: after a crash the journal counted as damaged.
#[test]
fn records_of_an_earlier_filesystem_with_the_same_uuid_are_no_damage() {
    let device = device();
    let path = |at: u32| format!("/{at}");
    for files in [20, 3] {
        let options = MkfsOptions {
            uuid: Some(uuid::Uuid::from_u128(7)),
            force: true,
            ..MkfsOptions::default()
        };
        mkfs(&*device, &options).unwrap();
        let fs = mount(&device);
        for at in 0..files {
            fs.create(Path::new(&path(at)), &CreateOptions::default())
                .unwrap();
            fs.commit().unwrap();
        }
    }
    let report = check(device.clone(), CheckMode::ReadOnly).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(mount(&device).list(Path::new("/")).unwrap().len(), 3);
}
