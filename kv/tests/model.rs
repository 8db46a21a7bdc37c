//! The engine against a model: an ordered map with copies for snapshots.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use common::draw::{draw_policy, random_options, separating};
use common::{Rng, WatchFs, host, image, mount, seed, sim_device, tiny};
use lavafs::FileSystemRef;
use lavakv::{Db, Options, ReadOptions, Snapshot, WriteBatch, WriteOptions};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

const KEYS: u64 = 400;

fn key(number: u64) -> Vec<u8> {
    // Keys of many lengths, some a prefix of others, one without a byte.
    if number == 0 {
        return Vec::new();
    }
    let mut key = format!("{number:03}").into_bytes();
    key.extend(vec![b'x'; (number % 7) as usize * 3]);
    key
}

fn value(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.below(50) {
        0 => rng.below(40_000),
        _ => rng.below(120),
    };
    let byte = rng.next() as u8;
    (0..len).map(|at| byte ^ at as u8).collect()
}

struct World {
    db: Db,
    map: Map,
    snapshots: Vec<(Snapshot, Map)>,
}

fn as_of(snapshot: &Snapshot) -> ReadOptions {
    ReadOptions {
        snapshot: Some(snapshot.clone()),
        ..ReadOptions::default()
    }
}

/// Walks both ways, with bounds now and then, against the model.
fn check_iteration(db: &Db, map: &Map, options: ReadOptions, rng: &mut Rng) {
    let mut options = options;
    let (mut low, mut high) = (key(rng.below(KEYS)), key(rng.below(KEYS)));
    if low > high && rng.below(8) > 0 {
        std::mem::swap(&mut low, &mut high);
    }
    let is_above = rng.below(2) == 0;
    let is_below = rng.below(2) == 0;
    options.lower_bound = is_above.then(|| low.clone());
    options.upper_bound = is_below.then(|| high.clone());
    let mut prefix = key(rng.below(KEYS));
    prefix.truncate(rng.below(prefix.len() as u64 + 1) as usize);
    let prefixed = rng.below(4) == 0;
    options.prefix = prefixed.then(|| prefix.clone());
    options.lazy_values = rng.below(4) == 0;
    let is_seen = |key: &Vec<u8>| {
        (!is_above || *key >= low)
            && (!is_below || *key < high)
            && (!prefixed || key.starts_with(&prefix))
    };
    let expected: Vec<(&Vec<u8>, &Vec<u8>)> = map.iter().filter(|(key, _)| is_seen(key)).collect();
    let mut iter = db.iter(&options).unwrap();
    let mut found = Vec::new();
    iter.seek_to_first();
    while iter.valid() {
        let len = iter.value_len();
        found.push((iter.key().to_vec(), iter.load_value().unwrap().to_vec()));
        assert_eq!(found.last().unwrap().1.len(), len);
        iter.next();
    }
    iter.status().unwrap();
    assert!(
        found
            .iter()
            .map(|(k, v)| (k, v))
            .eq(expected.iter().copied()),
        "forward"
    );
    found.clear();
    iter.seek_to_last();
    while iter.valid() {
        found.push((iter.key().to_vec(), iter.load_value().unwrap().to_vec()));
        iter.prev();
    }
    iter.status().unwrap();
    found.reverse();
    assert!(
        found
            .iter()
            .map(|(k, v)| (k, v))
            .eq(expected.iter().copied()),
        "backward"
    );
    // A walk that turns round at random.
    let target = key(rng.below(KEYS));
    let mut at: Option<usize>;
    if rng.below(2) == 0 {
        iter.seek(&target);
        let index = expected.partition_point(|(key, _)| **key < target);
        at = (index < expected.len()).then_some(index);
    } else {
        iter.seek_for_prev(&target);
        at = expected
            .partition_point(|(key, _)| **key <= target)
            .checked_sub(1);
    }
    for _ in 0..30 {
        assert_eq!(iter.valid(), at.is_some());
        let Some(index) = at else { break };
        iter.load_value().unwrap();
        assert_eq!(
            (iter.key(), iter.value()),
            (&expected[index].0[..], &expected[index].1[..])
        );
        if rng.below(2) == 0 {
            iter.next();
            at = (index + 1 < expected.len()).then_some(index + 1);
        } else {
            iter.prev();
            at = index.checked_sub(1);
        }
    }
}

