//! `verify`: everything that a database's files can be checked for, without changing any.
//!
//! Checked: every block and file checksum of every table; that a table's keys ascend, are within
//! the range the manifest gives it, and as many as it says; that runs of a level do not overlap
//! within themselves; every blob file, and that it holds what the manifest says; that every file the manifest names is there with its size; that the manifest
//! in force reads back as the structure in memory; that closed logs replay.
//!
//! It works on one version that it holds, so that writers, flushes and compactions may go on.

use std::sync::Arc;

use crate::db::engine::Engine;
use crate::error::{Error, Result};
use crate::file_names::FileName;
use crate::options::WalRecoveryMode;
use crate::version::{BlobFile, BlobMeta, BlobSet, LiveBlob, Recovered, SstFile};
use crate::write::wal;

/// What was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VerifyReport {
    /// Column families.
    pub cfs: u64,
    /// Tables.
    pub tables: u64,
    /// Bytes of tables.
    pub table_bytes: u64,
    /// Entries in tables, deletions and hidden versions included.
    pub entries: u64,
    /// Blob files.
    pub blobs: u64,
    /// Bytes of blob files.
    pub blob_bytes: u64,
    /// Write-ahead logs.
    pub logs: u64,
}

pub(crate) fn verify(engine: &Arc<Engine>) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let (cfs, logs) = {
        // Under the structure's lock the manifest and memory must agree.
        let versions = engine.versions.lock();
        let state = engine.state.lock();
        let cfs: Vec<_> = state
            .cfs
            .values()
            .map(|cf| (cf.clone(), cf.view()))
            .collect();
        let logs: Vec<_> = state.logs.keys().copied().collect();
        drop(state);
        // After them, as a closed database has no families.
        engine.refuse_when_closed()?;
        if versions.manifest_number().is_some() {
            compare_with_manifest(engine)?;
        }
        (cfs, logs)
    };
    for (_, view) in &cfs {
        report.cfs += 1;
        view.version.check_order()?;
        for (_, _, file) in view.version.files() {
            report.entries += verify_table(engine, file)?;
            report.tables += 1;
            report.table_bytes += file.meta.file_size;
        }
        for live in view.version.blobs.files().values() {
            verify_blob(engine, live)?;
            report.blobs += 1;
            report.blob_bytes += live.file.meta.file_size;
        }
    }
    // The last log is being written to, so its end is not final; that of all others is then.
    engine.end_previous()?;
    for &log in logs.iter().rev().skip(1) {
        let mode = WalRecoveryMode::Absolute;
        let end = wal::replay(&engine.fs, &engine.dir, log, mode, |batch| {
            for entry in batch {
                entry?;
            }
            Ok(())
        });
        match end {
            // Its memtables were flushed meanwhile.
            Err(Error::Fs(error)) if error.is_not_found() => {}
            other => {
                other?;
                report.logs += 1;
            }
        }
    }
    Ok(report)
}

fn compare_with_manifest(engine: &Arc<Engine>) -> Result<()> {
    let recovered = Recovered::read(&engine.fs, &engine.dir)?;
    let name = engine.dir.join("CURRENT").display().to_string();
    let Some(recovered) = recovered else {
        return Err(Error::corrupt(name, 0_u64, "is missing"));
    };
    let state = engine.state.lock();
    let same_cfs = recovered.cfs.keys().eq(state.cfs.keys());
    let same = same_cfs
        && state.cfs.values().all(|cf| {
            let view = cf.view();
            let tables = recovered.cfs[&cf.id].tables();
            let mut count = 0;
            let known = view.version.files().all(|(level, run, file)| {
                count += 1;
                tables
                    .get(&file.meta.number)
                    .is_some_and(|known| *known == (level as u32, run, file.meta.clone()))
            });
            known
                && count == tables.len()
                && same_blobs(&view.version.blobs, recovered.cfs[&cf.id].blobs())
        });
    if same {
        return Ok(());
    }
    let detail = format!(
        "manifest {} describes other tables than the database uses",
        recovered.manifest_number
    );
    Err(Error::corrupt(name, 0_u64, detail))
}

fn same_blobs(memory: &BlobSet<Arc<BlobFile>>, recorded: &BlobSet<BlobMeta>) -> bool {
    let in_memory = memory.files().values();
    let in_memory = in_memory.map(|live| (&live.file.meta, live.used));
    let recorded_files = recorded.files().values();
    in_memory.eq(recorded_files.map(|live| (&live.file, live.used)))
        && memory.ancestors() == recorded.ancestors()
        && memory.splits() == recorded.splits()
        && memory.shares() == recorded.shares()
}

/// Checks one table against itself and the manifest; returns its number of entries.
fn verify_table(engine: &Arc<Engine>, file: &SstFile) -> Result<u64> {
    let meta = &file.meta;
    let table = file.table(&**engine)?;
    // Reads the file itself: every checksum, key order, filter, and the table's own properties.
    let checksum = table.verify()?;
    let path = engine.table_path(meta.number).display().to_string();
    let properties = table.properties();
    let facts: [(bool, &str); 6] = [
        (checksum == meta.checksum, "checksum of the whole file"),
        (properties.smallest == meta.smallest, "first key"),
        (properties.largest == meta.largest, "last key"),
        (
            (properties.entries, properties.deletions) == (meta.entries, meta.deletions),
            "number of entries",
        ),
        (
            (properties.smallest_seq, properties.largest_seq)
                == (meta.smallest_seq, meta.largest_seq),
            "range of sequence numbers",
        ),
        (
            properties.blob_refs == meta.blob_refs,
            "list of references to blob files",
        ),
    ];
    match facts.iter().find(|(same, _)| !same) {
        Some((_, fact)) => {
            let detail = format!("the {fact} is not the manifest's");
            Err(Error::corrupt(path, 0_u64, detail))
        }
        None => Ok(meta.entries),
    }
}

/// Checks one blob file against itself, the manifest and what refers to it.
fn verify_blob(engine: &Arc<Engine>, live: &LiveBlob<Arc<BlobFile>>) -> Result<()> {
    let meta = &live.file.meta;
    let reader = live.file.reader(&**engine)?;
    reader.verify()?;
    let properties = reader.properties();
    let facts = [
        (properties.checksum == meta.checksum, "checksum"),
        (properties.records == meta.records, "number of records"),
        (
            properties.raw_value_bytes == meta.value_bytes,
            "bytes of values",
        ),
        (properties.smallest == meta.smallest, "first key"),
        (properties.largest == meta.largest, "last key"),
    ];
    let name = FileName::Blob(meta.number).to_string();
    if let Some((_, fact)) = facts.iter().find(|(same, _)| !same) {
        let detail = format!("the {fact} is not the manifest's");
        return Err(Error::corrupt(name, 0_u64, detail));
    }
    if live.used.references > meta.records || live.used.value_bytes > meta.value_bytes {
        let detail = "tables refer to more than the file holds";
        return Err(Error::corrupt(name, 0_u64, detail));
    }
    Ok(())
}
