//! Extent list: where on the device a file's blocks are.
//!
//! Extents follow one another without holes, since files only grow. An entry holds its first
//! device block and the file block after its last one: 16 bytes an extent, found by binary
//! search.
//!
//! Where an extent that is not the last one changes its length, all behind it move. Only a replay does
//! that, over a checkpoint that saw a later state, and may do it for each of many operations. So the entries
//! from there on hold their lengths instead (they are *loose*) until [`ExtentList::settle`] adds them up
//! once. Everything works on loose entries too, but looking for a block among them is a search one by
//! one. A single loose entry at the end is settled at once: a list that only grows never has any.

use crate::alloc::Run;

/// The extents of one file, in file order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExtentList {
    entries: Vec<Entry>,
    /// Entries from here on are loose.
    settled: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    start: u64,
    /// File block after the extent's last; of a loose one, its number of blocks.
    end: u64,
}

const _: () = assert!(size_of::<Entry>() == 16);

impl ExtentList {
    /// Number of extents.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Blocks allocated to the file.
    pub(crate) fn blocks(&self) -> u64 {
        let loose = &self.entries[self.settled..];
        self.first_block(self.settled) + loose.iter().map(|entry| entry.end).sum::<u64>()
    }

    /// The runs, in file order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        (0..self.entries.len()).map(|index| self.run(index))
    }

    /// The last run.
    pub(crate) fn last(&self) -> Option<Run> {
        Some(self.run(self.entries.len().checked_sub(1)?))
    }

    /// The device run that holds file block `block` and what follows it in the same extent.
    pub(crate) fn find(&self, block: u64) -> Option<Run> {
        let (index, first) = self.locate(block);
        if index == self.entries.len() {
            return None;
        }
        let Run { start, blocks } = self.run(index);
        let skipped = block - first;
        Some(Run {
            start: start + skipped,
            blocks: blocks - skipped,
        })
    }

    /// Sets extent `index`, moving later ones; missing ones before it become empty (they appear
    /// only while a journal is replayed). Returns the run that was there.
    pub(crate) fn set(&mut self, index: usize, run: Run) -> Option<Run> {
        if self.entries.capacity() == 0 {
            self.entries.reserve_exact(1);
        }
        while self.entries.len() < index {
            self.push(Run {
                start: 0,
                blocks: 0,
            });
        }
        if index == self.entries.len() {
            self.push(run);
            return None;
        }
        let old = self.run(index);
        self.entries[index].start = run.start;
        if old.blocks != run.blocks {
            self.loosen(index);
            self.entries[index].end = run.blocks;
            if self.settled + 1 == self.entries.len() {
                self.settle_next();
            }
        }
        Some(old)
    }

    /// Adds up the lengths of loose entries.
    pub(crate) fn settle(&mut self) {
        while self.settled < self.entries.len() {
            self.settle_next();
        }
    }

    /// True where [`ExtentList::settle`] has something to do.
    pub(crate) fn is_loose(&self) -> bool {
        self.settled < self.entries.len()
    }

    /// Keeps the first `count` extents, the last of them only to `last_blocks`. Returns what was cut
    /// off. Asking for more than there is keeps what there is.
    pub(crate) fn keep(&mut self, count: usize, last_blocks: u64) -> Vec<Run> {
        let mut cut: Vec<Run> = (count..self.entries.len())
            .map(|index| self.run(index))
            .collect();
        self.entries.truncate(count);
        self.settled = self.settled.min(self.entries.len());
        if count > 0 && self.entries.len() == count {
            let last = self.run(count - 1);
            if last_blocks < last.blocks {
                let surplus = last.blocks - last_blocks;
                cut.push(Run {
                    start: last.start + last_blocks,
                    blocks: surplus,
                });
                // Whether it holds its end or its length.
                self.entries[count - 1].end -= surplus;
            }
        }
        cut.retain(|run| run.blocks > 0);
        cut
    }

    /// How many extents, and how many blocks of the last of them, hold `blocks` blocks.
    pub(crate) fn prefix(&self, blocks: u64) -> (usize, u64) {
        let Some(last) = blocks.checked_sub(1) else {
            return (0, 0);
        };
        let (index, first) = self.locate(last);
        (index + 1, blocks - first)
    }

    /// The extent that holds file block `block`, and its first file block; behind the last extent, the
    /// place where the next one will be.
    fn locate(&self, block: u64) -> (usize, u64) {
        let settled = &self.entries[..self.settled];
        let mut index = settled.partition_point(|entry| entry.end <= block);
        let mut first = self.first_block(index);
        while index >= self.settled
            && let Some(loose) = self.entries.get(index)
            && first + loose.end <= block
        {
            first += loose.end;
            index += 1;
        }
        (index, first)
    }

    /// Makes the entries from `index` on loose.
    fn loosen(&mut self, index: usize) {
        for at in (index..self.settled).rev() {
            self.entries[at].end -= self.first_block(at);
            #[cfg(test)]
            tests::MOVED.set(tests::MOVED.get() + 1);
        }
        self.settled = self.settled.min(index);
    }

    fn settle_next(&mut self) {
        self.entries[self.settled].end += self.first_block(self.settled);
        self.settled += 1;
        #[cfg(test)]
        tests::MOVED.set(tests::MOVED.get() + 1);
    }

    fn push(&mut self, run: Run) {
        let loose = self.is_loose();
        self.entries.push(Entry {
            start: run.start,
            end: run.blocks,
        });
        if !loose {
            self.settle_next();
        }
    }

    /// The first file block of settled entry `index`, or of the first loose one.
    fn first_block(&self, index: usize) -> u64 {
        index
            .checked_sub(1)
            .map_or(0, |before| self.entries[before].end)
    }

    fn run(&self, index: usize) -> Run {
        let entry = self.entries[index];
        let before = if index < self.settled {
            self.first_block(index)
        } else {
            0
        };
        Run {
            start: entry.start,
            blocks: entry.end - before,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    thread_local! {
        /// Entries whose end was computed anew, by lists of this thread.
        pub(super) static MOVED: Cell<u64> = const { Cell::new(0) };
    }

    fn run(start: u64, blocks: u64) -> Run {
        Run { start, blocks }
    }

    #[test]
    fn blocks_are_found_where_they_were_put() {
        let mut list = ExtentList::default();
        assert_eq!(list.find(0), None);
        list.set(0, run(100, 10));
        list.set(1, run(50, 5));
        assert_eq!(list.blocks(), 15);
        assert_eq!(list.find(0), Some(run(100, 10)));
        assert_eq!(list.find(9), Some(run(109, 1)));
        assert_eq!(list.find(10), Some(run(50, 5)));
        assert_eq!(list.find(15), None);
        assert_eq!(list.prefix(0), (0, 0));
        assert_eq!(list.prefix(10), (1, 10));
        assert_eq!(list.prefix(11), (2, 1));
    }

    #[test]
    fn what_is_cut_off_is_returned() {
        let mut list = ExtentList::default();
        for (index, start) in [100, 200, 300].into_iter().enumerate() {
            list.set(index, run(start, 10));
        }
        assert_eq!(list.keep(2, 4), [run(300, 10), run(204, 6)]);
        assert_eq!(list.blocks(), 14);
        assert!(list.keep(5, 1).is_empty());
        assert_eq!(list.keep(0, 0), [run(100, 10), run(200, 4)]);
    }

    #[test]
    fn setting_again_changes_nothing_and_gaps_fill_in() {
        let mut list = ExtentList::default();
        list.set(2, run(30, 3));
        assert_eq!(list.len(), 3);
        list.set(0, run(10, 1));
        list.set(1, run(20, 2));
        assert_eq!(list.set(1, run(20, 2)), Some(run(20, 2)));
        assert_eq!(
            list.runs().collect::<Vec<_>>(),
            [run(10, 1), run(20, 2), run(30, 3)]
        );
        assert_eq!(list.find(3), Some(run(30, 3)));
    }

    /// A crafted journal set the first of many extents to one length and another in turns, and each
    /// moved all that follow: hours for a region full of them.
    #[test]
    fn extents_that_change_their_length_in_turns_move_the_others_once() {
        const EXTENTS: u64 = 10_000;
        let mut list = ExtentList::default();
        for index in 0..EXTENTS {
            list.set(index as usize, run(index * 10, 1));
        }
        assert!(!list.is_loose());
        MOVED.set(0);
        for turn in 0..EXTENTS {
            list.set((turn % 7) as usize, run(5, 1 + turn % 2));
        }
        list.settle();
        assert!(!list.is_loose());
        let moved = MOVED.get();
        assert!(moved <= 2 * EXTENTS, "{moved} entries were moved");
        let blocks: u64 = list.runs().map(|run| run.blocks).sum();
        assert_eq!(list.blocks(), blocks);
    }

    #[test]
    fn a_last_extent_that_grows_is_settled() {
        let mut list = ExtentList::default();
        list.set(0, run(100, 4));
        list.set(1, run(200, 4));
        MOVED.set(0);
        list.set(1, run(200, 8));
        assert!(!list.is_loose());
        assert!(MOVED.get() <= 2);
        assert_eq!(list.find(11), Some(run(207, 1)));
    }

    proptest! {
        /// Against a plain list of runs, whether settled or not.
        #[test]
        fn loose_and_settled_entries_answer_alike(
            ops in prop::collection::vec((0usize..12, 0u64..6, 0u8..8), 1..80)
        ) {
            let mut list = ExtentList::default();
            let mut model: Vec<Run> = Vec::new();
            for (index, blocks, kind) in ops {
                match kind {
                    0 => {
                        list.keep(index, blocks);
                        model.truncate(index);
                        if model.len() == index
                            && let Some(last) = model.last_mut()
                        {
                            last.blocks = last.blocks.min(blocks);
                        }
                    }
                    1 => list.settle(),
                    _ => {
                        let new = run(1000 * index as u64, blocks);
                        while model.len() < index {
                            model.push(run(0, 0));
                        }
                        if index == model.len() {
                            model.push(new);
                        } else {
                            model[index] = new;
                        }
                        list.set(index, new);
                    }
                }
                prop_assert_eq!(list.runs().collect::<Vec<_>>(), model.clone());
                let total: u64 = model.iter().map(|run| run.blocks).sum();
                prop_assert_eq!(list.blocks(), total);
                let mut block = 0;
                for (at, run) in model.iter().enumerate() {
                    for skipped in 0..run.blocks {
                        let expected = Run { start: run.start + skipped, blocks: run.blocks - skipped };
                        prop_assert_eq!(list.find(block), Some(expected));
                        block += 1;
                        prop_assert_eq!(list.prefix(block), (at + 1, skipped + 1));
                    }
                }
                prop_assert_eq!(list.find(total), None);
            }
        }
    }
}
