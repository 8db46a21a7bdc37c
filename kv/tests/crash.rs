//! The engine through LavaFS on a device that loses power: a random history is recorded with every
//! write and flush that reached the device, and the device is opened again as it would be after a
//! crash at sampled ones.
//!
//! The threads of flush and compaction make every recording another one; what must hold is told
//! by the number of operations recorded at each acknowledgement, which does not depend on them.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use common::{Rng, mount, seed, sim_device, tiny};
use lavafs::device::SimDevice;
use lavafs::{CheckMode, check};
use lavakv::{CfId, Db, Options, ReadOptions, WriteBatch, WriteOptions};

const AT: &str = "/db";
const KEYS: u64 = 150;
const SECOND: &str = "second";

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Flushes and compactions all the time; a part of the values is separated.
fn options() -> Options {
    Options {
        min_blob_size: 60,
        blob_file_size: 6000,
        write_buffer_size: 4096,
        max_write_buffer_number: 3,
        target_file_size_base: 4096,
        max_bytes_for_level_base: 16 << 10,
        max_manifest_file_size: 4000,
        ..tiny()
    }
}

/// One batch of the history.
struct Step {
    /// Key, value or deletion, and whether it is of the second column family.
    changes: Vec<(bool, Vec<u8>, Option<Vec<u8>>)>,
    /// Operations recorded when it was given to the database.
    issued_at: usize,
}

/// What was done, and what had been acknowledged as durable when.
#[derive(Default)]
struct History {
    steps: Vec<Step>,
    /// (operations recorded, steps durable): both ascend.
    acknowledged: Vec<(usize, usize)>,
    /// Operations recorded when the second column family existed.
    opened_at: usize,
    flushes: u64,
    compactions: u64,
}

impl History {
    /// Steps that a crash at operation `at` must keep: the acknowledgement had come before `at`
    /// began.
    fn durable_at(&self, at: usize) -> usize {
        let known = self.acknowledged.iter().rev().find(|(ops, _)| *ops <= at);
        known.map_or(0, |(_, steps)| *steps)
    }

    /// Both column families after the first `steps` batches.
    fn state_after(&self, steps: usize) -> [Map; 2] {
        let mut maps = [Map::new(), Map::new()];
        for (number, step) in self.steps[..steps].iter().enumerate() {
            maps[0].insert(b"latest".to_vec(), (number as u32).to_be_bytes().to_vec());
            for (second, key, value) in &step.changes {
                let map = &mut maps[usize::from(*second)];
                match value {
                    Some(value) => map.insert(key.clone(), value.clone()),
                    None => map.remove(key),
                };
            }
        }
        maps
    }
}

fn random_changes(rng: &mut Rng, number: usize) -> Vec<(bool, Vec<u8>, Option<Vec<u8>>)> {
    (0..=rng.below(8))
        .map(|_| {
            let key = format!("key{:04}", rng.below(KEYS)).into_bytes();
            let len = match rng.below(20) {
                0 => rng.below(6000),
                _ => rng.below(150),
            };
            let value = (rng.below(5) > 0).then(|| vec![number as u8; len as usize]);
            (rng.below(3) == 0, key, value)
        })
        .collect()
}

/// Runs a random history on `device`, which records.
fn run_history(device: &Arc<SimDevice>, rng: &mut Rng, steps: usize) -> History {
    let mut history = History::default();
    let fs = mount(device.clone());
    let mut db = Db::open(fs.clone(), Path::new(AT), options()).unwrap();
    let second = db.create_cf(SECOND).unwrap();
    history.opened_at = device.recorded_ops();
    for number in 0..steps {
        let changes = random_changes(rng, number);
        let mut batch = WriteBatch::new();
        for (in_second, key, value) in &changes {
            let cf = if *in_second { second } else { CfId::DEFAULT };
            match value {
                Some(value) => batch.put_cf(cf, key, value),
                None => batch.delete_cf(cf, key),
            }
        }
        batch.put(b"latest", &(number as u32).to_be_bytes());
        let issued_at = device.recorded_ops();
        let synced = rng.below(3) == 0;
        let write = WriteOptions {
            sync: synced,
            disable_wal: false,
        };
        history.steps.push(Step { changes, issued_at });
        db.write(batch, &write).unwrap();
        let durable = match rng.below(60) {
            0 => db.flush().map(|()| true),
            1 => db.sync_wal().map(|()| true),
            2 => db.close().map(|()| {
                count_background(&db, &mut history);
                db = Db::open(fs.clone(), Path::new(AT), options()).unwrap();
                true
            }),
            _ => Ok(synced),
        };
        if durable.unwrap() {
            let acknowledged = (device.recorded_ops(), history.steps.len());
            history.acknowledged.push(acknowledged);
        }
    }
    db.wait_for_background_work().unwrap();
    count_background(&db, &mut history);
    history
}

