//! What the API promises beside plain reads and writes: single deletions, views that change
//! nothing, pinned values, prefixes, options of column families, listeners, metrics, and how
//! background work goes on after an error.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Rng, WatchFs, host, on_each_fs, seed, tiny};
use lavafs::FileSystemRef;
use lavakv::{
    CfId, Db, Error, EventListener, FileEvent, JobEvent, Options, ReadOptions, Severity,
    WriteBatch, WriteOptions,
};
use parking_lot::Mutex;

const AT: &str = "/db";

fn open(fs: &FileSystemRef, options: Options) -> lavakv::Result<Db> {
    Db::open(fs.clone(), Path::new(AT), options)
}

fn get(db: &Db, key: &[u8]) -> Option<Vec<u8>> {
    db.get(key, &ReadOptions::default()).unwrap()
}

fn put(db: &Db, key: &[u8], value: &[u8]) {
    db.put(key, value, &WriteOptions::default()).unwrap();
}

#[test]
fn a_db_is_shared_by_clones_between_threads() {
    fn check<T: Send + Sync + Clone>() {}
    check::<Db>();
    check::<lavakv::Snapshot>();
    check::<lavakv::PinnedSlice>();
}

#[test]
fn keys_put_once_and_single_deleted_never_come_back() {
    let seed = seed();
    on_each_fs(|fs| single_deletes(&fs, seed));
}

fn single_deletes(fs: &FileSystemRef, seed: u64) {
    let mut rng = Rng(seed);
    let mut db = open(fs, tiny()).unwrap();
    let mut map: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut snapshots = Vec::new();
    for step in 0..6000_u32 {
        let key = format!("{:03}", rng.below(150)).into_bytes();
        // Each key is put where it is not, and single-deleted where it is.
        let mut batch = WriteBatch::new();
        if map.remove(&key).is_some() {
            batch.single_delete(&key);
        } else {
            let value = vec![step as u8; rng.below(100) as usize];
            batch.put(&key, &value);
            map.insert(key, value);
        }
        db.write(batch, &WriteOptions::default()).unwrap();
        match rng.below(400) {
            0..=3 => db.flush().unwrap(),
            4 => db.compact_range(None, None).unwrap(),
            5..=8 => snapshots.push((db.snapshot(), map.clone())),
            9..=12 => drop(snapshots.pop()),
            13 => {
                snapshots.clear();
                db.close().unwrap();
                db = open(fs, tiny()).unwrap();
            }
            _ => {}
        }
    }
    let pairs = |options: &ReadOptions| {
        let mut iter = db.iter(options).unwrap();
        let mut found = BTreeMap::new();
        iter.seek_to_first();
        while iter.valid() {
            found.insert(iter.key().to_vec(), iter.value().to_vec());
            iter.next();
        }
        iter.status().unwrap();
        found
    };
    for (snapshot, then) in &snapshots {
        let options = ReadOptions {
            snapshot: Some(snapshot.clone()),
            ..ReadOptions::default()
        };
        assert_eq!(&pairs(&options), then);
    }
    assert_eq!(pairs(&ReadOptions::default()), map);
    snapshots.clear();
    db.compact_range(None, None).unwrap();
    assert_eq!(pairs(&ReadOptions::default()), map);
}

#[test]
fn a_single_deletion_and_its_put_leave_nothing_after_one_flush() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&host(dir.path()), tiny()).unwrap();
    put(&db, b"other", b"stays");
    for number in 0..50_u32 {
        put(&db, &number.to_be_bytes(), b"value");
        let options = WriteOptions::default();
        db.single_delete(&number.to_be_bytes(), &options).unwrap();
    }
    db.flush().unwrap();
    let stats = db.stats();
    assert_eq!((stats.table_entries, stats.table_deletions), (1, 0));
}

#[test]
fn a_pinned_value_outlives_flush_compaction_and_close() {
    on_each_fs(|fs| {
        let db = open(&fs, tiny()).unwrap();
        let options = ReadOptions::default();
        let pin = |db: &Db| db.get_pinned(CfId::DEFAULT, b"k", &options).unwrap();
        put(&db, b"k", &[7; 300]);
        let in_memtable = pin(&db).unwrap();
        db.flush().unwrap();
        let in_table = pin(&db).unwrap();
        put(&db, b"k", &[8; 300]);
        db.compact_range(None, None).unwrap();
        db.close().unwrap();
        drop(db);
        assert_eq!(&*in_memtable, &[7; 300][..]);
        assert_eq!(&*in_table, &[7; 300][..]);
    });
}

