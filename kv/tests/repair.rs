//! Repair of databases with blob files: what is sound comes out as it was, what is lost is told, and
//! nothing is made up, wherever a crash ends the repair.
//!
//! The story behind it: another engine's repair knew tables alone. Run on a healthy database, it wrote a
//! manifest without blob files, the next open removed them as orphans, and every separated value was gone.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Rng, WatchFs, copy_dir, host, image, tiny};
use lavafs::FileSystemRef;
use lavakv::{CfId, Compression, Db, Options, ReadOptions, RepairReport, WriteBatch, WriteOptions};
use parking_lot::Mutex;

const AT: &str = "/db";
const KEYS: u64 = 300;

type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;
type Contents = BTreeMap<String, Pairs>;

fn options() -> Options {
    Options {
        min_blob_size: 100,
        blob_file_size: 32 << 10,
        blob_compression: Compression::Zstd { level: 1 },
        enable_blob_garbage_collection: false,
        blob_correlated_compaction_bytes: 0,
        ..tiny()
    }
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

/// Half of them are separated.
fn value(number: u64, round: u64) -> Vec<u8> {
    let mut rng = Rng(number * 31 + round);
    let len = [20, 400][number as usize % 2] + rng.below(300) as usize * (number as usize % 2);
    let mut value = format!("{number} {round} ").into_bytes();
    value.extend((0..len).map(|_| rng.next() as u8 & 0x7f));
    value
}

fn write(db: &Db, cf: CfId, number: u64, round: u64) {
    let mut batch = WriteBatch::new();
    match round {
        9 => batch.delete_cf(cf, &key(number)),
        _ => batch.put_cf(cf, &key(number), &value(number, round)),
    }
    db.write(batch, &WriteOptions::default()).unwrap();
}

/// A database of two families with everything that a repair must know of: values inline and in blob files,
/// deletions, files that inherited from others, tables that still name the ancestors, a table
/// that came later, and writes that are in the log alone.
fn fill(fs: &FileSystemRef) {
    let db = Db::open(fs.clone(), Path::new(AT), options()).unwrap();
    let second = db.create_cf("second").unwrap();
    for cf in [CfId::DEFAULT, second] {
        for number in 0..KEYS {
            write(&db, cf, number, 0);
        }
    }
    db.compact_range(None, None).unwrap();
    for cf in [CfId::DEFAULT, second] {
        for number in (0..KEYS).filter(|number| number % 5 < 2) {
            write(&db, cf, number, 1 + 8 * u64::from(number % 4 == 3));
        }
        db.compact_range(None, None).unwrap();
    }
    db.collect_blob_garbage().unwrap();
    assert!(db.stats().blobs.ancestors > 0, "{:?}", db.stats().blobs);
    for number in 0..20 {
        write(&db, second, number * 11, 2);
    }
    db.flush().unwrap();
    write(&db, CfId::DEFAULT, 3, 3);
    write(&db, second, 5, 9);
    db.sync_wal().unwrap();
    db.wait_for_background_work().unwrap();
}

fn contents_of(db: &Db) -> Contents {
    let mut all = Contents::new();
    for (cf, name) in db.cfs() {
        let mut iter = db.iter_cf(cf, &ReadOptions::default()).unwrap();
        let pairs = all.entry(name).or_default();
        iter.seek_to_first();
        while iter.valid() {
            pairs.insert(iter.key().to_vec(), iter.value().to_vec());
            iter.next();
        }
        iter.status().unwrap();
    }
    all
}

fn contents(fs: &FileSystemRef) -> Contents {
    let db = Db::open(fs.clone(), Path::new(AT), options()).unwrap();
    db.verify().unwrap();
    db.verify_garbage().unwrap();
    contents_of(&db)
}

fn repair(fs: &FileSystemRef) -> RepairReport {
    Db::repair(fs, Path::new(AT), &options()).unwrap()
}

/// The files of a host directory's database with these endings, in the order of their numbers.
fn files(dir: &Path, part: &str) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir.join("db")).unwrap();
    let names = names.map(|entry| entry.unwrap().path());
    let of = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().contains(part);
    let mut names: Vec<PathBuf> = names.filter(of).collect();
    names.sort();
    names
}

