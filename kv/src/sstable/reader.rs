//! Reads a table: point lookups, iterators, verification.
//!
//! A lookup is: filter, index, one data block. All three come from the cache or, pinned when the
//! table was opened, from the table itself; what is found pins its block instead of being copied.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use lavafs::FileRef;
use xxhash_rust::xxh3::Xxh3;

use super::block::BadBlock;
use super::footer::{
    FEATURE_PARTITIONED_INDEX, FOOTER_LEN, Footer, Handle, SECTION_DICTIONARY, SECTION_FILTER,
    SECTION_PROPERTIES, decode_sections,
};
use super::iter::{TableIterator, TableReadOptions};
use super::properties::TableProperties;
use super::{BLOCK_TRAILER, Block, BlockCrc, filter};
use crate::cache::{BlockCache, BlockKind, BlockRef, CacheKey, Reservation};
use crate::error::{Error, Result};
use crate::iter::InternalIterator;
use crate::key::{LookupKey, SeqNo, TRAILER_LEN, ValueKind, compare_internal, user_key};
use crate::sstable::compression::{
    CODE_NONE, CODE_ZSTD, CODE_ZSTD_DICTIONARY, Dictionary, decompress, decompress_with,
};
use crate::stats::perf::{self, ReadFor};

/// Bytes read at the end of the file when it is opened: footer, meta block and properties, and
/// for small tables index and filter too.
const TAIL_READ: u64 = 8 << 10;

/// Bytes read at once while the whole file is verified.
const VERIFY_READ: usize = 1 << 20;

/// Where a block lies in its file, in bytes.
pub(crate) type BlockPlace = Range<u64>;

/// How a table is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenOptions {
    /// Keeps the index and filter with the table for as long as it is open, charged to the cache's
    /// budget, instead of in the cache; [`Table::pinned_memory`] tells how much that is. Default
    /// false.
    pub pin_index_and_filter: bool,
}

/// An open table. Any thread may read it.
pub struct Table {
    file: FileRef,
    /// For messages.
    pub(super) name: String,
    number: u64,
    /// The table's number in the cache.
    id: u64,
    pub(super) cache: Arc<BlockCache>,
    pub(super) footer: Footer,
    pub(super) properties: TableProperties,
    pub(super) filter: Option<Handle>,
    dictionary: Option<Dictionary>,
    pub(super) pinned_index: Option<BlockRef>,
    pinned_filter: Option<BlockRef>,
    /// Charges what is pinned to the cache.
    _charge: Option<Reservation>,
}

/// What a lookup found.
#[derive(Clone, Debug)]
pub struct TableHit {
    /// The version's sequence number.
    pub seq: SeqNo,
    /// What the version says.
    pub kind: ValueKind,
    /// Its value.
    pub value: PinnedValue,
}

/// Bytes within a block, which they keep in memory.
#[derive(Clone)]
pub struct PinnedValue {
    block: BlockRef,
    range: Range<usize>,
}

impl Deref for PinnedValue {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.block.contents()[self.range.clone()]
    }
}

impl AsRef<[u8]> for PinnedValue {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for PinnedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} entries", self.name, self.properties.entries)
    }
}

impl Table {
    /// Opens the finished table in `file`. `file_number` names it in messages.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the file is no whole table, [`Error::Unsupported`] where it is of
    /// a newer format.
    pub fn open(
        file: FileRef,
        file_number: u64,
        cache: Arc<BlockCache>,
        options: OpenOptions,
    ) -> Result<Arc<Self>> {
        let name = format!("{file_number:06}.sst");
        // A finished table was synced with its size; a file of an uncertain size is none.
        let size = file.size().lower();
        if size < FOOTER_LEN as u64 {
            return Err(Error::corrupt(
                name,
                0u64,
                format!("{size} bytes are no table"),
            ));
        }
        let tail = read_exactly(&file, &name, size.saturating_sub(TAIL_READ)..size)?;
        perf::read(ReadFor::TableTail, tail.len());
        let footer = tail
            .last_chunk::<FOOTER_LEN>()
            .expect("the tail holds the footer");
        let footer = Footer::decode(footer, &name, size)?;
        let mut table = Table {
            file,
            name,
            number: file_number,
            id: cache.new_id(),
            cache,
            footer,
            properties: TableProperties::default(),
            filter: None,
            dictionary: None,
            pinned_index: None,
            pinned_filter: None,
            _charge: None,
        };
        table.read_sections(&tail, size - tail.len() as u64)?;
        if options.pin_index_and_filter {
            table.pinned_index = Some(table.read_index()?.into());
            table.pinned_filter = match table.filter {
                Some(handle) => Some(table.read_filter(handle)?.into()),
                None => None,
            };
        }
        let pinned = table.pinned_memory();
        table._charge = (pinned > 0).then(|| table.cache.reserve(pinned));
        Ok(Arc::new(table))
    }