#[test]
fn a_prefix_bounds_an_iterator_in_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&host(dir.path()), tiny()).unwrap();
    let keys: [&[u8]; 7] = [
        b"a",
        b"b",
        b"b\0",
        b"b\xff",
        b"b\xff\xff",
        b"c",
        b"\xff\xff",
    ];
    for key in keys {
        put(&db, key, key);
    }
    let seen = |prefix: &[u8], lower: Option<&[u8]>| {
        let options = ReadOptions {
            prefix: Some(prefix.to_vec()),
            lower_bound: lower.map(<[u8]>::to_vec),
            ..ReadOptions::default()
        };
        let mut iter = db.iter(&options).unwrap();
        let (mut forward, mut backward) = (Vec::new(), Vec::new());
        iter.seek_to_first();
        while iter.valid() {
            forward.push(iter.key().to_vec());
            iter.next();
        }
        iter.seek_to_last();
        while iter.valid() {
            backward.push(iter.key().to_vec());
            iter.prev();
        }
        backward.reverse();
        assert_eq!(forward, backward);
        forward
    };
    assert_eq!(seen(b"b", None), keys[1..5]);
    assert_eq!(seen(b"b\xff", None), keys[3..5]);
    assert_eq!(seen(b"\xff", None), keys[6..]);
    assert_eq!(seen(b"", None), keys);
    assert_eq!(seen(b"b", Some(b"b\x01")), keys[3..5]);
    assert_eq!(seen(b"b", Some(b"c")), [] as [&[u8]; 0]);
}

#[test]
fn a_read_only_view_shows_everything_logged_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let changes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&changes);
    let watched = WatchFs::new(
        host(dir.path()),
        Box::new(move |op, path| seen.lock().push(format!("{op} {}", path.display()))),
    );
    let fs: FileSystemRef = watched;
    // Files of compactions are removed at leisure.
    let options = Options {
        disable_auto_compactions: true,
        ..tiny()
    };
    let db = open(&fs, options).unwrap();
    let logs = db.create_cf("logs").unwrap();
    for number in 0..3000_u32 {
        put(&db, &number.to_be_bytes(), &[number as u8; 50]);
    }
    let mut batch = WriteBatch::new();
    batch.put_cf(logs, b"in", b"a family");
    db.write(batch, &WriteOptions::default()).unwrap();
    db.wait_for_background_work().unwrap();
    // What comes right after a change of logs may be in memory alone until then.
    db.sync_wal().unwrap();

    // Beside the owner.
    changes.lock().clear();
    let view = Db::open_read_only(fs.clone(), Path::new(AT), tiny()).unwrap();
    for number in (0..3000_u32).step_by(7) {
        assert_eq!(
            get(&view, &number.to_be_bytes()),
            Some(vec![number as u8; 50])
        );
    }
    let logs = view.cf("logs").unwrap();
    let found = view.get_cf(logs, b"in", &ReadOptions::default()).unwrap();
    assert_eq!(found.unwrap(), b"a family");
    view.verify().unwrap();
    let refused = [
        view.put(b"k", b"v", &WriteOptions::default()),
        view.flush(),
        view.compact_range(None, None),
        view.create_cf("more").map(|_| ()),
        view.drop_cf(logs),
        view.resume(),
    ];
    for outcome in refused {
        assert!(
            matches!(outcome, Err(Error::ReadOnly { .. })),
            "{outcome:?}"
        );
    }
    assert_eq!(*changes.lock(), [] as [String; 0]);
    // The owner goes on; the view stays as it was, even when its files are obsolete.
    for number in 0..3000_u32 {
        put(&db, &number.to_be_bytes(), b"new");
    }
    db.compact_range(None, None).unwrap();
    for number in (0..3000_u32).step_by(13) {
        assert_eq!(
            get(&view, &number.to_be_bytes()),
            Some(vec![number as u8; 50])
        );
    }
    view.close().unwrap();
    drop(view);
    drop(db);
    // And with nobody at work.
    changes.lock().clear();
    let view = Db::open_read_only(fs.clone(), Path::new(AT), tiny()).unwrap();
    assert_eq!(get(&view, &1_u32.to_be_bytes()).unwrap(), b"new");
    drop(view);
    assert_eq!(*changes.lock(), [] as [String; 0]);
    let missing = Db::open_read_only(fs, Path::new("/none"), tiny());
    assert!(matches!(missing, Err(Error::InvalidArgument { .. })));
}

