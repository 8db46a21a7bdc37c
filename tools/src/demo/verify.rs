//! After the crash: opens the filesystem and both engines, and compares every byte.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lavakv::{Db, Options, ReadOptions};
use lavalog::{LogEngine, LogOptions, ScanItem};
use xxhash_rust::xxh3::xxh3_64;

use super::protocol::{Stored, decode_change};
use super::{DB_DIR, LOG_DIR, LOG_NAME};
use crate::cli::{Access, Context, Failure, Outcome, Progress, Target};
use crate::source::SourceFile;

/// What the comparison found; a lost or changed byte is a failure instead.
#[derive(Debug)]
pub(super) struct Verified {
    /// Files whose source changed or vanished after the load. What was stored is verified by hash.
    pub(super) changed: Vec<String>,
    /// Time to mount and to open both engines.
    pub(super) recovery: Duration,
    /// Time to compare.
    pub(super) comparison: Duration,
    /// Bytes used in the filesystem.
    pub(super) used_bytes: u64,
}

/// Compares what the image holds with what was acknowledged and with the source files.
pub(super) fn verify(image: &Path, files: &[SourceFile], stored: &[Stored]) -> Outcome<Verified> {
    let started = Instant::now();
    let mounted = Target::Device(image.to_path_buf()).open(Access::ReadWrite)?;
    mounted.with(|fs, mounted| {
        let log_dir = Path::new(LOG_DIR);
        let engine = LogEngine::open(Arc::clone(mounted.fs()), log_dir, &LogOptions::default())?;
        let db = Db::open(
            Arc::clone(mounted.fs()),
            Path::new(DB_DIR),
            Options::default(),
        )?;
        let recovery = started.elapsed();

        let started = Instant::now();
        let progress = Progress::items("verifying", 2 * stored.len() as u64);
        let changed = verify_database(&db, files, stored, &progress)?;
        verify_log(&engine, files, stored, &progress)?;
        let comparison = started.elapsed();
        let closed = db.close();
        engine.close()?;
        closed?;
        let space = fs.space();
        Ok(Verified {
            changed,
            recovery,
            comparison,
            used_bytes: space.total - space.free,
        })
    })
}

/// Every acknowledged pair is in the database as it was stored, and nothing else is. Returns
/// the files whose source is not what it was.
fn verify_database(
    db: &Db,
    files: &[SourceFile],
    stored: &[Stored],
    progress: &Progress,
) -> Outcome<Vec<String>> {
    let mut changed = Vec::new();
    for item in stored {
        let file = &files[item.index];
        let value = db.get(&file.key, &ReadOptions::default())?;
        let value = value.ok_or_else(|| lost(file, "is not in the database"))?;
        if !matches(item, &value) {
            return Err(lost(file, "has other bytes in the database"));
        }
        match file.read() {
            Ok(contents) if contents == value => {}
            // Other bytes than were loaded, which the database has: the source changed.
            Ok(_) | Err(_) => {
                let name = file.path.display().to_string();
                eprintln!("lava: {name}: changed or vanished since it was loaded");
                changed.push(name);
            }
        }
        progress.add(1);
    }
    let mut pairs = db.iter(&ReadOptions::default())?;
    pairs.seek_to_first();
    let mut count = 0;
    while pairs.valid() {
        count += 1;
        pairs.next();
    }
    pairs.status()?;
    if count != stored.len() {
        return Err(Failure::new(format!(
            "the database holds {count} pairs; {} were stored",
            stored.len()
        )));
    }
    Ok(changed)
}

/// Every acknowledged change is in the log as it was appended, and nothing else is.
fn verify_log(
    engine: &LogEngine,
    files: &[SourceFile],
    stored: &[Stored],
    progress: &Progress,
) -> Outcome<()> {
    let log = engine.open_log(LOG_NAME)?;
    let mut expected: Vec<Option<&Stored>> = vec![None; files.len()];
    for item in stored {
        expected[item.index] = Some(item);
    }
    let mut count = 0;
    for item in log.scan(..) {
        let ScanItem::Entry { lsn, data } = item.context(|| "reading the log")? else {
            continue;
        };
        let index = (lsn as usize).wrapping_sub(1);
        let Some(Some(item)) = expected.get(index) else {
            return Err(Failure::new(format!(
                "the log holds a record {lsn} that was never appended"
            )));
        };
        let file = &files[index];
        match decode_change(&data) {
            Some((key, contents)) if key == file.key && matches(item, contents) => {}
            _ => return Err(lost(file, "has other bytes in the log")),
        }
        count += 1;
        progress.add(1);
    }
    if count != stored.len() {
        return Err(Failure::new(format!(
            "the log holds {count} records; {} were appended",
            stored.len()
        )));
    }
    Ok(())
}

fn matches(stored: &Stored, bytes: &[u8]) -> bool {
    bytes.len() as u64 == stored.len && xxh3_64(bytes) == stored.hash
}

fn lost(file: &SourceFile, what: &str) -> Failure {
    Failure::new(format!("{} {what}", file.path.display()))
}
