//! What goes wrong around changes of the structure: a step of a job that fails leaves no file behind, and a change
//! that failed is not found again after a crash.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use common::{Rng, WatchFs, copy_dir, host, mount, sim_device, tiny};
use lavafs::FileSystemRef;
use lavakv::{Compression, Db, Options, ReadOptions, WriteOptions};

const AT: &str = "/db";
const KEYS: u64 = 90;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Nothing happens but what a test says.
fn options() -> Options {
    Options {
        min_blob_size: 100,
        blob_file_size: 8 << 10,
        blob_compression: Compression::None,
        enable_blob_garbage_collection: false,
        blob_correlated_compaction_bytes: 0,
        disable_auto_compactions: true,
        write_buffer_size: 1 << 20,
        ..tiny()
    }
}

fn open(fs: &FileSystemRef, options: Options) -> Db {
    Db::open(fs.clone(), Path::new(AT), options).unwrap()
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

fn value(number: u64, round: u64) -> Vec<u8> {
    let mut rng = Rng(number * 31 + round);
    (0..60 + rng.next() % 400)
        .map(|_| rng.next() as u8)
        .collect()
}

fn write(db: &Db, model: &mut Map, round: u64, keys: impl Iterator<Item = u64>) {
    for number in keys {
        let value = value(number, round);
        db.put(&key(number), &value, &WriteOptions::default())
            .unwrap();
        model.insert(key(number), value);
    }
}

fn contents(db: &Db) -> Map {
    let mut iter = db.iter(&ReadOptions::default()).unwrap();
    let mut map = Map::new();
    iter.seek_to_first();
    while iter.valid() {
        map.insert(iter.key().to_vec(), iter.value().to_vec());
        iter.next();
    }
    iter.status().unwrap();
    map
}

fn count(fs: &FileSystemRef, suffix: &str) -> u64 {
    let names = fs.list(Path::new(AT)).unwrap().into_iter();
    let names = names.map(|entry| entry.name.into_string().unwrap());
    names.filter(|name| name.contains(suffix)).count() as u64
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Does a job until it succeeds, resuming after its failures.
fn until_done(db: &Db, job: impl Fn() -> lavakv::Result<()>) -> u64 {
    let mut failures = 0;
    while job().is_err() {
        failures += 1;
        assert!(failures < 200, "it never succeeds");
        let _ = db.resume();
        std::thread::sleep(Duration::from_millis(5));
    }
    failures
}

/// A flush, a compaction and a collection, with the fault at one of their changes or reads.
fn with_a_fault(errno: i32, of_reads: bool, at: i64) -> Option<String> {
    let fs = WatchFs::new(mount(sim_device(24 << 20, 512)), Box::new(|_, _| {}));
    let shared: FileSystemRef = fs.clone();
    let db = open(&shared, options());
    let mut model = Map::new();
    write(&db, &mut model, 0, 0..KEYS);
    db.compact_range(None, None).unwrap();
    write(&db, &mut model, 1, (0..KEYS).step_by(3));
    db.compact_range(None, None).unwrap();
    db.collect_blob_garbage().unwrap();
    write(&db, &mut model, 2, (0..KEYS).step_by(4));
    let left = Arc::new(AtomicI64::new(at));
    let place = Arc::new(parking_lot::Mutex::new(None));
    {
        let (left, place) = (Arc::clone(&left), Arc::clone(&place));
        fs.fail_where(move |op, path| {
            let reads = ["read", "open"].contains(&op);
            let skipped = ["space", "unlink"].contains(&op) || reads != of_reads;
            if skipped || path.to_str().unwrap().contains(".wal") {
                return None;
            }
            if left.fetch_sub(1, Ordering::SeqCst) != 0 {
                return None;
            }
            *place.lock() = Some(format!("{op} {}", path.display()));
            Some(errno)
        });
    }
    let mut failures = until_done(&db, || db.flush());
    failures += until_done(&db, || db.compact_range(None, None));
    failures += until_done(&db, || db.collect_blob_garbage());
    db.wait_for_background_work().unwrap();
    fs.fail_where(|_, _| None);
    let place = place.lock().take()?;
    println!("{errno} at {at}: {place}, {failures} failures");
    assert_eq!(contents(&db), model, "{place}");
    db.verify().unwrap();
    db.verify_garbage().unwrap();
    let stats = db.stats();
    let tables: usize = stats.levels.iter().map(|level| level.files).sum();
    wait_for(&format!("tables left behind: {place}"), || {
        count(&shared, ".sst") == tables as u64
    });
    wait_for(&format!("blob files left behind: {place}"), || {
        count(&shared, ".blob") == stats.blobs.files
    });
    assert_eq!(count(&shared, "MANIFEST"), 1, "{place}");
    db.close().unwrap();
    let db = open(&shared, options());
    assert_eq!(contents(&db), model, "{place}");
    db.verify_garbage().unwrap();
    Some(place)
}

#[test]
fn a_job_that_fails_at_any_step_leaves_no_file_and_is_done_again() {
    for (errno, of_reads) in [(libc::ENOSPC, false), (libc::EIO, false), (libc::EIO, true)] {
        let mut at = 0;
        while with_a_fault(errno, of_reads, at).is_some() {
            at += 1;
        }
        assert!(at > 15, "{at} steps");
    }
}

#[test]
fn a_drop_that_failed_takes_no_later_write_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
    let shared: FileSystemRef = fs.clone();
    let db = open(&shared, options());
    let cf = db.create_cf("logs").unwrap();
    let once = Arc::new(AtomicI64::new(1));
    fs.fail_where(move |op, path| {
        let hit = op == "fdatasync" && path.to_str().unwrap().contains("MANIFEST");
        (hit && once.fetch_sub(1, Ordering::SeqCst) == 1).then_some(libc::EIO)
    });
    db.drop_cf(cf).unwrap_err();
    let copy = tempfile::tempdir().unwrap();
    let mut batch = lavakv::WriteBatch::new();
    batch.put_cf(cf, b"key", b"value");
    db.write(batch, &WriteOptions::synced()).unwrap();
    copy_dir(dir.path(), copy.path());
    let fs = host(copy.path());
    let after = open(&fs, options());
    let names = after.cfs();
    assert!(names.iter().any(|(_, name)| name == "logs"), "{names:?}");
    let found = after.get_cf(cf, b"key", &ReadOptions::default()).unwrap();
    assert_eq!(found.as_deref(), Some(&b"value"[..]));
    db.close().unwrap();
}

/// A fault at one of the steps that change the structure: whatever it has left, a crash of the process right after
/// it loses nothing.
#[test]
fn a_crash_after_a_step_that_failed_loses_nothing() {
    for at in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
        let shared: FileSystemRef = fs.clone();
        let db = open(&shared, options());
        let cf = db.create_cf("logs").unwrap();
        let mut model = Map::new();
        write(&db, &mut model, 0, 0..KEYS);
        db.compact_range(None, None).unwrap();
        write(&db, &mut model, 1, (0..KEYS).step_by(3));
        db.compact_range(None, None).unwrap();
        let left = AtomicI64::new(at);
        let place = Arc::new(parking_lot::Mutex::new(None));
        {
            let place = Arc::clone(&place);
            fs.fail_where(move |op, path| {
                let name = path.to_str().unwrap();
                let counts = ["CURRENT", "MANIFEST"]
                    .iter()
                    .any(|part| name.contains(part));
                let counts = counts || ["sync_dir", "rename"].contains(&op);
                if !counts || left.fetch_sub(1, Ordering::SeqCst) != 0 {
                    return None;
                }
                *place.lock() = Some(format!("{op} {name}"));
                Some(libc::ENOSPC)
            });
        }
        let jobs: [&dyn Fn() -> lavakv::Result<()>; 5] = [
            &|| db.collect_blob_garbage(),
            &|| db.flush(),
            &|| db.create_cf("more").map(drop),
            &|| db.compact_range(None, None),
            &|| db.drop_cf(cf),
        ];
        let mut failed = false;
        for (round, job) in (2..).zip(jobs) {
            write(&db, &mut model, round, (0..KEYS).step_by(4));
            job().unwrap_or(());
            failed = place.lock().is_some();
            if failed {
                break;
            }
        }
        if !failed {
            assert!(at > 10, "{at} steps");
            break;
        }
        let place = place.lock().take().unwrap();
        wait_for("it goes on", || {
            let synced = WriteOptions::synced();
            db.put(b"after", b"it", &synced).is_ok()
        });
        model.insert(b"after".to_vec(), b"it".to_vec());
        let logs = db.cfs().iter().any(|(id, _)| *id == cf);
        if logs {
            let mut batch = lavakv::WriteBatch::new();
            batch.put_cf(cf, b"after", b"it");
            db.write(batch, &WriteOptions::synced()).unwrap();
        }
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        let fs = host(copy.path());
        let after = open(&fs, options());
        assert_eq!(contents(&after), model, "{place}");
        after.verify().unwrap();
        after.verify_garbage().unwrap();
        if logs {
            let found = after.get_cf(cf, b"after", &ReadOptions::default());
            assert_eq!(found.unwrap().as_deref(), Some(&b"it"[..]), "{place}");
        }
        db.close().unwrap();
    }
}

