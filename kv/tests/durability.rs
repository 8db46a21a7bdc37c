//! What survives: synced writes, whole batches, every step of a change of the structure; and what is
//! refused: damage, with file and offset.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{Rng, WatchFs, copy_dir, host, on_each_fs, seed, tiny};
use lavafs::FileSystemRef;
use lavakv::{Db, Error, Options, ReadOptions, WalRecoveryMode, WriteBatch, WriteOptions};
use parking_lot::Mutex;

const AT: &str = "/db";

fn get(db: &Db, key: &[u8]) -> Option<Vec<u8>> {
    db.get(key, &ReadOptions::default()).unwrap()
}

fn open(dir: &Path, options: Options) -> lavakv::Result<Db> {
    Db::open(host(dir), Path::new(AT), options)
}

fn open_on(fs: &FileSystemRef, options: Options) -> lavakv::Result<Db> {
    Db::open(fs.clone(), Path::new(AT), options)
}

/// The newest file of the database whose name ends so.
fn newest(dir: &Path, suffix: &str) -> PathBuf {
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir.join("db"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(suffix))
        .collect();
    names.sort();
    names.pop().unwrap()
}

fn flip(path: &Path, at: usize) {
    let mut data = std::fs::read(path).unwrap();
    data[at] ^= 0x10;
    std::fs::write(path, data).unwrap();
}

#[test]
fn synced_writes_survive_a_drop_without_close() {
    on_each_fs(drop_without_close);
}

fn drop_without_close(fs: FileSystemRef) {
    for round in 0..20_u32 {
        let db = open_on(&fs, tiny()).unwrap();
        for earlier in 0..round {
            let key = earlier.to_be_bytes();
            assert_eq!(
                get(&db, &key),
                Some(vec![earlier as u8; 3000]),
                "in round {round}"
            );
        }
        db.put(
            &round.to_be_bytes(),
            &vec![round as u8; 3000],
            &WriteOptions::synced(),
        )
        .unwrap();
        drop(db);
    }
}

#[test]
fn a_value_of_tens_of_megabytes_is_logged_flushed_and_read() {
    on_each_fs(write_large_values);
}

fn write_large_values(fs: FileSystemRef) {
    let options = Options {
        create_if_missing: true,
        ..Options::default()
    };
    let value: Vec<u8> = (0..40_u32 << 20).map(|at| (at * 7 % 251) as u8).collect();
    let db = open_on(&fs, options.clone()).unwrap();
    db.put(b"large", &value, &WriteOptions::synced()).unwrap();
    drop(db);
    let db = open_on(&fs, options.clone()).unwrap();
    assert!(get(&db, b"large").as_ref() == Some(&value));
    db.put(b"again", &value, &WriteOptions::default()).unwrap();
    db.put(b"again", &value, &WriteOptions::default()).unwrap();
    db.close().unwrap();
    let db = open_on(&fs, options).unwrap();
    assert!(get(&db, b"again").as_ref() == Some(&value));
    assert!(get(&db, b"large").as_ref() == Some(&value));
}

#[test]
fn unlogged_writes_are_durable_after_flush_or_close_only() {
    on_each_fs(write_unlogged);
}

fn write_unlogged(fs: FileSystemRef) {
    let unlogged = WriteOptions {
        sync: false,
        disable_wal: true,
    };
    let db = open_on(&fs, tiny()).unwrap();
    db.put(b"flushed", b"1", &unlogged).unwrap();
    db.flush().unwrap();
    db.put(b"lost", b"2", &unlogged).unwrap();
    drop(db);
    let db = open_on(&fs, tiny()).unwrap();
    assert_eq!(get(&db, b"flushed"), Some(b"1".to_vec()));
    assert_eq!(get(&db, b"lost"), None);
    db.put(b"closed", b"3", &unlogged).unwrap();
    db.close().unwrap();
    assert!(matches!(
        db.put(b"late", b"", &unlogged),
        Err(Error::Busy { .. })
    ));
    let late = db.get(b"closed", &ReadOptions::default());
    assert!(matches!(late, Err(Error::Busy { .. })), "{late:?}");
    drop(db);
    let db = open_on(&fs, tiny()).unwrap();
    assert_eq!(get(&db, b"closed"), Some(b"3".to_vec()));
}

