//! Garbage collection of blob files: space returns, and nothing that anyone can see changes.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use common::{Rng, copy_dir, host, mount, seed, sim_device, tiny};
use lavafs::FileSystemRef;
use lavakv::{
    CollectionEvent, Compression, Db, Env, EnvOptions, EventListener, FileEvent, FileKind, Options,
    ReadOptions, WriteBatch, WriteOptions,
};

const AT: &str = "/db";

/// Values of 100 B and more are separated; nothing is collected unless a test says so.
fn options() -> Options {
    Options {
        min_blob_size: 100,
        blob_file_size: 64 << 10,
        blob_compression: Compression::Zstd { level: 1 },
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

fn value(number: u64, round: u64) -> Vec<u8> {
    let mut rng = Rng(number * 31 + round);
    let len = 500 + rng.next() as usize % 1500;
    (0..len)
        .map(|at| if at % 2 == 0 { rng.next() as u8 } else { 0 })
        .collect()
}

fn put(db: &Db, number: u64, round: u64) {
    db.put(
        &key(number),
        &value(number, round),
        &WriteOptions::default(),
    )
    .unwrap();
}

fn get(db: &Db, number: u64) -> Option<Vec<u8>> {
    db.get(&key(number), &ReadOptions::default()).unwrap()
}

/// Loads `keys` keys and writes each third one again; garbage is what the first round left.
fn with_garbage(db: &Db, keys: u64) {
    for number in 0..keys {
        put(db, number, 0);
    }
    db.compact_range(None, None).unwrap();
    for number in (0..keys).step_by(3) {
        put(db, number, 1);
    }
    db.compact_range(None, None).unwrap();
    db.wait_for_background_work().unwrap();
}

fn check(db: &Db, keys: u64) {
    for number in 0..keys {
        let round = u64::from(number % 3 == 0);
        assert_eq!(get(db, number), Some(value(number, round)), "key {number}");
    }
    db.verify().unwrap();
    db.verify_garbage().unwrap();
}

#[test]
fn space_returns_and_every_value_stays() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let keys = 2000;
    let db = open(&fs, options());
    with_garbage(&db, keys);
    let before = db.stats().blobs;
    assert!(before.garbage_ratio() > 0.2, "{before:?}");
    db.collect_blob_garbage().unwrap();
    let after = db.stats().blobs;
    assert_eq!(after.garbage_bytes, 0, "{after:?}");
    assert!(after.file_bytes < before.file_bytes * 9 / 10, "{after:?}");
    assert!(after.ancestors > 0, "tables still have the old numbers");
    check(&db, keys);
    // Nothing to gain: nothing is done.
    let collections = db.stats().tickers.blob_collections;
    db.collect_blob_garbage().unwrap();
    assert_eq!(db.stats().tickers.blob_collections, collections);
    db.close().unwrap();
    drop(db);
    let db = open(&fs, options());
    assert_eq!(db.stats().blobs, after);
    check(&db, keys);
    // Tables that are written anew use the new numbers, and the old ones are forgotten.
    for number in 0..keys {
        put(&db, number, u64::from(number % 3 == 0));
    }
    db.compact_range(None, None).unwrap();
    assert_eq!(db.stats().blobs.ancestors, 0);
}

#[test]
fn an_iterator_and_a_snapshot_see_the_same_across_ten_collections() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let db = open(&fs, options());
    let keys = 300;
    for number in 0..keys {
        put(&db, number, 0);
    }
    db.compact_range(None, None).unwrap();
    let snapshot = db.snapshot();
    let mut early = db.iter(&ReadOptions::default()).unwrap();
    early.seek_to_first();
    for round in 1..=10 {
        for number in (0..keys).filter(|number| number % 10 == round % 10 || number % 7 == 0) {
            put(&db, number, round);
        }
        db.compact_range(None, None).unwrap();
        // Half of each round's overwrites are dropped, so that files have garbage.
        for number in (0..keys).filter(|number| number % 14 == 0) {
            put(&db, number, round);
        }
        db.compact_range(None, None).unwrap();
        db.collect_blob_garbage().unwrap();
        let (key_before, value_before) = (early.key().to_vec(), early.value().to_vec());
        let number = (round - 1) * 20;
        assert_eq!(key_before, key(number));
        assert_eq!(value_before, value(number, 0));
        (0..20).for_each(|_| early.next());
        let old = ReadOptions {
            snapshot: Some(snapshot.clone()),
            ..ReadOptions::default()
        };
        for number in 0..keys {
            let found = db.get(&key(number), &old).unwrap();
            assert_eq!(found, Some(value(number, 0)), "round {round}");
        }
    }
    early.status().unwrap();
    assert!(db.stats().tickers.blob_collections >= 10);
    db.verify_garbage().unwrap();
}

