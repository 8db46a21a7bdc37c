//! `lava demo`: the whole system on real files, through a crash and back.
//!
//! The load runs in a child process. Each batch of files is appended to a log first, durable,
//! then written to the database, durable; only then does the child report the files of the batch
//! as stored, with a hash of what it stored. When the last one is reported the parent kills the
//! child with SIGKILL, so that no destructor, no flush and no unmount runs. The parent then checks
//! the filesystem, opens both engines, and compares every byte.
//!
//! Everything that was reported must be there: a difference is a failure. A source file that
//! changed or vanished after it was loaded is told apart by the hash taken at the load.

mod load;
mod protocol;
mod verify;

use std::io::{BufRead, BufReader, BufWriter};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use lavafs::device::{self, OpenMode};
use lavafs::{CheckMode, Error, MkfsOptions};

pub use load::DemoLoad;

use self::protocol::{Event, LoadFigures, Stored};
use self::verify::Verified;
use crate::cli::{Context, Failure, Outcome, Table, human_bytes, human_count, line};
use crate::source::{Found, walk};

/// Where the default data is, in the order of preference.
const DEFAULT_DATA: [&str; 2] = ["/usr/share", "/usr"];

/// The first default directory is used if it holds at least so many regular files.
const DEFAULT_FILES_MIN: usize = 10_000;

/// The log engine's directory in the image.
const LOG_DIR: &str = "/demo/log";

/// The log's name.
const LOG_NAME: &str = "changes";

/// The database's directory in the image.
const DB_DIR: &str = "/demo/db";

/// How long the kernel may take to end what the killed process had in flight.
const LEAVING_GRACE: Duration = Duration::from_secs(60);

/// Exit code: every stored byte is verified, but some inputs could not be read.
const SKIPPED: u8 = 3;

/// Load a directory of real files, crash, recover, verify every byte, print what it cost
///
/// Makes an image file with a LavaFS, logs each file to a LavaLog and stores it in a LavaKV as
/// path -> contents, kills the loading process, recovers, checks the filesystem, and compares
/// every byte with the source files. The default data is /usr/share, or /usr where /usr/share has
/// fewer than 10,000 regular files. The image stays, to be looked at with the other commands;
/// one that is there is only replaced with -f. Exit code 0: every byte is equal; 1: failed; 3:
/// every byte that was read is equal, but some files could not be read.
#[derive(Debug, Args)]
pub struct Demo {
    /// Directory of the files to load
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Image file to make, sparse, large enough for the data
    #[arg(long, value_name = "FILE", default_value = "lava.img")]
    image: PathBuf,
    /// Replace the image file if it exists
    #[arg(short = 'f', long)]
    force: bool,
}

impl Demo {
    /// Runs the tour.
    pub fn run(&self) -> Outcome {
        let (data, found) = self.find()?;
        let bytes = found.bytes();
        if found.files.is_empty() {
            return Err(Failure::new(format!(
                "{}: no regular files below",
                data.display()
            )));
        }
        if self.image.symlink_metadata().is_ok() && !self.force {
            return Err(Failure::new(format!(
                "{} exists; -f replaces it, --image names another one",
                self.image.display()
            )));
        }
        self.make_image(bytes)?;
        line(format_args!(
            "loading {} files, {} from {} into {}",
            human_count(found.files.len() as u64),
            human_bytes(bytes),
            data.display(),
            self.image.display()
        ))?;
        let loaded = self.load_and_kill(&data, &found)?;
        line("the loading process is killed; recovering")?;
        self.await_free()?;
        self.check("after the crash")?;
        let verified = verify::verify(&self.image, &found.files, &loaded.stored)?;
        self.check("after recovery")?;
        self.print(&loaded, &verified)?;
        for problem in found.unreadable.iter().chain(&loaded.unreadable) {
            eprintln!("lava: skipped {problem}");
        }
        let unreadable = found.unreadable.len() + loaded.unreadable.len();
        line(format_args!(
            "every byte of {} pairs is equal, in the database and in the log; {} files changed or \
             vanished meanwhile, {} were unreadable; the image is {}",
            human_count(loaded.stored.len() as u64),
            human_count((loaded.gone.len() + verified.changed.len()) as u64),
            human_count(unreadable as u64),
            self.image.display()
        ))?;
        Ok(ExitCode::from(if unreadable > 0 { SKIPPED } else { 0 }))
    }

    /// The directory to load and what it holds.
    fn find(&self) -> Outcome<(PathBuf, Found)> {
        if let Some(data) = &self.data {
            return Ok((data.clone(), walk(data)?));
        }
        let [first, second] = DEFAULT_DATA.map(Path::new);
        if let Ok(found) = walk(first)
            && found.files.len() >= DEFAULT_FILES_MIN
        {
            return Ok((first.to_path_buf(), found));
        }
        Ok((second.to_path_buf(), walk(second)?))
    }

    /// Makes the image: room for the log, the write-ahead log, the tables and a compaction of
    /// them, each as large as the data, and as much again. Sparse, so that only what is
    /// written takes space.
    fn make_image(&self, bytes: u64) -> Outcome<()> {
        let size = lavafs::align_up(bytes * 6, 1 << 20) + (1 << 30);
        let device = device::create_image(&self.image, size, self.force)?;
        let options = MkfsOptions {
            label: Some("demo".to_string()),
            force: self.force,
            ..MkfsOptions::default()
        };
        lavafs::mkfs(device.as_ref(), &options)?;
        Ok(())
    }

