//! What the log thread, which ends one log and makes the next, leaves to everybody else when it is slow, fails or
//! panics; and what changes of the structure leave to a close that comes in between.
//!
//! Power cuts are those of a simulated device below; faults and pauses are put in above the
//! filesystem, at one chosen step of one chosen thread.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::{WatchFs, copy_dir, host, mount, sim_device, tiny};
use lavafs::FileSystemRef;
use lavafs::device::SimDevice;
use lavakv::{
    CfId, Db, Env, Error, EventListener, FileEvent, Options, ReadOptions, WriteBatch, WriteOptions,
};
use parking_lot::Mutex;

const AT: &str = "/db";
const PATIENCE: Duration = Duration::from_secs(60);

const UNSYNCED: WriteOptions = WriteOptions {
    sync: false,
    disable_wal: false,
};

fn options() -> Options {
    Options {
        write_buffer_size: 64 << 10,
        disable_auto_compactions: true,
        env: Some(Env::new(1, 1)),
        ..tiny()
    }
}

fn key(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

fn runs_on(thread: &str) -> bool {
    std::thread::current().name() == Some(thread)
}

/// Every log of the directory, ascending.
fn logs(fs: &FileSystemRef) -> Vec<PathBuf> {
    let entries = fs.list(Path::new(AT)).unwrap();
    let paths = entries.iter().map(|entry| Path::new(AT).join(&entry.name));
    let mut logs: Vec<PathBuf> = paths.filter(|path| is_log(path)).collect();
    logs.sort();
    logs
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "wal")
}

/// The logs that were put to use, but for the first one of an opening.
#[derive(Default, Debug)]
struct Used(Mutex<Vec<PathBuf>>);

impl EventListener for Used {
    fn on_file_created(&self, file: &FileEvent) {
        self.0.lock().push(file.path.clone());
    }
}

/// A database whose writes go to two families, each batch to both; only the first one's memtable fills.
struct World {
    fs: Arc<WatchFs>,
    seen: FileSystemRef,
    db: Db,
    second: CfId,
    count: u32,
}

/// The log thread, which waits at a step.
struct Held {
    stuck: mpsc::Receiver<()>,
    /// Dropped before the database, which waits for the log thread.
    release: Option<mpsc::Sender<()>>,
}

impl Held {
    fn wait(&self) {
        self.stuck.recv_timeout(PATIENCE).unwrap();
    }

    fn release(&mut self) {
        self.release = None;
    }
}

impl World {
    fn on(inner: FileSystemRef) -> World {
        World::with(inner, options())
    }

    fn with(inner: FileSystemRef, options: Options) -> World {
        let fs = WatchFs::new(inner, Box::new(|_, _| {}));
        let seen: FileSystemRef = fs.clone();
        let db = Db::open(seen.clone(), Path::new(AT), options).unwrap();
        let second = db.create_cf("second").unwrap();
        World {
            fs,
            seen,
            db,
            second,
            count: 0,
        }
    }

    fn batch(&self, number: u32) -> WriteBatch {
        let mut batch = WriteBatch::new();
        batch.put(&key(number), &[7; 500]);
        batch.put_cf(self.second, &key(number), b"");
        batch
    }

    fn write(&mut self, write: &WriteOptions) {
        self.db.write(self.batch(self.count), write).unwrap();
        self.count += 1;
    }

    /// Writes until the next log is there.
    fn write_until_spare(&mut self) {
        while logs(&self.seen).len() < 2 {
            self.write(&UNSYNCED);
            self.db.wait_for_background_work().unwrap();
            assert!(self.count < 10_000, "no spare log");
        }
    }

    /// Writes until it is in use.
    fn write_until_switch(&mut self) {
        let before = self.db.tickers().spare_logs;
        while self.db.tickers().spare_logs == before {
            self.write(&UNSYNCED);
            assert!(self.count < 10_000, "no switch");
        }
    }

    /// Switches to a spare log, and has the log thread wait before its next `op` on the log before.
    fn switch_and_hold(&mut self, op: &'static str, panics: bool) -> Held {
        self.write_until_spare();
        let held = self.hold(op, panics);
        self.write_until_switch();
        held.wait();
        held
    }

