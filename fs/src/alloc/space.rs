//! Allocator: chooses runs for files, and keeps freed runs back until their release is durable.
//!
//! Small requests (below [`SMALL_BLOCKS`]) are taken best-fit from runs that are small already,
//! else carved from the top of the longest run; large ones best-fit from the bottom. So small
//! files gather at one end and do not cut up the large runs. A request that no single run
//! can hold takes the longest one: free space of at least the need always means success, in as many
//! pieces as it takes (ceph#38438, rook#12433: spurious ENOSPC at half-full devices).
//!
//! A freed run goes into quarantine with the journal ticket of the operation that freed it, and becomes
//! free only when that ticket is durable: until then a crash would bring the old owner back.
//!
//! Appended bytes that are still in memory hold a reservation, so that "no space" is said to the
//! append and never to the write-out that follows. Runs taken ahead of need leave reservations alone.
//!
//! Not thread-safe; the filesystem holds it under one mutex.

use std::collections::VecDeque;

use super::FreeMap;

/// Requests below this many blocks (1 MiB) are small.
pub(crate) const SMALL_BLOCKS: u64 = 256;

/// A run of blocks on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) start: u64,
    pub(crate) blocks: u64,
}

/// Free space of one filesystem.
#[derive(Debug)]
pub(crate) struct Allocator {
    free: FreeMap,
    quarantine: VecDeque<(u64, Run)>,
    quarantined_blocks: u64,
    reserved_blocks: u64,
    discarding_blocks: u64,
    total_blocks: u64,
}

impl Allocator {
    pub(crate) fn new(free: FreeMap, total_blocks: u64) -> Self {
        Allocator {
            free,
            quarantine: VecDeque::new(),
            quarantined_blocks: 0,
            reserved_blocks: 0,
            discarding_blocks: 0,
            total_blocks,
        }
    }

    /// Blocks that files can have in all.
    pub(crate) fn total_blocks(&self) -> u64 {
        self.total_blocks
    }

    /// Blocks that are neither allocated nor reserved.
    pub(crate) fn free_blocks(&self) -> u64 {
        self.free.free_blocks() - self.reserved_blocks
    }

    /// Sets `blocks` aside for bytes that are not written out yet. False where there are not so many.
    pub(crate) fn reserve(&mut self, blocks: u64) -> bool {
        let enough = self.free_blocks() >= blocks;
        if enough {
            self.reserved_blocks += blocks;
        }
        enough
    }

    /// Ends a reservation, because its bytes now have a run or are gone.
    pub(crate) fn unreserve(&mut self, blocks: u64) {
        assert!(blocks <= self.reserved_blocks);
        self.reserved_blocks -= blocks;
    }

    /// Blocks that become free when the journal has caught up.
    pub(crate) fn quarantined_blocks(&self) -> u64 {
        self.quarantined_blocks
    }

    /// Blocks that are free but for a discard in flight.
    pub(crate) fn discarding_blocks(&self) -> u64 {
        self.discarding_blocks
    }

    /// Takes the first run that is free in `from..to`, as far as nobody has reserved it, out of the
    /// free space for a discard. It must come back by [`Allocator::return_discarded`].
    pub(crate) fn take_for_discard(&mut self, from: u64, to: u64) -> Option<Run> {
        let (start, blocks) = self.free.first_in(from, to)?;
        let blocks = blocks.min(self.free_blocks());
        if blocks == 0 {
            return None;
        }
        self.discarding_blocks += blocks;
        Some(self.take(start, blocks))
    }

    /// Ends a discard.
    pub(crate) fn return_discarded(&mut self, run: Run) {
        self.discarding_blocks -= run.blocks;
        self.free.give(run.start, run.blocks);
    }

