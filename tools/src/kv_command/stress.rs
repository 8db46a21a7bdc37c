//! `lava kv stress`: random operations on a database for a given time, every result checked.
//!
//! Each thread owns keys of its own and knows what they hold, so it can check every read. A *pair* is
//! two keys that are always written together, with the same value, in one batch: whoever sees the one
//! without the other has seen half a batch. A value is its counter, which grows with every write
//! of the pair, and bytes that follow from it: a value that was never written does not check.
//!
//! What is there at the start, after a kill for instance, is checked the same way and goes on from there.
//! Beside pairs, each thread has keys that are put once and deleted with a single deletion, keys that are written
//! without a log, and a copy of each pair's value in a second column family, in the same batch. Options
//! are drawn from the seed each time that the database is opened, unless `--fixed` is given. With `--ops`
//! the seed decides every operation; when background threads work, and where between the operations the
//! database is opened again, it does not.
//!
//! With `--ack` a line `PAIR COUNTER` is printed after each write that is durable: whoever kills the
//! process knows what must be found afterwards, a counter of at least this. Deletions are not
//! drawn then.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use clap::Args;
use lavakv::{CfId, Db, ReadOptions, WriteBatch, WriteOptions};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::stress_pairs::{
    NEVER_WRITTEN, PAIRS_MAX, copy_name, counter_of, names, pair_of, pairs_left, unlogged_name,
    value_of,
};
use super::{Where, stress_options};
use crate::cli::{Access, Failure, Mounted, Outcome, json_line, line};

/// `lava kv stress`.
#[derive(Debug, Args)]
pub struct Stress {
    #[command(flatten)]
    at: Where,
    /// Seconds to run
    #[arg(long, default_value_t = 10)]
    duration: u64,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Pairs of keys of each thread
    #[arg(long, default_value_t = 500)]
    pairs: u64,
    /// Bytes of a value at most, at least 32; the same as before where a database is gone on with
    #[arg(long, default_value_t = 400)]
    value_size: usize,
    /// Bytes of a memtable: small ones flush and compact all the time
    #[arg(long, default_value_t = 256 << 10)]
    write_buffer_size: usize,
    /// Operations of each thread, whatever time they take; 0: as many as the duration allows
    #[arg(long, default_value_t = 0)]
    ops: u64,
    /// Close and open again each time that so many seconds have passed; 0: never
    #[arg(long, default_value_t = 3)]
    reopen: u64,
    /// Seed of options and operations, which it replays with --ops; 0: from the time
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Keep to the default options, whatever the seed
    #[arg(long)]
    fixed: bool,
    /// Print each write that is durable
    #[arg(long)]
    ack: bool,
    /// Print one JSON object
    #[arg(long, conflicts_with = "ack")]
    json: bool,
}

/// The column family that has a copy of each pair's value.
const SECOND: &str = "second";

/// What all threads share.
struct Shared<'a> {
    stress: &'a Stress,
    /// `None` only while the database is opened again.
    db: RwLock<Option<Db>>,
    stop: AtomicBool,
    ops: AtomicU64,
    checks: AtomicU64,
    failure: Mutex<Option<Failure>>,
}

/// One thread's pairs and what they hold: the counter of the last write, or that it was a deletion.
struct Worker<'a> {
    shared: &'a Shared<'a>,
    thread: u64,
    rng: SmallRng,
    /// Counter of the last write, and whether the pair is there.
    model: BTreeMap<u64, (u64, bool)>,
    /// Of the keys that are written without a log.
    unlogged: BTreeMap<u64, u64>,
    /// Number of the next key that is put once.
    once: u64,
}

fn second(db: &Db) -> Outcome<CfId> {
    let none = || Failure::new("the second column family is gone");
    db.cf(SECOND).ok_or_else(none)
}

