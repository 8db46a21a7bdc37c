//! What one thread of a benchmark does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lavakv::{Db, ReadOptions, WriteBatch, WriteOptions};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::keys::{Shuffled, Values, set_key};
use super::pace::Pace;
use super::{Benchmark, KvBench};
use crate::bench::report::Latency;
use crate::cli::{Outcome, Progress};

/// Pairs of a batch of `fillbatch`.
const FILL_BATCH: usize = 1000;

/// Bytes of a value of `fill100K`.
const VALUE_100K: usize = 100_000;

/// Which keys are written.
enum Order {
    Ascending,
    Random,
    /// Each once.
    Once(Shuffled),
}

/// What an operation on a random key is.
#[derive(Clone, Copy)]
enum Mix {
    /// A read, then a write.
    Update,
    /// A read for this part of the operations, else a write.
    Reads(f64),
}

/// One thread's state and what it measured.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    bench: &'a KvBench,
    db: &'a Db,
    progress: &'a Progress,
    pace: &'a Pace,
    rng: SmallRng,
    values: Values,
    /// Bytes of a value, and pairs of one batch: the flags', but where the benchmark says otherwise.
    value_size: usize,
    batch_size: usize,
    key: Vec<u8>,
    /// Keys are drawn from 0 to here, exclusive.
    num: u64,
    ends: Option<Instant>,
    /// Where interval reports find the operations of all threads.
    pub(super) reported: Option<&'a AtomicU64>,
    /// Latency of each operation; of a write under a rate limit from when it was due, or a stall
    /// would be told by one write alone.
    pub(super) latency: Latency,
    /// Latency of each write under a rate limit from when it was asked for, as db_bench counts.
    pub(super) service: Latency,
    /// Operations done.
    pub(super) ops: u64,
    /// Bytes of keys and values written or found.
    pub(super) bytes: u64,
    /// Keys found by reads.
    pub(super) found: u64,
}

impl<'a> Worker<'a> {
    /// The worker with number `thread`, which draws its own keys and values from the seed.
    pub(super) fn new(
        bench: &'a KvBench,
        db: &'a Db,
        progress: &'a Progress,
        pace: &'a Pace,
        num: u64,
        seed: u64,
    ) -> Self {
        Worker {
            bench,
            db,
            progress,
            pace,
            rng: SmallRng::seed_from_u64(seed),
            values: Values::new(seed, bench.compression_ratio, bench.value_size),
            value_size: bench.value_size,
            batch_size: bench.batch_size,
            key: vec![0; bench.key_size],
            num,
            ends: None,
            reported: None,
            latency: Latency::default(),
            service: Latency::default(),
            ops: 0,
            bytes: 0,
            found: 0,
        }
    }

    /// Runs the benchmark's share of this thread.
    pub(super) fn run(&mut self, benchmark: Benchmark) -> Outcome<()> {
        let bench = self.bench;
        if bench.duration > 0 && !benchmark.is_in_order() {
            self.ends = Some(Instant::now() + Duration::from_secs(bench.duration));
        }
        let writes = match bench.writes {
            ..=0 => self.num,
            writes => writes as u64,
        };
        let sync = bench.sync || benchmark == Benchmark::FillSync;
        match benchmark {
            Benchmark::FillSeq => self.write(writes, sync, Order::Ascending),
            Benchmark::FillBatch => {
                self.batch_size = FILL_BATCH;
                self.write(writes, sync, Order::Ascending)
            }
            Benchmark::FillUniqueRandom => {
                let numbers = Shuffled::new(self.rng.random(), self.num.max(1));
                self.write(writes.min(self.num), sync, Order::Once(numbers))
            }
            Benchmark::Fill100K => {
                self.value_size = VALUE_100K;
                self.values = Values::new(self.rng.random(), bench.compression_ratio, VALUE_100K);
                self.write(writes, sync, Order::Random)
            }
            Benchmark::FillRandom | Benchmark::FillSync | Benchmark::Overwrite => {
                self.write(writes, sync, Order::Random)
            }
            Benchmark::UpdateRandom => self.mixed(bench.read_writes(), Mix::Update),
            Benchmark::ReadRandomWriteRandom => {
                let reads = f64::from(bench.readwritepercent) / 100.0;
                self.mixed(bench.read_writes(), Mix::Reads(reads))
            }
            Benchmark::ReadHot => {
                // As in db_bench: a hundredth of the keys.
                self.num = (self.num / 100).max(1);
                self.read(bench.count(bench.reads))
            }
            Benchmark::NewIterator => self.new_iterators(bench.count(bench.reads)),
            Benchmark::DeleteSeq => self.delete(bench.count(bench.deletes), sync, true),
            Benchmark::DeleteRandom => self.delete(bench.count(bench.deletes), sync, false),
            Benchmark::ReadRandom | Benchmark::ReadWhileWriting => {
                self.read(bench.count(bench.reads))
            }
            Benchmark::ReadMissing => {
                // As in db_bench: a byte more than any key that was written has.
                self.key.push(0);
                self.read(bench.count(bench.reads))
            }
            Benchmark::MultiReadRandom => self.multi_read(bench.count(bench.reads)),
            Benchmark::ReadSeq => self.read_in_order(bench.count(bench.reads), false),
            Benchmark::ReadReverse => self.read_in_order(bench.count(bench.reads), true),
            Benchmark::SeekRandom | Benchmark::SeekWhileWriting => {
                self.seek(bench.count(bench.reads))
            }
            Benchmark::Compact => self.once(|db| Ok(db.compact_range(None, None)?)),
            Benchmark::Flush => self.once(|db| Ok(db.flush()?)),
            Benchmark::WaitForCompaction => self.once(|db| Ok(db.wait_for_background_work()?)),
            Benchmark::Verify => self.once(|db| Ok(db.verify().map(|_| ())?)),
            Benchmark::Stats | Benchmark::LevelStats => Ok(()),
        }
    }

