//! Values in blob files: what a read costs, what garbage is told, when files go, and what a crash or
//! damage does.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::{Path, PathBuf};

use common::{Rng, copy_dir, host, mount, seed, sim_device, tiny};
use lavafs::FileSystemRef;
use lavakv::{CfId, Compression, Db, Options, ReadOptions, WriteBatch, WriteOptions};

const AT: &str = "/db";

/// Values of 100 B and more are separated.
fn options() -> Options {
    Options {
        min_blob_size: 100,
        blob_file_size: 64 << 10,
        blob_compression: Compression::None,
        // The figures here are those before a collection.
        enable_blob_garbage_collection: false,
        blob_correlated_compaction_bytes: 0,
        ..tiny()
    }
}

fn open(fs: &FileSystemRef, options: Options) -> Db {
    Db::open(fs.clone(), Path::new(AT), options).unwrap()
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:08}").into_bytes()
}

fn value(number: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng(number);
    (0..len).map(|_| rng.next() as u8).collect()
}

fn put(db: &Db, number: u64, value: &[u8]) {
    db.put(&key(number), value, &WriteOptions::default())
        .unwrap();
}

fn get(db: &Db, number: u64) -> Option<Vec<u8>> {
    db.get(&key(number), &ReadOptions::default()).unwrap()
}

/// The blob files in a host directory's database.
fn blobs_in(dir: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir.join("db")).unwrap();
    let names = names.map(|entry| entry.unwrap().path());
    let mut names: Vec<PathBuf> = names
        .filter(|path| path.extension().is_some_and(|end| end == "blob"))
        .collect();
    names.sort();
    names
}

/// A simulated device with a database of `keys` values of 8000 B in random order.
fn loaded(keys: u64) -> (FileSystemRef, Db) {
    let fs = mount(sim_device(512 << 20, 512));
    let options = Options {
        block_cache_size: 8 << 20,
        write_buffer_size: 1 << 20,
        blob_file_size: 4 << 20,
        ..options()
    };
    let db = open(&fs, options);
    for number in (0..keys).map(|number| number * 7919 % keys) {
        put(&db, number, &value(number, 8000));
    }
    db.compact_range(None, None).unwrap();
    db.wait_for_background_work().unwrap();
    (fs, db)
}

#[test]
fn a_get_of_a_separated_value_is_one_device_read() {
    let keys = 3000;
    let (fs, db) = loaded(keys);
    // Tables, indexes and blob files are opened by a first pass. It is as far from the order of
    // the records as the second: the filesystem reads ahead of a walk, and keeps what it read.
    for number in (0..keys).map(|number| number * 13 % keys) {
        assert_eq!(get(&db, number).unwrap(), value(number, 8000));
    }
    let before = fs.counters();
    let mut worst = 0;
    for number in 0..keys {
        let reads = fs.counters().read_ios;
        get(&db, number * 13 % keys).unwrap();
        worst = worst.max(fs.counters().read_ios - reads);
    }
    let cost = fs.counters() - before;
    assert_eq!((cost.read_ios, worst), (keys, 1));
    // The record and the blocks it begins and ends in.
    let per_get = cost.read_bytes / keys;
    assert!((8000..10_000).contains(&per_get), "{per_get} bytes a Get");
    // Keys that are not there cost nothing.
    let before = fs.counters().read_ios;
    for number in keys..2 * keys {
        assert_eq!(get(&db, number), None);
    }
    let missing = fs.counters().read_ios - before;
    assert!(
        missing < keys / 20,
        "{missing} reads for {keys} missing keys"
    );
}

#[test]
fn multi_get_and_scans_submit_values_together_and_join_neighbours() {
    let keys = 2000;
    let (fs, db) = loaded(keys);
    let names: Vec<Vec<u8>> = (0..100).map(|at| key(at * 17 % keys)).collect();
    let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    let found = db.multi_get(&names, &ReadOptions::default()).unwrap();
    for (at, found) in found.into_iter().enumerate() {
        assert_eq!(found.unwrap(), value(at as u64 * 17 % keys, 8000));
    }
    let walk = |lazy_values| {
        let options = ReadOptions {
            lazy_values,
            ..ReadOptions::default()
        };
        let before = fs.counters();
        let mut iter = db.iter(&options).unwrap();
        let mut bytes = 0;
        let mut count = 0;
        iter.seek_to_first();
        while iter.valid() {
            assert_eq!(iter.key(), key(count));
            bytes += iter.value_len();
            count += 1;
            iter.next();
        }
        iter.status().unwrap();
        assert_eq!((count, bytes as u64), (keys, keys * 8000));
        fs.counters() - before
    };
    walk(true);
    assert_eq!(walk(true).read_ios, 0, "keys alone are in the cache");
    let whole = walk(false);
    assert!(
        whole.read_bytes < keys * 8000 * 11 / 10,
        "{} bytes read",
        whole.read_bytes
    );
}

