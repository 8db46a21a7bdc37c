//! Walks a table: the index gives the block, a cursor walks it, a readahead buffer feeds it.
//!
//! Blocks that are not in the cache are read one by one until a walk forward has missed twice in
//! a row; from then on in pieces that double from [`AHEAD_MIN`] to [`AHEAD_MAX`], or at once in
//! pieces of the size that the caller asked for.

use std::ops::Range;
use std::sync::Arc;

use super::block::{BadBlock, BlockCursor};
use super::footer::Handle;
use super::reader::Table;
use super::{Block, reader};
use crate::cache::{BlockKind, BlockRef, Reservation};
use crate::error::{Error, Result};
use crate::iter::InternalIterator;
use crate::stats::perf::{self, ReadFor};

const AHEAD_MIN: usize = 16 << 10;
const AHEAD_MAX: usize = 256 << 10;

/// How an iterator reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableReadOptions {
    /// Puts blocks that had to be read into the cache. Default true; a compaction or a long scan
    /// sets false.
    pub fill_cache: bool,
    /// Bytes read at once; 0: chosen as the walk goes. Default 0.
    pub readahead_bytes: usize,
    /// Looks into the cache without a trace, so that what is read is not taken for what readers ask for.
    /// For background work. Default false.
    pub silent: bool,
    /// Takes no data block from the cache either, so that the file is what is read. Default
    /// false.
    pub bypass_cache: bool,
}

impl Default for TableReadOptions {
    fn default() -> Self {
        TableReadOptions {
            fill_cache: true,
            readahead_bytes: 0,
            silent: false,
            bypass_cache: false,
        }
    }
}

/// Walks a table, which it keeps open.
pub struct TableIterator {
    options: TableReadOptions,
    /// Read at the first seek. Of a partitioned index, the partition that the walk is in.
    index: Option<BlockRef>,
    /// The index of partitions, read at the first seek, and the number of the one that the walk is in.
    top: Option<(BlockRef, usize)>,
    /// Number of the block that the cursor is in.
    at: usize,
    block: Option<BlockRef>,
    /// The block was in the cache.
    from_cache: bool,
    cursor: BlockCursor,
    ahead: Readahead,
    failure: Option<Error>,
    /// Dropped last: who closes a table has to hold no block of it.
    table: Arc<Table>,
}

/// A piece of the file read ahead, and how the walk has gone so far.
#[derive(Default)]
struct Readahead {
    bytes: Vec<u8>,
    start: u64,
    /// Where the last block ended.
    expected: u64,
    /// Reads in a row that began where the last block ended.
    run: u32,
    size: usize,
    /// Memory of the cache's budget for `bytes`, where the caller has not chosen their size.
    reserved: Option<(usize, Reservation)>,
}

impl TableIterator {
    pub(super) fn new(table: Arc<Table>, options: TableReadOptions) -> Self {
        TableIterator {
            options,
            index: None,
            top: None,
            at: 0,
            block: None,
            from_cache: false,
            cursor: BlockCursor::default(),
            ahead: Readahead::default(),
            failure: None,
            table,
        }
    }

    /// Makes ready for a seek and takes the index in which its place is, by the number that `find` gives
    /// of the parts of an index of partitions. False where there is no such place or a read fails.
    fn begin(&mut self, find: impl FnOnce(&Block) -> usize) -> bool {
        self.cursor.valid = false;
        self.failure = None;
        if self.index.is_none() && self.top.is_none() {
            match self.table.index_for(&self.options) {
                Ok(index) if self.table.is_partitioned() => self.top = Some((index, usize::MAX)),
                Ok(index) => self.index = Some(index),
                Err(failure) => {
                    self.failure = Some(failure);
                    return false;
                }
            }
        }
        match &self.top {
            None => true,
            Some((top, _)) => {
                let part = find(top);
                self.enter_partition(part)
            }
        }
    }

