//! The cache as a database uses it: exact device reads with warm and with cold caches, values apart from
//! blocks, and statistics that say where each Get's reads went.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{mount, sim_device, tiny};
use lavafs::FileSystemRef;
use lavakv::{
    Compression, Db, Options, PerfContext, PrepopulateBlockCache, ReadOptions, WriteOptions,
};

fn options() -> Options {
    Options {
        min_blob_size: 500,
        blob_compression: Compression::None,
        blob_file_size: 1 << 20,
        write_buffer_size: 4 << 20,
        target_file_size_base: 256 << 10,
        block_cache_size: 8 << 20,
        cache_index_and_filter_blocks: false,
        enable_blob_garbage_collection: false,
        blob_correlated_compaction_bytes: 0,
        disable_auto_compactions: true,
        ..tiny()
    }
}

fn open(options: Options) -> (FileSystemRef, Db) {
    let fs = mount(sim_device(512 << 20, 512));
    let db = Db::open(fs.clone(), Path::new("/db"), options).unwrap();
    (fs, db)
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:08}").into_bytes()
}

fn value(number: u64, len: usize) -> Vec<u8> {
    vec![number as u8; len]
}

fn put(db: &Db, numbers: std::ops::Range<u64>, len: usize) {
    for number in numbers {
        db.put(&key(number), &value(number, len), &WriteOptions::default())
            .unwrap();
    }
}

/// Flushes, and waits until the job is over with all it does afterwards.
fn flush(db: &Db) {
    db.flush().unwrap();
    db.wait_for_background_work().unwrap();
}

/// Reads a key, which has a value of this length; returns the device reads that it took.
fn reads_of(fs: &FileSystemRef, db: &Db, number: u64, len: usize) -> u64 {
    let before = fs.counters().read_ios;
    let found = db.get(&key(number), &ReadOptions::default()).unwrap();
    assert_eq!(found.unwrap(), value(number, len));
    fs.counters().read_ios - before
}

fn reads_of_all(fs: &FileSystemRef, db: &Db, keys: u64, len: usize) -> u64 {
    // In an order that no readahead follows.
    (0..keys)
        .map(|number| reads_of(fs, db, number * 7919 % keys, len))
        .sum()
}

#[test]
fn a_flush_leaves_its_blocks_in_the_cache_where_that_is_asked_for() {
    for (prepopulate, cold) in [
        (PrepopulateBlockCache::Disable, true),
        (PrepopulateBlockCache::FlushOnly, false),
    ] {
        let (fs, db) = open(Options {
            prepopulate_block_cache: prepopulate,
            ..options()
        });
        put(&db, 0..5000, 100);
        flush(&db);
        let reads = reads_of_all(&fs, &db, 5000, 100);
        assert_eq!(reads > 0, cold, "{reads} reads after a flush");
        assert_eq!(reads_of_all(&fs, &db, 5000, 100), 0);
    }
}

#[test]
fn a_flush_keeps_no_more_than_an_eighth_of_the_cache() {
    let (_, db) = open(Options {
        prepopulate_block_cache: PrepopulateBlockCache::FlushOnly,
        block_cache_size: 2 << 20,
        compression: Compression::None,
        ..options()
    });
    put(&db, 0..20_000, 100);
    flush(&db);
    let cached = db.stats().cache.data_charged;
    assert!((200 << 10..320 << 10).contains(&cached), "{cached} bytes");
}

#[test]
fn a_compaction_replaces_cached_blocks_and_those_alone() {
    let (fs, db) = open(Options {
        compression: Compression::None,
        block_size: 4096,
        ..options()
    });
    for _ in 0..2 {
        put(&db, 0..5000, 100);
        flush(&db);
    }
    // The first half is read, the second is not.
    for number in 0..2500 {
        reads_of(&fs, &db, number, 100);
    }
    let before = db.stats().cache;
    db.compact_range(None, None).unwrap();
    let after = db.stats().cache;
    assert_eq!(before.hits, after.hits, "a compaction leaves no trace");
    assert_eq!(before.misses, after.misses);
    let hot: u64 = (0..2450)
        .map(|number| reads_of(&fs, &db, number, 100))
        .sum();
    assert_eq!(hot, 0, "what was cached is");
    let misses = db.stats().cache.misses[0];
    for number in 2600..5000 {
        reads_of(&fs, &db, number, 100);
    }
    let cold = db.stats().cache.misses[0] - misses;
    assert!(
        (60..90).contains(&cold),
        "{cold} blocks that were not cached"
    );
}