impl Stress {
    pub(super) fn run(&self) -> Outcome {
        if !(1..=1000).contains(&self.threads) || !(1..=PAIRS_MAX).contains(&self.pairs) {
            return Err(Failure::usage(
                "--threads is 1 to 1000 and --pairs 1 to 1000000",
            ));
        }
        if !(32..=1 << 20).contains(&self.value_size) {
            return Err(Failure::usage("--value_size is 32 to 1048576"));
        }
        let mounted = self.at.fs.open(Access::ReadWrite)?;
        mounted.with(|_, mounted| self.run_on(mounted))?;
        Ok(ExitCode::SUCCESS)
    }

    fn open(&self, mounted: &Mounted, rng: &mut SmallRng) -> Outcome<Db> {
        let options = match self.fixed {
            false => stress_options::drawn(rng, self.write_buffer_size),
            true => lavakv::Options {
                create_if_missing: true,
                write_buffer_size: self.write_buffer_size,
                target_file_size_base: self.write_buffer_size as u64,
                max_bytes_for_level_base: 4 * self.write_buffer_size as u64,
                ..lavakv::Options::default()
            },
        };
        let db = Db::open(mounted.fs().clone(), &self.at.db, options)?;
        if db.cf(SECOND).is_none() {
            db.create_cf(SECOND)?;
        }
        Ok(db)
    }

    fn run_on(&self, mounted: &Mounted) -> Outcome<()> {
        let seed = match self.seed {
            0 => rand::random(),
            seed => seed,
        };
        if !self.ack && !self.json {
            line(format_args!("seed {seed}"))?;
        }
        let mut rng = SmallRng::seed_from_u64(!seed);
        let shared = Shared {
            stress: self,
            db: RwLock::new(Some(self.open(mounted, &mut rng)?)),
            stop: AtomicBool::new(false),
            ops: AtomicU64::new(0),
            checks: AtomicU64::new(0),
            failure: Mutex::new(None),
        };
        let mut reopened = 0;
        std::thread::scope(|scope| {
            let shared = &shared;
            let work = |thread| {
                move || {
                    if let Err(error) = Worker::new(shared, thread, seed).run() {
                        shared.fail(error);
                    }
                }
            };
            let workers: Vec<_> = (0..self.threads)
                .map(|thread| scope.spawn(work(thread)))
                .collect();
            // One that panicked has ended too.
            let at_work = || workers.iter().any(|worker| !worker.is_finished());
            let supervised = self.supervise(shared, mounted, &mut rng, &mut reopened, at_work);
            supervised.unwrap_or_else(|error| shared.fail(error));
            shared.stop.store(true, Ordering::Relaxed);
        });
        let db = shared
            .db
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let failure = shared.failure.into_inner();
        if let Some(failure) = failure.unwrap_or_else(PoisonError::into_inner) {
            return Err(Failure::new(format!("seed {seed}: {failure}")));
        }
        if let Some(db) = db {
            db.verify()?;
            db.verify_garbage()?;
            db.close()?;
        }
        let (ops, checks) = (shared.ops.into_inner(), shared.checks.into_inner());
        match (self.json, self.ack) {
            (true, _) => json_line(&json!({
                "bench": "kv", "workload": "stress", "seed": seed, "ops": ops,
                "checks": checks, "reopened": reopened,
            })),
            (_, true) => Ok(()),
            _ => line(format_args!(
                "{ops} operations, {checks} checks, opened again {reopened} times: sound"
            )),
        }
    }

    /// Opens the database again from time to time, until the time is over, the operations are done or
    /// something failed.
    fn supervise(
        &self,
        shared: &Shared<'_>,
        mounted: &Mounted,
        rng: &mut SmallRng,
        reopened: &mut u64,
        at_work: impl Fn() -> bool,
    ) -> Outcome<()> {
        let begin = Instant::now();
        let mut opened = begin;
        let goes_on = || match self.ops {
            0 => begin.elapsed() < Duration::from_secs(self.duration),
            _ => at_work(),
        };
        while goes_on() && !shared.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
            if self.reopen > 0 && opened.elapsed() >= Duration::from_secs(self.reopen) {
                let mut db = shared.db.write().unwrap_or_else(PoisonError::into_inner);
                if let Some(open) = db.take() {
                    open.close()?;
                }
                *db = Some(self.open(mounted, rng)?);
                *reopened += 1;
                opened = Instant::now();
            }
        }
        Ok(())
    }
}

