//! Warming: what readers would have to read again because a job has written it anew is ready before they ask.
//!
//! After a flush, a compaction or a collection has committed, its files are opened, so that their
//! indexes and filters are in memory, and the blocks that the job kept are put into the cache: of a
//! flush, all of them if [`crate::Options::prepopulate_block_cache`] says so; of a compaction, those
//! whose entries came for the greater part out of blocks that were in the cache. What is kept
//! by a job is bounded ([`Engine::warm_bytes`]), and enters the cache like what a scan reads: it goes
//! first if nobody asks for it. Separated values need no warming: the cache knows them by their
//! keys, wherever they are written to.
//!
//! Nothing depends on it: a failure is logged, and readers open the file and find out themselves.

use crate::compaction::TableOutputs;
use crate::db::engine::Engine;
use crate::file_names::FileNumber;
use crate::sstable::KeptBlock;
use crate::version::Version;
use crate::write::batch::CfId;

/// Bytes of blocks that one job keeps at most.
const WARM_BYTES_MAX: usize = 32 << 20;

impl Engine {
    /// Bytes of blocks that one job may keep for the cache: an eighth of the cache at most.
    pub(crate) fn warm_bytes(&self) -> usize {
        (self.cache.capacity() / 8).min(WARM_BYTES_MAX)
    }

    /// Warms what a job has committed; takes the blocks that it kept.
    pub(crate) fn warm_outputs(&self, cf: CfId, outputs: &mut TableOutputs) {
        let tables: Vec<_> = outputs.tables.iter().map(|table| table.number).collect();
        let blobs: Vec<_> = outputs.blobs.iter().map(|blob| blob.number).collect();
        self.warm(cf, &tables, &blobs, std::mem::take(&mut outputs.kept));
    }

    /// Opens tables and blob files that a job has just added, and caches the blocks it kept.
    pub(crate) fn warm(
        &self,
        cf: CfId,
        tables: &[FileNumber],
        blobs: &[FileNumber],
        kept: Vec<(FileNumber, Vec<KeptBlock>)>,
    ) {
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
        mut kept: Vec<(FileNumber, Vec<KeptBlock>)>,
    ) -> crate::error::Result<()> {
        for number in blobs {
            if let Some(live) = version.blobs.files().get(number) {
                live.file.reader(self)?;
            }
        }
        let files = version.levels.iter().flat_map(|level| level.files());
        for file in files.filter(|file| tables.contains(&file.meta.number)) {
            let table = file.table(self)?;
            let blocks = kept.iter_mut().find(|(of, _)| *of == file.meta.number);
            for block in blocks
                .map(|(_, blocks)| std::mem::take(blocks))
                .into_iter()
                .flatten()
            {
                table.warm_block(block)?;
            }
        }
        Ok(())
    }
}