fn count_background(db: &Db, history: &mut History) {
    let tickers = db.tickers();
    history.flushes += tickers.flushes;
    history.compactions += tickers.compactions;
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

/// Opens what a crash at operation `at` left and checks it against the history.
fn check_crashed(device: Arc<SimDevice>, history: &History, at: usize, place: &str) {
    let report = check(device.clone(), CheckMode::ReadOnly).unwrap();
    assert!(report.is_clean(), "{place}: {report:?}");
    let db = Db::open(mount(device), Path::new(AT), options())
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    db.verify()
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    db.verify_garbage()
        .unwrap_or_else(|error| panic!("{place}: {error}"));
    assert!(
        db.cf(SECOND).is_some() || at < history.opened_at,
        "{place}: a column family is lost"
    );
    let found = contents(&db);
    let kept = found[0].get(&b"latest"[..]).map_or(0, |value| {
        u32::from_be_bytes(value[..].try_into().unwrap()) as usize + 1
    });
    let durable = history.durable_at(at);
    assert!(
        kept >= durable,
        "{place}: {durable} batches were durable, {kept} are there"
    );
    assert!(
        kept == 0 || history.steps[kept - 1].issued_at <= at,
        "{place}: batch {kept} was not written yet"
    );
    assert!(
        found == history.state_after(kept),
        "{place}: not the first {kept} batches exactly"
    );
    // It goes on from there.
    db.put(b"after", b"the crash", &WriteOptions::synced())
        .unwrap();
    db.flush().unwrap();
    db.close().unwrap();
}

fn explore(seed: u64, logical_block: u64, steps: usize, crashes: usize) {
    let mut rng = Rng(seed);
    let device = sim_device(64 << 20, logical_block);
    device.record();
    let history = run_history(&device, &mut rng, steps);
    assert!(history.flushes > 10, "{} flushes", history.flushes);
    assert!(
        history.compactions > 3,
        "{} compactions",
        history.compactions
    );
    let recording = device.take_recording();
    let ops = recording.ops().len();
    assert!(ops > steps / 4, "only {ops} operations were recorded");
    for _ in 0..crashes {
        let at = rng.below(ops as u64 + 1) as usize;
        let media = rng.next();
        let place = format!("crash at {at} of {ops}, media {media}, {logical_block} B blocks");
        let crashed = Arc::new(recording.crash(at, media));
        if rng.below(4) > 0 {
            check_crashed(crashed, &history, at, &place);
            continue;
        }
        // Power fails again while the database recovers.
        crashed.record();
        let db = Db::open(mount(crashed.clone()), Path::new(AT), options()).unwrap();
        drop(db);
        let recovery = crashed.take_recording();
        let again = rng.below(recovery.ops().len() as u64 + 1) as usize;
        let place = format!("{place}, then at {again} of its recovery");
        let twice = Arc::new(recovery.crash(again, rng.next()));
        check_crashed(twice, &history, at, &place);
    }
}

#[test]
fn synced_batches_survive_any_crash_whole_and_in_order() {
    explore(seed(), 512, 500, 250);
}

#[test]
fn synced_batches_survive_any_crash_on_large_blocks() {
    explore(seed() ^ 1, 4096, 300, 120);
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