fn write(world: &mut World, rng: &mut Rng, always_logged: bool) {
    let mut batch = WriteBatch::new();
    for _ in 0..=rng.below(20) {
        let key = key(rng.below(KEYS));
        if rng.below(4) == 0 {
            batch.delete(&key);
            world.map.remove(&key);
        } else {
            let value = value(rng);
            batch.put(&key, &value);
            world.map.insert(key, value);
        }
    }
    let options = match rng.below(10) {
        0 => WriteOptions::synced(),
        1 if !always_logged => WriteOptions {
            sync: false,
            disable_wal: true,
        },
        _ => WriteOptions::default(),
    };
    world.db.write(batch, &options).unwrap();
}

fn check(world: &World, rng: &mut Rng) {
    let now = ReadOptions::default();
    for _ in 0..5 {
        let key = key(rng.below(KEYS));
        assert_eq!(
            world.db.get(&key, &now).unwrap().as_ref(),
            world.map.get(&key)
        );
    }
    let keys: Vec<Vec<u8>> = (0..10).map(|_| key(rng.below(KEYS))).collect();
    let slices: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let found = world.db.multi_get(&slices, &now).unwrap();
    for (key, found) in keys.iter().zip(&found) {
        assert_eq!(found.as_ref(), world.map.get(key));
    }
    if let Some((snapshot, map)) = world.snapshots.first() {
        let key = key(rng.below(KEYS));
        assert_eq!(
            world.db.get(&key, &as_of(snapshot)).unwrap().as_ref(),
            map.get(&key)
        );
    }
    if rng.below(10) == 0 {
        check_iteration(&world.db, &world.map, now, rng);
        for (snapshot, map) in &world.snapshots {
            check_iteration(&world.db, map, as_of(snapshot), rng);
        }
    }
}

fn run(fs: FileSystemRef, options: &Options, steps: u64, seed: u64) {
    run_as(fs, options, steps, seed, |_, _| {});
}

/// `reopened` may change the options each time that the database is opened again.
fn run_as(
    fs: FileSystemRef,
    options: &Options,
    steps: u64,
    seed: u64,
    reopened: impl Fn(&mut Options, &mut Rng),
) {
    let at = Path::new("/db");
    let mut options = options.clone();
    let mut rng = Rng(seed);
    let mut world = World {
        db: Db::open(fs.clone(), at, separating(&options, &mut rng)).unwrap(),
        map: Map::new(),
        snapshots: Vec::new(),
    };
    for _ in 0..steps {
        match rng.below(200) {
            0..=149 => write(&mut world, &mut rng, false),
            150..=179 => check(&world, &mut rng),
            180..=187 => {
                let snapshot = world.db.snapshot();
                world.snapshots.push((snapshot, world.map.clone()));
            }
            188..=193 if !world.snapshots.is_empty() => {
                let at = rng.below(world.snapshots.len() as u64) as usize;
                world.snapshots.swap_remove(at);
            }
            194 => world.db.flush().unwrap(),
            195 => world.db.collect_blob_garbage().unwrap(),
            196 => {
                let (low, high) = (key(rng.below(KEYS)), key(rng.below(KEYS)));
                world.db.compact_range(Some(&low), Some(&high)).unwrap();
            }
            197 => world.db.compact_range(None, None).unwrap(),
            198 => {
                world.snapshots.clear();
                world.db.close().unwrap();
                options = separating(&options, &mut rng);
                reopened(&mut options, &mut rng);
                world.db = Db::open(fs.clone(), at, options.clone()).unwrap();
            }
            199 => {
                // Without close: everything logged was synced or is still in the file.
                world.snapshots.clear();
                world.db.flush().unwrap();
                write(&mut world, &mut rng, true);
                world.db.sync_wal().unwrap();
                world.db = {
                    let World { db, .. } = world;
                    drop(db);
                    Db::open(fs.clone(), at, separating(&options, &mut rng)).unwrap()
                };
            }
            _ => {}
        }
    }
    world.db.wait_for_background_work().unwrap();
    check_iteration(&world.db, &world.map, ReadOptions::default(), &mut rng);
    world.db.verify().unwrap();
    world.db.verify_garbage().unwrap();
    assert!(world.db.stats().last_sequence > 0);
}

#[test]
fn the_engine_is_an_ordered_map_with_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    run(host(dir.path()), &tiny(), 3000, seed());
}

#[test]
fn the_engine_is_an_ordered_map_on_lavafs_in_memory() {
    run(mount(sim_device(256 << 20, 512)), &tiny(), 3000, seed() ^ 2);
}