#[test]
fn thresholds_change_at_any_time_and_small_values_stay_inline() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let fill = |db: &Db, round: u64| {
        for number in 0..200 {
            put(
                db,
                number * 10 + round,
                &value(number, 50 + number as usize),
            );
        }
        db.flush().unwrap();
    };
    for (round, min_blob_size) in [0, 100, 1, 200, 0].into_iter().enumerate() {
        let db = open(
            &fs,
            Options {
                min_blob_size,
                disable_auto_compactions: round % 2 == 0,
                ..options()
            },
        );
        let before = db.stats().blobs.value_bytes;
        fill(&db, round as u64);
        let separated: u64 = (50..250).filter(|&len| len >= min_blob_size as u64).sum();
        let expected = if min_blob_size == 0 { 0 } else { separated };
        if round == 1 {
            db.wait_for_background_work().unwrap();
        } else {
            assert!(db.stats().blobs.value_bytes >= before.max(expected));
        }
        db.verify().unwrap();
        db.verify_garbage().unwrap();
        for earlier in 0..=round as u64 {
            for number in 0..200 {
                let wanted = value(number, 50 + number as usize);
                assert_eq!(get(&db, number * 10 + earlier), Some(wanted));
            }
        }
        db.close().unwrap();
    }
}

#[test]
fn garbage_is_told_to_the_byte_and_shadowed_values_apart() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let db = open(
        &fs,
        Options {
            disable_auto_compactions: true,
            write_buffer_size: 8 << 20,
            ..options()
        },
    );
    for number in 0..100 {
        put(&db, number, &value(number, 1000));
    }
    db.compact_range(None, None).unwrap();
    let blobs = db.stats().blobs;
    assert_eq!((blobs.value_bytes, blobs.garbage_bytes), (100_000, 0));
    // Overwritten but not yet compacted: shadowed.
    for number in 0..30 {
        put(&db, number, &value(number, 2000));
    }
    db.flush().unwrap();
    let blobs = db.stats().blobs;
    assert_eq!((blobs.value_bytes, blobs.garbage_bytes), (160_000, 0));
    assert_eq!(db.verify_garbage().unwrap().shadowed_bytes, 30_000);
    assert!(blobs.shadowed_bytes >= 30_000);
    db.compact_range(None, None).unwrap();
    let blobs = db.stats().blobs;
    assert_eq!((blobs.value_bytes, blobs.garbage_bytes), (160_000, 30_000));
    let report = db.verify_garbage().unwrap();
    assert_eq!((report.garbage_bytes, report.shadowed_bytes), (30_000, 0));
}

/// Nothing was told of them, however many runs the only level had.
#[test]
fn values_that_runs_of_one_level_hide_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let quiet = Options {
        disable_auto_compactions: true,
        ..options()
    };
    let db = open(&fs, quiet);
    for round in 0..4 {
        for number in 0..10 {
            put(&db, number, &value(number + round, 1000));
        }
        db.flush().unwrap();
    }
    assert_eq!(db.verify_garbage().unwrap().shadowed_bytes, 30_000);
    assert_eq!(db.stats().blobs.shadowed_bytes, 30_000);
    db.compact_range(None, None).unwrap();
    assert_eq!(db.stats().blobs.shadowed_bytes, 0);
}

#[test]
fn garbage_is_verified_by_a_reader_that_may_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let db = open(&fs, options());
    for round in 1..3 {
        for number in 0..50 {
            put(&db, number, &value(number * round, 1000));
        }
        db.compact_range(None, None).unwrap();
    }
    db.close().unwrap();
    let view = Db::open_read_only(fs, Path::new(AT), options()).unwrap();
    let report = view.verify_garbage().unwrap();
    assert_eq!((report.garbage_bytes, report.value_bytes), (0, 50_000));
    view.close().unwrap();
    assert!(view.verify_garbage().is_err(), "nothing is read any more");
}