#[test]
fn collections_and_compactions_leave_cached_values_valid_and_indexes_ready() {
    let (fs, db) = open(Options {
        enable_blob_garbage_collection: true,
        blob_collection_idle_millis: 1,
        disable_auto_compactions: false,
        ..options()
    });
    put(&db, 0..1000, 1000);
    flush(&db);
    let mut updated = 0..0;
    for _ in 0..2 {
        for number in 0..500 {
            reads_of(&fs, &db, number, 1000);
        }
    }
    // More of the file is garbage than is tolerated when nobody writes.
    for _ in 0..3 {
        updated.end += 50;
        put(&db, 500 + updated.start..500 + updated.end, 2000);
        updated.start = updated.end;
        flush(&db);
        db.compact_range(None, None).unwrap();
    }
    let until = Instant::now() + Duration::from_secs(60);
    let is_collected = || {
        let stats = db.stats();
        stats.tickers.blob_collections > 0 && stats.blobs.garbage_ratio() <= 0.05
    };
    while !is_collected() {
        assert!(Instant::now() < until, "{:?}", db.stats().blobs);
        std::thread::sleep(Duration::from_millis(5));
    }
    // The collection goes on for a moment after it is committed.
    db.wait_for_background_work().unwrap();
    let reads: u64 = (0..500)
        .map(|number| reads_of(&fs, &db, number, 1000))
        .sum();
    assert_eq!(reads, 0, "values have moved and are cached still");
    // What was never read costs its own read, and none for indexes.
    PerfContext::reset();
    for number in 500..500 + updated.end {
        reads_of(&fs, &db, number, 2000);
    }
    let perf = PerfContext::current();
    assert_eq!(perf.reads[3], updated.end);
    assert_eq!((perf.blob_index_reads, perf.table_open_reads), (0, 0));
}

#[test]
fn statistics_say_what_each_get_took() {
    let (fs, db) = open(options());
    put(&db, 0..300, 2000);
    flush(&db);
    put(&db, 300..400, 2000);
    PerfContext::reset();
    let before = db.stats();
    let mut taken = [0; 4];
    for _ in 0..2 {
        for number in 0..400 {
            let before = PerfContext::current().total_reads();
            reads_of(&fs, &db, number * 7919 % 400, 2000);
            let reads = PerfContext::current().total_reads() - before;
            taken[reads.min(3) as usize] += 1;
        }
    }
    let after = db.stats();
    let gets = |of: fn(&lavakv::TickerValues) -> u64| of(&after.tickers) - of(&before.tickers);
    assert_eq!(gets(|t| t.memtable_hits), 200);
    assert_eq!(gets(|t| t.gets_from_cache), taken[0] - 200);
    assert_eq!(gets(|t| t.gets_with_one_read), taken[1]);
    assert_eq!(gets(|t| t.gets_with_two_reads), taken[2]);
    assert_eq!(gets(|t| t.gets_with_more_reads), taken[3]);
    assert_eq!(taken[0] + taken[1] + taken[2] + taken[3], 800);
    let perf = PerfContext::current();
    assert_eq!(perf.reads[3], 300, "each value once");
    assert_eq!(perf.cache_hits[3], 300, "and then from the cache");
    assert_eq!(perf.total_reads(), taken[1] + 2 * taken[2]);
    // The table refers to blob files: its blocks are cached packed, and each value once asked for its file's index.
    let (hits, misses) = (after.cache.hits, after.cache.misses);
    assert_eq!((hits[4] + misses[4], hits[0] + misses[0]), (600, 0));
    assert_eq!((hits[5], misses[5]), (300, 0));
    assert_eq!((perf.cache_hits[4], perf.cache_hits[5]), (hits[4], 300));
    let text = after.to_string();
    assert!(text.contains("cache_value_hits 300"), "{text}");
    assert!(
        text.contains(&format!("cache_packed_hits {}", hits[4])),
        "{text}"
    );
    assert!(text.contains("cache_blob_index_hits 300"), "{text}");
    assert!(text.contains("gets_with_one_read "), "{text}");
    let metrics = db.metrics_text();
    assert!(
        metrics.contains("lavakv_gets_from_cache_total"),
        "{metrics}"
    );
    for kind in ["value", "packed", "blob_index"] {
        assert!(metrics.contains(&format!("kind=\"{kind}\"")), "{metrics}");
    }
}

