//! Jobs on threads of callers (compactions and collections that were asked for, new column families) and a close on
//! another thread.
//!
//! As far as everybody else goes, they are background work. Closing waited for background work alone. It took the versions away from under such a job, which panicked or failed
//! with an error of another kind, and unlocked a directory in which the job went on making and removing files.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Rng, WatchFs, mount, sim_device, tiny};
use lavafs::FileSystemRef;
use lavakv::{Compression, Db, Env, EnvOptions, Error, Options, ReadOptions, WriteOptions};
use parking_lot::Mutex;

const AT: &str = "/db";
const KEYS: u64 = 300;

fn options() -> Options {
    Options {
        min_blob_size: 100,
        blob_file_size: 32 << 10,
        enable_blob_garbage_collection: false,
        blob_correlated_compaction_bytes: 0,
        disable_auto_compactions: true,
        write_buffer_size: 8 << 20,
        ..tiny()
    }
}

fn value(number: u64, round: u64) -> Vec<u8> {
    format!("{number} {round} ").repeat(60).into_bytes()
}

fn put(db: &Db, numbers: impl Iterator<Item = u64>, round: u64) {
    for number in numbers {
        let value = value(number, round);
        db.put(&number.to_be_bytes(), &value, &WriteOptions::default())
            .unwrap();
    }
    db.flush().unwrap();
}

type Job = fn(&Db) -> lavakv::Result<()>;