#[test]
fn files_go_on_every_way_on_which_their_last_reference_goes() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let db = open(&fs, options());
    let second = db.create_cf("second").unwrap();
    for number in 0..300 {
        let mut batch = WriteBatch::new();
        batch.put(&key(number), &value(number, 1000));
        batch.put_cf(second, &key(number), &value(number, 1000));
        db.write(batch, &WriteOptions::default()).unwrap();
    }
    db.compact_range(None, None).unwrap();
    let iter = db.iter_cf(second, &ReadOptions::default()).unwrap();
    let (both, files) = (db.stats().blobs, blobs_in(dir.path()).len() as u64);
    assert_eq!((both.value_bytes, both.files), (600_000, files));
    // An iterator keeps what a dropped family had.
    db.drop_cf(second).unwrap();
    db.wait_for_background_work().unwrap();
    assert_eq!(blobs_in(dir.path()).len() as u64, files);
    let mut iter = iter;
    iter.seek(&key(150));
    assert_eq!(iter.value(), value(150, 1000));
    drop(iter);
    for number in 0..300 {
        db.delete(&key(number), &WriteOptions::default()).unwrap();
    }
    db.compact_range(None, None).unwrap();
    db.wait_for_background_work().unwrap();
    assert_eq!(db.stats().blobs.files, 0);
    db.close().unwrap();
    // Files are removed by a thread of their own.
    let mut waits = 0;
    while !blobs_in(dir.path()).is_empty() && waits < 1000 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        waits += 1;
    }
    assert_eq!(blobs_in(dir.path()), [] as [PathBuf; 0]);
}

#[test]
fn an_orphan_is_removed_at_open_and_a_missing_or_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&host(dir.path()), options());
    for number in 0..100 {
        put(&db, number, &value(number, 3000));
    }
    db.close().unwrap();
    drop(db);
    let blobs = blobs_in(dir.path());
    let orphan = dir.path().join("db/900000.blob");
    std::fs::copy(&blobs[0], &orphan).unwrap();
    let db = open(&host(dir.path()), options());
    assert!(!orphan.exists());
    assert_eq!(get(&db, 7).unwrap(), value(7, 3000));
    db.close().unwrap();
    drop(db);
    for damage in ["flip", "cut", "remove"] {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(&dir.path().join("db"), &copy.path().join("db"));
        let victim = blobs_in(copy.path()).remove(0);
        let mut bytes = std::fs::read(&victim).unwrap();
        match damage {
            "flip" => bytes[5000] ^= 1,
            "cut" => bytes.truncate(9000),
            _ => {}
        }
        match damage {
            "remove" => std::fs::remove_file(&victim).unwrap(),
            _ => std::fs::write(&victim, bytes).unwrap(),
        }
        let db = open(&host(copy.path()), options());
        let error = db.verify().unwrap_err();
        let name = victim.file_name().unwrap().to_str().unwrap();
        assert!(error.to_string().contains(name), "{damage}: {error}");
        assert!(damage == "remove" || error.is_corrupt(), "{error:?}");
        // Nothing wrong is ever served.
        for number in 0..100 {
            match db.get(&key(number), &ReadOptions::default()) {
                Ok(found) => assert_eq!(found.unwrap(), value(number, 3000)),
                Err(error) => assert!(error.to_string().contains(name), "{error}"),
            }
        }
    }
}

#[test]
fn snapshots_and_iterators_keep_their_values_while_others_churn() {
    let mut rng = Rng(seed());
    let dir = tempfile::tempdir().unwrap();
    let db = open(&host(dir.path()), options());
    for number in 0..100 {
        put(&db, number, &value(number, 1000));
    }
    let snapshot = db.snapshot();
    let mut iter = db.iter(&ReadOptions::default()).unwrap();
    iter.seek(&key(20));
    for round in 0..2000 {
        put(&db, rng.below(100), &value(1000 + round, 500));
    }
    db.compact_range(None, None).unwrap();
    db.wait_for_background_work().unwrap();
    let then = ReadOptions {
        snapshot: Some(snapshot),
        ..ReadOptions::default()
    };
    for number in 20..100 {
        assert_eq!(
            (iter.key(), iter.value()),
            (&key(number)[..], &value(number, 1000)[..])
        );
        iter.next();
        let found = db.get_cf(CfId::DEFAULT, &key(number), &then).unwrap();
        assert_eq!(found.unwrap(), value(number, 1000));
    }
    drop(iter);
    drop(then);
    db.verify().unwrap();
    db.verify_garbage().unwrap();
}
