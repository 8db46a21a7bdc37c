//! Which records are live: a walk over the tables of a version beside the walk over the records.
//!
//! Records are asked about in key order, and tables are in key order too, so that each table is read once
//! from front to back, with its own readahead and without a trace in the cache, however many records there are. A
//! record is live if a table has exactly its version of its key and that entry's number leads to the
//! record's file.

use std::cmp::Ordering;
use std::sync::Arc;

use super::Liveness;
use crate::blob::BlobFileReader;
use crate::blob::reference::BlobReference;
use crate::db::engine::Engine;
use crate::env::Priority;
use crate::error::Result;
use crate::iter::{InternalIterator, MergingIterator, RunIterator};
use crate::key::{compare_internal, user_key};
use crate::sstable::TableReadOptions;
use crate::version::{TableOpener, Version};
use crate::write::batch::CfId;

/// Records between two looks at whether to go on.
const STOP_CHECK_INTERVAL: u64 = 64;

/// Entries that are stepped over before the tables are searched instead.
const STEPS_MAX: usize = 16;

/// Bytes of output between two requests to the rate limiter.
const PACE_BYTES: u64 = 256 << 10;

/// Tells a rewrite what the tables of one version refer to. Belongs to one collection.
pub(super) struct Referrers<'a> {
    engine: &'a Arc<Engine>,
    cf: CfId,
    version: &'a Version,
    tables: MergingIterator,
    asked: u64,
    /// Bytes copied that the rate limiter does not know of.
    unpaced: u64,
}

impl<'a> Referrers<'a> {
    /// For records of `inputs`, which has at least one.
    pub(super) fn new(
        engine: &'a Arc<Engine>,
        cf: CfId,
        version: &'a Version,
        inputs: &[Arc<BlobFileReader>],
    ) -> Self {
        let smallest = inputs
            .iter()
            .map(|input| input.properties().smallest.as_slice());
        let first = smallest.map(user_key).min();
        let children = version.levels.iter().flat_map(|level| &level.runs);
        let children = children.filter_map(|run| {
            let range = run.overlapping_range(first, None);
            let opener = Arc::clone(engine) as Arc<dyn TableOpener>;
            let options = TableReadOptions {
                fill_cache: false,
                silent: true,
                ..TableReadOptions::default()
            };
            let files = Arc::clone(&run.files);
            (!range.is_empty())
                .then(|| Box::new(RunIterator::new(files, range, opener, options)) as Box<_>)
        });
        Referrers {
            engine,
            cf,
            version,
            tables: MergingIterator::new(children.collect()),
            asked: 0,
            unpaced: 0,
        }
    }

    /// Asks the rate limiter for what was copied since it was asked last.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.keep_going()?;
        let bytes = std::mem::take(&mut self.unpaced);
        let limiter = self.engine.env.rate_limiter();
        limiter.request(bytes, Priority::Low, || self.keep_going())
    }

    /// Fails where the collection is to end: the database is closing, or the family was dropped.
    fn keep_going(&self) -> Result<()> {
        self.engine.keep_going()?;
        self.engine.cf(self.cf).map(drop)
    }

    /// Goes to the first entry at or after `key`.
    fn go_to(&mut self, key: &[u8]) -> Result<()> {
        if self.asked == 0 {
            self.tables.seek(key);
        }
        let mut steps = 0;
        while self.tables.valid() && compare_internal(self.tables.key(), key).is_lt() {
            match steps {
                STEPS_MAX => self.tables.seek(key),
                _ => self.tables.next(),
            }
            steps += 1;
        }
        self.tables.status()
    }
}

impl Liveness for Referrers<'_> {
    fn is_live(&mut self, internal_key: &[u8], input: u64) -> Result<bool> {
        if self.asked.is_multiple_of(STOP_CHECK_INTERVAL) {
            self.keep_going()?;
        }
        self.go_to(internal_key)?;
        self.asked += 1;
        let found = self.tables.valid()
            && compare_internal(self.tables.key(), internal_key) == Ordering::Equal;
        if !found {
            return Ok(false);
        }
        let reference = BlobReference::of_entry(self.tables.value())?;
        let blobs = &self.version.blobs;
        Ok(blobs.resolve_number(reference.file, user_key(internal_key)) == Some(input))
    }

    fn copied(&mut self, bytes: u64) -> Result<()> {
        self.unpaced += bytes;
        if self.unpaced < PACE_BYTES {
            return Ok(());
        }
        self.settle()
    }
}
