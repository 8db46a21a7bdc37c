//! Reading ahead: what it costs in device reads, and that it never shows a stale byte.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use lavafs::device::{DeviceCounters, Fault, FaultOn, FaultPlan, FaultWhen, SimDevice};
use lavafs::{
    CreateOptions, Error, FileRef, FileSize, FileSystem, LavaFs, MkfsOptions, MountOptions,
    TailPolicy, mkfs,
};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};

const MIB: u64 = 1 << 20;

fn device(size: u64) -> Arc<SimDevice> {
    let device = Arc::new(SimDevice::new(size, 512));
    mkfs(&*device, &MkfsOptions::default()).unwrap();
    device
}

fn mount_with(device: &Arc<SimDevice>, readahead: u64, read_only: bool) -> LavaFs {
    let options = MountOptions {
        background: false,
        readahead,
        read_only,
        ..MountOptions::default()
    };
    LavaFs::mount(device.clone(), &options).unwrap()
}

fn mount(device: &Arc<SimDevice>) -> LavaFs {
    mount_with(device, MIB, false)
}

fn pattern(len: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A file of `len` bytes in one extent, all of them on the device.
fn whole_file(fs: &LavaFs, path: &str, len: u64, seed: u64) -> FileRef {
    let options = CreateOptions {
        expected_size: len,
        ..CreateOptions::default()
    };
    let file = fs.create(Path::new(path), &options).unwrap();
    file.append(&pattern(len, seed)).unwrap();
    file.fsync().unwrap();
    file
}

/// Reads the file from `offset` in steps of `step` to its end, compares, and returns the cost.
fn scan(fs: &LavaFs, file: &FileRef, offset: u64, step: usize, expected: &[u8]) -> DeviceCounters {
    let before = fs.counters();
    let mut at = offset;
    let mut buf = vec![0; step];
    loop {
        let read = file.read_at(at, &mut buf).unwrap();
        assert_eq!(buf[..read], expected[at as usize..][..read], "at {at}");
        at += read as u64;
        if read < step {
            break;
        }
    }
    assert_eq!(at, expected.len() as u64);
    fs.counters() - before
}

#[test]
fn a_sequential_reader_costs_few_device_reads_and_no_byte_twice() {
    let device = device(16 * MIB);
    let fs = mount(&device);
    let file = whole_file(&fs, "/f", MIB, 1);
    let expected = pattern(MIB, 1);
    // Two single reads, then windows of 64, 128, 256, 512 KiB and the rest.
    let cost = scan(&fs, &file, 0, 4096, &expected);
    assert_eq!((cost.read_ios, cost.read_bytes), (7, MIB));
    // From within the file it takes a third read to see that the reader is sequential.
    let cost = scan(&fs, &file, 65536, 4096, &expected);
    assert_eq!(cost.read_bytes, MIB - 65536);
    assert_eq!(cost.read_ios, 7);
    // Records that are no multiple of a block: only the first reads' blocks are read twice.
    let cost = scan(&fs, &file, 0, 1000, &expected);
    assert!(
        cost.read_ios <= 8 && cost.read_bytes <= MIB + 2048,
        "{cost:?}"
    );
}

#[test]
fn a_larger_option_reads_longer_windows_and_zero_none() {
    let device = device(64 * MIB);
    let fs = mount(&device);
    drop(whole_file(&fs, "/f", 16 * MIB, 1));
    fs.unmount().unwrap();
    let expected = pattern(16 * MIB, 1);
    let cost = |readahead| {
        let fs = mount_with(&device, readahead, true);
        let file = fs.open(Path::new("/f")).unwrap();
        let cost = scan(&fs, &file, 0, 4096, &expected);
        assert_eq!(cost.read_bytes, 16 * MIB);
        cost.read_ios
    };
    assert_eq!(cost(0), 4096);
    assert_eq!(cost(MIB), 2 + 4 + 16);
    assert_eq!(cost(4 * MIB), 2 + 6 + 4);
    for refused in [1, 4096, 65535, 16 * MIB + 1] {
        let options = MountOptions {
            readahead: refused,
            ..MountOptions::default()
        };
        let error = LavaFs::mount(device.clone(), &options).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    }
}

#[test]
fn a_random_reader_costs_no_further_device_read() {
    let device = device(16 * MIB);
    let fs = mount(&device);
    let file = whole_file(&fs, "/f", 4 * MIB, 1);
    let expected = pattern(4 * MIB, 1);
    let mut rng = SmallRng::seed_from_u64(7);
    // Every even block once and no two neighbours: nothing ever goes on where something ended.
    let mut blocks: Vec<usize> = (0..1024).step_by(2).collect();
    blocks.shuffle(&mut rng);
    let before = fs.counters();
    let mut buf = [0; 4096];
    for &block in &blocks {
        assert_eq!(file.read_at(block as u64 * 4096, &mut buf).unwrap(), 4096);
        assert_eq!(buf, expected[block * 4096..][..4096]);
    }
    let cost = fs.counters() - before;
    assert_eq!((cost.read_ios, cost.read_bytes), (512, 512 * 4096));
    // Pairs of neighbours, as a header and its body: still none.
    blocks.shuffle(&mut rng);
    let before = fs.counters();
    for &block in blocks.iter().filter(|&&block| block > 0) {
        for half in [0, 2048] {
            file.read_at(block as u64 * 4096 + half, &mut buf[..2048])
                .unwrap();
        }
    }
    let cost = fs.counters() - before;
    assert_eq!((cost.read_ios, cost.read_bytes), (1022, 511 * 4096));
}

#[test]
fn several_readers_of_one_file_are_told_apart() {
    let device = device(64 * MIB);
    let fs = mount(&device);
    let file = whole_file(&fs, "/f", 16 * MIB, 1);
    let expected = pattern(16 * MIB, 1);
    let before = fs.counters();
    let mut buf = [0; 4096];
    let mut rng = SmallRng::seed_from_u64(3);
    let mut random = 0;
    for step in 0..1024 {
        for quarter in 0..4u64 {
            let at = quarter * 4 * MIB + step * 4096;
            file.read_at(at, &mut buf).unwrap();
            assert_eq!(buf, expected[at as usize..][..4096]);
        }
        if step % 3 == 0 {
            file.read_at(rng.random_range(0..1000) * 16384 + 77, &mut buf[..100])
                .unwrap();
            random += 1;
        }
    }
    let cost = fs.counters() - before;
    assert!(cost.read_ios < 4 * 13 + random, "{cost:?}");
}

#[test]
fn a_failed_read_ahead_is_only_seen_by_who_needs_the_bytes() {
    let device = device(16 * MIB);
    let fs = mount(&device);
    let file = whole_file(&fs, "/f", MIB, 1);
    let expected = pattern(MIB, 1);
    let ino = fs.resolve(Path::new("/f")).unwrap();
    let place = fs.extents(ino).unwrap()[0].0 * 4096;
    let bad = FaultWhen::Within {
        offset: place + 100 * 4096,
        len: 1,
    };
    device.set_faults(Some(FaultPlan::new(1).rule(FaultOn::Read, bad, Fault::Eio)));
    let mut buf = [0; 4096];
    for block in 0..256 {
        let read = file.read_at(block * 4096, &mut buf);
        if block == 100 {
            assert!(matches!(read, Err(Error::Io { .. })));
        } else {
            assert_eq!(read.unwrap(), 4096);
            assert_eq!(buf, expected[block as usize * 4096..][..4096]);
        }
    }
    device.set_faults(None);
    scan(&fs, &file, 0, 4096, &expected);
    file.append(&[1]).unwrap();
    file.fsync().unwrap();
}

/// Reads some way into the file, so that more is read ahead.
fn read_some(file: &FileRef) {
    let mut buf = [0; 4096];
    for block in 0..6 {
        file.read_at(block * 4096, &mut buf).unwrap();
    }
}

#[test]
fn a_truncated_file_shows_only_what_was_appended_since() {
    let device = device(16 * MIB);
    let fs = mount(&device);
    for keep in [0, 100, 4096 * 7 + 512] {
        let file = whole_file(&fs, "/f", MIB, 1);
        read_some(&file);
        file.truncate(keep).unwrap();
        file.append(&pattern(MIB - keep, 2)).unwrap();
        file.fsync().unwrap();
        let mut expected = pattern(MIB, 1);
        expected[keep as usize..].copy_from_slice(&pattern(MIB - keep, 2));
        scan(&fs, &file, 0, 4096, &expected);
        // The same by settling an exact size.
        read_some(&file);
        file.settle(keep).unwrap();
        file.append(&pattern(MIB - keep, 3)).unwrap();
        file.fsync().unwrap();
        expected[keep as usize..].copy_from_slice(&pattern(MIB - keep, 3));
        scan(&fs, &file, 0, 4096, &expected);
        fs.unlink(Path::new("/f")).unwrap();
    }
}

#[test]
fn an_extent_that_another_file_got_shows_the_other_files_bytes() {
    let device = device(4 * MIB);
    let fs = mount(&device);
    for turn in 0..8 {
        let file = whole_file(&fs, "/f", MIB, turn);
        read_some(&file);
        drop(file);
        fs.unlink(Path::new("/f")).unwrap();
        fs.commit().unwrap();
        let file = whole_file(&fs, "/f", MIB, turn + 100);
        scan(&fs, &file, 0, 4096, &pattern(MIB, turn + 100));
        drop(file);
        fs.unlink(Path::new("/f")).unwrap();
        fs.commit().unwrap();
    }
}

#[test]
fn what_was_unverified_before_a_settle_is_read_again() {
    let device = device(16 * MIB);
    let fs = mount(&device);
    let options = CreateOptions {
        expected_size: MIB,
        ..CreateOptions::default()
    };
    let file = fs.create(Path::new("/f"), &options).unwrap();
    file.append(&pattern(65536, 1)).unwrap();
    file.fdatasync().unwrap();
    let fs = mount(&Arc::new(device.crash(1)));
    let file = fs.open(Path::new("/f")).unwrap();
    assert!(matches!(file.size(), FileSize::Between { .. }));
    let mut buf = [0; 4096];
    for block in 0..8 {
        file.read_unverified(block * 4096, &mut buf).unwrap();
    }
    file.settle(16384).unwrap();
    file.append(&pattern(MIB - 16384, 2)).unwrap();
    file.fsync().unwrap();
    let mut expected = pattern(65536, 1)[..16384].to_vec();
    expected.extend(pattern(MIB - 16384, 2));
    scan(&fs, &file, 0, 4096, &expected);
}

#[test]
fn a_refreshed_view_reads_anew() {
    let device = device(16 * MIB);
    let owner = mount(&device);
    let file = whole_file(&owner, "/f", MIB, 1);
    let view = mount_with(&device, MIB, true);
    let seen = view.open(Path::new("/f")).unwrap();
    read_some(&seen);
    file.truncate(4096).unwrap();
    file.append(&pattern(MIB - 4096, 2)).unwrap();
    file.fsync().unwrap();
    assert!(view.refresh().unwrap());
    let mut expected = pattern(MIB, 1);
    expected[4096..].copy_from_slice(&pattern(MIB - 4096, 2));
    scan(&view, &seen, 0, 4096, &expected);
    // And through a checkpoint, which replaces every table.
    read_some(&seen);
    file.truncate(0).unwrap();
    file.append(&pattern(MIB, 3)).unwrap();
    file.fsync().unwrap();
    owner.checkpoint().unwrap();
    assert!(view.refresh().unwrap());
    scan(&view, &seen, 0, 4096, &pattern(MIB, 3));
}

/// Appends of all kinds, cuts and readers at several places, against the bytes in memory.
#[test]
fn reads_equal_the_model_whatever_goes_on() {
    for seed in 0..60 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let device = device(16 * MIB);
        let fs = mount_with(&device, [65536, 1 << 18, MIB][seed as usize % 3], false);
        let tail = [TailPolicy::Pack, TailPolicy::Seal][seed as usize % 2];
        let options = CreateOptions {
            tail,
            ..CreateOptions::default()
        };
        let file = fs.create(Path::new("/f"), &options).unwrap();
        let other = fs.create(Path::new("/other"), &options).unwrap();
        let mut model: Vec<u8> = Vec::new();
        let mut readers = [0; 5];
        for step in 0..600 {
            match rng.random_range(0..100) {
                0..25 if model.len() < 3 << 20 => {
                    let most = [100, 5000, 200_000][rng.random_range(0..3)];
                    let bytes = pattern(rng.random_range(1..most), seed * 1000 + step);
                    // A sealed file is padded by syncs.
                    let at = if rng.random() {
                        file.append(&bytes).unwrap()
                    } else {
                        file.append_durable(&[std::io::IoSlice::new(&bytes)])
                            .unwrap()
                    };
                    model.resize(at as usize, 0);
                    model.extend(&bytes);
                    other.append(&[9; 4096]).unwrap();
                }
                25..30 => file.fsync().unwrap(),
                30..33 => {
                    let size = file.size().lower();
                    let keep = rng.random_range(size / 2..=size);
                    file.truncate(keep).unwrap();
                    model.resize(keep as usize, 0);
                }
                _ => {
                    let reader = &mut readers[rng.random_range(0..5)];
                    if rng.random_range(0..20) == 0 || *reader > model.len() {
                        *reader = rng.random_range(0..=model.len());
                    }
                    model.resize(file.size().lower() as usize, 0);
                    let mut buf = vec![1; rng.random_range(1..30_000)];
                    let read = file.read_at(*reader as u64, &mut buf).unwrap();
                    let expected = &model[*reader..(*reader + buf.len()).min(model.len())];
                    assert!(buf[..read] == *expected, "seed {seed} step {step}");
                    *reader += read;
                }
            }
        }
    }
}

