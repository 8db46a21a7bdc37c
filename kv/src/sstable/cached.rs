//! A table's blocks in the cache: looked up, put in, warmed when the table is new, cooled when it is replaced, and
//! those that the cache would keep for long let go when it is closed.
//!
//! Data blocks of a table that mostly refers to blob files are cached compressed
//! ([`super::TableProperties::is_mostly_references`]), all others as they are.
//!
//! Nobody else has the table's number in the cache, so whatever a closed table leaves there is garbage. Data blocks
//! give way to others that are read. Index and filter blocks do not, as they go before data: they are taken out.

use super::compression::decompress;
use super::footer::Handle;
use super::iter::TableReadOptions;
use super::reader::{BlockPlace, Table};
use super::{Block, KeptBlock};
use crate::cache::{BlockKind, BlockRef, CacheKey, WarmRank};
use crate::error::{Error, Result};
use crate::stats::perf::{self, ReadFor};

impl Table {
    /// The data block at `place`, if it is in the cache.
    #[inline]
    pub(crate) fn cached_block(&self, place: &BlockPlace) -> Option<BlockRef> {
        let key = self.cache_key(place.start);
        unpacked(self.cached(key, self.data_kind())?)
    }

    /// As [`Table::cached_block`], without a trace in the cache.
    pub(super) fn peek_block(&self, place: &BlockPlace) -> Option<BlockRef> {
        let key = self.cache_key(place.start);
        unpacked(self.cache.peek(key, self.data_kind())?)
    }

    fn data_kind(&self) -> BlockKind {
        match self.properties.is_mostly_references() {
            true => BlockKind::Packed,
            false => BlockKind::Data,
        }
    }

    /// Something of this table that is in the cache.
    #[inline]
    pub(super) fn cached(&self, key: CacheKey, kind: BlockKind) -> Option<BlockRef> {
        let found = self.cache.get(key, kind)?;
        perf::hit(kind);
        Some(found)
    }

    /// The index block, from the cache if it may be.
    pub(super) fn index(&self) -> Result<BlockRef> {
        self.index_for(&TableReadOptions::default())
    }

    /// The index block, as a walk with `options` reads it.
    pub(super) fn index_for(&self, options: &TableReadOptions) -> Result<BlockRef> {
        match &self.pinned_index {
            Some(index) if !options.bypass_cache => Ok(index.clone()),
            _ => self.index_block(self.footer.index, options, || self.read_index()),
        }
    }

    /// A block of the index. Unlike data blocks it is kept in the cache whatever a reader says of these: the next
    /// reader of the table needs it. Background work, which looks silently, leaves the cache alone.
    fn index_block(
        &self,
        handle: Handle,
        options: &TableReadOptions,
        read: impl FnOnce() -> Result<Block>,
    ) -> Result<BlockRef> {
        let key = self.cache_key(handle.offset);
        let cached = match (options.bypass_cache, options.silent) {
            (true, _) => None,
            (false, true) => self.cache.peek(key, BlockKind::Index),
            (false, false) => self.cached(key, BlockKind::Index),
        };
        if let Some(block) = cached {
            return Ok(block);
        }
        let block = read()?;
        match options.bypass_cache || options.silent {
            true => Ok(block.into()),
            false => Ok(self.cache.insert(key, block, handle.len as usize)),
        }
    }

    /// A partition of the index, as a walk with `options` reads it.
    pub(super) fn partition(
        &self,
        place: BlockPlace,
        options: &TableReadOptions,
    ) -> Result<BlockRef> {
        let handle = Handle {
            offset: place.start,
            len: place.end - place.start,
        };
        self.index_block(handle, options, || {
            let contents = self.read_block(handle, BlockKind::Index)?;
            let read = Block::partition(contents, self.properties.data_bytes);
            read.map_err(|bad| self.bad_block(place.start, bad))
        })
    }

