//! Garbage in blob files: what the accounts say, and a full scan that checks them.
//!
//! A blob file's *garbage* is its values that no table refers to any more; the version knows it exactly, in bytes of
//! values before compression. *Shadowed* values are referred to still, but a newer write hides them from
//! everybody but snapshots; they become garbage when a compaction drops their entries. How many there are is
//! an estimate without a scan: newer runs may hide as many bytes in an older one as they have, and tables know what
//! they keep for snapshots.

use std::sync::Arc;

use crate::blob::reference::BlobReference;
use crate::db::engine::Engine;
use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::key::{InternalKeyRef, LookupKey, MAX_SEQ, SeqNo, ValueKind};
use crate::sstable::filter_hash;
use crate::version::{BlobFile, BlobUse, LiveBlob, SstFile, Version};

/// Blob files and the garbage in them, all column families together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlobStats {
    /// Blob files.
    pub files: u64,
    /// Their bytes.
    pub file_bytes: u64,
    /// Bytes of all values in them, before compression.
    pub value_bytes: u64,
    /// Bytes of the values that no table refers to, before compression. Exact.
    pub garbage_bytes: u64,
    /// Bytes of values that newer writes hide, before compression. An estimate, from above.
    pub shadowed_bytes: u64,
    /// Numbers of collected files that tables still use.
    pub ancestors: u64,
}

impl BlobStats {
    /// Adds the blob files of a version.
    pub(crate) fn add(&mut self, version: &Version) {
        for live in version.blobs.files().values() {
            self.files += 1;
            self.file_bytes += live.file.meta.file_size;
            self.value_bytes += live.file.meta.value_bytes;
        }
        self.garbage_bytes += garbage_bytes(version);
        self.ancestors += version.blobs.ancestor_count() as u64;
        self.shadowed_bytes += hidden_in_runs(version) + kept_bytes(version);
    }

    /// Garbage as a part of all values, 0 to 1.
    pub fn garbage_ratio(&self) -> f64 {
        self.garbage_bytes as f64 / (self.value_bytes as f64).max(1.0)
    }
}

impl LiveBlob<Arc<BlobFile>> {
    /// Bytes of values that nothing refers to.
    pub(crate) fn garbage_bytes(&self) -> u64 {
        // More can only be used in a damaged database, which verify tells.
        self.file
            .meta
            .value_bytes
            .saturating_sub(self.used.value_bytes)
    }
}

/// Bytes of values in the blob files of `version` that nothing refers to.
pub(crate) fn garbage_bytes(version: &Version) -> u64 {
    let files = version.blobs.files().values();
    files.map(LiveBlob::garbage_bytes).sum()
}

/// Bytes of separated values that tables keep for snapshots.
fn kept_bytes(version: &Version) -> u64 {
    let files = version.files();
    files.map(|(.., file)| file.meta.hidden.value_bytes).sum()
}

/// Bytes of separated values that newer runs may hide in older ones: of each run as many as the newer ones refer
/// to, and for each of their deletions one of mean length.
fn hidden_in_runs(version: &Version) -> u64 {
    let mut newer = BlobUse::default();
    let mut deletions = 0;
    let mut hidden = 0_u64;
    for run in version.levels.iter().flat_map(|level| &level.runs) {
        let here = used_by(run.files.iter());
        hidden = hidden.saturating_add(hideable(newer, deletions, here));
        newer.add(here);
        let files = run.files.iter();
        deletions += files.map(|file| file.meta.deletions).sum::<u64>();
    }
    hidden
}

/// Bytes of separated values that entries above the last level may hide in it: as many as those refer to, and
/// for each deletion one of mean length.
pub(crate) fn shadowed_bytes(version: &Version) -> u64 {
    let mut levels = version.levels.iter().rev();
    let last = levels.find(|level| level.file_count() > 0);
    let below = last.map(|level| used_by(level.files())).unwrap_or_default();
    let mut above = BlobUse::default();
    let mut deletions = 0;
    for level in levels {
        above.add(used_by(level.files()));
        deletions += level.files().map(|file| file.meta.deletions).sum::<u64>();
    }
    hideable(above, deletions, below)
}

/// What tables refer to.
fn used_by<'a>(files: impl Iterator<Item = &'a Arc<SstFile>>) -> BlobUse {
    let mut used = BlobUse::default();
    let refs = files.flat_map(|file| &file.meta.blob_refs);
    refs.for_each(|&(_, one)| used.add(one));
    used
}

