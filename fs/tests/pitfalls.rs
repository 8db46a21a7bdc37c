//! What went wrong in production with other filesystems of this kind, one test each. Pitfalls that
//! are tested where the mechanism is: expansion and superblock epochs in `expand.rs`, discards in
//! `discard.rs`, journal growth in `lava_fs.rs`, appends that wait for a checkpoint (zenfs#61) in
//! `checkpoint_beside_appends.rs`, a full journal in `journal_full.rs`, allocation under
//! `src/alloc`, direct I/O under `src/device`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use common::{formatted, mount};
use lavafs::device::{BlockDevice, Fault, FaultOn, FaultPlan, FaultWhen, SimDevice};
use lavafs::{
    BLOCK_SIZE, CheckMode, CreateOptions, Error, FileRef, FileSize, FileSystem, LavaFs,
    MkfsOptions, check, mkfs,
};

const MIB: u64 = 1 << 20;

fn device(size: u64) -> Arc<SimDevice> {
    formatted(size, &MkfsOptions::default())
}

fn assert_clean(device: &Arc<SimDevice>) {
    let report = check(device.clone(), CheckMode::ReadOnly).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

fn create(fs: &LavaFs, path: &str) -> FileRef {
    fs.create(Path::new(path), &CreateOptions::default())
        .unwrap()
}

/// Self-extending logs whose record that grants space does not fit (ceph#41888, #50216): with no block
/// free, the journal still takes any number of changes.
#[test]
fn a_device_without_a_free_block_takes_any_number_of_names() {
    let device = device(4 * MIB);
    let fs = mount(&device);
    let file = create(&fs, "/full");
    while file.append(&[1; 4096]).is_ok() {}
    file.fsync().unwrap();
    assert!(fs.space().free < BLOCK_SIZE);
    for round in 0..3000 {
        fs.link(Path::new("/full"), Path::new("/other")).unwrap();
        fs.sync_dir(Path::new("/")).unwrap();
        fs.unlink(Path::new("/other")).unwrap();
        if round % 10 == 0 {
            fs.sync_dir(Path::new("/")).unwrap();
        }
    }
    drop(file);
    fs.unmount().unwrap();
    assert_clean(&device);
}

/// Metadata durable before its data (ceph#41501, #45233, #43774): whatever an exact size covers after a crash
/// has been written.
#[test]
fn no_crash_leaves_an_exact_size_over_bytes_that_are_not_there() {
    let device = device(4 * MIB);
    let fs = mount(&device);
    device.record();
    for name in 0..6u8 {
        let file = create(&fs, &format!("/{name}"));
        for len in [100, 5000, 30_000] {
            file.append(&vec![name + 1; len]).unwrap();
            file.fsync().unwrap();
        }
    }
    let recording = device.take_recording();
    for at in 0..=recording.ops().len() {
        for seed in 0..8 {
            let crashed = Arc::new(recording.crash(at, seed));
            let fs = mount(&crashed);
            for entry in fs.list(Path::new("/")).unwrap() {
                let file = fs.open(Path::new(&entry.name)).unwrap();
                let mut bytes = vec![0; file.size().lower() as usize];
                file.read_at(0, &mut bytes).unwrap();
                let name: u8 = entry.name.to_str().unwrap().parse().unwrap();
                assert!(
                    bytes.iter().all(|&b| b == name + 1),
                    "op {at} seed {seed} file {name}"
                );
            }
        }
    }
}

/// A compacted journal that was never read back (ceph#45246): a checkpoint that the device did not
/// keep as it was written is never switched to.
#[test]
fn a_checkpoint_that_reads_back_wrong_is_never_switched_to() {
    let mut refused = 0;
    for (seed, fault) in (0..8).flat_map(|seed| [(seed, Fault::BitFlip), (seed, Fault::Lost)]) {
        let device = device(4 * MIB);
        let fs = mount(&device);
        for name in 0..50 {
            create(&fs, &format!("/{name}"));
        }
        fs.commit().unwrap();
        // The first write of a checkpoint is its content.
        let plan = FaultPlan::new(seed).rule(FaultOn::Write, FaultWhen::Nth(0), fault);
        device.set_faults(Some(plan));
        match fs.checkpoint() {
            Err(error) => {
                assert!(error.is_corrupt(), "{error}");
                assert!(matches!(fs.checkpoint(), Err(Error::ReadOnly { .. })));
                refused += 1;
            }
            // The bit was one of the padding.
            Ok(()) => assert_eq!(fault, Fault::BitFlip),
        }
        device.set_faults(None);
        drop(fs);
        assert_clean(&device);
        assert_eq!(mount(&device).list(Path::new("/")).unwrap().len(), 50);
    }
    assert!(refused > 8, "{refused} of 16");
}

/// No space at less than half full (rook#12433, ceph#38438, #48854, zenfs#271): a file takes all that is
/// free, however it is cut up.
#[test]
fn a_checkerboard_of_free_blocks_is_all_usable() {
    let device = Arc::new(SimDevice::new(8 * MIB, 512));
    let options = MkfsOptions {
        journal_size: Some(MIB),
        ..MkfsOptions::default()
    };
    mkfs(&*device, &options).unwrap();
    let fs = mount(&device);
    let mut names = 0;
    loop {
        let file = create(&fs, &format!("/{names}"));
        if file.append(&[2; 4096]).is_err() {
            break;
        }
        names += 1;
    }
    for name in 0..names {
        let path = format!("/{name}");
        let ino = fs.resolve(Path::new(&path)).unwrap();
        if fs.extents(ino).unwrap()[0].0.is_multiple_of(2) {
            fs.unlink(Path::new(&path)).unwrap();
        }
    }
    fs.commit().unwrap();
    let free = fs.space().free;
    assert!(
        free > 2 * MIB && fs.fragmentation().longest_free < 4,
        "{}",
        fs.fragmentation()
    );
    let file = create(&fs, "/all");
    file.append(&vec![4; free as usize]).unwrap();
    file.fsync().unwrap();
    assert_eq!(fs.space().free, 0);
    drop(file);
    fs.unmount().unwrap();
    assert_clean(&device);
}

/// Inode reuse that revived deleted files' records: no generation appears twice, whatever a crash forgets.
#[test]
fn no_generation_appears_twice_across_crashes() {
    let mut device = device(8 * MIB);
    let mut seen = HashSet::new();
    for seed in 0..200 {
        let fs = mount(&device);
        for entry in fs.list(Path::new("/")).unwrap() {
            fs.unlink(Path::new(&entry.name)).unwrap();
        }
        for turn in 0..3 {
            let file = create(&fs, &format!("/{seed}-{turn}"));
            assert!(seen.insert(file.generation()), "seed {seed}");
            file.append(&[1; 100]).unwrap();
            if turn == 1 {
                file.fdatasync().unwrap();
                file.truncate(0).unwrap();
                assert!(seen.insert(file.generation()), "seed {seed}");
            }
        }
        device = Arc::new(device.crash(seed));
    }
}

/// Garbage in a preallocated log (ceph#12617, #30549): what a reused extent holds is never shown below a
/// size's lower bound, and above it only to who asks for unverified bytes.
#[test]
fn bytes_of_an_older_file_are_never_shown_as_a_newer_ones() {
    let device = device(8 * MIB);
    let fs = mount(&device);
    let options = CreateOptions {
        expected_size: MIB,
        ..CreateOptions::default()
    };
    let old = fs.create(Path::new("/old"), &options).unwrap();
    old.append(&vec![0xaa; MIB as usize]).unwrap();
    old.fsync().unwrap();
    let generation = old.generation();
    drop(old);
    fs.unlink(Path::new("/old")).unwrap();
    fs.commit().unwrap();
    let new = fs.create(Path::new("/new"), &options).unwrap();
    new.append(&[0xbb; 512]).unwrap();
    new.fdatasync().unwrap();
    assert_ne!(new.generation(), generation);
    for seed in 0..50 {
        let crashed = Arc::new(device.crash(seed));
        let fs = mount(&crashed);
        let file = fs.open(Path::new("/new")).unwrap();
        let FileSize::Between { lower, upper } = file.size() else {
            panic!("{:?}", file.size())
        };
        assert!(lower <= 512 && upper >= MIB);
        let mut bytes = vec![0; MIB as usize];
        let len = file.read_at(0, &mut bytes).unwrap();
        assert!(bytes[..len].iter().all(|&byte| byte == 0xbb));
        file.settle(512).unwrap();
        let len = file.read_at(0, &mut bytes).unwrap();
        assert_eq!(bytes[..len], [0xbb; 512]);
        assert_eq!(file.read_unverified(0, &mut bytes).unwrap(), 512);
    }
}

/// Swallowed write errors, and flushes tried again after they failed (ZenFS; fsyncgate): the first
/// failure is final, nothing more is sent, and everything before it is still readable.
#[test]
fn a_failed_write_or_flush_is_final_and_never_tried_again() {
    for on in [FaultOn::Write, FaultOn::Flush] {
        let device = device(8 * MIB);
        let fs = mount(&device);
        let file = create(&fs, "/f");
        file.append(&[1; 4096]).unwrap();
        file.fsync().unwrap();
        let plan = FaultPlan::new(1).rule(on, FaultWhen::Nth(0), Fault::Eio);
        device.set_faults(Some(plan));
        file.append(&[2; 4096]).unwrap();
        assert!(matches!(file.fsync(), Err(Error::Io { .. })), "{on:?}");
        let before = fs.counters();
        for _ in 0..3 {
            let error = file.fsync().unwrap_err();
            assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
            assert!(file.fdatasync().is_err() && file.append(&[3]).is_err());
            assert!(fs.commit().is_err() || fs.checkpoint().is_err());
            assert!(
                fs.create(Path::new("/g"), &CreateOptions::default())
                    .is_err()
            );
            assert!(fs.unlink(Path::new("/f")).is_err());
        }
        let after = fs.counters();
        assert_eq!((after - before).write_ios + (after - before).flushes, 0);
        let mut bytes = [0; 4096];
        assert_eq!(file.read_at(0, &mut bytes).unwrap(), 4096);
        assert_eq!(bytes, [1; 4096]);
    }
}

/// A snapshot larger than its zone (zenfs#293): a create whose checkpoint would not fit is refused,
/// and deletes make room again.
#[test]
fn a_create_whose_checkpoint_would_not_fit_is_refused() {
    let device = device(4 * MIB);
    let fs = mount(&device);
    let mut names = 0;
    let name = |at: usize| format!("/{at:0200}");
    let error = loop {
        match fs.create(Path::new(&name(names)), &CreateOptions::default()) {
            Ok(_) => names += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert!(names > 100);
    fs.checkpoint().unwrap();
    for at in 0..names / 2 {
        fs.unlink(Path::new(&name(at))).unwrap();
    }
    create(&fs, "/again");
    fs.unmount().unwrap();
    assert_clean(&device);
    assert_eq!(
        mount(&device).list(Path::new("/")).unwrap().len(),
        names - names / 2 + 1
    );
}

/// Twelve minutes to load a filesystem (spdk#3864): a mount reads its metadata a fixed number of
/// times in large pieces, and nothing for each file.
#[test]
fn a_mount_reads_its_metadata_in_few_large_pieces() {
    let device = device(256 * MIB);
    let fs = mount(&device);
    for name in 0..20_000 {
        create(&fs, &format!("/{name}")).append(&[1]).unwrap();
    }
    fs.unmount().unwrap();
    let before = device.counters();
    let fs = mount(&device);
    let spent = device.counters() - before;
    assert_eq!(fs.inode_count(), 20_001);
    // The checkpoint, its second reading when the mount has written a new one, and what is read ahead of
    // the records that are not there.
    let metadata = 20_000 * 100;
    assert!(spent.read_bytes < 2 * metadata + 20 * MIB, "{spent:?}");
    assert!(spent.read_ios < 60, "{spent:?}");
}

/// Direct reads without readahead regress (ceph#10766, #20542, #34224, #38044): with the default options a
/// reader of 4 KiB at a time waits for the device once for many of its reads.
#[test]
fn small_sequential_reads_are_read_ahead_by_default() {
    let device = device(32 * MIB);
    let fs = mount(&device);
    let file = create(&fs, "/f");
    for part in 0..16 {
        file.append(&vec![part; MIB as usize]).unwrap();
    }
    file.fsync().unwrap();
    let before = fs.counters();
    let mut bytes = [0; 4096];
    for at in (0..16 * MIB).step_by(4096) {
        assert_eq!(file.read_at(at, &mut bytes).unwrap(), 4096);
        assert_eq!(bytes, [(at / MIB) as u8; 4096]);
    }
    let cost = fs.counters() - before;
    assert_eq!(cost.read_bytes, 16 * MIB, "no byte twice");
    assert!(cost.read_ios < 40, "{} for 4096 reads", cost.read_ios);
}
