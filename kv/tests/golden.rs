//! Databases as earlier versions left them, in `testdata`: every version opens them.
//!
//! They are made by `cargo test -p lavakv --test golden -- --ignored make_golden`, which writes the
//! present version's into `testdata/golden-new`; a change of a format adds it under the next name.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{copy_dir, host, tiny};
use lavakv::{
    CfId, CompactionOptions, CompactionStyle, Compression, Db, Error, Options, ReadOptions,
    WalRecoveryMode, WriteBatch, WriteOptions,
};

const AT: &str = "/db";

/// Every golden database: the first version; dictionaries and partitioned indexes; blob files, some of which
/// inherited from others, and every option at another value than its default.
const NAMES: [&str; 3] = ["golden-1", "golden-2", "golden-3"];

type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

fn testdata(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/testdata").join(name)
}

fn options() -> Options {
    Options {
        compression: Compression::Zstd { level: 3 },
        ..tiny()
    }
}

/// What a golden database holds, by column family.
fn contents(name: &str) -> BTreeMap<&'static str, Pairs> {
    let pair = |number: u32| {
        let key = format!("key-{:04}", number * 7 % 1000).into_bytes();
        (
            key,
            vec![b'a' + (number % 26) as u8; (number % 90) as usize],
        )
    };
    let mut main: Pairs = (0..600).map(pair).collect();
    main.retain(|key, _| key.last() != Some(&b'3'));
    let logs: Pairs = (0..50).map(pair).collect();
    if name != "golden-3" {
        return BTreeMap::from([("default", main), ("logs", logs)]);
    }
    // Values of 60 B and more are separated, half of these.
    let mut main: Pairs = (0..400).map(pair).collect();
    main.retain(|key, _| key.last() != Some(&b'3'));
    let large = |(key, value): (Vec<u8>, Vec<u8>)| (key, value.repeat(5));
    let large: Pairs = (0..150).map(pair).map(large).collect();
    BTreeMap::from([("default", main), ("logs", logs), ("large", large)])
}

/// Every stored option at another value than its default.
fn with_every_option() -> Options {
    Options {
        create_if_missing: true,
        write_buffer_size: 24 << 10,
        max_write_buffer_number: 3,
        level0_file_num_compaction_trigger: 3,
        level0_slowdown_writes_trigger: 60,
        level0_stop_writes_trigger: 80,
        target_file_size_base: 6 << 10,
        max_bytes_for_level_base: 24 << 10,
        max_bytes_for_level_multiplier: 4.0,
        num_levels: 4,
        level_compaction_dynamic_level_bytes: false,
        compaction: CompactionOptions {
            style: CompactionStyle::Fluid,
            fluid_runs: 3,
            fluid_last_runs: 2,
            bush_growth: 1.5,
            bush_last_ratio: 2.0,
            universal_size_ratio: 10,
            universal_min_merge_width: 3,
            universal_max_merge_width: 8,
            universal_max_size_amplification_percent: 150,
            fifo_max_table_files_size: 1 << 40,
            fifo_ttl: 1 << 30,
            tombstone_ratio: 0.25,
        },
        disable_auto_compactions: true,
        max_background_jobs: 3,
        max_subcompactions: 2,
        soft_pending_compaction_bytes_limit: 1 << 30,
        hard_pending_compaction_bytes_limit: 2 << 30,
        delayed_write_rate: 8 << 20,
        delete_rate: 64 << 20,
        max_total_wal_size: 1 << 20,
        max_manifest_file_size: 1 << 20,
        wal_recovery_mode: WalRecoveryMode::TolerateCorruptedTail,
        compression: Compression::Zstd { level: 5 },
        zstd_dict_bytes: 512,
        min_blob_size: 60,
        blob_file_size: 8 << 10,
        blob_compression: Compression::None,
        compression_per_level: vec![Compression::Zstd { level: 2 }],
        enable_blob_garbage_collection: false,
        max_blob_collections: 1,
        blob_correlated_compaction_bytes: 0,
        blob_collection_idle_millis: 60_000,
        block_size: 1024,
        index_partition_threshold: 1,
        index_partition_size: 256,
        bloom_bits_per_key: 8.0,
        filters_by_level: false,
        block_cache_size: 1 << 20,
        cache_index_and_filter_blocks: true,
        protection_bytes_per_key: 8,
        allow_concurrent_memtable_write: false,
        histograms: true,
        ..Options::default()
    }
}

