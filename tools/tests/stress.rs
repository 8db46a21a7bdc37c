//! `lava kv stress` and `lava kv repair` from the outside: what a kill -9 and a lost manifest leave.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use common::{await_free, image, ok, program, run};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const KILLS: usize = 8;

/// The counter that each pair holds; both halves must be there and the same.
fn counters(place: &str) -> BTreeMap<u64, u64> {
    let dump = ok(&format!("lava kv dump --format jsonl {place}"));
    let mut halves: BTreeMap<(u64, u64), Vec<String>> = BTreeMap::new();
    for line in dump.lines() {
        let pair: serde_json::Value = serde_json::from_str(line).unwrap();
        // What is put once or written without a log is checked by the command itself.
        if !pair["key"].as_str().unwrap().starts_with(['a', 'b']) {
            continue;
        }
        let mut parts = pair["key"].as_str().unwrap().split('/').skip(1);
        let (thread, number) = (parts.next().unwrap(), parts.next().unwrap());
        let id = (thread.parse().unwrap(), number.parse().unwrap());
        let value = pair["value"].as_str().unwrap().to_owned();
        halves.entry(id).or_default().push(value);
    }
    halves
        .into_iter()
        .map(|((thread, number), values)| {
            assert_eq!(values.len(), 2, "half of pair {thread}/{number}");
            assert_eq!(values[0], values[1], "pair {thread}/{number}");
            let counter = u64::from_str_radix(&values[0][..16], 16).unwrap();
            (thread * 1_000_000 + number, counter)
        })
        .collect()
}

#[test]
fn stress_goes_on_soundly_after_every_kill_9() {
    let seed = std::env::var("LAVA_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("LAVA_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "512M").display().to_string();
    let place = format!("--fs {image} --db /db");
    let mut acknowledged: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut interrupted, mut acks) = (0, 0);
    // The latest moment, in milliseconds: later where starting takes longer.
    let mut latest = 900;
    for kill in 0..KILLS {
        // Begins by checking what the last kill left.
        let mut stress = program("lava")
            .args("kv stress --ack --duration 600 --reopen 1 --pairs 60".split(' '))
            .args("--write_buffer_size 65536".replace('_', "-").split(' '))
            .args(place.split(' '))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(stress.stdout.take().unwrap());
        let reader = std::thread::spawn(move || -> Vec<String> {
            lines.lines().map_while(Result::ok).collect()
        });
        std::thread::sleep(Duration::from_millis(rng.random_range(latest / 9..latest)));
        stress.kill().unwrap();
        interrupted += usize::from(!stress.wait().unwrap().success());
        let mut lines = reader.join().unwrap();
        // The last line may have been cut off by the kill.
        lines.pop();
        acks += lines.len();
        if acks == 0 {
            latest = (latest * 2).min(60_000);
        }
        await_free(image.as_ref());
        for line in lines {
            let (pair, counter) = line.split_once(' ').unwrap();
            let (pair, counter) = (pair.parse().unwrap(), counter.parse::<u64>().unwrap());
            let known = acknowledged.entry(pair).or_default();
            *known = counter.max(*known);
        }
        ok(&format!("fsck.lavafs -n {image}"));
        let verify = run(&format!("lava kv verify {place}"));
        if !verify.status.success() {
            let message = String::from_utf8(verify.stderr).unwrap();
            assert!(message.contains("no database"), "kill {kill}: {message}");
            assert!(acknowledged.is_empty(), "kill {kill}: {message}");
            continue;
        }
        let stored = counters(&place);
        for (pair, counter) in &acknowledged {
            let found = stored.get(pair).copied().unwrap_or(0);
            assert!(
                found >= *counter,
                "kill {kill}: pair {pair} lost {counter}, has {found}"
            );
        }
    }
    assert_eq!(interrupted, KILLS, "a stress run ended by itself");
    assert!(acks > 0, "the kills came too early to mean anything");
    let told = ok(&format!(
        "lava kv stress --json --duration 2 --reopen 1 {place}"
    ));
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert!(told["checks"].as_u64().unwrap() > 0 && told["reopened"].as_u64().unwrap() > 0);
}