impl Shared<'_> {
    fn fail(&self, error: Failure) {
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
    }

    fn with<R>(&self, work: impl FnOnce(&Db) -> Outcome<R>) -> Outcome<R> {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        match &*db {
            Some(db) => work(db),
            None => Err(Failure::new("the database could not be opened again")),
        }
    }
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared<'a>, thread: u64, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed.wrapping_add(thread));
        Worker {
            shared,
            thread,
            once: rng.random::<u64>() >> 8,
            rng,
            model: BTreeMap::new(),
            unlogged: BTreeMap::new(),
        }
    }

    /// A number that no other thread's pair has.
    fn id(&self, pair: u64) -> u64 {
        self.thread * PAIRS_MAX + pair
    }

    fn run(mut self) -> Outcome<()> {
        self.shared.with(|db| self.adopt(db))?;
        let limit = match self.shared.stress.ops {
            0 => u64::MAX,
            ops => ops,
        };
        for _ in 0..limit {
            if self.shared.stop.load(Ordering::Relaxed) {
                break;
            }
            let pair = self.rng.random_range(0..self.shared.stress.pairs);
            let draw = self.rng.random_range(0..1000);
            self.shared.with(|db| self.step(db, pair, draw))?;
            self.shared.ops.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.with(|db| self.scan(db))
    }

    /// Takes over what an earlier run left, of more pairs perhaps, which must be whole batches of values once
    /// written.
    fn adopt(&mut self, db: &Db) -> Outcome<()> {
        for pair in 0..pairs_left(db, self.thread)?.max(self.shared.stress.pairs) {
            let [a, b] = names(self.thread, pair);
            let now = ReadOptions::default();
            let (a, b) = (db.get(&a, &now)?, db.get(&b, &now)?);
            if a != b {
                return Err(self.wrong(pair, "holds half a batch"));
            }
            let Some(value) = a else { continue };
            let size = self.shared.stress.value_size;
            let Some(counter) = counter_of(self.id(pair), &value, size) else {
                return Err(self.wrong(pair, NEVER_WRITTEN));
            };
            let copy = db.get_cf(second(db)?, &copy_name(self.thread, pair), &now)?;
            if copy.is_some_and(|copy| copy != value) {
                return Err(self.wrong(pair, "holds a part of a batch in the other family"));
            }
            self.model.insert(pair, (counter, true));
        }
        for pair in 0..self.shared.stress.pairs {
            let found = db.get(&unlogged_name(self.thread, pair), &ReadOptions::default())?;
            let Some(value) = found else { continue };
            let size = self.shared.stress.value_size;
            let Some(counter) = counter_of(self.id(pair), &value, size) else {
                return Err(self.wrong(pair, "holds an unlogged value that was never written"));
            };
            self.unlogged.insert(pair, counter);
        }
        self.end_once(db)
    }

    /// Ends what a kill left between a put and its single deletion: with the same seed the key is put again.
    fn end_once(&self, db: &Db) -> Outcome<()> {
        let left = ReadOptions {
            prefix: Some(format!("once/{:03}/", self.thread).into_bytes()),
            ..ReadOptions::default()
        };
        let mut iter = db.iter(&left)?;
        iter.seek_to_first();
        while iter.valid() {
            if iter.value().iter().any(|&byte| byte != b'o') {
                return Err(Failure::new("a key that was put once has another value"));
            }
            db.single_delete(iter.key(), &WriteOptions::default())?;
            iter.next();
        }
        Ok(iter.status()?)
    }

    fn step(&mut self, db: &Db, pair: u64, draw: u32) -> Outcome<()> {
        match draw {
            0..=449 => self.write(db, pair, draw.is_multiple_of(10)),
            450..=499 => self.write_unlogged(db, pair),
            500..=549 => self.put_once(db),
            550..=879 => self.read(db, pair),
            880..=889 => self.read_bounded(db, pair),
            890..=892 => self.read_snapshot(db),
            893 => Ok(db.collect_blob_garbage()?),
            894..=979 => self.read_many(db, pair),
            980..=994 => self.scan(db),
            995..=997 => Ok(db.flush()?),
            998 => {
                let [from, to] = names(self.thread, pair);
                Ok(db.compact_range(Some(&from), Some(&to))?)
            }
            _ => Ok(db.sync_wal()?),
        }
    }

    fn write(&mut self, db: &Db, pair: u64, sync: bool) -> Outcome<()> {
        let (counter, _) = self.model.get(&pair).copied().unwrap_or((0, false));
        let counter = counter + 1;
        let delete = !self.shared.stress.ack && self.rng.random_range(0..5) == 0;
        let value = value_of(self.id(pair), counter, self.shared.stress.value_size);
        let mut batch = WriteBatch::new();
        for name in names(self.thread, pair) {
            if delete {
                batch.delete(&name);
            } else {
                batch.put(&name, &value);
            }
        }
        let copy = copy_name(self.thread, pair);
        match delete {
            true => batch.delete_cf(second(db)?, &copy),
            false => batch.put_cf(second(db)?, &copy, &value),
        }
        let options = WriteOptions {
            sync,
            disable_wal: false,
        };
        db.write(batch, &options)?;
        self.model.insert(pair, (counter, !delete));
        if sync && self.shared.stress.ack {
            line(format_args!("{} {counter}", self.id(pair)))?;
        }
        Ok(())
    }

    /// Writes a key that is durable only once it was flushed.
    fn write_unlogged(&mut self, db: &Db, pair: u64) -> Outcome<()> {
        let name = unlogged_name(self.thread, pair);
        let size = self.shared.stress.value_size;
        let known = self.unlogged.get(&pair).copied();
        let expected = known.map(|counter| value_of(self.id(pair), counter, size));
        if db.get(&name, &ReadOptions::default())? != expected {
            return Err(self.wrong(pair, "lost an unlogged value"));
        }
        let counter = known.unwrap_or(0) + 1;
        let unlogged = WriteOptions {
            sync: false,
            disable_wal: true,
        };
        db.put(&name, &value_of(self.id(pair), counter, size), &unlogged)?;
        self.unlogged.insert(pair, counter);
        Ok(())
    }

    /// Puts a key that never was and ends it with a single deletion, now and then after a flush.
    fn put_once(&mut self, db: &Db) -> Outcome<()> {
        let name = format!("once/{:03}/{:016x}", self.thread, self.once).into_bytes();
        self.once += 1;
        let value = vec![b'o'; self.shared.stress.value_size];
        db.put(&name, &value, &WriteOptions::default())?;
        if self.rng.random_range(0..50) == 0 {
            db.flush()?;
        }
        if db.get(&name, &ReadOptions::default())?.as_ref() != Some(&value) {
            return Err(self.wrong(self.once, "is not there after it was put once"));
        }
        db.single_delete(&name, &WriteOptions::default())?;
        match db.get(&name, &ReadOptions::default())? {
            None => Ok(()),
            Some(_) => Err(self.wrong(self.once, "is there after its single deletion")),
        }
    }

    /// Walks a few pairs between bounds, backward, and their copies in the other family.
    fn read_bounded(&self, db: &Db, from: u64) -> Outcome<()> {
        let [low, _] = names(self.thread, from);
        let [high, _] = names(self.thread, from + 20);
        let options = ReadOptions {
            lower_bound: Some(low),
            upper_bound: Some(high),
            ..ReadOptions::default()
        };
        let mut iter = db.iter(&options)?;
        let mut found = BTreeMap::new();
        iter.seek_to_last();
        while iter.valid() {
            found.insert(iter.key().to_vec(), iter.value().to_vec());
            iter.prev();
        }
        iter.status()?;
        for pair in from..from + 20 {
            let [name, _] = names(self.thread, pair);
            self.compare(pair, found.get(&name).map(Vec::as_slice))?;
        }
        let copy = copy_name(self.thread, from);
        let copy = db.get_cf(second(db)?, &copy, &ReadOptions::default())?;
        self.compare(from, copy.as_deref())
    }

    /// Takes a snapshot, writes on, and finds what was there.
    fn read_snapshot(&mut self, db: &Db) -> Outcome<()> {
        let options = ReadOptions {
            snapshot: Some(db.snapshot()),
            ..ReadOptions::default()
        };
        let then = self.model.clone();
        for _ in 0..20 {
            let pair = self.rng.random_range(0..self.shared.stress.pairs);
            self.write(db, pair, false)?;
        }
        let now = std::mem::replace(&mut self.model, then);
        let pairs: Vec<u64> = self.model.keys().copied().step_by(5).collect();
        for pair in pairs {
            for name in names(self.thread, pair) {
                let found = db.get(&name, &options)?;
                self.compare(pair, found.as_deref())?;
            }
        }
        self.model = now;
        Ok(())
    }

    fn expected(&self, pair: u64) -> Option<Vec<u8>> {
        let (counter, there) = *self.model.get(&pair)?;
        there.then(|| value_of(self.id(pair), counter, self.shared.stress.value_size))
    }

    fn wrong(&self, pair: u64, what: &str) -> Failure {
        Failure::new(format!("pair {} {what}", self.id(pair)))
    }

    fn compare(&self, pair: u64, found: Option<&[u8]>) -> Outcome<()> {
        self.shared.checks.fetch_add(1, Ordering::Relaxed);
        let expected = self.expected(pair);
        if found == expected.as_deref() {
            return Ok(());
        }
        let told = |value: Option<&[u8]>| {
            value.map_or("nothing".to_owned(), |value| {
                value[..value.len().min(16)].escape_ascii().to_string()
            })
        };
        let (found, expected) = (told(found), told(expected.as_deref()));
        Err(self.wrong(pair, &format!("holds {found}, but {expected} was written")))
    }

    fn read(&self, db: &Db, pair: u64) -> Outcome<()> {
        for name in names(self.thread, pair) {
            let found = db.get(&name, &ReadOptions::default())?;
            self.compare(pair, found.as_deref())?;
        }
        Ok(())
    }

    fn read_many(&self, db: &Db, from: u64) -> Outcome<()> {
        let pairs: Vec<u64> = (from..self.shared.stress.pairs)
            .step_by(7)
            .take(32)
            .collect();
        let names: Vec<Vec<u8>> = pairs
            .iter()
            .flat_map(|&pair| names(self.thread, pair))
            .collect();
        let keys: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        let found = db.multi_get(&keys, &ReadOptions::default())?;
        for (at, value) in found.iter().enumerate() {
            self.compare(pairs[at / 2], value.as_deref())?;
        }
        Ok(())
    }

    /// All pairs of this thread, in order, with nothing between them.
    fn scan(&self, db: &Db) -> Outcome<()> {
        for half in ["a", "b"] {
            let options = ReadOptions {
                prefix: Some(format!("{half}/{:03}/", self.thread).into_bytes()),
                snapshot: Some(db.snapshot()),
                ..ReadOptions::default()
            };
            let mut found = BTreeMap::new();
            let mut iter = db.iter(&options)?;
            iter.seek_to_first();
            while iter.valid() {
                found.insert(pair_of(iter.key())?, iter.value().to_vec());
                iter.next();
            }
            iter.status()?;
            let known = self.model.keys().chain(found.keys());
            for &pair in known {
                self.compare(pair, found.get(&pair).map(Vec::as_slice))?;
            }
        }
        Ok(())
    }
}
