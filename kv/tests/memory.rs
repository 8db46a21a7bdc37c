//! The memory limit, counted: every byte that the process has allocated, whoever allocated it.
//!
//! The allocator of this test counts what is live and its peak. Memtables are mapped from the system and
//! not seen by it; the ledger's figure for them is added. What was allocated before the environment was
//! made, by the test itself and by the mount, is taken off.
#![expect(unsafe_code, reason = "an allocator that counts is one")]
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Rng, host, image, seed};
use lavafs::FileSystemRef;
use lavakv::{Compression, Db, Env, EnvOptions, Options, ReadOptions, WriteOptions};
use parking_lot::Mutex;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Tests that count cannot run beside each other.
static ALONE: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

fn env(limit: usize) -> Arc<Env> {
    Env::with_options(EnvOptions {
        memory_limit: limit,
        ..EnvOptions::default()
    })
}

/// Runs `work` and returns the peak of what was allocated meanwhile, beyond `before`.
fn peak_of(env: &Env, before: usize, work: impl FnOnce()) -> usize {
    let ledger = env.ledger().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut peak, mut memtables) = (0, ledger.usage().memtables);
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(100));
                let now = ledger.usage().memtables;
                let live = LIVE.load(Ordering::Relaxed);
                // The allocator's peak since the last look is exact. Where a memtable has grown or
                // gone since, it may be from before that, and what is live now counts.
                let heap = PEAK.swap(live, Ordering::Relaxed);
                let heap = if memtables == now { heap } else { live };
                peak = peak.max((heap + now).saturating_sub(before));
                memtables = now;
            }
            peak
        });
        work();
        done.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    })
}

fn check(what: &str, limit: usize, peak: usize) {
    println!("{what}: {:.3} of the limit", peak as f64 / limit as f64);
    assert!(
        peak <= limit + limit / 10,
        "{what}: {peak} bytes of {limit}"
    );
}

/// A value that zstd makes about half as long.
fn value(rng: &mut Rng, len: usize) -> Vec<u8> {
    let random = (0..len.div_ceil(16)).flat_map(|_| {
        let word = rng.next().to_le_bytes();
        word.into_iter().chain(word)
    });
    random.take(len).collect()
}

fn put(db: &Db, rng: &mut Rng, keys: u64, writes: u64, len: usize) {
    for _ in 0..writes {
        let key = rng.below(keys).to_be_bytes();
        let value = value(rng, len);
        db.put(&key, &value, &WriteOptions::default()).unwrap();
    }
}

fn get(db: &Db, rng: &mut Rng, keys: u64, reads: u64) {
    for _ in 0..reads {
        let key = rng.below(keys).to_be_bytes();
        db.get(&key, &ReadOptions::default()).unwrap();
    }
}

/// Four scans beside each other, step by step.
fn scan(db: &Db, rng: &mut Rng, keys: u64, steps: u64) {
    let mut iters: Vec<_> = (0..4)
        .map(|_| db.iter(&ReadOptions::default()).unwrap())
        .collect();
    for iter in &mut iters {
        iter.seek(&rng.below(keys).to_be_bytes());
    }
    for _ in 0..steps {
        for iter in iters.iter_mut().filter(|iter| iter.valid()) {
            iter.next();
        }
    }
    iters.iter().for_each(|iter| iter.status().unwrap());
}

fn options(env: &Arc<Env>) -> Options {
    Options {
        create_if_missing: true,
        env: Some(Arc::clone(env)),
        // More than there is: the limit is what makes them be flushed.
        write_buffer_size: 256 << 20,
        target_file_size_base: 4 << 20,
        max_bytes_for_level_base: 16 << 20,
        blob_file_size: 4 << 20,
        compression: Compression::Zstd { level: 1 },
        histograms: false,
        ..Options::default()
    }
}

