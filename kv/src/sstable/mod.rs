//! Tables: sorted, immutable files of versions of keys.
//!
//! ```text
//! table file
//!   data blocks         in key order, from offset 0
//!   dictionary          where blocks were compressed with one
//!   filter block        unless the table has no filter
//!   index partitions    where the index is large
//!   index block
//!   properties block
//!   meta block          lists filter, properties and what later versions add
//!   footer              footer.rs
//!
//! block, as it lies in the file
//!   n  contents    as they are, or compressed (compression.rs)
//!   1  compression 0 none, 1 zstd, 2 zstd with the file's dictionary
//!   4  crc32c      over seed (8 bytes), the block's offset (8 bytes), contents, compression
//! ```
//!
//! The seed makes a block of another file fail, the offset one of another place in the same file.
//! Prose owner of the format: FORMAT.md of this crate.
//!
//! A table is written once by [`TableBuilder`], which makes it durable, and read by any number
//! of threads through [`Table`].

mod block;
mod builder;
mod cached;
pub(crate) mod compression;
mod filter;
mod footer;
#[cfg(feature = "fuzzing")]
mod fuzzing;
mod index;
mod iter;
mod output;
mod properties;
mod property_block;
mod reader;
pub(crate) mod samples;
pub(crate) mod varint;

#[cfg(test)]
mod tests;

pub(crate) use self::block::BadBlock;
pub use self::builder::{KeptBlock, TableBuilder, TableSummary};
pub use self::filter::{best_probes, bits_for_rate, expected_fpr, filter_hash};
pub(crate) use self::footer::{
    FOOTER_LEN, Handle, MAGIC as FOOTER_MAGIC, decode_sections, encode_sections,
};
#[cfg(feature = "fuzzing")]
pub(crate) use self::fuzzing::{fuzz_parts, sealed};
pub use self::iter::{TableIterator, TableReadOptions};
pub(crate) use self::output::FileOutput;
pub use self::properties::TableProperties;
pub(crate) use self::property_block::{PropertyBlock, append as append_property};
pub(crate) use self::reader::{BlockPlace, read_exactly};
pub use self::reader::{OpenOptions, PinnedValue, Table, TableHit};
pub use crate::sstable::compression::Compression;

use crate::cache::BlockKind;
use block::DataLayout;
use filter::Filter;
use index::IndexLayout;

/// Bytes that follow a block's contents in the file.
const BLOCK_TRAILER: usize = 5;

/// Longest user key in bytes.
pub const MAX_KEY_LEN: usize = 64 << 20;

/// Longest value in bytes: a block with its entry, tables and trailer stays below 4 GiB.
pub const MAX_VALUE_LEN: usize = u32::MAX as usize - (128 << 20);

/// How a table is written. Tables written with different options can be read side by side.
#[derive(Clone, PartialEq, Debug)]
pub struct TableOptions {
    /// Bytes of a data block before compression, about; a larger entry makes a larger block.
    /// Default 4096.
    pub block_size: usize,
    /// Entries from one whole key to the next. Default 16, minimum 1.
    pub restart_interval: usize,
    /// Default none.
    pub compression: Compression,
    /// Bytes at most of a dictionary for zstd, trained on the table's first blocks; 0: none. Default 0.
    pub zstd_dict_bytes: usize,
    /// Bytes of index from which it is cut into partitions, which are read as they are needed; 0: never.
    /// Default 1 MiB.
    pub index_partition_threshold: usize,
    /// Bytes of a partition of the index, about. Default 16 KiB.
    pub index_partition_size: usize,
    /// Bits of filter per user key, not necessarily whole; 0: no filter. Default 10.
    pub filter_bits_per_key: f64,
    /// Adds a hash index to each data block: point reads take about a byte and a third per key
    /// more and skip the binary search. Default true.
    pub hash_index: bool,
    /// User keys expected, for memory to be taken at once; 0: unknown. Default 0.
    pub expected_entries: usize,
    /// Bytes of blocks at most that the builder keeps in memory for the cache. Default 0.
    pub keep_bytes: usize,
    /// Id and name of the column family, for the table's properties. Default none.
    pub column_family: Option<(u32, String)>,
}

impl Default for TableOptions {
    fn default() -> Self {
        TableOptions {
            block_size: 4096,
            restart_interval: 16,
            compression: Compression::None,
            zstd_dict_bytes: 0,
            index_partition_threshold: 1 << 20,
            index_partition_size: 16 << 10,
            filter_bits_per_key: 10.0,
            hash_index: true,
            expected_entries: 0,
            keep_bytes: 0,
            column_family: None,
        }
    }
}

/// A block read from a table: its contents, decompressed, and where their parts are.
#[derive(Debug)]
pub struct Block {
    bytes: Vec<u8>,
    /// Where the contents begin in `bytes`: a filter's lines are put at a multiple of 64.
    start: usize,
    layout: Layout,
}

#[derive(Clone, Copy, Debug)]
enum Layout {
    Data(DataLayout),
    Index(IndexLayout),
    Filter(Filter),
    /// A data block, compressed.
    Packed,
}

impl Block {
    fn data(bytes: Vec<u8>) -> Result<Self, BadBlock> {
        let layout = Layout::Data(DataLayout::parse(&bytes)?);
        Ok(Block {
            bytes,
            start: 0,
            layout,
        })
    }

