//! Where the reads of one thread went: counters of the thread's own, without atomics, in the manner of
//! RocksDB's PerfContext.
//!
//! A read counts what it took from the cache and each request that it made of the filesystem. Whoever
//! wants to know of one call takes the counts before and after; the engine does so for each Get and
//! so tells exactly how many Gets needed how many reads.

use std::cell::Cell;

use crate::cache::{BlockKind, KINDS};

/// What a request of the filesystem was for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReadFor {
    Block(BlockKind),
    /// The end of a blob file that is opened: its index, properties and dictionary.
    BlobIndex,
    /// The end of a table that is opened.
    TableTail,
}

impl ReadFor {
    fn slot(self) -> usize {
        match self {
            ReadFor::Block(kind) => kind as usize,
            ReadFor::BlobIndex => 4,
            ReadFor::TableTail => 5,
        }
    }
}

/// What the calling thread has read so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PerfContext {
    /// Found in the cache, or an index of a blob file in memory, by [`BlockKind`].
    pub cache_hits: [u64; KINDS],
    /// Requests of the filesystem, by [`BlockKind`] of what they are for: data blocks, also those that are cached
    /// packed, index and filter blocks, and values, of which neighbours read at once are one.
    pub reads: [u64; 4],
    /// Requests of the filesystem to open blob files, whose index then is in memory.
    pub blob_index_reads: u64,
    /// Requests of the filesystem to open tables.
    pub table_open_reads: u64,
    /// Bytes of all these requests.
    pub read_bytes: u64,
}

impl PerfContext {
    /// What the calling thread has read since it began or since [`PerfContext::reset`].
    pub fn current() -> PerfContext {
        PERF.with(|perf| {
            let reads = perf.reads.each_ref().map(Cell::get);
            PerfContext {
                cache_hits: perf.hits.each_ref().map(Cell::get),
                reads: [reads[0], reads[1], reads[2], reads[3]],
                blob_index_reads: reads[4],
                table_open_reads: reads[5],
                read_bytes: perf.bytes.get(),
            }
        })
    }

    /// Begins to count anew for the calling thread.
    pub fn reset() {
        PERF.with(|perf| {
            perf.hits.iter().for_each(|count| count.set(0));
            perf.reads.iter().for_each(|count| count.set(0));
            perf.bytes.set(0);
        });
    }

    /// Requests of the filesystem, of all kinds.
    pub fn total_reads(&self) -> u64 {
        self.reads.iter().sum::<u64>() + self.blob_index_reads + self.table_open_reads
    }
}

struct Counts {
    hits: [Cell<u64>; KINDS],
    reads: [Cell<u64>; 6],
    /// Sum of `reads`, never reset: for differences.
    total: Cell<u64>,
    bytes: Cell<u64>,
    /// As `bytes`, never reset.
    total_bytes: Cell<u64>,
}

thread_local! {
    static PERF: Counts = const {
        Counts {
            hits: [const { Cell::new(0) }; KINDS],
            reads: [const { Cell::new(0) }; 6],
            total: Cell::new(0),
            bytes: Cell::new(0),
            total_bytes: Cell::new(0),
        }
    };
}

fn bump(count: &Cell<u64>, by: u64) {
    count.set(count.get().wrapping_add(by));
}

/// Something was found in the cache.
#[inline]
pub(crate) fn hit(kind: BlockKind) {
    PERF.with(|perf| bump(&perf.hits[kind as usize], 1));
}

/// A request of the filesystem was made.
pub(crate) fn read(what: ReadFor, bytes: usize) {
    PERF.with(|perf| {
        bump(&perf.reads[what.slot()], 1);
        bump(&perf.total, 1);
        bump(&perf.bytes, bytes as u64);
        bump(&perf.total_bytes, bytes as u64);
    });
}

/// Requests that the calling thread ever made: the difference of two tells those between.
#[inline]
pub(crate) fn reads_so_far() -> u64 {
    PERF.with(|perf| perf.total.get())
}

/// Bytes that the calling thread ever asked for, as [`reads_so_far`].
pub(crate) fn bytes_so_far() -> u64 {
    PERF.with(|perf| perf.total_bytes.get())
}
