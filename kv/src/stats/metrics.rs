//! Counters of what the engine did since it was opened. Relaxed atomics: exact in sum, and no
//! order between two of them is promised.
//!
//! There are a few sets of them, and a thread counts in one: a counter that all threads write would
//! cost a read from memory more than the rest of its bookkeeping does, as its cache line goes
//! from core to core. The sum is made when somebody asks.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Sets of counters of one database.
pub(crate) const SETS: usize = 8;

macro_rules! tickers {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// One set of counters, on cache lines of its own.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub(crate) struct TickerSet {
            $(pub(crate) $name: Ticker,)+
        }

        /// The counters of a database at one moment.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct TickerValues {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Tickers {
            pub(crate) fn values(&self) -> TickerValues {
                TickerValues {
                    $($name: self.sets.iter().map(|set| set.$name.get()).sum(),)+
                }
            }
        }

        impl TickerValues {
            /// Every counter with its name and what it counts.
            pub(crate) fn described(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), concat!($($doc),+).trim_ascii(), self.$name),)+]
            }

            /// Every counter with its name.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }
        }
    };
}

tickers! {
    /// Changes written: puts and deletions.
    keys_written,
    /// Bytes of the batches written.
    bytes_written,
    /// Groups of batches committed.
    write_groups,
    /// Groups that several threads inserted into the memtables.
    shared_inserts,
    /// Blob files whose values compactions took along.
    blob_files_along,
    /// Bytes appended to write-ahead logs, framing not included.
    wal_bytes,
    /// Syncs of write-ahead logs.
    wal_syncs,
    /// Write-ahead logs that were ready when the one before was full.
    spare_logs,
    /// Microseconds that writers were slowed or stopped.
    stall_micros,
    /// Waits of writers for memtables of the environment's databases to be flushed.
    waits_for_memory,
    /// Keys looked up.
    keys_read,
    /// Lookups that found a value.
    keys_found,
    /// Bytes of the values found.
    bytes_read,
    /// Lookups answered by a memtable.
    memtable_hits,
    /// Lookups beyond the memtables, each key of a MultiGet one, that made no request of the filesystem: tables, blob files and cache
    /// had it all in memory.
    gets_from_cache,
    /// Lookups that made one request of the filesystem.
    gets_with_one_read,
    /// Lookups that made two.
    gets_with_two_reads,
    /// Lookups that made more, of which most open a file.
    gets_with_more_reads,
    /// Blob files opened, whose index then is in memory.
    blob_index_loads,
    /// Reads of separated values; records next to each other are one read.
    blob_reads,
    /// Iterators made.
    iterators,
    /// Memtables flushed.
    flushes,
    /// Bytes of tables written by flushes.
    flush_bytes,
    /// Compactions that merged tables.
    compactions,
    /// Compactions that only changed a table's level.
    trivial_moves,
    /// Bytes of tables read by compactions.
    compaction_read_bytes,
    /// Bytes of tables written by compactions.
    compaction_write_bytes,
    /// Bytes of tables read to merge runs that a change of policy left.
    migration_bytes,
    /// Bytes of tables dropped unread by FIFO compaction.
    dropped_bytes,
    /// Bytes of blob files written by flushes and compactions.
    blob_write_bytes,
    /// Garbage collections of blob files.
    blob_collections,
    /// Bytes of blob files read by garbage collections.
    blob_collection_read_bytes,
    /// Bytes of blob files written by garbage collections.
    blob_collection_write_bytes,
}

/// The counters of one database. A thread reaches its own set through [`Deref`].
#[derive(Debug, Default)]
pub(crate) struct Tickers {
    sets: [TickerSet; SETS],
}

thread_local! {
    static SET: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The set that this thread counts in: threads take turns, as they first ask.
#[inline]
pub(crate) fn set_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    SET.with(|set| {
        if set.get() == usize::MAX {
            set.set(NEXT.fetch_add(1, Ordering::Relaxed) % SETS);
        }
        set.get()
    })
}

impl Deref for Tickers {
    type Target = TickerSet;

    #[inline]
    fn deref(&self) -> &TickerSet {
        &self.sets[set_of_thread()]
    }
}

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Ticker(AtomicU64);

impl Ticker {
    #[inline]
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_count_is_in_the_sum() {
        let tickers = Tickers::default();
        std::thread::scope(|scope| {
            for _ in 0..3 * SETS {
                scope.spawn(|| {
                    for _ in 0..100 {
                        tickers.keys_read.add(2);
                    }
                });
            }
        });
        let values = tickers.values();
        assert_eq!(values.keys_read, 3 * SETS as u64 * 200);
        assert_eq!(values.keys_found, 0);
    }
}