fn pairs(db: &Db, cf: CfId) -> Pairs {
    let mut iter = db.iter_cf(cf, &ReadOptions::default()).unwrap();
    let mut found = Pairs::new();
    iter.seek_to_first();
    while iter.valid() {
        found.insert(iter.key().to_vec(), iter.value().to_vec());
        iter.next();
    }
    iter.status().unwrap();
    found
}

fn check(db: &Db, name: &str) {
    for (name, expected) in contents(name) {
        let cf = db.cf(name).unwrap_or_else(|| panic!("no family {name}"));
        assert_eq!(pairs(db, cf), expected, "family {name}");
    }
    db.verify().unwrap();
}

/// Fills a new database in `dir` and leaves it as a crash would.
fn make(dir: &Path, options: Options) {
    std::fs::create_dir_all(dir).unwrap();
    let db = Db::open(host(dir), Path::new(AT), options).unwrap();
    let logs = db.create_cf("logs").unwrap();
    let contents = contents("golden-2");
    for (index, key) in contents["default"].keys().enumerate() {
        // Older versions and deletions lie below.
        let mut batch = WriteBatch::new();
        batch.put(key, b"older");
        if index % 5 == 0 {
            batch.delete(key);
        }
        db.write(batch, &WriteOptions::default()).unwrap();
    }
    db.put(b"gone", b"value", &WriteOptions::default()).unwrap();
    db.compact_range(None, None).unwrap();
    db.single_delete(b"gone", &WriteOptions::default()).unwrap();
    for (index, (key, value)) in contents["default"].iter().enumerate() {
        db.put(key, value, &WriteOptions::default()).unwrap();
        if index == 300 {
            db.flush().unwrap();
        }
    }
    let mut batch = WriteBatch::new();
    for (key, value) in &contents["logs"] {
        batch.put_cf(logs, key, value);
    }
    db.write(batch, &WriteOptions::synced()).unwrap();
    db.wait_for_background_work().unwrap();
}

/// Fills a new database with blob files in `dir` and leaves it as a crash would.
fn make_with_blobs(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let mut options = with_every_option();
    let large = Options {
        min_blob_size: 30,
        blob_compression: Compression::Zstd { level: 2 },
        ..options.clone()
    };
    options.cf_options.insert("large".to_owned(), large);
    let db = Db::open(host(dir), Path::new(AT), options).unwrap();
    let logs = db.create_cf("logs").unwrap();
    let large = db.create_cf("large").unwrap();
    let contents = contents("golden-3");
    let families = [
        (CfId::DEFAULT, &contents["default"]),
        (large, &contents["large"]),
    ];
    // The first round is of other values and in part garbage after the second, which is collected: the
    // tables of the keys that were not written again name ancestors.
    for round in 0..2 {
        for (cf, pairs) in families {
            for (index, (key, value)) in pairs.iter().enumerate() {
                let mut batch = WriteBatch::new();
                match (round, index % 3) {
                    (0, 0) => batch.put_cf(cf, key, &[b'0'; 100]),
                    (0, _) | (_, 0) => batch.put_cf(cf, key, value),
                    _ => continue,
                }
                db.write(batch, &WriteOptions::default()).unwrap();
            }
        }
        db.put(b"gone", &[b'g'; 100], &WriteOptions::default())
            .unwrap();
        db.compact_range(None, None).unwrap();
        db.delete(b"gone", &WriteOptions::default()).unwrap();
    }
    db.collect_blob_garbage().unwrap();
    assert!(db.stats().blobs.ancestors > 0, "{:?}", db.stats().blobs);
    db.flush().unwrap();
    let mut batch = WriteBatch::new();
    for (key, value) in &contents["logs"] {
        batch.put_cf(logs, key, value);
    }
    db.write(batch, &WriteOptions::synced()).unwrap();
    db.wait_for_background_work().unwrap();
}

#[test]
#[ignore = "makes the golden database of this version"]
fn make_golden() {
    let target = testdata("golden-new");
    make_with_blobs(&target);
    std::fs::remove_file(target.join("db/LOCK")).unwrap();
}