/// Copies the directory before every change of a file, while a history of synced batches runs, and
/// opens every copy: as after a crash of the process at that point.
#[test]
fn a_crash_at_any_step_leaves_what_was_acknowledged_and_whole_batches() {
    let root = tempfile::tempdir().unwrap();
    let live = root.path().join("live");
    std::fs::create_dir_all(&live).unwrap();
    let mut rng = Rng(seed());
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let copies: Arc<Mutex<Vec<(PathBuf, usize, String)>>> = Arc::default();
    let watcher = {
        let (live, root) = (live.clone(), root.path().to_path_buf());
        let (acknowledged, copies) = (acknowledged.clone(), copies.clone());
        let every = AtomicUsize::new(rng.below(7) as usize);
        move |op: &str, path: &Path| {
            let is_wal = path.extension().is_some_and(|kind| kind == "wal");
            let count = every.fetch_add(1, Ordering::Relaxed);
            // Appends to logs and tables are many; every other step is taken.
            if (is_wal || op == "append") && !count.is_multiple_of(7) {
                return;
            }
            let mut copies = copies.lock();
            if copies.len() >= 400 {
                return;
            }
            let copy = root.join(format!("copy{}", copies.len()));
            let acknowledged = acknowledged.load(Ordering::SeqCst);
            copy_dir(&live, &copy);
            copies.push((copy, acknowledged, format!("{op} {}", path.display())));
        }
    };
    let fs = WatchFs::new(host(&live), Box::new(watcher));
    let options = Options {
        max_manifest_file_size: 3000,
        ..tiny()
    };
    for life in 0..4_usize {
        let db = Db::open(fs.clone(), Path::new(AT), options.clone()).unwrap();
        for step in 0..30 {
            let number = life * 30 + step;
            let mut batch = WriteBatch::new();
            for part in 0..10_u32 {
                let key = [&(number as u32).to_be_bytes()[..], &part.to_be_bytes()].concat();
                batch.put(&key, &vec![number as u8; 100 + rng.below(200) as usize]);
            }
            batch.put(b"latest", &(number as u32).to_be_bytes());
            db.write(batch, &WriteOptions::synced()).unwrap();
            acknowledged.store(number + 1, Ordering::SeqCst);
        }
        if life % 2 == 0 {
            db.close().unwrap();
        }
    }
    let copies = std::mem::take(&mut *copies.lock());
    assert!(copies.len() > 100, "only {} crash points", copies.len());
    for (copy, acknowledged, step) in copies {
        let db = match open(&copy, options.clone()) {
            Ok(db) => db,
            Err(error) => panic!("crash before {step}: {error}"),
        };
        let latest = get(&db, b"latest").map_or(0, |value| {
            u32::from_be_bytes(value.try_into().unwrap()) as usize + 1
        });
        assert!(
            latest >= acknowledged,
            "crash before {step}: acknowledged batches lost"
        );
        for number in 0..latest as u32 {
            for part in 0..10_u32 {
                let key = [number.to_be_bytes(), part.to_be_bytes()].concat();
                assert!(
                    get(&db, &key).is_some(),
                    "crash before {step}: batch {number} is torn"
                );
            }
        }
        let beyond = [(latest as u32).to_be_bytes(), 0_u32.to_be_bytes()].concat();
        assert_eq!(
            get(&db, &beyond),
            None,
            "crash before {step}: half of a batch"
        );
        db.verify().unwrap();
        drop(db);
        std::fs::remove_dir_all(&copy).unwrap();
    }
}

#[test]
fn a_torn_tail_is_dropped_and_absolute_mode_refuses_it() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path(), tiny()).unwrap();
    db.put(b"kept", b"1", &WriteOptions::synced()).unwrap();
    db.put(b"torn", &[7; 2000], &WriteOptions::default())
        .unwrap();
    db.sync_wal().unwrap();
    drop(db);
    let wal = newest(dir.path(), ".wal");
    let data = std::fs::read(&wal).unwrap();
    let at = data.windows(4).position(|window| window == [7; 4]).unwrap();
    std::fs::write(&wal, &data[..at + 50]).unwrap();
    let absolute = Options {
        wal_recovery_mode: WalRecoveryMode::Absolute,
        ..tiny()
    };
    let refused = open(dir.path(), absolute).unwrap_err();
    assert!(
        refused.is_corrupt() && refused.to_string().contains(".wal"),
        "{refused}"
    );
    let db = open(dir.path(), tiny()).unwrap();
    assert_eq!(get(&db, b"kept"), Some(b"1".to_vec()));
    assert_eq!(get(&db, b"torn"), None);
}