    /// The free runs, ascending.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.free.runs()
    }

    /// Takes one run of 1 to `blocks` blocks: at `after`, the block behind the file's last
    /// extent, if it can; `blocks` where any free run is long enough, else the longest there is.
    /// `None` only where nothing is free.
    pub(crate) fn allocate(&mut self, blocks: u64, after: Option<u64>) -> Option<Run> {
        assert!(blocks > 0);
        if let Some(after) = after
            && let Some(len) = self.free.run_at(after)
            && len >= blocks
        {
            return Some(self.take(after, blocks));
        }
        let (start, len) = self.free.best_fit(blocks).or_else(|| self.free.longest())?;
        if len <= blocks {
            return Some(self.take(start, len));
        }
        let small_from_large = blocks < SMALL_BLOCKS && len >= SMALL_BLOCKS;
        let at = if small_from_large {
            let (start, len) = self.free.longest().expect("a run was found above");
            start + len - blocks
        } else {
            start
        };
        Some(self.take(at, blocks))
    }

    /// Takes a run like [`Allocator::allocate`], but at most what nobody has reserved.
    pub(crate) fn allocate_ahead(&mut self, blocks: u64, after: Option<u64>) -> Option<Run> {
        let blocks = blocks.min(self.free_blocks());
        if blocks == 0 {
            None
        } else {
            self.allocate(blocks, after)
        }
    }

    /// Adds blocks that the device did not have before.
    pub(crate) fn grow(&mut self, run: Run) {
        self.total_blocks += run.blocks;
        self.free.give(run.start, run.blocks);
    }

    /// Gives back a run whose release is the operation with journal ticket `ticket`.
    pub(crate) fn quarantine(&mut self, run: Run, ticket: u64) {
        self.quarantined_blocks += run.blocks;
        self.quarantine.push_back((ticket, run));
    }

    /// Frees what is durably released, and returns it.
    pub(crate) fn leave_quarantine(&mut self, durable_ticket: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        while let Some(&(ticket, run)) = self.quarantine.front()
            && ticket <= durable_ticket
        {
            self.quarantine.pop_front();
            self.quarantined_blocks -= run.blocks;
            self.free.give(run.start, run.blocks);
            runs.push(run);
        }
        runs
    }

    fn take(&mut self, start: u64, blocks: u64) -> Run {
        self.free.take(start, blocks);
        Run { start, blocks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn allocator(blocks: u64) -> Allocator {
        Allocator::new(FreeMap::from_used(&[(0, blocks)], &[]).unwrap(), blocks)
    }

    #[test]
    fn small_files_stay_apart_from_large_runs() {
        let mut a = allocator(10_000);
        assert_eq!(
            a.allocate(1000, None),
            Some(Run {
                start: 0,
                blocks: 1000
            })
        );
        assert_eq!(
            a.allocate(1, None),
            Some(Run {
                start: 9999,
                blocks: 1
            })
        );
        assert_eq!(
            a.allocate(2, None),
            Some(Run {
                start: 9997,
                blocks: 2
            })
        );
        assert_eq!(
            a.allocate(256, None),
            Some(Run {
                start: 1000,
                blocks: 256
            })
        );
    }

    #[test]
    fn a_file_grows_in_place_where_it_can() {
        let mut a = allocator(10_000);
        let first = a.allocate(300, None).unwrap();
        let after = first.start + first.blocks;
        assert_eq!(
            a.allocate(600, Some(after)),
            Some(Run {
                start: 300,
                blocks: 600
            })
        );
    }

    #[test]
    fn freed_runs_wait_for_their_ticket() {
        let mut a = allocator(10);
        let run = a.allocate(10, None).unwrap();
        a.quarantine(run, 5);
        assert_eq!(a.allocate(1, None), None);
        assert!(a.leave_quarantine(4).is_empty());
        assert_eq!(a.leave_quarantine(5), [run]);
        assert_eq!(a.free_blocks(), 10);
        assert_eq!(a.quarantined_blocks(), 0);
    }

    proptest! {
        #[test]
        fn free_of_at_least_the_need_means_success(
            holes in prop::collection::btree_set(0u64..2000, 0..1500),
            need in 1u64..2000,
        ) {
            let used: Vec<_> = holes.iter().map(|&start| (start, 1)).collect();
            let mut a = Allocator::new(FreeMap::from_used(&[(0, 2000)], &used).unwrap(), 2000);
            let free = a.free_blocks();
            let mut got = 0;
            while got < need {
                match a.allocate(need - got, None) {
                    Some(run) => got += run.blocks,
                    None => break,
                }
            }
            prop_assert_eq!(got, need.min(free));
            prop_assert_eq!(a.free_blocks(), free - got);
        }
    }
}
