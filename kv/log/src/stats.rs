//! Figures of an engine, read from its files: what is alive, what it takes on disk, what is durable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lavafs::FileSystemRef;

use crate::data::FileTable;
use crate::engine::snapshot_ops;
use crate::error::Result;
use crate::group::GroupReader;
use crate::index::Index;
use crate::meta::meta_path;
use crate::read_only::beside_an_owner;
use crate::recovery::{Found, Scanned};

/// Figures of an engine at one moment. Bytes of records are with their framing.
#[derive(Clone, Debug, Default)]
pub struct LogStats {
    /// Logs.
    pub logs: u64,
    /// Records that are there.
    pub records: u64,
    /// LSNs from the first record to the last one of each log, in sum over all logs.
    pub lsns: u64,
    /// Records that are there and not proven to be durable: those of the last group or groups of a file
    /// that is not sealed.
    pub unproven_records: u64,
    /// Bytes of a new snapshot of the namespace: what of the metalog is alive.
    pub snapshot_bytes: u64,
    /// The physical files of the datalog, in order.
    pub data_files: Vec<FileStats>,
    /// The physical files of the metalog, in order: one, or more after a crash.
    pub meta_files: Vec<FileStats>,
}

/// Figures of one physical file.
#[derive(Clone, Debug, Default)]
pub struct FileStats {
    /// Its name in the filesystem.
    pub path: PathBuf,
    /// Ended with a closing group: nothing is appended to it.
    pub sealed: bool,
    /// Bytes up to the end of its last valid group, or of a sealed file.
    pub len: u64,
    /// Bytes up to which it is proven to be durable.
    pub durable_len: u64,
    /// Bytes of the device allocated to it.
    pub allocated: u64,
    /// Records in it that are there.
    pub live_records: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Records in it that were trimmed, truncated, replaced or deleted with their log. Their space is
    /// given back when the file has no other ones.
    pub dead_records: u64,
    /// Their bytes.
    pub dead_bytes: u64,
}

impl LogStats {
    /// Reads the figures of the engine in `dir`, which may be open. Changes nothing.
    ///
    /// # Errors
    /// As [`crate::LogEngine::open_read_only`].
    pub fn read(fs: &FileSystemRef, dir: &Path) -> Result<LogStats> {
        beside_an_owner(|| LogStats::read_once(fs, dir))
    }

    fn read_once(fs: &FileSystemRef, dir: &Path) -> Result<LogStats> {
        let found = Found::read(fs, dir)?;
        let mut stats = LogStats::default();
        for number in &found.meta_numbers {
            stats.meta_files.push(meta_file(fs, dir, *number, &found)?);
        }
        let mut files = BTreeMap::new();
        for data in &found.data {
            files.insert(data.number, data_file(fs, data)?);
        }
        let next_log = found.namespace.next_log;
        let (names, next_op) = found.namespace.build(&FileTable::default());
        let mut snapshot = Vec::new();
        for op in snapshot_ops(&names, next_log, next_op) {
            op.encode(&mut snapshot);
        }
        stats.snapshot_bytes = snapshot.len() as u64;
        for state in names.by_id.values() {
            stats.count(&state.core.lock().index, &mut files);
        }
        stats.data_files = files.into_values().map(FileStats::settled).collect();
        Ok(stats)
    }

    /// Counts the records of one log, and each one into its file.
    fn count(&mut self, index: &Index, files: &mut BTreeMap<u32, FileStats>) {
        self.logs += 1;
        self.records += index.len();
        if let (Some(first), Some(last)) = (index.first(), index.last()) {
            self.lsns = self.lsns.saturating_add(last - first).saturating_add(1);
        }
        for entry in index.iter_from(0) {
            let file = files.get_mut(&entry.file);
            let file = file.expect("entries are of files that were read");
            file.live_records += 1;
            file.live_bytes += u64::from(entry.len);
            let end = u64::from(entry.offset) + u64::from(entry.len);
            self.unproven_records += u64::from(end > file.durable_len);
        }
    }

    /// Bytes that are alive: records that are there, and the snapshot.
    pub fn live_bytes(&self) -> u64 {
        let data = self.data_files.iter().map(|file| file.live_bytes);
        data.sum::<u64>() + self.snapshot_bytes
    }

    /// Bytes of the device allocated to both physical logs.
    pub fn allocated(&self) -> u64 {
        let files = self.data_files.iter().chain(&self.meta_files);
        files.map(|file| file.allocated).sum()
    }

    /// Bytes on the device for each live one. A snapshot is never empty.
    pub fn space_amplification(&self) -> f64 {
        self.allocated() as f64 / self.live_bytes() as f64
    }
}

impl FileStats {
    /// Takes the live records, which are counted now, off what stood for all.
    fn settled(mut self) -> FileStats {
        self.dead_records -= self.live_records;
        self.dead_bytes -= self.live_bytes;
        self
    }
}

/// The file's figures with all its records as dead.
fn data_file(fs: &FileSystemRef, data: &Scanned) -> Result<FileStats> {
    let unsealed = data.unsealed.as_ref();
    Ok(FileStats {
        path: data.path.clone(),
        sealed: unsealed.is_none(),
        len: data.len,
        durable_len: unsealed.map_or(data.len, GroupReader::durable_len),
        allocated: fs.metadata(&data.path)?.allocated,
        dead_records: data.records.len() as u64,
        dead_bytes: data
            .records
            .iter()
            .map(|record| u64::from(record.len))
            .sum(),
        ..FileStats::default()
    })
}

/// Of a file that does not count, only what it takes.
fn meta_file(fs: &FileSystemRef, dir: &Path, number: u32, found: &Found) -> Result<FileStats> {
    let path = meta_path(dir, number);
    let end = found.namespace.end.filter(|end| end.number == number);
    Ok(FileStats {
        sealed: end.is_some_and(|end| end.sealed),
        len: end.map_or(0, |end| end.len),
        durable_len: end.map_or(0, |end| end.durable_len),
        allocated: fs.metadata(&path)?.allocated,
        path,
        ..FileStats::default()
    })
}
