//! The switch from one log to the next: what it costs the writer, what a crash at its steps leaves,
//! and what happens where the next log cannot be made.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use common::{WatchFs, copy_dir, host, mount, sim_device, tiny};
use lavafs::device::{
    AlignedBuf, BlockDevice, DeviceCounters, DevicePart, DeviceRead, DeviceWrite, Durability,
    Geometry, PendingRead, PendingWrite, SimDevice,
};
use lavafs::{FileSystemRef, LavaFs, MountOptions};
use lavakv::{Db, Env, Options, ReadOptions, WalRecoveryMode, WriteBatch, WriteOptions};

/// What becomes of a file's bytes.
type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);

const AT: &str = "/db";

/// A device that counts what one thread does to it.
#[derive(Debug)]
struct Watched {
    inner: Arc<SimDevice>,
    thread: ThreadId,
    writes: AtomicU64,
    flushes: AtomicU64,
}

impl Watched {
    /// Counts for the calling thread.
    fn new(inner: Arc<SimDevice>) -> Arc<Watched> {
        Arc::new(Watched {
            inner,
            thread: std::thread::current().id(),
            writes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        })
    }

    fn count(&self, writes: usize, flushed: bool) {
        if std::thread::current().id() == self.thread {
            self.writes.fetch_add(writes as u64, Ordering::SeqCst);
            self.flushes.fetch_add(u64::from(flushed), Ordering::SeqCst);
        }
    }

    /// Writes and flushes, durable writes counted as both, that `action` makes on this thread.
    fn cost_of(&self, action: impl FnOnce()) -> (u64, u64) {
        let so_far = || {
            let writes = self.writes.load(Ordering::SeqCst);
            (writes, self.flushes.load(Ordering::SeqCst))
        };
        let before = so_far();
        action();
        let after = so_far();
        (after.0 - before.0, after.1 - before.1)
    }
}

impl BlockDevice for Watched {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.inner.read(offset, buf)
    }
    fn read_batch(&self, reads: &mut [DeviceRead<'_>], queue_depth: usize) {
        self.inner.read_batch(reads, queue_depth);
    }
    fn read_ahead(&self, parts: &[DevicePart], buf: AlignedBuf) -> PendingRead {
        self.inner.read_ahead(parts, buf)
    }
    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> std::io::Result<()> {
        self.count(1, durability == Durability::Durable);
        self.inner.write(offset, data, durability)
    }
    fn write_batch(
        &self,
        writes: &[DeviceWrite<'_>],
        durability: Durability,
    ) -> std::io::Result<()> {
        self.count(writes.len(), durability == Durability::Durable);
        self.inner.write_batch(writes, durability)
    }
    fn write_behind(&self, parts: &[DevicePart], buf: Arc<AlignedBuf>) -> PendingWrite {
        self.count(parts.len(), false);
        self.inner.write_behind(parts, buf)
    }
    fn flush(&self) -> std::io::Result<()> {
        self.count(0, true);
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.inner.discard(offset, len)
    }
    fn counters(&self) -> DeviceCounters {
        self.inner.counters()
    }
}

fn key(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

/// Every log of the directory, ascending.
fn logs(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut logs: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|kind| kind == "wal"))
        .collect();
    logs.sort();
    logs
}

/// Asserts that the database has the keys below `count`, and no other.
fn assert_has(db: &Db, count: u32) {
    let mut iter = db.iter(&ReadOptions::default()).unwrap();
    iter.seek_to_first();
    for number in 0..count {
        assert!(iter.valid(), "{number} of {count} is lost");
        assert_eq!(iter.key(), key(number));
        iter.next();
    }
    assert!(!iter.valid(), "{:?} is of nobody", iter.key());
    iter.status().unwrap();
}

