//! The loading process of the demo, a hidden command: it is started by the demo and killed by it.
//!
//! A few loaders take batches of files, in order; each batch is one synced append to the log and
//! then one synced write to the database. The engines let the loaders share syncs.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use clap::Args;
use lavakv::{Db, Options, WriteBatch, WriteOptions};
use lavalog::{Log, LogConfig, LogEngine, LogOptions};
use xxhash_rust::xxh3::xxh3_64;

use super::protocol::{EngineFigures, Event, LoadFigures, Stored, encode_change, read_files};
use super::{DB_DIR, LOG_DIR, LOG_NAME};
use crate::bench::Latency;
use crate::cli::{Access, Context, Failure, Outcome, Progress, Target, json_line};
use crate::metered::{Meter, Metered};
use crate::source::SourceFile;

/// Loaders at work; more only wait for the device.
const LOADERS: usize = 4;

/// Files of one batch at most.
const BATCH_FILES: usize = 32;

/// Bytes of one batch, but for its last file.
const BATCH_BYTES: u64 = 256 << 10;

/// The demo's loading process
#[derive(Debug, Args)]
pub struct DemoLoad {
    /// Directory of the files to load
    #[arg(long)]
    data: PathBuf,
    /// Image to load them into
    #[arg(long)]
    image: PathBuf,
}

/// What the loaders share.
struct Shared<'a> {
    files: &'a [SourceFile],
    /// The next file that no loader has taken.
    next: Mutex<usize>,
    engine: &'a LogEngine,
    log: &'a Log,
    db: &'a Db,
    progress: &'a Progress,
}

/// What one loader measured.
#[derive(Default)]
struct Done {
    log: Latency,
    kv: Latency,
    user_bytes: u64,
}

impl DemoLoad {
    /// Loads everything, reports it, and waits to be killed.
    pub fn run(&self) -> Outcome {
        let mut input = std::io::stdin().lock();
        let files = read_files(&mut input, &self.data).context(|| "reading the list of files")?;
        let mounted = Target::Device(self.image.clone()).open(Access::ReadWrite)?;
        let (log_fs, log_meter) = Metered::over(Arc::clone(mounted.fs()));
        let (kv_fs, kv_meter) = Metered::over(Arc::clone(mounted.fs()));
        let before = mounted.fs().counters();
        let engine = LogEngine::open(log_fs, Path::new(LOG_DIR), &LogOptions::default())?;
        let log = engine.create(LOG_NAME, LogConfig::default())?;
        let options = Options {
            create_if_missing: true,
            ..Options::default()
        };
        let db = Db::open(kv_fs, Path::new(DB_DIR), options)?;

        let progress = Progress::bytes("loading", files.iter().map(|file| file.size).sum());
        let shared = Shared {
            files: &files,
            next: Mutex::new(0),
            engine: &engine,
            log: &log,
            db: &db,
            progress: &progress,
        };
        let started = Instant::now();
        let done = shared.run()?;
        let elapsed_s = started.elapsed().as_secs_f64();
        drop(progress);
        let device = mounted.fs().counters() - before;
        json_line(&Event::Done(LoadFigures {
            elapsed_s,
            user_bytes: done.user_bytes,
            log: figures(&done.log, &log_meter),
            kv: figures(&done.kv, &kv_meter),
            device_bytes: device.write_bytes,
            device_writes: device.write_ios,
            flushes: device.flushes,
        }))?;
        std::io::stdout().flush()?;
        // The parent kills this process now. Should the parent die instead, its end of standard
        // input closes and this process ends as cleanly as any.
        let mut nothing = Vec::new();
        input
            .read_to_end(&mut nothing)
            .context(|| "standard input")?;
        Err(Failure::new("the demo ended without killing its load"))
    }
}

fn figures(latency: &Latency, meter: &Meter) -> EngineFigures {
    EngineFigures {
        batches: latency.count(),
        bytes: meter.bytes(),
        appends: meter.appends(),
        syncs: meter.syncs(),
        p50_us: latency.quantile_us(0.5),
        p99_us: latency.quantile_us(0.99),
        p999_us: latency.quantile_us(0.999),
        max_us: latency.max_us(),
    }
}

impl Shared<'_> {
    /// Runs the loaders.
    fn run(&self) -> Outcome<Done> {
        std::thread::scope(|scope| {
            let loaders: Vec<_> = (0..LOADERS).map(|_| scope.spawn(|| self.load())).collect();
            let mut total = Done::default();
            for loader in loaders {
                let done = loader.join().expect("a loader panicked")?;
                total.log.merge(&done.log);
                total.kv.merge(&done.kv);
                total.user_bytes += done.user_bytes;
            }
            Ok(total)
        })
    }

    /// One loader: batch after batch until none is left.
    fn load(&self) -> Outcome<Done> {
        let mut done = Done::default();
        loop {
            let batch = self.take();
            if batch.is_empty() {
                return Ok(done);
            }
            self.store(batch, &mut done)?;
        }
    }

    /// The numbers of the next files.
    fn take(&self) -> std::ops::Range<usize> {
        let mut next = self.next.lock().unwrap_or_else(|p| p.into_inner());
        let first = *next;
        let mut bytes = 0;
        while *next < self.files.len() && *next - first < BATCH_FILES && bytes < BATCH_BYTES {
            bytes += self.files[*next].size;
            *next += 1;
        }
        first..*next
    }

    /// Logs and stores the files with these numbers, and reports them.
    fn store(&self, numbers: std::ops::Range<usize>, done: &mut Done) -> Outcome<()> {
        let mut records = Vec::new();
        let mut batch = WriteBatch::new();
        let mut reports = Vec::new();
        let mut bytes = 0;
        for index in numbers {
            let file = &self.files[index];
            let contents = match file.read() {
                Ok(contents) => contents,
                Err(failure) => {
                    reports.push(self.missed(file, &failure));
                    continue;
                }
            };
            records.push((index as u64 + 1, encode_change(&file.key, &contents)));
            batch.put(&file.key, &contents);
            bytes += (file.key.len() + contents.len()) as u64;
            reports.push(Event::Stored(Stored {
                index,
                len: contents.len() as u64,
                hash: xxh3_64(&contents),
            }));
        }
        if !records.is_empty() {
            let appends: Vec<_> = records
                .iter()
                .map(|(lsn, record)| (self.log.id(), *lsn, &record[..]))
                .collect();
            let started = Instant::now();
            self.engine.append_batch(&appends, true)?;
            done.log.record(started.elapsed());
            let started = Instant::now();
            self.db.write(batch, &WriteOptions::synced())?;
            done.kv.record(started.elapsed());
        }
        for report in &reports {
            json_line(report)?;
        }
        done.user_bytes += bytes;
        self.progress.add(bytes);
        Ok(())
    }

    /// The report on a file that could not be read.
    fn missed(&self, file: &SourceFile, failure: &Failure) -> Event {
        match file.path.symlink_metadata() {
            Ok(metadata) if metadata.is_file() => Event::Unreadable(failure.to_string()),
            _ => Event::Gone(file.path.display().to_string()),
        }
    }
}
