//! Runs benchmarks one after the other on one database and prints what they measured.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lavafs::FileSystem;
use lavakv::Db;
use serde_json::{Map, json};

use super::pace::Pace;
use super::work::Worker;
use super::{Benchmark, KvBench};
use crate::bench::report::{Latency, Report, Span};
use crate::cli::{Access, Failure, Mounted, Outcome, Progress, line};

/// A benchmark's figures.
struct Measured {
    report: Report,
    /// Seconds of all threads together, for db_bench's micros/op.
    thread_seconds: f64,
    found: u64,
}

/// Runs `benchmarks` in turn.
pub(super) fn run(bench: &KvBench, benchmarks: &[Benchmark]) -> Outcome<()> {
    let seed = match bench.seed {
        0 => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |since| since.as_micros() as u64),
        seed => seed,
    };
    let mounted = bench.fs.open(Access::ReadWrite)?;
    mounted.with(|fs, mounted| {
        if !bench.use_existing_db {
            Db::destroy(mounted.fs(), &bench.db)?;
        }
        if !bench.json {
            line(header(bench))?;
        }
        let mut db: Option<Db> = None;
        let result: Outcome<()> = (|| {
            for (index, &benchmark) in benchmarks.iter().enumerate() {
                if benchmark.is_fill() && !bench.use_existing_db && index > 0 {
                    close(bench, db.take())?;
                    Db::destroy(mounted.fs(), &bench.db)?;
                }
                let open = match &db {
                    Some(open) => open,
                    None => db.insert(open(bench, mounted)?),
                };
                let seed = seed.wrapping_add((index as u64) << 32);
                run_one(bench, fs, open, benchmark, seed)?;
            }
            Ok(())
        })();
        let closed = close(bench, db);
        result?;
        closed
    })
}

fn open(bench: &KvBench, mounted: &Mounted) -> Outcome<Db> {
    let options = bench.options(!bench.use_existing_db)?;
    Ok(Db::open(Arc::clone(mounted.fs()), &bench.db, options)?)
}

fn close(bench: &KvBench, db: Option<Db>) -> Outcome<()> {
    let Some(db) = db else {
        return Ok(());
    };
    if bench.habits.statistics {
        let text = statistics(&db);
        match bench.json {
            true => eprintln!("{text}"),
            false => line(text)?,
        }
    }
    Ok(db.close()?)
}

/// Counters and latencies since the database was opened, one a line as db_bench prints its own.
fn statistics(db: &Db) -> String {
    let dotted = |name: &str| name.replace('_', ".");
    let mut text = "STATISTICS:".to_owned();
    for (name, count) in db.tickers().named() {
        text.push_str(&format!("\nlavakv.{} COUNT : {count}", dotted(name)));
    }
    for (name, of) in db.histograms() {
        text.push_str(&format!(
            "\nlavakv.{}.micros P50 : {:.3} P99 : {:.3} P99.9 : {:.3} P100 : {:.3} COUNT : {} SUM : {:.0}",
            dotted(name),
            of.p50,
            of.p99,
            of.p999,
            of.max,
            of.count,
            of.mean * of.count as f64,
        ));
    }
    text
}

fn run_one(
    bench: &KvBench,
    fs: &dyn FileSystem,
    db: &Db,
    benchmark: Benchmark,
    seed: u64,
) -> Outcome<()> {
    let told = match benchmark {
        Benchmark::Stats => Some(db.stats().to_string()),
        Benchmark::LevelStats => Some(level_stats(db)),
        _ => None,
    };
    if let Some(text) = told {
        return match bench.json {
            // One JSON object a workload; the text goes beside them.
            true => {
                eprintln!("{}", text.trim_end());
                Ok(())
            }
            false => line(text.trim_end()),
        };
    }
    let measured = measure(bench, fs, db, benchmark, seed)?;
    if bench.json {
        return measured.report.print(true);
    }
    line(result_line(&measured))?;
    if bench.histogram {
        let latency = &measured.report.latency;
        line(latency.histogram_text(benchmark.operation()))?;
    }
    Ok(())
}

