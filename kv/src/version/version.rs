//! `Version`: an immutable picture of one column family's tables, as levels of runs.
//!
//! A run is a sequence of tables with disjoint, ascending user-key ranges. A level holds runs
//! from new to old: level 0 has one run for each flush, and a leveled level has exactly one.
//! Everything in a run is newer than what the same key has in a later run of its level or in any
//! run of a deeper level. Other merge policies are other numbers of runs (Dostoevsky, section 4).
//!
//! Readers hold a version through an `Arc`; a table's file is removed when it is marked
//! obsolete, after the manifest recorded that durably, and the last version with it is dropped.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::key::{SeqNo, user_key};
use crate::sstable::Table;

use super::blob_file::BlobFile;
use super::blobs::{BlobSet, TableRefs, by_number};
use super::edit::CfEdit;
use super::obsolete::ObsoleteFiles;

/// What the manifest records of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SstMeta {
    pub(crate) number: FileNumber,
    /// Bytes.
    pub(crate) file_size: u64,
    /// First internal key.
    pub(crate) smallest: Vec<u8>,
    /// Last internal key.
    pub(crate) largest: Vec<u8>,
    pub(crate) entries: u64,
    pub(crate) deletions: u64,
    /// Checksum of the whole file.
    pub(crate) checksum: u64,
    pub(crate) smallest_seq: SeqNo,
    pub(crate) largest_seq: SeqNo,
    /// When its newest entry was flushed, in seconds since 1970; 0: unknown.
    pub(crate) created: u64,
    /// Entries that only snapshots need.
    pub(crate) hidden: Hidden,
    /// What it refers to in blob files.
    pub(crate) blob_refs: TableRefs,
}

/// Entries of a table that a newer version of their key in the same table hides: kept for snapshots, and gone when
/// the table is written anew without them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Hidden {
    pub(crate) entries: u64,
    /// Bytes of those values that are in blob files, before compression.
    pub(crate) value_bytes: u64,
}

impl SstMeta {
    pub(crate) fn smallest_user_key(&self) -> &[u8] {
        user_key(&self.smallest)
    }

    pub(crate) fn largest_user_key(&self) -> &[u8] {
        user_key(&self.largest)
    }
}

/// A table's file, shared by the versions that hold it.
pub(crate) struct SstFile {
    pub(crate) meta: SstMeta,
    /// Opened on first use; a failed open is tried again by the next reader.
    table: OnceLock<Arc<Table>>,
    obsolete: AtomicBool,
    remover: Arc<ObsoleteFiles>,
}

impl std::fmt::Debug for SstFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "SstFile({}, {} bytes)",
            self.meta.number, self.meta.file_size
        )
    }
}

impl SstFile {
    pub(crate) fn new(meta: SstMeta, remover: Arc<ObsoleteFiles>) -> Arc<Self> {
        Arc::new(SstFile {
            meta,
            table: OnceLock::new(),
            obsolete: AtomicBool::new(false),
            remover,
        })
    }

    /// The open table.
    pub(crate) fn table(&self, opener: &dyn TableOpener) -> Result<&Arc<Table>> {
        if let Some(table) = self.table.get() {
            return Ok(table);
        }
        let table = opener.open_table(&self.meta)?;
        Ok(self.table.get_or_init(|| table))
    }

    /// The table, if somebody has opened it.
    pub(crate) fn opened(&self) -> Option<&Arc<Table>> {
        self.table.get()
    }

    /// The file is removed when the last version with it is gone. Call only after the manifest
    /// no longer names it, durably.
    pub(crate) fn mark_obsolete(&self) {
        if !self.obsolete.swap(true, Ordering::AcqRel) {
            self.remover.hold(self.meta.file_size);
        }
    }
}

impl Drop for SstFile {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire) {
            // The handle goes first: space of an open file does not return.
            drop(self.table.take());
            let name = FileName::Table(self.meta.number);
            self.remover.let_go(name, self.meta.file_size);
        }
    }
}

