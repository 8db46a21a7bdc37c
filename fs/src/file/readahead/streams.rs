//! The readers of one open file, told apart by where their reads go on.
//!
//! A table of a few candidates, each the end of a recent read, and of a few streams. A reader takes its
//! stream out of the table while it reads, so that no lock is held across I/O; who comes to the
//! same place meanwhile finds nothing and reads by itself.
//!
//! Lock: `table` is a leaf. A reader that finds it taken does without.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::budget::Budget;
use super::window::Stream;

/// Streams of one file.
const STREAMS_MAX: usize = 4;

/// Ends of reads that are remembered.
const CANDIDATES: usize = 8;

/// Reads in a row that make a stream, beside the first one.
const CONFIRMATIONS: u8 = 2;

/// The readers of one open file.
#[derive(Debug)]
pub(crate) struct Streams {
    table: Mutex<Table>,
    /// It stands in the budget's queue.
    is_holder: AtomicBool,
    window_max: u64,
}

#[derive(Debug, Default)]
struct Table {
    candidates: [Candidate; CANDIDATES],
    /// The candidate to be replaced next.
    oldest: usize,
    streams: Vec<Stream>,
    reads: u64,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// Where a read ended.
    next: u64,
    /// How often a read went on there.
    confirmed: u8,
}

impl Default for Candidate {
    fn default() -> Self {
        Candidate {
            next: u64::MAX,
            confirmed: 0,
        }
    }
}

impl Streams {
    pub(crate) fn new(budget: &Budget) -> Arc<Streams> {
        Arc::new(Streams {
            table: Mutex::default(),
            is_holder: AtomicBool::new(false),
            window_max: budget.window_max(),
        })
    }

    /// The stream that a read of `len` bytes at `offset` belongs to, taken out of the table; `None` for a
    /// reader that is not known to be sequential.
    pub(super) fn take(&self, offset: u64, len: u64) -> Option<Stream> {
        let mut table = self.table.try_lock()?;
        table.reads += 1;
        let continues = |stream: &Stream| stream.continues_at(offset);
        let mut stream = match table.streams.iter().position(continues) {
            Some(at) => table.streams.swap_remove(at),
            None if table.confirm(offset, len) => Stream::new(len, self.window_max),
            None => return None,
        };
        stream.next = offset + len;
        stream.used_at = table.reads;
        stream.used = true;
        Some(stream)
    }

    /// Puts a stream back, in place of the one that was used least recently if there are too many.
    pub(super) fn put_back(self: &Arc<Self>, stream: Stream, budget: &Budget) {
        let holds_memory = stream.holds_memory();
        let replaced = {
            let mut table = self.table.lock();
            table.streams.push(stream);
            (table.streams.len() > STREAMS_MAX).then(|| {
                let used_at = |at: &usize| table.streams[*at].used_at;
                let least = (0..table.streams.len()).min_by_key(used_at);
                table.streams.swap_remove(least.expect("there are some"))
            })
        };
        // Dropping it may wait for the device.
        drop(replaced);
        if holds_memory && !self.is_holder.swap(true, Ordering::AcqRel) {
            budget.add_holder(self);
        }
    }

    /// Forgets everything. The caller has the file's gate alone, so that no reader has a stream out.
    pub(crate) fn forget(&self) {
        let dropped = std::mem::take(&mut *self.table.lock());
        drop(dropped);
    }

    /// Drops the memory of streams that were not used since the last call; true where some
    /// memory stays.
    pub(super) fn give_up_idle(&self) -> bool {
        let mut idle = Vec::new();
        let mut stays = false;
        {
            let mut table = self.table.lock();
            let mut at = 0;
            while at < table.streams.len() {
                if std::mem::take(&mut table.streams[at].used) {
                    stays |= table.streams[at].holds_memory();
                    at += 1;
                } else {
                    idle.push(table.streams.swap_remove(at));
                }
            }
            // A stream that is out comes back later; `put_back` then queues the file again.
            self.is_holder.store(stays, Ordering::Release);
        }
        drop(idle);
        stays
    }
}

impl Table {
    /// Notes a read; true where it goes on from another one for the second time.
    fn confirm(&mut self, offset: u64, len: u64) -> bool {
        let next = offset + len;
        let found = self.candidates.iter_mut().find(|one| one.next == offset);
        match found {
            Some(one) if one.confirmed + 1 >= CONFIRMATIONS => {
                *one = Candidate::default();
                return true;
            }
            Some(one) => {
                one.next = next;
                one.confirmed += 1;
            }
            None => {
                let at = self.oldest;
                self.oldest = (at + 1) % CANDIDATES;
                // A reader that begins at the beginning mostly goes on.
                let confirmed = u8::from(offset == 0);
                self.candidates[at] = Candidate { next, confirmed };
            }
        }
        false
    }
}
