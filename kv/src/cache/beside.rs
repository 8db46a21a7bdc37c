//! Memory beside the cache that is charged to its budget, and which of it can be given up.
//!
//! Who reserves memory for good (memtables, buffers, what open tables pin) has it whatever the budget is. Open blob
//! files, whose indexes are what a read of a value starts from, come next: they have up to three quarters of
//! what is left, at least of a quarter of the budget ([`Beside::room`]). What is over that goes by a clock: a file
//! that nobody has used since the hand last passed is closed, and its index read again when somebody asks for it.
//! So the sum of all stays within the budget, but for what is reserved for good beyond three quarters of it and for
//! files that are being read.
//!
//! Lock: `clock` is held to move the hand and while files are closed, which is no I/O; no other lock is taken then. It
//! is taken when a file is opened, and when the budget is short.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Something beside the cache that can be read again: it charges its memory with
/// [`super::BlockCache::reserve_evictable`] for as long as the memory is there.
pub(crate) trait Evictable: Send + Sync {
    /// True where it was used since this was last asked.
    fn take_used(&self) -> bool;

    /// Gives its memory up, as far as nobody uses it now; returns the bytes.
    fn evict(&self) -> usize;
}

/// Fewer than this many are not looked through for those that are gone.
const PRUNE_MIN: usize = 64;

#[derive(Default)]
struct Clock {
    /// The hand is at the front. One may be here twice, or without memory.
    things: VecDeque<Weak<dyn Evictable>>,
    /// Length from which the list is looked through for what is gone.
    prune_at: usize,
}

#[derive(Default)]
pub(super) struct Beside {
    fixed: AtomicUsize,
    evictable: AtomicUsize,
    clock: Mutex<Clock>,
}

impl Beside {
    fn counter(&self, is_evictable: bool) -> &AtomicUsize {
        match is_evictable {
            true => &self.evictable,
            false => &self.fixed,
        }
    }

    pub(super) fn add(&self, bytes: usize, is_evictable: bool) {
        self.counter(is_evictable)
            .fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, bytes: usize, is_evictable: bool) {
        self.counter(is_evictable)
            .fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes charged, of all and of what can be given up.
    pub(super) fn charged(&self) -> (usize, usize) {
        let evictable = self.evictable.load(Ordering::Relaxed);
        (self.fixed.load(Ordering::Relaxed) + evictable, evictable)
    }

    /// What a budget of `capacity` bytes still has for what is reserved for good.
    pub(super) fn unreserved(&self, capacity: usize) -> usize {
        (capacity / 4 * 3).saturating_sub(self.fixed.load(Ordering::Relaxed))
    }

    /// What a budget of `capacity` bytes has for the evictable and for the cache's entries: the most that the first
    /// may have, and what the second have now.
    pub(super) fn room(&self, capacity: usize) -> (usize, usize) {
        let fixed = self.fixed.load(Ordering::Relaxed);
        let left = capacity - fixed.min(capacity / 4 * 3);
        let most = left / 4 * 3;
        let evictable = self.evictable.load(Ordering::Relaxed);
        (most, left - evictable.min(most))
    }

    /// Adds something to the clock that has just charged memory.
    pub(super) fn keep(&self, thing: Weak<dyn Evictable>) {
        let mut clock = self.clock.lock();
        if clock.things.len() >= clock.prune_at.max(PRUNE_MIN) {
            clock.things.retain(|thing| thing.strong_count() > 0);
            clock.prune_at = clock.things.len() * 2;
        }
        clock.things.push_back(thing);
    }

    /// Has things give up their memory until at most `most` bytes of it are charged, as far as nobody uses it.
    pub(super) fn shrink(&self, most: usize) {
        if self.evictable.load(Ordering::Relaxed) <= most {
            return;
        }
        let mut clock = self.clock.lock();
        // Dropped after the lock is released: the last owner of a thing may be here.
        let mut visited: Vec<Arc<dyn Evictable>> = Vec::new();
        let mut over = self.evictable.load(Ordering::Relaxed).saturating_sub(most);
        // Each is passed over at most once.
        for _ in 0..2 * clock.things.len() {
            if over == 0 {
                break;
            }
            let Some(weak) = clock.things.pop_front() else {
                break;
            };
            let Some(thing) = weak.upgrade() else {
                continue;
            };
            match thing.take_used() {
                true => clock.things.push_back(weak),
                false => over = over.saturating_sub(thing.evict()),
            }
            visited.push(thing);
        }
        drop(clock);
    }
}
