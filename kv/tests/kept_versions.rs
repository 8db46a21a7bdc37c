//! What a snapshot has made a compaction keep goes when the snapshot does: by itself, though nobody writes, and by
//! hand where nothing goes by itself.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{mount, sim_device, tiny};
use lavafs::FileSystemRef;
use lavakv::{
    CompactionOptions, CompactionStyle, Compression, Db, Options, ReadOptions, WriteOptions,
};

const KEYS: u64 = 200;
const LEN: usize = 1000;

fn options(style: CompactionStyle, min_blob_size: usize) -> Options {
    Options {
        min_blob_size,
        blob_file_size: 16 << 10,
        blob_compression: Compression::None,
        blob_collection_idle_millis: 10,
        compaction: CompactionOptions {
            style,
            ..CompactionOptions::default()
        },
        ..tiny()
    }
}

fn open(fs: &FileSystemRef, options: Options) -> Db {
    Db::open(fs.clone(), Path::new("/db"), options).unwrap()
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

/// Writes a round of all keys and compacts it down.
fn fill(db: &Db, round: u8) {
    for number in 0..KEYS {
        db.put(&key(number), &[round; LEN], &WriteOptions::default())
            .unwrap();
    }
    db.compact_range(None, None).unwrap();
    db.wait_for_background_work().unwrap();
}

fn entries(db: &Db) -> u64 {
    db.stats().table_entries
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn check(db: &Db, round: u8) {
    for number in 0..KEYS {
        let found = db.get(&key(number), &ReadOptions::default()).unwrap();
        assert_eq!(found, Some(vec![round; LEN]));
    }
    db.verify().unwrap();
    db.verify_garbage().unwrap();
}

#[test]
fn versions_kept_for_a_snapshot_go_when_it_is_released_though_nobody_writes() {
    for style in [
        CompactionStyle::Level,
        CompactionStyle::Universal,
        CompactionStyle::LazyLevel,
    ] {
        for min_blob_size in [0, 100] {
            let fs = mount(sim_device(64 << 20, 512));
            let db = open(&fs, options(style, min_blob_size));
            fill(&db, 1);
            let snapshot = db.snapshot();
            fill(&db, 2);
            assert_eq!(entries(&db), 2 * KEYS, "{style:?}: both rounds are needed");
            let blobs = db.stats().blobs;
            if min_blob_size > 0 {
                let kept = KEYS * LEN as u64;
                assert!(blobs.shadowed_bytes >= kept, "they are told: {blobs:?}");
                let scanned = db.verify_garbage().unwrap();
                assert_eq!(scanned.shadowed_bytes, kept);
            }
            let newer = db.snapshot();
            drop(snapshot);
            wait_for("kept versions go", || entries(&db) == KEYS);
            drop(newer);
            wait_for("the space of their values returns", || {
                let blobs = db.stats().blobs;
                blobs.garbage_bytes * 10 <= blobs.value_bytes
            });
            db.wait_for_background_work().unwrap();
            assert_eq!(db.stats().blobs.shadowed_bytes, 0);
            check(&db, 2);
            db.close().unwrap();
        }
    }
}

#[test]
fn a_reopened_database_drops_what_the_snapshots_of_before_made_it_keep() {
    let fs = mount(sim_device(64 << 20, 512));
    let db = open(&fs, options(CompactionStyle::Level, 100));
    fill(&db, 1);
    let snapshot = db.snapshot();
    fill(&db, 2);
    drop((snapshot, db));
    let db = open(&fs, options(CompactionStyle::Level, 100));
    wait_for("kept versions go", || entries(&db) == KEYS);
    check(&db, 2);
}

#[test]
fn compacting_by_hand_drops_what_snapshots_have_left_in_the_last_level() {
    let fs = mount(sim_device(64 << 20, 512));
    let manual = Options {
        disable_auto_compactions: true,
        ..options(CompactionStyle::Level, 100)
    };
    let db = open(&fs, manual);
    fill(&db, 1);
    let snapshot = db.snapshot();
    fill(&db, 2);
    // While it is held there is nothing to gain.
    db.compact_range(None, None).unwrap();
    assert_eq!(entries(&db), 2 * KEYS);
    drop(snapshot);
    db.compact_range(Some(&key(0)), Some(&key(9))).unwrap();
    assert!((KEYS..2 * KEYS).contains(&entries(&db)), "a range alone");
    db.compact_range(None, None).unwrap();
    assert_eq!(entries(&db), KEYS);
    check(&db, 2);
}

#[test]
fn snapshots_that_come_and_go_cause_no_writing_where_nothing_is_kept_for_them() {
    let fs = mount(sim_device(64 << 20, 512));
    let db = open(&fs, options(CompactionStyle::Level, 100));
    fill(&db, 1);
    fill(&db, 2);
    let before = db.tickers().compactions;
    for _ in 0..100 {
        drop(db.snapshot());
    }
    db.wait_for_background_work().unwrap();
    assert_eq!(db.tickers().compactions, before);
}

#[test]
fn deletions_that_a_snapshot_held_back_go_when_it_is_released_though_nobody_writes() {
    let fs = mount(sim_device(64 << 20, 512));
    let options = Options {
        level_compaction_dynamic_level_bytes: false,
        level0_file_num_compaction_trigger: 2,
        max_bytes_for_level_base: 8 << 20,
        target_file_size_base: 1 << 20,
        num_levels: 3,
        ..options(CompactionStyle::Level, 100)
    };
    // All data in the last level, two below what level 0 is merged into.
    let to_the_last = Options {
        level_compaction_dynamic_level_bytes: true,
        ..options.clone()
    };
    let db = open(&fs, to_the_last);
    fill(&db, 1);
    db.close().unwrap();
    drop(db);
    let db = open(&fs, options);
    assert!(db.stats().levels[2].files > 0);
    let snapshot = db.snapshot();
    for half in 0..2 {
        for number in (0..KEYS).filter(|number| number % 2 == half) {
            db.delete(&key(number), &WriteOptions::default()).unwrap();
        }
        db.flush().unwrap();
    }
    db.wait_for_background_work().unwrap();
    assert_eq!(db.stats().table_deletions, KEYS);
    drop(snapshot);
    wait_for("deletions go", || db.stats().table_deletions == 0);
}
