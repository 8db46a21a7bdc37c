//! Column families that come and go beside snapshots, iterators, repairs and other options at each open: each keeps
//! its contents, and the accounts of its blob files are a scan's at every step.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::draw::random_options;
use common::{Rng, mount, seed, sim_device, tiny};
use lavafs::FileSystemRef;
use lavakv::{
    CfId, Compression, Db, DbIterator, Env, Options, ReadOptions, Snapshot, WriteBatch,
    WriteOptions,
};

const AT: &str = "/db";
const KEYS: u64 = 60;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;
type Families = BTreeMap<CfId, (String, Map)>;

struct World {
    fs: FileSystemRef,
    db: Db,
    families: Families,
    snapshots: Vec<(Snapshot, Families)>,
    iterators: Vec<(DbIterator, Map)>,
}

fn key(number: u64) -> Vec<u8> {
    match number {
        0 => Vec::new(),
        number => format!("key{number:04}").into_bytes(),
    }
}

/// Keys that are put where they are not, and single-deleted where they are.
fn is_single(number: u64) -> bool {
    number % 5 == 4
}

fn value(rng: &mut Rng) -> Vec<u8> {
    let len = [0, 1, 29, 30, 120, 600, 5000][rng.below(7) as usize];
    vec![rng.next() as u8; len]
}

fn drawn(rng: &mut Rng, num_levels: usize) -> Options {
    Options {
        create_if_missing: true,
        num_levels,
        env: None,
        ..random_options(rng)
    }
}

fn walk(mut iter: DbIterator, backward: bool) -> Map {
    let mut map = Map::new();
    if backward {
        iter.seek_to_last();
    } else {
        iter.seek_to_first();
    }
    while iter.valid() {
        map.insert(iter.key().to_vec(), iter.value().to_vec());
        if backward {
            iter.prev();
        } else {
            iter.next();
        }
    }
    iter.status().unwrap();
    map
}

fn same(found: &Map, expected: &Map, place: &str) {
    let keys = found.keys().chain(expected.keys());
    let differs = |key: &&Vec<u8>| found.get(*key) != expected.get(*key);
    let differ: Vec<_> = keys
        .filter(differs)
        .map(|key| key.escape_ascii().to_string())
        .collect();
    let (there, wanted) = (found.len(), expected.len());
    assert!(
        differ.is_empty(),
        "{place}: {differ:?} of {wanted}, {there} found"
    );
}

impl World {
    fn any_family(&self, rng: &mut Rng) -> CfId {
        let at = rng.below(self.families.len() as u64) as usize;
        *self.families.keys().nth(at).unwrap()
    }

    fn write(&mut self, rng: &mut Rng) {
        let mut batch = WriteBatch::new();
        for _ in 0..1 + rng.below(8) {
            let cf = self.any_family(rng);
            let map = &mut self.families.get_mut(&cf).unwrap().1;
            let number = rng.below(KEYS);
            let key = key(number);
            match (is_single(number), map.contains_key(&key)) {
                (true, true) => batch.single_delete_cf(cf, &key),
                (false, _) if rng.below(4) == 0 => batch.delete_cf(cf, &key),
                _ => {
                    let value = value(rng);
                    batch.put_cf(cf, &key, &value);
                    map.insert(key, value);
                    continue;
                }
            }
            map.remove(&key);
        }
        self.db.write(batch, &WriteOptions::default()).unwrap();
    }

    fn check(&self, rng: &mut Rng) {
        for (&cf, (name, map)) in &self.families {
            let iter = self.db.iter_cf(cf, &ReadOptions::default()).unwrap();
            let found = walk(iter, rng.below(2) == 0);
            same(&found, map, name);
        }
        for (snapshot, families) in &self.snapshots {
            for (&cf, (name, map)) in families {
                if !self.families.contains_key(&cf) {
                    continue;
                }
                let options = ReadOptions {
                    snapshot: Some(snapshot.clone()),
                    ..ReadOptions::default()
                };
                let iter = self.db.iter_cf(cf, &options).unwrap();
                assert!(walk(iter, false) == *map, "{name} as of a snapshot");
            }
        }
    }