/// Opens tables for a version's readers.
pub(crate) trait TableOpener: Send + Sync {
    fn open_table(&self, meta: &SstMeta) -> Result<Arc<Table>>;
}

/// Tables with disjoint ranges, in key order.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Newer runs of a level have greater ids.
    pub(crate) id: u64,
    /// Shared with the version's successors and with iterators.
    pub(crate) files: Arc<Vec<Arc<SstFile>>>,
}

impl Run {
    pub(crate) fn size(&self) -> u64 {
        self.files.iter().map(|file| file.meta.file_size).sum()
    }

    /// The one table whose range may hold `key`.
    pub(crate) fn file_for(&self, key: &[u8]) -> Option<&Arc<SstFile>> {
        let at = self
            .files
            .partition_point(|file| file.meta.largest_user_key() < key);
        self.files
            .get(at)
            .filter(|file| file.meta.smallest_user_key() <= key)
    }

    /// The tables with keys in `smallest..=largest`; `None` is unbounded.
    pub(crate) fn overlapping(
        &self,
        smallest: Option<&[u8]>,
        largest: Option<&[u8]>,
    ) -> &[Arc<SstFile>] {
        &self.files[self.overlapping_range(smallest, largest)]
    }

    /// Like [`Run::overlapping`], as places in the run.
    pub(crate) fn overlapping_range(
        &self,
        smallest: Option<&[u8]>,
        largest: Option<&[u8]>,
    ) -> Range<usize> {
        let begin = smallest.map_or(0, |key| {
            self.files
                .partition_point(|file| file.meta.largest_user_key() < key)
        });
        let end = largest.map_or(self.files.len(), |key| {
            self.files
                .partition_point(|file| file.meta.smallest_user_key() <= key)
        });
        begin..end.max(begin)
    }
}

/// Runs from new to old.
#[derive(Clone, Debug, Default)]
pub(crate) struct Level {
    pub(crate) runs: Vec<Run>,
}

impl Level {
    pub(crate) fn size(&self) -> u64 {
        self.runs.iter().map(Run::size).sum()
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &Arc<SstFile>> {
        self.runs.iter().flat_map(|run| run.files.iter())
    }

    pub(crate) fn file_count(&self) -> usize {
        self.runs.iter().map(|run| run.files.len()).sum()
    }
}

/// An immutable picture of one column family's tables.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) levels: Vec<Level>,
    /// The blob files that the tables refer to.
    pub(crate) blobs: Arc<BlobSet<Arc<BlobFile>>>,
}

impl Version {
    pub(crate) fn empty(num_levels: usize) -> Self {
        Version {
            levels: vec![Level::default(); num_levels],
            blobs: Arc::default(),
        }
    }

    /// All tables, level by level, with level and run id.
    pub(crate) fn files(&self) -> impl Iterator<Item = (usize, u64, &Arc<SstFile>)> {
        self.levels.iter().enumerate().flat_map(|(level, runs)| {
            runs.runs
                .iter()
                .flat_map(move |run| run.files.iter().map(move |file| (level, run.id, file)))
        })
    }

