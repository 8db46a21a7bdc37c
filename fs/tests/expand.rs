//! Growing a filesystem, and which superblock copy counts while and after it grows.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use lavafs::device::SimDevice;
use lavafs::device::{AlignedBuf, BlockDevice, Durability, Fault, FaultOn, FaultPlan, FaultWhen};
use lavafs::{
    BLOCK_SIZE, CheckMode, CreateOptions, Error, FileSystem, LavaFs, MkfsOptions, MountOptions,
    check, mkfs,
};

const MIB: u64 = 1 << 20;
const SMALL: u64 = 4 * MIB;
const LARGE: u64 = 7 * MIB;

fn try_mount(device: &Arc<SimDevice>) -> lavafs::Result<LavaFs> {
    let options = MountOptions {
        background: false,
        ..MountOptions::default()
    };
    LavaFs::mount(device.clone(), &options)
}

fn mount(device: &Arc<SimDevice>) -> LavaFs {
    try_mount(device).unwrap()
}

fn assert_clean(device: &Arc<SimDevice>) {
    let report = check(device.clone(), CheckMode::ReadOnly).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

fn byte_at(file: usize, offset: u64) -> u8 {
    (offset / 512) as u8 ^ (file as u8).wrapping_mul(31)
}

/// Appends to `path` until nothing is free, and returns its length.
fn fill(fs: &LavaFs, file: usize) -> u64 {
    let path = format!("/{file}");
    let handle = fs
        .create(Path::new(&path), &CreateOptions::default())
        .unwrap();
    let mut len = 0;
    for piece in [4096, 512] {
        loop {
            let bytes: Vec<u8> = (0..piece).map(|at| byte_at(file, len + at)).collect();
            match handle.append(&bytes) {
                Ok(_) => len += piece,
                Err(Error::NoSpace { .. }) => break,
                Err(other) => panic!("{other}"),
            }
        }
    }
    handle.fsync().unwrap();
    len
}

fn assert_holds(fs: &LavaFs, file: usize, len: u64) {
    let handle = fs.open(Path::new(&format!("/{file}"))).unwrap();
    let mut bytes = vec![0; len as usize + 1];
    assert_eq!(handle.read_at(0, &mut bytes).unwrap() as u64, len);
    for (at, &byte) in bytes[..len as usize].iter().enumerate() {
        assert_eq!(byte, byte_at(file, at as u64), "byte {at} of file {file}");
    }
}

/// A full filesystem on a device that has grown since, and the length of file 0.
fn full_and_grown() -> (Arc<SimDevice>, u64) {
    let device = Arc::new(SimDevice::new(SMALL, 512));
    mkfs(&*device, &MkfsOptions::default()).unwrap();
    let fs = mount(&device);
    let len = fill(&fs, 0);
    assert_eq!(fs.space().free, 0);
    fs.unmount().unwrap();
    (Arc::new(device.grown(LARGE)), len)
}

fn damage(device: &SimDevice, blocks: &[u64]) {
    for block in blocks {
        device.flip_bit(block * BLOCK_SIZE + 20, 3);
    }
}

fn overwrite(device: &SimDevice, block: u64, bytes: &[u8]) {
    let mut buf = AlignedBuf::zeroed(BLOCK_SIZE as usize);
    buf.copy_from_slice(bytes);
    device
        .write(block * BLOCK_SIZE, &buf, Durability::Durable)
        .unwrap();
}

#[test]
fn a_full_filesystem_expands_to_the_device_and_fills_it() {
    let (device, len) = full_and_grown();
    let fs = mount(&device);
    assert_eq!(fs.expand().unwrap(), LARGE - SMALL);
    assert_eq!(fs.expand().unwrap(), 0);
    assert_eq!(fs.space().free, LARGE - SMALL);
    assert_eq!(fs.superblock().total_blocks, LARGE / BLOCK_SIZE);
    let second = fill(&fs, 1);
    assert_eq!(second, LARGE - SMALL);
    fs.unmount().unwrap();
    assert_clean(&device);
    let fs = mount(&device);
    assert_holds(&fs, 0, len);
    assert_holds(&fs, 1, second);
}

#[test]
fn a_crash_at_any_write_of_an_expansion_leaves_the_old_size_or_the_new() {
    let (device, len) = full_and_grown();
    let fs = mount(&device);
    device.record();
    fs.expand().unwrap();
    fs.set_label("grown").unwrap();
    let ready = device.recorded_ops();
    let second = fill(&fs, 1);
    let recording = device.take_recording();
    let (mut old, mut new) = (0, 0);
    for at in 0..=recording.ops().len() {
        let seeds = match at {
            _ if at <= ready => 16,
            _ => u64::from(at % 11 == 0 || at == recording.ops().len()),
        };
        for seed in 0..seeds {
            let crashed = Arc::new(recording.crash(at, seed));
            assert_clean(&crashed);
            let after = mount(&crashed);
            let superblock = after.superblock();
            match superblock.total_blocks * BLOCK_SIZE {
                SMALL => old += 1,
                LARGE => new += 1,
                other => panic!("op {at} seed {seed}: {other} bytes"),
            }
            assert!(at < ready || superblock.total_blocks * BLOCK_SIZE == LARGE);
            assert!(at < ready || superblock.label == "grown");
            assert_holds(&after, 0, len);
            if at == recording.ops().len() {
                assert_holds(&after, 1, second);
            }
            after.expand().unwrap();
            assert_eq!(after.space().total, fs.space().total);
            after.unmount().unwrap();
            assert_clean(&crashed);
            // The mount has replaced what the crash left behind.
            let report = check(crashed, CheckMode::ReadOnly).unwrap();
            assert!(
                !report.remarks.iter().any(|r| r.contains("superblock")),
                "{report:?}"
            );
        }
    }
    assert!(
        old > 0 && new > 0,
        "{old} with the old size, {new} with the new"
    );
}

#[test]
fn a_failed_superblock_write_is_final() {
    let (device, len) = full_and_grown();
    for nth in 0..5 {
        let device = Arc::new(device.duplicate());
        let fs = mount(&device);
        let plan = FaultPlan::new(nth).rule(FaultOn::Write, FaultWhen::Nth(nth), Fault::Eio);
        device.set_faults(Some(plan));
        assert!(matches!(fs.expand(), Err(Error::Io { .. })));
        assert!(matches!(fs.expand(), Err(Error::ReadOnly { .. })));
        assert_eq!(fs.space().free, 0);
        drop(fs);
        let crashed = Arc::new(device.crash(nth));
        let fs = mount(&crashed);
        assert_holds(&fs, 0, len);
    }
}

#[test]
fn any_one_good_copy_is_enough_before_and_after_an_expansion() {
    let (grown, len) = full_and_grown();
    let expanded = Arc::new(grown.duplicate());
    let fs = mount(&expanded);
    fs.expand().unwrap();
    fs.unmount().unwrap();
    for device in [grown, expanded] {
        let copies = {
            let fs = mount(&Arc::new(device.duplicate()));
            let last = fs.superblock().total_blocks - 1;
            [0, 1, fs.superblock().middle_block, last]
        };
        for good in 0..4 {
            let is_last_unexpanded = good == 3 && copies[3] * BLOCK_SIZE < SMALL;
            let rotten = Arc::new(device.duplicate());
            let bad: Vec<u64> = (0..4).filter(|&i| i != good).map(|i| copies[i]).collect();
            damage(&rotten, &bad);
            if is_last_unexpanded {
                // Nothing says where it is: the device does not end there any more.
                assert!(try_mount(&rotten).unwrap_err().is_corrupt());
                continue;
            }
            let report = check(rotten.clone(), CheckMode::ReadOnly).unwrap();
            assert_eq!(report.problems.len(), 3, "{report:?}");
            let fs = mount(&rotten);
            assert_holds(&fs, 0, len);
            fs.unmount().unwrap();
            assert_clean(&rotten);
        }
    }
}

#[test]
fn an_older_filesystem_at_the_devices_end_never_counts() {
    // A large filesystem of several epochs, then a small one on the first part of the device.
    let device = Arc::new(SimDevice::new(LARGE, 512));
    mkfs(&*device, &MkfsOptions::default()).unwrap();
    let fs = mount(&device);
    for label in ["a", "b", "c"] {
        fs.set_label(label).unwrap();
    }
    fs.unmount().unwrap();
    let mut old_last = AlignedBuf::zeroed(BLOCK_SIZE as usize);
    device.read(LARGE - BLOCK_SIZE, &mut old_last).unwrap();

    let (grown, len) = full_and_grown();
    overwrite(&grown, LARGE / BLOCK_SIZE - 1, &old_last);
    let fs = mount(&grown);
    assert_eq!(fs.superblock().label, "");
    assert_eq!(fs.superblock().epoch, 1);
    assert_holds(&fs, 0, len);
    fs.unmount().unwrap();
    // Nor where both first copies are lost.
    damage(&grown, &[0, 1]);
    let fs = mount(&grown);
    assert_eq!(fs.superblock().epoch, 1);
    assert_holds(&fs, 0, len);
}

#[test]
fn a_copy_in_the_wrong_place_is_file_data() {
    let (device, len) = full_and_grown();
    let fs = mount(&device);
    fs.expand().unwrap();
    // An image of this very filesystem, a later state of it, kept in a file in the middle.
    fs.set_label("later").unwrap();
    fs.unmount().unwrap();
    let mut later = AlignedBuf::zeroed(BLOCK_SIZE as usize);
    device.read(0, &mut later).unwrap();
    let before = Arc::new(device.duplicate());
    let fs = mount(&before);
    fs.set_label("now").unwrap();
    fs.unmount().unwrap();
    overwrite(&before, LARGE / BLOCK_SIZE / 2, &later);
    let fs = mount(&before);
    assert_eq!(fs.superblock().label, "now");
    drop(fs);
    assert_ne!(len, 0);
}

#[test]
fn a_label_is_kept_and_checked() {
    let device = Arc::new(SimDevice::new(SMALL, 512));
    mkfs(&*device, &MkfsOptions::default()).unwrap();
    let fs = mount(&device);
    fs.set_label("orders").unwrap();
    assert!(matches!(
        fs.set_label(&"x".repeat(65)),
        Err(Error::Invalid { .. })
    ));
    assert!(matches!(fs.set_label("a\0b"), Err(Error::Invalid { .. })));
    fs.unmount().unwrap();
    assert_clean(&device);
    assert_eq!(mount(&device).superblock().label, "orders");
}

#[test]
fn a_device_that_shrank_is_refused_with_both_sizes() {
    let (device, _) = full_and_grown();
    let fs = mount(&device);
    fs.expand().unwrap();
    fs.unmount().unwrap();
    let shrunk = Arc::new(SimDevice::new(SMALL, 512));
    for block in 0..SMALL / BLOCK_SIZE {
        let mut buf = AlignedBuf::zeroed(BLOCK_SIZE as usize);
        device.read(block * BLOCK_SIZE, &mut buf).unwrap();
        overwrite(&shrunk, block, &buf);
    }
    let error = try_mount(&shrunk).unwrap_err().to_string();
    assert!(error.contains("1792") && error.contains("1024"), "{error}");
}
