//! `lava kv` keeps what a database was given, its options and column families, and lets others' be.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{ok, run};
use lavafs::{FileSystemRef, HostFs};
use lavakv::{CompactionOptions, CompactionStyle, Db, Options, WriteBatch, WriteOptions};

const AT: &str = "/db";

fn host(dir: &Path) -> FileSystemRef {
    Arc::new(HostFs::open(dir).unwrap())
}

#[test]
fn commands_open_a_database_with_the_options_that_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let bush = Options {
        create_if_missing: true,
        num_levels: 12,
        write_buffer_size: 64 << 10,
        block_size: 2048,
        compaction: CompactionOptions {
            style: CompactionStyle::Bush,
            bush_growth: 1.5,
            ..CompactionOptions::default()
        },
        ..Options::default()
    };
    let db = Db::open(Arc::clone(&fs), Path::new(AT), bush).unwrap();
    for number in 0..5000_u32 {
        let logged = WriteOptions::default();
        db.put(&number.to_be_bytes(), &[7; 100], &logged).unwrap();
    }
    // Data in a level that the default options have not.
    db.compact_range(None, None).unwrap();
    db.close().unwrap();
    drop(db);
    let place = format!("--fs host:{} --db {AT}", dir.path().display());
    ok(&format!("lava kv put {place} key value"));
    assert_eq!(ok(&format!("lava kv get {place} key")), "value");
    for command in ["delete", "compact", "verify", "stats", "repair"] {
        let key = if command == "delete" { "key" } else { "" };
        ok(&format!("lava kv {command} {place} {key}"));
    }
    let kept = Options::load(&fs, Path::new(AT)).unwrap();
    assert_eq!(kept.compaction.style, CompactionStyle::Bush);
    assert_eq!(kept.compaction.bush_growth, 1.5);
    assert_eq!((kept.num_levels, kept.block_size), (12, 2048));
}

#[test]
fn pairs_of_every_column_family_can_be_told_and_changed() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        create_if_missing: true,
        ..Options::default()
    };
    let db = Db::open(host(dir.path()), Path::new(AT), options).unwrap();
    let logs = db.create_cf("logs").unwrap();
    let mut batch = WriteBatch::new();
    batch.put(b"a", b"default");
    batch.put_cf(logs, b"a", b"logged");
    db.write(batch, &WriteOptions::synced()).unwrap();
    db.close().unwrap();
    drop(db);
    let place = format!("--fs host:{} --db {AT}", dir.path().display());
    assert_eq!(ok(&format!("lava kv get {place} a")), "default");
    assert_eq!(ok(&format!("lava kv get {place} --cf logs a")), "logged");
    ok(&format!("lava kv put {place} --cf logs b 2"));
    assert_eq!(
        ok(&format!("lava kv dump {place} --cf logs")),
        "a\tlogged\nb\t2\n"
    );
    assert_eq!(
        ok(&format!("lava kv scan {place} --cf=logs --from b")),
        "b\t2\n"
    );
    ok(&format!("lava kv delete {place} --cf logs a"));
    assert_eq!(ok(&format!("lava kv scan {place} --cf logs")), "b\t2\n");
    let pairs = dir.path().join("more.tsv");
    std::fs::write(&pairs, "c\t3\n").unwrap();
    ok(&format!(
        "lava kv load {place} --cf logs {}",
        pairs.display()
    ));
    assert_eq!(
        ok(&format!("lava kv dump {place} --cf logs")),
        "b\t2\nc\t3\n"
    );
    let dump = run(&format!("lava kv dump {place}"));
    assert_eq!(dump.stdout, b"a\tdefault\n");
    let told = String::from_utf8(dump.stderr).unwrap();
    assert!(told.contains("other column families") && told.contains("logs"));
    let none = run(&format!("lava kv get {place} --cf none a"));
    let told = String::from_utf8(none.stderr).unwrap();
    assert_eq!((none.status.code(), told.lines().count()), (Some(1), 1));
    assert!(told.contains("no column family 'none'; there are default, logs"));
}

#[test]
fn a_bench_does_not_remove_another_engines_database() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("db");
    std::fs::create_dir(&at).unwrap();
    let files = [
        ("CURRENT", "MANIFEST-000005\n"),
        ("MANIFEST-000005", "rocksdb"),
        ("OPTIONS-000007", "# This is a RocksDB option file.\n"),
        ("000009.sst", "blocks"),
    ];
    for (name, contents) in files {
        std::fs::write(at.join(name), contents).unwrap();
    }
    let place = format!("--fs host:{} --db {AT}", dir.path().display());
    for command in ["bench kv --benchmarks fillseq --num 10", "kv repair"] {
        let refused = run(&format!("lava {command} {place}"));
        let told = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(told.contains("another program"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    for (name, contents) in files {
        assert_eq!(std::fs::read(at.join(name)).unwrap(), contents.as_bytes());
    }
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), files.len());
}

/// It read every value of a blob file to tell its length.
#[test]
fn a_scan_of_keys_reads_no_value() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let options = Options {
        create_if_missing: true,
        ..Options::default()
    };
    let db = Db::open(Arc::clone(&fs), Path::new(AT), options).unwrap();
    for number in 0..20_u64 {
        let value = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
        let key = format!("k{number:02}");
        let logged = WriteOptions::default();
        db.put(key.as_bytes(), &value.repeat(100), &logged).unwrap();
    }
    db.flush().unwrap();
    db.close().unwrap();
    drop((db, fs));
    for entry in std::fs::read_dir(dir.path().join("db")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "blob") {
            let mut bytes = std::fs::read(&path).unwrap();
            // Of the first record, behind the file's own header.
            bytes[60..70].iter_mut().for_each(|byte| *byte ^= 0xFF);
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let place = format!("--fs host:{} --db {AT}", dir.path().display());
    assert!(!run(&format!("lava kv scan {place}")).status.success());
    let keys = ok(&format!("lava kv scan {place} --keys"));
    assert!(
        keys.lines().count() == 20 && keys.starts_with("k00\t800\n"),
        "{keys}"
    );
    let some = ok(&format!("lava kv scan {place} --keys --json --prefix k1"));
    assert_eq!(some.lines().count(), 10, "{some}");
}
