//! Warming: what readers would have to read again because a job has written it anew is ready before they ask.
//!
//! After a flush, a compaction or a collection has committed, its files are opened, so that their
//! indexes and filters are in memory, and the blocks that the job kept are put into the cache: of a
//! flush, those that mostly refer to blob files, or all of them if
//! [`crate::Options::prepopulate_block_cache`] says so; of a compaction, those whose entries came for the
//! greater part out of blocks that were in the cache. Separated values need no warming: the cache knows
//! them by their keys, wherever they are written to.
//!
//! What a flush keeps is at most an eighth of the cache, and enters it like what a scan reads: it goes first
//! if nobody asks for it. What a compaction keeps takes the place of its inputs' blocks: those are the next
//! to go, and these stay like what was read before. It is at most half of the cache. Both are charged to the
//! memory ledger until they are in, and take at most half of what fits into its limit.
//!
//! Nothing depends on it: a failure is logged, and readers open the file and find out themselves.

use std::sync::Arc;

use crate::cache::WarmRank;
use crate::compaction::{Choice, TableOutputs};
use crate::db::engine::Engine;
use crate::file_names::FileNumber;
use crate::sstable::KeptBlock;
use crate::version::{SstFile, Version};
use crate::write::batch::CfId;

/// Bytes of blocks that one job keeps at most, whatever the cache has.
const WARM_BYTES_MAX: usize = 32 << 20;

/// Bytes of a block for each entry at most beside the entry: lengths, its parts of the restarts and of the hash index.
const ENTRY_OVERHEAD: u64 = 16;

/// Blocks of a job's tables, by table.
struct Kept {
    blocks: Vec<(FileNumber, Vec<KeptBlock>)>,
    rank: WarmRank,
}

impl Engine {
    /// Bytes of blocks that a flush of so much memory may keep for the cache.
    pub(crate) fn warm_bytes_of_flush(&self, memory: usize) -> usize {
        self.warm_bytes(self.cache.capacity() / 8).min(memory)
    }

    /// Bytes of blocks that a compaction may keep for the cache: not more than its inputs have before compression.
    pub(crate) fn warm_bytes_of_compaction(&self, choice: &Choice) -> usize {
        let raw = choice.files().map(|(_, file)| match file.opened() {
            Some(table) => {
                let properties = table.properties();
                let raw = properties.raw_key_bytes + properties.raw_value_bytes;
                raw + ENTRY_OVERHEAD * properties.entries
            }
            None => file.meta.file_size,
        });
        let raw = raw.fold(0, u64::saturating_add);
        let most = self.warm_bytes(self.cache.capacity() / 2);
        most.min(usize::try_from(raw).unwrap_or(usize::MAX))
    }

    /// Of `most` bytes, those that a job may keep: where there is a ledger, half of what fits into its limit now.
    fn warm_bytes(&self, most: usize) -> usize {
        let fits = match self.env.ledger() {
            Some(_) => self.cache.unreserved() / 2,
            None => usize::MAX,
        };
        most.min(WARM_BYTES_MAX).min(fits)
    }

    /// Warms what a job has committed; takes the blocks that it kept. `replaced` are the tables that its
    /// own took the place of.
    pub(crate) fn warm_outputs(
        &self,
        cf: CfId,
        outputs: &mut TableOutputs,
        replaced: &[Arc<SstFile>],
    ) {
        for table in replaced.iter().filter_map(|file| file.opened()) {
            table.cool();
        }
        let kept = Kept {
            blocks: std::mem::take(&mut outputs.kept),
            rank: match replaced {
                [] => WarmRank::New,
                _ => WarmRank::Heir,
            },
        };
        let tables: Vec<_> = outputs.tables.iter().map(|table| table.number).collect();
        let blobs: Vec<_> = outputs.blobs.iter().map(|blob| blob.number).collect();
        self.warm(cf, &tables, &blobs, kept);
    }

    /// Opens blob files that a collection has just added.
    pub(crate) fn warm_blobs(&self, cf: CfId, blobs: &[FileNumber]) {
        let nothing = Kept {
            blocks: Vec::new(),
            rank: WarmRank::New,
        };
        self.warm(cf, &[], blobs, nothing);
    }

    /// Opens tables and blob files that a job has just added, and caches the blocks it kept.
    fn warm(&self, cf: CfId, tables: &[FileNumber], blobs: &[FileNumber], kept: Kept) {
        let Ok(family) = self.cf(cf) else {
            return;
        };
        let version = family.view().version.clone();
        if let Err(error) = self.warm_in(&version, tables, blobs, kept) {
            tracing::warn!(%error, "a new file could not be opened in advance");
        }
    }

    fn warm_in(
        &self,
        version: &Version,
        tables: &[FileNumber],
        blobs: &[FileNumber],
        mut kept: Kept,
    ) -> crate::error::Result<()> {
        for number in blobs {
            if let Some(live) = version.blobs.files().get(number) {
                live.file.reader(self)?;
            }
        }
        let files = version.levels.iter().flat_map(|level| level.files());
        for file in files.filter(|file| tables.contains(&file.meta.number)) {
            let table = file.table(self)?;
            let mut of_tables = kept.blocks.iter_mut();
            let of_table = of_tables.find(|(of, _)| *of == file.meta.number);
            let blocks = of_table.map(|(_, blocks)| std::mem::take(blocks));
            for block in blocks.into_iter().flatten() {
                table.warm_block(block, kept.rank)?;
            }
        }
        Ok(())
    }
}
