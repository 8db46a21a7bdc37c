//! `lava log`: looks at and changes the logs of a log engine.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use lavafs::{DirEntry, FileSystem};
use lavalog::{LogConfig, LogEngine, LogOptions, LogStats, Mode, ScanItem};
use serde_json::json;

use crate::cli::{Access, Context, Failure, Outcome, Table, Target, human_count, json_line, line};
use crate::log_stats;

/// Look at and change logs
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Make a log
    Create(Create),
    /// Append one record, durable on return, and print its LSN
    Append(Append),
    /// Write one record to standard output
    Read(Read),
    /// List the records and gaps of a range of LSNs
    Scan(Scan),
    /// Give up all records below an LSN, durable on return
    Trim(Trim),
    /// Delete a log with its records
    Delete(Named),
    /// List the logs
    Ls(List),
    /// Print figures of both physical logs: what is alive, on disk, dead and durable
    Stats(List),
    /// Read every record of every log and check it, changing nothing; exit code 1 on a problem
    Verify(List),
}

/// The log engine that every command needs.
#[derive(Debug, Args)]
struct Where {
    /// Block device, image file or host:DIR
    #[arg(long, value_name = "TARGET")]
    fs: Target,
    /// Directory of the log engine in the filesystem
    #[arg(long, value_name = "PATH")]
    log: PathBuf,
}

/// `lava log create`.
#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    at: Where,
    /// Take the last LSN + 1 only
    #[arg(long)]
    dense: bool,
    /// The log's name
    name: String,
}

/// `lava log append`.
#[derive(Debug, Args)]
pub struct Append {
    #[command(flatten)]
    at: Where,
    /// The record's LSN; by default the last + 1, or 1 in an empty log
    #[arg(long)]
    lsn: Option<u64>,
    /// The log's name
    name: String,
    /// The record; standard input by default
    data: Option<OsString>,
}

/// `lava log read`.
#[derive(Debug, Args)]
pub struct Read {
    #[command(flatten)]
    at: Where,
    /// The log's name
    name: String,
    /// The record's LSN
    lsn: u64,
}

/// `lava log scan`.
#[derive(Debug, Args)]
pub struct Scan {
    #[command(flatten)]
    at: Where,
    /// First LSN
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Last LSN
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    to: u64,
    /// Print JSON objects
    #[arg(long)]
    json: bool,
    /// The log's name
    name: String,
}

/// `lava log trim`.
#[derive(Debug, Args)]
pub struct Trim {
    #[command(flatten)]
    at: Where,
    /// The log's name
    name: String,
    /// The lowest LSN to keep
    before: u64,
}

/// One log.
#[derive(Debug, Args)]
pub struct Named {
    #[command(flatten)]
    at: Where,
    /// The log's name
    name: String,
}

/// All logs.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    at: Where,
    /// Print JSON objects
    #[arg(long)]
    json: bool,
}

impl LogCommand {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        match self {
            LogCommand::Create(create) => create.at.with(false, |engine| {
                let mode = if create.dense {
                    Mode::Dense
                } else {
                    Mode::default()
                };
                engine.create(&create.name, LogConfig { mode })?;
                Ok(())
            }),
            LogCommand::Append(append) => append.run(),
            LogCommand::Read(read) => read.at.look(|engine| {
                let data = engine.open_log(&read.name)?.read(read.lsn)?;
                let mut out = std::io::stdout().lock();
                out.write_all(&data)?;
                Ok(out.flush()?)
            }),
            LogCommand::Scan(scan) => scan.run(),
            LogCommand::Trim(trim) => trim.at.with(true, |engine| {
                engine.open_log(&trim.name)?.trim_before(trim.before)?;
                Ok(engine.sync()?)
            }),
            LogCommand::Delete(named) => named
                .at
                .with(true, |engine| Ok(engine.delete(&named.name)?)),
            LogCommand::Ls(list) => list.at.look(|engine| list.print(engine)),
            LogCommand::Stats(list) => list.stats(),
            LogCommand::Verify(list) => list.at.look(|engine| list.verify(engine)),
        }
    }
}

