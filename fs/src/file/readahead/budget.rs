//! The memory that a mounted filesystem reads ahead into.
//!
//! Every buffer takes a [`Loan`] of its length, [`MEMORY_MAX`] bytes at most together, or less where an
//! owner of the process's memory says so ([`Budget::limit_memory`]). Where nothing is left, files whose readers have stopped halfway give theirs up: they stand in a queue, and each
//! shortage looks at a few of them. A stream that was used since it was last looked at is spared.
//!
//! Lock: `holders` is taken when a file begins to hold buffers and in a shortage, never per
//! read and never across I/O; a file's table is not taken inside.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::streams::Streams;
use crate::types::{BLOCK_SIZE, align_down};

/// Most bytes that all reading ahead of one mount holds.
pub(crate) const MEMORY_MAX: u64 = 64 << 20;

/// Length in bytes of a reader's first window, and the shortest worth reading.
pub(super) const WINDOW_MIN: u64 = 64 << 10;

/// Files that one shortage looks at.
const LOOKED_AT: usize = 4;

/// What is left, and who has the rest.
#[derive(Debug)]
pub(crate) struct Budget {
    window_max: u64,
    memory_max: AtomicU64,
    lent: AtomicU64,
    holders: Mutex<Holders>,
}

/// Files that may hold buffers, the one looked at longest ago first.
#[derive(Debug, Default)]
struct Holders {
    queue: VecDeque<Weak<Streams>>,
    /// Length at which closed files are taken out, so that the queue stays within twice the open ones.
    pruned_at: usize,
}

/// Bytes of the budget; they return when it is dropped.
#[derive(Debug)]
pub(super) struct Loan {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.budget.lent.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Budget {
    /// `window_max` is the longest window in bytes, rounded down to a power of two; 0 reads nothing ahead.
    pub(crate) fn new(window_max: u64) -> Arc<Budget> {
        Arc::new(Budget {
            window_max: window_max.checked_ilog2().map_or(0, |log| 1 << log),
            memory_max: AtomicU64::new(MEMORY_MAX),
            lent: AtomicU64::new(0),
            holders: Mutex::default(),
        })
    }

    /// Bytes that are lent at most; none where nothing is read ahead.
    pub(crate) fn memory_max(&self) -> u64 {
        match self.window_max {
            0 => 0,
            _ => self.memory_max.load(Ordering::Acquire),
        }
    }

    /// Lowers what is lent at most. What is lent beyond that now returns as its readers go on.
    pub(crate) fn limit_memory(&self, bytes: u64) {
        self.memory_max.fetch_min(bytes, Ordering::AcqRel);
    }

    pub(super) fn window_max(&self) -> u64 {
        self.window_max
    }

    /// Lends `wanted` bytes, or half of that, and so on down to [`WINDOW_MIN`].
    pub(super) fn lend(self: &Arc<Self>, wanted: u64) -> Option<Loan> {
        self.lend_now(wanted).or_else(|| {
            self.take_back();
            self.lend_now(wanted)
        })
    }

    fn lend_now(self: &Arc<Self>, wanted: u64) -> Option<Loan> {
        let mut bytes = wanted;
        loop {
            let taken = self
                .lent
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |lent| {
                    (lent + bytes <= self.memory_max()).then_some(lent + bytes)
                });
            if taken.is_ok() {
                let budget = self.clone();
                return Some(Loan { budget, bytes });
            }
            if bytes / 2 < WINDOW_MIN {
                return None;
            }
            bytes = align_down(bytes / 2, BLOCK_SIZE);
        }
    }

    /// Puts a file in the queue of those that hold buffers.
    pub(super) fn add_holder(&self, streams: &Arc<Streams>) {
        let mut holders = self.holders.lock();
        if holders.queue.len() >= holders.pruned_at {
            holders.queue.retain(|file| file.strong_count() > 0);
            holders.pruned_at = (2 * holders.queue.len()).max(64);
        }
        holders.queue.push_back(Arc::downgrade(streams));
    }

    /// Makes files that have not read since they were last looked at give up their buffers.
    fn take_back(&self) {
        for _ in 0..LOOKED_AT {
            let Some(oldest) = self.holders.lock().queue.pop_front() else {
                return;
            };
            if let Some(streams) = oldest.upgrade()
                && streams.give_up_idle()
            {
                self.add_holder(&streams);
            }
        }
    }
}

impl Loan {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_lent_than_there_is_and_all_comes_back() {
        let budget = Budget::new(1 << 20);
        for _ in 0..3 {
            let mut loans = Vec::new();
            while let Some(loan) = budget.lend(1_000_000_000.min(budget.window_max())) {
                assert!(loan.bytes().is_multiple_of(BLOCK_SIZE));
                loans.push(loan);
            }
            let lent: u64 = loans.iter().map(Loan::bytes).sum();
            assert_eq!(lent, MEMORY_MAX);
            loans.truncate(loans.len() - 1);
            let last = budget.lend(1 << 20);
            assert!(last.is_some_and(|loan| loan.bytes() >= WINDOW_MIN));
        }
        assert_eq!(budget.lent.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_lowered_bound_holds_for_what_is_lent_from_then_on() {
        let budget = Budget::new(1 << 20);
        let before = [budget.lend(1 << 20), budget.lend(1 << 20)];
        assert!(before.iter().all(Option::is_some));
        budget.limit_memory(1 << 20);
        budget.limit_memory(8 << 20);
        assert_eq!(budget.memory_max(), 1 << 20, "it is never raised");
        assert!(budget.lend(WINDOW_MIN).is_none(), "more is out already");
        drop(before);
        let all = budget.lend(1 << 20).expect("all of it is back");
        assert_eq!(all.bytes(), 1 << 20);
        assert!(budget.lend(WINDOW_MIN).is_none());
    }

    #[test]
    fn closed_files_leave_the_queue() {
        let budget = Budget::new(1 << 20);
        for _ in 0..10_000 {
            budget.add_holder(&Streams::new(&budget));
        }
        assert!(budget.holders.lock().queue.len() <= 64);
    }
}