    /// The version after `edit`, which must fit: it removes only tables that are here, and leaves
    /// every run in order.
    pub(crate) fn apply(&self, edit: &CfEdit, remover: &Arc<ObsoleteFiles>) -> Result<Version> {
        let mut next = self.clone();
        let shares = by_number(&edit.shares);
        let files = next.add_blobs(edit, remover)?;
        let mut moved: HashMap<FileNumber, Arc<SstFile>> = HashMap::new();
        for &(level, number) in &edit.removed {
            let file = next.remove(level as usize, number).ok_or_else(|| {
                Error::invalid_argument(format!("table {number} is not in level {level}"))
            })?;
            if !file.meta.blob_refs.is_empty() {
                Arc::make_mut(&mut next.blobs).forget(number, &file.meta.blob_refs)?;
            }
            moved.insert(number, file);
        }
        for (level, run, meta) in &edit.added {
            let Some(target) = next.levels.get_mut(*level as usize) else {
                let have = self.levels.len();
                return Err(Error::invalid_argument(format!(
                    "num_levels is {have}, but the database has a level {level}"
                )));
            };
            let file = match moved.get(&meta.number) {
                Some(file) => Arc::clone(file),
                None => SstFile::new(meta.clone(), Arc::clone(remover)),
            };
            target.insert(*run, file);
            if !meta.blob_refs.is_empty() {
                Arc::make_mut(&mut next.blobs).refer(meta.number, &meta.blob_refs, &shares)?;
            }
        }
        if !Arc::ptr_eq(&next.blobs, &self.blobs) {
            Arc::make_mut(&mut next.blobs).settle();
        }
        // What a collection wrote and nothing refers to any more needs no record to go.
        let files = files.into_iter();
        files
            .filter(|file| !next.blobs.files().contains_key(&file.meta.number))
            .for_each(|file| file.mark_obsolete());
        for live in edit
            .scattered
            .iter()
            .filter_map(|number| next.blobs.files().get(number))
        {
            live.file.mark_scattered();
        }
        next.check_order()?;
        Ok(next)
    }

    /// Returns the files that are new.
    fn add_blobs(
        &mut self,
        edit: &CfEdit,
        remover: &Arc<ObsoleteFiles>,
    ) -> Result<Vec<Arc<BlobFile>>> {
        let mut files = Vec::new();
        if edit.blobs.is_empty() && !edit.has_heirs() {
            return Ok(files);
        }
        let blobs = Arc::make_mut(&mut self.blobs);
        for meta in &edit.blobs {
            let file = BlobFile::new(meta.clone(), Arc::clone(remover));
            files.push(Arc::clone(&file));
            blobs.add_file(meta.number, file)?;
        }
        blobs.inherit(edit.all_heirs(), &by_number(&edit.shares))?;
        Ok(files)
    }

    fn remove(&mut self, level: usize, number: FileNumber) -> Option<Arc<SstFile>> {
        let runs = &mut self.levels.get_mut(level)?.runs;
        for at in 0..runs.len() {
            let files = &runs[at].files;
            if let Some(index) = files.iter().position(|file| file.meta.number == number) {
                let files = Arc::make_mut(&mut runs[at].files);
                let file = files.remove(index);
                if files.is_empty() {
                    runs.remove(at);
                }
                return Some(file);
            }
        }
        None
    }

    /// Checks the invariants of the module's first paragraph, as far as ranges show them.
    pub(crate) fn check_order(&self) -> Result<()> {
        for (number, level) in self.levels.iter().enumerate() {
            for pair in level.runs.windows(2) {
                if pair[0].id <= pair[1].id {
                    return Err(Error::invalid_argument(format!(
                        "runs of level {number} out of order"
                    )));
                }
            }
            for run in &level.runs {
                for pair in run.files.windows(2) {
                    let (left, right) = (&pair[0].meta, &pair[1].meta);
                    if left.largest_user_key() >= right.smallest_user_key() {
                        return Err(Error::invalid_argument(format!(
                            "tables {} and {} of level {number} overlap",
                            left.number, right.number
                        )));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Level {
    fn insert(&mut self, run_id: u64, file: Arc<SstFile>) {
        let at = self.runs.partition_point(|run| run.id > run_id);
        if self.runs.get(at).is_none_or(|run| run.id != run_id) {
            let files = Arc::default();
            self.runs.insert(at, Run { id: run_id, files });
        }
        let files = Arc::make_mut(&mut self.runs[at].files);
        let index = files.partition_point(|other| {
            other.meta.smallest_user_key() < file.meta.smallest_user_key()
        });
        files.insert(index, file);
    }
}