    /// Writes random pairs, at most at the rate limit, until `stop`.
    pub(super) fn write_beside(&mut self, stop: &AtomicBool) -> Outcome<()> {
        let options = self.write_options(self.bench.sync);
        let bytes = (self.bench.key_size + self.bench.value_size) as u64;
        while let Some(due) = self.pace.wait_unless(stop, bytes) {
            let asked = Instant::now();
            self.random_key();
            let value = self.values.next(self.bench.value_size);
            self.db.put(&self.key, value, &options)?;
            self.bytes += bytes;
            self.ops += 1;
            self.latency.record(due.elapsed());
            self.service.record(asked.elapsed());
        }
        Ok(())
    }

    fn write_options(&self, sync: bool) -> WriteOptions {
        WriteOptions {
            sync,
            disable_wal: self.bench.disable_wal,
        }
    }

    /// True while there is more to do of `limit` operations or of the duration.
    fn goes_on(&self, limit: u64) -> bool {
        match self.ends {
            Some(ends) => Instant::now() < ends,
            None => self.ops < limit,
        }
    }

    fn random_key(&mut self) {
        let number = self.rng.random_range(0..self.num);
        set_key(&mut self.key, number);
    }

    /// Counts `ops` operations that took since `started` together.
    fn done(&mut self, started: Instant, ops: u64) {
        self.latency.record_many(started.elapsed(), ops);
        self.ops += ops;
        self.progress.add(ops);
        if let Some(reported) = self.reported {
            reported.fetch_add(ops, Ordering::Relaxed);
        }
    }

    fn write(&mut self, limit: u64, sync: bool, mut order: Order) -> Outcome<()> {
        let options = self.write_options(sync);
        let pair = (self.bench.key_size + self.value_size) as u64;
        while self.goes_on(limit) {
            let pairs = (self.batch_size as u64).min(match self.ends {
                Some(_) => u64::MAX,
                None => limit - self.ops,
            });
            let Some(due) = self.pace.wait(pairs * pair, self.ends) else {
                break;
            };
            let asked = Instant::now();
            let mut batch = WriteBatch::new();
            for index in 0..pairs {
                let number = match &mut order {
                    Order::Ascending => self.ops + index,
                    Order::Once(numbers) => numbers.next(),
                    Order::Random => self.rng.random_range(0..self.num),
                };
                set_key(&mut self.key, number);
                let value = self.values.next(self.value_size);
                batch.put(&self.key, value);
            }
            self.db.write(batch, &options)?;
            self.bytes += pairs * pair;
            if self.pace.limits() {
                self.service.record_many(asked.elapsed(), pairs);
                self.done(due, pairs);
            } else {
                self.done(asked, pairs);
            }
        }
        Ok(())
    }

