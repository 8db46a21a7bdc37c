//! `lava kv`: looks at and changes a database.

mod family;
mod load;
mod stress;
mod stress_options;
mod stress_pairs;
mod text;

pub use family::Family;
pub use load::Load;
pub use stress::Stress;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};
use lavakv::{CfId, Db, DbIterator, LevelStats, Options, ReadOptions, WriteBatch, WriteOptions};
use serde_json::{Map, Value, json};

use crate::cli::{
    Access, Context, Failure, Mounted, Outcome, Progress, Target, human_bytes, human_count,
    json_line, line,
};

/// Look at and change a database
#[derive(Debug, Subcommand)]
pub enum KvCommand {
    /// Store one pair, durable on return
    Put(Put),
    /// Write a value to standard output; exit code 1 where the key does not exist
    Get(Key),
    /// Delete a key, durable on return
    Delete(Key),
    /// Print pairs in the order of their keys
    Scan(Scan),
    /// Load a directory of files, or a file of TSV or JSON lines
    Load(Load),
    /// Print all pairs of a column family as TSV or JSON lines, as load reads them
    Dump(Dump),
    /// Print the database's figures
    Stats(Stats),
    /// Compact the whole database
    Compact(Whole),
    /// Check every checksum and every reference, changing nothing; exit code 1 on a problem
    Verify(Verify),
    /// Make a damaged database open again, with everything that its files still hold
    Repair(Repair),
    /// Run random operations for a time and check every result
    Stress(Stress),
}

/// `lava kv repair`.
#[derive(Debug, Args)]
pub struct Repair {
    #[command(flatten)]
    at: Where,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The database that every command needs.
#[derive(Debug, Args)]
pub struct Where {
    /// Block device, image file or host:DIR
    #[arg(long, value_name = "TARGET")]
    fs: Target,
    /// Directory of the database in the filesystem
    #[arg(long, value_name = "PATH")]
    db: PathBuf,
}

/// `lava kv put`.
#[derive(Debug, Args)]
pub struct Put {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    family: Family,
    /// The key
    key: OsString,
    /// The value
    value: OsString,
}

/// One key of a database.
#[derive(Debug, Args)]
pub struct Key {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    family: Family,
    /// The key
    key: OsString,
}

/// `lava kv scan`.
#[derive(Debug, Args)]
pub struct Scan {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    family: Family,
    /// First key
    #[arg(long)]
    from: Option<OsString>,
    /// End: the first key that is not printed
    #[arg(long)]
    to: Option<OsString>,
    /// Only keys that begin so
    #[arg(long, conflicts_with_all = ["from", "to"])]
    prefix: Option<OsString>,
    /// At most so many pairs
    #[arg(long)]
    limit: Option<u64>,
    /// Print keys and the length of each value, not the value
    #[arg(long)]
    keys: bool,
    /// Print JSON objects
    #[arg(long)]
    json: bool,
}

/// `lava kv dump`.
#[derive(Debug, Args)]
pub struct Dump {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    family: Family,
    /// How to print pairs
    #[arg(long, default_value = "tsv")]
    format: TextFormat,
}

/// `lava kv stats`.
#[derive(Debug, Args)]
pub struct Stats {
    #[command(flatten)]
    at: Where,
    /// Print what Prometheus scrapes
    #[arg(long, conflicts_with = "json")]
    prometheus: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A whole database.
#[derive(Debug, Args)]
pub struct Whole {
    #[command(flatten)]
    at: Where,
}

/// `lava kv verify`.
#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    at: Where,
    /// Also compare the garbage of blob files, as accounted, with a scan of all their records
    #[arg(long)]
    garbage: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A text form of pairs. TSV: `key TAB value`, with backslash, tab, newline and every byte that
/// is not printable UTF-8 written as `\\`, `\t`, `\n`, `\xHH`. JSON: `{"key":..,"value":..}`, with
/// `key_hex` or `value_hex` for what is not UTF-8.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TextFormat {
    /// `key TAB value` lines
    Tsv,
    /// JSON objects, one a line
    Jsonl,
}

impl KvCommand {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        match self {
            KvCommand::Put(put) => put.at.with(false, |db| {
                let (key, value) = (put.key.into_vec(), put.value.into_vec());
                let mut batch = WriteBatch::new();
                batch.put_cf(put.family.of(db)?, &key, &value);
                Ok(db.write(batch, &WriteOptions::synced())?)
            }),
            KvCommand::Get(key) => key.get(),
            KvCommand::Delete(key) => key.at.with(true, |db| {
                let mut batch = WriteBatch::new();
                batch.delete_cf(key.family.of(db)?, &key.key.into_vec());
                Ok(db.write(batch, &WriteOptions::synced())?)
            }),
            KvCommand::Scan(scan) => scan.run(),
            KvCommand::Load(load) => load.run(),
            KvCommand::Dump(dump) => dump.run(),
            KvCommand::Stats(stats) => stats.run(),
            KvCommand::Compact(whole) => {
                whole.at.with(true, |db| Ok(db.compact_range(None, None)?))
            }
            KvCommand::Verify(verify) => verify.run(),
            KvCommand::Repair(repair) => repair.run(),
            KvCommand::Stress(stress) => stress.run(),
        }
    }
}