    /// Puts a data block into the cache, compressed if the table's blocks are cached so.
    pub(super) fn cache_block(&self, offset: u64, block: Block, cost: usize) -> BlockRef {
        let key = self.cache_key(offset);
        match self.packed(&block) {
            Some(packed) => {
                self.cache.insert(key, packed, cost);
                block.into()
            }
            None => self.cache.insert(key, block, cost),
        }
    }

    fn packed(&self, block: &Block) -> Option<Block> {
        let packs = self.properties.is_mostly_references();
        packs.then(|| block.packed()).flatten()
    }

    /// Takes a data block's bytes as the file has them at `place`, and caches the block.
    pub(crate) fn admit_block(&self, stored: &[u8], place: &BlockPlace) -> Result<BlockRef> {
        let wanted = place.end - place.start;
        if (stored.len() as u64) < wanted {
            let detail = format!("file ends after {} of {wanted} bytes", stored.len());
            return Err(Error::corrupt(&self.name, place.start, detail));
        }
        perf::read(ReadFor::Block(BlockKind::Data), stored.len());
        let contents = self.unseal_slice(stored, place.start)?;
        let block = self.as_data_block(contents, place.start)?;
        Ok(self.cache_block(place.start, block, stored.len()))
    }

    /// Puts a block into the cache that was kept when the table was written. Its builder knew the entries so far, so
    /// it may have the form of another table's.
    pub(crate) fn warm_block(&self, block: KeptBlock, rank: WarmRank) -> Result<()> {
        let KeptBlock {
            offset,
            bytes,
            is_packed,
        } = block;
        let block = match (is_packed, self.properties.is_mostly_references()) {
            (true, true) => Block::of_packed(bytes),
            (true, false) => {
                let corrupt = |detail| Error::corrupt(&self.name, offset, detail);
                self.as_data_block(decompress(&bytes).map_err(corrupt)?, offset)?
            }
            (false, _) => {
                let parsed = self.as_data_block(bytes, offset)?;
                self.packed(&parsed).unwrap_or(parsed)
            }
        };
        self.cache.insert_warm(self.cache_key(offset), block, rank);
        Ok(())
    }

    /// Lets the cached data blocks of a table that was replaced be the next to go.
    pub(crate) fn cool(&self) {
        let Some(index) = self.index_at_hand() else {
            return;
        };
        for key in self.keys_of(&index) {
            if !self.is_partitioned() {
                self.cache.cool(key);
            } else if let Some(partition) = self.cache.peek(key, BlockKind::Index) {
                let blocks = self.keys_of(&partition);
                blocks.for_each(|block| self.cache.cool(block));
            }
        }
    }

    /// The index block, if it is in memory; no trace is left in the cache.
    fn index_at_hand(&self) -> Option<BlockRef> {
        let pinned = self.pinned_index.clone();
        let key = self.cache_key(self.footer.index.offset);
        pinned.or_else(|| self.cache.peek(key, BlockKind::Index))
    }

    /// What the cache knows the blocks by that an index block leads to.
    fn keys_of(&self, index: &Block) -> impl Iterator<Item = CacheKey> {
        let (bytes, layout) = index.as_index();
        (0..layout.count()).map(move |at| self.cache_key(layout.block(bytes, at).start))
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if self.is_partitioned()
            && let Some(index) = self.index_at_hand()
        {
            let partitions: Vec<_> = self.keys_of(&index).collect();
            drop(index);
            partitions
                .into_iter()
                .for_each(|partition| self.cache.discard(partition));
        }
        let filter = self.filter.map(|filter| filter.offset);
        for offset in filter.into_iter().chain([self.footer.index.offset]) {
            self.cache.discard(self.cache_key(offset));
        }
    }
}

/// The data block itself, where what is cached is its compressed form.
fn unpacked(block: BlockRef) -> Option<BlockRef> {
    match block.is_packed() {
        true => block.unpacked().map(BlockRef::from),
        false => Some(block),
    }
}