#[test]
fn every_golden_database_opens_and_holds_what_it_held() {
    for name in NAMES {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&testdata(name), dir.path());
        let fs = host(dir.path());
        let view = Db::open_read_only(fs.clone(), Path::new(AT), options()).unwrap();
        check(&view, name);
        drop(view);
        // Without a manifest its files say all that is needed.
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        std::fs::remove_file(copy.path().join("db/CURRENT")).unwrap();
        let copy = host(copy.path());
        let report = Db::repair(&copy, Path::new(AT), &options()).unwrap();
        assert!(
            report.lost.is_empty() && report.lost_values == 0,
            "{report:?}"
        );
        check(&Db::open(copy, Path::new(AT), options()).unwrap(), name);
        let db = Db::open(fs.clone(), Path::new(AT), options()).unwrap();
        check(&db, name);
        db.collect_blob_garbage().unwrap();
        db.compact_range(None, None).unwrap();
        check(&db, name);
        db.close().unwrap();
        let report = Db::repair(&fs, Path::new(AT), &options()).unwrap();
        assert!(report.manifest_kept && report.lost.is_empty(), "{report:?}");
        check(&Db::open(fs, Path::new(AT), options()).unwrap(), name);
    }
}

#[test]
fn the_golden_database_of_blob_files_has_what_it_stands_for() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&testdata("golden-3"), dir.path());
    let fs = host(dir.path());
    let view = Db::open_read_only(fs.clone(), Path::new(AT), options()).unwrap();
    let blobs = view.stats().blobs;
    assert!(blobs.files > 3 && blobs.ancestors > 0, "{blobs:?}");
    drop(view);
    // Every option that was known then has another value than the default.
    let fresh = tempfile::tempdir().unwrap();
    let create = Options {
        create_if_missing: true,
        ..Options::default()
    };
    let db = Db::open(host(fresh.path()), Path::new(AT), create).unwrap();
    drop(db);
    let stored = |dir: &Path| -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(file(dir, "OPTIONS")).unwrap();
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let lines = lines.filter(|(name, _)| !name.contains('/'));
        lines
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    };
    let defaults = stored(fresh.path());
    let stored = stored(dir.path());
    assert!(stored.len() >= 52, "{}", stored.len());
    for (name, value) in stored {
        assert_ne!(Some(&value), defaults.get(&name), "{name}");
    }
    // They read back, and those of the family too.
    let loaded = Options::load(&fs, Path::new(AT)).unwrap();
    assert_eq!(loaded.cf_options["large"].min_blob_size, 30);
    assert_eq!(loaded.compaction.style, CompactionStyle::Fluid);
}

#[test]
fn the_golden_tables_have_the_features_that_they_stand_for() {
    let features = |name: &str| {
        let tables = std::fs::read_dir(testdata(name).join("db")).unwrap();
        let tables = tables.map(|entry| entry.unwrap().path());
        let tables = tables.filter(|path| path.extension().is_some_and(|end| end == "sst"));
        tables.fold(0, |all, path| {
            let bytes = std::fs::read(path).unwrap();
            let at = bytes.len() - 96 + 12;
            all | u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
        })
    };
    // Tables of the third are too small for a dictionary.
    assert_eq!(NAMES.map(features), [0, 3, 2]);
}

/// The only file of the database whose name has this part.
fn file(dir: &Path, part: &str) -> PathBuf {
    let names = std::fs::read_dir(dir.join("db")).unwrap();
    let mut names: Vec<PathBuf> = names.map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let of = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().contains(part);
    names.into_iter().rfind(of).unwrap()
}

fn listing(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let names = std::fs::read_dir(dir.join("db")).unwrap();
    let read = |path: PathBuf| (path.clone(), std::fs::read(path).unwrap());
    let files = names.map(|entry| read(entry.unwrap().path()));
    files.filter(|(path, _)| !path.ends_with("LOCK")).collect()
}

/// Changes a number in a file and seals it again.
fn reseal(path: &Path, at: usize, seal: std::ops::Range<usize>, to: u8) {
    let mut data = std::fs::read(path).unwrap();
    data[at] = to;
    let crc = crc32c::crc32c(&data[seal.clone()]);
    data[seal.end..seal.end + 4].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(path, data).unwrap();
}