impl Where {
    /// Opens the database, works on it, closes it and unmounts. With `existing`, a database
    /// that does not exist is an error; otherwise it is made.
    fn with(&self, existing: bool, work: impl FnOnce(&Db) -> Outcome<()>) -> Outcome {
        let mounted = self.fs.open(Access::ReadWrite)?;
        mounted.with(|_, mounted| {
            let db = self.open(mounted, existing)?;
            let result = work(&db);
            let closed = db.close();
            result?;
            Ok(closed?)
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// Opens the database for reading alone, on a target that nothing is written to.
    fn look(&self, work: impl FnOnce(&Db) -> Outcome<()>) -> Outcome {
        let mounted = self.fs.open(Access::ReadOnly)?;
        mounted.with(|_, mounted| {
            if !self.directory_exists(mounted)? {
                return Err(Failure::new(format!(
                    "no database at {}",
                    self.db.display()
                )));
            }
            let fs = Arc::clone(mounted.fs());
            let db = Db::open_read_only(fs, &self.db, self.options(mounted))?;
            work(&db)
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn open(&self, mounted: &Mounted, existing: bool) -> Outcome<Db> {
        if existing && !self.directory_exists(mounted)? {
            return Err(Failure::new(format!(
                "no database at {}",
                self.db.display()
            )));
        }
        let options = Options {
            create_if_missing: !existing,
            ..self.options(mounted)
        };
        Ok(Db::open(Arc::clone(mounted.fs()), &self.db, options)?)
    }

    /// The options that the database was opened with last, which its shape is for; the default ones where
    /// it has none that read back.
    fn options(&self, mounted: &Mounted) -> Options {
        Options::load(mounted.fs(), &self.db).unwrap_or_default()
    }

    fn directory_exists(&self, mounted: &Mounted) -> Outcome<bool> {
        match mounted.fs().metadata(&self.db) {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error).context(|| self.db.display()),
        }
    }
}

/// Hands an iterator at each of at most `limit` pairs of a column family within the options' bounds to `each`.
fn print_pairs(
    db: &Db,
    cf: CfId,
    options: &ReadOptions,
    limit: u64,
    mut each: impl FnMut(&DbIterator) -> Outcome<()>,
) -> Outcome<()> {
    let mut pairs = db.iter_cf(cf, options)?;
    pairs.seek_to_first();
    let mut left = limit;
    while left > 0 && pairs.valid() {
        each(&pairs)?;
        pairs.next();
        left -= 1;
    }
    Ok(pairs.status()?)
}

impl Key {
    fn get(self) -> Outcome {
        use std::io::Write;
        let key = self.key.into_vec();
        self.at.look(|db| {
            let cf = self.family.of(db)?;
            let Some(value) = db.get_cf(cf, &key, &ReadOptions::default())? else {
                return Err(Failure::new(format!(
                    "key not found: {}",
                    text::escaped(&key)
                )));
            };
            let mut out = std::io::stdout().lock();
            out.write_all(&value)?;
            Ok(out.flush()?)
        })
    }
}

impl Scan {
    fn run(self) -> Outcome {
        let bytes = |text: Option<OsString>| text.map(OsStringExt::into_vec);
        let options = ReadOptions {
            lower_bound: bytes(self.from),
            upper_bound: bytes(self.to),
            prefix: bytes(self.prefix),
            // Lengths are told without a read.
            lazy_values: self.keys,
            ..ReadOptions::default()
        };
        self.at.look(|db| {
            print_pairs(
                db,
                self.family.of(db)?,
                &options,
                self.limit.unwrap_or(u64::MAX),
                |at| match (self.json, self.keys) {
                    (true, true) => json_line(&text::json_key(at.key(), at.value_len())),
                    (true, false) => json_line(&text::json_object(at.key(), at.value())),
                    (false, true) => {
                        let key = text::escaped(at.key());
                        line(format_args!("{key}\t{}", at.value_len()))
                    }
                    (false, false) => line(text::tsv_line(at.key(), at.value())),
                },
            )
        })
    }
}

impl Dump {
    fn run(self) -> Outcome {
        self.at.look(|db| {
            let cf = self.family.of(db)?;
            print_pairs(db, cf, &ReadOptions::default(), u64::MAX, |at| {
                line(match self.format {
                    TextFormat::Tsv => text::tsv_line(at.key(), at.value()),
                    TextFormat::Jsonl => text::json_object(at.key(), at.value()).to_string(),
                })
            })?;
            let others = db.cfs().into_iter().filter(|(id, _)| *id != cf);
            let others: Vec<String> = others.map(|(_, name)| name).collect();
            if !others.is_empty() {
                let names = others.join(", ");
                eprintln!("lava: other column families, to be asked for with --cf: {names}");
            }
            Ok(())
        })
    }
}

impl Stats {
    fn run(self) -> Outcome {
        self.at.look(|db| {
            if self.prometheus {
                return line(db.metrics_text().trim_end());
            }
            let stats = db.stats();
            if self.json {
                return json_line(&stats_json(&stats));
            }
            line(stats.to_string().trim_end())
        })
    }
}

fn stats_json(stats: &lavakv::Stats) -> Value {
    let level = |level: &LevelStats| json!({ "runs": level.runs, "files": level.files, "bytes": level.bytes });
    let tickers = stats.tickers.named();
    json!({
        "levels": stats.levels.iter().map(level).collect::<Vec<_>>(),
        "table_entries": stats.table_entries,
        "table_deletions": stats.table_deletions,
        "memtable_bytes": stats.memtable_bytes,
        "memtable_entries": stats.memtable_entries,
        "pending_compaction_bytes": stats.pending_compaction_bytes,
        "last_sequence": stats.last_sequence,
        "blobs": {
            "files": stats.blobs.files,
            "file_bytes": stats.blobs.file_bytes,
            "value_bytes": stats.blobs.value_bytes,
            "garbage_bytes": stats.blobs.garbage_bytes,
            "garbage_ratio": stats.blobs.garbage_ratio(),
            "shadowed_bytes_estimate": stats.blobs.shadowed_bytes,
            "ancestors": stats.blobs.ancestors,
        },
        "tickers": tickers
            .into_iter()
            .map(|(name, value)| (name.to_string(), json!(value)))
            .collect::<Map<String, Value>>(),
    })
}

impl Repair {
    fn run(self) -> Outcome {
        let mounted = self.at.fs.open(Access::ReadWrite)?;
        mounted.with(|_, mounted| {
            if !self.at.directory_exists(mounted)? {
                let at = self.at.db.display();
                return Err(Failure::new(format!("no database at {at}")));
            }
            let options = self.at.options(mounted);
            let report = Db::repair(mounted.fs(), &self.at.db, &options)?;
            if self.json {
                let lost = |(path, why): &(PathBuf, String)| json!({ "file": path.display().to_string(), "why": why });
                return json_line(&json!({
                    "manifest_kept": report.manifest_kept,
                    "cfs": report.cfs,
                    "tables": report.tables,
                    "entries": report.entries,
                    "logs": report.logs,
                    "blobs": report.blobs,
                    "lost_values": report.lost_values,
                    "lost_keys": report.lost_keys.iter().map(|(_, key)| text::escaped(key)).collect::<Vec<_>>(),
                    "set_aside": report.set_aside.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
                    "lost": report.lost.iter().map(lost).collect::<Vec<_>>(),
                }));
            }
            for (path, why) in &report.lost {
                line(format_args!("lost: {}: {why}", path.display()))?;
            }
            for (cf, key) in &report.lost_keys {
                line(format_args!(
                    "lost value: key {} of column family {}",
                    key.escape_ascii(),
                    cf.0
                ))?;
            }
            if report.lost_values > report.lost_keys.len() as u64 {
                line(format_args!("lost values: {}", report.lost_values))?;
            }
            for path in &report.set_aside {
                line(format_args!("set aside: {}", path.display()))?;
            }
            line(format_args!(
                "{} entries in {} sound tables; {} blob files; {} logs; manifest {}",
                human_count(report.entries),
                human_count(report.tables),
                human_count(report.blobs),
                human_count(report.logs),
                match report.manifest_kept {
                    true => "kept",
                    false => "rebuilt",
                },
            ))
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Verify {
    fn run(self) -> Outcome {
        self.at.look(|db| {
            let progress = Progress::items("verifying", 1);
            let report = db.verify()?;
            let garbage = self.garbage.then(|| db.verify_garbage()).transpose()?;
            progress.add(1);
            if self.json {
                let mut object = json!({
                    "clean": true,
                    "tables": report.tables,
                    "entries": report.entries,
                    "bytes": report.table_bytes,
                    "blobs": report.blobs,
                    "blob_bytes": report.blob_bytes,
                    "logs": report.logs,
                });
                if let Some(garbage) = garbage {
                    object["garbage"] = json!({
                        "records": garbage.records,
                        "value_bytes": garbage.value_bytes,
                        "garbage_bytes": garbage.garbage_bytes,
                        "shadowed_bytes": garbage.shadowed_bytes,
                    });
                }
                return json_line(&object);
            }
            line(format_args!(
                "clean: {} entries in {} tables, {}; {} blob files, {}; {} logs",
                human_count(report.entries),
                human_count(report.tables),
                human_bytes(report.table_bytes),
                human_count(report.blobs),
                human_bytes(report.blob_bytes),
                human_count(report.logs),
            ))?;
            let Some(garbage) = garbage else {
                return Ok(());
            };
            line(format_args!(
                "garbage as accounted: {} of {} of values in {} records; {} more are shadowed",
                human_bytes(garbage.garbage_bytes),
                human_bytes(garbage.value_bytes),
                human_count(garbage.records),
                human_bytes(garbage.shadowed_bytes),
            ))
        })
    }
}
