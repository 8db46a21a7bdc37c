//! The engine through LavaFS on a device that loses power: random histories are recorded with every
//! write and flush that reached the device, and the device is opened again as it would be after a
//! crash at sampled ones.
//!
//! A history is lived by up to four writers at once, so that batches of several go to the log in one
//! group. Each has keys of its own and counts its batches: after a crash its keys are what the first
//! so many of them make, no fewer than had been acknowledged as durable, and no fewer than had been written when
//! a batch of another writer's that is there began. Options are drawn for every
//! opening, those of the second column family apart.
//!
//! The threads make every recording another one; what must hold is told by the number of operations
//! recorded at each acknowledgement, which does not depend on them. A seed replays the options, the
//! batches and the sampled crashes.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::draw::random_options;
use common::{Rng, WatchFs, mount, seed, sim_device, tiny};
use lavafs::device::SimDevice;
use lavafs::{CheckMode, FileSystemRef, check};
use lavakv::{CfId, Db, Options, ReadOptions, WriteBatch, WriteOptions};
use parking_lot::Mutex;

const AT: &str = "/db";
const SECOND: &str = "second";
/// Levels of both families in every life of a database: data binds them.
const LEVELS: usize = 5;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;
/// A value's first byte, which tells its batch, and its length.
type Short = (Option<u8>, usize);

/// Options of one life of the database: flushes and compactions all the time.
fn drawn(rng: &mut Rng) -> Options {
    let small = |rng: &mut Rng| Options {
        num_levels: LEVELS,
        write_buffer_size: 4096 << rng.below(3),
        blob_file_size: 4096 << rng.below(2),
        max_manifest_file_size: 1000 << rng.below(4),
        ..random_options(rng)
    };
    let mut options = small(rng);
    if rng.below(2) == 0 {
        let second = small(rng);
        options.cf_options.insert(SECOND.to_owned(), second);
    }
    options
}

/// One batch of a writer.
struct Step {
    /// Key, value or deletion, and whether it is of the second column family.
    changes: Vec<(bool, Vec<u8>, Option<Vec<u8>>)>,
    /// Operations recorded when it was given to the database.
    issued_at: usize,
    /// When it was given to the database, and when that was done, as counted by all writers together.
    begun: usize,
    ended: usize,
}

/// What one writer did, and what had been acknowledged as durable when.
struct Writer {
    number: u64,
    rng: Rng,
    steps: Vec<Step>,
    /// (operations recorded, steps durable): both ascend.
    acknowledged: Vec<(usize, usize)>,
}

impl Writer {
    /// The key that holds the number of the writer's last batch.
    fn latest(&self) -> Vec<u8> {
        format!("w{}/latest", self.number).into_bytes()
    }

    /// Steps that a crash at operation `at` must keep: the acknowledgement had come before `at`
    /// began.
    fn durable_at(&self, at: usize) -> usize {
        let known = self.acknowledged.iter().rev().find(|(ops, _)| *ops <= at);
        known.map_or(0, |(_, steps)| *steps)
    }

    /// Adds to both column families what the first `steps` batches make.
    fn apply(&self, steps: usize, maps: &mut [Map; 2]) {
        for (number, step) in self.steps[..steps].iter().enumerate() {
            maps[0].insert(self.latest(), (number as u32).to_be_bytes().to_vec());
            for (second, key, value) in &step.changes {
                let map = &mut maps[usize::from(*second)];
                match value {
                    Some(value) => map.insert(key.clone(), value.clone()),
                    None => map.remove(key),
                };
            }
        }
    }

    fn acknowledge(&mut self, device: &SimDevice) {
        let acknowledged = (device.recorded_ops(), self.steps.len());
        self.acknowledged.push(acknowledged);
    }

    fn random_changes(&mut self) -> Vec<(bool, Vec<u8>, Option<Vec<u8>>)> {
        let byte = self.steps.len() as u8;
        (0..=self.rng.below(8))
            .map(|_| {
                let key = format!("w{}/{:03}", self.number, self.rng.below(60)).into_bytes();
                let len = match self.rng.below(20) {
                    0 => self.rng.below(6000),
                    _ => self.rng.below(150),
                };
                let value = (self.rng.below(5) > 0).then(|| vec![byte; len as usize]);
                (self.rng.below(3) == 0, key, value)
            })
            .collect()
    }