/// Writes until `switches` spare logs were taken, and returns each distinct cost of a write with how many had
/// it, after the first write.
fn costs(sync: bool, switches: u64) -> Vec<((u64, u64), u64)> {
    let device = Watched::new(sim_device(64 << 20, 512));
    let fs = mount(device.clone());
    let options = Options {
        write_buffer_size: 64 << 10,
        ..tiny()
    };
    let db = Db::open(fs, Path::new(AT), options).unwrap();
    // One of them is as long as a logical block, less framing: the log is no longer than was expected.
    let write = WriteOptions {
        sync,
        ..WriteOptions::default()
    };
    let mut costs: Vec<((u64, u64), u64)> = Vec::new();
    let mut number = 0;
    while db.tickers().spare_logs < switches {
        let cost = device.cost_of(|| db.put(&key(number), &[7; 440], &write).unwrap());
        if number > 0 {
            match costs.iter_mut().find(|(known, _)| *known == cost) {
                Some((_, times)) => *times += 1,
                None => costs.push((cost, 1)),
            }
        }
        // The spare is ready, and the log before closed.
        db.wait_for_background_work().unwrap();
        number += 1;
    }
    assert!(number > 100 * switches as u32, "{number} writes");
    assert_has(&db, number);
    costs
}

#[test]
fn the_write_that_fills_a_memtable_costs_what_every_other_does() {
    let unsynced = costs(false, 4);
    assert!(matches!(unsynced[..], [((0, 0), _)]), "{unsynced:?}");
    let synced = costs(true, 4);
    assert!(matches!(synced[..], [((1, 1), _)]), "{synced:?}");
}

/// A database on the kernel's filesystem, watched, with `count` keys written in its first log and one in its second,
/// while the log thread is about to make the end of the first durable.
struct Stuck {
    dir: tempfile::TempDir,
    /// Dropped before the database, which waits for the log thread.
    release: mpsc::Sender<()>,
    db: Db,
    count: u32,
}

impl Stuck {
    fn new(sync: bool) -> Stuck {
        let dir = tempfile::tempdir().unwrap();
        let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
        let options = Options {
            write_buffer_size: 64 << 10,
            env: Some(Env::new(1, 1)),
            ..tiny()
        };
        let db = Db::open(fs.clone(), Path::new(AT), options).unwrap();
        // It keeps the first log from being obsolete.
        let second = db.create_cf("second").unwrap();
        let mut batch = WriteBatch::new();
        batch.put_cf(second, b"first", b"");
        db.write(batch, &WriteOptions::synced()).unwrap();
        let (release, released) = mpsc::channel::<()>();
        let (stuck, is_stuck) = mpsc::channel();
        fs.before_next("fsync", ".wal", move || {
            stuck.send(()).unwrap();
            let _ = released.recv();
        });
        let write = WriteOptions {
            sync,
            ..WriteOptions::default()
        };
        let mut count = 0;
        // The next log is there before it is needed: a writer that has to make it may end the one before itself.
        while db.tickers().spare_logs == 0 {
            db.wait_for_background_work().unwrap();
            db.put(&key(count), &[7; 500], &write).unwrap();
            count += 1;
            assert!(count < 10_000, "no log was closed");
        }
        is_stuck.recv_timeout(Duration::from_secs(60)).unwrap();
        Stuck {
            dir,
            db,
            release,
            count,
        }
    }

    /// The directory as it is now.
    fn crashed(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(self.dir.path(), copy.path());
        copy
    }
}

fn reopen(dir: &Path) -> lavakv::Result<Db> {
    Db::open(host(dir), Path::new(AT), tiny())
}

#[test]
fn writes_go_on_while_the_log_before_is_closed_and_a_sync_waits_for_it() {
    let Stuck {
        dir,
        db,
        release,
        mut count,
    } = Stuck::new(false);
    let at = dir.path().join("db");
    let in_use = logs(&at).into_iter().next_back().unwrap();
    let before = std::fs::metadata(&in_use).unwrap().len();
    for _ in 0..3 {
        db.put(&key(count), &[7; 500], &WriteOptions::default())
            .unwrap();
        count += 1;
    }
    assert_has(&db, count);
    assert_eq!(std::fs::metadata(&in_use).unwrap().len(), before);
    std::thread::scope(|scope| {
        let (done, synced) = mpsc::channel();
        let sync = scope.spawn({
            let db = &db;
            move || {
                db.sync_wal().unwrap();
                done.send(()).unwrap();
            }
        });
        assert!(synced.recv_timeout(Duration::from_millis(100)).is_err());
        release.send(()).unwrap();
        sync.join().unwrap();
    });
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    assert_has(&reopen(copy.path()).unwrap(), count);
    db.close().unwrap();
    drop(db);
    assert_has(&reopen(dir.path()).unwrap(), count);
}