#[test]
fn a_read_only_view_keeps_values_whose_blob_files_the_owner_has_replaced() {
    on_each_fs(|fs| {
        let separated = || Options {
            min_blob_size: 100,
            blob_file_size: 64 << 10,
            ..tiny()
        };
        let value = |number: u32, round: u8| vec![number as u8 ^ round; 300];
        let db = open(&fs, separated()).unwrap();
        for number in 0..1000_u32 {
            put(&db, &number.to_be_bytes(), &value(number, 0));
        }
        db.flush().unwrap();
        // Files that are replaced meanwhile may keep a view from being opened.
        db.wait_for_background_work().unwrap();
        // A cache that has no room for the indexes of the blob files.
        let view = Db::open_read_only(
            fs.clone(),
            Path::new(AT),
            Options {
                block_cache_size: 4 << 10,
                ..separated()
            },
        )
        .unwrap();
        for number in 0..1000_u32 {
            put(&db, &number.to_be_bytes(), &value(number, 1));
        }
        db.compact_range(None, None).unwrap();
        db.collect_blob_garbage().unwrap();
        for number in 0..1000_u32 {
            let found = get(&view, &number.to_be_bytes());
            assert_eq!(found, Some(value(number, 0)), "key {number}");
        }
        view.close().unwrap();
    });
}

#[test]
fn a_column_family_has_options_of_its_own_and_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let own = Options {
        write_buffer_size: 1 << 20,
        num_levels: 3,
        ..tiny()
    };
    let options = Options {
        max_total_wal_size: 64 << 20,
        ..tiny()
    };
    let db = open(&fs, options).unwrap();
    let large = db.create_cf_with("large = 1/1", own.clone()).unwrap();
    let small = db.create_cf("small").unwrap();
    for number in 0..2000_u32 {
        let mut batch = WriteBatch::new();
        batch.put_cf(large, &number.to_be_bytes(), &[1; 100]);
        batch.put_cf(small, &number.to_be_bytes(), &[1; 100]);
        db.write(batch, &WriteOptions::default()).unwrap();
    }
    db.wait_for_background_work().unwrap();
    // The small family was flushed many times; 2000 entries fit the large one's memtable.
    assert!(db.stats().memtable_entries >= 2000);
    assert!(db.tickers().flushes > 5);
    db.close().unwrap();
    let stored = Options::load(&fs, Path::new(AT)).unwrap();
    assert_eq!(stored.cf_options["large = 1/1"].num_levels, 3);
    // The others have the database's, also when these change.
    assert_eq!(stored.cf_options.len(), 1);
    let changed = Options {
        block_size: 2048,
        ..stored
    };
    let db = open(&fs, changed).unwrap();
    for name in ["default", "small"] {
        let family = db.cf_options(db.cf(name).unwrap()).unwrap();
        let expected = (2048, 16 << 10);
        assert_eq!((family.block_size, family.write_buffer_size), expected);
    }
    let large = db.cf("large = 1/1").unwrap();
    assert_eq!(db.cf_options(large).unwrap().write_buffer_size, 1 << 20);
    let found = db.get_cf(large, &7_u32.to_be_bytes(), &ReadOptions::default());
    assert_eq!(found.unwrap().unwrap(), [1; 100]);
    db.close().unwrap();
    let wrong = Options {
        cf_options: BTreeMap::from([(
            "x".to_owned(),
            Options {
                num_levels: 1,
                ..own
            },
        )]),
        ..tiny()
    };
    let error = open(&fs, wrong).unwrap_err().to_string();
    assert!(
        error.contains("\"x\"") && error.contains("num_levels"),
        "{error}"
    );
}

#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    fn add(&self, what: String) {
        self.0.lock().push(what);
    }

    fn count(&self, begins: &str) -> usize {
        let heard = self.0.lock();
        heard.iter().filter(|what| what.starts_with(begins)).count()
    }
}

impl EventListener for Recorder {
    fn on_flush_begin(&self, job: &JobEvent) {
        assert!(job.input_bytes > 0 && job.output_files == 0);
        self.add("flush begin".into());
    }
    fn on_flush_end(&self, job: &JobEvent) {
        self.add(format!(
            "flush end {:?}",
            job.error.as_ref().map(Error::severity)
        ));
    }
    fn on_compaction_begin(&self, _: &JobEvent) {
        self.add("compaction begin".into());
    }
    fn on_compaction_end(&self, job: &JobEvent) {
        assert!(job.error.is_some() || job.output_bytes > 0 || job.output_files == 0);
        self.add("compaction end".into());
    }
    fn on_background_error(&self, error: &Error, severity: Severity) {
        assert_eq!(error.severity(), severity);
        self.add(format!("error {severity:?}"));
    }
    fn on_resumed(&self) {
        self.add("resumed".into());
    }
    fn on_file_created(&self, file: &FileEvent) {
        self.add(format!("created {}", file.path.display()));
    }
    fn on_file_deleted(&self, file: &FileEvent) {
        self.add(format!("deleted {}", file.path.display()));
    }
    fn on_stall_changed(&self, from: lavakv::Stall, to: lavakv::Stall) {
        assert_ne!(from, to);
        self.add("stall".into());
    }
}