    /// Batches that had been written before moment `when`.
    fn written_before(&self, when: usize) -> usize {
        self.steps.partition_point(|step| step.ended < when)
    }

    /// Writes one batch, and now and then does what moves data.
    fn step(&mut self, db: &Db, second: CfId, device: &SimDevice, clock: &AtomicUsize) {
        let changes = self.random_changes();
        let mut batch = WriteBatch::new();
        for (in_second, key, value) in &changes {
            let cf = if *in_second { second } else { CfId::DEFAULT };
            match value {
                Some(value) => batch.put_cf(cf, key, value),
                None => batch.delete_cf(cf, key),
            }
        }
        batch.put(&self.latest(), &(self.steps.len() as u32).to_be_bytes());
        let synced = self.rng.below(3) == 0;
        let write = WriteOptions {
            sync: synced,
            disable_wal: false,
        };
        let issued_at = device.recorded_ops();
        let begun = clock.fetch_add(1, Ordering::SeqCst);
        db.write(batch, &write).unwrap();
        self.steps.push(Step {
            changes,
            issued_at,
            begun,
            ended: clock.fetch_add(1, Ordering::SeqCst),
        });
        let durable = match self.rng.below(60) {
            0 => db.flush().map(|()| true),
            1 => db.sync_wal().map(|()| true),
            2 => db.compact_range(None, None).map(|()| synced),
            3..6 => db.collect_blob_garbage().map(|()| synced),
            // The next log is made by then, however slow its thread is.
            6 => db.wait_for_background_work().map(|()| synced),
            _ => Ok(synced),
        };
        if durable.unwrap() {
            self.acknowledge(device);
        }
    }
}

/// What a history did in the background.
#[derive(Default, Debug)]
struct Done {
    flushes: u64,
    compactions: u64,
    collections: u64,
    separated: u64,
    spare_logs: u64,
}

impl Done {
    fn count(&mut self, db: &Db) {
        let tickers = db.tickers();
        self.flushes += tickers.flushes;
        self.compactions += tickers.compactions;
        self.collections += tickers.blob_collections;
        self.spare_logs += tickers.spare_logs;
        self.separated += u64::from(db.stats().blobs.files > 0);
    }

    /// True where crashes came between enough of everything.
    fn is_enough(&self, histories: u64) -> bool {
        self.flushes > 10 * histories
            && self.compactions > 3 * histories
            && self.collections > histories / 2
            && self.separated > 0
            && self.spare_logs > histories
    }
}

struct History {
    writers: Vec<Writer>,
    /// Operations recorded when the second column family existed.
    opened_at: usize,
}

impl History {
    /// A history of `lives` of a database on `device`, which records; in each life every writer writes
    /// `steps` batches.
    fn run(device: &Arc<SimDevice>, rng: &mut Rng, size: &Size, done: &mut Done) -> History {
        let fs = match rng.below(2) {
            0 => mount(device.clone()),
            _ => with_slow_logs(mount(device.clone()), rng.next()),
        };
        let clock = AtomicUsize::new(0);
        let mut opened_at = None;
        let writers = [1, 1, 2, 4][rng.below(4) as usize];
        let mut writers: Vec<Writer> = (0..writers)
            .map(|number| Writer {
                number,
                rng: Rng(rng.next()),
                steps: Vec::new(),
                acknowledged: Vec::new(),
            })
            .collect();
        let steps = size.steps / size.lives / writers.len();
        for _ in 0..size.lives {
            let db = open(&fs, rng).unwrap();
            let second = match db.cf(SECOND) {
                Some(second) => second,
                None => db.create_cf(SECOND).unwrap(),
            };
            opened_at.get_or_insert_with(|| device.recorded_ops());
            std::thread::scope(|scope| {
                for writer in &mut writers {
                    let (db, clock) = (&db, &clock);
                    scope.spawn(move || {
                        for _ in 0..steps {
                            writer.step(db, second, device, clock);
                        }
                    });
                }
            });
            match rng.below(3) {
                0 => db.wait_for_background_work().unwrap(),
                1 => {
                    db.close().unwrap();
                    for writer in &mut writers {
                        writer.acknowledge(device);
                    }
                }
                _ => {}
            }
            done.count(&db);
        }
        History {
            writers,
            opened_at: opened_at.unwrap(),
        }
    }
}

