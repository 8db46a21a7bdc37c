//! Upkeep without writes: a FIFO's size and age, the pace of removal, the size of a merge's reads.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Rng, mount, sim_device, tiny};
use lavafs::{FileSystemRef, LavaFs, MountOptions};
use lavakv::{
    CompactionOptions, CompactionStyle, Compression, Db, Options, ReadOptions, WriteOptions,
};

const AT: &str = "/db";

/// Values that do not compress.
fn fill(db: &Db, keys: std::ops::Range<u64>, len: usize) {
    let mut rng = Rng(keys.start + 1);
    for number in keys {
        let value: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
        db.put(&number.to_be_bytes(), &value, &WriteOptions::default())
            .unwrap();
    }
}

fn fifo(size: u64, ttl: u64) -> Options {
    Options {
        min_blob_size: 0,
        compaction: CompactionOptions {
            style: CompactionStyle::Fifo,
            fifo_max_table_files_size: size,
            fifo_ttl: ttl,
            ..CompactionOptions::default()
        },
        ..tiny()
    }
}

/// Bytes and number of tables and blob files that lie in the directory.
fn tables(fs: &FileSystemRef) -> (u64, usize) {
    let names = fs.list(Path::new(AT)).unwrap();
    let tables = names
        .iter()
        .map(|entry| (entry, entry.name.as_encoded_bytes()))
        .filter(|(_, name)| name.ends_with(b".sst") || name.ends_with(b".blob"));
    let sizes = tables.map(|(entry, _)| {
        let file = fs.open(&Path::new(AT).join(&entry.name));
        file.map_or(0, |file| file.size().upper())
    });
    let sizes: Vec<u64> = sizes.collect();
    (sizes.iter().sum(), sizes.len())
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_fifo_keeps_the_newest_within_its_size_wherever_values_are() {
    keeps_the_newest(0);
    keeps_the_newest(100);
}

fn keeps_the_newest(min_blob_size: usize) {
    let fs = mount(sim_device(64 << 20, 512));
    let limit = 100 << 10;
    let options = Options {
        min_blob_size,
        ..fifo(limit, 0)
    };
    let db = Db::open(fs.clone(), Path::new(AT), options).unwrap();
    fill(&db, 0..2000, 200);
    db.flush().unwrap();
    db.wait_for_background_work().unwrap();
    let has = |number: u64| {
        let found = db.get(&number.to_be_bytes(), &ReadOptions::default());
        found.unwrap().is_some()
    };
    let first = (0..2000).find(|&number| has(number)).unwrap();
    assert!((first..2000).all(has), "what is left is the newest, whole");
    let left = (2000 - first) * 200;
    assert!(
        (limit / 2..=limit).contains(&left),
        "{left} bytes of values are left"
    );
    wait_for("the space returns", || tables(&fs).0 <= limit);
    assert!(db.tickers().dropped_bytes > 0 && db.tickers().compaction_write_bytes == 0);
    db.verify().unwrap();
}

#[test]
fn a_fifo_drops_what_is_too_old_though_nobody_writes() {
    let fs = mount(sim_device(64 << 20, 512));
    let db = Db::open(fs.clone(), Path::new(AT), fifo(1 << 30, 2)).unwrap();
    let begin = Instant::now();
    fill(&db, 0..100, 200);
    db.flush().unwrap();
    let found = db.get(&7_u64.to_be_bytes(), &ReadOptions::default());
    // Ages are whole seconds.
    let is_young = begin.elapsed() < Duration::from_secs(1);
    assert!(found.unwrap().is_some() || !is_young, "not yet");
    wait_for("nothing outlives its time", || tables(&fs).1 == 0);
    let found = db.get(&7_u64.to_be_bytes(), &ReadOptions::default());
    assert_eq!(found.unwrap(), None);
    db.close().unwrap();
}

#[test]
fn a_manual_compaction_of_a_fifo_merges_nothing_and_drops_what_is_due() {
    let fs = mount(sim_device(64 << 20, 512));
    let options = Options {
        disable_auto_compactions: true,
        level0_slowdown_writes_trigger: 1000,
        level0_stop_writes_trigger: 1000,
        ..fifo(100 << 10, 0)
    };
    let db = Db::open(fs.clone(), Path::new(AT), options).unwrap();
    fill(&db, 0..2000, 200);
    db.compact_range(None, None).unwrap();
    assert_eq!(db.tickers().compaction_write_bytes, 0, "nothing is merged");
    let has = |number: u64| {
        let found = db.get(&number.to_be_bytes(), &ReadOptions::default());
        found.unwrap().is_some()
    };
    let first = (0..2000).find(|&number| has(number)).unwrap();
    assert!(first > 1000, "more is left than may be: from {first} on");
    assert!((first..2000).all(has), "what is left is the newest, whole");
}

#[test]
fn an_age_without_end_drops_nothing() {
    let fs = mount(sim_device(64 << 20, 512));
    let db = Db::open(fs, Path::new(AT), fifo(1 << 30, u64::MAX)).unwrap();
    fill(&db, 0..100, 200);
    db.compact_range(None, None).unwrap();
    let found = db.get(&7_u64.to_be_bytes(), &ReadOptions::default());
    assert!(found.unwrap().is_some());
}

#[test]
fn obsolete_files_go_no_faster_than_the_rate_and_at_once_on_closing() {
    let fs = mount(sim_device(64 << 20, 512));
    let options = Options {
        min_blob_size: 0,
        compression: Compression::None,
        disable_auto_compactions: true,
        level0_slowdown_writes_trigger: 1000,
        level0_stop_writes_trigger: 1000,
        delete_rate: 24 << 10,
        target_file_size_base: 1 << 20,
        ..tiny()
    };
    let db = Db::open(fs.clone(), Path::new(AT), options).unwrap();
    // Twice, as what does not overlap is only moved.
    for _ in 0..2 {
        fill(&db, 0..1000, 200);
        db.flush().unwrap();
    }
    let before = tables(&fs);
    let begin = Instant::now();
    db.compact_range(None, None).unwrap();
    let inputs_left = |count: usize| tables(&fs).1 <= count;
    assert!(before.1 >= 20, "{before:?}");
    // The first of them goes at once, each next one when the bytes of the one before have taken their time, which is
    // about half a second. At most two are shorter than a memtable. A table has come.
    let pause = before.0 as f64 / before.1 as f64 / f64::from(24 << 10);
    wait_for("files go", || inputs_left(before.1 - 3));
    let took = begin.elapsed();
    assert!(
        took >= Duration::from_secs_f64(pause / 2.0),
        "{took:?} for four of {before:?}"
    );
    // At the rate the others would take more than ten seconds.
    let begin = Instant::now();
    db.close().unwrap();
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?} to close");
    assert!(inputs_left(2), "closing leaves nothing behind");
}