/// Does `job`, and before its first `op` on a file whose name ends in `suffix` has two other threads close the database.
/// Neither may come back before the job has ended: once the second did, as soon as the first had begun.
/// `prepare` leaves something for the job to do.
fn with_a_close_inside(op: &'static str, suffix: &'static str, prepare: Job, job: Job) {
    let closed = Arc::new(AtomicBool::new(false));
    let late = Arc::new(Mutex::new(Vec::new()));
    let watcher = {
        let (closed, late) = (Arc::clone(&closed), Arc::clone(&late));
        move |op: &str, path: &Path| {
            if closed.load(Ordering::SeqCst) {
                late.lock().push(format!("{op} {}", path.display()));
            }
        }
    };
    let fs = WatchFs::new(mount(sim_device(64 << 20, 512)), Box::new(watcher));
    let db = Db::open(fs.clone() as FileSystemRef, Path::new(AT), options()).unwrap();
    // Tables that know blob files by the names of their ancestors, and garbage.
    put(&db, 0..KEYS, 0);
    db.compact_range(None, None).unwrap();
    put(&db, (0..KEYS).step_by(3), 1);
    db.compact_range(None, None).unwrap();
    db.collect_blob_garbage().unwrap();
    assert!(db.stats().blobs.ancestors > 0);
    put(&db, (0..KEYS).step_by(5), 2);
    prepare(&db).unwrap();
    db.wait_for_background_work().unwrap();

    let closers = Arc::new(Mutex::new(Vec::new()));
    let begin = {
        let (db, closed, closers) = (db.clone(), Arc::clone(&closed), Arc::clone(&closers));
        move || {
            for _ in 0..2 {
                let (db, closed) = (db.clone(), Arc::clone(&closed));
                closers.lock().push(std::thread::spawn(move || {
                    db.close().unwrap();
                    closed.store(true, Ordering::SeqCst);
                }));
            }
            let patience = Instant::now() + Duration::from_millis(300);
            while !closed.load(Ordering::SeqCst) && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    };
    fs.before_next(op, suffix, begin);
    match job(&db) {
        Ok(()) | Err(Error::Busy { .. }) => {}
        Err(other) => panic!("{other}"),
    }
    let closers = std::mem::take(&mut *closers.lock());
    assert_eq!(closers.len(), 2, "the job came to the step");
    for closer in closers {
        closer.join().unwrap();
    }
    assert_eq!(
        *late.lock(),
        [] as [String; 0],
        "changes of a closed database"
    );
    for again in [job(&db), db.flush()] {
        assert!(matches!(again, Err(Error::Busy { .. })), "{again:?}");
    }
    drop(db);

    let db = Db::open(fs as FileSystemRef, Path::new(AT), options()).unwrap();
    for number in 0..KEYS {
        let round = match (number % 5, number % 3) {
            (0, _) => 2,
            (_, 0) => 1,
            _ => 0,
        };
        let found = db.get(&number.to_be_bytes(), &ReadOptions::default());
        assert_eq!(found.unwrap(), Some(value(number, round)));
    }
    db.verify().unwrap();
    db.verify_garbage().unwrap();
}

const NOTHING: Job = |_| Ok(());
const COMPACT: Job = |db| db.compact_range(None, None);
const COLLECT: Job = |db| db.collect_blob_garbage();

#[test]
fn a_close_waits_for_a_compaction_that_was_asked_for() {
    with_a_close_inside("create", ".sst", NOTHING, COMPACT);
    with_a_close_inside("sync_dir", "db", NOTHING, COMPACT);
}

#[test]
fn a_close_waits_for_a_collection_that_was_asked_for() {
    with_a_close_inside("create", ".blob", COMPACT, COLLECT);
    with_a_close_inside("sync_dir", "db", COMPACT, COLLECT);
}

#[test]
fn a_close_waits_for_a_new_column_family() {
    with_a_close_inside("create", ".tmp", NOTHING, |db| {
        db.create_cf("new").map(drop)
    });
}

/// The caller was unwound, and its inputs were listed as being collected for ever: who asked for a collection next never
/// came back.
#[test]
fn a_panic_in_a_collection_that_was_asked_for_poisons_the_database() {
    let fs = WatchFs::new(mount(sim_device(64 << 20, 512)), Box::new(|_, _| {}));
    let db = Db::open(fs.clone() as FileSystemRef, Path::new(AT), options()).unwrap();
    put(&db, 0..KEYS, 0);
    put(&db, 0..KEYS / 2, 1);
    db.compact_range(None, None).unwrap();
    fs.before_next("create", ".blob", || panic!("on purpose"));
    let poisoned = db.collect_blob_garbage().unwrap_err();
    assert!(matches!(poisoned, Error::Poisoned { .. }), "{poisoned}");
    for again in [db.collect_blob_garbage(), db.compact_range(None, None)] {
        assert!(matches!(again, Err(Error::Poisoned { .. })), "{again:?}");
    }
    drop(db);
    let db = Db::open(fs as FileSystemRef, Path::new(AT), options()).unwrap();
    db.collect_blob_garbage().unwrap();
    db.verify_garbage().unwrap();
}

/// It merged what was flushed while it merged, again and again, and its caller never came back.
#[test]
fn a_compaction_that_was_asked_for_ends_while_others_write() {
    let fs = mount(sim_device(1 << 30, 512));
    let options = Options {
        level0_slowdown_writes_trigger: 1000,
        level0_stop_writes_trigger: 1000,
        soft_pending_compaction_bytes_limit: 0,
        hard_pending_compaction_bytes_limit: 0,
        min_blob_size: 0,
        ..tiny()
    };
    let db = Db::open(fs, Path::new(AT), options).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..2_u64 {
            let (db, stop) = (&db, &stop);
            scope.spawn(move || {
                let mut rng = Rng(writer);
                while !stop.load(Ordering::Relaxed) {
                    let key = rng.below(3000).to_be_bytes();
                    let value: Vec<u8> = (0..300).map(|_| rng.next() as u8).collect();
                    db.put(&key, &value, &WriteOptions::default()).unwrap();
                }
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        let job = scope.spawn(|| db.compact_range(None, None));
        let patience = Instant::now() + Duration::from_secs(60);
        while !job.is_finished() && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        let ended = job.is_finished();
        stop.store(true, Ordering::Relaxed);
        job.join().unwrap().unwrap();
        assert!(ended, "it ended with the writers alone");
    });
}

/// A close waited in the writers' queue behind one that waited for a flush, for as long as the rate limiter had that wait.
#[test]
fn a_close_does_not_wait_until_a_stalled_writer_may_go_on() {
    let fs = mount(sim_device(64 << 20, 512));
    let rate_bytes_per_s = 1;
    let env = Env::with_options(EnvOptions {
        rate_bytes_per_s,
        ..EnvOptions::default()
    });
    let options = Options {
        env: Some(env),
        compression: Compression::None,
        write_buffer_size: 256 << 10,
        target_file_size_base: 1 << 20,
        min_blob_size: 0,
        ..tiny()
    };
    let db = Db::open(fs.clone(), Path::new(AT), options.clone()).unwrap();
    let (tell, done) = std::sync::mpsc::channel();
    let writer = db.clone();
    let writing = std::thread::spawn(move || {
        let mut written = 0_u64;
        let value = |number| value(number, 1);
        let unsynced = WriteOptions::default();
        while let Ok(()) = writer.put(&written.to_be_bytes(), &value(written), &unsynced) {
            written += 1;
        }
        written
    });
    let mut before = u64::MAX;
    while before != db.tickers().keys_written {
        before = db.tickers().keys_written;
        std::thread::sleep(Duration::from_millis(300));
    }
    std::thread::spawn(move || tell.send(db.close()).unwrap());
    let closed = done.recv_timeout(Duration::from_secs(60));
    closed.expect("the close ends").unwrap();
    let written = writing.join().unwrap();
    let options = Options {
        env: None,
        ..options
    };
    let db = Db::open(fs, Path::new(AT), options).unwrap();
    for number in 0..written {
        let found = db.get(&number.to_be_bytes(), &ReadOptions::default());
        assert_eq!(found.unwrap(), Some(value(number, 1)));
    }
}

/// Every later writer panicked too, and so did the close.
#[test]
fn a_panic_of_whoever_leads_the_writers_poisons_the_database() {
    let fs = WatchFs::new(mount(sim_device(64 << 20, 512)), Box::new(|_, _| {}));
    let db = Db::open(fs.clone() as FileSystemRef, Path::new(AT), options()).unwrap();
    db.put(b"a", b"1", &WriteOptions::synced()).unwrap();
    fs.before_next("append", ".wal", || panic!("on purpose"));
    for key in [b"b", b"c"] {
        let poisoned = db.put(key, b"2", &WriteOptions::synced()).unwrap_err();
        assert!(matches!(poisoned, Error::Poisoned { .. }), "{poisoned}");
        assert!(poisoned.to_string().contains("on purpose"), "{poisoned}");
    }
    for again in [db.flush(), db.close()] {
        assert!(matches!(again, Err(Error::Poisoned { .. })), "{again:?}");
    }
    drop(db);
    let db = Db::open(fs as FileSystemRef, Path::new(AT), options()).unwrap();
    let has = |key: &[u8]| db.get(key, &ReadOptions::default()).unwrap().is_some();
    assert!(has(b"a") && !has(b"c"));
}