    /// Reads the meta block and the properties, from the bytes at the file's end if they hold
    /// them.
    fn read_sections(&mut self, tail: &[u8], tail_start: u64) -> Result<()> {
        let read = |handle: Handle| match handle.offset.checked_sub(tail_start) {
            Some(at) => {
                let at = at as usize;
                self.unseal_slice(&tail[at..at + handle.len as usize], handle.offset)
            }
            None => {
                perf::read(ReadFor::TableTail, handle.len as usize);
                self.read_stored(handle)
            }
        };
        let body_end = self.footer.file_size - FOOTER_LEN as u64;
        let meta = self.footer.meta;
        let sections = decode_sections(&read(meta)?, body_end)
            .map_err(|bad| self.bad_block(meta.offset, bad))?;
        let (mut properties, mut filter, mut dictionary) = (None, None, None);
        for (id, required, handle) in sections {
            match id {
                SECTION_PROPERTIES => {
                    let decoded = TableProperties::decode(&read(handle)?);
                    properties = Some(decoded.map_err(|bad| self.bad_block(handle.offset, bad))?);
                }
                SECTION_FILTER => filter = Some(handle),
                SECTION_DICTIONARY => {
                    let bytes = read(handle)?;
                    let taken = Dictionary::new(&bytes)
                        .map_err(|detail| Error::corrupt(&self.name, handle.offset, detail))?;
                    dictionary = Some(taken);
                }
                _ if required => {
                    return Err(Error::Unsupported {
                        what: format!("{}: section {id} of a newer table format", self.name),
                    });
                }
                _ => {}
            }
        }
        let Some(properties) = properties else {
            return Err(Error::corrupt(
                &self.name,
                meta.offset,
                "table without properties",
            ));
        };
        if properties.smallest.len() < TRAILER_LEN || properties.largest.len() < TRAILER_LEN {
            return Err(Error::corrupt(
                &self.name,
                meta.offset,
                "table without bounds",
            ));
        }
        if properties.data_bytes > body_end {
            return Err(Error::corrupt(
                &self.name,
                meta.offset,
                "data beyond the file's end",
            ));
        }
        (self.properties, self.filter) = (properties, filter);
        self.dictionary = dictionary;
        Ok(())
    }

    /// The number it was opened with.
    pub fn file_number(&self) -> u64 {
        self.number
    }

    /// Bytes of the file.
    pub fn file_size(&self) -> u64 {
        self.footer.file_size
    }

    /// What the table says of itself.
    pub fn properties(&self) -> &TableProperties {
        &self.properties
    }

    /// Bytes of the filter in the file; 0 without one.
    pub fn filter_bytes(&self) -> u64 {
        self.filter.map_or(0, |filter| filter.len)
    }

    /// Bytes of memory that the table keeps beside the cache.
    pub fn pinned_memory(&self) -> usize {
        let blocks = [&self.pinned_index, &self.pinned_filter];
        let blocks = blocks.into_iter().flatten();
        let dictionary = self.dictionary.as_ref().map_or(0, Dictionary::memory);
        dictionary + blocks.map(|block| block.memory()).sum::<usize>()
    }

    /// The newest version that `lookup` may see. `hash` is [`filter::filter_hash`] of the
    /// lookup's user key, computed once for all tables.
    pub fn get(&self, lookup: &LookupKey, hash: u64) -> Result<Option<TableHit>> {
        let Some(place) = self.locate(lookup, hash)? else {
            return Ok(None);
        };
        let block = self.data_block(place.clone())?;
        self.find_in(block, &place, lookup, hash)
    }

    /// The one data block in which `lookup`'s key may be, unless filter or index rule it out.
    #[inline]
    pub(crate) fn locate(&self, lookup: &LookupKey, hash: u64) -> Result<Option<BlockPlace>> {
        if !self.may_contain(hash)? {
            return Ok(None);
        }
        let cached;
        let index = match &self.pinned_index {
            Some(index) => index,
            None => {
                cached = self.index()?;
                &cached
            }
        };
        let (bytes, layout) = index.as_index();
        let at = layout.find(bytes, lookup.internal());
        if at >= layout.count() {
            return Ok(None);
        }
        let place = layout.block(bytes, at);
        match self.is_partitioned() {
            true => self.locate_in_partition(place, lookup.internal()),
            false => Ok(Some(place)),
        }
    }

    /// The data block in which `target` may be, by the partition of the index at `place`.
    fn locate_in_partition(&self, place: BlockPlace, target: &[u8]) -> Result<Option<BlockPlace>> {
        let partition = self.partition(place, &TableReadOptions::default())?;
        let (bytes, layout) = partition.as_index();
        let at = layout.find(bytes, target);
        Ok((at < layout.count()).then(|| layout.block(bytes, at)))
    }