/// Bytes of `below` that references and deletions above it may hide.
fn hideable(above: BlobUse, deletions: u64, below: BlobUse) -> u64 {
    let mean = below.value_bytes.checked_div(below.references).unwrap_or(0);
    let hidden = above
        .value_bytes
        .saturating_add(deletions.saturating_mul(mean));
    hidden.min(below.value_bytes)
}

/// What a full scan of blob files found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GarbageReport {
    /// Blob files.
    pub files: u64,
    /// Their records.
    pub records: u64,
    /// Bytes of all values, before compression.
    pub value_bytes: u64,
    /// Bytes of the values that no table refers to: as accounted, which the scan has confirmed.
    pub garbage_bytes: u64,
    /// Bytes of the values that newer entries of tables hide.
    pub shadowed_bytes: u64,
}

impl Engine {
    /// The reference of exactly this version of a key, if a table of `version` has it.
    pub(crate) fn reference_in(
        &self,
        version: &Version,
        user_key: &[u8],
        seq: SeqNo,
    ) -> Result<Option<BlobReference>> {
        let newest = self.newest_in(version, &LookupKey::new(user_key, seq))?;
        match newest {
            // An older version in a newer run means that older runs have none as new as wanted.
            Some((found, ValueKind::BlobReference, value)) if found == seq => {
                BlobReference::of_entry(&value).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The newest entry that a lookup may see in the tables of `version`.
    pub(crate) fn newest_in(
        &self,
        version: &Version,
        lookup: &LookupKey,
    ) -> Result<Option<(SeqNo, ValueKind, Vec<u8>)>> {
        let hash = filter_hash(lookup.user_key());
        for run in version.levels.iter().flat_map(|level| &level.runs) {
            let Some(file) = run.file_for(lookup.user_key()) else {
                continue;
            };
            if let Some(hit) = file.table(self)?.get(lookup, hash)? {
                return Ok(Some((hit.seq, hit.kind, hit.value.to_vec())));
            }
        }
        Ok(None)
    }

    /// Compares the accounts of all blob files with a scan of all their records.
    pub(crate) fn verify_garbage(&self) -> Result<GarbageReport> {
        self.refuse_when_closed()?;
        let views: Vec<_> = {
            let state = self.state.lock();
            state.cfs.values().map(|cf| cf.view()).collect()
        };
        let mut report = GarbageReport::default();
        for view in views {
            let version = &view.version;
            for (&number, live) in version.blobs.files().iter() {
                self.scan_blob(version, number, live, &mut report)?;
            }
        }
        Ok(report)
    }

    fn scan_blob(
        &self,
        version: &Version,
        number: FileNumber,
        live: &LiveBlob<Arc<BlobFile>>,
        report: &mut GarbageReport,
    ) -> Result<()> {
        let reader = live.file.reader(self)?;
        let name = FileName::Blob(number).to_string();
        let mut used = BlobUse::default();
        let mut records = reader.iter();
        while records.advance()? {
            self.refuse_when_closed()?;
            let key = InternalKeyRef::decode(records.key())
                .ok_or_else(|| Error::corrupt(&name, records.location().offset, "malformed key"))?;
            report.records += 1;
            let reference = self.reference_in(version, key.user_key, key.seq)?;
            let here = |reference: &BlobReference| {
                version.blobs.resolve_number(reference.file, key.user_key) == Some(number)
            };
            let Some(reference) = reference.filter(here) else {
                continue;
            };
            used.add(reference.as_use());
            let newest = self.newest_in(version, &LookupKey::new(key.user_key, MAX_SEQ))?;
            if newest.is_some_and(|(seq, ..)| seq > key.seq) {
                report.shadowed_bytes += reference.value_len;
            }
        }
        if used != live.used {
            let detail = format!(
                "tables account for {} references with {} bytes, a scan finds {} with {}",
                live.used.references, live.used.value_bytes, used.references, used.value_bytes
            );
            return Err(Error::corrupt(name, 0_u64, detail));
        }
        report.files += 1;
        report.value_bytes += live.file.meta.value_bytes;
        report.garbage_bytes += live.garbage_bytes();
        Ok(())
    }
}
