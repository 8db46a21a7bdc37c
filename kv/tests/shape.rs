//! What shapes and filters promise, in counts: block reads of lookups in vain, bytes written.
//! Everything runs step by step with fixed seeds, so that the counts are the same each time.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::f64::consts::LN_2;
use std::path::Path;
use std::sync::Arc;

use common::{Rng, sim_device};
use lavafs::{FileSystemRef, LavaFs, MountOptions};
use lavakv::sstable::{OpenOptions, Table};
use lavakv::{
    BlockCache, CompactionOptions, CompactionStyle, Compression, Db, Options, ReadOptions,
    WriteOptions,
};

/// Bytes of a flush in these tests, about.
const BUFFER: u64 = 32 << 10;
/// Entries of a flush.
const FLUSH: u64 = 500;

/// A filesystem that reads nothing ahead: its device reads are the block reads that are counted. With
/// reading ahead, a table of a few blocks is soon read by chance as if by a sequential reader, and
/// from then on out of the window.
fn mount() -> FileSystemRef {
    let options = MountOptions {
        background: false,
        readahead: 0,
        ..MountOptions::default()
    };
    Arc::new(LavaFs::mount(sim_device(256 << 20, 512), &options).unwrap())
}

fn options(style: CompactionStyle, ratio: f64) -> Options {
    Options {
        create_if_missing: true,
        write_buffer_size: 4 << 20,
        target_file_size_base: BUFFER,
        max_bytes_for_level_base: BUFFER * ratio as u64,
        max_bytes_for_level_multiplier: ratio,
        level0_file_num_compaction_trigger: 1,
        num_levels: 8,
        block_size: 512,
        compression: Compression::None,
        block_cache_size: 0,
        max_background_jobs: 1,
        compaction: CompactionOptions {
            style,
            ..CompactionOptions::default()
        },
        ..Options::default()
    }
}

/// A key that is there for each number; [`missing`] ones lie between them.
fn key(number: u64) -> Vec<u8> {
    let mixed = Rng(number).next();
    format!("{mixed:016x}").into_bytes()
}

fn missing(number: u64) -> Vec<u8> {
    let mut key = key(number);
    key.push(b'-');
    key
}

/// Puts distinct keys in an order without order, a flush at a time, each compaction before the
/// next flush.
fn load(db: &Db, flushes: std::ops::Range<u64>) {
    for flush in flushes {
        for number in flush * FLUSH..(flush + 1) * FLUSH {
            db.put(&key(number), &[7; 40], &WriteOptions::default())
                .unwrap();
        }
        db.flush().unwrap();
        db.wait_for_background_work().unwrap();
    }
}

/// Entries and bits of filter of each table of the database.
fn tables(fs: &FileSystemRef, dir: &Path) -> Vec<(f64, f64)> {
    let mut tables = Vec::new();
    for entry in fs.list(dir).unwrap() {
        let name = Path::new(&entry.name).to_path_buf();
        if name.extension().is_some_and(|extension| extension == "sst") {
            let file = fs.open(&dir.join(&name)).unwrap();
            let cache = BlockCache::new(0);
            let table = Table::open(file, 0, cache, OpenOptions::default()).unwrap();
            let bits = 8.0 * table.filter_bytes() as f64;
            tables.push((table.properties().entries as f64, bits));
        }
    }
    tables
}

/// Block reads of each lookup of a missing key, on average.
fn reads_in_vain(fs: &FileSystemRef, db: &Db, keys: u64) -> f64 {
    // Opens every table first.
    for number in 0..keys {
        db.get(&missing(number), &ReadOptions::default()).unwrap();
    }
    let before = fs.counters().read_ios;
    let lookups = 40_000;
    for number in 0..lookups {
        let key = missing(number % keys + 7_000_000 * (number / keys));
        assert_eq!(db.get(&key, &ReadOptions::default()).unwrap(), None);
    }
    (fs.counters().read_ios - before) as f64 / lookups as f64
}