    /// True where the index block is that of partitions.
    pub(super) fn is_partitioned(&self) -> bool {
        self.footer.features & FEATURE_PARTITIONED_INDEX != 0
    }

    /// Looks for a key in the block that [`Table::locate`] told, which is at `place`.
    #[inline]
    pub(crate) fn find_in(
        &self,
        block: BlockRef,
        place: &BlockPlace,
        lookup: &LookupKey,
        hash: u64,
    ) -> Result<Option<TableHit>> {
        let (bytes, layout) = block.as_data();
        let found = layout.get(bytes, lookup, hash);
        let Some(found) = found.map_err(|bad| self.bad_block(place.start, bad))? else {
            return Ok(None);
        };
        Ok(Some(TableHit {
            seq: found.trailer >> 8,
            kind: ValueKind::from_u8(found.trailer as u8).expect("checked when it was decoded"),
            value: PinnedValue {
                range: found.value,
                block,
            },
        }))
    }

    /// False where the filter says that no key with this hash is in the table.
    pub fn may_contain(&self, hash: u64) -> Result<bool> {
        if let Some(filter) = &self.pinned_filter {
            return Ok(filter.may_contain(hash));
        }
        let Some(handle) = self.filter else {
            return Ok(true);
        };
        let key = self.cache_key(handle.offset);
        if let Some(filter) = self.cached(key, BlockKind::Filter) {
            return Ok(filter.may_contain(hash));
        }
        let filter = self.read_filter(handle)?;
        let filter = self.cache.insert(key, filter, handle.len as usize);
        Ok(filter.may_contain(hash))
    }

    /// Walks the table.
    pub fn iter(self: &Arc<Self>, options: TableReadOptions) -> TableIterator {
        TableIterator::new(Arc::clone(self), options)
    }

    /// Bytes of the file before `internal_key`, to the precision of a block.
    pub fn approximate_offset_of(&self, internal_key: &[u8]) -> Result<u64> {
        let index = self.index()?;
        let (bytes, layout) = index.as_index();
        let at = layout.find(bytes, internal_key);
        if at == layout.count() {
            return Ok(self.properties.data_bytes);
        }
        let place = layout.block(bytes, at);
        if !self.is_partitioned() {
            return Ok(place.start);
        }
        let found = self.locate_in_partition(place, internal_key)?;
        Ok(found.map_or(self.properties.data_bytes, |block| block.start))
    }

    /// Reads and checks everything: the checksum of the file, of every block, that keys ascend,
    /// that filter and properties agree with them. Nothing is taken from the cache or put there.
    /// Returns the xxh3 of the whole file, to be compared with the manifest's.
    pub fn verify(self: &Arc<Self>) -> Result<u64> {
        let checksum = self.verify_file()?;
        let filter = match self.filter {
            Some(handle) => Some(self.read_filter(handle)?),
            None => None,
        };
        let mut iter = self.iter(TableReadOptions {
            bypass_cache: true,
            readahead_bytes: VERIFY_READ,
            ..TableReadOptions::default()
        });
        let wrong = |detail: &str| Err(Error::corrupt(&self.name, 0u64, detail));
        let mut last: Vec<u8> = Vec::new();
        let mut entries = 0;
        iter.seek_to_first();
        while iter.valid() {
            if entries == 0 && iter.key() != self.properties.smallest {
                return wrong("the first key is not what the properties say");
            }
            if entries > 0 && compare_internal(&last, iter.key()).is_ge() {
                return wrong("keys do not ascend");
            }
            let hash = filter::filter_hash(user_key(iter.key()));
            if filter
                .as_ref()
                .is_some_and(|filter| !filter.may_contain(hash))
            {
                return wrong("a key is missing in the filter");
            }
            last.clear();
            last.extend_from_slice(iter.key());
            entries += 1;
            iter.next();
        }
        iter.status()?;
        if entries != self.properties.entries || last != self.properties.largest {
            return wrong("number of entries or last key are not what the properties say");
        }
        Ok(checksum)
    }

    fn verify_file(&self) -> Result<u64> {
        let body_end = self.footer.file_size - FOOTER_LEN as u64;
        let mut digest = Xxh3::new();
        let mut at = 0;
        while at < body_end {
            let end = body_end.min(at + VERIFY_READ as u64);
            digest.update(&read_exactly(&self.file, &self.name, at..end)?);
            at = end;
        }
        if digest.digest() != self.footer.body_checksum {
            return Err(Error::corrupt(&self.name, 0u64, "file checksum mismatch"));
        }
        digest.update(&read_exactly(
            &self.file,
            &self.name,
            at..self.footer.file_size,
        )?);
        Ok(digest.digest())
    }

