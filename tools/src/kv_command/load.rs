//! `lava kv load`: every input a pair, every pair durable before it counts.
//!
//! A producer hands pairs to a few loader threads; each stores its pair with a synced write, and
//! the engine lets concurrent writes share one sync. With `--ack` a pair's key is printed after
//! its write has returned, never before: a process that is killed has lost none of them.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::{Args, ValueEnum};
use crossbeam_channel::{Receiver, Sender, bounded};
use lavakv::{Db, WriteBatch, WriteOptions};
use serde_json::json;

use super::text::{self, Pair};
use super::{Family, Where};
use crate::cli::{Context, Failure, Outcome, Progress, human_bytes, human_count, json_line, line};
use crate::source::{SourceFile, walk};

/// Exit code: everything that could be read is loaded, but some inputs could not be read.
pub(crate) const SKIPPED: u8 = 3;

/// Load a directory of files, or a file of TSV or JSON lines
///
/// Each regular file below a directory becomes a pair: its path relative to the directory, and
/// its contents; symbolic links and special files are left out. A TSV line is `key TAB value`
/// with \t, \n, \\ and \xHH as escapes; a JSON line is {"key":"..","value":".."}, with "key_hex" or
/// "value_hex" for bytes that are not UTF-8. Each pair is durable before it counts. Inputs that
/// cannot be read are named on stderr, counted and skipped. Exit code 0: all loaded; 1: failed;
/// 2: wrong command line; 3: some inputs were skipped, the rest is loaded.
#[derive(Debug, Args)]
pub struct Load {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    family: Family,
    /// What the input is; by default a directory, or by the file's name (.tsv, .json, .jsonl)
    #[arg(long)]
    format: Option<Format>,
    /// Loader threads; their syncs are shared
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Print each key on a line of its own once its pair is durable
    #[arg(long)]
    ack: bool,
    /// Print one JSON object at the end
    #[arg(long, conflicts_with = "ack")]
    json: bool,
    /// Directory or file
    input: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// Each regular file a pair
    Dir,
    /// `key TAB value` lines
    Tsv,
    /// JSON objects, one a line
    Jsonl,
}

/// What the loaders have done.
#[derive(Debug, Default)]
struct Tally {
    pairs: AtomicU64,
    bytes: AtomicU64,
    skipped: AtomicU64,
    failure: Mutex<Option<Failure>>,
}

impl Tally {
    fn skip(&self, what: impl std::fmt::Display) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
        eprintln!("lava: skipped {what}");
    }

    fn fail(&self, failure: Failure) {
        let mut first = self.failure.lock().unwrap_or_else(|p| p.into_inner());
        first.get_or_insert(failure);
    }
}

/// What a loader is given.
enum Work {
    File(SourceFile),
    Pair(Pair),
}

impl Load {
    /// Loads everything and prints what was loaded.
    pub(super) fn run(self) -> Outcome {
        let format = self.format()?;
        let files = match format {
            Format::Dir => {
                let found = walk(&self.input)?;
                Some(found)
            }
            _ => None,
        };
        let tally = Tally::default();
        let started = Instant::now();
        self.at.with(false, |db| match &files {
            Some(found) => {
                for problem in &found.unreadable {
                    tally.skip(problem);
                }
                let progress = Progress::bytes("loading", found.bytes());
                self.load(db, &tally, &progress, |work| {
                    for file in &found.files {
                        if work.send(Work::File(file.clone())).is_err() {
                            break;
                        }
                    }
                    Ok(())
                })
            }
            None => {
                let input = File::open(&self.input).context(|| self.input.display())?;
                let size = input.metadata().context(|| self.input.display())?.len();
                let progress = Progress::bytes("loading", size);
                self.load(db, &tally, &progress, |work| {
                    self.read_lines(format, input, &tally, work)
                })
            }
        })?;
        let elapsed = started.elapsed().as_secs_f64();
        let (pairs, bytes) = (tally.pairs.into_inner(), tally.bytes.into_inner());
        let skipped = tally.skipped.into_inner();
        if self.json {
            json_line(&json!({
                "pairs": pairs, "bytes": bytes, "skipped": skipped, "elapsed_s": elapsed,
            }))?;
        } else if !self.ack {
            line(format_args!(
                "loaded {} pairs, {} in {elapsed:.3} s; {} inputs skipped",
                human_count(pairs),
                human_bytes(bytes),
                human_count(skipped),
            ))?;
        }
        Ok(ExitCode::from(if skipped > 0 { SKIPPED } else { 0 }))
    }