/// What a replay is for: the same operations on the same database, whenever background threads ran.
#[test]
fn a_seed_and_a_number_of_operations_replay_a_stress_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, seed: u64| {
        let place = format!("--fs host:{} --db /{name}", dir.path().display());
        let told = ok(&format!(
            "lava kv stress --json --ops 1500 --threads 3 --pairs 50 --reopen 1 --seed {seed} {place}"
        ));
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["ops"], 4500, "{told}");
        let dump = ok(&format!("lava kv dump --format jsonl {place}"));
        (told["checks"].clone(), dump)
    };
    let first = run("first", 7);
    assert_eq!(run("again", 7), first);
    assert_ne!(run("other", 8).1, first.1);
    // The same seed on a database that has lived already.
    run("first", 7);
}

/// The clock has no such end: the thread that waits for it panicked, and the others went on for ever.
#[test]
fn stress_takes_any_duration() {
    let dir = tempfile::tempdir().unwrap();
    let at = format!(
        "--fs host:{} --db /db --pairs 5 --threads 1",
        dir.path().display()
    );
    let times = format!("--duration {} --reopen {}", u64::MAX, u64::MAX);
    ok(&format!("lava kv stress {at} {times} --ops 20"));
}

/// It said of a sound database that it holds what was never written.
#[test]
fn stress_goes_on_with_what_a_run_of_more_pairs_left() {
    let dir = tempfile::tempdir().unwrap();
    let at = format!("--fs host:{} --db /db", dir.path().display());
    for pairs in [60, 20, 40] {
        ok(&format!("lava kv stress {at} --pairs {pairs} --ops 400"));
    }
    let other = run(&format!("lava kv stress {at} --ops 1 --value-size 90"));
    let message = String::from_utf8(other.stderr).unwrap();
    assert!(message.contains("another --value-size"), "{message}");
}

#[test]
fn stress_notices_a_value_that_was_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let place = format!("--fs {} --db /db", image(dir.path(), "256M").display());
    ok(&format!("lava kv put {place} a/000/000003 mine"));
    ok(&format!("lava kv put {place} b/000/000003 mine"));
    let stress = run(&format!("lava kv stress --duration 1 {place}"));
    assert!(!stress.status.success());
    let message = String::from_utf8(stress.stderr).unwrap();
    assert!(message.contains("never written"), "{message}");
}