#[test]
fn flushes_that_are_tried_again_and_again_do_not_fill_the_disk() {
    let fs = WatchFs::new(mount(sim_device(24 << 20, 512)), Box::new(|_, _| {}));
    let shared: FileSystemRef = fs.clone();
    let db = open(&shared, options());
    let mut model = Map::new();
    write(&db, &mut model, 0, 0..KEYS);
    fs.fill_for(Some("MANIFEST"));
    for _ in 0..5 {
        db.flush().unwrap_err();
    }
    wait_for("tried again", || fs.refused() > 6);
    fs.fill_for(None);
    until_done(&db, || db.flush());
    db.wait_for_background_work().unwrap();
    // One of them may be in the manifest that failed.
    assert!(count(&shared, ".sst") <= 2);
    assert!(count(&shared, ".blob") <= 2 * db.stats().blobs.files);
    assert!(count(&shared, "MANIFEST") <= 2);
    assert_eq!(contents(&db), model);
}

#[test]
fn an_open_that_cannot_make_its_manifest_leaves_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&host(dir.path()), options());
    let mut model = Map::new();
    write(&db, &mut model, 0, 0..KEYS);
    db.sync_wal().unwrap();
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir.path(), copy.path());
    let fs = WatchFs::new(host(copy.path()), Box::new(|_, _| {}));
    let shared: FileSystemRef = fs.clone();
    let before = count(&shared, "");
    for op in ["append", "fdatasync"] {
        fs.fail_where(move |at, path| {
            let fails = at == op && path.to_str().unwrap().contains("MANIFEST");
            fails.then_some(libc::ENOSPC)
        });
        Db::open(shared.clone(), Path::new(AT), options()).unwrap_err();
        assert_eq!(count(&shared, ""), before, "{op}");
    }
    fs.fail_where(|_, _| None);
    assert_eq!(contents(&open(&shared, options())), model);
}