    pub(super) fn cache_key(&self, offset: u64) -> CacheKey {
        CacheKey {
            table: self.id,
            offset,
        }
    }

    pub(super) fn cache(&self) -> &Arc<BlockCache> {
        &self.cache
    }

    pub(crate) fn file(&self) -> &FileRef {
        &self.file
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    fn data_block(&self, place: Range<u64>) -> Result<BlockRef> {
        if let Some(block) = self.cached_block(&place) {
            return Ok(block);
        }
        let handle = Handle {
            offset: place.start,
            len: place.end - place.start,
        };
        let contents = self.read_block(handle, BlockKind::Data)?;
        let block = self.as_data_block(contents, place.start)?;
        Ok(self.cache_block(place.start, block, handle.len as usize))
    }

    pub(super) fn as_data_block(&self, contents: Vec<u8>, offset: u64) -> Result<Block> {
        Block::data(contents).map_err(|bad| self.bad_block(offset, bad))
    }

    pub(super) fn read_index(&self) -> Result<Block> {
        let handle = self.footer.index;
        let contents = self.read_block(handle, BlockKind::Index)?;
        let index = match self.is_partitioned() {
            true => Block::partition(contents, handle.offset),
            false => Block::index(contents, self.properties.data_bytes),
        };
        index.map_err(|bad| self.bad_block(handle.offset, bad))
    }

    fn read_filter(&self, handle: Handle) -> Result<Block> {
        let contents = self.read_block(handle, BlockKind::Filter)?;
        Block::filter(&contents).map_err(|bad| self.bad_block(handle.offset, bad))
    }

    pub(super) fn bad_block(&self, offset: u64, bad: BadBlock) -> Error {
        let detail = format!("{} (byte {} of the block at {offset})", bad.detail, bad.at);
        Error::corrupt(&self.name, offset, detail)
    }

    /// Reads a block's contents, checked and decompressed.
    pub(super) fn read_block(&self, handle: Handle, kind: BlockKind) -> Result<Vec<u8>> {
        perf::read(ReadFor::Block(kind), handle.len as usize);
        self.read_stored(handle)
    }

    fn read_stored(&self, handle: Handle) -> Result<Vec<u8>> {
        let end = handle.offset + handle.len;
        let mut stored = read_exactly(&self.file, &self.name, handle.offset..end)?;
        match self.check(&stored, handle.offset)? {
            CODE_NONE => {
                stored.truncate(stored.len() - BLOCK_TRAILER);
                Ok(stored)
            }
            code => self.decompress(&stored, handle.offset, code),
        }
    }

    /// Like [`Table::read_block`], of bytes that were read already.
    pub(super) fn unseal_slice(&self, stored: &[u8], offset: u64) -> Result<Vec<u8>> {
        match self.check(stored, offset)? {
            CODE_NONE => Ok(stored[..stored.len() - BLOCK_TRAILER].to_vec()),
            code => self.decompress(stored, offset, code),
        }
    }

    /// Checks a block's trailer; returns its compression.
    fn check(&self, stored: &[u8], offset: u64) -> Result<u8> {
        let corrupt = |detail: &str| Err(Error::corrupt(&self.name, offset, detail));
        let Some((contents, trailer)) = stored.split_last_chunk::<BLOCK_TRAILER>() else {
            return corrupt("block shorter than its trailer");
        };
        let [code, crc @ ..] = *trailer;
        let mut computed = BlockCrc::new(self.footer.seed, offset);
        computed.update(contents);
        if computed.finish(code) != u32::from_le_bytes(crc) {
            return corrupt("block checksum mismatch");
        }
        match code {
            CODE_NONE | CODE_ZSTD | CODE_ZSTD_DICTIONARY => Ok(code),
            _ => corrupt("block of an unknown compression"),
        }
    }

    fn decompress(&self, stored: &[u8], offset: u64, code: u8) -> Result<Vec<u8>> {
        let contents = &stored[..stored.len() - BLOCK_TRAILER];
        let raw = match (code, &self.dictionary) {
            (CODE_ZSTD, _) => decompress(contents),
            (_, Some(dictionary)) => decompress_with(contents, dictionary),
            _ => Err("block compressed with a dictionary that the table has not"),
        };
        raw.map_err(|detail| Error::corrupt(&self.name, offset, detail))
    }
}

/// Reads bytes that the file must have.
pub(crate) fn read_exactly(file: &FileRef, name: &str, place: Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; (place.end - place.start) as usize];
    let read = file.read_at(place.start, &mut bytes)?;
    if read < bytes.len() {
        let wanted = bytes.len();
        let detail = format!("file ends after {read} of {wanted} bytes");
        return Err(Error::corrupt(name, place.start, detail));
    }
    Ok(bytes)
}
