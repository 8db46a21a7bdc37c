//! `RunIterator`: one iterator over the tables of a run, opened as it reaches them.
//!
//! Tables have disjoint ranges in key order, so the table for a key is found by binary search and
//! at most one is open at a time. Every user key is in one table only.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::key::compare_internal;
use crate::sstable::{TableIterator, TableReadOptions};
use crate::version::{SstFile, TableOpener};

use super::InternalIterator;

/// Walks the tables of a run.
pub(crate) struct RunIterator {
    files: Arc<Vec<Arc<SstFile>>>,
    /// The part of the files that is walked.
    range: Range<usize>,
    opener: Arc<dyn TableOpener>,
    options: TableReadOptions,
    /// Place of the open table in the range, and its iterator.
    open: Option<(usize, TableIterator)>,
    failure: Option<crate::error::Error>,
}

impl RunIterator {
    /// Walks the files at `range`, in key order and with disjoint ranges.
    pub(crate) fn new(
        files: Arc<Vec<Arc<SstFile>>>,
        range: Range<usize>,
        opener: Arc<dyn TableOpener>,
        options: TableReadOptions,
    ) -> Self {
        RunIterator {
            files,
            range,
            opener,
            options,
            open: None,
            failure: None,
        }
    }

    fn files(&self) -> &[Arc<SstFile>] {
        &self.files[self.range.clone()]
    }

    /// Opens table `at` unless it is open; `false` where there is none or it fails.
    fn open(&mut self, at: Option<usize>) -> bool {
        let Some(at) = at.filter(|&at| at < self.range.len()) else {
            self.open = None;
            return false;
        };
        if self.open.as_ref().is_some_and(|(open, _)| *open == at) {
            return true;
        }
        self.open = None;
        match self.files()[at].table(&*self.opener) {
            Ok(table) => {
                self.open = Some((at, table.iter(self.options)));
                true
            }
            Err(error) => {
                self.failure = Some(error);
                false
            }
        }
    }

    fn at(&mut self) -> &mut TableIterator {
        &mut self.open.as_mut().expect("a table is open").1
    }

    fn here(&self) -> &TableIterator {
        &self.open.as_ref().expect("a valid iterator has a table").1
    }

    /// Moves on to the next table while the open one has come to its end.
    fn skip_forward(&mut self) {
        while let Some((at, iterator)) = &self.open {
            if iterator.valid() || iterator.status().is_err() {
                return;
            }
            let next = at + 1;
            if self.open(Some(next)) {
                self.at().seek_to_first();
            }
        }
    }

    fn skip_backward(&mut self) {
        while let Some((at, iterator)) = &self.open {
            if iterator.valid() || iterator.status().is_err() {
                return;
            }
            let previous = at.checked_sub(1);
            if self.open(previous) {
                self.at().seek_to_last();
            }
        }
    }
}

impl InternalIterator for RunIterator {
    #[inline]
    fn valid(&self) -> bool {
        self.failure.is_none() && self.open.as_ref().is_some_and(|(_, here)| here.valid())
    }

    fn seek_to_first(&mut self) {
        self.failure = None;
        if self.open(Some(0)) {
            self.at().seek_to_first();
            self.skip_forward();
        }
    }

    fn seek_to_last(&mut self) {
        self.failure = None;
        if self.open(self.range.len().checked_sub(1)) {
            self.at().seek_to_last();
            self.skip_backward();
        }
    }

    fn seek(&mut self, target: &[u8]) {
        self.failure = None;
        let at = self
            .files()
            .partition_point(|file| compare_internal(&file.meta.largest, target).is_lt());
        if self.open(Some(at)) {
            self.at().seek(target);
            self.skip_forward();
        }
    }

    fn seek_for_prev(&mut self, target: &[u8]) {
        self.failure = None;
        let after = self
            .files()
            .partition_point(|file| compare_internal(&file.meta.smallest, target).is_le());
        if self.open(after.checked_sub(1)) {
            self.at().seek_for_prev(target);
            self.skip_backward();
        }
    }

    #[inline]
    fn next(&mut self) {
        let here = self.at();
        here.next();
        if !here.valid() {
            self.skip_forward();
        }
    }

    fn prev(&mut self) {
        self.at().prev();
        self.skip_backward();
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.here().key()
    }

    #[inline]
    fn value(&self) -> &[u8] {
        self.here().value()
    }

    fn is_cached(&self) -> bool {
        self.here().is_cached()
    }

    fn status(&self) -> Result<()> {
        match (&self.failure, &self.open) {
            (Some(failure), _) => Err(failure.clone()),
            (None, Some((_, iterator))) => iterator.status(),
            (None, None) => Ok(()),
        }
    }
}
