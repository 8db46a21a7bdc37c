//! `lava bench fs`: appends and reads through the `FileSystem` trait, as fio would do them.
//!
//! The files are `/bench/f.000000`, `/bench/f.000001`, ... A file belongs to one thread in the
//! append and seqread workloads; in randread every thread reads all files. The measured part
//! begins when all threads stand ready (filesystem mounted, buffers made, files laid out) and
//! ends when the last one is done and what was written has reached the device.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use lavafs::device::AlignedBuf;
use lavafs::{CreateOptions, FileRef, FileSystem, ReadRequest};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::{Map, json};

use super::report::{Latency, Report, Span};
use crate::cli::{Access, Context, Failure, Outcome, Progress, Target, parse_size};

/// Where the bench keeps its files.
const DIR: &str = "/bench";

/// How many times the queue depth one batch of random reads is long: the queue then drains for
/// less than 2% of the time.
const BATCH_PER_DEPTH: usize = 64;

/// `lava bench fs`.
///
/// append creates --files fresh files below /bench (older ones are removed first) and appends to
/// them in --bs steps; with --sync, each append is followed by that sync and both are one
/// operation. Without it the time ends after a last fdatasync per thread, so that everything is
/// on the device. seqread and randread lay the files out first if they are missing (not
/// counted). randread without --runtime ends after 5 seconds or after as many reads as the files
/// have blocks, whichever comes first; a read's latency is its own, from submission to
/// completion, with any --qd.
#[derive(Debug, Args)]
pub struct FsBench {
    /// Block device, image file or host:DIR
    #[arg(long, value_name = "TARGET")]
    fs: Target,
    /// What to do
    #[arg(long)]
    workload: Workload,
    /// Bytes of one append or read
    #[arg(long, default_value = "4K", value_parser = parse_size)]
    bs: u64,
    /// Number of files
    #[arg(long, default_value_t = 1)]
    files: u64,
    /// Bytes of each file
    #[arg(long, default_value = "64M", value_parser = parse_size)]
    file_size: u64,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: u64,
    /// What follows each append
    #[arg(long, default_value = "none")]
    sync: Sync,
    /// Random reads in flight for each thread
    #[arg(long, default_value_t = 1)]
    qd: usize,
    /// Seconds to read for; reads begin again at the end of the files
    #[arg(long)]
    runtime: Option<f64>,
    /// Seed of the random offsets and of the contents
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[value(rename_all = "lower")]
enum Workload {
    /// Append to fresh files
    Append,
    /// Read each file from its beginning to its end
    SeqRead,
    /// Read at random block-aligned offsets of all files
    RandRead,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Sync {
    /// Nothing
    None,
    /// All bytes durable, not the size
    Fdatasync,
    /// All bytes and the size durable
    Fsync,
}

/// What one thread did.
#[derive(Debug, Default)]
struct Done {
    latency: Latency,
    user_bytes: u64,
}

impl FsBench {
    /// Runs the workload and prints its figures.
    pub fn run(&self) -> Outcome {
        self.validate()?;
        let mounted = self.fs.open(Access::ReadWrite)?;
        let report = mounted.with(|fs, _| self.measure(fs))?;
        report.print(self.json)?;
        Ok(std::process::ExitCode::SUCCESS)
    }

    fn validate(&self) -> Outcome<()> {
        let refuse = |what: &str| Err(Failure::usage(what));
        if self.bs == 0 || self.bs > 1 << 30 {
            return refuse("--bs must be 1 to 1G");
        }
        if self.file_size < self.bs {
            return refuse("--file-size must be at least --bs");
        }
        if self.files == 0 || self.files > 10_000_000 {
            return refuse("--files must be 1 to 10000000");
        }
        if self.threads == 0 || self.threads > 1024 {
            return refuse("--threads must be 1 to 1024");
        }
        if self.workload != Workload::RandRead && self.threads > self.files {
            return refuse("--threads must not exceed --files: a file belongs to one thread");
        }
        if self.qd == 0 || self.qd > 4096 {
            return refuse("--qd must be 1 to 4096");
        }
        if self.workload != Workload::RandRead && self.qd != 1 {
            return refuse("--qd applies to randread alone");
        }
        if self.workload == Workload::RandRead && self.file_size / self.bs * self.files == 0 {
            return refuse("--file-size must hold at least one block");
        }
        match (self.workload, self.sync, self.runtime) {
            (Workload::Append, _, Some(_)) => refuse("--runtime applies to reads alone"),
            (Workload::SeqRead | Workload::RandRead, Sync::Fdatasync | Sync::Fsync, _) => {
                refuse("--sync applies to append alone")
            }
            (_, _, Some(seconds)) if !(0.001..=1e6).contains(&seconds) => {
                refuse("--runtime must be 0.001 to 1000000 seconds")
            }
            _ => Ok(()),
        }
    }