#[test]
fn the_engine_is_an_ordered_map_on_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let fs = image(&dir.path().join("image"), 256 << 20);
    run(fs, &tiny(), 2000, seed() ^ 3);
}

#[test]
fn the_engine_is_an_ordered_map_with_static_levels_and_several_jobs() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        level_compaction_dynamic_level_bytes: false,
        max_background_jobs: 4,
        max_write_buffer_number: 4,
        level0_slowdown_writes_trigger: 6,
        level0_stop_writes_trigger: 8,
        delayed_write_rate: 4 << 20,
        max_manifest_file_size: 2000,
        ..tiny()
    };
    run(host(dir.path()), &options, 2000, seed() ^ 1);
}

/// An option that is not drawn is one that no model test has ever changed.
#[test]
fn every_stored_option_is_drawn() {
    // One seed: of any, some would not draw what is drawn seldom.
    let mut rng = Rng(1);
    let mut values: BTreeMap<String, HashSet<String>> = BTreeMap::new();
    for _ in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let options = random_options(&mut rng);
        let db = Db::open(host(dir.path()), Path::new("/db"), options).unwrap();
        db.close().unwrap();
        let files = std::fs::read_dir(dir.path().join("db")).unwrap();
        let stored = files.map(|entry| entry.unwrap()).find(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with("OPTIONS-")
        });
        let text = std::fs::read_to_string(stored.unwrap().path()).unwrap();
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let seen = values.entry(name.to_owned()).or_default();
            seen.insert(value.to_owned());
        }
    }
    // What would drop data or stop writers for good, and what is larger than any of these databases.
    let fixed = [
        "family/0",
        "fifo_max_table_files_size",
        "fifo_ttl",
        "hard_pending_compaction_bytes_limit",
    ];
    for (name, values) in values {
        if name.starts_with("cf/") {
            continue;
        }
        let drawn = values.len() > 1;
        assert_eq!(drawn, !fixed.contains(&name.as_str()), "{name}: {values:?}");
    }
}

#[test]
fn the_engine_is_an_ordered_map_with_any_options() {
    let seed = seed();
    for round in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let options = random_options(&mut Rng(seed ^ round << 32));
        println!("round {round}: {options:?}");
        run(host(dir.path()), &options, 600, seed ^ round);
    }
}

#[test]
fn the_engine_is_an_ordered_map_whatever_the_policy_and_however_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    run_as(host(dir.path()), &tiny(), 6000, seed() ^ 4, draw_policy);
}

#[test]
fn multi_get_reads_all_levels_in_one_batch_or_two() {
    let dir = tempfile::tempdir().unwrap();
    let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
    let options = Options {
        block_cache_size: 0,
        cache_index_and_filter_blocks: false,
        ..tiny()
    };
    let db = Db::open(fs.clone(), Path::new("/db"), options).unwrap();
    let name = |number: u32| number.to_be_bytes();
    let value = |number: u32| vec![number as u8; 100];
    for number in (0..20_000_u32).map(|number| number * 7919 % 20_000) {
        db.put(&name(number), &value(number), &WriteOptions::default())
            .unwrap();
    }
    for number in (0..20_000).step_by(100) {
        db.delete(&name(number), &WriteOptions::default()).unwrap();
    }
    db.flush().unwrap();
    db.wait_for_background_work().unwrap();
    let levels = db.stats().levels;
    assert!(levels.iter().filter(|level| level.files > 0).count() >= 3);
    // Keys of every level, deleted ones, missing ones, and some twice.
    let numbers: Vec<u32> = (0..500)
        .map(|at| at * 41 % 20_400)
        .chain([50, 50])
        .collect();
    let names: Vec<[u8; 4]> = numbers.iter().map(|&number| name(number)).collect();
    let keys: Vec<&[u8]> = names.iter().map(|name| &name[..]).collect();
    // Opens every table.
    db.multi_get(&keys, &ReadOptions::default()).unwrap();
    let before = fs.reads();
    let found = db.multi_get(&keys, &ReadOptions::default()).unwrap();
    let after = fs.reads();
    for (&number, found) in numbers.iter().zip(&found) {
        let expected = (number < 20_000 && number % 100 > 0).then(|| value(number));
        assert_eq!(found, &expected, "key {number}");
    }
    let (batches, reads) = (after.0 - before.0, after.1 - before.1);
    assert!((1..=3).contains(&batches), "{batches} batches");
    assert!((100..=520).contains(&reads), "{reads} reads");
}
