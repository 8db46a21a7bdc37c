//! Extent list: where on the device a file's blocks are.
//!
//! Extents follow one another without holes, since files only grow. An entry holds its first
//! device block and the file block after its last one: 16 bytes an extent, found by binary
//! search.

use crate::alloc::Run;

/// The extents of one file, in file order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExtentList {
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    start: u64,
    /// File block after the extent's last.
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
        self.entries.last().map_or(0, |entry| entry.end)
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
        let index = self.entries.partition_point(|entry| entry.end <= block);
        let entry = self.entries.get(index)?;
        let skipped = block - self.first_block(index);
        Some(Run {
            start: entry.start + skipped,
            blocks: entry.end - block,
        })
    }

    /// Sets extent `index`, moving later ones; missing ones before it become empty (they appear
    /// only while a journal is replayed). Returns the run that was there.
    pub(crate) fn set(&mut self, index: usize, run: Run) -> Option<Run> {
        if self.entries.capacity() == 0 {
            self.entries.reserve_exact(1);
        }
        let end = self.blocks();
        while self.entries.len() < index {
            self.entries.push(Entry { start: 0, end });
        }
        if index == self.entries.len() {
            let end = self.blocks() + run.blocks;
            self.entries.push(Entry {
                start: run.start,
                end,
            });
            return None;
        }
        let old = self.run(index);
        self.entries[index].start = run.start;
        if old.blocks == run.blocks {
            return Some(old);
        }
        for entry in &mut self.entries[index..] {
            entry.end = entry.end - old.blocks + run.blocks;
        }
        Some(old)
    }

    /// Keeps the first `count` extents, the last of them only to `last_blocks`. Returns what was cut
    /// off. Asking for more than there is keeps what there is.
    pub(crate) fn keep(&mut self, count: usize, last_blocks: u64) -> Vec<Run> {
        let mut cut: Vec<Run> = (count..self.entries.len())
            .map(|index| self.run(index))
            .collect();
        self.entries.truncate(count);
        if count > 0 && self.entries.len() == count {
            let last = self.run(count - 1);
            if last_blocks < last.blocks {
                let surplus = last.blocks - last_blocks;
                cut.push(Run {
                    start: last.start + last_blocks,
                    blocks: surplus,
                });
                self.entries[count - 1].end -= surplus;
            }
        }
        cut.retain(|run| run.blocks > 0);
        cut
    }

    /// How many extents, and how many blocks of the last of them, hold `blocks` blocks.
    pub(crate) fn prefix(&self, blocks: u64) -> (usize, u64) {
        if blocks == 0 {
            return (0, 0);
        }
        let index = self.entries.partition_point(|entry| entry.end < blocks);
        (index + 1, blocks - self.first_block(index))
    }

    fn first_block(&self, index: usize) -> u64 {
        index
            .checked_sub(1)
            .map_or(0, |before| self.entries[before].end)
    }

    fn run(&self, index: usize) -> Run {
        let entry = self.entries[index];
        Run {
            start: entry.start,
            blocks: entry.end - self.first_block(index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