#[test]
fn keys_and_values_of_every_length_go_through_every_job() {
    let options = Options {
        max_manifest_file_size: 1000,
        write_buffer_size: 16 << 20,
        blob_correlated_compaction_bytes: 1 << 20,
        ..options()
    };
    let fs = mount(sim_device(512 << 20, 512));
    let db = open(&fs, options.clone());
    let mut keys = vec![Vec::new(), vec![0], vec![0; 65_535], vec![255; 65_535]];
    for number in 0..8 {
        let mut key = vec![7; 65_535];
        key[65_534] = number;
        keys.push(key.clone());
        key.truncate(60_000 + usize::from(number));
        keys.push(key);
    }
    let lengths = [0, 1, 99, 100, 101, 9_000, 3 << 20];
    let mut model = Map::new();
    let mut snapshots = Vec::new();
    for round in 0..6_usize {
        for (at, key) in keys.iter().enumerate() {
            if round > 0 && !(at + round).is_multiple_of(3) {
                continue;
            }
            let value = vec![round as u8; lengths[(at + round) % lengths.len()]];
            db.put(key, &value, &WriteOptions::default()).unwrap();
            model.insert(key.clone(), value);
        }
        if round == 2 {
            snapshots.push((db.snapshot(), model.clone()));
        }
        db.compact_range(None, None).unwrap();
        db.verify_garbage().unwrap();
        db.collect_blob_garbage().unwrap();
        db.verify_garbage().unwrap();
        assert!(contents(&db) == model, "round {round}");
        for (snapshot, model) in &snapshots {
            for (key, value) in model {
                let options = ReadOptions {
                    snapshot: Some(snapshot.clone()),
                    ..ReadOptions::default()
                };
                let found = db.get(key, &options).unwrap();
                assert!(found.as_ref() == Some(value), "round {round}");
            }
        }
    }
    drop(snapshots);
    db.compact_range(None, None).unwrap();
    db.collect_blob_garbage().unwrap();
    assert_eq!(db.verify_garbage().unwrap().garbage_bytes, 0);
    db.close().unwrap();
    drop(db);
    let db = open(&fs, options);
    assert!(contents(&db) == model);
    db.verify().unwrap();
    db.verify_garbage().unwrap();
}

/// An iterator outlives its database, and a new one is made in the same place: its files have the same names.
#[test]
fn what_an_iterator_of_a_closed_database_held_is_not_taken_from_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let mut model = Map::new();
    let fill = |db: &Db, model: &mut Map| {
        write(db, model, 0, 0..KEYS);
        db.flush().unwrap();
    };
    let db = open(&fs, options());
    fill(&db, &mut model);
    let mut iter = db.iter(&ReadOptions::default()).unwrap();
    iter.seek_to_first();
    fill(&db, &mut model);
    db.compact_range(None, None).unwrap();
    db.close().unwrap();
    drop(db);
    Db::destroy(&fs, Path::new(AT)).unwrap();
    let db = open(&fs, options());
    fill(&db, &mut model);
    let tables = count(&fs, ".sst");
    drop(iter);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(count(&fs, ".sst"), tables);
    db.close().unwrap();
    drop(db);
    let db = open(&fs, options());
    assert_eq!(contents(&db), model);
    db.verify().unwrap();
}

#[test]
fn a_family_is_made_whether_or_not_its_options_can_be_stored() {
    let dir = tempfile::tempdir().unwrap();
    let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
    let shared: FileSystemRef = fs.clone();
    let db = open(&shared, options());
    fs.fail_where(|op, path| {
        let hit = op == "append" && path.to_str().unwrap().contains("OPTIONS");
        hit.then_some(libc::ENOSPC)
    });
    let cf = db.create_cf("logs").unwrap();
    let mut batch = lavakv::WriteBatch::new();
    batch.put_cf(cf, b"key", b"value");
    db.write(batch, &WriteOptions::synced()).unwrap();
    db.close().unwrap();
    drop(db);
    fs.fail_where(|_, _| None);
    let db = open(&shared, options());
    let found = db.get_cf(cf, b"key", &ReadOptions::default()).unwrap();
    assert_eq!(found.as_deref(), Some(&b"value"[..]));
}
