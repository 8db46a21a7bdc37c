//! Iterators that live long, over keys at the edges of what keys can be, against a model.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::draw::random_options;
use common::{Rng, mount, seed, sim_device, tiny};
use lavakv::{
    CfId, Compression, Db, DbIterator, Options, ReadOptions, Snapshot, WriteBatch, WriteOptions,
};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;
type Entries = Vec<(Vec<u8>, Vec<u8>)>;

const BYTES: [u8; 6] = [0, 0, 1, b'a', 254, 255];

/// A key of few different bytes, so that many are prefixes of others and share their heads.
fn key(rng: &mut Rng, stem: &[u8]) -> Vec<u8> {
    let len = match rng.below(150) {
        0..4 => 0,
        4 => 65_535 - stem.len() as u64,
        5 | 6 => rng.below(3000),
        7..80 => rng.below(5),
        _ => rng.below(20),
    };
    let mut key = match rng.below(3) {
        0 => Vec::new(),
        _ => stem.to_vec(),
    };
    let uniform = rng.below(3) == 0 || len > 100;
    let byte = BYTES[rng.below(6) as usize];
    for _ in 0..len {
        key.push(if uniform {
            byte
        } else {
            BYTES[rng.below(6) as usize]
        });
    }
    if len > 100 && rng.below(2) == 0 {
        let last = key.len() - 1;
        key[last] = BYTES[rng.below(6) as usize];
    }
    key
}

fn value(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.below(200) {
        0 => rng.below(100_000),
        1..50 => 0,
        50..60 => rng.below(3000),
        _ => rng.below(150),
    };
    let byte = rng.next() as u8;
    (0..len).map(|at| byte ^ (at / 7) as u8).collect()
}

/// A walk, and what it is to see.
struct Walk {
    iter: DbIterator,
    seen: Entries,
    at: Option<usize>,
    lazy: bool,
}

struct Family {
    id: CfId,
    map: Map,
}

struct World {
    db: Option<Db>,
    families: Vec<Family>,
    walks: Vec<Walk>,
    snapshots: Vec<(Snapshot, Vec<Map>)>,
    stem: Vec<u8>,
    keys: Vec<Vec<u8>>,
}

impl World {
    fn db(&self) -> &Db {
        self.db.as_ref().unwrap()
    }

    fn any_key(&self, rng: &mut Rng) -> Vec<u8> {
        match rng.below(8) {
            0 => key(rng, &self.stem),
            1 => {
                let mut key = self.keys[rng.below(self.keys.len() as u64) as usize].clone();
                key.push(0);
                key.truncate(65_535);
                key
            }
            2 => {
                let mut key = self.keys[rng.below(self.keys.len() as u64) as usize].clone();
                key.pop();
                key
            }
            3 => {
                let mut key = self.keys[rng.below(self.keys.len() as u64) as usize].clone();
                if let Some(last) = key.last_mut() {
                    *last = last.wrapping_add(rng.below(3) as u8).wrapping_sub(1);
                }
                key
            }
            _ => self.keys[rng.below(self.keys.len() as u64) as usize].clone(),
        }
    }

    fn write(&mut self, rng: &mut Rng) {
        let mut batch = WriteBatch::new();
        for _ in 0..=rng.below(30) {
            let key = self.any_key(rng);
            let at = rng.below(self.families.len() as u64) as usize;
            let family = &mut self.families[at];
            if rng.below(4) == 0 {
                batch.delete_cf(family.id, &key);
                family.map.remove(&key);
            } else {
                let value = value(rng);
                batch.put_cf(family.id, &key, &value);
                family.map.insert(key, value);
            }
        }
        self.db().write(batch, &WriteOptions::default()).unwrap();
    }

    fn read_options(&self, rng: &mut Rng) -> (ReadOptions, usize, Entries) {
        let at = rng.below(self.families.len() as u64) as usize;
        let mut options = ReadOptions {
            fill_cache: rng.below(2) == 0,
            lazy_values: rng.below(3) == 0,
            readahead: [
                0,
                0,
                1,
                1000,
                70_000,
                1 << 20,
                u32::MAX as usize,
                usize::MAX,
            ][rng.below(8) as usize],
            ..ReadOptions::default()
        };
        let mut map = &self.families[at].map;
        if rng.below(3) == 0 && !self.snapshots.is_empty() {
            let (snapshot, maps) = &self.snapshots[rng.below(self.snapshots.len() as u64) as usize];
            options.snapshot = Some(snapshot.clone());
            map = &maps[at];
        }
        if rng.below(3) == 0 {
            options.lower_bound = Some(self.any_key(rng));
        }
        if rng.below(3) == 0 {
            options.upper_bound = Some(self.any_key(rng));
        }
        if rng.below(4) == 0 {
            let mut prefix = self.any_key(rng);
            prefix.truncate(rng.below(prefix.len().min(12) as u64 + 1) as usize);
            options.prefix = Some(prefix);
        }
        let seen = map
            .iter()
            .filter(|(key, _)| {
                options.lower_bound.as_ref().is_none_or(|low| *key >= low)
                    && options.upper_bound.as_ref().is_none_or(|high| *key < high)
                    && options
                        .prefix
                        .as_ref()
                        .is_none_or(|prefix| key.starts_with(prefix))
            })
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        (options, at, seen)
    }

