//! kill -9 of a synced load at random moments: nothing acknowledged is lost.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{await_free, image, ok, program, run};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

const KILLS: usize = 50;

/// Files of the source directory.
const FILES: usize = 1500;

/// Makes files of various sizes and returns their contents' lengths by name.
fn make_source(dir: &Path, rng: &mut SmallRng) -> BTreeMap<String, Vec<u8>> {
    (0..FILES)
        .map(|index| {
            let largest = if index % 10 == 0 { 40_000 } else { 2_000 };
            let mut contents = vec![0; rng.random_range(0..largest)];
            rng.fill_bytes(&mut contents);
            let name = format!("file-{index:04}");
            fs::write(dir.join(&name), &contents).unwrap();
            (name, contents)
        })
        .collect()
}

#[test]
fn every_acknowledged_pair_survives_kill_9_at_50_random_moments() {
    let seed = std::env::var("LAVA_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("LAVA_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let files = make_source(&source, &mut rng);
    let image = image(dir.path(), "1G").display().to_string();
    let (mut interrupted, mut acknowledged) = (0, 0);
    // The latest moment, in microseconds. It follows how fast the machine and its disk are.
    let mut latest = 250_000;
    for kill in 0..KILLS {
        // A database of its own for each, so that no earlier load can stand in for this one.
        let db = format!("/db-{kill}");
        let mut load = program("lava")
            .args(["kv", "load", "--ack", "--fs", &image, "--db", &db])
            .arg(&source)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let reports = BufReader::new(load.stdout.take().unwrap());
        let reader = std::thread::spawn(move || -> Vec<String> {
            reports.lines().map_while(Result::ok).collect()
        });
        std::thread::sleep(Duration::from_micros(rng.random_range(0..latest)));
        load.kill().unwrap();
        let ended = load.wait().unwrap().success();
        interrupted += usize::from(!ended);
        let mut acked = reader.join().unwrap();
        // The last line may have been cut off by the kill.
        acked.retain(|key| files.contains_key(key));
        acknowledged += acked.len();
        if ended {
            latest = (latest / 4 * 3).max(1000);
        } else if acknowledged == 0 {
            latest = (latest / 4 * 5).min(60_000_000);
        }
        await_free(image.as_ref());

        ok(&format!("fsck.lavafs -n {image}"));
        let verify = run(&format!("lava kv verify --fs {image} --db {db}"));
        if !verify.status.success() {
            let message = String::from_utf8(verify.stderr).unwrap();
            assert!(message.contains("no database"), "kill {kill}: {message}");
            assert!(
                acked.is_empty(),
                "kill {kill}: acknowledged, but there is no database"
            );
            continue;
        }
        let dump = ok(&format!(
            "lava kv dump --format jsonl --fs {image} --db {db}"
        ));
        let mut stored = BTreeMap::new();
        for line in dump.lines() {
            let pair: serde_json::Value = serde_json::from_str(line).unwrap();
            let key = pair["key"].as_str().unwrap().to_string();
            stored.insert(key, value_of(&pair));
        }
        for (key, value) in &stored {
            assert_eq!(value, &files[key], "kill {kill}: {key} has other bytes");
        }
        for key in &acked {
            assert!(stored.contains_key(key), "kill {kill}: {key} is lost");
        }
    }
    println!("{interrupted} loads interrupted, {acknowledged} pairs acknowledged");
    assert!(
        interrupted > KILLS / 4,
        "the kills came too late to mean anything"
    );
    assert!(
        acknowledged > 0,
        "the kills came too early to mean anything"
    );
}

/// The bytes of a dumped value.
fn value_of(pair: &serde_json::Value) -> Vec<u8> {
    if let Some(text) = pair["value"].as_str() {
        return text.as_bytes().to_vec();
    }
    let hex = pair["value_hex"].as_str().unwrap();
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}
