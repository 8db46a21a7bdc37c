//! The accounts of garbage are those of a full scan whatever is in a database: families of all kinds and policies,
//! dictionaries, snapshots and iterators that hold the past, what is dropped and what is too old.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Rng, mount, seed, sim_device, tiny};
use lavafs::FileSystemRef;
use lavakv::{
    BlobStats, CfId, CompactionOptions, CompactionStyle, Compression, Db, GarbageReport, Options,
    ReadOptions, WriteBatch, WriteOptions,
};

const KEYS: u64 = 150;

fn options(style: CompactionStyle) -> Options {
    Options {
        min_blob_size: 100,
        blob_file_size: 16 << 10,
        blob_compression: Compression::Zstd { level: 1 },
        blob_zstd_dict_bytes: 512,
        blob_correlated_compaction_bytes: 16 << 10,
        blob_collection_idle_millis: 20,
        compaction: CompactionOptions {
            style,
            fifo_max_table_files_size: 64 << 10,
            fifo_ttl: 1,
            ..CompactionOptions::default()
        },
        ..tiny()
    }
}

fn open(fs: &FileSystemRef) -> Db {
    Db::open(
        fs.clone(),
        Path::new("/db"),
        options(CompactionStyle::Level),
    )
    .unwrap()
}

fn key(number: u64) -> Vec<u8> {
    format!("key{number:06}").into_bytes()
}

fn value(rng: &mut Rng) -> Vec<u8> {
    let len = 40 + rng.below(1500) as usize;
    let words = b"what all values have in common, more or less; ";
    let mut value: Vec<u8> = words.iter().copied().cycle().take(len).collect();
    value[..8].copy_from_slice(&rng.next().to_le_bytes());
    value
}

/// What a scan finds and what is told after everything was merged and collected, with no table dropped meanwhile for its
/// age.
fn at_rest(db: &Db) -> (GarbageReport, BlobStats) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        db.compact_range(None, None).unwrap();
        db.wait_for_background_work().unwrap();
        let tables = || db.stats().levels;
        let before = tables();
        db.collect_blob_garbage().unwrap();
        let (report, told) = (db.verify_garbage().unwrap(), db.stats().blobs);
        if tables() == before {
            return (report, told);
        }
        assert!(Instant::now() < until, "tables change all the time");
    }
}

#[test]
fn the_accounts_are_a_scans_with_snapshots_fifos_dictionaries_and_dropped_families() {
    let fs = mount(sim_device(64 << 20, 512));
    let mut db = open(&fs);
    let mut rng = Rng(seed());
    let mut held = Vec::new();
    for round in 0..20 {
        let style = match round % 4 {
            0 => CompactionStyle::Fifo,
            1 => CompactionStyle::Universal,
            _ => CompactionStyle::Level,
        };
        let name = format!("family {}", round % 5);
        let cf = match db.cf(&name) {
            Some(cf) => cf,
            None => db.create_cf_with(&name, options(style)).unwrap(),
        };
        for _ in 0..KEYS {
            let mut batch = WriteBatch::new();
            for cf in [CfId::DEFAULT, cf] {
                match rng.below(5) {
                    0 => batch.delete_cf(cf, &key(rng.below(KEYS))),
                    _ => batch.put_cf(cf, &key(rng.below(KEYS)), &value(&mut rng)),
                }
            }
            db.write(batch, &WriteOptions::default()).unwrap();
        }
        match rng.below(7) {
            0 => db.drop_cf(cf).unwrap(),
            1 => db.compact_range(None, None).unwrap(),
            2 => db.collect_blob_garbage().unwrap(),
            3 => held.clear(),
            4 => db.flush().unwrap(),
            5 => {
                held.clear();
                db.close().unwrap();
                let view = Db::open_read_only(
                    fs.clone(),
                    Path::new("/db"),
                    options(CompactionStyle::Level),
                );
                view.unwrap().verify_garbage().unwrap();
                db = open(&fs);
            }
            _ => {
                let mut iter = db.iter_cf(CfId::DEFAULT, &ReadOptions::default()).unwrap();
                iter.seek_to_first();
                held.push((db.snapshot(), iter));
            }
        }
        let report = db.verify_garbage().unwrap();
        assert!(report.garbage_bytes + report.shadowed_bytes <= report.value_bytes);
    }
    held.clear();
    let (report, told) = at_rest(&db);
    assert!(told.garbage_bytes <= told.value_bytes / 20, "{told:?}");
    assert!(
        report.shadowed_bytes <= told.shadowed_bytes,
        "{report:?} {told:?}"
    );
    db.verify().unwrap();
}