#[test]
fn large_values_in_a_small_cache_leave_one_read_for_a_get() {
    let keys = 4000;
    let (fs, db) = open(Options {
        block_cache_size: 256 << 10,
        compression: Compression::Zstd { level: 1 },
        block_size: 4096,
        ..options()
    });
    put(&db, 0..keys, 16_000);
    db.compact_range(None, None).unwrap();
    reads_of_all(&fs, &db, keys, 16_000);
    let mut reads = [0; 3];
    for number in 0..keys {
        let of_get = reads_of(&fs, &db, number * 13 % keys, 16_000);
        reads[of_get.min(2) as usize] += 1;
    }
    assert!(reads[2] <= keys / 100, "{reads:?}");
}

/// Lookups by what they took: memtable, cache, one read, two, more.
fn lookups(db: &Db) -> [u64; 5] {
    let tickers = db.stats().tickers;
    [
        tickers.memtable_hits,
        tickers.gets_from_cache,
        tickers.gets_with_one_read,
        tickers.gets_with_two_reads,
        tickers.gets_with_more_reads,
    ]
}

/// Looks up several keys at once; returns what they took.
fn multi_get(db: &Db, numbers: &[u64], len: usize) -> [u64; 5] {
    let before = lookups(db);
    let keys: Vec<Vec<u8>> = numbers.iter().map(|&number| key(number)).collect();
    let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let found = db.multi_get(&keys, &ReadOptions::default()).unwrap();
    for (&number, found) in numbers.iter().zip(found) {
        let there = !(400..1000).contains(&number);
        assert_eq!(found, there.then(|| value(number, len)), "key {number}");
    }
    let after = lookups(db);
    std::array::from_fn(|at| after[at] - before[at])
}

#[test]
fn each_key_of_a_multi_get_counts_as_a_get() {
    let (fs, db) = open(Options {
        block_size: 64 << 10,
        ..options()
    });
    put(&db, 1000..1300, 100);
    flush(&db);
    // The flush leaves the blocks that refer to blob files in the cache.
    put(&db, 0..300, 2000);
    flush(&db);
    put(&db, 300..400, 2000);
    let before = (fs.counters().read_ios, db.stats().tickers.keys_read);
    // A data block is read for the first that needs it; values that are neighbours are one read.
    assert_eq!(multi_get(&db, &[1020, 1010, 1250], 100), [0, 2, 1, 0, 0]);
    assert_eq!(
        multi_get(&db, &[10, 11, 12, 100, 200], 2000),
        [0, 2, 3, 0, 0]
    );
    assert_eq!(
        multi_get(&db, &[10, 11, 12, 100, 200], 2000),
        [0, 5, 0, 0, 0]
    );
    assert_eq!(
        multi_get(&db, &[52, 51, 50, 310, 11], 2000),
        [1, 3, 1, 0, 0]
    );
    assert_eq!(multi_get(&db, &[999, 150, 320, 170], 2000), [1, 1, 2, 0, 0]);
    let after = (fs.counters().read_ios, db.stats().tickers.keys_read);
    assert_eq!(after.1 - before.1, 22);
    assert_eq!(
        after.0 - before.0,
        1 + 3 + 1 + 2,
        "as many as the lookups took in all"
    );
}