#[test]
fn a_database_without_manifest_is_repaired_and_holds_every_pair() {
    let dir = tempfile::tempdir().unwrap();
    let place = format!("--fs host:{} --db /db", dir.path().display());
    for number in 0..20 {
        ok(&format!("lava kv put {place} key-{number} value-{number}"));
    }
    let before = ok(&format!("lava kv dump {place}"));
    for entry in std::fs::read_dir(dir.path().join("db")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name == "CURRENT" || name.starts_with("MANIFEST") {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert!(!run(&format!("lava kv verify {place}")).status.success());
    let told = ok(&format!("lava kv repair --json {place}"));
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["manifest_kept"], false);
    assert_eq!(ok(&format!("lava kv dump {place}")), before);
    ok(&format!("lava kv verify {place}"));
    let metrics = ok(&format!("lava kv stats --prometheus {place}"));
    assert!(
        metrics.contains("lavakv_table_entries{db=\"/db\"} 20"),
        "{metrics}"
    );
    let missing = run(&format!(
        "lava kv repair --fs host:{} --db /none",
        dir.path().display()
    ));
    assert!(!missing.status.success());
    let message = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn a_database_with_blob_files_is_repaired_on_both_filesystems() {
    let dir = tempfile::tempdir().unwrap();
    let on_image = format!("--fs {} --db /db", image(dir.path(), "256M").display());
    let on_host = format!("--fs host:{} --db /db", dir.path().display());
    for place in [&on_image, &on_host] {
        ok(&format!("lava kv load {place} src"));
        ok(&format!("lava kv compact {place}"));
        let stats = ok(&format!("lava kv stats --prometheus {place}"));
        let blobs = stats
            .lines()
            .find(|line| line.starts_with("lavakv_blob_files{"));
        let blobs = blobs.and_then(|line| line.rsplit(' ').next()).unwrap();
        assert!(blobs.parse::<u64>().unwrap() > 0, "{stats}");
        let before = ok(&format!("lava kv dump --format jsonl {place}"));
        // CURRENT goes; manifest, tables and blob files are all there is.
        if place == &on_image {
            ok(&format!(
                "lava fs rm {} /db/CURRENT",
                place.trim_end_matches(" --db /db")
            ));
        } else {
            std::fs::remove_file(dir.path().join("db/CURRENT")).unwrap();
        }
        assert!(!run(&format!("lava kv dump {place}")).status.success());
        let told = ok(&format!("lava kv repair --json {place}"));
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert!(told["blobs"].as_u64().unwrap() > 0, "{told}");
        ok(&format!("lava kv verify {place}"));
        assert_eq!(
            ok(&format!("lava kv dump --format jsonl {place}")),
            before,
            "{place}"
        );
    }
    ok(&format!(
        "fsck.lavafs -n {}",
        dir.path().join("test.img").display()
    ));
}

/// A process that owns a database is named; it goes on, and nothing of its directory changes.
#[test]
fn a_second_process_is_refused_with_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let on_image = format!("--fs {} --db /db", image(dir.path(), "256M").display());
    let on_host = format!("--fs host:{} --db /db", dir.path().display());
    for place in [&on_image, &on_host] {
        let mut owner = program("lava")
            .args("kv stress --ack --duration 600 --reopen 0 --pairs 20".split(' '))
            .args(place.split(' '))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The first acknowledgement says that the database is open.
        let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
        lines.next().unwrap().unwrap();
        let (told, acknowledged) = mpsc::channel();
        let reader = std::thread::spawn(move || lines.for_each(|_| told.send(()).unwrap()));
        for command in ["put k v", "compact", "repair", "stress --duration 1"] {
            let refused = run(&format!("lava kv {command} {place}"));
            let message = String::from_utf8(refused.stderr).unwrap();
            assert_eq!(refused.status.code(), Some(1), "{command}: {message}");
            assert_eq!(message.lines().count(), 1, "{command}: {message}");
            assert!(
                message.contains("in use") || message.contains("open elsewhere"),
                "{command}: {message}"
            );
        }
        acknowledged.try_iter().for_each(drop);
        let patience = Duration::from_secs(60);
        acknowledged.recv_timeout(patience).expect("it goes on");
        owner.kill().unwrap();
        owner.wait().unwrap();
        reader.join().unwrap();
        if place == &on_image {
            await_free(&dir.path().join("test.img"));
        }
        ok(&format!("lava kv verify {place}"));
    }
}

#[test]
fn bench_flags_take_both_forms_and_print_as_db_bench_does() {
    let dir = tempfile::tempdir().unwrap();
    let place = format!("--fs=host:{} --db=/db", dir.path().display());
    let told = ok(&format!(
        "lava bench kv {place} --benchmarks=fillrandom,readrandom --num=2000 --value_size 50 \
         --histogram=1 --sync=false --seed 7"
    ));
    for part in [
        "Keys:       16 bytes each",
        "Values:     50 bytes each (25 bytes after compression)",
        "Entries:    2000",
        "fillrandom   : ",
        " micros/op ",
        "Microseconds per write:",
        "Microseconds per read:",
        "Percentiles: P50: ",
        " P99.99: ",
        " of 2000 found)",
    ] {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
    // At 58 KiB/s the 66 bytes of each of 1800 writes take two seconds, and are told of meanwhile.
    let limited = run(&format!(
        "lava bench kv {place} --benchmarks overwrite --num 1800 --value_size 50 --json true \
         --benchmark_write_rate_limit 59400 --stats_interval_seconds 1 --use_existing_db true"
    ));
    let json: serde_json::Value = serde_json::from_slice(&limited.stdout).unwrap();
    assert!(json["elapsed_s"].as_f64().unwrap() > 1.9, "{json}");
    assert!(json["lat_us"]["p9999"].is_number());
    let intervals = String::from_utf8(limited.stderr).unwrap();
    let (_, rest) = intervals.split_once(" ops/second in (").unwrap();
    let seconds: f64 = rest.split(',').next().unwrap().parse().unwrap();
    assert!(seconds >= 1.0, "{intervals}");
}
