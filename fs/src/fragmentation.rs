//! Fragmentation: in which pieces free space and files lie.

use std::fmt;

use crate::fs::LavaFs;
use crate::types::BLOCK_SIZE;
use crate::vfs::FileKind;

/// Pieces of free space and of files. All lengths in blocks of 4 KiB.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fragmentation {
    /// Free runs by length; buckets without runs are left out.
    pub free: Vec<Bucket>,
    /// The longest free run.
    pub longest_free: u64,
    /// Files with blocks, by their number of extents; `total` counts extents.
    pub extents_per_file: Vec<Bucket>,
    /// The most extents that one file has.
    pub extents_of_one_max: u64,
    /// Blocks that files own.
    pub used_blocks: u64,
}

/// What has a size of `least` to `2 * least - 1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// Lower bound of the size: a power of two.
    pub least: u64,
    /// How many there are.
    pub count: u64,
    /// The sum of their sizes.
    pub total: u64,
}

impl Fragmentation {
    /// From the lengths of the free runs, and of each file the lengths of its extents.
    pub(crate) fn new(
        free: impl Iterator<Item = u64>,
        files: impl Iterator<Item = (u64, u64)>,
    ) -> Fragmentation {
        let (mut free_sizes, mut file_sizes) = ([(0, 0); 64], [(0, 0); 64]);
        let mut out = Fragmentation::default();
        for blocks in free.filter(|&blocks| blocks > 0) {
            count(&mut free_sizes, blocks);
            out.longest_free = out.longest_free.max(blocks);
        }
        for (extents, blocks) in files.filter(|&(extents, _)| extents > 0) {
            count(&mut file_sizes, extents);
            out.extents_of_one_max = out.extents_of_one_max.max(extents);
            out.used_blocks += blocks;
        }
        out.free = buckets(&free_sizes);
        out.extents_per_file = buckets(&file_sizes);
        out
    }

    /// Number of free runs.
    pub fn free_runs(&self) -> u64 {
        self.free.iter().map(|bucket| bucket.count).sum()
    }

    /// Free blocks.
    pub fn free_blocks(&self) -> u64 {
        self.free.iter().map(|bucket| bucket.total).sum()
    }

    /// Number of files with blocks.
    pub fn files(&self) -> u64 {
        self.extents_per_file
            .iter()
            .map(|bucket| bucket.count)
            .sum()
    }

    /// Number of extents.
    pub fn extents(&self) -> u64 {
        self.extents_per_file
            .iter()
            .map(|bucket| bucket.total)
            .sum()
    }
}

fn count(sizes: &mut [(u64, u64); 64], size: u64) {
    let (count, total) = &mut sizes[size.ilog2() as usize];
    *count += 1;
    *total += size;
}

fn buckets(sizes: &[(u64, u64); 64]) -> Vec<Bucket> {
    let filled = sizes
        .iter()
        .enumerate()
        .filter(|(_, (count, _))| *count > 0);
    filled
        .map(|(power, &(count, total))| Bucket {
            least: 1 << power,
            count,
            total,
        })
        .collect()
}

impl LavaFs {
    /// How the space of the mounted filesystem is cut up now. Takes time in proportion to files and
    /// free runs, and holds up changes of names meanwhile.
    pub fn fragmentation(&self) -> Fragmentation {
        let tables = self.core.tables.read();
        let files = tables.inodes.values().map(|inode| {
            let state = inode.state.read();
            let is_file = state.kind() == FileKind::File;
            let extents = if is_file { state.extents.len() } else { 0 };
            (extents as u64, state.extents.blocks())
        });
        let files: Vec<_> = files.collect();
        drop(tables);
        let free = self.free_runs();
        Fragmentation::new(free.into_iter().map(|run| run.1), files.into_iter())
    }
}

impl fmt::Display for Fragmentation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "free: {} bytes in {} runs, the longest {} bytes",
            self.free_blocks() * BLOCK_SIZE,
            self.free_runs(),
            self.longest_free * BLOCK_SIZE
        )?;
        for bucket in &self.free {
            writeln!(
                f,
                "  runs of {:>8} to {:>8} blocks: {:>8}, together {} bytes",
                bucket.least,
                bucket.least * 2 - 1,
                bucket.count,
                bucket.total * BLOCK_SIZE
            )?;
        }
        writeln!(
            f,
            "used: {} bytes in {} extents of {} files, at most {} of one file",
            self.used_blocks * BLOCK_SIZE,
            self.extents(),
            self.files(),
            self.extents_of_one_max
        )?;
        for bucket in &self.extents_per_file {
            writeln!(
                f,
                "  files of {:>8} to {:>8} extents: {:>8}",
                bucket.least,
                bucket.least * 2 - 1,
                bucket.count
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_counted_by_powers_of_two() {
        let f = Fragmentation::new(
            [1, 2, 3, 4, 0, 1 << 40].into_iter(),
            [(1, 5), (0, 0), (9, 9)].into_iter(),
        );
        let found: Vec<_> = f.free.iter().map(|b| (b.least, b.count, b.total)).collect();
        assert_eq!(
            found,
            [(1, 1, 1), (2, 2, 5), (4, 1, 4), (1 << 40, 1, 1 << 40)]
        );
        assert_eq!((f.free_runs(), f.free_blocks()), (5, (1 << 40) + 10));
        assert_eq!(
            (f.files(), f.extents(), f.extents_of_one_max, f.used_blocks),
            (2, 10, 9, 14)
        );
    }
}