#[test]
fn damage_in_the_middle_of_a_log_is_an_error_with_file_and_offset() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path(), tiny()).unwrap();
    for number in 0..5_u8 {
        db.put(&[number], &[number; 600], &WriteOptions::synced())
            .unwrap();
    }
    drop(db);
    let wal = newest(dir.path(), ".wal");
    let data = std::fs::read(&wal).unwrap();
    let at = data.windows(8).position(|window| window == [2; 8]).unwrap();
    flip(&wal, at + 20);
    let refused = open(dir.path(), tiny()).unwrap_err();
    let name = wal.file_name().unwrap().to_str().unwrap();
    assert!(
        refused.is_corrupt() && refused.to_string().contains(name),
        "{refused}"
    );
    assert!(refused.to_string().contains("at byte"), "{refused}");
    // Nothing was changed by the refusal, and a salvage keeps what came before.
    assert!(open(dir.path(), tiny()).unwrap_err().is_corrupt());
    let salvage = Options {
        wal_recovery_mode: WalRecoveryMode::TolerateCorruptedTail,
        ..tiny()
    };
    let db = open(dir.path(), salvage).unwrap();
    assert_eq!(get(&db, &[1]), Some(vec![1; 600]));
    assert_eq!(get(&db, &[3]), None);
}

#[test]
fn damage_of_manifest_current_or_table_is_named_and_never_served() {
    for suffix in ["CURRENT", "MANIFEST", ".sst"] {
        let dir = tempfile::tempdir().unwrap();
        let db = open(dir.path(), tiny()).unwrap();
        for number in 0..100_u8 {
            db.put(&[number], &[number; 100], &WriteOptions::default())
                .unwrap();
        }
        db.flush().unwrap();
        db.put(b"more", b"", &WriteOptions::synced()).unwrap();
        db.close().unwrap();
        drop(db);
        let path = std::fs::read_dir(dir.path().join("db"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.to_str().unwrap().contains(suffix))
            .unwrap();
        flip(&path, if suffix == "MANIFEST" { 110 } else { 5 });
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let outcome = open(dir.path(), tiny()).and_then(|db| db.verify().map(|_| ()));
        let error = outcome.expect_err(suffix);
        assert!(error.is_corrupt(), "{error}");
        assert!(
            error.to_string().contains(&name),
            "{error} does not name {name}"
        );
    }
}

#[test]
fn a_missing_table_is_found_by_verify() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path(), tiny()).unwrap();
    db.put(b"k", b"v", &WriteOptions::default()).unwrap();
    db.flush().unwrap();
    db.close().unwrap();
    drop(db);
    std::fs::remove_file(newest(dir.path(), ".sst")).unwrap();
    let db = open(dir.path(), tiny()).unwrap();
    assert!(db.verify().unwrap_err().to_string().contains(".sst"));
    assert!(db.get(b"k", &ReadOptions::default()).is_err());
}

