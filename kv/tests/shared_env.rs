//! Many databases in one process: one memory budget and one bandwidth for all of them.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Rng, WatchFs, copy_dir, host, seed, tiny};
use lavafs::FileSystemRef;
use lavakv::{
    BlockCache, Compression, Db, Env, EnvOptions, Error, Options, PrepopulateBlockCache, Priority,
    ReadOptions, WriteBatch, WriteOptions,
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
    // A background thread may hold what it looked at a moment longer.
    let begin = Instant::now();
    while ledger.usage().memtables + ledger.usage().io > 0 {
        let usage = ledger.usage();
        assert!(begin.elapsed() < Duration::from_secs(60), "left: {usage:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
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
    assert!(begin.elapsed() < Duration::from_secs(60));
    let _ = compaction.join().unwrap();
}

fn env_with(memory_limit: usize) -> Arc<Env> {
    Env::with_options(EnvOptions {
        memory_limit,
        ..EnvOptions::default()
    })
}

/// Memtables that are flushed for want of memory alone.
fn large_buffers() -> Options {
    Options {
        create_if_missing: true,
        write_buffer_size: 64 << 20,
        min_blob_size: 0,
        ..Options::default()
    }
}

#[test]
fn the_memtables_of_a_read_only_view_have_nobody_flushed_all_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let at = Path::new("/viewed");
    let db = Db::open(fs.clone(), at, large_buffers()).unwrap();
    for number in 0..5_000_u64 {
        let options = WriteOptions::default();
        db.put(&number.to_be_bytes(), &[1; 1000], &options).unwrap();
    }
    db.close().unwrap();
    drop(db);
    let env = env_with(16 << 20);
    let shared = Options {
        env: Some(Arc::clone(&env)),
        ..large_buffers()
    };
    let view = Db::open_read_only(fs.clone(), at, shared.clone()).unwrap();
    let usage = env.ledger().unwrap().usage();
    assert!(usage.memtables > usage.limit / 4, "{usage:?}");
    let db = Db::open(fs, Path::new("/db"), shared).unwrap();
    for number in 0..60_u64 {
        let options = WriteOptions::default();
        db.put(&number.to_be_bytes(), &[2; 10_000], &options)
            .unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(db.tickers().flushes, 0);
    drop(view);
}

#[test]
fn many_families_with_a_little_each_stay_within_the_limit_and_do_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let env = env_with(16 << 20);
    let options = Options {
        env: Some(Arc::clone(&env)),
        ..large_buffers()
    };
    let db = Db::open(host(dir.path()), Path::new("/db"), options).unwrap();
    let family = |number| db.create_cf(&format!("family {number}")).unwrap();
    let families: Vec<_> = (0..40).map(family).collect();
    let begin = Instant::now();
    for number in 0..1_200_u64 {
        let mut batch = WriteBatch::new();
        let cf = families[number as usize % families.len()];
        batch.put_cf(cf, &number.to_be_bytes(), &[3; 8_000]);
        db.write(batch, &WriteOptions::default()).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(120), "write {number}");
    }
    assert!(db.tickers().flushes > 0);
}

/// What a flush and a compaction keep for the cache, of values that zstd makes very short, is charged until it is
/// there.
#[test]
fn blocks_that_jobs_keep_for_the_cache_are_charged_as_long_as_they_are_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let env = env_with(16 << 20);
    let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
    let charged = Arc::new(AtomicUsize::new(0));
    {
        let (env, charged) = (Arc::clone(&env), Arc::clone(&charged));
        fs.fail_where(move |op, path| {
            // The job's other buffers are gone by then.
            if op == "fdatasync" && path.to_string_lossy().contains("MANIFEST") {
                charged.fetch_max(env.ledger().unwrap().usage().io, Ordering::Relaxed);
            }
            None
        });
    }
    let options = Options {
        env: Some(Arc::clone(&env)),
        compression: Compression::Zstd { level: 1 },
        prepopulate_block_cache: PrepopulateBlockCache::FlushOnly,
        disable_auto_compactions: true,
        ..large_buffers()
    };
    let db = Db::open(fs as FileSystemRef, Path::new("/db"), options).unwrap();
    let put = |number: u64, byte: u8| {
        let options = WriteOptions::default();
        db.put(&number.to_be_bytes(), &[byte; 1000], &options)
            .unwrap();
    };
    (0..1_500).for_each(|number| put(number, 1));
    db.flush().unwrap();
    assert!(charged.swap(0, Ordering::Relaxed) > 1 << 20);
    for number in 0..1_500_u64 {
        db.get(&number.to_be_bytes(), &ReadOptions::default())
            .unwrap();
    }
    (1_500..1_510).for_each(|number| put(number, 2));
    put(0, 2);
    db.flush().unwrap();
    charged.store(0, Ordering::Relaxed);
    db.compact_range(None, None).unwrap();
    let table_bytes: u64 = db.stats().levels.iter().map(|level| level.bytes).sum();
    assert!(table_bytes < 1 << 18, "{table_bytes}");
    assert!(charged.load(Ordering::Relaxed) > 1 << 20);
}

/// What was replayed so far was flushed, and the manifest said then that no log was needed any more.
#[test]
fn a_database_that_is_being_opened_is_not_flushed_for_the_memory_of_another() {
    const KEYS: u64 = 12_000;
    let dir = tempfile::tempdir().unwrap();
    let at = Path::new("/db");
    let put = |db: &Db, number: u64| {
        let options = WriteOptions::default();
        db.put(&number.to_be_bytes(), &[1; 1000], &options).unwrap();
    };
    let db = Db::open(host(dir.path()), at, large_buffers()).unwrap();
    (0..KEYS).for_each(|number| put(&db, number));
    db.close().unwrap();
    drop(db);
    let env = env_with(16 << 20);
    let shared = Options {
        env: Some(Arc::clone(&env)),
        ..large_buffers()
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Db::open(host(elsewhere.path()), at, shared.clone()).unwrap();
    let copies = tempfile::tempdir().unwrap();
    let copied = Arc::new(AtomicUsize::new(0));
    let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
    {
        let (copied, live) = (Arc::clone(&copied), dir.path().to_path_buf());
        let copies = copies.path().to_path_buf();
        fs.fail_where(move |op, path| {
            let usage = env.ledger().unwrap().usage();
            let replays = op == "read" && path.extension().is_some_and(|kind| kind == "wal");
            if replays && usage.memtables > usage.limit / 4 && copied.load(Ordering::Relaxed) < 3 {
                put(&other, 0);
                std::thread::sleep(Duration::from_millis(100));
                let number = copied.fetch_add(1, Ordering::Relaxed);
                copy_dir(&live, &copies.join(number.to_string()));
            }
            None
        });
    }
    let db = Db::open(fs as FileSystemRef, at, shared).unwrap();
    let check = |db: &Db, place: &str| {
        for number in 0..KEYS {
            let found = db.get(&number.to_be_bytes(), &ReadOptions::default());
            assert!(found.unwrap().is_some(), "{place}: {number}");
        }
    };
    check(&db, "opened");
    let copied = copied.load(Ordering::Relaxed);
    assert!(copied > 0);
    for number in 0..copied {
        let fs = host(&copies.path().join(number.to_string()));
        let db = Db::open(fs, at, large_buffers()).unwrap();
        check(&db, "after a crash");
    }
}