#[test]
fn without_space_obsolete_files_go_at_once() {
    let fs = mount(sim_device(64 << 20, 512));
    let options = Options {
        min_blob_size: 0,
        compression: Compression::None,
        disable_auto_compactions: true,
        write_buffer_size: 1 << 20,
        level0_slowdown_writes_trigger: 1000,
        level0_stop_writes_trigger: 1000,
        delete_rate: 1024,
        ..tiny()
    };
    let db = Db::open(fs.clone(), Path::new(AT), options).unwrap();
    for _ in 0..3 {
        fill(&db, 0..6000, 200);
        db.flush().unwrap();
    }
    // Its last act is to remove the log of what was flushed.
    db.wait_for_background_work().unwrap();
    let space = fs.space();
    let len = space.free - space.total / 9;
    let options = lavafs::CreateOptions {
        expected_size: len,
        ..lavafs::CreateOptions::default()
    };
    let ballast = fs.create(Path::new("/ballast"), &options).unwrap();
    ballast.append(&vec![1; len as usize]).unwrap();
    ballast.fsync().unwrap();
    drop(ballast);
    assert!(fs.space().free < space.total / 8);
    db.compact_range(None, None).unwrap();
    // At the rate they would take an hour.
    wait_for("nothing waits", || fs.space().free > space.total / 8);
    db.close().unwrap();
}

#[test]
fn a_merge_reads_its_inputs_in_large_pieces() {
    for readahead in [0, 1 << 20] {
        let options = MountOptions {
            background: false,
            readahead,
            ..MountOptions::default()
        };
        let device = sim_device(256 << 20, 512);
        let fs: FileSystemRef = Arc::new(LavaFs::mount(device, &options).unwrap());
        let options = Options {
            create_if_missing: true,
            min_blob_size: 0,
            compression: Compression::None,
            disable_auto_compactions: true,
            write_buffer_size: 4 << 20,
            ..Options::default()
        };
        let db = Db::open(fs.clone(), Path::new(AT), options).unwrap();
        for _ in 0..4 {
            fill(&db, 0..15_000, 200);
            db.flush().unwrap();
        }
        let before = fs.counters();
        db.compact_range(None, None).unwrap();
        let after = fs.counters();
        let read_bytes = after.read_bytes - before.read_bytes;
        let each = read_bytes / (after.read_ios - before.read_ios);
        let merged = db.tickers().compaction_read_bytes;
        assert!(merged > 10 << 20, "{merged} bytes merged");
        println!("{each} bytes a read, {read_bytes} read for {merged} merged");
        assert!(each >= 256 << 10, "{each} bytes a read");
        assert!(read_bytes <= merged + merged / 8, "nothing is read twice");
    }
}