fn lose_manifest(dir: &Path) {
    for path in [files(dir, "CURRENT"), files(dir, "MANIFEST")].concat() {
        std::fs::remove_file(path).unwrap();
    }
}

/// A new database in `dir`, and what it holds.
fn made(dir: &Path) -> Contents {
    std::fs::create_dir_all(dir).unwrap();
    fill(&host(dir));
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir, copy.path());
    contents(&host(copy.path()))
}

/// Copies of a directory, each with the step before which it was made.
type Copies = Arc<Mutex<Vec<(PathBuf, String)>>>;

/// The directory `live`, copied into `root` before each operation that is not skipped.
fn copied_at_each_step(
    live: &Path,
    root: &Path,
    skipped: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> (FileSystemRef, Copies) {
    let copies = Copies::default();
    let watcher = {
        let (live, root, copies) = (live.to_path_buf(), root.to_path_buf(), copies.clone());
        move |op: &str, path: &Path| {
            if skipped(op) {
                return;
            }
            let mut copies = copies.lock();
            let copy = root.join(format!("copy{}", copies.len()));
            copy_dir(&live, &copy);
            copies.push((copy, format!("{op} {}", path.display())));
        }
    };
    (WatchFs::new(host(live), Box::new(watcher)), copies)
}

#[test]
fn a_healthy_database_with_blob_files_comes_out_as_it_was_however_often() {
    for manifest in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let before = made(dir.path());
        assert_eq!(before.len(), 2);
        let fs = host(dir.path());
        if !manifest {
            lose_manifest(dir.path());
        }
        let blobs = files(dir.path(), ".blob").len() as u64;
        let report = repair(&fs);
        assert_eq!(report.manifest_kept, manifest);
        assert_eq!((report.lost_values, report.set_aside.len()), (0, 0));
        let manifests_lost = usize::from(!manifest);
        assert!(report.lost.len() <= manifests_lost, "{report:?}");
        assert!(report.blobs >= blobs, "{report:?}");
        assert_eq!(contents(&fs), before);
        let again = repair(&fs);
        assert!(again.manifest_kept && again.lost.is_empty(), "{again:?}");
        assert_eq!(again.blobs, report.blobs);
        // Stored are the options that it was given.
        let stored = Options::load(&fs, Path::new(AT)).unwrap();
        assert!(!stored.disable_auto_compactions);
        assert_eq!(stored.wal_recovery_mode, options().wal_recovery_mode);
        assert_eq!(contents(&fs), before);
    }
}

#[test]
fn repair_with_blob_files_works_on_lavafs_too() {
    let dir = tempfile::tempdir().unwrap();
    let fs = image(&dir.path().join("image"), 256 << 20);
    fill(&fs);
    let before = contents(&fs);
    for _ in 0..2 {
        fs.unlink(Path::new("/db/CURRENT")).unwrap();
        let report = repair(&fs);
        assert!(
            !report.manifest_kept && report.lost_values == 0,
            "{report:?}"
        );
        assert_eq!(contents(&fs), before);
    }
}

/// Checks a repaired database: each pair as it was, or told as lost and not there.
fn check_lost(found: &Contents, before: &Contents, report: &RepairReport, place: &str) -> usize {
    let told: BTreeSet<&Vec<u8>> = report.lost_keys.iter().map(|(_, key)| key).collect();
    let mut lost = 0;
    for (name, pairs) in before {
        for (key, value) in pairs {
            match found[name].get(key) {
                Some(found) => assert!(found == value, "{place}: {}", key.escape_ascii()),
                None => {
                    assert!(told.contains(key), "{place}: {}", key.escape_ascii());
                    lost += 1;
                }
            }
        }
        assert!(found[name].keys().all(|key| pairs.contains_key(key)));
    }
    lost
}