    /// Has the log thread wait before its next `op` on a log; then it panics, if it is told to. Flushes, which would
    /// close a log too, make no table before it is there.
    fn hold(&self, op: &'static str, panics: bool) -> Held {
        let (tell, stuck) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(Some(released));
        let is_there = AtomicBool::new(false);
        self.fs.fail_where(move |now, path| {
            if now == op && is_log(path) && runs_on("lavakv-log") {
                let released = released.lock().take();
                if let Some(released) = released {
                    is_there.store(true, Ordering::SeqCst);
                    tell.send(()).unwrap();
                    let _ = released.recv();
                    assert!(!panics, "on purpose");
                }
            }
            let begin = Instant::now();
            let flushes = now == "create" && !is_log(path);
            while flushes && !is_there.load(Ordering::SeqCst) && begin.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(1));
            }
            None
        });
        Held {
            stuck,
            release: Some(release),
        }
    }
}

/// Asserts that both families have the keys below `count`, and no other.
fn assert_has(db: &Db, count: u32) {
    for name in ["default", "second"] {
        let cf = db.cf(name).unwrap();
        assert_eq!(keys(db, cf), (0..count).collect::<Vec<_>>(), "of {name}");
    }
}

fn keys(db: &Db, cf: CfId) -> Vec<u32> {
    let mut iter = db.iter_cf(cf, &ReadOptions::default()).unwrap();
    let mut keys = Vec::new();
    iter.seek_to_first();
    while iter.valid() {
        keys.push(u32::from_be_bytes(iter.key().try_into().unwrap()));
        iter.next();
    }
    iter.status().unwrap();
    keys
}

fn open(fs: FileSystemRef) -> Db {
    Db::open(fs, Path::new(AT), options()).unwrap()
}

fn crashed(device: &SimDevice, seed: u64) -> FileSystemRef {
    mount(Arc::new(device.crash(seed)))
}

/// A synced write waits for the log before to be closed. If what was held before it then finds no
/// space, it fails: it must not be among what is held any more, because the next write has its sequence number.
#[test]
fn a_synced_write_that_failed_behind_held_ones_is_in_no_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::on(host(dir.path()));
    let mut held = world.switch_and_hold("fsync", false);
    world.write(&UNSYNCED);
    world.fs.fill_for(Some(".wal"));
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| {
            let batch = world.batch(u32::MAX);
            world.db.write(batch, &WriteOptions::synced()).unwrap_err()
        });
        std::thread::sleep(Duration::from_millis(50));
        held.release();
        let refused = refused.join().unwrap();
        assert!(refused.to_string().contains("no space"), "{refused}");
    });
    world.fs.fill_for(None);
    world.write(&UNSYNCED);
    world.write(&WriteOptions::synced());
    assert_has(&world.db, world.count);
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    assert_has(&open(host(copy.path())), world.count);
    world.db.close().unwrap();
    drop(world.db);
    assert_has(&open(host(dir.path())), world.count);
}

/// A flush of one family makes its part of a batch durable. The others' part must be in a durable log by then: it
/// used to be installed while the log of its memtable was still being closed.
#[test]
fn a_batch_of_two_families_is_whole_although_one_is_flushed_before_the_log_is_closed() {
    let device = sim_device(64 << 20, 512);
    let mut world = World::on(mount(device.clone()));
    let mut held = world.switch_and_hold("fdatasync", false);
    let begin = Instant::now();
    while world.db.tickers().flushes == 0 && begin.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(1));
    }
    for seed in 0..20 {
        let db = open(crashed(&device, seed));
        let second = db.cf("second").unwrap();
        assert_eq!(keys(&db, CfId::DEFAULT), keys(&db, second));
    }
    held.release();
    world.db.flush().unwrap();
    assert_has(&open(crashed(&device, 0)), world.count);
}

/// A log that ran out of space gives what it held to the next one. A memtable that is sealed then has writes in
/// both; the flush must not come before they are durable.
#[test]
fn a_batch_of_two_families_is_whole_although_its_log_had_failed_before_the_flush() {
    let device = sim_device(64 << 20, 512);
    let mut world = World::on(mount(device.clone()));
    let mut held = world.switch_and_hold("fsync", false);
    world.write(&UNSYNCED);
    world.fs.fill_for(Some(".wal"));
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| world.db.sync_wal().unwrap_err());
        std::thread::sleep(Duration::from_millis(50));
        held.release();
        let refused = refused.join().unwrap();
        assert!(refused.to_string().contains("no space"), "{refused}");
    });
    world.fs.fill_for(None);
    world.db.wait_for_background_work().unwrap();
    // The first family is sealed, the second one is about to be.
    let (logs_made, flushes) = (AtomicUsize::new(0), world.db.tickers().flushes);
    let (tell, told) = mpsc::channel();
    let db = Mutex::new(Some(world.db.clone()));
    world.fs.fail_where(move |op, path| {
        if op == "create" && is_log(path) && logs_made.fetch_add(1, Ordering::SeqCst) == 1 {
            let db = db.lock().take().unwrap();
            let begin = Instant::now();
            while db.tickers().flushes == flushes && begin.elapsed() < Duration::from_millis(500) {
                std::thread::sleep(Duration::from_millis(1));
            }
            tell.send(device.crash(7)).unwrap();
        }
        None
    });
    world.db.flush().unwrap();
    let db = open(mount(Arc::new(told.try_recv().unwrap())));
    let second = db.cf("second").unwrap();
    assert_eq!(keys(&db, CfId::DEFAULT), keys(&db, second));
}