    fn index(bytes: Vec<u8>, data_end: u64) -> Result<Self, BadBlock> {
        let layout = Layout::Index(IndexLayout::parse(&bytes, data_end)?);
        Ok(Block {
            bytes,
            start: 0,
            layout,
        })
    }

    /// The index of partitions, or a partition, whose blocks end at or before `limit`.
    fn partition(mut bytes: Vec<u8>, limit: u64) -> Result<Self, BadBlock> {
        let Some((begin, _)) = bytes.split_first_chunk::<8>() else {
            return Err(BadBlock {
                at: 0,
                detail: "index partition without a beginning",
            });
        };
        let begin = u64::from_le_bytes(*begin);
        bytes.drain(..8);
        let layout = Layout::Index(IndexLayout::parse_from(&bytes, begin, limit)?);
        Ok(Block {
            bytes,
            start: 0,
            layout,
        })
    }

    fn filter(contents: &[u8]) -> Result<Self, BadBlock> {
        let filter = Filter::parse(contents).map_err(|detail| BadBlock { at: 0, detail })?;
        let mut bytes: Vec<u8> = Vec::with_capacity(contents.len() + filter::LINE);
        let start = bytes.as_ptr().align_offset(filter::LINE).min(filter::LINE);
        bytes.resize(start, 0);
        bytes.extend_from_slice(contents);
        Ok(Block {
            bytes,
            start,
            layout: Layout::Filter(filter),
        })
    }

    /// A data block's compressed form for the cache, if it is much smaller.
    fn packed(&self) -> Option<Self> {
        crate::sstable::compression::pack(self.contents()).map(Block::of_packed)
    }

    /// A data block by its compressed form.
    fn of_packed(bytes: Vec<u8>) -> Self {
        Block {
            bytes,
            start: 0,
            layout: Layout::Packed,
        }
    }

    /// True where this is a data block's compressed form.
    fn is_packed(&self) -> bool {
        matches!(self.layout, Layout::Packed)
    }

    /// The data block that this is the compressed form of.
    fn unpacked(&self) -> Option<Self> {
        let contents = crate::sstable::compression::decompress(&self.bytes).ok()?;
        Block::data(contents).ok()
    }

    /// What kind of block this is.
    pub fn kind(&self) -> BlockKind {
        match self.layout {
            Layout::Data(_) => BlockKind::Data,
            Layout::Packed => BlockKind::Packed,
            Layout::Index(_) => BlockKind::Index,
            Layout::Filter(_) => BlockKind::Filter,
        }
    }

    /// Bytes of memory it takes.
    pub fn memory(&self) -> usize {
        self.bytes.capacity() + size_of::<Self>()
    }

    #[inline]
    fn contents(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    #[inline]
    fn as_data(&self) -> (&[u8], DataLayout) {
        match self.layout {
            Layout::Data(layout) => (&self.bytes, layout),
            _ => unreachable!("a data block's offset is not that of another kind"),
        }
    }

    #[inline]
    fn as_index(&self) -> (&[u8], IndexLayout) {
        match self.layout {
            Layout::Index(layout) => (&self.bytes, layout),
            _ => unreachable!("the index block's offset is not that of another kind"),
        }
    }

    #[inline]
    fn may_contain(&self, hash: u64) -> bool {
        match self.layout {
            Layout::Filter(filter) => filter.may_contain(self.contents(), hash),
            _ => unreachable!("the filter block's offset is not that of another kind"),
        }
    }

    /// A block of a kind and size, without meaningful contents.
    #[cfg(all(test, not(lava_loom)))]
    pub(crate) fn for_cache_tests(kind: BlockKind, len: usize) -> Self {
        let data = {
            let mut builder = block::BlockBuilder::new(16, false);
            builder.add(&[0; 8], 0, &vec![0; len]);
            Block::data(builder.finish().concat()).expect("as built")
        };
        match kind {
            BlockKind::Data | BlockKind::Value | BlockKind::BlobIndex => data,
            BlockKind::Packed => Block::of_packed(data.bytes),
            BlockKind::Index => {
                let mut builder = index::IndexBuilder::default();
                builder.add(&[0; 8], None, 1);
                let index = Block::index(builder.finish(), 1).expect("as built");
                Block {
                    layout: index.layout,
                    ..data
                }
            }
            BlockKind::Filter => Block {
                layout: Block::filter(&filter::build(&[1], 10.0))
                    .expect("as built")
                    .layout,
                ..data
            },
        }
    }
}

/// The checksum of a block at an offset of a file with a seed, computed part by part.
#[derive(Clone, Copy)]
pub(crate) struct BlockCrc(u32);

impl BlockCrc {
    pub(crate) fn new(seed: u64, offset: u64) -> Self {
        let mut head = [0; 16];
        head[..8].copy_from_slice(&seed.to_le_bytes());
        head[8..].copy_from_slice(&offset.to_le_bytes());
        BlockCrc(crc32c::crc32c(&head))
    }

    pub(crate) fn update(&mut self, contents: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, contents);
    }

    /// The checksum of what was added, without a compression.
    pub(crate) fn value(self) -> u32 {
        self.0
    }

    pub(crate) fn finish(self, compression: u8) -> u32 {
        crc32c::crc32c_append(self.0, &[compression])
    }
}