#[test]
fn held_writes_are_bounded_and_survive_a_drop() {
    let Stuck {
        dir,
        db,
        release,
        mut count,
    } = Stuck::new(false);
    std::thread::scope(|scope| {
        let (progress, told) = mpsc::channel();
        let writer = scope.spawn({
            let db = &db;
            move || {
                for number in count..count + 40 {
                    db.put(&key(number), &[7; 500], &WriteOptions::default())
                        .unwrap();
                    progress.send(number).unwrap();
                }
            }
        });
        // A sixteenth of the buffer: 4096 bytes.
        let mut written = 0;
        while told.recv_timeout(Duration::from_millis(300)).is_ok() {
            written += 1;
        }
        assert!(written < 9, "{written} writes did not wait");
        release.send(()).unwrap();
        writer.join().unwrap();
    });
    count += 40;
    drop(db);
    assert_has(&reopen(dir.path()).unwrap(), count);
}

#[test]
fn a_torn_closing_group_hides_nothing_of_a_synced_log() {
    let mut stuck = Stuck::new(true);
    // All before is durable: the write waits for nothing.
    let synced = WriteOptions::synced();
    stuck.db.put(&key(stuck.count), &[7; 500], &synced).unwrap();
    stuck.count += 1;
    let whole = stuck.crashed();
    assert_has(&reopen(whole.path()).unwrap(), stuck.count);
    let tear = |how: &dyn Fn(&mut Vec<u8>)| {
        let crashed = stuck.crashed();
        let logs = logs(&crashed.path().join("db"));
        let before = &logs[logs.len() - 2];
        let mut bytes = std::fs::read(before).unwrap();
        let end = bytes.windows(16).rposition(|part| part == [7; 16]).unwrap() + 16;
        bytes.truncate(end.next_multiple_of(512));
        how(&mut bytes);
        std::fs::write(before, bytes).unwrap();
        crashed
    };
    // What an older file left in the block of the closing group.
    let torn = tear(&|bytes| bytes.extend([0x5a; 512]));
    let read_only = Db::open_read_only(host(torn.path()), Path::new(AT), tiny()).unwrap();
    assert_has(&read_only, stuck.count);
    drop(read_only);
    let report = Db::repair(&host(torn.path()), Path::new(AT), &tiny()).unwrap();
    assert!(report.lost.is_empty(), "{report:?}");
    assert_has(&reopen(torn.path()).unwrap(), stuck.count);
    let torn = tear(&|bytes| bytes.extend([0x5a; 512]));
    assert_has(&reopen(torn.path()).unwrap(), stuck.count);
    // A group that is missing is damage, for a later log goes on.
    let torn = tear(&|bytes| {
        let last = bytes.len() - 512;
        bytes[last..].fill(0x5a);
    });
    let refused = reopen(torn.path()).unwrap_err();
    assert!(refused.is_corrupt(), "{refused}");
    stuck.release.send(()).unwrap();
}

#[test]
fn an_empty_spare_log_is_nothing_to_whoever_opens() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(host(dir.path()), Path::new(AT), tiny()).unwrap();
    let mut count = 0;
    // Until a spare lies beside the log in use, which holds writes.
    while db.tickers().spare_logs < 3 || logs(&dir.path().join("db")).len() < 2 {
        db.put(&key(count), &[7; 100], &WriteOptions::synced())
            .unwrap();
        db.wait_for_background_work().unwrap();
        count += 1;
        assert!(count < 10_000);
    }
    db.verify().unwrap();
    let before = logs(&dir.path().join("db"));
    assert_eq!(before.len(), 2, "{before:?}");
    let torn: [Damage<'_>; 4] = [
        &|_| {},
        &Vec::clear,
        &|bytes| bytes.truncate(20),
        &|bytes| bytes.fill(0x5a),
    ];
    for (how, tear) in torn.iter().enumerate() {
        let crash = || {
            let copy = tempfile::tempdir().unwrap();
            copy_dir(dir.path(), copy.path());
            let spare = logs(&copy.path().join("db")).pop().unwrap();
            let mut bytes = std::fs::read(&spare).unwrap();
            assert!(bytes.len() <= 4096, "the spare holds {}", bytes.len());
            tear(&mut bytes);
            std::fs::write(&spare, bytes).unwrap();
            copy
        };
        println!("spare {how}");
        let crashed = crash();
        let read_only = Db::open_read_only(host(crashed.path()), Path::new(AT), tiny()).unwrap();
        assert_has(&read_only, count);
        drop(read_only);
        assert_eq!(logs(&crashed.path().join("db")).len(), 2);
        let db = reopen(crashed.path()).unwrap();
        assert_has(&db, count);
        db.verify().unwrap();
        assert_eq!(logs(&crashed.path().join("db")).len(), 1);
        drop(db);
        let crashed = crash();
        let report = Db::repair(&host(crashed.path()), Path::new(AT), &tiny()).unwrap();
        assert!(report.lost.is_empty(), "{report:?}");
        assert_has(&reopen(crashed.path()).unwrap(), count);
        if how < 2 {
            // Whole or without a byte, it is no torn log either.
            let crashed = crash();
            let options = Options {
                wal_recovery_mode: WalRecoveryMode::Absolute,
                ..tiny()
            };
            let db = Db::open(host(crashed.path()), Path::new(AT), options).unwrap();
            assert_has(&db, count);
        }
    }
    db.close().unwrap();
    assert_eq!(logs(&dir.path().join("db")), before[..1]);
}

