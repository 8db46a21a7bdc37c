//! The read path: memtables from new to old, then the version's runs from new to old.
//!
//! A view is taken before the sequence number (see [`crate::db::engine`]); both are held for the
//! whole read, and nothing of it blocks on a writer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::Guard;

use crate::blob::reference::BlobReference;
use crate::blob::values::SeparatedValue;
use crate::db::engine::{Engine, View, closing};
use crate::db::pinned::PinnedSlice;
use crate::error::{Error, Result};
use crate::iter::{DbIterator, InternalIterator, Origin, RunIterator, VisibleIterator};
use crate::key::{LookupKey, SeqNo, ValueKind, append_internal};
use crate::options::ReadOptions;
use crate::sstable::{TableHit, TableReadOptions, filter_hash};
use crate::stats::perf;
use crate::version::{TableOpener, Version};
use crate::write::batch::CfId;

impl Engine {
    /// Fails where nothing is to be read any more: the database is closed or poisoned. One that takes no writes
    /// is read from.
    pub(crate) fn refuse_when_closed(&self) -> Result<()> {
        if !self.unreadable.load(Ordering::Acquire) {
            return Ok(());
        }
        let error = &self.state.lock().error;
        let known = error.as_ref().map(|known| known.error.clone());
        Err(known.unwrap_or_else(closing))
    }

    /// A view and the sequence number to read it at.
    pub(crate) fn read_view(
        &self,
        id: CfId,
        options: &ReadOptions,
    ) -> Result<(Guard<Arc<View>>, SeqNo)> {
        let view = self.borrow_view(id)?;
        // After the view, as a closed database's shows nothing.
        self.refuse_when_closed()?;
        let sequence = match &options.snapshot {
            Some(snapshot) if !snapshot.is_of(&self.snapshots) => {
                return Err(Error::invalid_argument(
                    "the snapshot is another database's",
                ));
            }
            Some(snapshot) => snapshot.sequence(),
            None => self.last_sequence(),
        };
        Ok((view, sequence))
    }

    /// The value of `key`.
    pub(crate) fn get(
        &self,
        cf: CfId,
        key: &[u8],
        options: &ReadOptions,
    ) -> Result<Option<Vec<u8>>> {
        let found = self.get_pinned(cf, key, options)?;
        Ok(found.map(|value| value.to_vec()))
    }

    /// The value of `key`, not copied.
    pub(crate) fn get_pinned(
        &self,
        cf: CfId,
        key: &[u8],
        options: &ReadOptions,
    ) -> Result<Option<PinnedSlice>> {
        let (view, sequence) = self.read_view(cf, options)?;
        let lookup = LookupKey::new(key, sequence);
        let reads = perf::reads_so_far();
        let found = match self.get_in_memtables(&view, &lookup) {
            Some(found) => found,
            None => {
                let found = self.get_in_version(&view.version, &lookup)?;
                self.count_requests_of_get(perf::reads_so_far().wrapping_sub(reads));
                found
            }
        };
        self.count_read(found.as_deref());
        Ok(found)
    }

    /// Counts a lookup beyond the memtables by the requests of the filesystem that were made for it.
    pub(crate) fn count_requests_of_get(&self, requests: u64) {
        match requests {
            0 => self.tickers.gets_from_cache.add(1),
            1 => self.tickers.gets_with_one_read.add(1),
            2 => self.tickers.gets_with_two_reads.add(1),
            _ => self.tickers.gets_with_more_reads.add(1),
        }
    }

    pub(crate) fn count_read(&self, found: Option<&[u8]>) {
        self.tickers.keys_read.add(1);
        if let Some(value) = found {
            self.tickers.keys_found.add(1);
            self.tickers.bytes_read.add(value.len() as u64);
        }
    }

    /// What the memtables say of a key: its value, `Some(None)` where it is deleted.
    pub(crate) fn get_in_memtables(
        &self,
        view: &View,
        lookup: &LookupKey,
    ) -> Option<Option<PinnedSlice>> {
        let mems = std::iter::once(&view.mem).chain(&view.imms);
        let (kind, entry) = mems
            .into_iter()
            .find_map(|mem| mem.table.get_pinned(lookup))?;
        self.tickers.memtable_hits.add(1);
        Some((!kind.is_delete()).then(|| entry.into()))
    }

    fn get_in_version(&self, version: &Version, lookup: &LookupKey) -> Result<Option<PinnedSlice>> {
        let hash = filter_hash(lookup.user_key());
        for run in version.levels.iter().flat_map(|level| &level.runs) {
            let Some(file) = run.file_for(lookup.user_key()) else {
                continue;
            };
            let Some(hit) = file.table(self)?.get(lookup, hash)? else {
                continue;
            };
            return match hit.kind {
                ValueKind::Value => Ok(Some(hit.value.into())),
                ValueKind::BlobReference => {
                    let wanted = separated(lookup.user_key(), &hit)?;
                    let value = self.separated_value(version, &wanted, true)?;
                    Ok(Some(value.into()))
                }
                ValueKind::Delete | ValueKind::SingleDelete => Ok(None),
            };
        }
        Ok(None)
    }

    /// An iterator, not positioned.
    pub(crate) fn iter(self: &Arc<Self>, cf: CfId, options: &ReadOptions) -> Result<DbIterator> {
        let (view, sequence) = self.read_view(cf, options)?;
        let view = Guard::into_inner(view);
        self.tickers.iterators.add(1);
        let mut children: Vec<Box<dyn InternalIterator>> = Vec::new();
        for mem in std::iter::once(&view.mem).chain(&view.imms) {
            // What it is given from now on is newer than `sequence`.
            if mem.table.is_empty() {
                continue;
            }
            children.push(Box::new(mem.table.iter()));
        }
        let bounds = options.bounds();
        for run in view.version.levels.iter().flat_map(|level| &level.runs) {
            let range = run.overlapping_range(bounds.0.as_deref(), bounds.1.as_deref());
            if range.is_empty() {
                continue;
            }
            let opener = Arc::clone(self) as Arc<dyn TableOpener>;
            let table_options = TableReadOptions {
                fill_cache: options.fill_cache,
                readahead_bytes: options.readahead,
                ..TableReadOptions::default()
            };
            let run = RunIterator::new(Arc::clone(&run.files), range, opener, table_options);
            children.push(Box::new(run));
        }
        let walk = VisibleIterator::new(children, sequence, bounds);
        let origin = Origin {
            engine: Arc::clone(self),
            view,
            snapshot: options.snapshot.clone(),
            lazy_values: options.lazy_values,
            fill_cache: options.fill_cache,
        };
        Ok(DbIterator::new(walk, origin))
    }
}

/// What must be known of a table's entry to read its value.
pub(crate) fn separated(user_key: &[u8], hit: &TableHit) -> Result<SeparatedValue> {
    let mut key = Vec::with_capacity(user_key.len() + 8);
    append_internal(&mut key, user_key, hit.seq, hit.kind as u8);
    let reference = BlobReference::of_entry(&hit.value)?;
    Ok(SeparatedValue { key, reference })
}
