//! `lava bench kv` takes what scripts for db_bench give it, and prints what they read.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::time::Instant;

use common::{image, ok, run};

/// The benchmarks that print a result line: all but stats and levelstats.
const BENCHMARKS: [&str; 28] = [
    "fillseq",
    "fillbatch",
    "fill100K",
    "filluniquerandom",
    "fillrandom",
    "fillsync",
    "overwrite",
    "updaterandom",
    "readrandomwriterandom",
    "compact",
    "compactall",
    "readrandom",
    "readhot",
    "newiterator",
    "readseq",
    "readreverse",
    "readmissing",
    "multireadrandom",
    "readwhilewriting",
    "seekrandom",
    "fwdrangewhilewriting",
    "seekrandomwhilewriting",
    "deleteseq",
    "deleterandom",
    "flush",
    "waitforcompaction",
    "verify",
    "verifychecksum",
];

/// What scripts find in a result line by `^(\w+)\s*:.*?(\d+) ops/sec`: name and operations a second.
fn result(line: &str) -> Option<(&str, u64)> {
    let (name, rest) = line.split_once(':')?;
    let name = name.trim_end();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (before, _) = rest.split_once(" ops/sec")?;
    let digits = before.rsplit(' ').next()?;
    (!name.is_empty() && name.chars().all(word)).then_some((name, digits.parse().ok()?))
}

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        Bench { dir }
    }

    fn line(&self, flags: &str) -> String {
        let target = self.dir.path().display();
        format!("lava bench kv --fs host:{target} --db /db {flags}")
    }

    fn ok(&self, flags: &str) -> String {
        ok(&self.line(flags))
    }

    /// The object of the only benchmark.
    fn json(&self, flags: &str) -> serde_json::Value {
        let told = self.ok(&format!("{flags} --json=1"));
        assert_eq!(told.lines().count(), 1, "{told}");
        serde_json::from_str(&told).unwrap()
    }

    /// The command fails with code 2 and one line that holds `part`, before anything is made.
    fn refuses(&self, flags: &str, part: &str) {
        let output = run(&self.line(flags));
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags}: {message}");
        assert_eq!(message.lines().count(), 1, "{flags}: {message}");
        assert!(message.contains(part), "{flags}: {message} lacks {part}");
        assert!(output.stdout.is_empty(), "{flags}");
        assert!(!self.dir.path().join("db").exists(), "{flags}");
    }
}