/// Files and size of each level, as db_bench prints them.
fn level_stats(db: &Db) -> String {
    let mut text = "Level Files Size(MB)\n--------------------\n".to_owned();
    for (number, level) in db.stats().levels.iter().enumerate() {
        let mib = level.bytes as f64 / f64::from(1 << 20);
        text.push_str(&format!("{number:3} {:8} {mib:8.0}\n", level.files));
    }
    text
}

/// What db_bench prints first.
fn header(bench: &KvBench) -> String {
    let compressed = (bench.value_size as f64 * bench.compression_ratio + 0.5) as u64;
    format!(
        "Keys:       {} bytes each\nValues:     {} bytes each ({compressed} bytes after compression)\n\
         Entries:    {}\n{}",
        bench.key_size,
        bench.value_size,
        bench.num,
        "-".repeat(48),
    )
}

fn measure(
    bench: &KvBench,
    fs: &dyn FileSystem,
    db: &Db,
    benchmark: Benchmark,
    seed: u64,
) -> Outcome<Measured> {
    let single = matches!(
        benchmark,
        Benchmark::Compact | Benchmark::Flush | Benchmark::WaitForCompaction | Benchmark::Verify
    );
    let threads = if single { 1 } else { bench.threads };
    let num = match benchmark {
        Benchmark::FillSync | Benchmark::Fill100K => (bench.num / 1000).max(1),
        _ => bench.num,
    };
    let progress = Progress::items(benchmark.name(), bench.num.saturating_mul(threads as u64));
    let writer = benchmark.has_writer();
    let barrier = Barrier::new(threads + usize::from(writer) + 1);
    let stop = AtomicBool::new(false);
    let over = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    let reported = bench.intervals.is_asked_for().then_some(&done);
    let pace = Pace::new(bench.benchmark_write_rate_limit);
    let mut service = Latency::default();
    let failure: Mutex<Option<Failure>> = Mutex::new(None);
    let fail = |error: Failure| {
        let mut first = failure.lock().unwrap_or_else(|p| p.into_inner());
        first.get_or_insert(error);
    };
    let mut measured = Measured {
        report: empty_report(bench, benchmark, threads),
        thread_seconds: 0.0,
        found: 0,
    };
    std::thread::scope(|scope| {
        let (barrier, stop, progress, fail) = (&barrier, &stop, &progress, &fail);
        let (done, over, pace) = (&done, &over, &pace);
        if reported.is_some() {
            scope.spawn(move || {
                if let Err(error) = bench.intervals.report(done, over) {
                    fail(error);
                }
            });
        }
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let seed = seed.wrapping_add(thread as u64);
                    let mut worker = Worker::new(bench, db, progress, pace, num, seed);
                    worker.reported = reported;
                    barrier.wait();
                    let started = Instant::now();
                    if let Err(error) = worker.run(benchmark) {
                        fail(error);
                    }
                    (worker, started, Instant::now())
                })
            })
            .collect();
        let beside = writer.then(|| {
            scope.spawn(move || {
                let seed = seed.wrapping_add(threads as u64);
                let mut worker = Worker::new(bench, db, progress, pace, num, seed);
                barrier.wait();
                if let Err(error) = worker.write_beside(stop) {
                    fail(error);
                }
                worker
            })
        });
        let before = fs.counters();
        let gets_before = gets(db);
        barrier.wait();
        let workers: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        measured.report.device = fs.counters() - before;
        let served = gets(db).into_iter().zip(gets_before);
        // The others would run for ever beside a thread that panicked.
        stop.store(true, Ordering::Relaxed);
        over.store(true, Ordering::Relaxed);
        let mut span = Span::default();
        for worker in workers {
            let (worker, started, ended) = worker.expect("a bench thread panicked");
            span.cover(started, ended);
            measured.report.latency.merge(&worker.latency);
            service.merge(&worker.service);
            measured.report.ops += worker.ops;
            measured.report.user_bytes += worker.bytes;
            measured.found += worker.found;
            measured.thread_seconds += (ended - started).as_secs_f64();
        }
        measured.report.elapsed = span.elapsed();
        let served: Map<_, _> = served
            .map(|((name, after), (_, before))| (name.to_string(), json!(after - before)))
            .collect();
        if served.values().any(|count| *count != json!(0)) {
            measured.report.extra.insert("gets".into(), served.into());
        }
        if let Some(beside) = beside {
            let writer = beside.join().expect("the writer beside panicked");
            let extra = &mut measured.report.extra;
            extra.insert("writes_beside".into(), json!(writer.ops));
            extra.insert("write_lat_us".into(), writer.latency.json());
            service.merge(&writer.service);
        }
        if pace.limits() {
            let extra = &mut measured.report.extra;
            extra.insert("service_lat_us".into(), service.json());
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(|p| p.into_inner()) {
        return Err(error);
    }
    if let Some(peak) = peak_rss_bytes() {
        let extra = &mut measured.report.extra;
        extra.insert("peak_rss_bytes".into(), json!(peak));
    }
    if counts_found(benchmark) {
        measured
            .report
            .extra
            .insert("found".into(), json!(measured.found));
    }
    Ok(measured)
}

