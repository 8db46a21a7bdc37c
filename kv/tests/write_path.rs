//! The write path under many writers: groups whose members insert together, protected entries,
//! and what is refused before anything is changed.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;

use common::{host, on_each_fs, tiny};
use lavakv::{
    CfId, CompactionOptions, CompactionStyle, Db, Error, MAX_KEY_LEN, MAX_VALUE_LEN, Options,
    ReadOptions, WriteBatch, WriteOptions,
};

const AT: &str = "/db";

#[test]
fn writers_of_a_large_group_insert_together_and_lose_nothing() {
    on_each_fs(|fs| {
        for protection_bytes_per_key in [0, 8] {
            let options = Options {
                write_buffer_size: 1 << 20,
                protection_bytes_per_key,
                ..tiny()
            };
            let at = format!("/db-{protection_bytes_per_key}");
            let db = Db::open(fs.clone(), Path::new(&at), options.clone()).unwrap();
            let other = db.create_cf("other").unwrap();
            let key = |writer: u32, round: u32, at: u32| {
                format!("{:03}/{writer}/{round}", at * 37 % 100).into_bytes()
            };
            std::thread::scope(|scope| {
                for writer in 0..6 {
                    let db = &db;
                    scope.spawn(move || {
                        for round in 0..25 {
                            let mut batch = WriteBatch::new();
                            for at in 0..100 {
                                let key = key(writer, round, at);
                                batch.put(&key, &[writer as u8; 150]);
                                batch.put_cf(other, &key, &round.to_le_bytes());
                            }
                            db.write(batch, &WriteOptions::synced()).unwrap();
                            // What was acknowledged can be read at once.
                            let key = key(writer, round, round);
                            assert!(db.get(&key, &ReadOptions::default()).unwrap().is_some());
                        }
                    });
                }
            });
            assert!(db.tickers().shared_inserts > 0, "no group was shared");
            let check = |db: &Db| {
                for (cf, len) in [(CfId::DEFAULT, 150), (db.cf("other").unwrap(), 4)] {
                    let mut iter = db.iter_cf(cf, &ReadOptions::default()).unwrap();
                    let mut count = 0;
                    iter.seek_to_first();
                    while iter.valid() {
                        assert_eq!(iter.value().len(), len);
                        count += 1;
                        iter.next();
                    }
                    iter.status().unwrap();
                    assert_eq!(count, 6 * 25 * 100);
                }
            };
            check(&db);
            db.flush().unwrap();
            check(&db);
            db.close().unwrap();
            check(&Db::open(fs.clone(), Path::new(&at), options).unwrap());
        }
    });
}

#[test]
fn what_is_over_a_limit_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(host(dir.path()), Path::new(AT), tiny()).unwrap();
    let logged = || WriteOptions::default();
    db.put(b"k", b"v", &logged()).unwrap();
    let sequence = db.stats().last_sequence;
    let mut long_key = WriteBatch::new();
    long_key.put(b"k", b"half");
    long_key.delete(&vec![0; MAX_KEY_LEN + 1]);
    let mut unknown = WriteBatch::new();
    unknown.put(b"k", b"half");
    unknown.put_cf(CfId(77), b"k", b"v");
    let refused = [
        db.put(&vec![0; MAX_KEY_LEN + 1], b"v", &logged()),
        db.put(b"k", &vec![0; MAX_VALUE_LEN + 1], &logged()),
        db.write(long_key, &logged()),
        db.write(unknown, &logged()),
        db.put(
            b"k",
            b"w",
            &WriteOptions {
                sync: true,
                disable_wal: true,
            },
        ),
        db.create_cf("").map(|_| ()),
        db.create_cf("default").map(|_| ()),
        db.create_cf(&"x".repeat(256)).map(|_| ()),
        db.drop_cf(CfId::DEFAULT),
        db.drop_cf(CfId(77)),
    ];
    for (at, outcome) in refused.iter().enumerate() {
        assert!(
            matches!(outcome, Err(Error::InvalidArgument { .. })),
            "{at}: {outcome:?}"
        );
    }
    assert_eq!(db.stats().last_sequence, sequence);
    assert_eq!(
        db.get(b"k", &ReadOptions::default()).unwrap().unwrap(),
        b"v"
    );
    // The limits themselves are allowed.
    db.put(&vec![0; MAX_KEY_LEN], b"v", &logged()).unwrap();
    db.flush().unwrap();
    db.verify().unwrap();
}