    /// Reads and writes of random keys. What a write waited for its rate is not its latency, as it is
    /// not told apart from the reads.
    fn mixed(&mut self, limit: u64, mix: Mix) -> Outcome<()> {
        let options = self.write_options(self.bench.sync);
        let pair = (self.bench.key_size + self.value_size) as u64;
        while self.goes_on(limit) {
            let reads = match mix {
                Mix::Update => true,
                Mix::Reads(part) => self.rng.random_bool(part),
            };
            let writes = !reads || matches!(mix, Mix::Update);
            if writes && self.pace.wait(pair, self.ends).is_none() {
                break;
            }
            let started = Instant::now();
            self.random_key();
            if reads && let Some(value) = self.db.get(&self.key, &ReadOptions::default())? {
                self.found += 1;
                self.bytes += (self.key.len() + value.len()) as u64;
            }
            if writes {
                let value = self.values.next(self.value_size);
                self.db.put(&self.key, value, &options)?;
                self.bytes += pair;
            }
            self.done(started, 1);
        }
        Ok(())
    }

    fn new_iterators(&mut self, limit: u64) -> Outcome<()> {
        while self.goes_on(limit) {
            let started = Instant::now();
            drop(self.db.iter(&ReadOptions::default())?);
            self.done(started, 1);
        }
        Ok(())
    }

    fn delete(&mut self, limit: u64, sync: bool, in_order: bool) -> Outcome<()> {
        let options = self.write_options(sync);
        while self.goes_on(limit) {
            let started = Instant::now();
            if in_order {
                set_key(&mut self.key, self.ops);
            } else {
                self.random_key();
            }
            self.db.delete(&self.key, &options)?;
            self.done(started, 1);
        }
        Ok(())
    }

    fn read(&mut self, limit: u64) -> Outcome<()> {
        let options = ReadOptions::default();
        while self.goes_on(limit) {
            let started = Instant::now();
            self.random_key();
            if let Some(value) = self.db.get(&self.key, &options)? {
                self.found += 1;
                self.bytes += (self.key.len() + value.len()) as u64;
            }
            self.done(started, 1);
        }
        Ok(())
    }

    fn multi_read(&mut self, limit: u64) -> Outcome<()> {
        let options = ReadOptions::default();
        let mut keys = vec![0; self.bench.key_size * self.bench.batch_size];
        while self.goes_on(limit) {
            let started = Instant::now();
            for key in keys.chunks_exact_mut(self.bench.key_size) {
                set_key(key, self.rng.random_range(0..self.num));
            }
            let wanted: Vec<&[u8]> = keys.chunks_exact(self.bench.key_size).collect();
            let values = self.db.multi_get(&wanted, &options)?;
            for value in values.iter().flatten() {
                self.found += 1;
                self.bytes += (self.bench.key_size + value.len()) as u64;
            }
            self.done(started, self.bench.batch_size as u64);
        }
        Ok(())
    }

    fn read_in_order(&mut self, limit: u64, backward: bool) -> Outcome<()> {
        let mut pairs = self.db.iter(&ReadOptions::default())?;
        match backward {
            true => pairs.seek_to_last(),
            false => pairs.seek_to_first(),
        }
        while self.ops < limit && pairs.valid() {
            let started = Instant::now();
            self.bytes += (pairs.key().len() + pairs.value().len()) as u64;
            self.found += 1;
            match backward {
                true => pairs.prev(),
                false => pairs.next(),
            }
            self.done(started, 1);
        }
        Ok(pairs.status()?)
    }

    fn seek(&mut self, limit: u64) -> Outcome<()> {
        while self.goes_on(limit) {
            let started = Instant::now();
            self.random_key();
            let mut pairs = self.db.iter(&ReadOptions::default())?;
            pairs.seek(&self.key);
            if pairs.valid() && pairs.key() == self.key {
                self.found += 1;
            }
            let mut steps = 0;
            while steps < self.bench.seek_nexts && pairs.valid() {
                self.bytes += (pairs.key().len() + pairs.value().len()) as u64;
                match self.bench.reverse_iterator {
                    true => pairs.prev(),
                    false => pairs.next(),
                }
                steps += 1;
            }
            pairs.status()?;
            self.done(started, 1);
        }
        Ok(())
    }

    fn once(&mut self, work: impl FnOnce(&Db) -> Outcome<()>) -> Outcome<()> {
        let started = Instant::now();
        work(self.db)?;
        self.done(started, 1);
        Ok(())
    }
}