fn workloads_stay_within(fs: &FileSystemRef, len: usize, keys: u64) {
    // Below this, the parts that do not shrink (a memtable's chunk, a merge's buffers) are more than a tenth.
    const LIMIT: usize = 64 << 20;
    let mut rng = Rng(seed());
    let before = LIVE.load(Ordering::Relaxed);
    let env = env(LIMIT);
    let at = PathBuf::from(format!("/of-{len}"));
    let db = Db::open(fs.clone(), &at, options(&env)).unwrap();
    let mut peak = |what: &str, work: &mut dyn FnMut(&mut Rng)| {
        let peak = peak_of(&env, before, || work(&mut rng));
        check(&format!("{what}, {len} bytes"), LIMIT, peak);
    };
    peak("load", &mut |rng| put(&db, rng, keys, keys, len));
    peak("overwrite", &mut |rng| put(&db, rng, keys, keys * 2, len));
    peak("reads", &mut |rng| {
        get(&db, rng, keys, 20_000.min(keys * 2));
    });
    peak("scans", &mut |rng| scan(&db, rng, keys, 20_000));
    peak("reads beside writes", &mut |rng| {
        std::thread::scope(|scope| {
            let mut other = Rng(rng.next());
            let db = &db;
            scope.spawn(move || scan(db, &mut other, keys, 10_000));
            put(db, rng, keys, keys / 2, len);
        });
    });
    peak("compaction", &mut |_| db.compact_range(None, None).unwrap());
    let tickers = db.tickers();
    assert!(tickers.flushes > 3, "the limit was the reason to flush");
    assert!(tickers.compactions > 0);
    if len >= 512 {
        assert!(tickers.blob_collections + tickers.blob_files_along > 0);
    }
    db.close().unwrap();
}

#[test]
fn no_workload_allocates_more_than_the_limit() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let fs = image(&dir.path().join("image"), 1 << 30);
    workloads_stay_within(&fs, 100, 240_000);
    workloads_stay_within(&fs, 16_000, 5_000);
}

#[test]
fn a_hundred_databases_allocate_no_more_than_one_limit() {
    const LIMIT: usize = 64 << 20;
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let fs = image(&dir.path().join("image"), 2 << 30);
    let before = LIVE.load(Ordering::Relaxed);
    let env = env(LIMIT);
    let mut rng = Rng(seed());
    let peak = peak_of(&env, before, || {
        let open = |number| {
            let at = format!("/db-{number}");
            Db::open(fs.clone(), Path::new(&at), options(&env)).unwrap()
        };
        let dbs: Vec<Db> = (0..100).map(open).collect();
        for _ in 0..300 {
            let db = &dbs[rng.below(100) as usize];
            put(db, &mut rng, 10_000, 1_000, 100);
            get(db, &mut rng, 10_000, 20);
        }
        for db in &dbs[..10] {
            db.flush().unwrap();
            scan(db, &mut rng, 10_000, 10_000);
        }
        dbs.iter().for_each(|db| db.close().unwrap());
    });
    check("a hundred databases", LIMIT, peak);
}

#[test]
fn a_multi_get_of_very_many_keys_holds_few_blocks_at_a_time() {
    const KEYS: u64 = 6_000;
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        create_if_missing: true,
        bloom_bits_per_key: 0.0,
        min_blob_size: 0,
        block_cache_size: 1 << 20,
        compression: Compression::None,
        ..Options::default()
    };
    let db = Db::open(host(dir.path()), Path::new("/db"), options).unwrap();
    for number in 0..KEYS {
        let key = (number * 2).to_be_bytes();
        db.put(&key, &[1; 4_000], &WriteOptions::default()).unwrap();
    }
    db.flush().unwrap();
    // Keys that do not exist, each in the block of another one: the values found would take memory too.
    let keys: Vec<[u8; 8]> = (0..KEYS - 1).map(|at| (at * 2 + 1).to_be_bytes()).collect();
    let keys: Vec<&[u8]> = keys.iter().map(<[u8; 8]>::as_slice).collect();
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let found = db.multi_get(&keys, &ReadOptions::default()).unwrap();
    let peak = PEAK.load(Ordering::Relaxed) - before;
    assert!(found.iter().all(Option::is_none));
    // 4 MiB as they are stored, the same as blocks, the cache, and what is known of each key.
    assert!(peak <= 13 << 20, "{peak} bytes");
}
