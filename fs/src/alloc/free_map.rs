//! Run index: the free runs of a range of blocks, by place and by length.
//!
//! Invariants: runs are disjoint, never empty, never adjacent (neighbours are merged), and both
//! maps hold the same runs. Rebuilt at mount from the extents in use; never on the device.

use std::collections::{BTreeMap, BTreeSet};

/// Free runs of blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct FreeMap {
    /// start -> blocks
    by_start: BTreeMap<u64, u64>,
    /// (blocks, start)
    by_len: BTreeSet<(u64, u64)>,
    free_blocks: u64,
}

impl FreeMap {
    /// The gaps that `used`, ascending and disjoint, leaves in the runs `space`, ascending.
    /// Fails with the first used run that overlaps another or lies outside.
    pub(crate) fn from_used(space: &[(u64, u64)], used: &[(u64, u64)]) -> Result<Self, (u64, u64)> {
        let mut runs = Vec::new();
        let mut used = used.iter().copied().peekable();
        for &(start, blocks) in space {
            let end = start + blocks;
            let mut at = start;
            while let Some(run) = used.next_if(|&(used_start, _)| used_start < end) {
                let (used_start, used_blocks) = run;
                let used_end = used_start.checked_add(used_blocks).ok_or(run)?;
                if used_start < at || used_end > end || used_blocks == 0 {
                    return Err(run);
                }
                if used_start > at {
                    runs.push((at, used_start - at));
                }
                at = used_end;
            }
            if at < end {
                runs.push((at, end - at));
            }
        }
        if let Some(outside) = used.next() {
            return Err(outside);
        }
        Ok(FreeMap {
            free_blocks: runs.iter().map(|run| run.1).sum(),
            by_len: runs
                .iter()
                .map(|&(start, blocks)| (blocks, start))
                .collect(),
            by_start: runs.into_iter().collect(),
        })
    }

    /// Number of free blocks.
    pub(crate) fn free_blocks(&self) -> u64 {
        self.free_blocks
    }