#[test]
fn a_multi_get_of_one_key_counts_as_its_get_would() {
    // Files are cold: tables and blob files are opened by what is looked up.
    let taken = [false, true].map(|batched| {
        let fs = mount(sim_device(512 << 20, 512));
        let some = || Options {
            target_file_size_base: 16 << 10,
            blob_file_size: 64 << 10,
            block_size: 1024,
            ..options()
        };
        let db = Db::open(fs.clone(), Path::new("/db"), some()).unwrap();
        put(&db, 0..400, 700);
        db.compact_range(None, None).unwrap();
        db.close().unwrap();
        drop(db);
        let db = Db::open(fs.clone(), Path::new("/db"), some()).unwrap();
        for round in 0..2 {
            for number in (0..400).step_by(3 - round) {
                let number = number * 7919 % 400;
                match batched {
                    true => drop(multi_get(&db, &[number], 700)),
                    false => drop(reads_of(&fs, &db, number, 700)),
                }
            }
        }
        lookups(&db)
    });
    assert_eq!(taken[0], taken[1]);
    let [_, cache, one, two, more] = taken[0];
    assert!(cache > 0 && one > 0 && two > 0 && more > 0, "{taken:?}");
}

#[test]
fn indexes_of_blob_files_stay_within_the_budget() {
    let capacity = 32 << 10;
    let keys = 40_000;
    let (fs, db) = open(Options {
        block_cache_size: capacity,
        cache_index_and_filter_blocks: true,
        ..options()
    });
    put(&db, 0..keys, 600);
    db.compact_range(None, None).unwrap();
    db.wait_for_background_work().unwrap();
    let within = || {
        let cache = db.stats().cache;
        assert!(cache.charged + cache.reserved <= capacity, "{cache:?}");
        assert!(cache.blob_index_reserved <= capacity / 4 * 3, "{cache:?}");
        cache
    };
    let before = within();
    for number in 0..2000 {
        reads_of(&fs, &db, number * 7919 % keys, 600);
        if number % 100 == 0 {
            within();
        }
    }
    let cache = within();
    let asked = |kind: usize| {
        let (hits, misses) = (cache.hits[kind], cache.misses[kind]);
        (hits - before.hits[kind], misses - before.misses[kind])
    };
    let (hits, misses) = asked(5);
    assert_eq!(
        hits + misses,
        asked(3).1,
        "each value that is not cached asks once"
    );
    assert!(
        hits > 200 && misses > 200,
        "{hits} hits, {misses} misses: {cache:?}"
    );
    assert!(cache.read_bytes[5] > before.read_bytes[5]);
    assert!(
        cache.blob_index_reserved > capacity / 2,
        "it is used: {cache:?}"
    );
    // Files are closed and opened while others read them.
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (fs, db) = (&fs, &db);
            scope.spawn(move || {
                for number in 0..500 {
                    reads_of(fs, db, (number * 31 + thread * 9973) * 7919 % keys, 600);
                }
            });
        }
    });
    within();
}

#[test]
fn gets_of_separated_values_take_one_read_after_flushes_and_compactions_alike() {
    let (fs, db) = open(Options {
        block_cache_size: 2 << 20,
        compression: Compression::Zstd { level: 1 },
        ..options()
    });
    let keys = 8000;
    let reads = |what: &str| {
        let before = db.stats().cache.misses[4];
        let reads = reads_of_all(&fs, &db, keys, 600);
        let misses = db.stats().cache.misses[4] - before;
        assert!(misses <= keys / 200, "{misses} blocks missed after {what}");
        assert!(reads >= keys / 2, "{reads} reads: values are not cached");
    };
    for _ in 0..2 {
        put(&db, 0..keys, 600);
        flush(&db);
        reads("a flush");
    }
    // Each replaces everything that the one before left in the cache, which does not hold two of them and
    // the rest.
    for _ in 0..6 {
        put(&db, 0..10, 600);
        flush(&db);
        db.compact_range(None, None).unwrap();
        db.wait_for_background_work().unwrap();
        reads("a compaction");
    }
}

#[test]
fn blocks_of_replaced_tables_are_the_first_to_go() {
    let (fs, db) = open(Options {
        block_cache_size: 1 << 20,
        compression: Compression::None,
        ..options()
    });
    // Half of the cache, read often.
    put(&db, 0..4000, 100);
    flush(&db);
    for _ in 0..4 {
        reads_of_all(&fs, &db, 4000, 100);
    }
    for round in 0..8 {
        put(&db, 0..10, 100);
        flush(&db);
        db.compact_range(None, None).unwrap();
        db.wait_for_background_work().unwrap();
        let cold = reads_of_all(&fs, &db, 4000, 100);
        assert!(cold <= 5, "{cold} reads after compaction {round}");
    }
}