#[test]
fn a_panic_of_the_log_thread_lets_no_sync_through() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::on(host(dir.path()));
    let mut held = world.switch_and_hold("fsync", true);
    world.write(&UNSYNCED);
    std::thread::scope(|scope| {
        let sync = scope.spawn(|| world.db.sync_wal());
        std::thread::sleep(Duration::from_millis(50));
        held.release();
        // What it waited for has not come to its end.
        assert!(sync.join().unwrap().is_err());
    });
    let poisoned = loop {
        match world.db.put(b"k", b"v", &UNSYNCED) {
            Err(error @ Error::Poisoned { .. }) => break error,
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    assert!(poisoned.to_string().contains("on purpose"), "{poisoned}");
    drop(world.db);
    let db = open(host(dir.path()));
    let kept = keys(&db, world.second).len() as u32;
    assert_has(&db, kept);
    assert!(kept >= world.count - 2, "more is lost than was held");
}

/// What fails first stays what callers are told, but a panic after it is worse: nothing is to be read any more.
#[test]
fn a_panic_after_another_failure_poisons_the_database_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::on(host(dir.path()));
    world.write_until_spare();
    world.fs.fail_creates(".sst", libc::EIO, 1);
    let mut held = world.hold("fsync", true);
    world.write_until_switch();
    held.wait();
    let begin = Instant::now();
    world.db.wait_for_background_work().unwrap_err();
    world.db.get(&key(0), &ReadOptions::default()).unwrap();
    held.release();
    while let Ok(value) = world.db.get(&key(0), &ReadOptions::default()) {
        assert!(value.is_some());
        assert!(begin.elapsed() < PATIENCE, "not poisoned");
    }
    let refused = world.db.put(b"k", b"v", &UNSYNCED).unwrap_err();
    assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
}

/// The thread that resumes looks at the free space without the state's lock. What fails meanwhile stays.
#[test]
fn a_resume_clears_no_failure_of_the_log_that_came_while_it_looked_at_the_space() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::on(host(dir.path()));
    world.write(&UNSYNCED);
    let (tell, told) = mpsc::channel();
    let failing = Mutex::new(Some((world.db.clone(), world.fs.clone())));
    let broken = AtomicBool::new(false);
    world.fs.fail_where(move |op, path| {
        if op == "fdatasync" && is_log(path) && broken.load(Ordering::SeqCst) {
            return Some(libc::EIO);
        }
        if op == "space" && runs_on("lavakv-resume") {
            let failing = failing.lock().take();
            if let Some((db, fs)) = failing {
                broken.store(true, Ordering::SeqCst);
                db.sync_wal().unwrap_err();
                fs.fill_for(None);
                tell.send(()).unwrap();
            }
        }
        None
    });
    world.fs.fill_for(Some(".sst"));
    world.db.flush().unwrap_err();
    told.recv_timeout(PATIENCE).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let refused = world.db.put(b"k", b"v", &UNSYNCED).unwrap_err();
    assert!(matches!(refused, Error::ReadOnly { .. }), "{refused}");
    assert!(world.db.sync_wal().is_err());
}