    fn reopen(mut self, rng: &mut Rng, num_levels: usize) -> World {
        self.snapshots.clear();
        for (iter, map) in self.iterators.drain(..) {
            assert!(walk(iter, true) == map, "held to the end");
        }
        match rng.below(2) {
            0 => self.db.close().unwrap(),
            _ => self.db.sync_wal().unwrap(),
        }
        drop(self.db);
        let options = drawn(rng, num_levels);
        let repairs = rng.below(3);
        if repairs > 0 {
            if repairs > 1 {
                for entry in self.fs.list(Path::new(AT)).unwrap() {
                    let name = entry.name.to_str().unwrap().to_owned();
                    if name == "CURRENT" || name.starts_with("MANIFEST") {
                        self.fs.unlink(&Path::new(AT).join(name)).unwrap();
                    }
                }
            }
            println!("repaired, manifest {}", repairs < 2);
            Db::repair(&self.fs, Path::new(AT), &options).unwrap();
        }
        self.db = Db::open(self.fs.clone(), Path::new(AT), options).unwrap();
        // Families that were dropped may be back where there was no manifest.
        for (cf, _) in self.db.cfs() {
            if !self.families.contains_key(&cf) {
                assert_eq!(repairs, 2);
                self.db.drop_cf(cf).unwrap();
            }
        }
        self
    }
}

fn run(seed: u64, steps: u64) {
    let mut rng = Rng(seed);
    let num_levels = 2 + rng.below(6) as usize;
    let fs = mount(sim_device(256 << 20, 512));
    let db = Db::open(fs.clone(), Path::new(AT), drawn(&mut rng, num_levels)).unwrap();
    let mut world = World {
        fs,
        db,
        families: BTreeMap::from([(CfId::DEFAULT, ("default".to_owned(), Map::new()))]),
        snapshots: Vec::new(),
        iterators: Vec::new(),
    };
    for _ in 0..steps {
        match rng.below(64) {
            0..=39 => world.write(&mut rng),
            40..=43 => world.db.flush_cf(world.any_family(&mut rng)).unwrap(),
            44..=45 => {
                let (low, high) = (key(rng.below(KEYS)), key(rng.below(KEYS)));
                let cf = world.any_family(&mut rng);
                world
                    .db
                    .compact_range_cf(cf, Some(&low), Some(&high))
                    .unwrap();
            }
            46 => {
                let cf = world.any_family(&mut rng);
                world.db.compact_range_cf(cf, None, None).unwrap();
            }
            47..=49 => world.db.collect_blob_garbage().unwrap(),
            50..=51 => {
                let snapshot = world.db.snapshot();
                world.snapshots.push((snapshot, world.families.clone()));
            }
            52..=53 if !world.snapshots.is_empty() => {
                let at = rng.below(world.snapshots.len() as u64) as usize;
                world.snapshots.swap_remove(at);
            }
            54 => {
                let cf = world.any_family(&mut rng);
                let iter = world.db.iter_cf(cf, &ReadOptions::default()).unwrap();
                world.iterators.push((iter, world.families[&cf].1.clone()));
            }
            55 if !world.iterators.is_empty() => {
                let at = rng.below(world.iterators.len() as u64) as usize;
                let (iter, map) = world.iterators.swap_remove(at);
                assert!(walk(iter, rng.below(2) == 0) == map, "an iterator's moment");
            }
            56 if world.families.len() < 4 => {
                // Names come again.
                let name = format!("family{}", rng.below(3));
                if let Ok(cf) = world.db.create_cf(&name) {
                    world.families.insert(cf, (name, Map::new()));
                }
            }
            57 if rng.below(2) == 0 => {
                let cf = world.any_family(&mut rng);
                if cf != CfId::DEFAULT {
                    world.db.drop_cf(cf).unwrap();
                    world.families.remove(&cf);
                }
            }
            58..=59 => world.check(&mut rng),
            60..=61 => drop(world.db.verify_garbage().unwrap()),
            62 if rng.below(3) == 0 => world = world.reopen(&mut rng, num_levels),
            _ => {}
        }
    }
    world.check(&mut rng);
    world.db.wait_for_background_work().unwrap();
    world.db.verify_garbage().unwrap();
    world.db.verify().unwrap();
    world.db.close().unwrap();
}

#[test]
fn families_keep_their_contents_and_accounts_whatever_comes_between() {
    let seed = seed();
    let runs = std::env::var("LAVA_RUNS").map_or(4, |text| text.parse().unwrap());
    for run_seed in seed..seed + runs {
        println!("LAVA_SEED={run_seed} LAVA_RUNS=1");
        run(run_seed, 400);
    }
}