#[test]
fn collections_in_the_background_keep_garbage_within_bounds() {
    // A disk that the database fills to about three quarters.
    let device = sim_device(36 << 20, 512);
    let fs = mount(device);
    let options = Options {
        enable_blob_garbage_collection: true,
        write_buffer_size: 512 << 10,
        blob_file_size: 512 << 10,
        max_bytes_for_level_base: 128 << 10,
        ..options()
    };
    let db = open(&fs, options);
    let keys = 15_000;
    let mut rng = Rng(seed());
    let mut model = BTreeMap::new();
    for number in 0..keys {
        put(&db, number, 0);
        model.insert(number, 0);
    }
    for round in 1..30_000_u64 {
        let number = rng.next() % keys;
        put(&db, number, round);
        model.insert(number, round);
    }
    db.flush().unwrap();
    db.wait_for_background_work().unwrap();
    let stats = db.stats();
    let space = fs.space();
    let usage = 1.0 - space.free as f64 / space.total as f64;
    let ratio = stats.blobs.garbage_ratio();
    println!("usage {usage:.2}, garbage {ratio:.3}, {:?}", stats.blobs);
    println!("{:?}", stats.tickers);
    assert!(stats.tickers.blob_collections > 0);
    let bound = if usage >= 0.75 { 0.13 } else { 0.30 };
    assert!(ratio <= bound, "{ratio:.3} at {usage:.2}");
    for (&number, &round) in &model {
        assert_eq!(get(&db, number), Some(value(number, round)));
    }
    db.verify_garbage().unwrap();
}

/// A device with `keys` values of 8000 B that do not compress, of about `percent` of its space.
fn nearly_full(keys: u64, percent: u64) -> (FileSystemRef, Options) {
    let fs = mount(sim_device((keys * 8100 * 100 / percent) >> 20 << 20, 512));
    let options = Options {
        enable_blob_garbage_collection: true,
        blob_compression: Compression::None,
        write_buffer_size: 512 << 10,
        blob_file_size: 1 << 20,
        ..options()
    };
    (fs, options)
}

fn noise(number: u64, round: u64) -> Vec<u8> {
    let mut rng = Rng(number * 100_003 + round + 1);
    (0..8000).map(|_| rng.next() as u8).collect()
}

#[test]
fn writers_at_full_speed_do_not_outrun_collections_on_a_nearly_full_disk() {
    let keys = 5000;
    let (fs, options) = nearly_full(keys, 62);
    let db = open(&fs, options);
    let mut rng = Rng(seed());
    let mut model = BTreeMap::new();
    for number in 0..keys {
        db.put(&key(number), &noise(number, 0), &WriteOptions::default())
            .unwrap();
        model.insert(number, 0);
    }
    for round in 1..3 * keys {
        let number = rng.next() % keys;
        let written = db.put(
            &key(number),
            &noise(number, round),
            &WriteOptions::default(),
        );
        written.unwrap_or_else(|error| {
            panic!(
                "round {round}: {error}, {} free of {}; {:?}",
                fs.space().free,
                fs.space().total,
                db.stats()
            )
        });
        model.insert(number, round);
    }
    db.wait_for_background_work().unwrap();
    let stats = db.stats();
    assert!(stats.tickers.stall_micros > 0, "{:?}", stats.tickers);
    for (&number, &round) in &model {
        assert_eq!(get(&db, number), Some(noise(number, round)));
    }
    db.verify_garbage().unwrap();
}

#[test]
fn garbage_is_collected_when_nobody_writes_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let options = Options {
        enable_blob_garbage_collection: true,
        blob_collection_idle_millis: 50,
        ..options()
    };
    let db = open(&fs, options);
    // Below what an empty disk tolerates while somebody writes.
    let keys = 2000;
    for number in 0..keys {
        put(&db, number, 0);
    }
    db.compact_range(None, None).unwrap();
    for number in (0..keys).step_by(8) {
        put(&db, number, 1);
    }
    db.compact_range(None, None).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let ratio = db.stats().blobs.garbage_ratio();
        if ratio <= 0.06 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "garbage {ratio:.3}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(db.stats().tickers.blob_collections > 0);
    // The scan is of one moment: it tells what was accounted unless the next collection came between.
    loop {
        let before = db.stats().blobs.garbage_bytes;
        let report = db.verify_garbage().unwrap();
        if before == db.stats().blobs.garbage_bytes {
            assert_eq!(report.garbage_bytes, before);
            break;
        }
        assert!(std::time::Instant::now() < deadline, "never at rest");
    }
}

