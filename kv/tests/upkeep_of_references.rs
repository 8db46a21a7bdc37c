//! What keeps tables and blob files near each other over time: tables with many stale numbers are written anew,
//! and what scans found out of order is remembered.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;

use common::{mount, sim_device, tiny};
use lavafs::FileSystemRef;
use lavakv::{Compression, Db, Options, ReadOptions, WriteOptions};

const KEYS: u64 = 600;

fn options() -> Options {
    Options {
        min_blob_size: 100,
        blob_file_size: 4096,
        blob_compression: Compression::None,
        enable_blob_garbage_collection: false,
        blob_correlated_compaction_bytes: 0,
        write_buffer_size: 1 << 20,
        max_bytes_for_level_base: 1 << 20,
        target_file_size_base: 1 << 20,
        ..tiny()
    }
}

fn open(fs: &FileSystemRef, options: Options) -> Db {
    Db::open(fs.clone(), Path::new("/db"), options).unwrap()
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

fn put(db: &Db, number: u64, round: u8) {
    let options = WriteOptions::default();
    db.put(&key(number), &[round; 700], &options).unwrap();
}

fn check(db: &Db) {
    for number in 0..KEYS {
        let round = u8::from(number % 2 == 0);
        let found = db.get(&key(number), &ReadOptions::default()).unwrap();
        assert_eq!(found, Some(vec![round; 700]));
    }
    db.verify().unwrap();
    db.verify_garbage().unwrap();
}

#[test]
fn tables_with_many_stale_numbers_are_written_anew_also_after_a_reopen() {
    let fs = mount(sim_device(64 << 20, 512));
    let manual = Options {
        disable_auto_compactions: true,
        ..options()
    };
    let db = open(&fs, manual.clone());
    (0..KEYS).for_each(|number| put(&db, number, 0));
    db.compact_range(None, None).unwrap();
    (0..KEYS).step_by(2).for_each(|number| put(&db, number, 1));
    db.compact_range(None, None).unwrap();
    db.close().unwrap();
    drop(db);
    // Many small files become a few large ones; the tables keep the small ones' numbers.
    let large = |options: Options| Options {
        blob_file_size: 1 << 20,
        ..options
    };
    let db = open(&fs, large(manual));
    db.collect_blob_garbage().unwrap();
    let blobs = db.stats().blobs;
    assert!(
        blobs.ancestors > 64 && blobs.files < blobs.ancestors,
        "{blobs:?}"
    );
    check(&db);
    db.close().unwrap();
    drop(db);
    let db = open(&fs, large(options()));
    put(&db, 1, 0);
    db.flush().unwrap();
    db.wait_for_background_work().unwrap();
    assert!(db.stats().blobs.ancestors <= 64, "{:?}", db.stats().blobs);
    assert!(db.stats().tickers.compactions > 0);
    check(&db);
    // Nothing is left to do: it is not done again.
    let compactions = db.stats().tickers.compactions;
    put(&db, 1, 0);
    db.flush().unwrap();
    db.wait_for_background_work().unwrap();
    assert_eq!(db.stats().tickers.compactions, compactions);
}

#[test]
fn what_a_scan_found_scattered_is_brought_together_after_a_reopen_too() {
    let fs = mount(sim_device(64 << 20, 512));
    let options = Options {
        blob_correlated_compaction_bytes: 1 << 30,
        blob_file_size: 1 << 20,
        disable_auto_compactions: true,
        ..options()
    };
    let db = open(&fs, options.clone());
    for part in 0..12 {
        (0..KEYS)
            .filter(|number| number % 12 == part)
            .for_each(|number| put(&db, number, u8::from(number % 2 == 0)));
        db.flush().unwrap();
    }
    db.compact_range(None, None).unwrap();
    assert_eq!(db.stats().tickers.blob_files_along, 0);
    let mut iter = db.iter(&ReadOptions::default()).unwrap();
    iter.seek_to_first();
    while iter.valid() {
        iter.next();
    }
    drop(iter);
    // The next change of the structure tells it.
    put(&db, 0, 1);
    db.flush().unwrap();
    db.close().unwrap();
    drop(db);
    for _ in 0..2 {
        // The second time from the first edit of a new manifest.
        let db = open(&fs, options.clone());
        db.close().unwrap();
    }
    let db = open(&fs, options);
    put(&db, KEYS - 1, 0);
    db.compact_range(None, None).unwrap();
    assert!(db.stats().tickers.blob_files_along >= 10);
    check(&db);
}