/// Where lookups found what they asked for, so far.
fn gets(db: &Db) -> [(&'static str, u64); 5] {
    let tickers = db.stats().tickers;
    [
        ("memtable", tickers.memtable_hits),
        ("cache", tickers.gets_from_cache),
        ("one_read", tickers.gets_with_one_read),
        ("two_reads", tickers.gets_with_two_reads),
        ("more_reads", tickers.gets_with_more_reads),
    ]
}

/// The most memory that this process had so far, where the system tells.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn empty_report(bench: &KvBench, benchmark: Benchmark, threads: usize) -> Report {
    Report {
        bench: "kv",
        workload: benchmark.name().to_string(),
        ops: 0,
        user_bytes: 0,
        elapsed: Duration::ZERO,
        latency: Latency::default(),
        device: lavafs::device::DeviceCounters::default(),
        extra: Map::from_iter([
            ("threads".to_string(), json!(threads)),
            ("num".to_string(), json!(bench.num)),
            ("key_size".to_string(), json!(bench.key_size)),
            ("value_size".to_string(), json!(bench.value_size)),
        ]),
    }
}

/// True for those whose line says how many keys were found.
fn counts_found(benchmark: Benchmark) -> bool {
    matches!(
        benchmark,
        Benchmark::ReadRandom
            | Benchmark::ReadMissing
            | Benchmark::MultiReadRandom
            | Benchmark::ReadWhileWriting
            | Benchmark::ReadHot
            | Benchmark::UpdateRandom
            | Benchmark::ReadRandomWriteRandom
            | Benchmark::SeekRandom
            | Benchmark::SeekWhileWriting
    )
}

/// db_bench's result line.
fn result_line(measured: &Measured) -> String {
    let report = &measured.report;
    let seconds = report.elapsed.as_secs_f64().max(1e-9);
    let mut text = format!(
        "{:<12} : {:11.3} micros/op {} ops/sec {seconds:.3} seconds {} operations;",
        report.workload,
        measured.thread_seconds * 1e6 / report.ops.max(1) as f64,
        report.ops_per_s() as u64,
        report.ops,
    );
    if report.user_bytes > 0 {
        let rate = report.user_bytes as f64 / f64::from(1 << 20) / seconds;
        text.push_str(&format!(" {rate:6.1} MB/s"));
    }
    if report.extra.contains_key("found") {
        text.push_str(&format!(" ({} of {} found)", measured.found, report.ops));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_line_reads_as_db_bench_prints_it() {
        let mut measured = Measured {
            report: Report {
                bench: "kv",
                workload: "fillrandom".into(),
                ops: 1_000_000,
                user_bytes: 116_000_000,
                elapsed: Duration::from_millis(3456),
                latency: Latency::default(),
                device: lavafs::device::DeviceCounters::default(),
                extra: Map::new(),
            },
            thread_seconds: 3.456,
            found: 0,
        };
        assert_eq!(
            result_line(&measured),
            "fillrandom   :       3.456 micros/op 289351 ops/sec 3.456 seconds \
             1000000 operations;   32.0 MB/s"
        );
        measured.report.extra.insert("found".into(), json!(7));
        measured.found = 7;
        assert!(result_line(&measured).ends_with(" (7 of 1000000 found)"));
    }
}
