//! Flushes of several column families: together, as far as threads and options go, and of one alone.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{host, tiny};
use lavakv::{
    CfId, Db, Env, Error, EventListener, JobEvent, Options, ReadOptions, WriteBatch, WriteOptions,
};
use parking_lot::{Condvar, Mutex};

/// Holds each flush back until `wanted` of them run, and then for a moment in which another may begin.
#[derive(Debug)]
struct Together {
    wanted: usize,
    moment: Duration,
    /// Flushes that run, and the most so far.
    running: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl EventListener for Together {
    fn on_flush_begin(&self, _: &JobEvent) {
        // For a machine that is busy.
        let until = Instant::now() + Duration::from_secs(60);
        let mut running = self.running.lock();
        running.0 += 1;
        running.1 = running.1.max(running.0);
        self.changed.notify_all();
        while running.1 < self.wanted && Instant::now() < until {
            self.changed.wait_until(&mut running, until);
        }
        drop(running);
        std::thread::sleep(self.moment);
    }

    fn on_flush_end(&self, _: &JobEvent) {
        self.running.lock().0 -= 1;
    }
}

/// Flushes four column families with `jobs` background jobs; returns the most flushes at a time.
fn most_at_a_time(jobs: usize, wanted: usize, moment: Duration) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let together = Arc::new(Together {
        wanted,
        moment,
        running: Mutex::default(),
        changed: Condvar::new(),
    });
    let options = Options {
        env: Some(Env::new(1, 1)),
        write_buffer_size: 1 << 20,
        max_background_jobs: jobs,
        listeners: vec![together.clone()],
        ..tiny()
    };
    let db = Db::open(host(dir.path()), Path::new("/db"), options).unwrap();
    let names = ["a", "b", "c", "d"];
    let cfs = names.map(|name| db.create_cf(name).unwrap());
    for round in 0..100_u32 {
        let mut batch = WriteBatch::new();
        for cf in cfs {
            batch.put_cf(cf, &round.to_be_bytes(), &[7; 100]);
        }
        db.write(batch, &WriteOptions::default()).unwrap();
    }
    db.flush().unwrap();
    for cf in cfs {
        let found = db.get_cf(cf, &99_u32.to_be_bytes(), &ReadOptions::default());
        assert_eq!(&found.unwrap().unwrap()[..], &[7; 100]);
    }
    assert!(db.tickers().flushes >= 4, "each family has a table");
    db.close().unwrap();
    let (running, most) = *together.running.lock();
    assert_eq!(running, 0);
    most
}

#[test]
fn memtables_of_four_families_are_flushed_at_the_same_time() {
    // A quarter of the jobs are flushes.
    assert_eq!(most_at_a_time(16, 4, Duration::ZERO), 4);
}

#[test]
fn no_more_flushes_run_than_the_options_allow() {
    assert_eq!(most_at_a_time(8, 2, Duration::from_millis(200)), 2);
}

#[test]
fn one_family_is_flushed_alone() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(host(dir.path()), Path::new("/db"), tiny()).unwrap();
    let logs = db.create_cf("logs").unwrap();
    let unlogged = WriteOptions {
        disable_wal: true,
        ..WriteOptions::default()
    };
    let mut batch = WriteBatch::new();
    batch.put(b"a", b"1");
    batch.put_cf(logs, b"a", b"1");
    batch.put_cf(logs, b"b", b"2");
    db.write(batch, &unlogged).unwrap();
    db.single_delete_cf(logs, b"b", &unlogged).unwrap();
    db.flush_cf(logs).unwrap();
    let stats = db.stats();
    assert_eq!((stats.levels[0].files, stats.memtable_entries), (1, 1));
    db.flush_cf(logs).unwrap();
    assert_eq!(db.tickers().flushes, 1, "nothing was left to flush");
    // Without a log and without a close, what was flushed is what stays.
    drop(db);
    let db = Db::open(host(dir.path()), Path::new("/db"), tiny()).unwrap();
    let get = |cf, key: &[u8]| db.get_cf(cf, key, &ReadOptions::default()).unwrap();
    assert_eq!(get(logs, b"a"), Some(b"1".to_vec()));
    assert_eq!(get(logs, b"b"), None);
    assert_eq!(get(CfId::DEFAULT, b"a"), None);
    db.drop_cf(logs).unwrap();
    for refused in [
        db.flush_cf(logs),
        db.single_delete_cf(logs, b"a", &unlogged),
    ] {
        assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
    }
    db.close().unwrap();
    assert!(matches!(db.flush_cf(logs), Err(Error::Busy { .. })));
}