#[test]
fn listeners_hear_of_every_job_and_file() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let recorder = Arc::new(Recorder::default());
    let options = Options {
        listeners: vec![recorder.clone()],
        level0_slowdown_writes_trigger: 4,
        ..tiny()
    };
    let db = open(&fs, options).unwrap();
    for number in 0..4000_u32 {
        put(&db, &(number % 900).to_be_bytes(), &[number as u8; 90]);
    }
    db.flush().unwrap();
    db.compact_range(None, None).unwrap();
    db.close().unwrap();
    drop(db);
    let flushes = recorder.count("flush begin");
    assert!(flushes > 3 && flushes == recorder.count("flush end None"));
    let compactions = recorder.count("compaction begin");
    assert!(compactions > 0 && compactions == recorder.count("compaction end"));
    let names = |begins: &str, ends: &str| -> Vec<String> {
        let heard = recorder.0.lock();
        let of = heard.iter().filter_map(|what| what.strip_prefix(begins));
        of.filter(|name| name.ends_with(ends))
            .map(str::to_owned)
            .collect()
    };
    // A removal that is under way is told when it is over.
    wait_until("every table that is not there to be told", || {
        let (created, deleted) = (names("created ", ".sst"), names("deleted ", ".sst"));
        assert!(deleted.iter().all(|name| created.contains(name)));
        let mut left = created;
        left.retain(|name| !deleted.contains(name));
        left.sort();
        let mut on_disk: Vec<String> = fs
            .list(Path::new(AT))
            .unwrap()
            .into_iter()
            .map(|entry| format!("{AT}/{}", entry.name.to_string_lossy()))
            .filter(|name| name.ends_with(".sst"))
            .collect();
        on_disk.sort();
        left == on_disk
    });
    assert!(!names("created ", ".wal").is_empty() && !names("deleted ", ".wal").is_empty());
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "waited for {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn background_work_goes_on_by_itself_after_transient_errors() {
    let dir = tempfile::tempdir().unwrap();
    let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
    let recorder = Arc::new(Recorder::default());
    let options = Options {
        listeners: vec![recorder.clone()],
        ..tiny()
    };
    let db = open(&(fs.clone() as FileSystemRef), options).unwrap();
    put(&db, b"k", b"v");
    // Until it was seen: whoever waits may find only what comes after an error.
    fs.fail_appends(".sst", libc::EAGAIN, u64::MAX);
    let error = db.flush().unwrap_err();
    assert_eq!(error.severity(), Severity::Transient);
    let errors = || recorder.count("error Transient");
    wait_until("three errors", || errors() >= 3);
    assert_eq!(db.tickers().flushes, 0);
    fs.fail_appends(".sst", libc::EAGAIN, 0);
    wait_until("the flush", || db.tickers().flushes == 1);
    // It may be told after the work has gone on.
    wait_until("each resumption to be told", || {
        recorder.count("resumed") == errors()
    });
    put(&db, b"k", b"w");
    db.flush().unwrap();
    assert_eq!(get(&db, b"k").unwrap(), b"w");
}

#[test]
fn a_hard_error_of_background_work_lasts_until_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
    let db = open(&(fs.clone() as FileSystemRef), tiny()).unwrap();
    put(&db, b"k", b"v");
    fs.fail_appends(".sst", libc::EIO, 1);
    assert_eq!(db.flush().unwrap_err().severity(), Severity::Hard);
    let refused = db.put(b"k", b"w", &WriteOptions::default());
    assert!(matches!(refused, Err(Error::ReadOnly { .. })));
    assert_eq!(get(&db, b"k").unwrap(), b"v");
    db.resume().unwrap();
    db.resume().unwrap();
    put(&db, b"k", b"w");
    db.flush().unwrap();
    // What failed in the log is not forgotten.
    fs.fail_appends(".wal", libc::EIO, 1);
    db.put(b"k", b"x", &WriteOptions::default()).unwrap_err();
    assert!(matches!(db.resume(), Err(Error::ReadOnly { .. })));
    drop(db);
    let db = open(&(fs as FileSystemRef), tiny()).unwrap();
    assert_eq!(get(&db, b"k").unwrap(), b"w");
}