/// The stored options of the database that the bench left.
fn stored(bench: &Bench) -> BTreeMap<String, String> {
    let files = std::fs::read_dir(bench.dir.path().join("db")).unwrap();
    let mut files = files.map(|entry| entry.unwrap().path());
    let of = |path: &std::path::PathBuf| path.to_str().unwrap().contains("OPTIONS-");
    let text = std::fs::read_to_string(files.find(of).unwrap()).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

#[test]
fn every_benchmark_runs_and_prints_a_result_line_that_scripts_read() {
    let bench = Bench::new();
    let told = bench.ok(&format!(
        "--benchmarks={} --num 300 --threads=2 --seek_nexts 3 --batch_size=4 --seed=5",
        BENCHMARKS.join(",")
    ));
    let results: Vec<(&str, u64)> = told.lines().filter_map(result).collect();
    let names: Vec<&str> = results.iter().map(|(name, _)| *name).collect();
    // Two names for one benchmark, of which the first is printed.
    let expected = BENCHMARKS.map(|name| match name {
        "seekrandomwhilewriting" => "fwdrangewhilewriting",
        "compactall" => "compact",
        "verifychecksum" => "verify",
        name => name,
    });
    assert_eq!(names, expected, "{told}");
    // One operation may take so long that it is none in a second.
    let single = ["compact", "flush", "waitforcompaction", "verify"];
    let rates = results.iter().filter(|(name, _)| !single.contains(name));
    assert!(
        rates.clone().count() > 20 && rates.clone().all(|(_, ops)| *ops > 0),
        "{told}"
    );
    assert!(told.contains("(0 of 600 found)"), "readmissing: {told}");
    for name in BENCHMARKS {
        let single = bench.json(&format!("--benchmarks {name} --num 100 --num_levels 5"));
        assert_eq!(single["bench"], "kv", "{single}");
        for field in [
            "ops",
            "user_bytes",
            "elapsed_s",
            "ops_per_s",
            "threads",
            "num",
        ] {
            assert!(single[field].is_number(), "{name}: {field}");
        }
        for field in ["avg", "p50", "p99", "p999", "p9999", "max"] {
            assert!(single["lat_us"][field].is_number(), "{name}: {field}");
        }
        for field in [
            "write_bytes",
            "write_ios",
            "read_bytes",
            "read_ios",
            "flushes",
        ] {
            assert!(single["device"][field].is_u64(), "{name}: {field}");
        }
    }
    let stats = bench.ok("--benchmarks=fillseq,stats,levelstats --num=100");
    assert!(stats.contains("level"), "{stats}");
    assert!(stats.contains("Level Files Size(MB)"), "{stats}");
}

#[test]
fn of_a_flag_given_twice_the_last_counts_and_empty_names_are_skipped() {
    let bench = Bench::new();
    let told = bench
        .ok("--benchmarks=readrandom --num=70 --sync=1 --num=30 --sync=0 --benchmarks=,fillseq,,");
    let results: Vec<(&str, u64)> = told.lines().filter_map(result).collect();
    assert_eq!(results.len(), 1, "{told}");
    assert!(
        results[0].0 == "fillseq" && told.contains(" 30 operations;"),
        "{told}"
    );
}

#[test]
fn every_key_of_filluniquerandom_is_there_once() {
    let bench = Bench::new();
    let told = bench.json("--benchmarks=filluniquerandom --num=777 --min_blob_size=0");
    assert_eq!(told["ops"], 777, "{told}");
    let read = bench.json("--benchmarks=readseq --num=2000 --use_existing_db=1");
    assert_eq!(read["ops"], 777, "{read}");
}

#[test]
fn reads_and_writes_are_mixed_as_asked_for_and_walks_go_backward() {
    let bench = Bench::new();
    bench.ok("--benchmarks=fillseq --num=500");
    let kept = "--use_existing_db=1 --num=500";
    for (percent, least, most) in [(100, 500, 500), (0, 0, 0), (50, 150, 350)] {
        let told = bench.json(&format!(
            "{kept} --benchmarks=readrandomwriterandom --readwritepercent={percent}"
        ));
        let found = told["found"].as_u64().unwrap();
        assert!((least..=most).contains(&found), "{told}");
    }
    let updated = bench.json(&format!("{kept} --benchmarks=updaterandom --reads=40"));
    assert_eq!(
        (&updated["ops"], &updated["found"]),
        (&40.into(), &40.into())
    );
    for (flags, ops) in [("--writes=30", 30), ("--reads=20 --writes=30", 30)] {
        for name in ["updaterandom", "readrandomwriterandom"] {
            let told = bench.json(&format!("{kept} --benchmarks={name} {flags}"));
            assert_eq!(told["ops"], ops, "{told}");
        }
    }
    // From the first key nothing lies backward but itself.
    let walk = |flag: &str| {
        let told = bench.json(&format!(
            "--use_existing_db=1 --num=1 --benchmarks=seekrandom --reads=10 --seek_nexts=5 {flag}"
        ));
        told["user_bytes"].as_u64().unwrap()
    };
    assert_eq!(walk(""), 10 * 5 * 116);
    assert_eq!(walk("--reverse_iterator=1"), 10 * 116);
}

#[test]
fn reports_come_at_every_interval_of_operations_and_of_time() {
    let bench = Bench::new();
    let file = bench.dir.path().join("report.csv");
    let output = run(&bench.line(&format!(
        "--benchmarks=fillrandom --num=1000 --duration=2 --stats_interval=100 \
         --report_interval_seconds=1 --report_file={}",
        file.display()
    )));
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.lines().count() > 5, "{told}");
    assert!(told.contains(" ops/second in ("), "{told}");
    let file = std::fs::read_to_string(file).unwrap();
    let mut lines = file.lines();
    assert_eq!(lines.next(), Some("secs_elapsed,interval_qps"));
    let (seconds, rate) = lines.next().unwrap().split_once(',').unwrap();
    assert!(seconds.parse::<u64>().unwrap() >= 1, "{file}");
    assert!(rate.parse::<u64>().unwrap() > 0, "{file}");
}

