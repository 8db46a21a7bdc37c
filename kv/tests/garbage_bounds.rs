//! How much garbage blob files have over time, beside how full the disk is: the figures of adaptive collection
//! (LavaStore paper, section 3.3.2), recorded while somebody overwrites.
//!
//! The writer waits for background work again and again: what is left then is what was tolerated, however fast
//! the machine is.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Rng, host, image, seed, tiny};
use lavafs::FileSystemRef;
use lavakv::{Compression, Db, Options, ReadOptions, WriteBatch, WriteOptions};

const VALUE_LEN: usize = 16_000;

fn key(number: u64) -> Vec<u8> {
    format!("key{number:033}").into_bytes()
}

fn value(number: u64, round: u64) -> Vec<u8> {
    let mut rng = Rng(number * 1_000_003 + round);
    let mut value = Vec::with_capacity(VALUE_LEN);
    while value.len() < VALUE_LEN {
        value.extend_from_slice(&rng.next().to_le_bytes());
    }
    value
}

/// One look at the disk and the garbage.
#[derive(Clone, Copy, Debug)]
struct Sample {
    written: u64,
    usage: f64,
    garbage: f64,
}

fn look(fs: &FileSystemRef, db: &Db, written: u64) -> Sample {
    let space = fs.space();
    Sample {
        written,
        usage: 1.0 - space.free as f64 / space.total as f64,
        garbage: db.stats().blobs.garbage_ratio(),
    }
}

/// Overwrites at random on an image of which the data take about two thirds, and tells what was seen.
fn overwrite(image_bytes: u64, rounds: u64) {
    let dir = tempfile::tempdir().unwrap();
    let fs = image(&dir.path().join("image"), image_bytes);
    let keys = image_bytes * 66 / 100 / (VALUE_LEN as u64 + 60);
    let options = Options {
        create_if_missing: true,
        write_buffer_size: (image_bytes >> 8) as usize,
        blob_file_size: image_bytes >> 8,
        blob_compression: Compression::None,
        max_bytes_for_level_base: 128 << 10,
        target_file_size_base: 64 << 10,
        level0_file_num_compaction_trigger: 2,
        blob_collection_idle_millis: 300,
        max_background_jobs: 4,
        block_cache_size: 4 << 20,
        ..tiny()
    };
    let db = Db::open(fs.clone(), Path::new("/db"), options).unwrap();
    let mut rng = Rng(seed());
    let mut model = vec![0; keys as usize];
    // Where threads are so slow that files on their way fill the rest of the disk, a write is told so and done later.
    let put = |number, round| {
        let until = Instant::now() + Duration::from_secs(60);
        let (key, value) = (key(number), value(number, round));
        while let Err(error) = db.put(&key, &value, &WriteOptions::default()) {
            let passes = error.to_string().contains("no space");
            assert!(passes && Instant::now() < until, "{error}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    for number in 0..keys {
        put(number, 0);
    }
    let mut samples = Vec::new();
    let step = keys / 64;
    for round in 1..=rounds * keys {
        let number = rng.below(keys);
        put(number, round);
        model[number as usize] = round;
        if round % step == 0 {
            db.wait_for_background_work().unwrap();
        }
        if round % (step * 16) == 0 {
            samples.push(look(&fs, &db, round));
        }
    }
    for sample in &samples {
        let Sample {
            written,
            usage,
            garbage,
        } = sample;
        let share = *written as f64 / keys as f64;
        println!("{share:5.2} x written: disk {usage:.3}, garbage {garbage:.3}");
    }
    // The first data set of overwrites is not steady yet.
    let steady = samples.iter().filter(|sample| sample.written >= keys);
    let mut ratios: Vec<f64> = steady.clone().map(|sample| sample.garbage).collect();
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    let usage = steady.map(|sample| sample.usage).fold(0.0, f64::max);
    println!("steady: garbage median {median:.3}, disk at most {usage:.3}");
    assert!(usage >= 0.70, "the disk is to be filled: {usage:.3}");
    assert!(median <= 0.13, "garbage {median:.3} at {usage:.3}");
    let until = Instant::now() + Duration::from_secs(60);
    while db.stats().blobs.garbage_ratio() > 0.06 {
        let idle = look(&fs, &db, 0);
        assert!(Instant::now() < until, "after an idle minute: {idle:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    db.wait_for_background_work().unwrap();
    let told = loop {
        // The scan is of one moment: the same unless the next collection came between.
        let told = db.stats().blobs;
        let scanned = db.verify_garbage().unwrap();
        if told == db.stats().blobs {
            assert_eq!(scanned.garbage_bytes, told.garbage_bytes);
            assert_eq!(scanned.value_bytes, told.value_bytes);
            break told;
        }
        assert!(Instant::now() < until, "never at rest");
    };
    let idle = look(&fs, &db, 0);
    println!("idle: {idle:?}, ratio {:.3}", told.garbage_ratio());
    for (number, &round) in model.iter().enumerate().step_by(7) {
        let number = number as u64;
        let found = db.get(&key(number), &ReadOptions::default()).unwrap();
        assert_eq!(found, Some(value(number, round)));
    }
}

#[test]
fn garbage_stays_within_13_percent_at_three_quarters_and_6_when_idle() {
    overwrite(48 << 20, 3);
}

#[test]
#[ignore = "a minute and a half; the same on 512 MiB, with what was seen on the way"]
fn garbage_on_half_a_gigabyte() {
    overwrite(512 << 20, 3);
}

#[test]
fn a_family_may_be_left_uncollected_until_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let eager = Options {
        min_blob_size: 100,
        blob_collection_idle_millis: 10,
        blob_correlated_compaction_bytes: 0,
        ..tiny()
    };
    let lazy = Options {
        enable_blob_garbage_collection: false,
        ..eager.clone()
    };
    let db = Db::open(host(dir.path()), Path::new("/db"), eager).unwrap();
    let cf = db.create_cf_with("lazy", lazy).unwrap();
    for round in 0..2 {
        for number in (0..200).filter(|number| round == 0 || number % 2 == 0) {
            let mut batch = WriteBatch::new();
            batch.put(&key(number), &[round; 1000]);
            batch.put_cf(cf, &key(number), &[round; 1000]);
            db.write(batch, &WriteOptions::default()).unwrap();
        }
        db.compact_range(None, None).unwrap();
    }
    // Half of what there is in both is garbage; that of the one family goes.
    let until = Instant::now() + Duration::from_secs(60);
    while db.stats().tickers.blob_collections == 0 {
        assert!(Instant::now() < until, "{:?}", db.stats().blobs);
        std::thread::sleep(Duration::from_millis(5));
    }
    db.wait_for_background_work().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(db.stats().blobs.garbage_bytes >= 100_000);
    db.collect_blob_garbage().unwrap();
    // Less than a fiftieth of a file may be left: of one that the background wrote between two merges.
    let blobs = db.stats().blobs;
    assert!(blobs.garbage_bytes * 50 < blobs.value_bytes, "{blobs:?}");
}
