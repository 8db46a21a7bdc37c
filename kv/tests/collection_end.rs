//! How many collections run, and how soon they end: beside each other only where the disk is full, and within a
//! moment where the database closes or their family goes.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::{mount, sim_device, tiny};
use lavafs::{CreateOptions, FileSystemRef};
use lavakv::{
    CfId, CollectionEvent, Compression, Db, Env, EnvOptions, EventListener, Options, ReadOptions,
    WriteBatch, WriteOptions,
};

const LEN: usize = 16 << 10;
const KEYS: u64 = 400;

/// Longest that a collection may go on when it is to end; at the rates here it would take minutes.
const PROMPT: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Running {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl EventListener for Running {
    fn on_collection_begin(&self, _: &CollectionEvent) {
        let now = self.now.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
    }

    fn on_collection_end(&self, _: &CollectionEvent) {
        self.now.fetch_sub(1, SeqCst);
    }
}

fn options() -> Options {
    Options {
        min_blob_size: 100,
        blob_file_size: 128 << 10,
        blob_compression: Compression::None,
        enable_blob_garbage_collection: false,
        blob_correlated_compaction_bytes: 0,
        write_buffer_size: 256 << 10,
        max_background_jobs: 2,
        max_blob_collections: 4,
        ..tiny()
    }
}

fn open(fs: &FileSystemRef, options: Options) -> Db {
    Db::open(fs.clone(), Path::new("/db"), options).unwrap()
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

/// A database in which half of each blob file of a family is garbage.
fn with_garbage(fs: &FileSystemRef, family: Option<&str>) {
    let db = open(fs, options());
    let cf = family.map_or(CfId::DEFAULT, |name| db.create_cf(name).unwrap());
    for round in 0..2 {
        for number in (0..KEYS).filter(|number| round == 0 || number % 2 == 0) {
            let mut batch = WriteBatch::new();
            batch.put_cf(cf, &key(number), &vec![round; LEN]);
            db.write(batch, &WriteOptions::default()).unwrap();
        }
        db.compact_range(None, None).unwrap();
    }
    db.wait_for_background_work().unwrap();
    assert!(db.stats().blobs.garbage_ratio() > 0.3);
    db.close().unwrap();
}

/// Opens it with collections on, at a rate at which they take minutes.
fn collecting(fs: &FileSystemRef, running: &Arc<Running>) -> Db {
    let env = Env::with_options(EnvOptions {
        rate_bytes_per_s: 1 << 10,
        ..EnvOptions::default()
    });
    open(
        fs,
        Options {
            enable_blob_garbage_collection: true,
            blob_collection_idle_millis: 10,
            env: Some(env),
            listeners: vec![Arc::clone(running) as Arc<dyn EventListener>],
            ..options()
        },
    )
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn check(db: &Db, cf: CfId) {
    for number in 0..KEYS {
        let found = db
            .get_cf(cf, &key(number), &ReadOptions::default())
            .unwrap();
        assert_eq!(found, Some(vec![u8::from(number % 2 == 0); LEN]));
    }
}

#[test]
fn closing_ends_collections_within_a_moment() {
    let fs = mount(sim_device(64 << 20, 512));
    with_garbage(&fs, None);
    let running = Arc::new(Running::default());
    let db = collecting(&fs, &running);
    wait_for("a collection begins", || running.now.load(SeqCst) > 0);
    let begin = Instant::now();
    db.close().unwrap();
    assert!(begin.elapsed() < PROMPT, "{:?}", begin.elapsed());
    assert_eq!(running.now.load(SeqCst), 0);
    drop(db);
    let db = open(&fs, options());
    db.verify_garbage().unwrap();
    check(&db, CfId::DEFAULT);
}

#[test]
fn dropping_a_family_ends_its_collections_within_a_moment() {
    let fs = mount(sim_device(64 << 20, 512));
    with_garbage(&fs, Some("passing"));
    let running = Arc::new(Running::default());
    let db = collecting(&fs, &running);
    wait_for("a collection begins", || running.now.load(SeqCst) > 0);
    let begin = Instant::now();
    db.drop_cf(db.cf("passing").unwrap()).unwrap();
    wait_for("it ends", || running.now.load(SeqCst) == 0);
    assert!(begin.elapsed() < PROMPT, "{:?}", begin.elapsed());
    db.wait_for_background_work().unwrap();
    assert_eq!(db.stats().blobs.files, 0);
    db.close().unwrap();
    let names = fs.list(Path::new("/db")).unwrap();
    let blobs = names
        .iter()
        .filter(|entry| entry.name.as_encoded_bytes().ends_with(b".blob"));
    assert_eq!(blobs.count(), 0, "nothing of it is left");
}

#[test]
fn collections_run_beside_each_other_where_the_disk_is_nearly_full_and_alone_where_it_is_not() {
    for (usage, wanted) in [(0.6, 1..=1), (0.93, 2..=4)] {
        let fs = mount(sim_device(64 << 20, 512));
        with_garbage(&fs, None);
        let space = fs.space();
        let len = (usage * space.total as f64) as u64 - (space.total - space.free);
        let expected = CreateOptions {
            expected_size: len,
            ..CreateOptions::default()
        };
        let ballast = fs.create(Path::new("/ballast"), &expected).unwrap();
        ballast.append(&vec![1; len as usize]).unwrap();
        ballast.fsync().unwrap();
        let running = Arc::new(Running::default());
        let db = collecting(&fs, &running);
        wait_for("collections begin", || running.now.load(SeqCst) > 0);
        if *wanted.start() > 1 {
            wait_for("several at a time", || running.most.load(SeqCst) > 1);
        } else {
            std::thread::sleep(Duration::from_millis(300));
        }
        let most = running.most.load(SeqCst);
        assert!(wanted.contains(&most), "{most} at a disk usage of {usage}");
        // A flush goes before them.
        let begin = Instant::now();
        db.put(b"new", b"value", &WriteOptions::default()).unwrap();
        db.flush().unwrap();
        assert!(begin.elapsed() < PROMPT, "{:?}", begin.elapsed());
        db.close().unwrap();
    }
}