/// A filesystem on which the thread that ends logs and makes the next takes its time, so that writes have to be
/// held, or wait.
fn with_slow_logs(fs: FileSystemRef, seed: u64) -> FileSystemRef {
    let fs = WatchFs::new(fs, Box::new(|_, _| {}));
    let drawn = Mutex::new(Rng(seed));
    fs.fail_where(move |op, _| {
        let is_slow = std::thread::current().name() == Some("lavakv-log");
        if is_slow && op != "space" {
            let pause = drawn.lock().below(3000);
            std::thread::sleep(Duration::from_micros(pause));
        }
        None
    });
    fs
}

fn open(fs: &FileSystemRef, rng: &mut Rng) -> lavakv::Result<Db> {
    let options = drawn(rng);
    Db::open(fs.clone(), Path::new(AT), options)
}

/// Both column families as the database tells them.
fn contents(db: &Db) -> [Map; 2] {
    let mut maps = [Map::new(), Map::new()];
    for (cf, name) in db.cfs() {
        let map = &mut maps[usize::from(name == SECOND)];
        let mut iter = db.iter_cf(cf, &ReadOptions::default()).unwrap();
        iter.seek_to_first();
        while iter.valid() {
            map.insert(iter.key().to_vec(), iter.value().to_vec());
            iter.next();
        }
        iter.status().unwrap();
    }
    maps
}

/// What tells two maps apart, as (key, first byte and length found, those expected).
fn differences<'a>(
    found: &'a Map,
    expected: &'a Map,
) -> Vec<(String, Option<Short>, Option<Short>)> {
    let short = |value: Option<&Vec<u8>>| value.map(|value| (value.first().copied(), value.len()));
    let keys: BTreeSet<&Vec<u8>> = found.keys().chain(expected.keys()).collect();
    let differ = keys
        .into_iter()
        .filter(|key| found.get(*key) != expected.get(*key));
    let tell = |key: &Vec<u8>| {
        let name = String::from_utf8_lossy(key).into_owned();
        (name, short(found.get(key)), short(expected.get(key)))
    };
    differ.map(tell).collect()
}

/// Opens what a crash at operation `at` left and checks it against the history.
fn check_crashed(device: Arc<SimDevice>, history: &History, rng: &mut Rng, at: usize, place: &str) {
    let report = check(device.clone(), CheckMode::ReadOnly).unwrap();
    assert!(report.is_clean(), "{place}: {report:?}");
    let db = open(&mount(device), rng).unwrap_or_else(|error| panic!("{place}: {error}"));
    db.verify()
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    db.verify_garbage()
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    assert!(
        db.cf(SECOND).is_some() || at < history.opened_at,
        "{place}: a column family is lost"
    );
    let found = contents(&db);
    let mut expected = [Map::new(), Map::new()];
    let mut last_begun = 0;
    let mut kept_of = Vec::new();
    for writer in &history.writers {
        let place = format!("{place}: writer {}", writer.number);
        let kept = found[0].get(&writer.latest()).map_or(0, |value| {
            u32::from_be_bytes(value[..].try_into().unwrap()) as usize + 1
        });
        let durable = writer.durable_at(at);
        assert!(
            kept >= durable,
            "{place}: {durable} batches were durable, {kept} are there"
        );
        assert!(
            kept == 0 || writer.steps[kept - 1].issued_at <= at,
            "{place}: batch {kept} was not written yet"
        );
        if let Some(step) = writer.steps[..kept].last() {
            last_begun = last_begun.max(step.begun);
        }
        kept_of.push(kept);
        writer.apply(kept, &mut expected);
    }
    // What is there is the first so many writes of all: none is missing that had ended before one that is there began.
    for (writer, kept) in history.writers.iter().zip(kept_of) {
        let least = writer.written_before(last_begun);
        let number = writer.number;
        assert!(
            kept >= least,
            "{place}: writer {number}: a write of another one came after {least} batches, {kept} are there"
        );
    }
    for (found, expected) in found.iter().zip(&expected) {
        assert!(
            found == expected,
            "{place}: not the first batches of each writer exactly: {:?}",
            differences(found, expected)
        );
    }
    // It goes on from there.
    db.put(b"after", b"the crash", &WriteOptions::synced())
        .unwrap();
    db.flush().unwrap();
    db.close().unwrap();
}

