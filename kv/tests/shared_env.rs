//! Many databases in one process: one memory budget and one bandwidth for all of them.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Rng, host, seed, tiny};
use lavakv::{
    BlockCache, Db, Env, EnvOptions, Error, Options, Priority, ReadOptions, WriteOptions,
};

const LIMIT: usize = 24 << 20;

fn value(number: u64) -> Vec<u8> {
    vec![number as u8; 200]
}

#[test]
fn a_hundred_databases_hold_one_budget() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let env = Env::with_options(EnvOptions {
        memory_limit: LIMIT,
        ..EnvOptions::default()
    });
    let options = Options {
        env: Some(env.clone()),
        // Alone the buffers could take 800 MiB.
        write_buffer_size: 8 << 20,
        max_total_wal_size: 1 << 30,
        histograms: false,
        ..tiny()
    };
    let open = |number: u64| {
        let at = PathBuf::from(format!("/db-{number}"));
        Db::open(fs.clone(), &at, options.clone()).unwrap()
    };
    let dbs: Vec<Db> = (0..100).map(open).collect();
    let ledger = env.ledger().unwrap();
    let done = AtomicBool::new(false);
    let seed = seed();
    let peak = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = ledger.usage();
            while !done.load(Ordering::Relaxed) {
                let usage = ledger.usage();
                if usage.total() > peak.total() {
                    peak = usage;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            peak
        });
        let writers: Vec<_> = (0..2_u64)
            .map(|writer| {
                let dbs = &dbs;
                scope.spawn(move || {
                    let mut rng = Rng(seed ^ writer);
                    for step in 0..60_000 {
                        // Half of the writes go to two databases, the others everywhere.
                        let at = match rng.below(2) {
                            0 => writer,
                            _ => rng.below(100),
                        };
                        let key = rng.below(3000);
                        let db = &dbs[at as usize];
                        let name = key.to_be_bytes();
                        if step % 4 == 0 {
                            let found = db.get(&name, &ReadOptions::default()).unwrap();
                            assert!(found.is_none_or(|found| found == value(key)));
                        } else {
                            db.put(&name, &value(key), &WriteOptions::default())
                                .unwrap();
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    println!("peak {peak:?}");
    assert!(peak.total() <= LIMIT + LIMIT / 10, "{peak:?}");
    assert!(peak.memtables > LIMIT / 10, "memtables were charged");
    let flushes: u64 = dbs.iter().map(|db| db.tickers().flushes).sum();
    assert!(flushes > 0, "memory was the only reason to flush");
    // Reading everything fills the cache, and no more.
    for db in &dbs {
        db.flush().unwrap();
        let mut iter = db.iter(&ReadOptions::default()).unwrap();
        iter.seek_to_first();
        while iter.valid() {
            iter.next();
        }
        iter.status().unwrap();
        assert!(ledger.usage().total() <= LIMIT + LIMIT / 10);
    }
    assert!(ledger.usage().cache > 0);
    for db in dbs {
        db.close().unwrap();
        drop(db);
    }
    let left = ledger.usage();
    assert_eq!((left.memtables, left.io), (0, 0), "everything was returned");
}

#[test]
fn a_budget_takes_no_other_cache_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        env: Some(Env::with_options(EnvOptions {
            memory_limit: LIMIT,
            ..EnvOptions::default()
        })),
        block_cache: Some(BlockCache::new(1 << 20)),
        ..tiny()
    };
    let refused = Db::open(host(dir.path()), &PathBuf::from("/db"), options);
    assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
}

#[test]
fn flushes_and_compactions_keep_to_the_rate() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::with_options(EnvOptions {
        rate_bytes_per_s: 2 << 20,
        ..EnvOptions::default()
    });
    let options = Options {
        env: Some(Arc::clone(&env)),
        write_buffer_size: 4 << 20,
        target_file_size_base: 1 << 20,
        compression: lavakv::Compression::None,
        ..tiny()
    };
    let db = Db::open(host(dir.path()), &PathBuf::from("/db"), options).unwrap();
    let begin = Instant::now();
    for number in 0..10_000_u32 {
        db.put(&number.to_be_bytes(), &[7; 300], &WriteOptions::default())
            .unwrap();
    }
    db.flush().unwrap();
    let written = env.rate_limiter().bytes_through(Priority::High);
    assert!(written > 2 << 20, "{written} bytes of flushes");
    let least = Duration::from_secs_f64((written - (1 << 19)) as f64 / f64::from(2 << 20));
    assert!(
        begin.elapsed() >= least,
        "{:?} for {written}",
        begin.elapsed()
    );
    // Closing does not wait for the rate.
    env.rate_limiter().set_bytes_per_s(1);
    let closing = db.clone();
    let compaction = std::thread::spawn(move || closing.compact_range(None, None));
    std::thread::sleep(Duration::from_millis(100));
    let begin = Instant::now();
    db.close().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5));
    let _ = compaction.join().unwrap();
}