    /// Takes the partition `part` of a partitioned index; false where there is none or its read fails.
    fn enter_partition(&mut self, part: usize) -> bool {
        let Some((top, current)) = &mut self.top else {
            return false;
        };
        let (bytes, layout) = top.as_index();
        if part >= layout.count() {
            return false;
        }
        if *current == part {
            return true;
        }
        // Numbers of blocks are those of the partition.
        self.block = None;
        let place = layout.block(bytes, part);
        match self.table.partition(place, &self.options) {
            Ok(partition) => {
                *current = part;
                self.index = Some(partition);
                true
            }
            Err(failure) => {
                *current = usize::MAX;
                self.failure = Some(failure);
                false
            }
        }
    }

    /// Moves to block `at` and positions the cursor there.
    fn enter(
        &mut self,
        at: usize,
        position: impl FnOnce(&mut BlockCursor, &Block) -> Result<(), BadBlock>,
    ) {
        self.cursor.valid = false;
        if self.block.is_none() || self.at != at {
            self.block = None;
            match self.load(at) {
                Ok(block) => (self.at, self.block) = (at, Some(block)),
                Err(failure) => {
                    self.failure = Some(failure);
                    return;
                }
            }
        }
        let block = self.block.as_ref().expect("set above");
        let positioned = position(&mut self.cursor, block);
        self.check(positioned);
    }

    fn place(&self, at: usize) -> Range<u64> {
        let (bytes, layout) = self.index.as_ref().expect("a seek came before").as_index();
        layout.block(bytes, at)
    }

    fn count(&self) -> usize {
        self.index
            .as_ref()
            .expect("a seek came before")
            .as_index()
            .1
            .count()
    }

    fn check(&mut self, moved: Result<(), BadBlock>) {
        if let Err(bad) = moved {
            self.cursor.valid = false;
            self.failure = Some(self.table.bad_block(self.place(self.at).start, bad));
        }
    }

    fn load(&mut self, at: usize) -> Result<BlockRef> {
        let place = self.place(at);
        let cached = match (self.options.bypass_cache, self.options.silent) {
            (true, _) => None,
            (false, true) => self.table.peek_block(&place),
            (false, false) => self.table.cached_block(&place),
        };
        self.from_cache = cached.is_some();
        if let Some(block) = cached {
            return Ok(block);
        }
        let contents = self
            .ahead
            .read(&self.table, place.clone(), self.options.readahead_bytes)?;
        let block = self.table.as_data_block(contents, place.start)?;
        match self.options.fill_cache && !self.options.bypass_cache {
            true => {
                let cost = (place.end - place.start) as usize;
                Ok(self.table.cache_block(place.start, block, cost))
            }
            false => Ok(block.into()),
        }
    }

    #[cold]
    fn next_block(&mut self) {
        let mut next = self.at + 1;
        if next == self.count() {
            let part = self.top.as_ref().map(|(_, part)| part + 1);
            match part {
                Some(part) if self.enter_partition(part) => next = 0,
                _ => return,
            }
        }
        if next < self.count() {
            self.enter(next, |cursor, block| {
                let (bytes, layout) = block.as_data();
                cursor.seek_to_first(bytes, layout)
            });
        }
    }

    #[cold]
    fn prev_block(&mut self) {
        let mut at = self.at;
        if at == 0 {
            let part = self.top.as_ref().and_then(|(_, part)| part.checked_sub(1));
            match part {
                Some(part) if self.enter_partition(part) => at = self.count(),
                _ => return,
            }
        }
        if at > 0 {
            self.enter(at - 1, |cursor, block| {
                let (bytes, layout) = block.as_data();
                cursor.seek_to_last(bytes, layout)
            });
        }
    }
}