/// Does `change` on a database that is closed by another thread while the change is being recorded.
fn close_during(world: World, change: impl FnOnce(&Db) -> lavakv::Result<()>) {
    let (done, closed) = mpsc::channel();
    let closer = Mutex::new(Some((world.db.clone(), done)));
    world.fs.fail_where(move |op, path| {
        let of_manifest = path.to_str().unwrap().contains("MANIFEST");
        if op == "append" && of_manifest && !runs_on("lavakv-flush") {
            let closer = closer.lock().take();
            if let Some((db, done)) = closer {
                let other = db.clone();
                std::thread::spawn(move || {
                    other.close().unwrap();
                    done.send(()).unwrap();
                });
                let begin = Instant::now();
                while !db.cfs().is_empty() && begin.elapsed() < Duration::from_millis(300) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        None
    });
    match change(&world.db) {
        Ok(()) | Err(Error::Busy { .. }) => {}
        Err(other) => panic!("{other}"),
    }
    closed.recv_timeout(PATIENCE).unwrap();
    assert!(world.db.cfs().is_empty());
    let count = world.count;
    drop(world.db);
    let db = open(world.seen);
    assert_has(&db, count);
    db.verify().unwrap();
}

#[test]
fn a_family_that_is_made_while_the_database_closes_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::on(host(dir.path()));
    world.write_until_switch();
    world.db.wait_for_background_work().unwrap();
    close_during(world, |db| db.create_cf("third").map(|_| ()));
    let stored = Options::load(&host(dir.path()), Path::new(AT));
    stored.unwrap();
}

#[test]
fn a_family_that_is_dropped_while_the_database_closes_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::on(host(dir.path()));
    let third = world.db.create_cf("third").unwrap();
    world.write_until_switch();
    world.db.wait_for_background_work().unwrap();
    close_during(world, |db| db.drop_cf(third));
}

/// A compaction on a caller's thread ends as the database closes. The logs that no family needed, none being
/// left in memory, were removed then, with what was not flushed.
#[test]
fn a_compaction_that_ends_while_the_database_closes_removes_no_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::on(host(dir.path()));
    for _ in 0..2 {
        world.db.write(world.batch(0), &UNSYNCED).unwrap();
        world.db.flush().unwrap();
    }
    world.count = 1;
    // While the compaction is at work, one family is flushed: the other's writes are in an older log.
    let compacting = Arc::new(AtomicU64::new(0));
    let (begun, going_on) = (Arc::clone(&compacting), Mutex::new(None));
    let (resume, resumed) = mpsc::channel::<()>();
    *going_on.lock() = Some(resumed);
    world.fs.fail_where(move |op, path| {
        let is_table = path.extension().is_some_and(|kind| kind == "sst");
        if op == "create" && is_table && runs_on("compacts") {
            begun.store(1, Ordering::SeqCst);
            let resumed = going_on.lock().take();
            if let Some(resumed) = resumed {
                let _ = resumed.recv();
            }
        }
        None
    });
    let db = world.db.clone();
    let compacts = std::thread::Builder::new().name("compacts".to_owned());
    let thread = compacts
        .spawn(move || db.compact_range_cf(CfId::DEFAULT, None, None))
        .unwrap();
    while compacting.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    world.write_until_switch();
    world.write(&WriteOptions::synced());
    world.db.wait_for_background_work().unwrap();
    close_during(world, |_| {
        drop(resume);
        thread.join().unwrap()
    });
}

