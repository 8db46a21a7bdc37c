//! `lava bench log`: records appended to many logs by many writers.
//!
//! Writer `w` appends to the logs `w`, `w + writers`, ... in turn, LSN after LSN; `--records` is the
//! number of records of all writers together. The measured part ends when the last append has
//! returned; without `--sync` a last sync of the engine is part of it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Barrier, Mutex};
use std::time::Instant;

use clap::Args;
use lavafs::FileSystem;
use lavalog::{Log, LogConfig, LogEngine, LogOptions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, json};

use super::report::{Latency, Report, Span};
use crate::cli::{Access, Failure, Mounted, Outcome, Progress, Target, parse_flag, parse_size};

/// `lava bench log`.
///
/// The logs are called bench.000000, ...; those of an earlier run are deleted first.
#[derive(Debug, Args)]
pub struct LogBench {
    /// Block device, image file or host:DIR
    #[arg(long, value_name = "TARGET")]
    fs: Target,
    /// Directory of the log engine in the filesystem
    #[arg(long, value_name = "PATH")]
    log: PathBuf,
    /// Number of logs
    #[arg(long, default_value_t = 1)]
    logs: usize,
    /// Number of writers, each a thread
    #[arg(long, default_value_t = 1)]
    writers: usize,
    /// Bytes of a record
    #[arg(long, default_value = "4096", value_parser = parse_size)]
    record: u64,
    /// Number of records, of all writers together
    #[arg(long, default_value_t = 10_000)]
    records: u64,
    /// Make each record durable before the next of its writer
    #[arg(long, value_parser = parse_flag, default_value_t = true, num_args = 0..=1,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    sync: bool,
    /// Seed of the records' contents
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl LogBench {
    /// Runs the bench and prints its figures.
    pub fn run(&self) -> Outcome {
        let refuse = |what: &str| Err(Failure::usage(what));
        if !(1..=1_000_000).contains(&self.logs) || !(1..=1024).contains(&self.writers) {
            return refuse("--logs must be 1 to 1000000 and --writers 1 to 1024");
        }
        if self.writers > self.logs {
            return refuse("--writers must not exceed --logs: a log belongs to one writer");
        }
        if !(1..=1 << 29).contains(&self.record) || self.records == 0 {
            return refuse("--record must be 1 to 512M and --records at least 1");
        }
        let mounted = self.fs.open(Access::ReadWrite)?;
        let report = mounted.with(|fs, mounted| self.measure(fs, mounted))?;
        report.print(self.json)?;
        Ok(ExitCode::SUCCESS)
    }

    fn measure(&self, fs: &dyn FileSystem, mounted: &Mounted) -> Outcome<Report> {
        let options = LogOptions::default();
        let engine = LogEngine::open(Arc::clone(mounted.fs()), &self.log, &options)?;
        for name in engine.list() {
            if name.starts_with("bench.") {
                engine.delete(&name)?;
            }
        }
        let create = |index| engine.create(&format!("bench.{index:06}"), LogConfig::default());
        let logs = (0..self.logs)
            .map(create)
            .collect::<Result<Vec<Log>, _>>()?;
        let report = self.append_all(fs, &engine, &logs)?;
        engine.close()?;
        Ok(report)
    }

    fn append_all(&self, fs: &dyn FileSystem, engine: &LogEngine, logs: &[Log]) -> Outcome<Report> {
        let progress = Progress::items("appending", self.records);
        let barrier = Barrier::new(self.writers + 1);
        let failure: Mutex<Option<Failure>> = Mutex::new(None);
        let mut latency = Latency::default();
        let mut span = Span::default();
        let mut before = fs.counters();
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..self.writers)
                .map(|writer| {
                    let (barrier, failure, progress) = (&barrier, &failure, &progress);
                    scope.spawn(move || {
                        let own = logs.iter().skip(writer).step_by(self.writers);
                        let own: Vec<&Log> = own.collect();
                        barrier.wait();
                        let started = Instant::now();
                        let done = self.append(writer, &own, progress).unwrap_or_else(|error| {
                            let mut first = failure.lock().unwrap_or_else(|p| p.into_inner());
                            first.get_or_insert(error);
                            Latency::default()
                        });
                        (done, started, Instant::now())
                    })
                })
                .collect();
            before = fs.counters();
            barrier.wait();
            for writer in writers {
                let (done, started, ended) = writer.join().expect("a bench thread panicked");
                latency.merge(&done);
                span.cover(started, ended);
            }
        });
        if let Some(failure) = failure.into_inner().unwrap_or_else(|p| p.into_inner()) {
            return Err(failure);
        }
        if !self.sync {
            let started = Instant::now();
            engine.sync()?;
            span.cover(started, Instant::now());
        }
        Ok(Report {
            bench: "log",
            workload: "append".to_string(),
            ops: latency.count(),
            user_bytes: latency.count() * self.record,
            elapsed: span.elapsed(),
            latency,
            device: fs.counters() - before,
            extra: Map::from_iter([
                ("logs".to_string(), json!(self.logs)),
                ("writers".to_string(), json!(self.writers)),
                ("record".to_string(), json!(self.record)),
                ("sync".to_string(), json!(self.sync)),
            ]),
        })
    }

    /// One writer's share: the records are dealt out evenly.
    fn append(&self, writer: usize, logs: &[&Log], progress: &Progress) -> Outcome<Latency> {
        let writers = self.writers as u64;
        let share = self.records / writers + u64::from((writer as u64) < self.records % writers);
        let mut data = vec![0; self.record as usize];
        SmallRng::seed_from_u64(self.seed ^ (writer as u64) << 32).fill_bytes(&mut data);
        let mut latency = Latency::default();
        for index in 0..share {
            let log = logs[(index % logs.len() as u64) as usize];
            let lsn = index / logs.len() as u64 + 1;
            let started = Instant::now();
            log.append(lsn, &data, self.sync)?;
            latency.record(started.elapsed());
            progress.add(1);
        }
        Ok(latency)
    }
}