#[test]
fn filters_by_level_halve_the_reads_in_vain_and_cost_what_the_formula_says() {
    let (flushes, ratio, bits) = (261, 6.0, 5.0);
    let measured = |bits, by_level| {
        let fs = mount();
        let options = Options {
            bloom_bits_per_key: bits,
            filters_by_level: by_level,
            max_bytes_for_level_base: BUFFER,
            target_file_size_base: 4 * BUFFER,
            level0_file_num_compaction_trigger: 2,
            ..self::options(CompactionStyle::Level, ratio)
        };
        let db = Db::open(fs.clone(), Path::new("/db"), options).unwrap();
        load(&db, 0..flushes);
        let levels: Vec<_> = db.stats().levels.iter().map(|level| level.files).collect();
        assert!(
            levels.iter().filter(|&&files| files > 0).count() >= 4,
            "{levels:?}"
        );
        let reads = reads_in_vain(&fs, &db, flushes * FLUSH);
        let sizes: Vec<f64> = db
            .stats()
            .levels
            .iter()
            .map(|level| level.bytes as f64)
            .filter(|&bytes| bytes > 0.0)
            .collect();
        // Those that were merged away are removed when the database is closed, at the latest.
        db.close().unwrap();
        (reads, tables(&fs, Path::new("/db")), sizes)
    };
    let (ours, tables, sizes) = measured(bits, true);
    let entries: f64 = tables.iter().map(|(entries, _)| entries).sum();
    let memory: f64 = tables.iter().map(|(_, bits)| bits).sum();
    assert!(
        memory / entries <= bits * 1.02,
        "{} bits a key",
        memory / entries
    );
    let (uniform, plain, _) = measured(memory / entries, false);
    let plain_memory: f64 = plain.iter().map(|(_, bits)| bits).sum();
    assert!(
        (plain_memory / memory - 1.0).abs() < 0.02,
        "{plain_memory} and {memory} bits"
    );
    // Monkey's rates for these very runs and this memory: p = lambda n with
    // sum n ln(1/p) = memory ln(2)^2, all levels filtered.
    let total: f64 = sizes.iter().sum();
    let runs: Vec<f64> = sizes.iter().map(|bytes| bytes / total * entries).collect();
    let logs: f64 = runs.iter().map(|n| n * n.ln()).sum();
    let lambda = ((-memory * LN_2 * LN_2 - logs) / entries).exp();
    let formula: f64 = runs.iter().map(|n| lambda * n).sum();
    println!("reads in vain: {ours}, uniform {uniform}, formula {formula}, runs {runs:?}");
    assert!(
        ours <= 0.5 * uniform,
        "{ours} against {uniform} with uniform bits"
    );
    assert!(
        (ours / formula - 1.0).abs() <= 0.15,
        "{ours} against {formula} by the formula"
    );
}

/// Bytes written to tables for each byte flushed,
/// and block reads of a lookup in vain.
fn costs(style: CompactionStyle, ratio: f64, flushes: u64, bits: f64) -> (f64, f64) {
    let fs = mount();
    let mut options = options(style, ratio);
    options.bloom_bits_per_key = bits;
    options.compaction.fluid_runs = 1;
    options.compaction.fluid_last_runs = 1;
    let db = Db::open(fs.clone(), Path::new("/db"), options).unwrap();
    load(&db, 0..flushes);
    db.verify().unwrap();
    let levels: Vec<_> = db
        .stats()
        .levels
        .iter()
        .map(|level| (level.runs, level.files))
        .collect();
    let told = db.tickers();
    println!("{style:?}: {levels:?} {told:?}");
    let written = told.flush_bytes + told.compaction_write_bytes;
    let reads = reads_in_vain(&fs, &db, flushes * FLUSH);
    (written as f64 / told.flush_bytes as f64, reads)
}

/// Bytes written for each byte flushed, by Dostoevsky's reckoning with the details of this engine:
/// a run that grows to the ratio T by merging each arrival is written (T + 1) / 2 times on
/// average, less the first arrival, which is moved; a tiered level is written once, but for the
/// one time in T that its level is full and skipped. The last level is T times what arrives. A database
/// that grows has had fewer levels for its first entries, so the cost is averaged over its growth.
fn modelled(ratio: f64, flushes: u64, tiered: bool) -> f64 {
    let level = match tiered {
        true => (ratio - 1.0) / ratio,
        false => ratio.midpoint(1.0) - 1.0 / ratio,
    };
    let costs = (1..=flushes).map(|flush| {
        let mut middle = 0.0;
        let mut capacity = flush as f64 / ratio;
        // The base level lies within the square root of a ratio of its nominal size.
        while capacity > ratio * ratio.sqrt() {
            middle += 1.0;
            capacity /= ratio;
        }
        let base = if tiered { 0.0 } else { level };
        1.0 + base + middle * level + ratio + 1.0
    });
    costs.sum::<f64>() / flushes as f64
}

