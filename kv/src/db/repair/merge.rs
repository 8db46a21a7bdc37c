//! Writing tables anew: those of a family without structure into one run, and those with references to a lost
//! blob file, one by one, in their places.
//!
//! What is written refers to the files that have the values now. An entry whose value is lost becomes a
//! deletion with its sequence number, so that no older value of the key takes its place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lavafs::FileSystemRef;
use std::path::Path;

use super::values::{Found, Values};
use crate::blob::reference::BlobReference;
use crate::compaction::{
    self, Along, CompactionContext, Retention, Separation, TableOutputs, VersionFilter, Warm,
};
use crate::error::{Error, Result};
use crate::iter::{InternalIterator, MergingIterator};
use crate::key::{InternalKeyRef, ValueKind, append_internal};
use crate::options::Options;
use crate::sstable::{Table, TableReadOptions};
use crate::version::Version;
use crate::write::batch::CfId;

/// Keys of lost values that are told one by one.
const KEYS_TOLD: usize = 100;

/// Newest values of keys that no file holds any more.
#[derive(Debug, Default)]
pub(super) struct Lost {
    pub(super) count: u64,
    pub(super) keys: Vec<(CfId, Vec<u8>)>,
}

/// What a merge is for.
pub(super) struct Target<'a> {
    pub(super) fs: &'a FileSystemRef,
    pub(super) dir: &'a Path,
    pub(super) cf: CfId,
    pub(super) name: &'a str,
    /// The family's.
    pub(super) options: &'a Options,
    pub(super) level: usize,
    /// When the newest entry was flushed, in seconds since 1970; 0: unknown.
    pub(super) created: u64,
    pub(super) next_file: &'a AtomicU64,
}

/// Merges tables into new ones, durable on return.
pub(super) fn merge(
    target: &Target<'_>,
    tables: &[Arc<Table>],
    values: &mut Values<'_>,
    lost: &mut Lost,
) -> Result<TableOutputs> {
    let options = target.options;
    let children = tables.iter().map(|table| {
        let iter = table.iter(TableReadOptions::default());
        Box::new(iter) as Box<dyn InternalIterator>
    });
    let mut input = Resolved {
        inner: MergingIterator::new(children.collect()),
        cf: target.cf,
        values,
        lost,
        user_key: None,
        replaced: false,
        key: Vec::new(),
        value: Vec::new(),
        error: None,
    };
    let entries = tables.iter().map(|table| table.properties().entries).sum();
    let empty = Version::empty(options.num_levels);
    let mut table_options = options.table_options(&empty, target.level, entries, entries);
    table_options.column_family = Some((target.cf.0, target.name.to_owned()));
    let space = target.fs.space().free / 4;
    let along = Along::new();
    let context = CompactionContext {
        fs: target.fs,
        dir: target.dir,
        table_options,
        part: (None, None),
        warm: Warm::Cached,
        created: target.created,
        target_file_size: options.target_file_size_base,
        expected_size: options.target_file_size_base.min(space),
        new_number: &|| target.next_file.fetch_add(1, Ordering::Relaxed),
        keep_going: &|| Ok(()),
        pace: &|_| Ok(()),
        // Logs may hold what a deletion hides.
        is_oldest: &|_| false,
        separation: Separation {
            min_blob_size: options.min_blob_size,
            blob_file_size: options.blob_file_size,
            expected_size: options.blob_file_size.min(space),
            options: options.blob_file_options(),
            // The input says where values are now.
            resolve: &|number, _| Some(number),
            along: &along,
        },
    };
    let filter = VersionFilter::new(Retention {
        snapshots: Vec::new(),
    });
    compaction::run(&context, &mut input, filter)
}

/// The entries of a merge with references to where the values are.
///
/// Only the newest version of a key is looked for: the merge keeps no other one.
struct Resolved<'a, 'v> {
    inner: MergingIterator,
    cf: CfId,
    values: &'a mut Values<'v>,
    lost: &'a mut Lost,
    /// Of the entry before.
    user_key: Option<Vec<u8>>,
    /// `key` and `value` stand for the entry here.
    replaced: bool,
    key: Vec<u8>,
    value: Vec<u8>,
    error: Option<Error>,
}

impl Resolved<'_, '_> {
    fn arrive(&mut self) {
        self.replaced = false;
        if self.inner.valid()
            && let Err(error) = self.resolve()
        {
            self.error = Some(error);
        }
    }

    fn resolve(&mut self) -> Result<()> {
        let key = self.inner.key();
        let entry = InternalKeyRef::decode(key)
            .ok_or_else(|| Error::corrupt("table", 0_u64, "bad internal key"))?;
        if self.user_key.as_deref() == Some(entry.user_key) {
            return Ok(());
        }
        let user_key = self.user_key.get_or_insert_default();
        user_key.clear();
        user_key.extend_from_slice(entry.user_key);
        if entry.kind != ValueKind::BlobReference {
            return Ok(());
        }
        let reference = BlobReference::of_entry(self.inner.value())?;
        self.key.clear();
        match self.values.find(self.cf, key, reference)? {
            Found::Stays(number) => {
                self.key.extend_from_slice(key);
                let reference = BlobReference {
                    file: number,
                    ..reference
                };
                reference.encode_into(&mut self.value);
            }
            Found::Copied(value) => {
                let kind = ValueKind::Value as u8;
                append_internal(&mut self.key, entry.user_key, entry.seq, kind);
                self.value = value;
            }
            Found::Lost => {
                let kind = ValueKind::Delete as u8;
                append_internal(&mut self.key, entry.user_key, entry.seq, kind);
                self.value.clear();
                self.lost.count += 1;
                if self.lost.keys.len() < KEYS_TOLD {
                    self.lost.keys.push((self.cf, entry.user_key.to_vec()));
                }
            }
        }
        self.replaced = true;
        Ok(())
    }
}

impl InternalIterator for Resolved<'_, '_> {
    fn valid(&self) -> bool {
        self.error.is_none() && self.inner.valid()
    }

    fn seek_to_first(&mut self) {
        self.inner.seek_to_first();
        self.arrive();
    }

    fn seek_to_last(&mut self) {
        self.inner.seek_to_last();
        self.arrive();
    }

    fn seek(&mut self, target: &[u8]) {
        self.inner.seek(target);
        self.arrive();
    }

    fn seek_for_prev(&mut self, target: &[u8]) {
        self.inner.seek_for_prev(target);
        self.arrive();
    }

    fn next(&mut self) {
        self.inner.next();
        self.arrive();
    }

    fn prev(&mut self) {
        self.inner.prev();
        self.arrive();
    }

    fn key(&self) -> &[u8] {
        match self.replaced {
            true => &self.key,
            false => self.inner.key(),
        }
    }

    fn value(&self) -> &[u8] {
        match self.replaced {
            true => &self.value,
            false => self.inner.value(),
        }
    }

    fn status(&self) -> Result<()> {
        match &self.error {
            Some(error) => Err(error.clone()),
            None => self.inner.status(),
        }
    }
}
