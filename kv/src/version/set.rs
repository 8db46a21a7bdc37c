//! `VersionSet`: the manifest in force, and the structure that a manifest describes.
//!
//! One thread at a time changes the structure: it holds the `VersionSet`'s lock, records the edit
//! durably, and installs the new versions in memory afterwards ([`crate::background::install`]). What a crash
//! leaves is the old structure or the new one; files named by neither are removed at open.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lavafs::FileSystemRef;

use crate::error::{Error, Result};
use crate::file_names::FileNumber;
use crate::key::SeqNo;
use crate::write::batch::CfId;

use super::blob_file::BlobMeta;
use super::blobs::{BlobSet, by_number};
use super::edit::{CfEdit, VersionEdit};
use super::manifest::{self, ManifestWriter};
use super::obsolete::ObsoleteFiles;
use super::version::{SstMeta, Version};

/// Name of the key order, recorded in every manifest.
pub(crate) const COMPARATOR: &str = "bytewise";

/// Records edits in the manifest in force, and begins a new one when it has to.
#[derive(Debug)]
pub(crate) struct VersionSet {
    fs: FileSystemRef,
    dir: PathBuf,
    /// `None` after a failed append, until a new manifest is in force.
    writer: Option<ManifestWriter>,
    /// Bytes from which a new manifest is begun.
    max_size: u64,
}

impl VersionSet {
    /// Closes the manifest.
    pub(crate) fn close(&mut self) {
        self.writer = None;
    }

    pub(crate) fn new(fs: FileSystemRef, dir: PathBuf, max_size: u64) -> Self {
        VersionSet {
            fs,
            dir,
            writer: None,
            max_size,
        }
    }

    /// True where the next edit begins a new manifest.
    pub(crate) fn needs_new_manifest(&self) -> bool {
        self.writer
            .as_ref()
            .is_none_or(|writer| writer.size() >= self.max_size)
    }

    /// Writes manifest `number` with the structure `snapshot`. After an error all is as it was.
    pub(crate) fn create(
        &self,
        number: FileNumber,
        snapshot: &VersionEdit,
    ) -> Result<ManifestWriter> {
        ManifestWriter::create(&self.fs, &self.dir, number, snapshot)
    }

    /// Makes a new manifest the one in force. Returns the number of the one before, if that is known, which
    /// may then be removed. After an error it is unknown which of the two is in force.
    pub(crate) fn put_in_force(&mut self, writer: ManifestWriter) -> Result<Option<FileNumber>> {
        let before = self.writer.take().map(|writer| writer.number());
        writer.put_in_force(&self.fs, &self.dir)?;
        self.writer = Some(writer);
        Ok(before)
    }

    /// Records `edit`; durable on return. After an error it is unknown whether it is recorded,
    /// and a new manifest has to be begun.
    pub(crate) fn record(&mut self, edit: &VersionEdit) -> Result<()> {
        let writer = self.writer.as_mut().expect("a manifest is in force");
        let outcome = writer.append(edit);
        if outcome.is_err() {
            self.writer = None;
        }
        outcome
    }

    /// Number of the manifest in force, if one is certainly in force.
    pub(crate) fn manifest_number(&self) -> Option<FileNumber> {
        self.writer.as_ref().map(ManifestWriter::number)
    }
}

/// A column family as a manifest describes it.
#[derive(Debug)]
pub(crate) struct RecoveredCf {
    pub(crate) name: String,
    pub(crate) log_number: FileNumber,
    tables: BTreeMap<FileNumber, (u32, u64, SstMeta)>,
    blobs: BlobSet<BlobMeta>,
    /// Blob files that scans found scattered; some may be gone.
    scattered: BTreeSet<FileNumber>,
}

impl RecoveredCf {
    /// Its tables by number, with level and run id.
    pub(crate) fn tables(&self) -> &BTreeMap<FileNumber, (u32, u64, SstMeta)> {
        &self.tables
    }

    /// Its blob files and what leads to them.
    pub(crate) fn blobs(&self) -> &BlobSet<BlobMeta> {
        &self.blobs
    }