#[test]
fn of_a_damaged_blob_file_the_lost_values_are_told_and_all_others_kept() {
    let origin = tempfile::tempdir().unwrap();
    let before = made(origin.path());
    let victims = files(origin.path(), ".blob").len();
    assert!(victims >= 3, "{victims} blob files");
    for manifest in [true, false] {
        for damage in ["flip", "end", "cut", "header", "remove"] {
            for victim in [0, victims / 2, victims - 1] {
                let place = format!("{damage} {victim}, manifest {manifest}");
                let dir = tempfile::tempdir().unwrap();
                copy_dir(origin.path(), dir.path());
                let path = files(dir.path(), ".blob").remove(victim);
                let mut bytes = std::fs::read(&path).unwrap();
                let len = bytes.len();
                match damage {
                    "flip" => bytes[len / 3] ^= 1,
                    "end" => bytes[len - 50] ^= 1,
                    "header" => bytes[20] ^= 1,
                    _ => bytes.truncate(len / 2),
                }
                match damage {
                    "remove" => std::fs::remove_file(&path).unwrap(),
                    _ => std::fs::write(&path, &bytes).unwrap(),
                }
                if !manifest {
                    lose_manifest(dir.path());
                }
                let fs = host(dir.path());
                let report = repair(&fs);
                assert_eq!(report.manifest_kept, manifest, "{place}");
                let lost = check_lost(&contents(&fs), &before, &report, &place);
                let name = path.file_name().unwrap();
                if damage != "remove" {
                    let aside = path.with_extension("blob.damaged");
                    assert!(aside.exists() && !path.exists(), "{place}");
                    assert_eq!(std::fs::read(aside).unwrap(), bytes, "{place}");
                }
                let told = report.lost.iter().any(|(path, _)| path.ends_with(name));
                // Without a manifest nobody knows that a file was there.
                assert!(told || (damage == "remove" && !manifest), "{place}");
                match damage {
                    // One record of the file; its footer is all that is wrong; its index serves.
                    "flip" => assert!(lost <= 1, "{place}: {lost}"),
                    "end" | "header" => assert_eq!(lost, 0, "{place}"),
                    _ => assert!(lost as u64 <= report.lost_values, "{place}: {lost}"),
                }
                let again = repair(&fs);
                assert_eq!((again.lost_values, again.lost.len()), (0, 0), "{place}");
            }
        }
    }
}

#[test]
fn a_lost_value_does_not_bring_an_older_one_back() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let db = Db::open(fs.clone(), Path::new(AT), options()).unwrap();
    db.put(b"key", &[b'o'; 500], &WriteOptions::default())
        .unwrap();
    db.put(b"other", &[b'o'; 500], &WriteOptions::default())
        .unwrap();
    db.compact_range(None, None).unwrap();
    let old = files(dir.path(), ".blob");
    db.put(b"key", &[b'n'; 500], &WriteOptions::default())
        .unwrap();
    db.flush().unwrap();
    db.close().unwrap();
    drop(db);
    let new = files(dir.path(), ".blob")
        .into_iter()
        .find(|path| !old.contains(path));
    std::fs::remove_file(new.unwrap()).unwrap();
    let report = repair(&fs);
    assert_eq!(report.lost_keys, [(CfId::DEFAULT, b"key".to_vec())]);
    let found = contents(&fs);
    let other = (b"other".to_vec(), vec![b'o'; 500]);
    assert_eq!(found["default"], Pairs::from([other]));
}

#[test]
fn blob_files_whose_tables_are_gone_are_set_aside_and_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path());
    let blobs = files(dir.path(), ".blob");
    for path in [files(dir.path(), ".sst"), files(dir.path(), ".wal")].concat() {
        std::fs::remove_file(path).unwrap();
    }
    lose_manifest(dir.path());
    let fs = host(dir.path());
    let report = repair(&fs);
    assert_eq!(report.set_aside.len(), blobs.len(), "{report:?}");
    for path in &blobs {
        assert!(path.with_extension("blob.orphan").exists());
    }
    contents(&fs);
}