/// Flags that change the engine's options: the flag, the value given, and what is then stored.
const OPTIONS: [(&str, &str, &str, &str); 22] = [
    ("compression_type", "none", "compression", "none"),
    ("cache_size", "1M", "block_cache_size", "1048576"),
    (
        "prepopulate_block_cache",
        "1",
        "prepopulate_block_cache",
        "flush_only",
    ),
    ("write_buffer_size", "131072", "write_buffer_size", "131072"),
    (
        "max_write_buffer_number",
        "5",
        "max_write_buffer_number",
        "5",
    ),
    (
        "target_file_size_base",
        "65536",
        "target_file_size_base",
        "65536",
    ),
    (
        "max_bytes_for_level_base",
        "1M",
        "max_bytes_for_level_base",
        "1048576",
    ),
    (
        "max_bytes_for_level_multiplier",
        "7",
        "max_bytes_for_level_multiplier",
        "7",
    ),
    ("bloom_bits", "6", "bloom_bits_per_key", "6"),
    ("block_size", "8K", "block_size", "8192"),
    ("min_blob_size", "40", "min_blob_size", "40"),
    ("blob_file_size", "1M", "blob_file_size", "1048576"),
    ("max_background_jobs", "3", "max_background_jobs", "3"),
    ("subcompactions", "2", "max_subcompactions", "2"),
    (
        "level0_file_num_compaction_trigger",
        "3",
        "level0_file_num_compaction_trigger",
        "3",
    ),
    (
        "level0_slowdown_writes_trigger",
        "9",
        "level0_slowdown_writes_trigger",
        "9",
    ),
    (
        "level0_stop_writes_trigger",
        "50",
        "level0_stop_writes_trigger",
        "50",
    ),
    ("num_levels", "5", "num_levels", "5"),
    ("max_total_wal_size", "1M", "max_total_wal_size", "1048576"),
    (
        "compression_max_dict_bytes",
        "4K",
        "zstd_dict_bytes",
        "4096",
    ),
    ("compaction_style", "1", "compaction_style", "universal"),
    (
        "universal_max_size_amplification_percent",
        "150",
        "universal_max_size_amplification_percent",
        "150",
    ),
];

/// The same for switches, of which the stored value is the one given.
const SWITCHES: [(&str, &str); 4] = [
    ("disable_auto_compactions", "disable_auto_compactions"),
    (
        "enable_blob_garbage_collection",
        "enable_blob_garbage_collection",
    ),
    (
        "level_compaction_dynamic_level_bytes",
        "level_compaction_dynamic_level_bytes",
    ),
    (
        "cache_index_and_filter_blocks",
        "cache_index_and_filter_blocks",
    ),
];

#[test]
fn every_flag_of_the_engine_takes_both_forms_and_reaches_its_options() {
    let bench = Bench::new();
    for form in ["=", " "] {
        let flags: Vec<String> = OPTIONS
            .iter()
            .map(|(flag, value, _, _)| format!("--{flag}{form}{value}"))
            .collect();
        bench.ok(&format!(
            "--benchmarks=fillseq --num=50 {}",
            flags.join(" ")
        ));
        let stored = stored(&bench);
        for (flag, _, option, value) in OPTIONS {
            let found = stored.get(option).map(String::as_str);
            assert_eq!(found, Some(value), "--{flag}: {option} in {stored:?}");
        }
    }
    for (value, expected) in [
        ("1", "true"),
        ("0", "false"),
        ("true", "true"),
        ("false", "false"),
    ] {
        for form in ["=", " "] {
            let flags = SWITCHES.map(|(flag, _)| format!("--{flag}{form}{value}"));
            bench.ok(&format!(
                "--benchmarks=fillseq --num=50 {}",
                flags.join(" ")
            ));
            let stored = stored(&bench);
            for (flag, option) in SWITCHES {
                assert_eq!(stored[option], expected, "--{flag}{form}{value}");
            }
        }
    }
    for (flags, expected) in [
        ("--enable_blob_files=0 --min_blob_size=100", "0"),
        ("--enable_blob_files=1 --min_blob_size=0", "1"),
        ("--enable_blob_files --min_blob_size=100", "100"),
        ("--min_blob_size=0", "0"),
    ] {
        bench.ok(&format!("--benchmarks=fillseq --num=50 {flags}"));
        assert_eq!(stored(&bench)["min_blob_size"], expected, "{flags}");
    }
}

#[test]
fn switches_that_are_always_on_take_1_and_refuse_0() {
    let bench = Bench::new();
    let switches = [
        "multiread_batched",
        "use_direct_reads",
        "use_direct_io_for_flush_and_compaction",
        "verify_checksum",
        "compression_use_zstd_dict_trainer",
    ];
    for flag in switches {
        for off in ["=0", " false"] {
            bench.refuses(&format!("--benchmarks fillseq --{flag}{off}"), flag);
        }
    }
    let flags = switches.map(|flag| format!("--{flag}=true"));
    bench.ok(&format!(
        "--benchmarks fillseq --num 50 {}",
        flags.join(" ")
    ));
}