/// How much an exploration does.
struct Size {
    histories: u64,
    /// Openings of the database in each history.
    lives: usize,
    /// Batches of each history.
    steps: usize,
    /// Crashes sampled of each history.
    crashes: usize,
}

fn explore(seed: u64, logical_block: u64, size: &Size) {
    let mut done = Done::default();
    let mut number = 0;
    // What is drawn, and how fast background threads are, may leave out much: then there are more histories.
    while number < size.histories || !done.is_enough(size.histories) {
        assert!(number < 10 * size.histories, "{done:?}");
        println!("history {number}");
        let mut rng = Rng(seed ^ number << 32);
        explore_one(&mut rng, logical_block, size, &mut done);
        number += 1;
    }
    println!("{done:?} in {number} histories");
}

fn explore_one(rng: &mut Rng, logical_block: u64, size: &Size, done: &mut Done) {
    let device = sim_device(64 << 20, logical_block);
    device.record();
    let history = History::run(&device, rng, size, done);
    let recording = device.take_recording();
    let ops = recording.ops().len();
    assert!(ops > size.steps / 4, "only {ops} operations were recorded");
    for _ in 0..size.crashes {
        let at = rng.below(ops as u64 + 1) as usize;
        let media = rng.next();
        let place = format!("crash at {at} of {ops}, media {media}, {logical_block} B blocks");
        let crashed = Arc::new(recording.crash(at, media));
        if rng.below(4) > 0 {
            check_crashed(crashed, &history, rng, at, &place);
            continue;
        }
        // Power fails again while the database recovers.
        crashed.record();
        let db = open(&mount(crashed.clone()), rng).unwrap();
        drop(db);
        let recovery = crashed.take_recording();
        let again = rng.below(recovery.ops().len() as u64 + 1) as usize;
        let place = format!("{place}, then at {again} of its recovery");
        let twice = Arc::new(recovery.crash(again, rng.next()));
        check_crashed(twice, &history, rng, at, &place);
    }
}

#[test]
fn synced_batches_survive_any_crash_whole_and_in_order() {
    let size = Size {
        histories: 6,
        lives: 3,
        steps: 240,
        crashes: 60,
    };
    explore(seed(), 512, &size);
}

#[test]
fn synced_batches_survive_any_crash_on_large_blocks() {
    let size = Size {
        histories: 4,
        lives: 2,
        steps: 160,
        crashes: 40,
    };
    explore(seed() ^ 1, 4096, &size);
}

#[test]
fn a_steady_synced_put_is_one_logical_block_and_one_flush() {
    let device = sim_device(64 << 20, 512);
    let fs = mount(device);
    let options = Options {
        write_buffer_size: 1 << 20,
        ..tiny()
    };
    let db = Db::open(fs.clone(), Path::new(AT), options).unwrap();
    let key = |number: u64| format!("{number:016}").into_bytes();
    db.put(&key(0), &[0; 100], &WriteOptions::synced()).unwrap();
    let before = fs.counters();
    for number in 1..=1000 {
        db.put(&key(number), &[1; 100], &WriteOptions::synced())
            .unwrap();
    }
    let cost = fs.counters() - before;
    assert_eq!(
        (cost.write_bytes, cost.write_ios, cost.flushes),
        (1000 * 512, 1000, 1000)
    );
    assert_eq!(cost.read_ios, 0);
}