/// An options file of more than 1 MiB did not read back: every family had the database's options after a reopen.
#[test]
fn the_options_of_very_many_families_read_back() {
    let fs = mount(sim_device(256 << 20, 512));
    let db = Db::open(fs.clone(), Path::new(AT), tiny()).unwrap();
    let name = |number: usize| format!("{number:/>255}");
    for number in 0..50 {
        let own = Options {
            write_buffer_size: 8192 + number,
            ..tiny()
        };
        db.create_cf_with(&name(number), own).unwrap();
    }
    db.close().unwrap();
    let loaded = Options::load(&fs, Path::new(AT)).unwrap();
    let db = Db::open(fs, Path::new(AT), loaded).unwrap();
    for number in 0..50 {
        let cf = db.cf(&name(number)).unwrap();
        let options = db.cf_options(cf).unwrap();
        assert_eq!(options.write_buffer_size, 8192 + number);
    }
}

/// A kilobyte a key, the families in turns.
fn put_in_turns(db: &Db, families: &[CfId], count: u64) {
    let unsynced = WriteOptions::default();
    for (number, cf) in (0..count).zip(families.iter().cycle()) {
        db.put_cf(*cf, &number.to_be_bytes(), &[7; 1000], &unsynced)
            .unwrap();
    }
}

/// The log in use did not count, and was alone until one memtable of many was full.
#[test]
fn one_log_of_many_families_keeps_to_the_limit_of_all_logs() {
    let fs = mount(sim_device(256 << 20, 512));
    let options = Options {
        write_buffer_size: 1 << 20,
        max_total_wal_size: 256 << 10,
        min_blob_size: 0,
        ..tiny()
    };
    let db = Db::open(fs.clone(), Path::new(AT), options).unwrap();
    let made = (0..10).map(|number| db.create_cf(&number.to_string()).unwrap());
    let families: Vec<CfId> = made.collect();
    put_in_turns(&db, &families, 2000);
    db.wait_for_background_work().unwrap();
    // No memtable was full, but the log was eight times.
    let flushes = db.tickers().flushes;
    assert!((10..200).contains(&flushes), "{flushes} flushes");

    // Where nothing is said, the limit leaves a family with larger buffers than the database's its own.
    let db = Db::open(fs, Path::new("/other"), tiny()).unwrap();
    let own = Options {
        write_buffer_size: 2 << 20,
        ..tiny()
    };
    let cf = db.create_cf_with("large", own).unwrap();
    put_in_turns(&db, &[cf], 1000);
    db.wait_for_background_work().unwrap();
    assert_eq!(db.tickers().flushes, 0);
}

/// They waited for the rate limiter to write what was discarded in the end, and took the threads of all other work meanwhile.
#[test]
fn flushes_and_compactions_of_a_dropped_family_end_while_they_wait_for_the_rate() {
    let env = Env::new(1, 1);
    let limiter = env.rate_limiter();
    let options = Options {
        env: Some(Arc::clone(&env)),
        compression: Compression::None,
        target_file_size_base: 1 << 20,
        min_blob_size: 0,
        ..tiny()
    };
    let db = Db::open(mount(sim_device(64 << 20, 512)), Path::new(AT), options).unwrap();
    // The limiter is asked for each of them.
    let put = |cf, values: u64| {
        let mut batch = WriteBatch::new();
        for number in 0..values {
            batch.put_cf(cf, &number.to_be_bytes(), &[7; 80 << 10]);
        }
        db.write(batch, &WriteOptions::default()).unwrap();
    };
    let ends = |what: &str| {
        let (db, (tell, done)) = (db.clone(), mpsc::channel());
        std::thread::spawn(move || tell.send(db.wait_for_background_work()).unwrap());
        let ended = done.recv_timeout(Duration::from_secs(60));
        ended.expect(what).unwrap();
    };
    // One that is let through, with debts for hours.
    let all_wait = || {
        limiter.set_bytes_per_s(1);
        put(CfId::DEFAULT, 1);
        db.flush_cf(CfId::DEFAULT).unwrap();
    };
    for _ in 0..2 {
        let cf = db.create_cf("flushed").unwrap();
        all_wait();
        (0..2).for_each(|_| put(cf, 3));
        db.drop_cf(cf).unwrap();
        ends("flushes of a dropped family");
        limiter.set_bytes_per_s(0);
    }
    let cf = db.create_cf("compacted").unwrap();
    for _ in 0..3 {
        put(cf, 3);
        db.flush_cf(cf).unwrap();
    }
    let begun = Arc::new(AtomicBool::new(false));
    all_wait();
    let job = {
        let (db, begun) = (db.clone(), Arc::clone(&begun));
        std::thread::spawn(move || {
            begun.store(true, Ordering::SeqCst);
            db.compact_range_cf(cf, None, None)
        })
    };
    while !begun.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(50));
    db.drop_cf(cf).unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while !job.is_finished() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(job.is_finished(), "a compaction of a dropped family");
    assert!(job.join().unwrap().is_err());
}
