//! Crashes under LavaKV: an engine with everything on, whose options are drawn anew in every life.
//!
//! Values are separated or not, collected, taken along by compactions and held by snapshots and iterators; every
//! merge policy but the one that drops data takes its turn, and a database of one policy and threshold is
//! opened again with others. Families come and go beside the two whose contents are known.
//!
//! Each batch also sets a key to its number, so that what a crash leaves tells how many batches it has: at
//! least those that were durable, at most those that were issued, and exactly these. A life begins with
//! what its recovery found.
//!
//! The engine's threads meet as the scheduler has it: a violation need not repeat. Times are as in `model.rs`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lavafs::device::{Recording, SimDevice};
use lavafs::{FileSystemRef, MkfsOptions, mkfs};
use lavakv::{
    CfId, CompactionOptions, CompactionStyle, Compression, Db, DbIterator, Options, ReadOptions,
    Snapshot, WriteBatch, WriteOptions,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::verify::{assert_clean, mount};
use super::{Effort, MIB, Violation, guard};

const AT: &str = "/db";
const SECOND: &str = "second";
const KEYS: u64 = 120;

const SHARED_WORDS: &[u8] =
    b"what all values of the workload have in common, whoever wrote them and whenever; ";

/// The key that counts batches; below all others.
const COUNTER: &[u8] = b"counter";

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Contents of both families.
type Contents = [Map; 2];

/// One batch: contents after it, and when it was given to the database.
struct Step {
    issued: usize,
    after: Contents,
}

/// What a life did, and what had to be durable when.
struct History {
    /// The first is what the life began with.
    steps: Vec<Step>,
    /// (operations recorded, steps durable): both ascend.
    durable: Vec<(usize, usize)>,
}

/// Explores the engines of the world `seed`, crashed at operations that are drawn, and returns the number of
/// states that were checked.
///
/// # Errors
/// The first violation.
pub fn explore_engine(seed: u64, effort: &Effort) -> Result<u64, Box<Violation>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let logical_block = if rng.random_range(0..4) == 0 {
        4096
    } else {
        512
    };
    let mut device = SimDevice::new(rng.random_range(16..48) * MIB, logical_block);
    mkfs(&device, &MkfsOptions::default()).expect("a healthy device can be formatted");
    let mut states = 0;
    for life in 0..effort.lives {
        let violation = |at, crash_seed, what| {
            Box::new(Violation {
                seed,
                life,
                at,
                crash_seed,
                what,
            })
        };
        let (recording, history) = guard(|| live(device, &mut rng, effort.steps))
            .map_err(|what| violation(usize::MAX, 0, what))?;
        let ops = recording.ops().len();
        for _ in 0..effort.steps as u64 * effort.crashes / 8 {
            let (at, crash_seed) = (rng.random_range(0..=ops), rng.random());
            let crashed = Arc::new(recording.crash(at, crash_seed));
            guard(|| verify(&crashed, &history, at, &mut rng))
                .map_err(|what| violation(at, crash_seed, what))?;
            states += 1;
        }
        device = recording.crash(rng.random_range(0..=ops), rng.random());
    }
    Ok(states)
}

/// Options that make everything happen within a few hundred batches.
fn draw_options(rng: &mut StdRng) -> Options {
    let mut pick = |from: &[u64]| from[rng.random_range(0..from.len())];
    let style = [
        CompactionStyle::Level,
        CompactionStyle::Level,
        CompactionStyle::Universal,
        CompactionStyle::Tiered,
        CompactionStyle::LazyLevel,
        CompactionStyle::Fluid,
        CompactionStyle::Bush,
    ][pick(&[0, 1, 2, 3, 4, 5, 6]) as usize];
    Options {
        create_if_missing: true,
        write_buffer_size: pick(&[4096, 16 << 10, 1 << 20]) as usize,
        max_write_buffer_number: 3,
        target_file_size_base: pick(&[4096, 16 << 10]),
        max_bytes_for_level_base: 16 << 10,
        max_bytes_for_level_multiplier: 3.0,
        num_levels: 5,
        block_size: 1024,
        block_cache_size: 256 << 10,
        max_manifest_file_size: pick(&[2000, 1 << 20]),
        max_subcompactions: pick(&[1, 1, 3]) as usize,
        disable_auto_compactions: pick(&[0, 0, 1]) == 1,
        compaction: CompactionOptions {
            style,
            ..CompactionOptions::default()
        },
        min_blob_size: pick(&[0, 1, 50, 50, 200]) as usize,
        blob_file_size: pick(&[4096, 6000, 64 << 10]),
        blob_compression: match pick(&[0, 1]) {
            0 => Compression::None,
            _ => Compression::Zstd { level: 1 },
        },
        blob_zstd_dict_bytes: pick(&[0, 0, 400, 4096]) as usize,
        blob_correlated_compaction_bytes: pick(&[0, 8 << 10, 1 << 20]),
        enable_blob_garbage_collection: pick(&[0, 1, 1]) == 1,
        blob_collection_idle_millis: pick(&[1, 10_000]),
        ..Options::default()
    }
}