#[test]
fn writes_fail_without_space_and_go_on_when_it_returns() {
    let dir = tempfile::tempdir().unwrap();
    let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
    let db = Db::open(fs.clone(), Path::new(AT), tiny()).unwrap();
    let mut model = BTreeMap::new();
    let mut rng = Rng(seed());
    for round in 0..5_u32 {
        fs.set_space(60_000 + rng.below(60_000));
        let mut number = 0_u32;
        let failed = loop {
            let key = [round.to_be_bytes(), number.to_be_bytes()].concat();
            let value = vec![number as u8; 500];
            match db.put(&key, &value, &WriteOptions::default()) {
                Ok(()) => model.insert(key, value),
                Err(error) => break error,
            };
            number += 1;
        };
        assert!(failed.to_string().contains("no space"), "{failed}");
        // Reads go on.
        for (key, value) in model.iter().step_by(37) {
            assert_eq!(get(&db, key).as_ref(), Some(value));
        }
        fs.set_space(u64::MAX / 2);
        let begin = std::time::Instant::now();
        while let Err(error) = db.put(b"again", b"", &WriteOptions::default()) {
            assert!(begin.elapsed().as_secs() < 60, "no resume: {error}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    while db.wait_for_background_work().is_err() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    db.close().unwrap();
    drop(db);
    let db = Db::open(fs, Path::new(AT), tiny()).unwrap();
    for (key, value) in &model {
        assert_eq!(get(&db, key).as_ref(), Some(value));
    }
    db.verify().unwrap();
}

#[test]
fn files_that_nothing_needs_are_removed_and_foreign_ones_are_left() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path(), tiny()).unwrap();
    db.put(b"k", b"v", &WriteOptions::synced()).unwrap();
    db.close().unwrap();
    drop(db);
    let at = dir.path().join("db");
    for name in ["900000.sst", "MANIFEST-900001", "CURRENT.tmp", "notes.txt"] {
        std::fs::write(at.join(name), b"left behind").unwrap();
    }
    let db = open(dir.path(), tiny()).unwrap();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for entry in std::fs::read_dir(&at).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name != "900000.sst" && !name.ends_with(".tmp"),
            "{name} was left"
        );
        let kind = name.split(['.', '-']).next_back().unwrap().to_owned();
        *kinds.entry(kind).or_default() += 1;
    }
    assert!(at.join("notes.txt").exists());
    assert!(!at.join("MANIFEST-900001").exists());
    assert_eq!((kinds["wal"], kinds["sst"]), (1, 1));
    // A number that was seen on disk is never given again.
    db.put(b"k2", b"v", &WriteOptions::default()).unwrap();
    db.flush().unwrap();
    assert!(
        newest(dir.path(), ".sst")
            .to_str()
            .unwrap()
            .contains("/9000")
    );
}

#[test]
fn obsolete_tables_live_as_long_as_an_iterator_needs_them() {
    on_each_fs(iterate_over_obsolete_tables);
}

fn iterate_over_obsolete_tables(fs: FileSystemRef) {
    let db = open_on(&fs, tiny()).unwrap();
    for number in 0..200_u8 {
        db.put(&[number], &[number; 50], &WriteOptions::default())
            .unwrap();
    }
    db.flush().unwrap();
    let mut iter = db.iter(&ReadOptions::default()).unwrap();
    for _ in 0..5 {
        for number in 0..200_u8 {
            db.put(&[number], b"new", &WriteOptions::default()).unwrap();
        }
        db.compact_range(None, None).unwrap();
    }
    iter.seek_to_first();
    for number in 0..200_u8 {
        assert_eq!(
            (iter.key(), iter.value()),
            (&[number][..], &[number; 50][..])
        );
        iter.next();
    }
    drop(iter);
    db.close().unwrap();
    drop(db);
    let tables = fs
        .list(Path::new(AT))
        .unwrap()
        .iter()
        .filter(|entry| entry.name.to_str().unwrap().ends_with(".sst"))
        .count();
    let db = open_on(&fs, tiny()).unwrap();
    let named: usize = db.stats().levels.iter().map(|level| level.files).sum();
    assert_eq!(tables, named, "tables were left behind");
}

#[test]
fn two_openers_a_missing_database_and_a_foreign_key_order_are_refused() {
    on_each_fs(refuse_openers);
}

fn refuse_openers(fs: FileSystemRef) {
    let missing = open_on(&fs, Options::default()).unwrap_err();
    assert!(
        missing.to_string().contains("create_if_missing"),
        "{missing}"
    );
    assert!(
        fs.metadata(Path::new(AT)).is_err(),
        "a refusal changed something"
    );
    let db = Db::open(fs.clone(), Path::new(AT), tiny()).unwrap();
    let second = Db::open(fs.clone(), Path::new(AT), tiny()).unwrap_err();
    assert!(matches!(second, Error::Busy { .. }), "{second}");
    assert!(matches!(
        Db::destroy(&fs, Path::new(AT)),
        Err(Error::Busy { .. })
    ));
    drop(db);
    let exists = Options {
        error_if_exists: true,
        ..tiny()
    };
    assert!(Db::open(fs.clone(), Path::new(AT), exists).is_err());
    Db::destroy(&fs, Path::new(AT)).unwrap();
    assert!(fs.metadata(Path::new(AT)).is_err());
}