#[test]
fn bytes_of_collected_files_that_an_iterator_holds_are_told_and_return() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let db = open(&fs, options());
    let keys = 1000;
    with_garbage(&db, keys);
    assert_eq!(db.stats().held_obsolete_bytes, 0);
    let before = db.stats().blobs;
    let iter = db.iter(&ReadOptions::default()).unwrap();
    db.collect_blob_garbage().unwrap();
    let held = db.stats().held_obsolete_bytes;
    assert!(
        held > 0 && held <= before.file_bytes,
        "{held} of {before:?}"
    );
    drop(iter);
    assert_eq!(db.stats().held_obsolete_bytes, 0);
    check(&db, keys);
}

#[test]
fn a_compaction_takes_along_blob_files_with_much_garbage() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let keys = 1000;
    let load = open(&fs, options());
    with_garbage(&load, keys);
    load.close().unwrap();
    drop(load);
    let options = Options {
        blob_correlated_compaction_bytes: 1 << 30,
        ..options()
    };
    let db = open(&fs, options);
    let snapshot = db.snapshot();
    let before = db.stats();
    assert!(before.blobs.garbage_ratio() > 0.2, "{:?}", before.blobs);
    // Another merge of everything, with something to merge.
    for number in (0..keys).step_by(3) {
        put(&db, number, 1);
    }
    db.compact_range(None, None).unwrap();
    let after = db.stats();
    assert!(after.tickers.blob_files_along > before.tickers.blob_files_along);
    assert_eq!(after.tickers.blob_collections, 0);
    check(&db, keys);
    let old = ReadOptions {
        snapshot: Some(snapshot),
        ..ReadOptions::default()
    };
    for number in 0..keys {
        let round = u64::from(number % 3 == 0);
        assert_eq!(
            db.get(&key(number), &old).unwrap(),
            Some(value(number, round))
        );
    }
}

#[test]
fn a_compaction_brings_scattered_values_together_when_a_scan_has_met_them() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let options = Options {
        blob_correlated_compaction_bytes: 1 << 30,
        write_buffer_size: 16 << 10,
        max_bytes_for_level_base: 1 << 20,
        target_file_size_base: 1 << 20,
        ..options()
    };
    let db = open(&fs, options);
    let keys = 600;
    let scan = || {
        let before = db.stats().tickers.blob_reads;
        let mut iter = db.iter(&ReadOptions::default()).unwrap();
        iter.seek_to_first();
        let mut count = 0;
        while iter.valid() {
            assert_eq!(iter.value(), value(count, 0));
            count += 1;
            iter.next();
        }
        iter.status().unwrap();
        assert_eq!(count, keys);
        db.stats().tickers.blob_reads - before
    };
    for number in (0..keys).map(|number| number * 7 % keys + number * 7 / keys) {
        put(&db, number % keys, 0);
    }
    for number in 0..keys {
        put(&db, number * 211 % keys, 0);
    }
    db.compact_range(None, None).unwrap();
    let scattered = scan();
    put(&db, 0, 0);
    put(&db, keys - 1, 0);
    db.compact_range(None, None).unwrap();
    let together = scan();
    assert!(together * 4 < scattered, "{together} of {scattered} reads");
    db.verify_garbage().unwrap();
}

/// Counts what it is told.
#[derive(Debug, Default)]
struct Told {
    begun: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    made: AtomicU64,
    removed: AtomicU64,
}

impl EventListener for Told {
    fn on_collection_begin(&self, collection: &CollectionEvent) {
        self.begun.fetch_add(1, Relaxed);
        assert_eq!(collection.output_bytes, 0);
    }

    fn on_collection_end(&self, collection: &CollectionEvent) {
        assert!(collection.error.is_none());
        self.read.fetch_add(collection.input_bytes, Relaxed);
        self.written.fetch_add(collection.output_bytes, Relaxed);
    }

    fn on_file_created(&self, file: &FileEvent) {
        self.made
            .fetch_add(u64::from(file.kind == FileKind::Blob), Relaxed);
    }

