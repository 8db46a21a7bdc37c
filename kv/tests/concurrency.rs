//! Writers, readers, snapshots and iterators at once, while flushes and compactions run.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::{Rng, host, on_each_fs, seed, tiny};
use lavafs::FileSystemRef;
use lavakv::{Db, Env, Options, ReadOptions, WriteBatch, WriteOptions};

const ACCOUNTS: u64 = 50;
const TOTAL: u64 = ACCOUNTS * 1000;

fn account(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

fn amount(value: &[u8]) -> u64 {
    u64::from_le_bytes(value[..8].try_into().unwrap())
}

fn encode(amount: u64) -> Vec<u8> {
    let mut value = amount.to_le_bytes().to_vec();
    value.resize(100, 7);
    value
}

#[test]
fn every_view_is_consistent_while_writers_and_compactions_run() {
    on_each_fs(move_money);
}

/// Money is moved between accounts in batches: every consistent view has the same total.
fn move_money(fs: FileSystemRef) {
    let db = Db::open(fs, Path::new("/db"), tiny()).unwrap();
    let mut batch = WriteBatch::new();
    for number in 0..ACCOUNTS {
        batch.put(&account(number), &encode(1000));
    }
    db.write(batch, &WriteOptions::default()).unwrap();
    let stop = AtomicBool::new(false);
    let views = AtomicU64::new(0);
    let seed = seed();
    thread::scope(|scope| {
        let movers: Vec<_> = (0..2_u64)
            .map(|writer| {
                let db = db.clone();
                scope.spawn(move || {
                    // Each writer owns half of the accounts, so that its reads are not stale.
                    let mut rng = Rng(seed ^ writer);
                    let now = ReadOptions::default();
                    for _ in 0..3000 {
                        let from = rng.below(ACCOUNTS / 2) * 2 + writer;
                        let to = rng.below(ACCOUNTS / 2) * 2 + writer;
                        let have = amount(&db.get(&account(from), &now).unwrap().unwrap());
                        let sum = rng.below(have + 1);
                        if from == to {
                            continue;
                        }
                        let there = amount(&db.get(&account(to), &now).unwrap().unwrap());
                        let mut batch = WriteBatch::new();
                        batch.put(&account(from), &encode(have - sum));
                        batch.put(&account(to), &encode(there + sum));
                        db.write(batch, &WriteOptions::default()).unwrap();
                    }
                })
            })
            .collect();
        let (db, stop, views) = (&db, &stop, &views);
        for reader in 0..2 {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) || views.load(Ordering::Relaxed) == 0 {
                    let mut options = ReadOptions::default();
                    if reader == 0 {
                        options.snapshot = Some(db.snapshot());
                        let total: u64 = (0..ACCOUNTS)
                            .map(|number| {
                                amount(&db.get(&account(number), &options).unwrap().unwrap())
                            })
                            .sum();
                        assert_eq!(total, TOTAL, "a snapshot is torn");
                    }
                    let mut iter = db.iter(&options).unwrap();
                    let (mut forward, mut backward) = (0, 0);
                    iter.seek_to_first();
                    while iter.valid() {
                        forward += amount(iter.value());
                        iter.next();
                    }
                    iter.seek_to_last();
                    while iter.valid() {
                        backward += amount(iter.value());
                        iter.prev();
                    }
                    iter.status().unwrap();
                    assert_eq!((forward, backward), (TOTAL, TOTAL), "an iterator is torn");
                    views.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for mover in movers {
            mover.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    db.wait_for_background_work().unwrap();
    let tickers = db.tickers();
    assert!(
        tickers.flushes > 3 && tickers.compactions > 0,
        "{tickers:?}"
    );
    let histograms: BTreeMap<_, _> = db.histograms().into_iter().collect();
    assert_eq!(histograms["flush"].count, tickers.flushes);
    assert!(histograms["write"].count <= tickers.keys_written);
    assert!(histograms.contains_key("get") && histograms.contains_key("compaction"));
    assert!(views.load(Ordering::Relaxed) > 0);
    db.verify().unwrap();
}

#[test]
fn synced_writers_share_groups_and_syncs() {
    on_each_fs(write_synced);
}

fn write_synced(fs: FileSystemRef) {
    let db = Db::open(fs.clone(), Path::new("/db"), tiny()).unwrap();
    thread::scope(|scope| {
        for writer in 0..8_u8 {
            let db = &db;
            scope.spawn(move || {
                for number in 0..50_u8 {
                    db.put(&[writer, number], b"v", &WriteOptions::synced())
                        .unwrap();
                }
            });
        }
    });
    let tickers = db.tickers();
    assert_eq!(tickers.keys_written, 400);
    assert!(tickers.wal_syncs <= tickers.write_groups);
    drop(db);
    let db = Db::open(fs, Path::new("/db"), tiny()).unwrap();
    for writer in 0..8_u8 {
        for number in 0..50_u8 {
            let found = db.get(&[writer, number], &ReadOptions::default()).unwrap();
            assert_eq!(found, Some(b"v".to_vec()));
        }
    }
}

#[test]
fn databases_share_one_env() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let options = Options {
        env: Some(Env::new(1, 1)),
        ..tiny()
    };
    let dbs: Vec<Db> = (0..10)
        .map(|number| {
            let at = format!("/db{number}");
            Db::open(Arc::clone(&fs), Path::new(&at), options.clone()).unwrap()
        })
        .collect();
    for number in 0..3000_u32 {
        let db = &dbs[number as usize % dbs.len()];
        db.put(&number.to_be_bytes(), &[1; 500], &WriteOptions::default())
            .unwrap();
    }
    for db in &dbs {
        db.wait_for_background_work().unwrap();
        assert!(db.tickers().flushes > 0);
        db.close().unwrap();
    }
}

#[test]
fn closing_in_the_middle_of_everything_ends_promptly() {
    on_each_fs(close_in_the_middle);
}

fn close_in_the_middle(fs: FileSystemRef) {
    for round in 0..10_u32 {
        let db = Db::open(Arc::clone(&fs), Path::new("/db"), tiny()).unwrap();
        thread::scope(|scope| {
            let writer = db.clone();
            scope.spawn(move || {
                let mut number = 0_u32;
                let key = |number: u32| [round.to_be_bytes(), number.to_be_bytes()].concat();
                while writer
                    .put(&key(number), &[3; 200], &WriteOptions::default())
                    .is_ok()
                {
                    number += 1;
                }
            });
            thread::sleep(std::time::Duration::from_millis(30));
            db.close().unwrap();
        });
    }
    let db = Db::open(fs, Path::new("/db"), tiny()).unwrap();
    db.verify().unwrap();
}

/// With more readers than processors, some are between two steps of a read when the database goes.
#[test]
fn a_read_beside_a_close_finds_the_key_or_fails() {
    const READERS: u64 = 16;
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    for _ in 0..8 {
        let db = Db::open(Arc::clone(&fs), Path::new("/db"), tiny()).unwrap();
        db.put(b"key", b"value", &WriteOptions::default()).unwrap();
        let started = AtomicU64::new(0);
        thread::scope(|scope| {
            for reader in 0..READERS {
                let (db, started) = (db.clone(), &started);
                scope.spawn(move || {
                    let options = ReadOptions::default();
                    let read = || match reader % 2 {
                        0 => Ok::<_, lavakv::Error>(db.get(b"key", &options)?.is_some()),
                        _ => {
                            let mut iter = db.iter(&options)?;
                            iter.seek_to_first();
                            Ok(iter.valid())
                        }
                    };
                    started.fetch_add(1, Ordering::Relaxed);
                    while let Ok(found) = read() {
                        assert!(found, "a key that is there was not found");
                    }
                });
            }
            while started.load(Ordering::Relaxed) < READERS {
                thread::yield_now();
            }
            db.close().unwrap();
        });
    }
}