    fn begin(&mut self, rng: &mut Rng) {
        let (options, at, seen) = self.read_options(rng);
        let iter = self.db().iter_cf(self.families[at].id, &options).unwrap();
        self.walks.push(Walk {
            iter,
            seen,
            at: None,
            lazy: options.lazy_values,
        });
    }

    fn step(&mut self, rng: &mut Rng) {
        if self.walks.is_empty() {
            return;
        }
        let at = rng.below(self.walks.len() as u64) as usize;
        let target = self.any_key(rng);
        self.walks[at].step(target, rng);
    }

    fn gets(&self, rng: &mut Rng) {
        let at = rng.below(self.families.len() as u64) as usize;
        let (mut map, mut options) = (&self.families[at].map, ReadOptions::default());
        if rng.below(2) == 0 && !self.snapshots.is_empty() {
            let (snapshot, maps) = &self.snapshots[rng.below(self.snapshots.len() as u64) as usize];
            options.snapshot = Some(snapshot.clone());
            map = &maps[at];
        }
        options.fill_cache = rng.below(2) == 0;
        let id = self.families[at].id;
        for _ in 0..4 {
            let key = self.any_key(rng);
            assert!(self.db().get_cf(id, &key, &options).unwrap().as_ref() == map.get(&key));
        }
        let count = [0, 1, 3, 40, 400][rng.below(5) as usize];
        let keys: Vec<Vec<u8>> = (0..count).map(|_| self.any_key(rng)).collect();
        let slices: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let found = self.db().multi_get_cf(id, &slices, &options).unwrap();
        assert_eq!(found.len(), keys.len());
        for (key, found) in keys.iter().zip(&found) {
            assert!(found.as_ref() == map.get(key), "multi_get");
        }
    }

    fn drop_family(&mut self, rng: &mut Rng) {
        if self.families.len() > 2 {
            let at = 1 + rng.below(self.families.len() as u64 - 1) as usize;
            let family = self.families.remove(at);
            for (_, maps) in &mut self.snapshots {
                maps.remove(at);
            }
            self.db().drop_cf(family.id).unwrap();
        } else {
            let name = format!("f{}", rng.next());
            let id = self.db().create_cf(&name).unwrap();
            self.families.push(Family {
                id,
                map: Map::new(),
            });
            for (_, maps) in &mut self.snapshots {
                maps.push(Map::new());
            }
        }
    }
}

impl Walk {
    fn step(&mut self, target: Vec<u8>, rng: &mut Rng) {
        let len = self.seen.len();
        for _ in 0..1 + rng.below(40) {
            let seek = self.at.is_none() || rng.below(30) == 0;
            if seek {
                match rng.below(4) {
                    0 => {
                        self.iter.seek_to_first();
                        self.at = (len > 0).then_some(0);
                    }
                    1 => {
                        self.iter.seek_to_last();
                        self.at = len.checked_sub(1);
                    }
                    2 => {
                        self.iter.seek(&target);
                        let at = self.seen.partition_point(|(key, _)| *key < target);
                        self.at = (at < len).then_some(at);
                    }
                    _ => {
                        self.iter.seek_for_prev(&target);
                        let at = self.seen.partition_point(|(key, _)| *key <= target);
                        self.at = at.checked_sub(1);
                    }
                }
            } else {
                let at = self.at.unwrap();
                if rng.below(4) > rng.below(4) {
                    self.iter.prev();
                    self.at = at.checked_sub(1);
                } else {
                    self.iter.next();
                    self.at = (at + 1 < len).then_some(at + 1);
                }
            }
            self.iter.status().unwrap();
            assert_eq!(self.iter.valid(), self.at.is_some(), "validity");
            let Some(at) = self.at else { continue };
            let (key, value) = &self.seen[at];
            assert!(self.iter.key() == key, "key");
            assert_eq!(self.iter.value_len(), value.len());
            if self.lazy && rng.below(2) == 0 {
                continue;
            }
            if self.lazy || rng.below(3) == 0 {
                assert!(self.iter.load_value().unwrap() == value);
            }
            assert!(self.iter.value() == value, "value");
        }
    }
}