#[test]
fn what_is_unknown_or_out_of_range_is_one_line_and_changes_nothing() {
    let bench = Bench::new();
    for (flags, part) in [
        ("--benchmarks=fillseq,nonsense", "nonsense"),
        ("--benchmarks=fillseq --nonsense=1", "--nonsense"),
        ("--benchmarks=fillseq --no-sync", "--no-sync"),
        ("--benchmarks=fillseq --sync=2", "2"),
        ("--benchmarks=fillseq --num=many", "many"),
        ("--benchmarks=fillseq --num=0", "--num"),
        (
            "--benchmarks=filluniquerandom --num=18446744073709551615 --writes=3",
            "--num",
        ),
        // More than the clock has: a thread panicked, and the writer beside it went on for ever.
        (
            "--benchmarks=readwhilewriting --duration=18446744073709551615",
            "--duration",
        ),
        ("--benchmarks=fillseq --threads=0", "--threads"),
        ("--benchmarks=fillseq --key_size=0", "--key_size"),
        ("--benchmarks=fillseq --key_size=1 --num=1000", "--key_size"),
        // What the engine refuses, once it had removed the database that was there.
        ("--benchmarks=fillseq --key_size=65536", "--key_size"),
        (
            "--benchmarks=fillseq --value_size=536870913",
            "--value_size",
        ),
        ("--benchmarks=fillsync --disable_wal", "--disable_wal"),
        ("--benchmarks=fillseq --compression_type=lzma", "lzma"),
        ("--benchmarks=fillseq --compression_level=99", "99"),
        (
            "--benchmarks=fillseq --compression_ratio=7",
            "--compression_ratio",
        ),
        (
            "--benchmarks=fillseq --compaction_style=9",
            "--compaction_style",
        ),
        ("--benchmarks=fillseq --block_size=1", "block_size"),
        ("--benchmarks=fillseq --num_levels=1", "num_levels"),
        ("--benchmarks=fillseq --sync --disable_wal", "--disable_wal"),
        (
            "--benchmarks=fillseq --compression_max_dict_bytes=4K --zstd_max_train_bytes=4K",
            "409600",
        ),
        (
            "--benchmarks=fillseq --compression_zstd_max_train_bytes=1",
            "--compression_max_dict_bytes",
        ),
    ] {
        bench.refuses(flags, part);
    }
}

#[test]
fn dictionaries_are_asked_for_as_in_db_bench() {
    let bench = Bench::new();
    for flags in [
        "--compression_max_dict_bytes=4K --compression_zstd_max_train_bytes=400K",
        "--zstd_max_dict_bytes 4096 --zstd_max_train_bytes 409600",
    ] {
        bench.ok(&format!("--benchmarks=fillseq --num=50 {flags}"));
        assert_eq!(stored(&bench)["zstd_dict_bytes"], "4096", "{flags}");
    }
}

#[test]
fn the_line_of_readers_counts_no_write_of_the_writer_beside() {
    let bench = Bench::new();
    bench.ok("--benchmarks=fillseq --num=1000");
    let flags =
        "--benchmarks=readwhilewriting --use_existing_db --num=1000 --reads=5000 --threads=2";
    let told = bench.ok(flags);
    assert!(told.contains(" 10000 operations;"), "{told}");
    assert!(told.contains("(10000 of 10000 found)"), "{told}");
    let report = bench.json(flags);
    assert_eq!(report["ops"], 10_000);
    // So many reads may be done before the writer is given a processor.
    let report = bench.json(&format!("{flags} --duration=2"));
    assert!(report["writes_beside"].as_u64().unwrap() > 0);
    assert!(report["write_lat_us"]["p99"].as_f64().unwrap() > 0.0);
}