    fn format(&self) -> Outcome<Format> {
        if let Some(format) = self.format {
            return Ok(format);
        }
        let metadata = self.input.metadata().context(|| self.input.display())?;
        if metadata.is_dir() {
            return Ok(Format::Dir);
        }
        match self.input.extension().and_then(|e| e.to_str()) {
            Some("tsv") => Ok(Format::Tsv),
            Some("json" | "jsonl" | "ndjson") => Ok(Format::Jsonl),
            _ => Err(Failure::usage(format!(
                "{}: neither a directory nor named .tsv, .json or .jsonl; give --format",
                self.input.display()
            ))),
        }
    }

    /// Runs the loaders on what `produce` sends. The first failure stops all of them.
    fn load(
        &self,
        db: &Db,
        tally: &Tally,
        progress: &Progress,
        produce: impl FnOnce(&Sender<Work>) -> Outcome<()>,
    ) -> Outcome<()> {
        let (sender, receiver) = bounded(usize::from(self.threads));
        let produced = std::thread::scope(|scope| {
            for _ in 0..self.threads {
                let receiver = receiver.clone();
                scope.spawn(move || {
                    if let Err(failure) = self.loader(db, tally, progress, &receiver) {
                        tally.fail(failure);
                    }
                });
            }
            // When the last loader has failed and dropped its end, sending fails.
            drop(receiver);
            let produced = produce(&sender);
            drop(sender);
            produced
        });
        let failure = tally
            .failure
            .lock()
            .unwrap_or_else(|p| p.into_inner())
            .take();
        match failure {
            Some(failure) => Err(failure),
            None => produced,
        }
    }

    fn loader(
        &self,
        db: &Db,
        tally: &Tally,
        progress: &Progress,
        work: &Receiver<Work>,
    ) -> Outcome<()> {
        let cf = self.family.of(db)?;
        for item in work {
            let (key, value) = match item {
                Work::Pair(pair) => pair,
                Work::File(file) => match file.read() {
                    Ok(contents) => (file.key, contents),
                    Err(failure) => {
                        tally.skip(failure);
                        continue;
                    }
                },
            };
            let mut batch = WriteBatch::with_capacity(key.len() + value.len() + 16);
            batch.put_cf(cf, &key, &value);
            db.write(batch, &WriteOptions::synced())?;
            let bytes = (key.len() + value.len()) as u64;
            tally.pairs.fetch_add(1, Ordering::Relaxed);
            tally.bytes.fetch_add(bytes, Ordering::Relaxed);
            progress.add(bytes);
            if self.ack {
                line(text::escaped(&key))?;
            }
        }
        Ok(())
    }

    fn read_lines(
        &self,
        format: Format,
        input: File,
        tally: &Tally,
        work: &Sender<Work>,
    ) -> Outcome<()> {
        let mut input = BufReader::new(input);
        let mut text = Vec::new();
        for number in 1.. {
            text.clear();
            let read = input.read_until(b'\n', &mut text);
            if read.context(|| self.input.display())? == 0 {
                break;
            }
            let line = text.strip_suffix(b"\n").unwrap_or(&text);
            if line.is_empty() {
                continue;
            }
            let parsed = match format {
                Format::Tsv => text::parse_tsv(line),
                _ => text::parse_json(line),
            };
            match parsed {
                Ok(pair) => {
                    if work.send(Work::Pair(pair)).is_err() {
                        break;
                    }
                }
                Err(why) => tally.skip(place(&self.input, number, &why)),
            }
        }
        Ok(())
    }
}

fn place(file: &Path, line: u64, why: &str) -> String {
    format!("{} line {line}: {why}", file.display())
}