#[test]
fn options_are_stored_beside_the_data() {
    on_each_fs(store_options);
}

fn store_options(fs: FileSystemRef) {
    drop(Db::open(fs.clone(), Path::new(AT), tiny()).unwrap());
    let stored = Options::load(&fs, Path::new(AT)).unwrap();
    assert_eq!(stored.num_levels, tiny().num_levels);
    assert_eq!(stored.write_buffer_size, tiny().write_buffer_size);
    let fewer = Options {
        num_levels: 2,
        ..tiny()
    };
    let db = Db::open(fs.clone(), Path::new(AT), tiny()).unwrap();
    db.put(b"k", b"v", &WriteOptions::default()).unwrap();
    db.compact_range(None, None).unwrap();
    db.close().unwrap();
    drop(db);
    let refused = Db::open(fs, Path::new(AT), fewer).unwrap_err();
    assert!(refused.to_string().contains("num_levels"), "{refused}");
}

#[test]
fn a_steady_synced_put_is_one_append_and_one_sync() {
    let dir = tempfile::tempdir().unwrap();
    let ops: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = ops.clone();
    let watcher = move |op: &str, path: &Path| log.lock().push(format!("{op} {}", path.display()));
    let fs = WatchFs::new(host(dir.path()), Box::new(watcher));
    let db = Db::open(fs, Path::new(AT), tiny()).unwrap();
    db.put(b"first", b"", &WriteOptions::synced()).unwrap();
    ops.lock().clear();
    for number in 0..20_u8 {
        db.put(&[number], &[number; 100], &WriteOptions::synced())
            .unwrap();
    }
    let ops = ops.lock().clone();
    assert_eq!(ops.len(), 40, "{ops:?}");
    assert!(
        ops.chunks(2)
            .all(|pair| { pair[0].starts_with("append") && pair[1].starts_with("fdatasync") })
    );
}

#[test]
fn column_families_are_atomic_across_and_survive() {
    on_each_fs(write_across_column_families);
}

fn write_across_column_families(fs: FileSystemRef) {
    let db = open_on(&fs, tiny()).unwrap();
    let users = db.create_cf("users").unwrap();
    let gone = db.create_cf("gone").unwrap();
    assert!(db.create_cf("users").is_err());
    for number in 0..2000_u32 {
        let mut batch = WriteBatch::new();
        batch.put(&number.to_be_bytes(), b"default");
        batch.put_cf(users, &number.to_be_bytes(), &[5; 60]);
        if number % 10 == 0 {
            batch.put_cf(gone, &number.to_be_bytes(), b"x");
        }
        db.write(batch, &WriteOptions::default()).unwrap();
    }
    db.drop_cf(gone).unwrap();
    let mut batch = WriteBatch::new();
    batch.put_cf(gone, b"late", b"");
    assert!(db.write(batch, &WriteOptions::default()).is_err());
    db.sync_wal().unwrap();
    drop(db);
    let db = open_on(&fs, tiny()).unwrap();
    let names: Vec<String> = db.cfs().into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["default", "users"]);
    assert_eq!(db.cf("users"), Some(users));
    for number in 0..2000_u32 {
        let key = number.to_be_bytes();
        assert_eq!(get(&db, &key), Some(b"default".to_vec()));
        let found = db.get_cf(users, &key, &ReadOptions::default()).unwrap();
        assert_eq!(found, Some(vec![5; 60]));
    }
    assert!(
        db.create_cf("next").unwrap() > gone,
        "ids are not used again"
    );
    db.verify().unwrap();
}

#[test]
fn logs_are_removed_although_a_column_family_is_idle() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path(), tiny()).unwrap();
    let idle = db.create_cf("idle").unwrap();
    let mut batch = WriteBatch::new();
    batch.put_cf(idle, b"one", b"entry");
    db.write(batch, &WriteOptions::default()).unwrap();
    for number in 0..20_000_u32 {
        db.put(&number.to_be_bytes(), &[1; 50], &WriteOptions::default())
            .unwrap();
    }
    db.wait_for_background_work().unwrap();
    let logs = std::fs::read_dir(dir.path().join("db"))
        .unwrap()
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_str().unwrap().ends_with(".wal")
        })
        .count();
    assert!(logs <= 10, "{logs} logs are kept");
    assert!(copy_opens(dir.path()));
}