#[test]
fn each_snapshot_counts_also_those_of_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&host(dir.path()), tiny()).unwrap();
    let held = || db.property("rocksdb.num-snapshots").unwrap();
    put(&db, b"k", b"v");
    let (first, second) = (db.snapshot(), db.snapshot());
    put(&db, b"k", b"w");
    let third = db.snapshot();
    assert_eq!(held(), "3");
    drop((first.clone(), second));
    assert_eq!(held(), "2");
    drop((third, first));
    assert_eq!(held(), "0");
}

#[test]
fn the_metrics_text_is_what_prometheus_reads() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(&host(dir.path()), tiny()).unwrap();
    for number in 0..1000_u32 {
        put(&db, &number.to_be_bytes(), &[1; 90]);
        get(&db, &number.to_be_bytes());
    }
    let text = db.metrics_text();
    let mut known = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.split(' ');
            let (kind, name) = (words.next().unwrap(), words.next().unwrap());
            assert!(matches!(kind, "HELP" | "TYPE") && name.starts_with("lavakv_"));
            assert!(words.next().is_some(), "{line}");
            if kind == "TYPE" {
                assert!(!known.contains(&name), "{name} twice");
                known.push(name);
            }
            continue;
        }
        let (name, rest) = line.split_once('{').unwrap();
        let (labels, value) = rest.rsplit_once("} ").unwrap();
        assert!(labels.starts_with("db=\"/db\""), "{line}");
        value.parse::<f64>().unwrap();
        let family = name.trim_end_matches("_sum").trim_end_matches("_count");
        assert_eq!(*known.last().unwrap(), family, "{line}");
    }
    assert!(text.contains("lavakv_keys_written_total{db=\"/db\"} 1000\n"));
    assert!(text.contains("operation=\"get\",quantile=\"0.99\""));
    assert!(text.contains("lavakv_level_files{db=\"/db\",level=\"0\"}"));
}

#[test]
fn a_column_family_is_written_read_in_batches_and_compacted_by_itself() {
    on_each_fs(|fs| {
        let options = Options {
            disable_auto_compactions: true,
            ..tiny()
        };
        let db = open(&fs, options).unwrap();
        let logs = db.create_cf("logs").unwrap();
        let written = WriteOptions::default();
        for round in 0..2_u32 {
            for number in 0..500_u32 {
                let key = number.to_be_bytes();
                put(&db, &key, b"default");
                let value = (number + round).to_be_bytes();
                db.put_cf(logs, &key, &value, &written).unwrap();
            }
            db.flush().unwrap();
        }
        db.delete_cf(logs, &7_u32.to_be_bytes(), &written).unwrap();
        let keys: Vec<[u8; 4]> = (0..510_u32).map(u32::to_be_bytes).collect();
        let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        let check = || {
            let found = db.multi_get_cf(logs, &keys, &ReadOptions::default());
            for (number, found) in (0_u32..).zip(found.unwrap()) {
                let there = number < 500 && number != 7;
                let expected = there.then(|| (number + 1).to_be_bytes().to_vec());
                assert_eq!(found, expected, "key {number}");
            }
            let found = db.multi_get(&keys, &ReadOptions::default()).unwrap();
            assert_eq!(found.iter().flatten().count(), 500);
        };
        check();
        let files = db.stats().levels[0].files;
        db.compact_range_cf(logs, None, None).unwrap();
        let left = db.stats().levels[0].files;
        assert!(0 < left && left < files, "the default family has its runs");
        check();
        // An iterator goes on over a family that is dropped; nothing else does.
        let mut walk = db.iter_cf(logs, &ReadOptions::default()).unwrap();
        walk.seek_to_first();
        db.drop_cf(logs).unwrap();
        let mut seen = 0;
        while walk.valid() {
            seen += 1;
            walk.next();
        }
        walk.status().unwrap();
        assert_eq!(seen, 499);
        drop(walk);
        let gone = [
            db.put_cf(logs, b"k", b"v", &written).unwrap_err(),
            db.compact_range_cf(logs, None, None).unwrap_err(),
            db.multi_get_cf(logs, &keys, &ReadOptions::default())
                .unwrap_err(),
        ];
        for error in gone {
            assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
        }
        db.verify().unwrap();
    });
}
