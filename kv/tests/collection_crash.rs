//! Crashes between any two steps of whatever moves separated values: flushes, collections, merges that take
//! blob files along, the removal of what they replace.
//!
//! One thread does a fixed history on a device that records. The device is then opened as it would be after a
//! crash at every single write and flush of it, unflushed writes kept, dropped and torn at random, and must hold
//! exactly what had been written until then.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use common::{Rng, mount, seed, sim_device, tiny};
use lavafs::device::{Recording, SimDevice};
use lavafs::{CheckMode, FileSystemRef, check};
use lavakv::{Compression, Db, Options, ReadOptions, WriteBatch, WriteOptions};

const AT: &str = "/db";
const KEYS: u64 = 90;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Nothing happens but what the history says.
fn options() -> Options {
    Options {
        min_blob_size: 100,
        blob_file_size: 8 << 10,
        blob_compression: Compression::None,
        enable_blob_garbage_collection: false,
        blob_correlated_compaction_bytes: 0,
        disable_auto_compactions: true,
        write_buffer_size: 1 << 20,
        ..tiny()
    }
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

fn value(number: u64, round: u64) -> Vec<u8> {
    let mut rng = Rng(number * 31 + round);
    (0..60 + rng.next() % 400)
        .map(|_| rng.next() as u8)
        .collect()
}

/// A database on a device that records, and what it held when.
struct History {
    device: Arc<SimDevice>,
    fs: FileSystemRef,
    db: Db,
    now: Map,
    /// Contents, with the operations recorded when they were given to the database and when they were durable.
    states: Vec<(usize, usize, Map)>,
}

impl History {
    fn new(options: Options) -> History {
        let device = sim_device(24 << 20, 512);
        let fs = mount(device.clone());
        let db = Db::open(fs.clone(), Path::new(AT), options).unwrap();
        let mut history = History {
            device,
            fs,
            db,
            now: Map::new(),
            states: Vec::new(),
        };
        history.write(0, 0..KEYS);
        history.db.compact_range(None, None).unwrap();
        history.write(1, (0..KEYS).step_by(3));
        history.db.compact_range(None, None).unwrap();
        history
    }

    /// Writes these keys, durably, in one batch.
    fn write(&mut self, round: u64, keys: impl Iterator<Item = u64>) {
        let mut batch = WriteBatch::new();
        for number in keys {
            let value = value(number, round);
            batch.put(&key(number), &value);
            self.now.insert(key(number), value);
        }
        let issued = self.device.recorded_ops();
        self.db.write(batch, &WriteOptions::synced()).unwrap();
        let acknowledged = self.device.recorded_ops();
        self.states.push((issued, acknowledged, self.now.clone()));
    }

    /// From here on every operation is a point to crash at.
    fn record(&mut self) {
        self.device.record();
        self.states = vec![(0, 0, self.now.clone())];
    }

    fn blob_files(&self) -> BTreeSet<String> {
        blob_files(&self.fs)
    }

    /// Ends the history, with all files removed that are to be removed.
    fn finish(self) -> (Recording, Vec<(usize, usize, Map)>) {
        self.db.wait_for_background_work().unwrap();
        self.db.verify_garbage().unwrap();
        self.db.close().unwrap();
        // The removals too.
        self.fs.sync_dir(Path::new(AT)).unwrap();
        (self.device.take_recording(), self.states)
    }
}

fn blob_files(fs: &FileSystemRef) -> BTreeSet<String> {
    let names = fs.list(Path::new(AT)).unwrap().into_iter();
    let names = names.map(|entry| entry.name.into_string().unwrap());
    names.filter(|name| name.ends_with(".blob")).collect()
}

fn contents(db: &Db) -> Map {
    let mut iter = db.iter(&ReadOptions::default()).unwrap();
    let mut map = Map::new();
    iter.seek_to_first();
    while iter.valid() {
        map.insert(iter.key().to_vec(), iter.value().to_vec());
        iter.next();
    }
    iter.status().unwrap();
    map
}

/// Crashes at every operation and looks at what is there; `look` is told the blob files in the directory
/// before the database was opened.
fn crash_everywhere(
    (recording, states): (Recording, Vec<(usize, usize, Map)>),
    fates: u64,
    mut look: impl FnMut(&BTreeSet<String>, &Db),
) {
    let mut rng = Rng(seed());
    let ops = recording.ops().len();
    for at in 0..=ops {
        for _ in 0..fates {
            let fate = rng.next();
            let place = format!("crash at {at} of {ops}, fate {fate}");
            let device = Arc::new(recording.crash(at, fate));
            let report = check(device.clone(), CheckMode::ReadOnly).unwrap();
            assert!(report.is_clean(), "{place}: {report:?}");
            let fs = mount(device);
            let found = blob_files(&fs);
            let db = Db::open(fs.clone(), Path::new(AT), options())
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            let sound = db.verify().and_then(|_| db.verify_garbage());
            sound.unwrap_or_else(|error| panic!("{place}: {error}"));
            let now = contents(&db);
            let first = states.iter().rposition(|(_, durable, _)| *durable <= at);
            let possible = states.iter().skip(first.unwrap_or(0));
            let mut possible = possible.take_while(|(issued, ..)| *issued <= at);
            assert!(possible.any(|(.., state)| *state == now), "{place}");
            let left = blob_files(&fs).len() as u64;
            assert_eq!(left, db.stats().blobs.files, "{place}: files left over");
            look(&found, &db);
            // It goes on from there, whatever was interrupted.
            db.collect_blob_garbage().unwrap();
            db.compact_range(None, None).unwrap();
            assert!(contents(&db) == now, "{place}, afterwards");
            db.close().unwrap();
        }
    }
}

#[test]
fn a_collection_is_all_or_nothing_at_every_step() {
    let mut history = History::new(options());
    // What a snapshot holds is moved too.
    let snapshot = history.db.snapshot();
    history.write(2, (0..KEYS).step_by(7));
    history.db.compact_range(None, None).unwrap();
    let before = history.blob_files();
    let garbage = history.db.stats().blobs.garbage_bytes;
    assert!(garbage > 0);
    history.record();
    history.db.collect_blob_garbage().unwrap();
    // Several files into several.
    assert!(history.blob_files().difference(&before).count() > 1);
    drop(snapshot);
    let mut seen = BTreeSet::new();
    crash_everywhere(history.finish(), 4, |found, db| {
        let old = before.iter().all(|name| found.contains(name));
        let new = found.iter().any(|name| !before.contains(name));
        let left = db.stats().blobs.garbage_bytes;
        assert!(left == garbage || left == 0, "{left} of {garbage}");
        seen.insert((old, new, left == garbage, left == 0));
    });
    for step in [
        (true, false, true, false),
        (true, true, true, false),
        (true, true, false, true),
        (false, true, false, true),
    ] {
        assert!(seen.contains(&step), "{step:?} was never met: {seen:?}");
    }
}

#[test]
fn a_merge_that_takes_blob_files_along_is_all_or_nothing_at_every_step() {
    let mut history = History::new(Options {
        blob_correlated_compaction_bytes: 1 << 20,
        ..options()
    });
    history.write(2, (0..KEYS).step_by(2));
    history.db.flush().unwrap();
    history.record();
    history.db.compact_range(None, None).unwrap();
    assert!(history.db.stats().tickers.blob_files_along > 0);
    crash_everywhere(history.finish(), 3, |_, _| {});
}

#[test]
fn separation_collections_and_merges_survive_crashes_between_any_two_steps() {
    let mut history = History::new(Options {
        blob_correlated_compaction_bytes: 4 << 10,
        // Edits are in a new manifest now and then.
        max_manifest_file_size: 4096,
        ..options()
    });
    let early = history.db.snapshot();
    history.record();
    let mut iter = history.db.iter(&ReadOptions::default()).unwrap();
    iter.seek_to_first();
    for round in 2..5 {
        history.write(round, (0..KEYS).filter(|number| number % 5 == round % 5));
        history.db.flush().unwrap();
        history.write(round + 10, (0..KEYS / 2).step_by(3));
        let end = key(KEYS / 2);
        history.db.compact_range(None, Some(&end)).unwrap();
        history.db.collect_blob_garbage().unwrap();
        iter.next();
    }
    drop(early);
    drop(iter);
    history.db.compact_range(None, None).unwrap();
    history.db.collect_blob_garbage().unwrap();
    crash_everywhere(history.finish(), 2, |_, _| {});
}