    fn measure(&self, fs: &dyn FileSystem) -> Outcome<Report> {
        let dir = Path::new(DIR);
        if self.workload == Workload::Append {
            remove_old(fs, dir)?;
            fs.create_dir_all(dir)?;
        } else if !self.is_laid_out(fs) {
            remove_old(fs, dir)?;
            fs.create_dir_all(dir)?;
            self.lay_out(fs)?;
        }
        let handles = if self.workload == Workload::RandRead {
            let open = |index| fs.open(&file_path(index));
            (0..self.files).map(open).collect::<Result<Vec<_>, _>>()?
        } else {
            Vec::new()
        };

        let progress = Progress::bytes("bench", self.total_bytes());
        let barrier = Barrier::new(self.threads as usize + 1);
        let failure: Mutex<Option<Failure>> = Mutex::new(None);
        let mut report = self.empty_report();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads)
                .map(|thread| {
                    let (barrier, failure) = (&barrier, &failure);
                    let (handles, progress) = (&handles, &progress);
                    scope.spawn(move || {
                        let buffer = self.buffer(thread);
                        barrier.wait();
                        let started = Instant::now();
                        let done = match self.workload {
                            Workload::Append => self.append(fs, thread, &buffer, progress),
                            Workload::SeqRead => self.seq_read(fs, thread, buffer, progress),
                            Workload::RandRead => self.rand_read(fs, thread, handles, progress),
                        };
                        let done = done.unwrap_or_else(|error| {
                            let mut first = failure.lock().unwrap_or_else(|p| p.into_inner());
                            first.get_or_insert(error);
                            Done::default()
                        });
                        (done, started, Instant::now())
                    })
                })
                .collect();
            let before = fs.counters();
            barrier.wait();
            let mut span = Span::default();
            for thread in threads {
                let (done, started, ended) = thread.join().expect("a bench thread panicked");
                span.cover(started, ended);
                report.latency.merge(&done.latency);
                report.user_bytes += done.user_bytes;
            }
            report.elapsed = span.elapsed();
            report.device = fs.counters() - before;
        });
        report.ops = report.latency.count();
        match failure.into_inner().unwrap_or_else(|p| p.into_inner()) {
            Some(failure) => Err(failure),
            None => Ok(report),
        }
    }

    fn empty_report(&self) -> Report {
        let name = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
        Report {
            bench: "fs",
            workload: name(&self.workload),
            ops: 0,
            user_bytes: 0,
            elapsed: Duration::ZERO,
            latency: Latency::default(),
            device: lavafs::device::DeviceCounters::default(),
            extra: Map::from_iter([
                ("bs".to_string(), json!(self.bs)),
                ("files".to_string(), json!(self.files)),
                ("file_size".to_string(), json!(self.file_size)),
                ("threads".to_string(), json!(self.threads)),
                ("sync".to_string(), json!(name(&self.sync))),
                ("qd".to_string(), json!(self.qd)),
            ]),
        }
    }

    fn total_bytes(&self) -> u64 {
        self.files.saturating_mul(self.file_size)
    }

    /// The files that belong to `thread`.
    fn own_files(&self, thread: u64) -> impl Iterator<Item = u64> {
        (thread..self.files).step_by(self.threads as usize)
    }

    /// An aligned buffer of one block with incompressible contents.
    fn buffer(&self, thread: u64) -> AlignedBuf {
        let mut buffer = AlignedBuf::zeroed(self.bs as usize);
        SmallRng::seed_from_u64(self.seed ^ thread << 32).fill_bytes(&mut buffer);
        buffer
    }

    fn append(
        &self,
        fs: &dyn FileSystem,
        thread: u64,
        buffer: &[u8],
        progress: &Progress,
    ) -> Outcome<Done> {
        let mut done = Done::default();
        let mut last = None;
        for index in self.own_files(thread) {
            let path = file_path(index);
            let file = fs.create(&path, &CreateOptions::default())?;
            let mut left = self.file_size;
            while left > 0 {
                let len = left.min(self.bs) as usize;
                let started = Instant::now();
                file.append_vectored(&[IoSlice::new(&buffer[..len])])?;
                match self.sync {
                    Sync::None => {}
                    Sync::Fdatasync => file.fdatasync()?,
                    Sync::Fsync => file.fsync()?,
                }
                done.latency.record(started.elapsed());
                left -= len as u64;
            }
            done.user_bytes += self.file_size;
            progress.add(self.file_size);
            last = Some(file);
        }
        if let (Sync::None, Some(file)) = (self.sync, last) {
            file.fdatasync()?;
        }
        Ok(done)
    }

    fn seq_read(
        &self,
        fs: &dyn FileSystem,
        thread: u64,
        mut buffer: AlignedBuf,
        progress: &Progress,
    ) -> Outcome<Done> {
        let mut done = Done::default();
        let end = self.deadline();
        loop {
            for index in self.own_files(thread) {
                let file = fs.open(&file_path(index))?;
                let mut offset = 0;
                while offset < self.file_size {
                    let len = (self.file_size - offset).min(self.bs) as usize;
                    let started = Instant::now();
                    let read = file.read_at(offset, &mut buffer[..len])?;
                    done.latency.record(started.elapsed());
                    if read != len {
                        return Err(short_read(index, offset));
                    }
                    offset += len as u64;
                    done.user_bytes += len as u64;
                    if end.is_some_and(|end| Instant::now() >= end) {
                        return Ok(done);
                    }
                }
                progress.add(self.file_size);
            }
            if end.is_none() {
                return Ok(done);
            }
        }
    }

    fn rand_read(
        &self,
        fs: &dyn FileSystem,
        thread: u64,
        files: &[FileRef],
        progress: &Progress,
    ) -> Outcome<Done> {
        let mut rng = SmallRng::seed_from_u64(self.seed ^ thread << 32);
        let per_file = self.file_size / self.bs;
        let pass = (per_file * self.files).div_ceil(self.threads);
        let batch = if self.qd == 1 {
            1
        } else {
            self.qd * BATCH_PER_DEPTH
        };
        // Buffers of one queue depth would do, but each request of a batch needs its own.
        let mut buffer = AlignedBuf::zeroed(self.bs as usize * batch);
        let mut latencies = vec![Duration::ZERO; batch];
        let mut done = Done::default();
        let end = self.deadline();
        let limit = end.unwrap_or_else(|| Instant::now() + Duration::from_secs(5));
        while Instant::now() < limit && (end.is_some() || done.latency.count() < pass) {
            let mut place = || {
                let file = &files[rng.random_range(0..files.len())];
                (file, rng.random_range(0..per_file) * self.bs)
            };
            let started = Instant::now();
            if batch == 1 {
                let (file, offset) = place();
                let read = file.read_at(offset, &mut buffer)?;
                done.latency.record(started.elapsed());
                if read as u64 != self.bs {
                    return Err(Failure::new(format!("a read at {offset} ended early")));
                }
            } else {
                let mut requests: Vec<ReadRequest<'_>> = buffer
                    .chunks_exact_mut(self.bs as usize)
                    .map(|buf| {
                        let (file, offset) = place();
                        ReadRequest {
                            file,
                            offset,
                            buf,
                            read: 0,
                        }
                    })
                    .collect();
                fs.read_batch_timed(&mut requests, self.qd, &mut latencies)?;
                latencies.iter().for_each(|&each| done.latency.record(each));
                if requests
                    .iter()
                    .any(|request| request.read as u64 != self.bs)
                {
                    return Err(Failure::new("a read ended early"));
                }
            }
            done.user_bytes += self.bs * batch as u64;
            progress.add(self.bs * batch as u64);
        }
        Ok(done)
    }

    fn deadline(&self) -> Option<Instant> {
        let runtime = self.runtime?;
        Some(Instant::now() + Duration::from_secs_f64(runtime))
    }

    fn is_laid_out(&self, fs: &dyn FileSystem) -> bool {
        (0..self.files).all(|index| {
            fs.metadata(&file_path(index))
                .is_ok_and(|metadata| metadata.size.lower() >= self.file_size)
        })
    }

    /// Makes the files that a read workload needs.
    fn lay_out(&self, fs: &dyn FileSystem) -> Outcome<()> {
        let progress = Progress::bytes("laying out", self.total_bytes());
        let mut buffer = AlignedBuf::zeroed(1 << 20);
        SmallRng::seed_from_u64(self.seed).fill_bytes(&mut buffer);
        for index in 0..self.files {
            let options = CreateOptions {
                expected_size: self.file_size,
                ..CreateOptions::default()
            };
            let file = fs.create(&file_path(index), &options)?;
            let mut left = self.file_size;
            while left > 0 {
                let len = left.min(buffer.len() as u64) as usize;
                file.append(&buffer[..len])?;
                left -= len as u64;
            }
            file.fsync()?;
            progress.add(self.file_size);
        }
        Ok(())
    }
}

fn file_path(index: u64) -> PathBuf {
    PathBuf::from(format!("{DIR}/f.{index:06}"))
}

fn short_read(index: u64, offset: u64) -> Failure {
    Failure::new(format!(
        "a read of {} at {offset} ended early",
        file_path(index).display()
    ))
}

/// Removes what an earlier run left in `dir`.
fn remove_old(fs: &dyn FileSystem, dir: &Path) -> Outcome<()> {
    let entries = match fs.list(dir) {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for entry in entries {
        let path = dir.join(&entry.name);
        fs.unlink(&path).context(|| "removing old bench files")?;
    }
    Ok(())
}