#[test]
fn a_newer_format_of_any_file_is_refused_by_name_and_nothing_is_changed() {
    // Which file, and where its version and its incompatible features are: of log and manifest
    // in the header, of a table in the footer.
    for part in [".wal", "MANIFEST", ".sst", ".blob", "OPTIONS"] {
        for field in [8, 12] {
            let dir = tempfile::tempdir().unwrap();
            copy_dir(&testdata(NAMES[2]), dir.path());
            let path = file(dir.path(), part);
            let len = std::fs::metadata(&path).unwrap().len() as usize;
            match part {
                ".sst" | ".blob" => {
                    let footer = len - 96;
                    reseal(&path, footer + field, footer..footer + 92, 0x40);
                }
                "OPTIONS" => {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let newer = text.replacen("lavakv-options 1", "lavakv-options 2", 1);
                    std::fs::write(&path, newer).unwrap();
                }
                _ => reseal(&path, field, 0..60, 0x40),
            }
            let before = listing(dir.path());
            let fs = host(dir.path());
            let read = |db: Db| db.verify().map(|_| ());
            let outcome = match part {
                // Tables are opened when they are needed.
                ".sst" | ".blob" => Db::open_read_only(fs, Path::new(AT), options()).and_then(read),
                _ => Db::open(fs, Path::new(AT), options()).map(|_| ()),
            };
            let error = outcome.unwrap_err();
            let told = error.to_string();
            assert!(told.contains("not supported"), "{part} {field}: {told}");
            assert!(!error.is_corrupt(), "{part} {field}: {told}");
            assert_eq!(listing(dir.path()), before, "{part} {field}");
        }
    }
}

#[test]
fn repair_brings_every_pair_back_without_current_and_manifest() {
    for names in [
        vec!["CURRENT"],
        vec!["CURRENT", "MANIFEST"],
        vec!["MANIFEST"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), options());
        let fs = host(dir.path());
        for name in &names {
            std::fs::remove_file(file(dir.path(), name)).unwrap();
        }
        Db::open(fs.clone(), Path::new(AT), options()).unwrap_err();
        let report = Db::repair(&fs, Path::new(AT), &options()).unwrap();
        assert!(!report.manifest_kept && report.tables > 0 && report.logs > 0);
        let db = Db::open(fs.clone(), Path::new(AT), options()).unwrap();
        check(&db, "golden-1");
        let busy = Db::repair(&fs, Path::new(AT), &options());
        assert!(matches!(busy, Err(Error::Busy { .. })), "{names:?}");
        db.put(b"more", b"", &WriteOptions::synced()).unwrap();
        db.compact_range(None, None).unwrap();
        db.verify().unwrap();
    }
}

#[test]
fn repair_sets_a_damaged_table_aside_and_keeps_the_rest() {
    for keep_manifest in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), options());
        let fs = host(dir.path());
        let path = file(dir.path(), ".sst");
        let mut data = std::fs::read(&path).unwrap();
        data[10] ^= 0x20;
        std::fs::write(&path, data).unwrap();
        if !keep_manifest {
            std::fs::remove_file(file(dir.path(), "CURRENT")).unwrap();
        }
        let report = Db::repair(&fs, Path::new(AT), &options()).unwrap();
        assert_eq!(report.manifest_kept, keep_manifest);
        assert!(
            report
                .lost
                .iter()
                .any(|(lost, _)| lost.ends_with(path.file_name().unwrap()))
        );
        assert!(path.with_extension("sst.damaged").exists() && !path.exists());
        let db = Db::open(fs, Path::new(AT), options()).unwrap();
        db.verify().unwrap();
        // Nothing is invented: each value is one that its key once had.
        let expected = &contents("golden-1")["default"];
        for (key, value) in pairs(&db, CfId::DEFAULT) {
            let once = expected.get(&key) == Some(&value) || value == b"older";
            assert!(once || key == b"gone", "{}", key.escape_ascii());
        }
    }
}

#[test]
fn repair_refuses_a_directory_without_a_database() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("db")).unwrap();
    std::fs::write(dir.path().join("db/notes.txt"), "mine").unwrap();
    let refused = Db::repair(&host(dir.path()), Path::new(AT), &options());
    assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
    assert_eq!(listing(dir.path()).len(), 1);
}
