//! What jobs, scans and tables that are gone leave in the cache.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;

use common::{mount, sim_device, tiny};
use lavakv::{Compression, Db, Options, ReadOptions, WriteOptions};

fn options() -> Options {
    Options {
        min_blob_size: 500,
        blob_compression: Compression::None,
        blob_file_size: 1 << 20,
        write_buffer_size: 4 << 20,
        target_file_size_base: 256 << 10,
        block_cache_size: 8 << 20,
        enable_blob_garbage_collection: false,
        blob_correlated_compaction_bytes: 0,
        disable_auto_compactions: true,
        ..tiny()
    }
}

fn open(options: Options) -> Db {
    let fs = mount(sim_device(512 << 20, 512));
    Db::open(fs, Path::new("/db"), options).unwrap()
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:08}").into_bytes()
}

/// Writes values of this length and flushes them.
fn put(db: &Db, numbers: std::ops::Range<u64>, len: usize) {
    for number in numbers {
        let value = vec![number as u8; len];
        db.put(&key(number), &value, &WriteOptions::default())
            .unwrap();
    }
    db.flush().unwrap();
    db.wait_for_background_work().unwrap();
}

fn read(db: &Db, number: u64) {
    let found = db.get(&key(number), &ReadOptions::default()).unwrap();
    assert_eq!(found.unwrap()[0], number as u8);
}

/// A collection's look at every table counted as lookups of readers, and what it found in the cache as read again.
#[test]
fn jobs_leave_no_trace_in_the_cache() {
    for cache_index_and_filter_blocks in [false, true] {
        let db = open(Options {
            cache_index_and_filter_blocks,
            ..options()
        });
        put(&db, 0..1000, 1000);
        put(&db, 0..300, 1000);
        for number in 0..1000 {
            read(&db, number);
        }
        let lookups = || {
            let cache = db.stats().cache;
            (cache.hits, cache.misses)
        };
        let before = lookups();
        db.compact_range(None, None).unwrap();
        assert_eq!(lookups(), before, "a compaction");
        db.collect_blob_garbage().unwrap();
        assert_eq!(db.stats().tickers.blob_collections, 1);
        assert_eq!(lookups(), before, "a collection");
    }
}

/// Index and filter blocks of tables that compactions had replaced stayed in the cache, before all data.
#[test]
fn tables_that_are_gone_leave_the_cache_to_data() {
    let db = open(Options {
        cache_index_and_filter_blocks: true,
        block_cache_size: 1 << 20,
        bloom_bits_per_key: 20.0,
        block_size: 512,
        ..options()
    });
    let mut charged = Vec::new();
    for _ in 0..12 {
        put(&db, 0..3000, 100);
        db.compact_range(None, None).unwrap();
        for number in (0..3000).step_by(10) {
            read(&db, number);
        }
        let cache = db.stats().cache;
        charged.push(cache.index_charged);
    }
    assert!(charged[0] > 10 << 10, "{charged:?}");
    assert!(charged[11] <= charged[0] * 2, "{charged:?}");
}

/// A value that an iterator read alone was kept whatever it had been told.
#[test]
fn a_scan_that_is_not_to_fill_the_cache_keeps_no_value() {
    for fill_cache in [false, true] {
        for lazy_values in [false, true] {
            let db = open(options());
            put(&db, 0..500, 1000);
            db.compact_range(None, None).unwrap();
            let before = db.stats().cache;
            let mut iter = db
                .iter(&ReadOptions {
                    fill_cache,
                    lazy_values,
                    ..ReadOptions::default()
                })
                .unwrap();
            for number in 0..500 {
                iter.seek(&key(number));
                assert_eq!(iter.load_value().unwrap()[0], number as u8);
            }
            let after = db.stats().cache;
            let keeps_values = after.value_charged > before.value_charged;
            assert_eq!(keeps_values, fill_cache, "{after:?}");
        }
    }
}