#[test]
fn booleans_are_taken_in_every_form() {
    let bench = Bench::new();
    for on in [
        "--histogram",
        "--histogram=1",
        "--histogram 1",
        "--histogram=true",
    ] {
        let told = bench.ok(&format!("--benchmarks=fillseq --num=50 {on}"));
        assert!(told.contains("Microseconds per write:"), "{on}: {told}");
        assert!(told.contains(" P99.99: "), "{on}: {told}");
    }
    for off in ["", "--histogram=0", "--histogram 0", "--histogram=false"] {
        let told = bench.ok(&format!("--benchmarks=fillseq --num=50 {off}"));
        assert!(!told.contains("Microseconds per write:"), "{off}: {told}");
    }
    let unlogged = bench.json("--benchmarks=fillrandom --num=50 --disableWAL=1 --sync=0");
    let synced = bench.json("--benchmarks=fillrandom --num=50 --disable_wal 0 --sync true");
    assert!(
        unlogged["device"]["flushes"].as_u64() < Some(50),
        "{unlogged}"
    );
    assert!(synced["device"]["flushes"].as_u64() >= Some(50), "{synced}");
}

#[test]
fn operations_and_time_are_those_asked_for() {
    let bench = Bench::new();
    let counted = bench.json("--benchmarks=fillrandom --num=400 --writes=150 --threads=2");
    assert_eq!(counted["ops"], 300, "{counted}");
    let kept = "--use_existing_db=1 --num=400";
    assert_eq!(
        bench.json(&format!("{kept} --benchmarks=readrandom --reads=70"))["ops"],
        70
    );
    assert_eq!(
        bench.json(&format!("{kept} --benchmarks=deleterandom --deletes 30"))["ops"],
        30
    );
    // A random workload runs for its duration, one in order ends with its keys.
    let timed = bench.json(&format!(
        "{kept} --benchmarks=readrandom --reads=5 --duration=1"
    ));
    let seconds = timed["elapsed_s"].as_f64().unwrap();
    assert!(seconds >= 1.0 && timed["ops"].as_u64() > Some(5), "{timed}");
    let ordered = bench.json(&format!("{kept} --benchmarks=deleteseq --duration=1"));
    assert_eq!(ordered["ops"], 400, "{ordered}");
    // A write that is due after the end is not waited for: the second one is in two minutes.
    let slow = bench.json(&format!(
        "{kept} --benchmarks=overwrite --duration=1 --benchmark_write_rate_limit=1"
    ));
    let seconds = slow["elapsed_s"].as_f64().unwrap();
    assert!((1.0..60.0).contains(&seconds), "{slow}");
    // Each thread has a seed of its own, also beyond the largest.
    let seeded = format!(
        "{kept} --benchmarks=overwrite --threads=2 --seed={}",
        u64::MAX
    );
    assert_eq!(bench.json(&seeded)["ops"], 800);
    // The writer beside readers keeps to the limit, and tells both latencies.
    let begun = Instant::now();
    let beside = bench.json(&format!(
        "{kept} --benchmarks=readwhilewriting --duration=1 --benchmark_write_rate_limit=11600"
    ));
    let most = (begun.elapsed().as_secs_f64() * 100.0) as u64 + 50;
    let writes = beside["writes_beside"].as_u64().unwrap();
    assert!((1..=most).contains(&writes), "{beside}");
    assert!(beside["service_lat_us"]["p50"].is_number(), "{beside}");
    assert!(beside["write_lat_us"]["p9999"].is_number(), "{beside}");
}

#[test]
fn statistics_tell_counters_and_latencies_of_the_engine() {
    let bench = Bench::new();
    let told = bench.ok("--benchmarks=fillrandom,readrandom --num=200 --statistics=1");
    let (_, statistics) = told.split_once("STATISTICS:").unwrap();
    assert!(
        statistics.contains("\nlavakv.keys.written COUNT : 200\n"),
        "{statistics}"
    );
    let gets = statistics
        .lines()
        .find(|line| line.starts_with("lavakv.get.micros P50 : "));
    assert!(
        gets.unwrap().contains(" COUNT : 200 SUM : "),
        "{statistics}"
    );
    assert!(
        !bench
            .ok("--benchmarks=fillseq --num=20")
            .contains("STATISTICS")
    );
}

#[test]
fn a_bench_on_an_image_leaves_it_sound_and_the_database_whole() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "256M");
    let place = format!("--fs {} --db /db", image.display());
    ok(&format!(
        "lava bench kv {place} --benchmarks=fillrandom,overwrite,readwhilewriting --num=2000 \
         --value_size=700 --write_buffer_size=256K --compression_level=1 --min_level_to_compress=2"
    ));
    ok(&format!("lava kv verify {place}"));
    ok(&format!("fsck.lavafs -n {}", image.display()));
}