impl Where {
    /// Opens the engine, works on it, closes it and unmounts. With `existing`, a directory without one
    /// is an error; otherwise it is made.
    fn with(&self, existing: bool, work: impl FnOnce(&LogEngine) -> Outcome<()>) -> Outcome {
        let mounted = self.fs.open(Access::ReadWrite)?;
        mounted.with(|fs, mounted| {
            if existing {
                self.check_exists(fs)?;
            }
            let options = LogOptions::default();
            let engine = LogEngine::open(Arc::clone(mounted.fs()), &self.log, &options)?;
            let result = work(&engine);
            let closed = engine.close();
            result?;
            Ok(closed?)
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// Opens the engine for reading alone, on a target that nothing is written to.
    fn look(&self, work: impl FnOnce(&LogEngine) -> Outcome<()>) -> Outcome {
        let mounted = self.fs.open(Access::ReadOnly)?;
        mounted.with(|fs, mounted| {
            self.check_exists(fs)?;
            let fs = Arc::clone(mounted.fs());
            work(&LogEngine::open_read_only(fs, &self.log)?)
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn check_exists(&self, fs: &dyn FileSystem) -> Outcome<()> {
        let none = |why| {
            let at = self.log.display();
            Err(Failure::new(format!("no log engine at {at}: {why}")))
        };
        match fs.list(&self.log) {
            Err(error) if error.is_not_found() => none("not found"),
            Ok(entries) if !entries.iter().any(is_metalog) => none("no metalog"),
            other => other.map(drop).context(|| self.log.display()),
        }
    }
}

/// True for the file that every log engine's directory has.
fn is_metalog(entry: &DirEntry) -> bool {
    let name = entry.name.as_encoded_bytes();
    name.starts_with(b"meta-") && name.ends_with(b".log")
}

impl Append {
    fn run(self) -> Outcome {
        let data = match self.data {
            Some(data) => data.into_vec(),
            None => {
                let mut data = Vec::new();
                std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut data)
                    .context(|| "standard input")?;
                data
            }
        };
        self.at.with(true, |engine| {
            let log = engine.open_log(&self.name)?;
            let lsn = match (self.lsn, log.last()) {
                (Some(lsn), _) => lsn,
                (None, None) => log.floor().max(1),
                (None, Some(last)) => last.checked_add(1).ok_or_else(|| {
                    Failure::new(format!("no LSN follows {last}: give one with --lsn"))
                })?,
            };
            log.append(lsn, &data, true)?;
            line(lsn)
        })
    }
}

impl Scan {
    fn run(self) -> Outcome {
        self.at.look(|engine| {
            let log = engine.open_log(&self.name)?;
            for item in log.scan(self.from..=self.to) {
                match (item?, self.json) {
                    (ScanItem::Entry { lsn, data }, false) => {
                        line(format_args!("{lsn}\t{} bytes", data.len()))?;
                    }
                    (ScanItem::Entry { lsn, data }, true) => {
                        json_line(&json!({ "lsn": lsn, "len": data.len() }))?;
                    }
                    (ScanItem::Gap { kind, lsns }, false) => {
                        let kind = format!("{kind:?}").to_lowercase();
                        line(format_args!(
                            "{}..{}\tgap: {kind}",
                            lsns.start(),
                            lsns.end()
                        ))?;
                    }
                    (ScanItem::Gap { kind, lsns }, true) => {
                        let kind = format!("{kind:?}").to_lowercase();
                        json_line(&json!({
                            "gap": kind, "from": lsns.start(), "to": lsns.end(),
                        }))?;
                    }
                }
            }
            Ok(())
        })
    }
}

impl List {
    fn print(&self, engine: &LogEngine) -> Outcome<()> {
        let mut table = Table::new(&["name", "records", "floor", "first", "last"]);
        for name in engine.list() {
            let log = engine.open_log(&name)?;
            if self.json {
                json_line(&json!({
                    "name": name,
                    "records": log.len(),
                    "floor": log.floor(),
                    "first": log.first(),
                    "last": log.last(),
                }))?;
                continue;
            }
            let number = |lsn: Option<u64>| lsn.map_or("-".to_string(), |lsn| lsn.to_string());
            table.row(&[
                name,
                human_count(log.len()),
                log.floor().to_string(),
                number(log.first()),
                number(log.last()),
            ]);
        }
        if self.json { Ok(()) } else { line(table) }
    }

    fn stats(&self) -> Outcome {
        let mounted = self.at.fs.open(Access::ReadOnly)?;
        mounted.with(|fs, mounted| {
            self.at.check_exists(fs)?;
            let stats = LogStats::read(mounted.fs(), &self.at.log)?;
            if self.json {
                return json_line(&log_stats::object(&stats));
            }
            line(log_stats::text(&stats))
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn verify(&self, engine: &LogEngine) -> Outcome<()> {
        let (mut records, mut bytes) = (0u64, 0u64);
        let names = engine.list();
        for name in &names {
            let log = engine.open_log(name)?;
            let mut found = 0;
            for item in log.scan(..) {
                if let ScanItem::Entry { data, .. } = item.context(|| name)? {
                    found += 1;
                    bytes += data.len() as u64;
                }
            }
            if found != log.len() {
                return Err(Failure::new(format!(
                    "{name}: {found} records are there, {} are indexed",
                    log.len()
                )));
            }
            records += found;
        }
        if self.json {
            return json_line(&json!({
                "clean": true, "logs": names.len(), "records": records, "bytes": bytes,
            }));
        }
        line(format_args!(
            "clean: {} records in {} logs, {} bytes",
            human_count(records),
            human_count(names.len() as u64),
            human_count(bytes),
        ))
    }
}