#[test]
fn a_spare_that_cannot_be_made_is_no_error_and_is_tried_again() {
    for errno in [libc::ENOSPC, libc::EIO] {
        let dir = tempfile::tempdir().unwrap();
        let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
        let options = Options {
            write_buffer_size: 64 << 10,
            ..tiny()
        };
        let db = Db::open(fs.clone(), Path::new(AT), options).unwrap();
        fs.fail_creates(".wal", errno, 2);
        let begin = Instant::now();
        let mut count = 0;
        // It is tried when the memtable is half full, and again after a while, before it is full.
        while fs.creates_to_fail() > 0 {
            if count < 200 {
                db.put(&key(count), &[7; 200], &WriteOptions::default())
                    .unwrap();
                count += 1;
            } else {
                db.put(&key(0), &[7], &WriteOptions::default()).unwrap();
                // Rarely, so that the memtable does not fill where the log thread is slow.
                std::thread::sleep(Duration::from_millis(50));
            }
            assert!(begin.elapsed() < Duration::from_secs(60));
        }
        assert_eq!(db.tickers().spare_logs, 0);
        while db.tickers().spare_logs < 2 {
            db.put(&key(count), &[7; 200], &WriteOptions::default())
                .unwrap();
            count += 1;
            std::thread::sleep(Duration::from_millis(1));
            assert!(begin.elapsed() < Duration::from_secs(60));
        }
        db.sync_wal().unwrap();
        assert_has(&db, count);
        db.verify().unwrap();
        // A log stays whose memtable was not flushed.
        db.wait_for_background_work().unwrap();
        db.close().unwrap();
        drop(db);
        assert_eq!(logs(&dir.path().join("db")).len(), 1);
        assert_has(&reopen(dir.path()).unwrap(), count);
    }
}

#[test]
fn a_spare_takes_a_sixteenth_of_the_free_space_at_most_and_none_is_lost() {
    let device = sim_device(64 << 20, 512);
    let options = MountOptions {
        background: false,
        ..MountOptions::default()
    };
    let fs: FileSystemRef = Arc::new(LavaFs::mount(device, &options).unwrap());
    let options = Options {
        write_buffer_size: 8 << 20,
        ..tiny()
    };
    let allocated = || -> Vec<u64> {
        let entries = fs.list(Path::new(AT)).unwrap();
        let names = entries.iter().map(|entry| entry.name.to_str().unwrap());
        let logs = names.filter(|name| name.ends_with(".wal"));
        logs.map(|name| {
            let path = Path::new(AT).join(name);
            fs.metadata(&path).unwrap().allocated
        })
        .collect()
    };
    for _ in 0..3 {
        let db = Db::open(fs.clone(), Path::new(AT), options.clone()).unwrap();
        db.wait_for_background_work().unwrap();
        let mut count = 0;
        let mut free = fs.space().free;
        while allocated().len() < 2 {
            free = fs.space().free;
            db.put(&key(count), &[7; 8000], &WriteOptions::default())
                .unwrap();
            db.wait_for_background_work().unwrap();
            count += 1;
            assert!(count < 2000);
        }
        let spare = *allocated().last().unwrap();
        assert!(spare > 0 && spare <= free / 16 + 4096, "{spare} of {free}");
        db.close().unwrap();
        drop(db);
        assert_eq!(allocated().len(), 1, "the spare is gone");
    }
}