fn copy_opens(dir: &Path) -> bool {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir, copy.path());
    open(copy.path(), tiny()).is_ok()
}

#[test]
fn a_failed_sync_makes_the_database_read_only_until_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
    let db = Db::open(fs.clone(), Path::new(AT), tiny()).unwrap();
    db.put(b"kept", b"1", &WriteOptions::synced()).unwrap();
    fs.break_syncs();
    let failed = db
        .put(b"unknown", b"2", &WriteOptions::synced())
        .unwrap_err();
    assert!(failed.to_string().contains("flush of the disk"), "{failed}");
    let refused = db
        .put(b"later", b"3", &WriteOptions::default())
        .unwrap_err();
    assert!(matches!(refused, Error::ReadOnly { .. }), "{refused}");
    assert!(
        refused.to_string().contains("flush of the disk"),
        "{refused}"
    );
    assert!(matches!(db.flush(), Err(Error::ReadOnly { .. })));
    assert_eq!(get(&db, b"kept"), Some(b"1".to_vec()));
    assert_eq!(get(&db, b"unknown"), None, "a failed write is not applied");
    // Asking again makes nothing durable: a device that lost writes once says yes the next time.
    for _ in 0..2 {
        let again = db.sync_wal().unwrap_err();
        assert!(matches!(again, Error::ReadOnly { .. }), "{again}");
    }
    let closed = db.close().unwrap_err();
    assert!(closed.to_string().contains("flush of the disk"), "{closed}");
    drop(db);
    let db = open(dir.path(), tiny()).unwrap();
    assert_eq!(get(&db, b"kept"), Some(b"1".to_vec()));
    assert_eq!(get(&db, b"later"), None);
}

#[test]
fn a_panicking_background_thread_poisons_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let watcher = |op: &str, path: &Path| {
        let is_table = path.extension().is_some_and(|kind| kind == "sst");
        assert!(!(op == "create" && is_table), "on purpose");
    };
    let fs = WatchFs::new(host(dir.path()), Box::new(watcher));
    let db = Db::open(fs, Path::new(AT), tiny()).unwrap();
    db.put(b"k", b"v", &WriteOptions::synced()).unwrap();
    let poisoned = db.flush().unwrap_err();
    assert!(matches!(poisoned, Error::Poisoned { .. }), "{poisoned}");
    assert!(poisoned.to_string().contains("on purpose"), "{poisoned}");
    assert!(matches!(
        db.put(b"k", b"w", &WriteOptions::default()),
        Err(Error::Poisoned { .. })
    ));
    assert!(matches!(
        db.get(b"k", &ReadOptions::default()),
        Err(Error::Poisoned { .. })
    ));
    drop(db);
    let db = open(dir.path(), tiny()).unwrap();
    assert_eq!(get(&db, b"k"), Some(b"v".to_vec()));
}

#[test]
fn a_panic_in_a_manual_compaction_poisons_the_database_too() {
    let dir = tempfile::tempdir().unwrap();
    let armed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&armed);
    let watcher = move |op: &str, path: &Path| {
        let is_table = path.extension().is_some_and(|kind| kind == "sst");
        let panics = seen.load(Ordering::Relaxed) && op == "create" && is_table;
        assert!(!panics, "on purpose");
    };
    let fs = WatchFs::new(host(dir.path()), Box::new(watcher));
    let options = Options {
        disable_auto_compactions: true,
        ..tiny()
    };
    let db = Db::open(fs, Path::new(AT), options).unwrap();
    for value in [b"1", b"2"] {
        db.put(b"k", value, &WriteOptions::synced()).unwrap();
        db.flush().unwrap();
    }
    armed.store(true, Ordering::Relaxed);
    let poisoned = db.compact_range(None, None).unwrap_err();
    assert!(matches!(poisoned, Error::Poisoned { .. }), "{poisoned}");
    assert!(poisoned.to_string().contains("on purpose"), "{poisoned}");
    let refused = db.put(b"k", b"3", &WriteOptions::default());
    assert!(matches!(refused, Err(Error::Poisoned { .. })));
    drop(db);
    let db = open(dir.path(), tiny()).unwrap();
    assert_eq!(get(&db, b"k"), Some(b"2".to_vec()));
}