#[test]
fn lazy_leveling_writes_as_much_less_as_the_cost_model_says() {
    let (ratio, flushes) = (4.0_f64, 300);
    // Equal reads in vain take K^(1/T) in the exponent of the filters more (Dostoevsky, eq. 9).
    let bits: f64 = 6.0;
    let more = (ratio - 1.0).ln() / ratio / (LN_2 * LN_2);
    let (leveling, leveling_reads) = costs(CompactionStyle::Fluid, ratio, flushes, bits);
    let (lazy, lazy_reads) = costs(CompactionStyle::LazyLevel, ratio, flushes, bits + more);
    println!("reads in vain: leveling {leveling_reads}, lazy {lazy_reads}");
    assert!(
        lazy_reads <= 1.1 * leveling_reads,
        "{lazy_reads} against {leveling_reads}"
    );
    let models = [
        modelled(ratio, flushes, false),
        modelled(ratio, flushes, true),
    ];
    println!("leveling {leveling}, lazy {lazy}, by the model {models:?}");
    assert!((leveling / models[0] - 1.0).abs() < 0.25);
    assert!((lazy / models[1] - 1.0).abs() < 0.25);
    assert!(((lazy / leveling) / (models[1] / models[0]) - 1.0).abs() < 0.25);
}

#[test]
fn a_change_of_policy_rewrites_nothing_at_rest_and_little_with_each_write() {
    let fs = mount();
    let at = Path::new("/db");
    let open = |style| Db::open(fs.clone(), at, options(style, 5.0)).unwrap();
    let db = open(CompactionStyle::Tiered);
    load(&db, 0..70);
    db.close().unwrap();
    for style in [
        CompactionStyle::Level,
        CompactionStyle::Universal,
        CompactionStyle::Bush,
        CompactionStyle::LazyLevel,
    ] {
        let db = open(style);
        db.wait_for_background_work().unwrap();
        let told = db.tickers();
        let rewritten = told.migration_bytes + told.compaction_write_bytes;
        assert_eq!(rewritten, 0, "{style:?}: nothing was written since");
        db.close().unwrap();
    }
    // Leveled again, with the runs of a tiered tree: they go as writing goes on, and what that
    // reads is no more than what was flushed, but for the last step.
    let db = open(CompactionStyle::Level);
    let runs = || db.stats().levels.iter().map(|level| level.runs).max();
    let before = runs();
    assert!(before >= Some(3), "{before:?} runs of a level at most");
    load(&db, 70..200);
    let told = db.tickers();
    let after = runs();
    println!("{before:?} runs of a level at most, then {after:?}: {told:?}");
    let step = 12 * BUFFER;
    assert!(told.migration_bytes > 0 && told.migration_bytes <= told.flush_bytes + step);
    assert!(
        after < before,
        "{after:?} runs of a level at most, {before:?} before"
    );
    db.verify().unwrap();
}

#[test]
fn a_change_to_universal_rewrites_little_with_each_write_and_ends_with_one_old_run() {
    let fs = mount();
    let at = Path::new("/db");
    let open = |style| {
        let options = Options {
            level0_file_num_compaction_trigger: 8,
            ..options(style, 5.0)
        };
        Db::open(fs.clone(), at, options).unwrap()
    };
    let db = open(CompactionStyle::Tiered);
    load(&db, 0..70);
    let runs = |db: &Db| {
        let levels = db.stats().levels;
        let below: usize = levels[1..].iter().map(|level| level.runs).sum();
        below
    };
    assert!(runs(&db) >= 4, "{} runs of another policy", runs(&db));
    db.close().unwrap();
    // What the policy merges of its own accord is about what it merges of the same flushes elsewhere.
    let own = |db: &Db| {
        let told = db.tickers();
        told.compaction_read_bytes - told.migration_bytes
    };
    let db = open(CompactionStyle::Universal);
    let other = {
        let options = Options {
            level0_file_num_compaction_trigger: 7,
            ..options(CompactionStyle::Universal, 5.0)
        };
        Db::open(mount(), at, options).unwrap()
    };
    let step = 12 * BUFFER;
    let mut flushed = 70;
    for more in [1, 2, 4, 8, 16, 32] {
        load(&db, flushed..flushed + more);
        load(&other, flushed..flushed + more);
        flushed += more;
        let told = db.tickers();
        assert!(told.migration_bytes <= told.flush_bytes + step, "{told:?}");
        let (here, there) = (own(&db), own(&other));
        println!("{flushed} flushes: {here} merged, {there} in a new database");
        assert!(here <= 2 * there + step, "{told:?}");
    }
    load(&db, flushed..flushed + 150);
    assert!(runs(&db) <= 1, "{} runs are left", runs(&db));
    db.verify().unwrap();
}