    /// Runs the load in a child process and kills it after its last acknowledgement.
    fn load_and_kill(&self, data: &Path, found: &Found) -> Outcome<Loaded> {
        let program = std::env::current_exe().context(|| "finding this program")?;
        let mut child = Command::new(program)
            .arg("demo-load")
            .arg("--data")
            .arg(data)
            .arg("--image")
            .arg(&self.image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context(|| "starting the load")?;
        let list = child.stdin.as_mut().expect("its standard input is a pipe");
        // A child that fails early closes the pipe; its message and exit code tell more.
        let handed = protocol::write_files(&mut BufWriter::new(list), &found.files);
        let reports = child.stdout.take().expect("its standard output is a pipe");
        let loaded = Loaded::read(BufReader::new(reports), found);
        // Not a clean end: SIGKILL, while the child still holds the filesystem and both engines.
        child.kill().context(|| "killing the load")?;
        let status = child.wait().context(|| "waiting for the load")?;
        match loaded {
            Err(_) if status.code().is_some_and(|code| code != 0) => {
                Err(Failure::new("the load failed; its message is above"))
            }
            other => {
                handed.context(|| "handing the list of files over")?;
                other
            }
        }
    }

    /// Waits until nobody has the image. A killed process is gone before its requests are: the image
    /// would be looked at while they still change it.
    fn await_free(&self) -> Outcome<()> {
        let started = Instant::now();
        loop {
            match device::open(&self.image, OpenMode::ReadWrite) {
                Ok(_) => return Ok(()),
                Err(Error::InUse { .. }) if started.elapsed() < LEAVING_GRACE => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn check(&self, when: &str) -> Outcome<()> {
        let started = Instant::now();
        let device = device::open(&self.image, OpenMode::ReadOnly)?;
        let report = lavafs::check(device, CheckMode::ReadOnly)?;
        if let Some(problem) = report.problems.first() {
            return Err(Failure::new(format!(
                "fsck {when}: {} problems, the first: {}",
                report.problems.len(),
                problem.what
            )));
        }
        line(format_args!(
            "fsck {when}: clean, {} files, {} used, {:.3} s",
            human_count(report.files),
            human_bytes(report.used_blocks * lavafs::BLOCK_SIZE),
            started.elapsed().as_secs_f64()
        ))
    }

    fn print(&self, loaded: &Loaded, verified: &Verified) -> Outcome<()> {
        let figures = &loaded.figures;
        let rate = figures.user_bytes as f64 / figures.elapsed_s.max(1e-9);
        line(format_args!(
            "loaded {} pairs, {} in {:.3} s: {}/s; recovered in {:.3} s, verified in {:.3} s",
            human_count(loaded.stored.len() as u64),
            human_bytes(figures.user_bytes),
            figures.elapsed_s,
            human_bytes(rate as u64),
            verified.recovery.as_secs_f64(),
            verified.comparison.as_secs_f64(),
        ))?;
        let mut latency = Table::new(&["synced batch, us", "count", "p50", "p99", "p99.9", "max"]);
        for (name, figure) in [
            ("log append", &figures.log),
            ("database write", &figures.kv),
        ] {
            latency.row(&[
                name.to_string(),
                human_count(figure.batches),
                format!("{:.0}", figure.p50_us),
                format!("{:.0}", figure.p99_us),
                format!("{:.0}", figure.p999_us),
                format!("{:.0}", figure.max_us),
            ]);
        }
        line(latency)?;
        let engines = figures.log.bytes + figures.kv.bytes;
        let mut layers = Table::new(&[
            "layer",
            "bytes in",
            "bytes out",
            "out/in",
            "writes",
            "syncs",
        ]);
        for (name, bytes_in, bytes_out, writes, syncs) in [
            (
                "log",
                figures.user_bytes,
                figures.log.bytes,
                figures.log.appends,
                figures.log.syncs,
            ),
            (
                "database",
                figures.user_bytes,
                figures.kv.bytes,
                figures.kv.appends,
                figures.kv.syncs,
            ),
            (
                "filesystem",
                engines,
                figures.device_bytes,
                figures.device_writes,
                figures.flushes,
            ),
        ] {
            layers.row(&[
                name.to_string(),
                human_bytes(bytes_in),
                human_bytes(bytes_out),
                format!("{:.3}", bytes_out as f64 / bytes_in.max(1) as f64),
                human_count(writes),
                human_count(syncs),
            ]);
        }
        line(layers)?;
        let on_disk = self.image.metadata().context(|| self.image.display())?;
        line(format_args!(
            "device bytes per user byte, logged and stored: {:.3}; filesystem used {}, image on \
             disk {}",
            figures.device_bytes as f64 / figures.user_bytes.max(1) as f64,
            human_bytes(verified.used_bytes),
            human_bytes(on_disk.blocks() * 512),
        ))
    }
}

/// What the child reported before it was killed.
#[derive(Debug, Default)]
struct Loaded {
    /// What was acknowledged.
    stored: Vec<Stored>,
    /// Files that had vanished when they were to be loaded.
    gone: Vec<String>,
    /// Files that could not be read, each with the reason.
    unreadable: Vec<String>,
    figures: LoadFigures,
}

impl Loaded {
    /// Reads the reports until the load is done.
    fn read(reports: impl BufRead, found: &Found) -> Outcome<Loaded> {
        let mut loaded = Loaded::default();
        for report in reports.lines() {
            let report = report.context(|| "reading the load's reports")?;
            match Event::parse(&report)? {
                Event::Stored(stored) if stored.index < found.files.len() => {
                    loaded.stored.push(stored);
                }
                Event::Stored(stored) => {
                    return Err(Failure::new(format!(
                        "the directory changed: the load found a file number {}",
                        stored.index
                    )));
                }
                Event::Gone(path) => loaded.gone.push(path),
                Event::Unreadable(reason) => loaded.unreadable.push(reason),
                Event::Done(figures) => {
                    loaded.figures = figures;
                    return Ok(loaded);
                }
            }
        }
        Err(Failure::new("the load ended before it was done"))
    }
}