#[test]
fn every_wrong_option_is_named_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = [
        (
            "write_buffer_size",
            Options {
                write_buffer_size: 1,
                ..tiny()
            },
        ),
        (
            "max_write_buffer_number",
            Options {
                max_write_buffer_number: 1,
                ..tiny()
            },
        ),
        (
            "level0_stop_writes_trigger",
            Options {
                level0_stop_writes_trigger: 1,
                ..tiny()
            },
        ),
        (
            "level0_stop_writes_trigger",
            Options {
                compaction: CompactionOptions {
                    style: CompactionStyle::Universal,
                    ..CompactionOptions::default()
                },
                level0_file_num_compaction_trigger: 1,
                level0_slowdown_writes_trigger: 1,
                level0_stop_writes_trigger: 1,
                ..tiny()
            },
        ),
        (
            "max_background_jobs",
            Options {
                max_background_jobs: usize::MAX,
                ..tiny()
            },
        ),
        (
            "max_bytes_for_level_multiplier",
            Options {
                max_bytes_for_level_multiplier: f64::NAN,
                ..tiny()
            },
        ),
        (
            "num_levels",
            Options {
                num_levels: 100,
                ..tiny()
            },
        ),
        (
            "block_size",
            Options {
                block_size: 1,
                ..tiny()
            },
        ),
        (
            "bloom_bits_per_key",
            Options {
                bloom_bits_per_key: -1.0,
                ..tiny()
            },
        ),
        (
            "protection_bytes_per_key",
            Options {
                protection_bytes_per_key: 3,
                ..tiny()
            },
        ),
    ];
    for (name, options) in wrong {
        let error = Db::open(host(dir.path()), Path::new(AT), options).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{name}");
        assert!(error.to_string().contains(name), "{name}: {error}");
        assert!(!dir.path().join("db").exists(), "{name}");
    }
}

#[test]
fn the_largest_and_the_smallest_values_of_options_work() {
    let largest = Options {
        max_write_buffer_number: usize::MAX,
        target_file_size_base: u64::MAX,
        max_bytes_for_level_base: u64::MAX,
        soft_pending_compaction_bytes_limit: u64::MAX,
        hard_pending_compaction_bytes_limit: u64::MAX,
        delayed_write_rate: u64::MAX,
        delete_rate: u64::MAX,
        max_total_wal_size: u64::MAX,
        max_manifest_file_size: u64::MAX,
        blob_file_size: u64::MAX,
        min_blob_size: usize::MAX,
        blob_correlated_compaction_bytes: u64::MAX,
        index_partition_threshold: usize::MAX,
        index_partition_size: usize::MAX,
        bloom_bits_per_key: 100.0,
        level0_slowdown_writes_trigger: usize::MAX,
        level0_stop_writes_trigger: usize::MAX,
        num_levels: 16,
        max_bytes_for_level_multiplier: 100.0,
        ..tiny()
    };
    let smallest = Options {
        write_buffer_size: 4096,
        level0_file_num_compaction_trigger: 1,
        level0_slowdown_writes_trigger: 1,
        level0_stop_writes_trigger: 1,
        target_file_size_base: 4096,
        max_bytes_for_level_base: 4096,
        soft_pending_compaction_bytes_limit: 0,
        hard_pending_compaction_bytes_limit: 0,
        max_bytes_for_level_multiplier: 2.0,
        num_levels: 2,
        max_background_jobs: 1,
        delete_rate: 1,
        max_total_wal_size: 1,
        max_manifest_file_size: 0,
        min_blob_size: 1,
        blob_file_size: 4096,
        blob_correlated_compaction_bytes: 0,
        block_size: 512,
        block_cache_size: 0,
        index_partition_size: 256,
        index_partition_threshold: 1,
        bloom_bits_per_key: 0.0,
        ..tiny()
    };
    let universal = |size_ratio| CompactionOptions {
        style: CompactionStyle::Universal,
        universal_size_ratio: size_ratio,
        universal_max_size_amplification_percent: size_ratio,
        ..CompactionOptions::default()
    };
    let cases = [
        largest.clone(),
        smallest.clone(),
        Options {
            compaction: universal(u64::MAX),
            ..largest
        },
        Options {
            compaction: universal(0),
            level0_stop_writes_trigger: 2,
            ..smallest
        },
    ];
    for (case, options) in cases.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(host(dir.path()), Path::new(AT), options).unwrap();
        for number in 0..2000_u32 {
            let key = (number % 700).to_be_bytes();
            db.put(&key, &number.to_be_bytes(), &WriteOptions::default())
                .unwrap();
        }
        db.flush().unwrap();
        db.compact_range(None, None).unwrap();
        let found = db.get(&7_u32.to_be_bytes(), &ReadOptions::default());
        assert_eq!(
            found.unwrap().unwrap(),
            1407_u32.to_be_bytes(),
            "case {case}"
        );
        db.verify().unwrap();
        db.close().unwrap();
    }
}

#[test]
fn a_directory_of_foreign_files_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("db");
    std::fs::create_dir(&at).unwrap();
    std::fs::write(at.join("CURRENT"), "not a manifest\n").unwrap();
    std::fs::write(at.join("notes.txt"), "mine").unwrap();
    let error = Db::open(host(dir.path()), Path::new(AT), tiny()).unwrap_err();
    assert!(
        error.is_corrupt() && error.to_string().contains("CURRENT"),
        "{error}"
    );
    assert_eq!(
        std::fs::read(at.join("CURRENT")).unwrap(),
        b"not a manifest\n"
    );
    assert_eq!(std::fs::read(at.join("notes.txt")).unwrap(), b"mine");
}
