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
use lavakv::{CfId, Compression, Db, Error, Options, ReadOptions, WriteBatch, WriteOptions};

const AT: &str = "/db";

/// Every golden database: the first version; dictionaries and partitioned indexes.
const NAMES: [&str; 2] = ["golden-1", "golden-2"];

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

/// With every feature that a table can have.
fn with_all_features() -> Options {
    Options {
        zstd_dict_bytes: 512,
        index_partition_threshold: 1,
        index_partition_size: 256,
        ..options()
    }
}

/// What every golden database holds, by column family.
fn contents() -> BTreeMap<&'static str, Pairs> {
    let pair = |number: u32| {
        let key = format!("key-{:04}", number * 7 % 1000).into_bytes();
        (
            key,
            vec![b'a' + (number % 26) as u8; (number % 90) as usize],
        )
    };
    let mut main: Pairs = (0..600).map(pair).collect();
    main.retain(|key, _| key.last() != Some(&b'3'));
    let logs = (0..50).map(pair).collect();
    BTreeMap::from([("default", main), ("logs", logs)])
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

fn check(db: &Db) {
    for (name, expected) in contents() {
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
    let contents = contents();
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

#[test]
#[ignore = "makes the golden database of this version"]
fn make_golden() {
    let target = testdata("golden-new");
    make(&target, with_all_features());
    std::fs::remove_file(target.join("db/LOCK")).unwrap();
}

#[test]
fn every_golden_database_opens_and_holds_what_it_held() {
    for name in NAMES {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&testdata(name), dir.path());
        let fs = host(dir.path());
        let view = Db::open_read_only(fs.clone(), Path::new(AT), options()).unwrap();
        check(&view);
        drop(view);
        let db = Db::open(fs.clone(), Path::new(AT), options()).unwrap();
        check(&db);
        db.compact_range(None, None).unwrap();
        check(&db);
        db.close().unwrap();
        let report = Db::repair(&fs, Path::new(AT), &options()).unwrap();
        assert!(report.manifest_kept && report.lost.is_empty(), "{report:?}");
        check(&Db::open(fs, Path::new(AT), options()).unwrap());
    }
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
    assert_eq!(NAMES.map(features), [0, 3]);
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
    for part in [".wal", "MANIFEST", ".sst", "OPTIONS"] {
        for field in [8, 12] {
            let dir = tempfile::tempdir().unwrap();
            copy_dir(&testdata(NAMES[0]), dir.path());
            let path = file(dir.path(), part);
            let len = std::fs::metadata(&path).unwrap().len() as usize;
            match part {
                ".sst" => {
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
                ".sst" => Db::open_read_only(fs, Path::new(AT), options()).and_then(read),
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
        check(&db);
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
        let expected = &contents()["default"];
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
