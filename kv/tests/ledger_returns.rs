//! What a database was charged for comes back to its environment's ledger when the database is gone, however it
//! ended: after errors of the log, of flushes, compactions and reads, and after a panic.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Rng, WatchFs, host, seed, tiny};
use lavafs::FileSystemRef;
use lavakv::{Db, Env, EnvOptions, EventListener, JobEvent, Options, ReadOptions, WriteOptions};

const KEYS: u64 = 400;

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

/// Writes, reads and walks, whatever fails.
fn work(db: &Db, rng: &mut Rng, steps: u64) {
    for _ in 0..steps {
        let key = key(rng.below(KEYS));
        let value = vec![rng.next() as u8; [20, 700, 3000][rng.below(3) as usize]];
        let _ = db.put(&key, &value, &WriteOptions::default());
    }
    let wanted: Vec<Vec<u8>> = (0..KEYS).map(key).collect();
    let wanted: Vec<&[u8]> = wanted.iter().map(Vec::as_slice).collect();
    let _ = db.multi_get(&wanted, &ReadOptions::default());
    let Ok(mut iter) = db.iter(&ReadOptions::default()) else {
        return;
    };
    iter.seek_to_first();
    for _ in 0..150 {
        if iter.valid() {
            iter.next();
        }
    }
    iter.seek_to_last();
    for _ in 0..150 {
        if iter.valid() {
            iter.prev();
        }
    }
}

#[derive(Debug)]
struct Panics;

impl EventListener for Panics {
    fn on_compaction_begin(&self, _job: &JobEvent) {
        panic!("on purpose");
    }
}

fn none_left(env: &Env, what: &str) {
    let ledger = env.ledger().unwrap();
    let begin = Instant::now();
    loop {
        let usage = ledger.usage();
        let left = usage.memtables + usage.pinned + usage.io + usage.filesystem;
        if left == 0 {
            return;
        }
        let waited = begin.elapsed();
        assert!(waited < Duration::from_secs(60), "{what}: {usage:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ends_in(
    what: &str,
    rng: &mut Rng,
    listeners: Vec<Arc<dyn EventListener>>,
    fault: impl Fn(&WatchFs, &Path),
) {
    for closes in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
        let env = Env::with_options(EnvOptions {
            memory_limit: 8 << 20,
            ..EnvOptions::default()
        });
        let options = Options {
            env: Some(env.clone()),
            min_blob_size: 512,
            listeners: listeners.clone(),
            cache_index_and_filter_blocks: rng.below(2) == 0,
            ..tiny()
        };
        let db = Db::open(fs.clone() as FileSystemRef, Path::new("/db"), options).unwrap();
        work(&db, rng, 200);
        fault(&fs, dir.path());
        work(&db, rng, 200);
        let _ = db.compact_range(None, None);
        let _ = db.collect_blob_garbage();
        let _ = db.verify();
        work(&db, rng, 100);
        if closes {
            let _ = db.close();
        }
        drop(db);
        none_left(&env, &format!("{what}, closed: {closes}"));
    }
}

#[test]
fn a_ledger_is_empty_when_its_databases_are_gone_however_they_ended() {
    let mut rng = Rng(seed());
    let rng = &mut rng;
    ends_in("no fault", rng, Vec::new(), |_, _| {});
    ends_in("a panic", rng, vec![Arc::new(Panics)], |_, _| {});
    ends_in("syncs fail", rng, Vec::new(), |fs, _| fs.break_syncs());
    for part in [".sst", ".blob", ".wal", "MANIFEST"] {
        ends_in(part, rng, Vec::new(), |fs, _| {
            fs.fail_where(move |_, path| {
                path.to_string_lossy().contains(part).then_some(libc::EIO)
            });
        });
    }
    ends_in("damage", rng, Vec::new(), |_, dir| {
        for entry in std::fs::read_dir(dir.join("db")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.to_string_lossy().into_owned();
            if name.ends_with(".sst") || name.ends_with(".blob") {
                // It may be removed just now.
                let Ok(mut bytes) = std::fs::read(&path) else {
                    continue;
                };
                let third = bytes.len() / 3;
                bytes
                    .iter_mut()
                    .skip(third)
                    .take(4)
                    .for_each(|byte| *byte ^= 0xA5);
                std::fs::write(&path, bytes).unwrap();
            }
        }
    });
}