/// Threads that scan while another one appends and cuts: each byte tells its place, so that a byte of
/// an older life of the file would be seen.
#[test]
fn threads_that_scan_see_only_the_present_life_of_a_file() {
    let device = device(64 * MIB);
    let fs = mount(&device);
    let file = fs
        .create(Path::new("/f"), &CreateOptions::default())
        .unwrap();
    let life = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut buf = vec![0u8; 8192];
                while life.load(std::sync::atomic::Ordering::Acquire) < 40 {
                    let mut at = 0;
                    loop {
                        let before = life.load(std::sync::atomic::Ordering::Acquire);
                        let read = file.read_at(at, &mut buf).unwrap();
                        let after = life.load(std::sync::atomic::Ordering::Acquire);
                        // Bytes of a life say its number; the cut comes between two numbers.
                        let lives = before.saturating_sub(1)..=after + 1;
                        for &byte in &buf[..read] {
                            assert!(lives.contains(&u32::from(byte)), "{byte} in {lives:?}");
                        }
                        if read < buf.len() {
                            break;
                        }
                        at += read as u64;
                    }
                }
            });
        }
        for number in 0..40 {
            life.store(number, std::sync::atomic::Ordering::Release);
            for _ in 0..24 {
                file.append(&[number as u8; 40_000]).unwrap();
            }
            file.truncate(0).unwrap();
        }
        life.store(40, std::sync::atomic::Ordering::Release);
    });
}