    fn on_file_deleted(&self, file: &FileEvent) {
        self.removed
            .fetch_add(u64::from(file.kind == FileKind::Blob), Relaxed);
    }
}

#[test]
fn collections_tell_listeners_and_keep_to_the_rate() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let told = Arc::new(Told::default());
    let env = Env::with_options(EnvOptions {
        rate_bytes_per_s: 1 << 20,
        ..EnvOptions::default()
    });
    let load = open(&fs, options());
    with_garbage(&load, 2000);
    load.close().unwrap();
    drop(load);
    let options = Options {
        env: Some(env),
        listeners: vec![Arc::clone(&told) as Arc<dyn EventListener>],
        ..options()
    };
    let db = open(&fs, options);
    let begin = std::time::Instant::now();
    db.collect_blob_garbage().unwrap();
    let elapsed = begin.elapsed().as_secs_f64();
    let tickers = db.stats().tickers;
    assert_eq!(told.begun.load(Relaxed), tickers.blob_collections);
    assert_eq!(told.read.load(Relaxed), tickers.blob_collection_read_bytes);
    assert_eq!(
        told.written.load(Relaxed),
        tickers.blob_collection_write_bytes
    );
    assert!(told.made.load(Relaxed) >= tickers.blob_collections);
    let files = db.stats().blobs.files;
    db.close().unwrap();
    drop(db);
    assert!(told.removed.load(Relaxed) > 0 && files > 0);
    let rate = tickers.blob_collection_write_bytes as f64 / elapsed;
    assert!(rate < 2.5e6, "{rate:.0} bytes a second");
}

#[test]
fn collections_race_compactions_flushes_drops_and_close() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let keys = 400;
    for trial in 0..4 {
        let db = open(&fs, options());
        let cf = db.create_cf(&format!("doomed{trial}")).unwrap();
        let writer = WriteOptions::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..6 {
                    for number in 0..keys {
                        put(&db, number, trial * 10 + round);
                        let mut batch = WriteBatch::new();
                        batch.put_cf(cf, &key(number), &value(number, round));
                        let gone = db.write(batch, &writer);
                        assert!(gone.is_ok() || round >= 3);
                    }
                    if round == 3 {
                        db.drop_cf(cf).unwrap();
                    }
                }
            });
            scope.spawn(|| (0..6).for_each(|_| db.compact_range(None, None).unwrap()));
            for _ in 0..2 {
                scope.spawn(|| (0..20).for_each(|_| db.collect_blob_garbage().unwrap()));
            }
        });
        for number in 0..keys {
            assert_eq!(get(&db, number), Some(value(number, trial * 10 + 5)));
        }
        db.verify_garbage().unwrap();
        db.close().unwrap();
    }
}

#[test]
fn a_damaged_file_is_left_alone_and_the_rest_collected() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let keys = 2000;
    let db = open(&fs, options());
    with_garbage(&db, keys);
    db.close().unwrap();
    drop(db);
    // A bit of a record in the first blob file.
    let names = std::fs::read_dir(dir.path().join("db")).unwrap();
    let names = names.map(|entry| entry.unwrap().path());
    let blobs = names.filter(|path| path.extension().is_some_and(|end| end == "blob"));
    let victim = blobs.min().unwrap();
    let mut bytes = std::fs::read(&victim).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&victim, bytes).unwrap();
    let db = open(&fs, options());
    db.collect_blob_garbage().unwrap();
    let after = db.stats().blobs;
    assert!(victim.exists() && after.garbage_bytes > 0);
    assert!(db.stats().tickers.blob_collections > 0);
    // The database goes on.
    put(&db, 1, 7);
    assert_eq!(get(&db, 1), Some(value(1, 7)));
    db.flush().unwrap();
}

#[test]
fn a_crash_around_a_collection_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let keys = 600;
    let db = open(&fs, options());
    with_garbage(&db, keys);
    let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy_dir(dir.path(), before.path());
    db.collect_blob_garbage().unwrap();
    copy_dir(dir.path(), after.path());
    drop(db);
    for (copy, collected) in [(before, false), (after, true)] {
        let fs = host(copy.path());
        let db = open(&fs, options());
        check(&db, keys);
        assert_eq!(db.stats().blobs.garbage_bytes == 0, collected);
        db.collect_blob_garbage().unwrap();
        check(&db, keys);
    }
}