fn run(seed: u64, steps: u64) {
    let mut rng = Rng(seed);
    let mut options = random_options(&mut rng);
    // Walks keep memtables, and writers would wait for the memory of these.
    options.env = None;
    options.block_cache_size = [0, 1, 1000, 4096, 65_536, 1 << 20][rng.below(6) as usize];
    let fs = mount(sim_device(1 << 30, 512));
    let open = |options: &Options| Db::open(fs.clone(), Path::new("/db"), options.clone()).unwrap();
    let db = open(&options);
    let stem_len = [0, 3, 8, 9, 300][rng.below(5) as usize];
    let stem: Vec<u8> = (0..stem_len)
        .map(|_| BYTES[rng.below(6) as usize])
        .collect();
    let count = [3, 30, 300][rng.below(3) as usize];
    let keys = (0..count).map(|_| key(&mut rng, &stem)).collect();
    let other = db.create_cf("other").unwrap();
    let mut world = World {
        db: Some(db),
        families: [CfId::DEFAULT, other]
            .map(|id| Family {
                id,
                map: Map::new(),
            })
            .into(),
        walks: Vec::new(),
        snapshots: Vec::new(),
        stem,
        keys,
    };
    for _ in 0..steps {
        match rng.below(60) {
            0..20 => world.write(&mut rng),
            20..28 => world.begin(&mut rng),
            28..45 => world.step(&mut rng),
            45..50 => world.gets(&mut rng),
            50 => world.db().flush().unwrap(),
            51 => {
                let range = (world.any_key(&mut rng), world.any_key(&mut rng));
                world
                    .db()
                    .compact_range(Some(&range.0), Some(&range.1))
                    .unwrap();
            }
            52 => world.db().collect_blob_garbage().unwrap(),
            53 | 54 => {
                let maps = world.families.iter().map(|f| f.map.clone()).collect();
                let snapshot = world.db().snapshot();
                world.snapshots.push((snapshot, maps));
            }
            55 if !world.snapshots.is_empty() => {
                let at = rng.below(world.snapshots.len() as u64) as usize;
                world.snapshots.remove(at);
            }
            56 if !world.walks.is_empty() => {
                let at = rng.below(world.walks.len() as u64) as usize;
                world.walks.remove(at);
            }
            57 if rng.below(3) == 0 => world.drop_family(&mut rng),
            58 if rng.below(6) == 0 => {
                // Walks go on over a closed database.
                world.db().close().unwrap();
                for _ in 0..20 {
                    world.step(&mut rng);
                }
                world.walks.clear();
                world.snapshots.clear();
                world.db = None;
                let db = open(&options);
                world.db = Some(db);
            }
            59 if rng.below(4) == 0 => {
                world.db().sync_wal().unwrap();
                let view =
                    Db::open_read_only(fs.clone(), Path::new("/db"), options.clone()).unwrap();
                for family in &world.families {
                    let mut iter = view.iter_cf(family.id, &ReadOptions::default()).unwrap();
                    iter.seek_to_first();
                    for (key, value) in &family.map {
                        assert!(iter.valid() && iter.key() == key && iter.value() == value);
                        iter.next();
                    }
                    assert!(!iter.valid());
                    iter.status().unwrap();
                }
            }
            _ => {}
        }
        world.walks.truncate(12);
    }
    world.db().verify().unwrap();
    world.db().close().unwrap();
}

#[test]
fn walks_over_keys_at_the_edges_see_what_was_there_when_they_began() {
    let first = seed();
    let runs = std::env::var("RUNS").map_or(10, |text| text.parse().unwrap());
    for run_no in 0..runs {
        println!("run {run_no}: LAVA_SEED={}", first + run_no);
        run(first + run_no, 300);
    }
}

#[test]
fn tables_of_a_run_are_in_order_where_their_first_keys_begin_one_another() {
    let options = Options {
        target_file_size_base: 4096,
        compression: Compression::None,
        min_blob_size: 0,
        ..tiny()
    };
    let db = Db::open(mount(sim_device(64 << 20, 512)), Path::new("/db"), options).unwrap();
    // A table for each. What follows a key in an internal key is greater than what follows it in the next.
    let keys: [&[u8]; 5] = [b"", b"\0", b"\0\0a", b"a", b"a\0\0"];
    for _ in 0..2 {
        for key in keys {
            db.put(key, &[7; 5000], &WriteOptions::default()).unwrap();
        }
        db.flush().unwrap();
    }
    db.compact_range(None, None).unwrap();
    let tables: usize = db.stats().levels.iter().map(|level| level.files).sum();
    assert_eq!(tables, keys.len());
    for key in keys {
        assert!(db.get(key, &ReadOptions::default()).unwrap().is_some());
    }
    db.verify().unwrap();
}
