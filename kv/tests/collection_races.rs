//! Collections between the steps of everything else, and everything else between the steps of a collection.
//!
//! The interleavings are exact: before a chosen change of the directory by one job, its thread does
//! the whole of another. What the job chose, read or wrote before may be gone or have another name when it
//! goes on; what it commits must fit all the same. At the end, threads do all of it at random.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Rng, WatchFs, mount, seed, sim_device, tiny};
use lavafs::FileSystemRef;
use lavafs::device::SimDevice;
use lavakv::{
    CfId, CompactionOptions, CompactionStyle, Compression, Db, Options, ReadOptions, WriteBatch,
    WriteOptions,
};
use parking_lot::Mutex;

const AT: &str = "/db";
const KEYS: u64 = 240;

/// Values of 100 B and more are separated; nothing happens unless a test says so.
fn options() -> Options {
    Options {
        min_blob_size: 100,
        blob_file_size: 32 << 10,
        blob_compression: Compression::None,
        enable_blob_garbage_collection: false,
        blob_correlated_compaction_bytes: 0,
        disable_auto_compactions: true,
        write_buffer_size: 8 << 20,
        level0_slowdown_writes_trigger: 1000,
        level0_stop_writes_trigger: 1000,
        ..tiny()
    }
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:08}").into_bytes()
}

fn value(number: u64, round: u64) -> Vec<u8> {
    let mut rng = Rng(number * 31 + round);
    (0..300 + rng.next() % 700)
        .map(|_| rng.next() as u8)
        .collect()
}

/// A database with one family of data, what the family should hold, and the filesystem below.
#[derive(Clone)]
struct World {
    fs: Arc<WatchFs>,
    db: Db,
    cf: CfId,
    model: Arc<Mutex<BTreeMap<u64, u64>>>,
    rounds: Arc<AtomicU64>,
    device: Arc<SimDevice>,
}

impl World {
    fn new(options: Options) -> World {
        let device = sim_device(64 << 20, 512);
        let fs = WatchFs::new(mount(device.clone()), Box::new(|_, _| {}));
        let db = Db::open(fs.clone() as FileSystemRef, Path::new(AT), options).unwrap();
        let cf = db.create_cf("family").unwrap();
        World {
            fs,
            db,
            cf,
            model: Arc::default(),
            rounds: Arc::default(),
            device,
        }
    }

    /// With garbage in every blob file, and part of the tables newer than the rest.
    fn with_garbage(options: Options) -> World {
        let world = World::new(options);
        world.write(0..KEYS);
        world.compact();
        world.write((0..KEYS).step_by(3));
        world.compact();
        assert!(world.db.stats().blobs.garbage_ratio() > 0.2);
        world
    }

    fn write(&self, keys: impl IntoIterator<Item = u64>) {
        let round = self.rounds.fetch_add(1, Ordering::Relaxed);
        let mut batch = WriteBatch::new();
        for number in keys {
            batch.put_cf(self.cf, &key(number), &value(number, round));
            self.model.lock().insert(number, round);
        }
        self.db.write(batch, &WriteOptions::default()).unwrap();
    }

    fn compact(&self) {
        self.db.compact_range(None, None).unwrap();
    }

    fn collect(&self) {
        self.db.collect_blob_garbage().unwrap();
    }

    fn get(&self, number: u64) -> Option<Vec<u8>> {
        let key = key(number);
        self.db
            .get_cf(self.cf, &key, &ReadOptions::default())
            .unwrap()
    }

    /// Compares everything with the model, now and after a reopen; no file may be left over.
    fn check(self, what: &str, dropped: bool) {
        self.db.wait_for_background_work().unwrap();
        self.check_contents(what, dropped);
        self.no_file_is_left(what);
        let fs = self.fs.clone() as FileSystemRef;
        self.db.close().unwrap();
        let db = Db::open(fs, Path::new(AT), options()).unwrap();
        let again = World { db, ..self };
        again.check_contents(what, dropped);
        again.no_file_is_left(what);
    }

