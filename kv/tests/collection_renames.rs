//! Merges that write the number of a blob file which a collection replaces before they commit, two at a time.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use common::{Rng, WatchFs, mount, sim_device, tiny};
use lavafs::FileSystemRef;
use lavakv::{Compression, Db, Options, ReadOptions, WriteBatch, WriteOptions};
use parking_lot::Mutex;

const KEYS: u64 = 240;

/// Nothing happens unless a test says so. Tables are small, so that merges have few keys.
fn options(blob_file_size: u64) -> Options {
    Options {
        min_blob_size: 100,
        blob_file_size,
        blob_compression: Compression::None,
        enable_blob_garbage_collection: false,
        blob_correlated_compaction_bytes: 0,
        disable_auto_compactions: true,
        write_buffer_size: 8 << 20,
        target_file_size_base: 4 << 10,
        compression: Compression::None,
        ..tiny()
    }
}

fn key(number: u64) -> Vec<u8> {
    let mut rng = Rng(number);
    let rest: String = (0..20).map(|_| format!("{:016x}", rng.next())).collect();
    format!("key{number:08}{rest}").into_bytes()
}

fn value(number: u64, round: u64) -> Vec<u8> {
    let mut rng = Rng(number * 31 + round);
    (0..600).map(|_| rng.next() as u8).collect()
}

#[derive(Clone)]
struct World {
    fs: Arc<WatchFs>,
    db: Db,
    model: Arc<Mutex<BTreeMap<u64, u64>>>,
}

impl World {
    fn new() -> World {
        let fs = WatchFs::new(mount(sim_device(64 << 20, 512)), Box::new(|_, _| {}));
        let db = open(&fs, 1 << 20);
        let model = Arc::default();
        World { fs, db, model }
    }

    /// Opens again, with blob files of another size.
    fn reopen(self, blob_file_size: u64) -> World {
        self.db.close().unwrap();
        let db = open(&self.fs, blob_file_size);
        World { db, ..self }
    }

    /// Overwrites keys, and merges the tables that have them.
    fn overwrite(&self, keys: Range<u64>, round: u64) {
        let mut batch = WriteBatch::new();
        for number in keys.clone() {
            batch.put(&key(number), &value(number, round));
            self.model.lock().insert(number, round);
        }
        self.db.write(batch, &WriteOptions::default()).unwrap();
        self.db.flush().unwrap();
        self.merge(keys);
    }

    fn merge(&self, keys: Range<u64>) {
        let (from, to) = (key(keys.start), key(keys.end - 1));
        self.db.compact_range(Some(&from), Some(&to)).unwrap();
    }

    fn collect(&self) {
        let before = self.db.stats().tickers.blob_collections;
        self.db.collect_blob_garbage().unwrap();
        let after = self.db.stats().tickers.blob_collections;
        assert!(after > before, "nothing was collected");
    }

    fn check(&self) {
        self.db.verify().unwrap();
        self.db.verify_garbage().unwrap();
        for (&number, &round) in &*self.model.lock() {
            let found = self.db.get(&key(number), &ReadOptions::default());
            assert_eq!(found.unwrap(), Some(value(number, round)), "key {number}");
        }
    }
}

fn open(fs: &Arc<WatchFs>, blob_file_size: u64) -> Db {
    let fs = fs.clone() as FileSystemRef;
    Db::open(fs, Path::new("/db"), options(blob_file_size)).unwrap()
}

#[test]
fn two_merges_that_know_one_file_by_different_names_both_find_its_heirs() {
    let world = World::new();
    world.overwrite(0..KEYS, 0);
    world.overwrite(120..KEYS, 1);
    // The first table and the last keep a version for it, and are written anew when it goes.
    let snapshot = world.db.snapshot();
    world.overwrite(2..3, 2);
    world.overwrite(237..238, 2);
    drop(snapshot);
    // The lower keys' file is cut in pieces, of which the first is collected with the upper keys' file.
    let world = world.reopen(20 << 10);
    world.collect();
    let world = world.reopen(1 << 20);
    world.overwrite(20..25, 3);
    world.overwrite(200..210, 3);
    world.collect();
    // The file of both is cut in turn, while merges at both ends have written its number, which nothing in
    // the version has any more.
    world.overwrite(140..170, 4);
    let world = world.reopen(20 << 10);
    let (first, middle) = (world.clone(), world.clone());
    world.fs.before_next("sync_dir", "db", move || {
        let fs = first.fs.clone();
        fs.before_next("sync_dir", "db", move || {
            middle.collect();
            middle.overwrite(138..172, 5);
            middle.overwrite(15..30, 5);
            middle.overwrite(195..215, 5);
        });
        first.merge(0..4);
        assert!(!first.fs.is_pending());
    });
    world.merge(235..KEYS);
    assert!(!world.fs.is_pending());
    world.check();
    let world = world.reopen(1 << 20);
    world.check();
}
