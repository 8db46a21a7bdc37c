//! Databases whose blob files have dictionaries: smaller where values are alike, and as readable as any other
//! after a reopen, collections, compactions and repairs, whatever the option was when a file was written.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::{Path, PathBuf};

use common::{Rng, host, tiny};
use lavafs::FileSystemRef;
use lavakv::{Compression, Db, Options, ReadOptions, WriteOptions};

const AT: &str = "/db";
const KEYS: u64 = 1500;

fn options(blob_zstd_dict_bytes: usize) -> Options {
    Options {
        write_buffer_size: 1 << 20,
        min_blob_size: 100,
        blob_file_size: 128 << 10,
        blob_compression: Compression::Zstd { level: 1 },
        blob_zstd_dict_bytes,
        enable_blob_garbage_collection: false,
        blob_correlated_compaction_bytes: 0,
        ..tiny()
    }
}

fn open(fs: &FileSystemRef, options: Options) -> Db {
    Db::open(fs.clone(), Path::new(AT), options).unwrap()
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:08}").into_bytes()
}

/// Most of it is the same in all values; one in fifty is noise.
fn value(number: u64, round: u64) -> Vec<u8> {
    let mut rng = Rng(number * 31 + round);
    if number % 50 == 7 {
        return (0..300).map(|_| rng.next() as u8).collect();
    }
    format!(
        "{{\"account_identifier\":\"{:016x}\",\"registration_country\":\"NL\",\"revision\":{round},\
         \"notification_preferences\":{{\"electronic_mail\":true,\"text_message\":false}},\
         \"subscription_level\":\"professional\",\"postal_address\":{{\"street\":\"Keizersgracht {}\",\
         \"city\":\"Amsterdam\"}},\"last_login_at\":\"2024-0{}-11T08:{}:00Z\"}}",
        rng.next(),
        rng.below(900),
        1 + rng.below(9),
        10 + rng.below(50),
    )
    .into_bytes()
}

fn put_each(db: &Db, step: usize, round: u64) {
    for number in (0..KEYS).step_by(step) {
        let value = value(number, round);
        db.put(&key(number), &value, &WriteOptions::default())
            .unwrap();
    }
}

/// Every third key was written again.
fn check(db: &Db) {
    let mut iter = db.iter(&ReadOptions::default()).unwrap();
    iter.seek_to_first();
    for number in 0..KEYS {
        let expected = value(number, u64::from(number % 3 == 0));
        let found = db.get(&key(number), &ReadOptions::default()).unwrap();
        assert!(found.as_ref() == Some(&expected), "get {number}");
        assert!(iter.valid() && iter.key() == key(number), "walk {number}");
        assert!(iter.value() == expected, "walk {number}");
        iter.next();
    }
    assert!(!iter.valid());
    db.verify().unwrap();
    db.verify_garbage().unwrap();
}

fn blob_files(dir: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir.join("db")).unwrap();
    let names = names.map(|entry| entry.unwrap().path());
    let mut names: Vec<_> = names
        .filter(|path| path.extension().is_some_and(|name| name == "blob"))
        .collect();
    names.sort();
    names
}

/// Two rounds of writes, compacted, with garbage left from the first.
fn fill(fs: &FileSystemRef, first: Options, second: Options) {
    let db = open(fs, first);
    put_each(&db, 1, 0);
    db.compact_range(None, None).unwrap();
    db.close().unwrap();
    drop(db);
    let db = open(fs, second);
    put_each(&db, 3, 1);
    db.compact_range(None, None).unwrap();
    db.close().unwrap();
}

#[test]
fn values_that_are_alike_take_half_the_space_and_read_back() {
    let mut bytes = Vec::new();
    for dict_bytes in [0, 1024] {
        let dir = tempfile::tempdir().unwrap();
        let fs = host(dir.path());
        fill(&fs, options(dict_bytes), options(dict_bytes));
        let db = open(&fs, options(dict_bytes));
        check(&db);
        db.collect_blob_garbage().unwrap();
        check(&db);
        let blobs = db.stats().blobs;
        assert_eq!(blobs.garbage_bytes, 0);
        bytes.push(blobs.file_bytes);
        db.close().unwrap();
        drop(db);
        check(&open(&fs, options(dict_bytes)));
    }
    assert!(bytes[1] * 2 < bytes[0], "{bytes:?}");
}

#[test]
fn collections_and_compactions_take_values_from_and_to_any_dictionary() {
    let uncompressed = Options {
        blob_compression: Compression::None,
        ..options(1024)
    };
    let every = [options(0), options(512), options(1024), uncompressed];
    for (at, first) in every.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let fs = host(dir.path());
        let second = &every[(at + 1) % 4];
        fill(&fs, first.clone(), second.clone());
        let last = Options {
            blob_correlated_compaction_bytes: [0, 64 << 20][at % 2],
            ..every[(at + 2) % 4].clone()
        };
        let db = open(&fs, last);
        // Tables are written anew, and take values along where that is allowed.
        db.compact_range(None, None).unwrap();
        check(&db);
        db.collect_blob_garbage().unwrap();
        check(&db);
        db.close().unwrap();
    }
}

#[test]
fn a_repair_reads_values_that_need_dictionaries() {
    for manifest in [true, false] {
        let damages = [None, Some("footer"), Some("record")];
        // Undamaged and with its manifest, a database is only looked at.
        for damage in damages.into_iter().skip(usize::from(manifest)) {
            let dir = tempfile::tempdir().unwrap();
            let fs = host(dir.path());
            fill(&fs, options(1024), options(512));
            for path in blob_files(dir.path()) {
                let mut bytes = std::fs::read(&path).unwrap();
                let len = bytes.len();
                match damage {
                    Some("footer") => bytes[len - 50] ^= 1,
                    Some(_) => bytes[len / 3] ^= 1,
                    None => continue,
                }
                std::fs::write(&path, bytes).unwrap();
            }
            if !manifest {
                for entry in std::fs::read_dir(dir.path().join("db")).unwrap() {
                    let path = entry.unwrap().path();
                    let name = path.file_name().unwrap().to_str().unwrap();
                    if name.starts_with("CURRENT") || name.starts_with("MANIFEST") {
                        std::fs::remove_file(path).unwrap();
                    }
                }
            }
            let files = blob_files(dir.path()).len() as u64;
            let report = Db::repair(&fs, Path::new(AT), &options(0)).unwrap();
            assert_eq!(report.manifest_kept, manifest);
            if damage == Some("record") {
                // One in each file, at most.
                assert!(report.lost_values <= files, "{report:?}");
                let db = open(&fs, options(512));
                db.verify().unwrap();
                continue;
            }
            assert_eq!(report.lost_values, 0, "{damage:?}: {report:?}");
            check(&open(&fs, options(512)));
        }
    }
}