impl Readahead {
    /// The contents of the block at `place`.
    fn read(&mut self, table: &Table, place: Range<u64>, fixed: usize) -> Result<Vec<u8>> {
        let len = (place.end - place.start) as usize;
        let held = self.start + self.bytes.len() as u64;
        if place.start < self.start || place.end > held {
            self.run = if place.start == self.expected {
                self.run + 1
            } else {
                0
            };
            self.size = match (fixed, self.run) {
                (0, 0 | 1) => 0,
                (0, _) => (self.size * 2).clamp(AHEAD_MIN, AHEAD_MAX),
                _ => fixed,
            };
            self.expected = place.end;
            if self.size <= len {
                let handle = Handle {
                    offset: place.start,
                    len: len as u64,
                };
                return table.read_block(handle, BlockKind::Data);
            }
            let end = table
                .properties()
                .data_bytes
                .min(place.start.saturating_add(self.size as u64));
            if fixed == 0 && self.reserved.as_ref().is_none_or(|held| held.0 < self.size) {
                self.reserved = Some((self.size, table.cache().reserve(self.size)));
            }
            self.bytes = Vec::new();
            self.bytes = reader::read_exactly(table.file(), table.name(), place.start..end)?;
            perf::read(ReadFor::Block(BlockKind::Data), self.bytes.len());
            self.start = place.start;
        }
        self.expected = place.end;
        let at = (place.start - self.start) as usize;
        table.unseal_slice(&self.bytes[at..at + len], place.start)
    }
}

impl InternalIterator for TableIterator {
    #[inline]
    fn valid(&self) -> bool {
        self.cursor.valid
    }

    fn seek_to_first(&mut self) {
        if self.begin(|_| 0) {
            self.enter(0, |cursor, block| {
                let (bytes, layout) = block.as_data();
                cursor.seek_to_first(bytes, layout)
            });
        }
    }

    fn seek_to_last(&mut self) {
        if self.begin(|top| top.as_index().1.count() - 1) {
            self.enter(self.count() - 1, |cursor, block| {
                let (bytes, layout) = block.as_data();
                cursor.seek_to_last(bytes, layout)
            });
        }
    }

    fn seek(&mut self, target: &[u8]) {
        let find = |index: &Block| {
            let (bytes, layout) = index.as_index();
            layout.find(bytes, target)
        };
        if !self.begin(find) {
            return;
        }
        let at = find(self.index.as_ref().expect("taken by the beginning"));
        if at == self.count() {
            return;
        }
        self.enter(at, |cursor, block| {
            let (bytes, layout) = block.as_data();
            cursor.seek(bytes, layout, target)
        });
        // The target may lie between a block's last key and its separator.
        if !self.cursor.valid && self.failure.is_none() {
            self.next_block();
        }
    }

    fn seek_for_prev(&mut self, target: &[u8]) {
        self.seek(target);
        if self.failure.is_some() || self.valid() && self.key() == target {
            return;
        }
        if self.valid() {
            self.prev();
        } else {
            self.seek_to_last();
        }
    }

    #[inline]
    fn next(&mut self) {
        assert!(self.cursor.valid, "next needs a valid iterator");
        let (bytes, layout) = self
            .block
            .as_ref()
            .expect("a valid cursor has a block")
            .as_data();
        let moved = self.cursor.next(bytes, layout);
        if !self.cursor.valid {
            self.check(moved);
            if moved.is_ok() {
                self.next_block();
            }
        }
    }

    fn prev(&mut self) {
        assert!(self.cursor.valid, "prev needs a valid iterator");
        let (bytes, layout) = self
            .block
            .as_ref()
            .expect("a valid cursor has a block")
            .as_data();
        let moved = self.cursor.prev(bytes, layout);
        if !self.cursor.valid {
            self.check(moved);
            if moved.is_ok() {
                self.prev_block();
            }
        }
    }

    #[inline]
    fn key(&self) -> &[u8] {
        assert!(self.cursor.valid, "key needs a valid iterator");
        &self.cursor.key
    }

    #[inline]
    fn value(&self) -> &[u8] {
        assert!(self.cursor.valid, "value needs a valid iterator");
        let block = self.block.as_ref().expect("a valid cursor has a block");
        &block.contents()[self.cursor.value.clone()]
    }

    fn is_cached(&self) -> bool {
        self.from_cache
    }

    fn status(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }
}