#[test]
fn logs_behind_a_damaged_one_are_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let options = Options {
        max_total_wal_size: 64 << 20,
        ..options()
    };
    let db = Db::open(fs.clone(), Path::new(AT), options).unwrap();
    let second = db.create_cf("second").unwrap();
    // The second family's write keeps the first log, while the default family fills others.
    write(&db, second, 3, 0);
    for number in 0..500 {
        write(&db, CfId::DEFAULT, number, 0);
    }
    db.sync_wal().unwrap();
    db.wait_for_background_work().unwrap();
    drop(db);
    let logs = files(dir.path(), ".wal");
    assert!(logs.len() > 1, "{logs:?}");
    let mut bytes = std::fs::read(&logs[0]).unwrap();
    let name = key(3);
    let at = bytes.windows(name.len()).position(|part| part == name);
    bytes[at.unwrap()] ^= 1;
    std::fs::write(&logs[0], &bytes).unwrap();
    let rest: Vec<Vec<u8>> = logs.iter().map(|log| std::fs::read(log).unwrap()).collect();
    let report = repair(&fs);
    for (log, bytes) in logs.iter().zip(rest) {
        let aside = log.with_extension("wal.damaged");
        assert!(
            report
                .set_aside
                .iter()
                .any(|path| aside.ends_with(path.file_name().unwrap()))
        );
        assert_eq!(std::fs::read(aside).unwrap(), bytes);
    }
    contents(&fs);
}

/// Copies the directory before every change that a repair makes, and repairs each copy: as after a
/// crash of the process there.
#[test]
fn a_crash_in_the_midst_of_a_repair_loses_nothing() {
    let origin = tempfile::tempdir().unwrap();
    let before = made(origin.path());
    for case in ["manifest lost", "blob damaged", "both"] {
        let root = tempfile::tempdir().unwrap();
        let live = root.path().join("live");
        copy_dir(origin.path(), &live);
        if case != "manifest lost" {
            let path = files(&live, ".blob").remove(1);
            let mut bytes = std::fs::read(&path).unwrap();
            let len = bytes.len();
            // The record that is lost is the same in every copy.
            bytes[len / 3] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
        }
        if case != "blob damaged" {
            lose_manifest(&live);
        }
        // Appends are many and alike.
        let steps = AtomicUsize::new(0);
        let (watched, copies) = copied_at_each_step(&live, root.path(), move |op| {
            let step = steps.fetch_add(1, Ordering::Relaxed);
            op == "append" && !step.is_multiple_of(5)
        });
        let whole = repair(&watched);
        let expected = contents(&host(&live));
        check_lost(&expected, &before, &whole, case);
        let copies = std::mem::take(&mut *copies.lock());
        assert!(copies.len() > 10, "{} steps", copies.len());
        for (copy, step) in copies {
            let fs = host(&copy);
            repair(&fs);
            assert!(contents(&fs) == expected, "{case}: crash before {step}");
            // And a table that the crash left unfinished, perhaps.
            let damaged = |dir: &Path| files(dir, ".damaged").len();
            assert!(
                damaged(&copy) >= damaged(&live),
                "{case}: crash before {step}"
            );
            std::fs::remove_dir_all(&copy).unwrap();
        }
    }
}