    /// Its version.
    pub(crate) fn version(
        &self,
        num_levels: usize,
        remover: &Arc<ObsoleteFiles>,
    ) -> Result<Version> {
        let edit = CfEdit {
            added: self.tables.values().cloned().collect(),
            blobs: self
                .blobs
                .files()
                .values()
                .map(|live| live.file.clone())
                .collect(),
            heirs: self.blobs.ancestors(),
            splits: self.blobs.splits(),
            shares: self.blobs.shares(),
            scattered: self.scattered.iter().copied().collect(),
            ..CfEdit::default()
        };
        Version::empty(num_levels).apply(&edit, remover)
    }
}

/// The structure of a database as its manifest describes it.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    pub(crate) manifest_number: FileNumber,
    pub(crate) next_file_number: FileNumber,
    pub(crate) last_sequence: SeqNo,
    pub(crate) next_cf: u32,
    pub(crate) cfs: BTreeMap<CfId, RecoveredCf>,
}

impl Recovered {
    /// The structure described by the manifest in force; `None` where there is no database.
    pub(crate) fn read(fs: &FileSystemRef, dir: &Path) -> Result<Option<Recovered>> {
        let Some(number) = manifest::current(fs, dir)? else {
            return Ok(None);
        };
        Recovered::read_manifest(fs, dir, number).map(Some)
    }

    /// The structure described by manifest `number`.
    pub(crate) fn read_manifest(
        fs: &FileSystemRef,
        dir: &Path,
        number: FileNumber,
    ) -> Result<Recovered> {
        let mut recovered = Recovered {
            manifest_number: number,
            ..Recovered::default()
        };
        manifest::replay(fs, dir, number, |edit| recovered.apply(edit))?;
        Ok(recovered)
    }

    /// Adds what `edit` changes.
    pub(crate) fn apply(&mut self, edit: VersionEdit) -> Result<()> {
        if let Some(name) = edit.comparator
            && name != COMPARATOR
        {
            return Err(Error::Unsupported {
                what: format!("key order {name:?}"),
            });
        }
        let next = edit.next_file_number.unwrap_or(0);
        self.next_file_number = self.next_file_number.max(next);
        self.last_sequence = self.last_sequence.max(edit.last_sequence.unwrap_or(0));
        self.next_cf = self.next_cf.max(edit.next_cf.unwrap_or(0));
        for (id, change) in edit.cfs {
            self.apply_cf(id, change)?;
        }
        Ok(())
    }

    fn apply_cf(&mut self, id: CfId, change: CfEdit) -> Result<()> {
        if let Some(name) = change.created.clone() {
            let cf = RecoveredCf {
                name,
                log_number: 0,
                tables: BTreeMap::new(),
                blobs: BlobSet::default(),
                scattered: BTreeSet::new(),
            };
            if self.cfs.insert(id, cf).is_some() {
                return Err(bad(format!("column family {} is created twice", id.0)));
            }
        }
        if change.dropped {
            self.cfs.remove(&id);
            return Ok(());
        }
        let Some(cf) = self.cfs.get_mut(&id) else {
            return Err(bad(format!("column family {} is not known", id.0)));
        };
        cf.log_number = cf.log_number.max(change.log_number.unwrap_or(0));
        let shares = by_number(&change.shares);
        for meta in &change.blobs {
            cf.blobs.add_file(meta.number, meta.clone())?;
        }
        cf.blobs.inherit(change.all_heirs(), &shares)?;
        for (level, number) in change.removed {
            match cf.tables.remove(&number) {
                Some((had, _, meta)) if had == level => cf.blobs.forget(number, &meta.blob_refs)?,
                _ => return Err(bad(format!("table {number} is not in level {level}"))),
            }
        }
        for (level, run, meta) in change.added {
            let number = meta.number;
            cf.blobs.refer(number, &meta.blob_refs, &shares)?;
            if cf.tables.insert(number, (level, run, meta)).is_some() {
                return Err(bad(format!("table {number} is added twice")));
            }
        }
        cf.blobs.settle();
        cf.scattered.extend(change.scattered);
        Ok(())
    }
}

fn bad(what: String) -> Error {
    Error::invalid_argument(what)
}