    /// All free runs, ascending.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.by_start
            .iter()
            .map(|(&start, &blocks)| (start, blocks))
    }

    /// The shortest run of at least `blocks`, the lowest among equals.
    pub(crate) fn best_fit(&self, blocks: u64) -> Option<(u64, u64)> {
        self.by_len
            .range((blocks, 0)..)
            .next()
            .map(|&(len, start)| (start, len))
    }

    /// The longest run, the highest among equals.
    pub(crate) fn longest(&self) -> Option<(u64, u64)> {
        self.by_len.last().map(|&(len, start)| (start, len))
    }

    /// The free run that begins at `start`, if one does.
    pub(crate) fn run_at(&self, start: u64) -> Option<u64> {
        self.by_start.get(&start).copied()
    }

    /// The first part of `from..to` that is free, as (start, blocks).
    pub(crate) fn first_in(&self, from: u64, to: u64) -> Option<(u64, u64)> {
        let before = self.by_start.range(..=from).next_back();
        let around = before.filter(|&(&start, &blocks)| start + blocks > from);
        let (&start, &blocks) = around.or_else(|| self.by_start.range(from..to).next())?;
        let first = start.max(from);
        let end = (start + blocks).min(to);
        (first < end).then(|| (first, end - first))
    }

    /// Takes `blocks` at `start` out of the free run that holds them.
    pub(crate) fn take(&mut self, start: u64, blocks: u64) {
        assert!(blocks > 0);
        let (&run_start, &run_blocks) = self
            .by_start
            .range(..=start)
            .next_back()
            .expect("the taken run is free");
        let run_end = run_start + run_blocks;
        let end = start + blocks;
        assert!(end <= run_end, "blocks {start}..{end} are not free");
        self.remove(run_start, run_blocks);
        if run_start < start {
            self.insert(run_start, start - run_start);
        }
        if end < run_end {
            self.insert(end, run_end - end);
        }
    }

    /// Gives `blocks` at `start` back, merging them with free neighbours.
    pub(crate) fn give(&mut self, start: u64, blocks: u64) {
        assert!(blocks > 0);
        let (mut start, mut end) = (start, start + blocks);
        if let Some((&before, &len)) = self.by_start.range(..start).next_back() {
            assert!(before + len <= start, "block {start} was free already");
            if before + len == start {
                self.remove(before, len);
                start = before;
            }
        }
        if let Some((&after, &len)) = self.by_start.range(start..).next() {
            assert!(after >= end, "block {after} was free already");
            if after == end {
                self.remove(after, len);
                end = after + len;
            }
        }
        self.insert(start, end - start);
    }

    fn insert(&mut self, start: u64, blocks: u64) {
        self.by_start.insert(start, blocks);
        self.by_len.insert((blocks, start));
        self.free_blocks += blocks;
    }

    fn remove(&mut self, start: u64, blocks: u64) {
        self.by_start.remove(&start);
        self.by_len.remove(&(blocks, start));
        self.free_blocks -= blocks;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn gaps_between_used_runs_are_free() {
        let map =
            FreeMap::from_used(&[(10, 90), (200, 50)], &[(10, 5), (20, 80), (249, 1)]).unwrap();
        assert_eq!(map.runs().collect::<Vec<_>>(), [(15, 5), (200, 49)]);
        assert_eq!(map.free_blocks(), 54);
    }

    #[test]
    fn the_first_free_part_of_a_range_is_found() {
        let map = FreeMap::from_used(&[(0, 100)], &[(10, 5), (20, 60)]).unwrap();
        assert_eq!(map.first_in(0, 100), Some((0, 10)));
        assert_eq!(map.first_in(5, 8), Some((5, 3)));
        assert_eq!(map.first_in(10, 30), Some((15, 5)));
        assert_eq!(map.first_in(18, 90), Some((18, 2)));
        assert_eq!(map.first_in(20, 80), None);
        assert_eq!(map.first_in(20, 81), Some((80, 1)));
    }

    #[test]
    fn used_runs_that_overlap_or_lie_outside_are_told() {
        let space = [(10, 90), (200, 50)];
        for (used, bad) in [
            (vec![(10, 5), (14, 2)], (14, 2)),
            (vec![(0, 1)], (0, 1)),
            (vec![(90, 20)], (90, 20)),
            (vec![(120, 1)], (120, 1)),
            (vec![(250, 1)], (250, 1)),
            (vec![(20, 0)], (20, 0)),
            (vec![(20, u64::MAX)], (20, u64::MAX)),
        ] {
            assert_eq!(FreeMap::from_used(&space, &used).unwrap_err(), bad);
        }
    }

    proptest! {
        #[test]
        fn takes_and_gives_match_a_bitmap(ops in prop::collection::vec((0u64..200, 1u64..30), 1..200)) {
            let mut map = FreeMap::from_used(&[(0, 256)], &[]).unwrap();
            let mut free = vec![true; 256];
            for (start, blocks) in ops {
                let range = start as usize..(start + blocks) as usize;
                if free[range.clone()].iter().all(|&f| f) {
                    map.take(start, blocks);
                    free[range].fill(false);
                } else if free[range.clone()].iter().all(|&f| !f) {
                    map.give(start, blocks);
                    free[range].fill(true);
                }
            }
            let mut expected = Vec::new();
            let mut at = 0;
            while at < 256 {
                let len = free[at..].iter().take_while(|&&f| f).count();
                if len > 0 {
                    expected.push((at as u64, len as u64));
                }
                at += len.max(1);
            }
            prop_assert_eq!(map.runs().collect::<Vec<_>>(), expected);
            prop_assert_eq!(map.free_blocks(), free.iter().filter(|&&f| f).count() as u64);
            prop_assert_eq!(map.by_len.len(), map.by_start.len());
        }
    }
}
