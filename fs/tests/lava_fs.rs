//! `LavaFs` against the filesystem contract, and what is its own, on the simulated device.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod conformance;

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use common::{formatted, mount};
use lavafs::device::SimDevice;
use lavafs::{
    CheckMode, CreateOptions, Error, FileSize, FileSystem, LavaFs, MkfsOptions, SetAttributes,
    TailPolicy, check, mkfs,
};

const MIB: u64 = 1 << 20;

fn device(size: u64) -> Arc<SimDevice> {
    formatted(size, &MkfsOptions::default())
}

fn assert_clean(device: &Arc<SimDevice>) {
    let report = check(device.clone(), CheckMode::ReadOnly).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn lava_fs_meets_the_contract() {
    conformance::run_all(|| (Box::new(mount(&device(64 * MIB))), ()));
}

#[test]
fn a_steady_synced_append_is_one_block_and_one_flush() {
    let device = device(64 * MIB);
    let fs = mount(&device);
    let options = CreateOptions {
        expected_size: 8 * MIB,
        ..CreateOptions::default()
    };
    let file = fs.create(Path::new("/wal"), &options).unwrap();
    file.append(&[1; 4096]).unwrap();
    file.fdatasync().unwrap();
    let before = fs.counters();
    for _ in 0..1000 {
        file.append(&[2; 4096]).unwrap();
        file.fdatasync().unwrap();
    }
    let cost = fs.counters() - before;
    assert_eq!(
        (cost.write_bytes, cost.write_ios, cost.flushes),
        (1000 * 4096, 1000, 1000)
    );
    assert_eq!(cost.read_ios, 0);
}

#[test]
fn a_steady_fsync_is_one_flush_and_at_most_two_blocks() {
    let device = SimDevice::new(64 * MIB, 512);
    let options = MkfsOptions {
        journal_size: Some(4 * MIB),
        ..MkfsOptions::default()
    };
    mkfs(&device, &options).unwrap();
    let device = Arc::new(device);
    let fs = mount(&device);
    let file = fs
        .create(
            Path::new("/f"),
            &CreateOptions {
                expected_size: 8 * MIB,
                ..CreateOptions::default()
            },
        )
        .unwrap();
    file.append(&[1; 4096]).unwrap();
    file.fsync().unwrap();
    let before = fs.counters();
    for _ in 0..500 {
        file.append(&[2; 4096]).unwrap();
        file.fsync().unwrap();
    }
    let cost = fs.counters() - before;
    assert_eq!(cost.flushes, 500);
    assert_eq!(cost.write_bytes, 500 * (4096 + 512));
}

#[test]
fn everything_is_there_after_an_unmount() {
    let device = device(64 * MIB);
    let fs = mount(&device);
    fs.create_dir_all(Path::new("/a/b")).unwrap();
    for name in 0..300 {
        let path = format!("/a/b/{name}");
        let file = fs
            .create(Path::new(&path), &CreateOptions::default())
            .unwrap();
        file.append(&vec![name as u8; name * 100]).unwrap();
    }
    fs.unmount().unwrap();
    assert_clean(&device);
    let fs = mount(&device);
    assert_eq!(fs.list(Path::new("/a/b")).unwrap().len(), 300);
    for name in 0..300usize {
        let file = fs.open(Path::new(&format!("/a/b/{name}"))).unwrap();
        assert_eq!(file.size(), FileSize::Exact(name as u64 * 100));
        let mut buf = vec![0; name * 100 + 10];
        assert_eq!(file.read_at(0, &mut buf).unwrap(), name * 100);
        assert!(buf[..name * 100].iter().all(|&byte| byte == name as u8));
    }
}

#[test]
fn synced_bytes_are_between_the_bounds_after_a_crash() {
    let device = device(16 * MIB);
    let fs = mount(&device);
    let file = fs
        .create(Path::new("/wal"), &CreateOptions::default())
        .unwrap();
    for record in 0..20u8 {
        file.append(&[record; 100]).unwrap();
        file.fdatasync().unwrap();
    }
    let generation = file.generation();
    let crashed = Arc::new(device.crash(1));
    drop((file, fs));
    assert_clean(&crashed);
    let fs = mount(&crashed);
    let file = fs.open(Path::new("/wal")).unwrap();
    let FileSize::Between { lower, upper } = file.size() else {
        panic!("{:?}", file.size())
    };
    assert!(lower <= 2000 && upper >= 2000);
    let mut buf = vec![0; 2000];
    assert_eq!(file.read_unverified(0, &mut buf).unwrap(), 2000);
    for (record, bytes) in buf.chunks(100).enumerate() {
        assert_eq!(bytes, [record as u8; 100]);
    }
    assert!(matches!(file.append(b"x"), Err(Error::Invalid { .. })));
    file.settle(2000).unwrap();
    assert_eq!(file.generation(), generation);
    assert_eq!(file.append(b"x").unwrap(), 2000);
    file.fsync().unwrap();
    assert_eq!(file.size(), FileSize::Exact(2001));
}

#[test]
fn a_full_device_says_so_and_deletes_still_work() {
    let device = device(8 * MIB);
    let fs = mount(&device);
    let file = fs
        .create(Path::new("/big"), &CreateOptions::default())
        .unwrap();
    let chunk = vec![7; 100_000];
    let mut written = 0;
    let error = loop {
        match file.append(&chunk) {
            Ok(_) => written += chunk.len() as u64,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    file.fsync().unwrap();
    assert_eq!(file.size(), FileSize::Exact(written));
    assert!(fs.space().free < 200_000, "{:?}", fs.space());
    drop(file);
    fs.unlink(Path::new("/big")).unwrap();
    let file = fs
        .create(Path::new("/next"), &CreateOptions::default())
        .unwrap();
    for _ in 0..written / chunk.len() as u64 {
        file.append(&chunk).unwrap();
    }
    file.fsync().unwrap();
    drop(file);
    fs.unmount().unwrap();
    assert_clean(&device);
}

#[test]
fn the_journal_wraps_through_checkpoints_without_losing_a_name() {
    let device = device(16 * MIB);
    let fs = mount(&device);
    for round in 0..40 {
        for name in 0..100 {
            let path = format!("/file-with-a-rather-long-name-{name}");
            if round > 0 {
                fs.unlink(Path::new(&path)).unwrap();
            }
            let file = fs
                .create(Path::new(&path), &CreateOptions::default())
                .unwrap();
            file.append(&[round; 10]).unwrap();
            file.fsync().unwrap();
        }
    }
    let crashed = Arc::new(device.crash(3));
    assert_clean(&crashed);
    let after = mount(&crashed);
    assert_eq!(after.list(Path::new("/")).unwrap().len(), 100);
    for name in 0..100 {
        let path = format!("/file-with-a-rather-long-name-{name}");
        let file = after.open(Path::new(&path)).unwrap();
        let mut buf = [0; 11];
        assert_eq!(file.read_at(0, &mut buf).unwrap(), 10);
        assert_eq!(buf[..10], [39; 10]);
    }
}

#[test]
fn a_file_unlinked_while_open_goes_with_its_last_handle() {
    let device = device(16 * MIB);
    let fs = mount(&device);
    let free = fs.space().free;
    let file = fs
        .create(Path::new("/f"), &CreateOptions::default())
        .unwrap();
    file.append(&[1; 100_000]).unwrap();
    file.fsync().unwrap();
    fs.unlink(Path::new("/f")).unwrap();
    fs.commit().unwrap();
    let crashed = Arc::new(device.crash(5));
    let mut buf = [0; 10];
    assert_eq!(file.read_at(99_995, &mut buf).unwrap(), 5);
    drop(file);
    fs.commit().unwrap();
    assert_eq!(fs.space().free, free);
    drop(fs);
    assert_clean(&device);
    let fs = mount(&crashed);
    assert_eq!(fs.space().free, free);
}

#[test]
fn durable_appends_of_a_sealed_file_overlap_and_stay_in_order() {
    let device = device(64 * MIB);
    let fs = mount(&device);
    let options = CreateOptions {
        expected_size: 16 * MIB,
        tail: TailPolicy::Seal,
    };
    let file = fs.create(Path::new("/log"), &options).unwrap();
    file.append_durable(&[IoSlice::new(&[9; 100])]).unwrap();
    let before = fs.counters();
    let mut offsets: Vec<(u64, u8)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u8)
            .map(|thread| {
                let file = &file;
                scope.spawn(move || {
                    let append = |_| {
                        let bytes = [thread; 700];
                        let parts = [IoSlice::new(&bytes[..300]), IoSlice::new(&bytes[300..])];
                        let offset = file.append_durable(&parts).unwrap();
                        let mut back = [0; 700];
                        assert_eq!(file.read_at(offset, &mut back).unwrap(), 700);
                        assert_eq!(back, [thread; 700]);
                        (offset, thread)
                    };
                    (0..200).map(append).collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    let cost = fs.counters() - before;
    assert_eq!((cost.write_bytes, cost.flushes), (800 * 1024, 800));
    offsets.sort_unstable();
    for (index, (offset, _)) in offsets.iter().enumerate() {
        assert_eq!(*offset, 512 + index as u64 * 1024);
    }
    let crashed = Arc::new(device.crash(7));
    drop((file, fs));
    let fs = mount(&crashed);
    let file = fs.open(Path::new("/log")).unwrap();
    for (offset, thread) in offsets {
        let mut back = [0; 1024];
        assert_eq!(file.read_unverified(offset, &mut back).unwrap(), 1024);
        assert!(back[..700].iter().all(|&byte| byte == thread));
        assert!(back[700..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_time_that_was_set_survives_the_close_of_what_was_appended_before() {
    let device = device(64 * MIB);
    let fs = mount(&device);
    let file = fs
        .create(Path::new("/f"), &CreateOptions::default())
        .unwrap();
    let ino = fs.resolve(Path::new("/f")).unwrap();
    let set = SetAttributes {
        modified_ns: Some(12_345),
        ..SetAttributes::default()
    };
    let modified = |fs: &LavaFs| fs.attributes(ino).unwrap().modified_ns;
    let created = modified(&fs);
    file.append(b"x").unwrap();
    assert_ne!(modified(&fs), created, "an append shows before any sync");
    fs.set_attributes(ino, &set).unwrap();
    assert_eq!(modified(&fs), 12_345);
    file.fsync().unwrap();
    assert_eq!(modified(&fs), 12_345);
    file.append(b"y").unwrap();
    fs.set_attributes(ino, &set).unwrap();
    drop(file);
    fs.unmount().unwrap();
    assert_eq!(modified(&mount(&device)), 12_345);
}

#[test]
fn a_change_of_attributes_never_takes_back_a_synced_size() {
    let device = device(64 * MIB);
    let fs = mount(&device);
    let file = fs
        .create(Path::new("/f"), &CreateOptions::default())
        .unwrap();
    let ino = fs.resolve(Path::new("/f")).unwrap();
    // Each round crashes after an fsync that ran beside changes of attributes and a commit.
    for round in 1..=200_u64 {
        std::thread::scope(|scope| {
            let chmod = scope.spawn(|| {
                for mode in 0..20 {
                    let set = SetAttributes {
                        mode: Some(mode),
                        ..SetAttributes::default()
                    };
                    fs.set_attributes(ino, &set).unwrap();
                }
            });
            file.append(&[round as u8; 100]).unwrap();
            file.fsync().unwrap();
            chmod.join().unwrap();
        });
        fs.commit().unwrap();
        let after = mount(&Arc::new(device.crash(round)));
        let size = after.attributes(ino).unwrap().size;
        assert_eq!(size, FileSize::Exact(round * 100), "round {round}");
    }
}

#[test]
fn bytes_that_fdatasync_made_durable_behind_an_exact_size_are_looked_for() {
    let device = device(64 * MIB);
    let fs = mount(&device);
    let file = fs
        .create(Path::new("/f"), &CreateOptions::default())
        .unwrap();
    file.append(b"abc").unwrap();
    file.fsync().unwrap();
    file.append(b"def").unwrap();
    file.fdatasync().unwrap();
    // What is acknowledged behind it must not be taken for the journal's torn end.
    fs.create_dir_all(Path::new("/later")).unwrap();
    fs.commit().unwrap();
    for seed in 0..20 {
        let crashed = Arc::new(device.crash(seed));
        assert_clean(&crashed);
        let after = mount(&crashed);
        let file = after.open(Path::new("/f")).unwrap();
        assert!(matches!(file.size(), FileSize::Between { lower: 3, .. }));
        let mut buf = [0; 6];
        assert_eq!(file.read_unverified(0, &mut buf).unwrap(), 6);
        assert_eq!(&buf, b"abcdef");
        assert!(after.metadata(Path::new("/later")).is_ok());
    }
}

/// Removals took no part in bounding the journal's queue: enough of them without a commit made a
/// record that no region could hold, and every later commit failed.
#[test]
fn any_number_of_removals_without_a_sync_can_be_committed() {
    let device = device(8 * MIB);
    let fs = mount(&device);
    let name = |i: usize| format!("/{i:04}");
    drop(
        fs.create(Path::new("/f"), &CreateOptions::default())
            .unwrap(),
    );
    for round in 0..4 {
        for i in 0..5000 {
            fs.link(Path::new("/f"), Path::new(&name(i))).unwrap();
        }
        fs.commit().unwrap();
        for i in 0..5000 {
            fs.unlink(Path::new(&name(i))).unwrap();
        }
        fs.commit()
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
    }
    fs.unmount().unwrap();
    assert_clean(&device);
}

#[test]
fn a_name_that_a_rename_replaces_is_always_there() {
    let fs = mount(&device(64 * MIB));
    let (name, next) = (Path::new("/CURRENT"), Path::new("/CURRENT.tmp"));
    let replace = || {
        drop(fs.create(next, &CreateOptions::default()).unwrap());
        fs.rename(next, name).unwrap();
    };
    replace();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..50_000).for_each(|_| replace());
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            fs.open(name).unwrap();
            fs.metadata(name).unwrap();
        }
    });
}