fn open(device: &Arc<SimDevice>, options: Options) -> Result<(FileSystemRef, Db), String> {
    let fs = mount(device).map_err(|error| format!("mount: {error}"))?;
    let fs: FileSystemRef = Arc::new(fs);
    let db = Db::open(fs.clone(), Path::new(AT), options);
    Ok((fs, db.map_err(|error| format!("open: {error}"))?))
}

/// Something that holds a moment, and what it should see of the first family.
struct Held {
    snapshot: Snapshot,
    iter: DbIterator,
    then: Map,
}

struct Life<'a> {
    device: Arc<SimDevice>,
    fs: FileSystemRef,
    db: Db,
    second: CfId,
    now: Contents,
    history: History,
    held: Vec<Held>,
    rng: &'a mut StdRng,
}

/// Does random things to the database that `device` holds.
fn live(device: SimDevice, rng: &mut StdRng, steps: usize) -> Result<(Recording, History), String> {
    let device = Arc::new(device);
    device.record();
    let (fs, db) = open(&device, draw_options(rng))?;
    let say = |error: lavakv::Error| error.to_string();
    let second = match db.cf(SECOND) {
        Some(second) => second,
        None => db.create_cf(SECOND).map_err(say)?,
    };
    let now = contents(&db)?;
    let mut life = Life {
        history: History {
            steps: vec![Step {
                issued: 0,
                after: now.clone(),
            }],
            durable: vec![(0, 0)],
        },
        device,
        fs,
        db,
        second,
        now,
        held: Vec::new(),
        rng,
    };
    for step in 0..steps {
        let done = life.step().map_err(say);
        done.and_then(|durable| {
            if durable {
                let all = life.history.steps.len() - 1;
                life.history.durable.push((life.device.recorded_ops(), all));
            }
            life.look()
        })
        .map_err(|what| format!("step {step}: {what}"))?;
    }
    life.db.wait_for_background_work().map_err(say)?;
    let history = life.history;
    drop((life.held, life.db, life.fs));
    Ok((life.device.take_recording(), history))
}

impl Life<'_> {
    /// One random thing; true where everything before it is durable.
    fn step(&mut self) -> lavakv::Result<bool> {
        match self.rng.random_range(0..40) {
            0..22 => self.write(),
            22..25 => self.db.flush().map(|()| true),
            25 => self.db.sync_wal().map(|()| true),
            26..30 => self.db.collect_blob_garbage().map(|()| false),
            30..33 => {
                let from = self.key();
                let to = (self.rng.random_range(0..2) == 0).then(|| self.key());
                let to = to.filter(|to| *to >= from);
                self.db.compact_range(Some(&from), to.as_deref())?;
                // It flushes first.
                Ok(true)
            }
            33..35 => self.hold(),
            35..37 => {
                if !self.held.is_empty() {
                    let at = self.rng.random_range(0..self.held.len());
                    self.held.swap_remove(at);
                }
                Ok(false)
            }
            37 => self.pass_through_a_family(),
            38 => self.reopen(),
            _ => self.db.wait_for_background_work().map(|()| false),
        }
    }

    fn key(&mut self) -> Vec<u8> {
        format!("key{:04}", self.rng.random_range(0..KEYS)).into_bytes()
    }

    fn write(&mut self) -> lavakv::Result<bool> {
        let mut batch = WriteBatch::new();
        let number = self.history.steps.len() as u32 + counter(&self.history.steps[0].after);
        for _ in 0..self.rng.random_range(1..12) {
            let family = usize::from(self.rng.random_range(0..3) == 0);
            let cf = [CfId::DEFAULT, self.second][family];
            let key = self.key();
            if self.rng.random_range(0..6) == 0 {
                batch.delete_cf(cf, &key);
                self.now[family].remove(&key);
                continue;
            }
            let len = match self.rng.random_range(0..20) {
                0 => self.rng.random_range(0..6000),
                _ => self.rng.random_range(0..200),
            };
            // They have much in common, for dictionaries to be trained on.
            let words = SHARED_WORDS.iter().cycle().take(len).enumerate();
            let value: Vec<u8> = words
                .map(|(at, &word)| match at % 32 {
                    0 => number as u8,
                    _ => word,
                })
                .collect();
            batch.put_cf(cf, &key, &value);
            self.now[family].insert(key, value);
        }
        batch.put(COUNTER, &number.to_be_bytes());
        self.now[0].insert(COUNTER.to_vec(), number.to_be_bytes().to_vec());
        let synced = self.rng.random_range(0..3) == 0;
        self.history.steps.push(Step {
            issued: self.device.recorded_ops(),
            after: self.now.clone(),
        });
        let options = WriteOptions {
            sync: synced,
            disable_wal: false,
        };
        self.db.write(batch, &options).map(|()| synced)
    }

    fn hold(&mut self) -> lavakv::Result<bool> {
        if self.held.len() < 4 {
            let snapshot = self.db.snapshot();
            let mut iter = self.db.iter(&ReadOptions::default())?;
            iter.seek_to_first();
            let then = self.now[0].clone();
            self.held.push(Held {
                snapshot,
                iter,
                then,
            });
        }
        Ok(false)
    }

    fn pass_through_a_family(&mut self) -> lavakv::Result<bool> {
        let name = format!("passing{}", self.history.steps.len());
        let cf = match self.db.cf(&name) {
            Some(cf) => cf,
            None => self.db.create_cf(&name)?,
        };
        let mut batch = WriteBatch::new();
        (0..20_u8).for_each(|key| batch.put_cf(cf, &[key], &[key; 300]));
        self.db.write(batch, &WriteOptions::default())?;
        self.db.flush()?;
        self.db.drop_cf(cf)?;
        Ok(true)
    }

    fn reopen(&mut self) -> lavakv::Result<bool> {
        self.held.clear();
        self.db.close()?;
        let options = draw_options(self.rng);
        self.db = Db::open(self.fs.clone(), Path::new(AT), options)?;
        self.second = self.db.cf(SECOND).expect("families are kept");
        Ok(true)
    }

    /// Looks at a key of the present and of each held moment, and moves the iterators on.
    fn look(&mut self) -> Result<(), String> {
        let key = self.key();
        let found = self.db.get(&key, &ReadOptions::default());
        if found.map_err(|error| error.to_string())?.as_ref() != self.now[0].get(&key) {
            return Err(format!("{} has a wrong value", key.escape_ascii()));
        }
        for held in &mut self.held {
            let options = ReadOptions {
                snapshot: Some(held.snapshot.clone()),
                ..ReadOptions::default()
            };
            let found = self.db.get(&key, &options).map_err(|e| e.to_string())?;
            let iter = &mut held.iter;
            let moved =
                !iter.valid() || held.then.get(iter.key()).is_some_and(|v| v == iter.value());
            iter.status().map_err(|error| error.to_string())?;
            if found.as_ref() != held.then.get(&key) || !moved {
                return Err("a held moment has changed".to_owned());
            }
            if iter.valid() {
                iter.next();
            }
        }
        Ok(())
    }
}