#[test]
fn a_repair_meets_a_single_deletion_in_the_input_and_the_output_of_a_merge() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let options = Options {
        level_compaction_dynamic_level_bytes: false,
        level0_file_num_compaction_trigger: 2,
        max_bytes_for_level_base: 8 << 20,
        num_levels: 3,
        ..options()
    };
    // All data in the last level, two below what level 0 is merged into.
    let to_the_last = Options {
        level_compaction_dynamic_level_bytes: true,
        ..options.clone()
    };
    let db = Db::open(fs.clone(), Path::new(AT), to_the_last).unwrap();
    for number in 0..KEYS {
        write(&db, CfId::DEFAULT, number, 0);
    }
    db.compact_range(None, None).unwrap();
    db.close().unwrap();
    drop(db);
    let db = Db::open(fs.clone(), Path::new(AT), options).unwrap();
    assert!(db.stats().levels[2].files > 0);
    // A key that was never put has nothing that it could go together with.
    db.single_delete(b"key000005x", &WriteOptions::default())
        .unwrap();
    db.flush().unwrap();
    let saved = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), saved.path());
    write(&db, CfId::DEFAULT, 4, 1);
    write(&db, CfId::DEFAULT, 6, 1);
    db.flush().unwrap();
    db.wait_for_background_work().unwrap();
    assert_eq!(db.stats().table_deletions, 1);
    let before = contents_of(&db);
    db.close().unwrap();
    drop(db);
    let at = dir.path().join("db");
    for entry in std::fs::read_dir(saved.path().join("db")).unwrap() {
        let entry = entry.unwrap();
        let target = at.join(entry.file_name());
        if target.extension().is_some_and(|kind| kind == "sst") && !target.exists() {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
    lose_manifest(dir.path());
    repair(&fs);
    assert_eq!(contents(&fs), before);
}

/// A database with a log that one family needs, and that holds what another one has in tables already. Returns
/// what it holds.
fn with_logs_and_tables(fs: &FileSystemRef, options: &Options) -> Contents {
    let db = Db::open(fs.clone(), Path::new(AT), options.clone()).unwrap();
    let second = db.create_cf("second").unwrap();
    write(&db, second, 3, 0);
    for number in 0..KEYS {
        write(&db, CfId::DEFAULT, number, 0);
    }
    db.flush_cf(CfId::DEFAULT).unwrap();
    for number in (0..KEYS).step_by(3) {
        write(&db, CfId::DEFAULT, number, 1);
    }
    db.sync_wal().unwrap();
    let before = contents_of(&db);
    db.close().unwrap();
    before
}

fn quiet_options() -> Options {
    Options {
        write_buffer_size: 1 << 20,
        disable_auto_compactions: true,
        ..options()
    }
}

/// Each entry and each value counts once, before and after everything was merged.
fn counts_once(fs: &FileSystemRef, options: &Options, before: &Contents, place: &str) {
    let db = Db::open(fs.clone(), Path::new(AT), options.clone()).unwrap();
    assert!(contents_of(&db) == *before, "{place}");
    db.verify_garbage().unwrap();
    db.collect_blob_garbage().unwrap();
    assert!(contents_of(&db) == *before, "{place}");
    db.compact_range(None, None).unwrap();
    db.collect_blob_garbage().unwrap();
    assert_eq!(db.verify_garbage().unwrap().garbage_bytes, 0, "{place}");
    assert!(contents_of(&db) == *before, "{place}");
}

/// Without a manifest nobody knows what the tables have of a log, and all of it is replayed.
#[test]
fn what_is_in_a_table_and_in_a_log_too_is_accounted_for_once() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let options = quiet_options();
    let before = with_logs_and_tables(&fs, &options);
    lose_manifest(dir.path());
    Db::repair(&fs, Path::new(AT), &options).unwrap();
    counts_once(&fs, &options, &before, "repaired");
}

/// Who finds a manifest in force after a crash opens the database, and need not know that it was being repaired.
#[test]
fn what_opens_after_a_crash_in_the_midst_of_a_repair_has_everything_once() {
    let root = tempfile::tempdir().unwrap();
    let live = root.path().join("live");
    std::fs::create_dir(&live).unwrap();
    let options = quiet_options();
    let before = with_logs_and_tables(&host(&live), &options);
    lose_manifest(&live);
    let (watched, copies) = copied_at_each_step(&live, root.path(), |op| op == "append");
    Db::repair(&watched, Path::new(AT), &options).unwrap();
    let mut opened = 0;
    for (copy, step) in std::mem::take(&mut *copies.lock()) {
        let fs = host(&copy);
        match Db::open(fs.clone(), Path::new(AT), options.clone()) {
            Ok(db) => {
                opened += 1;
                db.close().unwrap();
            }
            Err(_) => drop(Db::repair(&fs, Path::new(AT), &options).unwrap()),
        }
        counts_once(&fs, &options, &before, &format!("crash before {step}"));
        std::fs::remove_dir_all(&copy).unwrap();
    }
    assert!(opened > 0);
}