    fn check_contents(&self, what: &str, dropped: bool) {
        self.db.verify().unwrap_or_else(|e| panic!("{what}: {e}"));
        let garbage = self.db.verify_garbage();
        garbage.unwrap_or_else(|e| panic!("{what}: {e}"));
        if dropped {
            assert_eq!(self.db.stats().blobs.files, 0, "{what}");
            return;
        }
        for (&number, &round) in &*self.model.lock() {
            assert_eq!(
                self.get(number),
                Some(value(number, round)),
                "{what}: key {number}"
            );
        }
    }

    /// Blob files in the directory.
    fn blob_files(&self) -> Vec<String> {
        use lavafs::FileSystem;
        let names = self.fs.list(Path::new(AT)).unwrap();
        let names = names.into_iter().map(|entry| entry.name);
        let names = names.map(|name| name.into_string().unwrap());
        names.filter(|name| name.ends_with(".blob")).collect()
    }

    fn no_file_is_left(&self, what: &str) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.blob_files().len() as u64 != self.db.stats().blobs.files {
            let files = self.blob_files();
            assert!(
                Instant::now() < until,
                "{what}: {files:?}, {:?}",
                self.db.stats().blobs
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

type Other = (&'static str, fn(&World));

/// What happens between two steps of a collection.
const BESIDE_A_COLLECTION: [Other; 6] = [
    ("a flush", |world| {
        world.write(0..KEYS / 2);
        world.db.flush().unwrap();
    }),
    ("a merge that drops a part of the inputs", |world| {
        world.write((0..KEYS).step_by(4));
        world.compact();
    }),
    ("a merge that drops the inputs", |world| {
        world.write(0..KEYS);
        world.compact();
    }),
    ("a merge of half the keys", |world| {
        world.write((0..KEYS / 2).step_by(2));
        let end = key(KEYS / 2);
        world.db.compact_range(None, Some(&end)).unwrap();
    }),
    ("merges of all that there is, twice", |world| {
        for _ in 0..2 {
            world.write([0, KEYS - 1]);
            world.compact();
        }
    }),
    ("the drop of the family", |world| {
        world.db.drop_cf(world.cf).unwrap();
    }),
];

#[test]
fn whatever_happens_between_two_steps_of_a_collection_its_result_fits() {
    let steps = [
        ("create", ".blob"),
        ("append", ".blob"),
        ("fsync", ".blob"),
        ("sync_dir", "db"),
    ];
    for (op, suffix) in steps {
        for (name, other) in BESIDE_A_COLLECTION {
            let what = format!("{name} before {op} of {suffix}");
            let world = World::with_garbage(options());
            let beside = world.clone();
            world.fs.before_next(op, suffix, move || other(&beside));
            world.collect();
            assert!(!world.fs.is_pending(), "{what} did not happen");
            world.check(&what, name.contains("drop of the family"));
        }
    }
}

#[test]
fn whatever_a_collection_does_between_two_steps_of_a_merge_its_result_fits() {
    for correlated in [0, 1 << 30] {
        for (op, suffix) in [("create", ".sst"), ("fsync", ".sst"), ("sync_dir", "db")] {
            let what = format!("collection before {op} of {suffix}, {correlated} B along");
            let options = Options {
                blob_correlated_compaction_bytes: correlated,
                ..options()
            };
            let world = World::with_garbage(options);
            // Numbers that lead elsewhere already, and new garbage.
            world.collect();
            world.write((0..KEYS / 2).step_by(5));
            let end = key(KEYS / 2);
            world.db.compact_range(None, Some(&end)).unwrap();
            world.write((0..KEYS).step_by(7));
            world.db.flush().unwrap();
            let beside = world.clone();
            let done = Arc::new(AtomicBool::new(false));
            let flag = done.clone();
            world.fs.before_next(op, suffix, move || {
                let before = beside.db.stats().tickers.blob_collections;
                beside.collect();
                let after = beside.db.stats().tickers.blob_collections;
                flag.store(after > before, Ordering::Relaxed);
            });
            world.compact();
            assert!(
                done.load(Ordering::Relaxed),
                "{what}: nothing was collected"
            );
            world.check(&what, false);
        }
    }
}

#[test]
fn a_merge_may_refer_to_a_number_that_was_collected_and_forgotten_meanwhile() {
    let world = World::new(Options {
        blob_file_size: 1 << 20,
        ..options()
    });
    world.write(0..KEYS);
    world.compact();
    world.write((0..KEYS).step_by(3));
    world.compact();
    // The upper half of the tables has the number of a file that has an heir now.
    world.collect();
    assert!(world.db.stats().blobs.ancestors > 0);
    // The lower half goes, so that no table has the heir's own number, and the heir has garbage.
    world.write(0..KEYS / 2);
    let end = key(KEYS / 2 - 1);
    world.db.compact_range(None, Some(&end)).unwrap();
    world.write([KEYS - 1]);
    world.db.flush().unwrap();
    let beside = world.clone();
    world.fs.before_next("sync_dir", "db", move || {
        let before = beside.db.stats().tickers.blob_collections;
        beside.collect();
        assert!(beside.db.stats().tickers.blob_collections > before);
    });
    world.compact();
    assert!(!world.fs.is_pending());
    world.check("forgotten number", false);
}

#[test]
fn a_collection_never_touches_the_blob_file_of_a_flush_that_is_not_committed() {
    for (op, suffix) in [
        ("append", ".blob"),
        ("create", ".sst"),
        ("fsync", ".sst"),
        ("sync_dir", "db"),
    ] {
        let world = World::with_garbage(options());
        world.write((0..KEYS).step_by(2));
        let beside = world.clone();
        world.fs.before_next(op, suffix, move || {
            beside.collect();
            // Everything is still there, in memory or in files.
            for (&number, &round) in &*beside.model.lock() {
                assert_eq!(beside.get(number), Some(value(number, round)));
            }
        });
        world.db.flush().unwrap();
        assert!(!world.fs.is_pending());
        world.check(&format!("collection before {op} of {suffix}"), false);
    }
}

#[test]
fn an_overwrite_that_no_file_has_makes_no_garbage() {
    let world = World::with_garbage(options());
    world.collect();
    let before = world.db.stats();
    let durable = world.model.lock().clone();
    world.db.sync_wal().unwrap();
    // In memory alone, and gone with it.
    let unlogged = WriteOptions {
        disable_wal: true,
        ..WriteOptions::default()
    };
    for number in 0..KEYS {
        let mut batch = WriteBatch::new();
        batch.put_cf(world.cf, &key(number), &value(number, 99));
        world.db.write(batch, &unlogged).unwrap();
    }
    world.collect();
    let after = world.db.stats();
    assert_eq!(
        after.tickers.blob_collections,
        before.tickers.blob_collections
    );
    assert_eq!(after.blobs, before.blobs);
    let crashed = mount(Arc::new(world.device.crash(1)));
    let db = Db::open(crashed, Path::new(AT), options()).unwrap();
    let cf = db.cf("family").unwrap();
    for (number, round) in durable {
        let found = db.get_cf(cf, &key(number), &ReadOptions::default());
        assert_eq!(found.unwrap(), Some(value(number, round)));
    }
}

#[test]
fn tables_that_a_fifo_drops_during_a_collection_take_their_files_along() {
    for (op, suffix) in [("create", ".blob"), ("fsync", ".blob"), ("sync_dir", "db")] {
        let world = World::with_garbage(options());
        // A manual compaction drops all tables in one edit, without a merge.
        let fifo = Options {
            compaction: CompactionOptions {
                style: CompactionStyle::Fifo,
                fifo_max_table_files_size: 1,
                ..CompactionOptions::default()
            },
            ..options()
        };
        world.db.close().unwrap();
        let fs = world.fs.clone() as FileSystemRef;
        let db = Db::open(fs, Path::new(AT), fifo).unwrap();
        let world = World { db, ..world };
        let beside = world.clone();
        world.fs.before_next(op, suffix, move || {
            beside.compact();
        });
        world.collect();
        assert!(!world.fs.is_pending());
        assert_eq!(world.get(0), None, "before {op} of {suffix}");
        world.check(&format!("fifo before {op} of {suffix}"), true);
    }
}

#[test]
fn two_versions_of_a_key_stay_apart_when_their_files_are_collected_into_one() {
    // Their sequence numbers alone tell them apart, so no merge may change these, not even where nothing
    // older is left and the last level is reached.
    let world = World::new(Options {
        blob_file_size: 1 << 20,
        ..options()
    });
    let moment = || {
        // A third is overwritten before the moment, and is garbage.
        for keys in [(0..KEYS).step_by(1), (0..KEYS).step_by(3)] {
            world.write(keys);
            world.compact();
        }
        let then = ReadOptions {
            snapshot: Some(world.db.snapshot()),
            ..ReadOptions::default()
        };
        (then, world.model.lock().clone())
    };
    let moments = [moment(), moment()];
    world.write((0..KEYS).step_by(2));
    world.compact();
    world.collect();
    let stats = world.db.stats();
    assert_eq!(stats.tickers.blob_collections, 1, "all into one");
    for number in 0..KEYS {
        let values = moments.each_ref().map(|(then, model)| {
            let found = world.db.get_cf(world.cf, &key(number), then).unwrap();
            assert_eq!(found, Some(value(number, model[&number])));
            found
        });
        assert_ne!(values[0], values[1]);
    }
    drop(moments);
    world.check("versions", false);
}

#[test]
fn what_is_held_is_its_moment_through_ten_collections_and_goes_with_its_holder() {
    let world = World::with_garbage(options());
    let then = world.model.lock().clone();
    let snapshot = world.db.snapshot();
    let at_then = ReadOptions {
        snapshot: Some(snapshot.clone()),
        ..ReadOptions::default()
    };
    let mut forward = world.db.iter_cf(world.cf, &at_then).unwrap();
    let mut backward = world.db.iter_cf(world.cf, &ReadOptions::default()).unwrap();
    forward.seek_to_first();
    backward.seek_to_last();
    let pinned: Vec<_> = (0..KEYS)
        .map(|number| {
            let found = world.db.get_pinned(world.cf, &key(number), &at_then);
            found.unwrap().unwrap()
        })
        .collect();
    let mut held_max = 0;
    for round in 0..10 {
        // The snapshot is let go after half of them: from then on the iterators alone keep their files.
        world.write((0..KEYS).filter(|number| number % 5 != round % 5));
        world.compact();
        let before = world.db.stats().tickers.blob_collections;
        world.write((0..KEYS).filter(|number| number % 3 == round % 3));
        world.compact();
        world.collect();
        let collected = world.db.stats().tickers.blob_collections;
        assert!(collected > before, "round {round} collects nothing");
        held_max = held_max.max(world.db.stats().held_obsolete_bytes);
        for step in 0..KEYS / 10 {
            let number = round * KEYS / 10 + step;
            assert_eq!(forward.key(), key(number));
            assert_eq!(forward.value(), value(number, then[&number]));
            forward.next();
            let number = KEYS - 1 - number;
            assert_eq!(backward.key(), key(number));
            assert_eq!(backward.value(), value(number, then[&number]));
            backward.prev();
        }
        for number in 0..KEYS {
            let wanted = value(number, then[&number]);
            assert_eq!(*pinned[number as usize], wanted[..], "pinned {number}");
            let found = world.db.get_cf(world.cf, &key(number), &at_then);
            assert_eq!(found.unwrap(), Some(wanted), "round {round}");
        }
    }
    assert!(!forward.valid() && !backward.valid());
    forward.status().unwrap();
    backward.status().unwrap();
    assert!(held_max > 0, "the iterators held files that were collected");
    drop((forward, backward));
    assert_eq!(world.db.stats().held_obsolete_bytes, 0);
    world.no_file_is_left("iterators are gone");
    let bytes = world.db.stats().blobs.value_bytes;
    drop((snapshot, at_then));
    world.write([0]);
    world.compact();
    world.collect();
    let left = world.db.stats().blobs.value_bytes;
    assert!(
        left * 3 / 2 < bytes,
        "the snapshot held {bytes}, now {left}"
    );
    assert_eq!(pinned.len() as u64, KEYS);
    world.check("held", false);
}

#[test]
fn threads_that_do_everything_at_once_lose_nothing() {
    let mut rng = Rng(seed());
    let options = Options {
        enable_blob_garbage_collection: true,
        blob_collection_idle_millis: 1,
        blob_correlated_compaction_bytes: 64 << 10,
        disable_auto_compactions: false,
        write_buffer_size: 32 << 10,
        max_background_jobs: 4,
        max_subcompactions: 2,
        ..options()
    };
    let world = World::new(options);
    let stop = AtomicBool::new(false);
    let seeds: [u64; 4] = std::array::from_fn(|_| rng.next());
    std::thread::scope(|scope| {
        let (world, stop) = (&world, &stop);
        scope.spawn(move || {
            let mut rng = Rng(seeds[0]);
            while !stop.load(Ordering::Relaxed) {
                let (from, step) = (rng.below(KEYS), 1 + rng.below(9));
                world.write((from..KEYS).step_by(step as usize).take(40));
            }
        });
        scope.spawn(move || {
            let mut rng = Rng(seeds[1]);
            while !stop.load(Ordering::Relaxed) {
                match rng.below(4) {
                    0 => world.db.flush().unwrap(),
                    1 => world.compact(),
                    2 => world.collect(),
                    _ => {
                        let cf = world.db.create_cf(&format!("{}", rng.next())).unwrap();
                        let mut batch = WriteBatch::new();
                        (0..50).for_each(|n| batch.put_cf(cf, &key(n), &value(n, 7)));
                        world.db.write(batch, &WriteOptions::default()).unwrap();
                        world.db.flush().unwrap();
                        world.db.drop_cf(cf).unwrap();
                    }
                }
            }
        });
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                world.collect();
            }
        });
        scope.spawn(move || {
            let mut rng = Rng(seeds[3]);
            let until = Instant::now() + Duration::from_secs(3);
            let collections = || world.db.tickers().blob_collections;
            let patience = until + Duration::from_secs(60);
            while Instant::now() < until || (collections() <= 3 && Instant::now() < patience) {
                look_at_a_moment(world, &mut rng);
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
    assert!(world.db.stats().tickers.blob_collections > 3);
    world.check("threads", false);
}

/// Reads one moment twice, by an iterator and by its snapshot, while others change everything.
fn look_at_a_moment(world: &World, rng: &mut Rng) {
    let then = ReadOptions {
        snapshot: Some(world.db.snapshot()),
        ..ReadOptions::default()
    };
    let mut iter = world.db.iter_cf(world.cf, &then).unwrap();
    iter.seek(&key(rng.below(KEYS)));
    let mut seen = Vec::new();
    while iter.valid() && seen.len() < 60 {
        seen.push((iter.key().to_vec(), iter.value().to_vec()));
        iter.next();
    }
    iter.status().unwrap();
    for (key, value) in seen {
        let found = world.db.get_cf(world.cf, &key, &then).unwrap();
        assert_eq!(found, Some(value));
    }
}