#[test]
fn an_open_that_cannot_make_its_log_leaves_the_directory_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::on(host(dir.path()));
    world.write_until_switch();
    world.write(&WriteOptions::synced());
    drop(world.db);
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(dir.path().join("db"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = names();
    world.fs.fail_creates(".wal", libc::ENOSPC, 3);
    for _ in 0..3 {
        Db::open(world.seen.clone(), Path::new(AT), options()).unwrap_err();
        assert_eq!(names(), before);
    }
    assert_has(&open(world.seen), world.count);
}

/// What was written, in order: whether it was acknowledged, and so whether as durable.
#[derive(Default)]
struct Written {
    acknowledged: Vec<u32>,
    /// How many of them were before a sync that succeeded.
    durable: usize,
    failed: Vec<u32>,
}

impl Written {
    fn run(world: &World, writes: u32) -> Written {
        let mut written = Written::default();
        for number in 0..writes {
            let sync = number % 7 == 6;
            let write = WriteOptions { sync, ..UNSYNCED };
            match world.db.write(world.batch(number), &write) {
                Ok(()) => {
                    written.acknowledged.push(number);
                    if sync {
                        written.durable = written.acknowledged.len();
                    }
                }
                Err(_) => written.failed.push(number),
            }
            if number % 31 == 30 && world.db.sync_wal().is_ok() {
                written.durable = written.acknowledged.len();
            }
            if number % 40 == 39 {
                let _ = world.db.wait_for_background_work();
            }
        }
        written
    }

    /// Asserts that a database reopened has the first of what was acknowledged, no fewer than were durable; of what
    /// failed anything may be there.
    fn check(&self, db: &Db, least: usize, place: &str) {
        let found = keys(db, CfId::DEFAULT);
        let second = keys(db, db.cf("second").unwrap());
        assert_eq!(found, second, "{place}: half a batch");
        let known: Vec<u32> = found
            .into_iter()
            .filter(|number| !self.failed.contains(number))
            .collect();
        assert!(
            self.acknowledged.starts_with(&known),
            "{place}: a write is lost but later ones are there"
        );
        assert!(
            known.len() >= least,
            "{place}: {} of {least} durable writes",
            known.len()
        );
    }
}

/// Each step of the log thread fails once, with an error that stays and with one that passes. Writers are told or the
/// database goes on; what was acknowledged is never lost.
#[test]
fn any_failed_step_of_the_log_thread_is_told_or_made_good() {
    let (mut told, mut to_tell) = (0, 0);
    for errno in [libc::EIO, libc::ENOSPC, libc::EAGAIN] {
        for step in 0..11 {
            let device = sim_device(64 << 20, 512);
            let world = World::on(mount(device.clone()));
            let place = Arc::new(Mutex::new(String::new()));
            let (steps, failed_at) = (AtomicUsize::new(0), Arc::clone(&place));
            world.fs.fail_where(move |op, path| {
                let fails = runs_on("lavakv-log")
                    && op != "space"
                    && steps.fetch_add(1, Ordering::SeqCst) == step;
                if fails {
                    *failed_at.lock() = format!("{op} {} fails: {errno}", path.display());
                }
                fails.then_some(errno)
            });
            let written = Written::run(&world, 420);
            let place = place.lock().clone();
            assert!(!place.is_empty(), "no step {step}");
            for seed in 0..4 {
                let db = open(crashed(&device, seed));
                written.check(&db, written.durable, &place);
            }
            let closed = world.db.close();
            // Where the log thread is slow, writers and flushes close the logs, and none of its steps need be told.
            to_tell += usize::from(errno == libc::EIO && place.starts_with("fsync"));
            told += usize::from(!written.failed.is_empty() || closed.is_err());
            println!(
                "{place}: {} failed, closed {closed:?}",
                written.failed.len()
            );
            drop(world.db);
            let least = match closed {
                Ok(()) => written.acknowledged.len(),
                Err(_) => written.durable,
            };
            written.check(&open(crashed(&device, 0)), least, &place);
            let db = open(world.seen);
            written.check(&db, least, &place);
            db.verify().unwrap();
        }
    }
    assert!(told > 0 || to_tell == 0, "no failure was told");
}

/// Whoever closes or drops the database waits for the log thread, wherever that is, and leaves no spare log.
#[test]
fn a_close_or_drop_waits_for_any_step_of_the_log_thread() {
    for step in 0..14 {
        for closes in [false, true] {
            let device = sim_device(64 << 20, 512);
            let used = Arc::new(Used::default());
            let options = Options {
                listeners: vec![used.clone()],
                ..options()
            };
            let world = World::with(mount(device.clone()), options);
            let (tell, stuck) = mpsc::channel();
            let (release, released) = mpsc::channel::<()>();
            let (steps, released) = (AtomicUsize::new(0), Mutex::new(released));
            world.fs.fail_where(move |op, _| {
                let counts = runs_on("lavakv-log") && op != "space";
                if counts && steps.fetch_add(1, Ordering::SeqCst) == step {
                    tell.send(()).unwrap();
                    let _ = released.lock().recv();
                }
                None
            });
            let (db, second) = (world.db.clone(), world.second);
            drop(world.db);
            // It may have to wait for the step; nobody else has the database when it has ended.
            let writer = std::thread::spawn(move || {
                let mut count = 0;
                while stuck.try_recv().is_err() {
                    let mut batch = WriteBatch::new();
                    batch.put(&key(count), &[7; 500]);
                    batch.put_cf(second, &key(count), b"");
                    db.write(batch, &UNSYNCED).unwrap();
                    count += 1;
                    std::thread::sleep(Duration::from_micros(100));
                }
                if closes {
                    db.close().unwrap();
                }
                drop(db);
                count
            });
            std::thread::sleep(Duration::from_millis(60));
            drop(release);
            let count = writer.join().unwrap();
            let used = used.0.lock().clone();
            for log in logs(&world.seen).iter().skip(1) {
                assert!(used.contains(log), "{log:?} is left, a spare");
            }
            if closes {
                assert_has(&open(crashed(&device, 7)), count);
            }
            assert_has(&open(world.seen), count);
        }
    }
}