fn counter(contents: &Contents) -> u32 {
    let bytes = contents[0].get(COUNTER);
    bytes.map_or(0, |bytes| {
        u32::from_be_bytes(bytes[..].try_into().expect("four bytes were written"))
    })
}

/// Both families as iterators tell them.
fn contents(db: &Db) -> Result<Contents, String> {
    let mut maps = Contents::default();
    let families = [Some(CfId::DEFAULT), db.cf(SECOND)];
    for (map, cf) in maps.iter_mut().zip(families) {
        let Some(cf) = cf else { continue };
        let iter = db.iter_cf(cf, &ReadOptions::default());
        let mut iter = iter.map_err(|error| error.to_string())?;
        iter.seek_to_first();
        while iter.valid() {
            map.insert(iter.key().to_vec(), iter.value().to_vec());
            iter.next();
        }
        iter.status().map_err(|error| format!("scan: {error}"))?;
    }
    Ok(maps)
}

/// Opens what a crash at operation `at` left, with whatever options, and compares it with the history.
fn verify(
    device: &Arc<SimDevice>,
    history: &History,
    at: usize,
    rng: &mut StdRng,
) -> Result<(), String> {
    let say = |error: lavakv::Error| error.to_string();
    assert_clean(device, "before mounting")?;
    let (fs, db) = open(device, draw_options(rng))?;
    db.verify().map_err(|error| format!("verify: {error}"))?;
    let garbage = db.verify_garbage();
    garbage.map_err(|error| format!("verify_garbage: {error}"))?;
    let found = contents(&db)?;
    let first = counter(&history.steps[0].after);
    let kept = counter(&found).saturating_sub(first) as usize;
    let durable = history.durable.iter().rfind(|(ops, _)| *ops <= at);
    let durable = durable.map_or(0, |(_, steps)| *steps);
    let known = history.steps.get(kept).filter(|step| step.issued <= at);
    match known {
        _ if kept < durable => {
            return Err(format!("{durable} batches were durable, {kept} are there"));
        }
        None => return Err(format!("batch {kept} was not written yet")),
        Some(step) if step.after != found => {
            return Err(format!("not the first {kept} batches exactly"));
        }
        Some(_) => {}
    }
    // It goes on from there, whatever was interrupted.
    db.put(b"after", b"the crash", &WriteOptions::synced())
        .map_err(say)?;
    db.collect_blob_garbage().map_err(say)?;
    db.compact_range(None, None).map_err(say)?;
    let mut after = contents(&db)?;
    after[0].remove(&b"after"[..]);
    if after != found {
        return Err("going on has changed what is there".to_owned());
    }
    db.verify_garbage().map_err(say)?;
    db.close().map_err(say)?;
    drop((db, fs));
    assert_clean(device, "after going on")
}
