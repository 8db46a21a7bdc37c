//! Writes a table: entries in key order, then filter, index, properties and footer.
//!
//! Blocks are gathered and appended in large pieces. Nothing is durable until
//! [`TableBuilder::finish`] has returned; a table that was not finished has no footer, cannot be
//! opened, and is to be removed by whoever made the file.

use std::collections::BTreeMap;
use std::io::IoSlice;

use lavafs::FileRef;
use xxhash_rust::xxh3::Xxh3;

use super::block::BlockBuilder;
use super::footer::{
    FOOTER_LEN, Footer, Handle, SECTION_FILTER, SECTION_PROPERTIES, encode_sections,
};
use super::index::IndexBuilder;
use super::properties::TableProperties;
use super::{BLOCK_TRAILER, BlockCrc, MAX_KEY_LEN, MAX_VALUE_LEN, TableOptions, filter};
use crate::compression::{BlockCompressor, CODE_NONE, CODE_ZSTD};
use crate::error::{Error, Result};
use crate::file_names::FileNumber;
use crate::key::{InternalKeyRef, SeqNo, TRAILER_LEN, ValueKind, compare_internal, user_key};
use crate::reference::BlobReference;
use crate::version::{BlobUse, TableRefs};

/// Bytes gathered before they are appended to the file. Also the block size from which a block
/// is appended from where it is.
const APPEND_BYTES: usize = 256 << 10;

/// What was written, for the manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableSummary {
    /// Bytes of the file.
    pub file_size: u64,
    /// Versions of keys.
    pub entries: u64,
    /// Versions that are deletions.
    pub deletions: u64,
    /// Versions whose value is in a blob file.
    pub blob_references: u64,
    /// The first internal key.
    pub smallest: Vec<u8>,
    /// The last internal key.
    pub largest: Vec<u8>,
    /// The smallest sequence number.
    pub smallest_seq: SeqNo,
    /// The largest sequence number.
    pub largest_seq: SeqNo,
    /// Bytes of internal keys before compression.
    pub raw_key_bytes: u64,
    /// Bytes of values before compression.
    pub raw_value_bytes: u64,
    /// xxh3 of the whole file.
    pub checksum: u64,
    /// References to blob files, by the number they name.
    pub(crate) blob_refs: TableRefs,
}

/// Builds one table in a new file. Belongs to one thread.
pub struct TableBuilder {
    options: TableOptions,
    block: BlockBuilder,
    compressor: Option<BlockCompressor>,
    output: Output,
    index: IndexBuilder,
    /// Filter hash of each user key.
    hashes: Vec<u64>,
    /// Filter hash of the last user key.
    last_hash: u64,
    last_key: Vec<u8>,
    /// End of a block that waits for the key after it to get its separator.
    unindexed_end: Option<u64>,
    properties: TableProperties,
    blob_refs: BTreeMap<FileNumber, BlobUse>,
}

/// The file, and what is on its way there.
struct Output {
    file: FileRef,
    seed: u64,
    /// Bytes not yet appended.
    pending: Vec<u8>,
    /// Bytes of the file, `pending` included.
    len: u64,
    digest: Xxh3,
    /// A block's parts put together for compression.
    whole: Vec<u8>,
}

impl TableBuilder {
    /// Begins a table in `file`, which must be empty and is the builder's alone.
    pub fn new(file: FileRef, options: TableOptions) -> Self {
        assert_eq!(file.size().upper(), 0, "a table begins in an empty file");
        TableBuilder {
            block: BlockBuilder::new(options.restart_interval, options.hash_index),
            compressor: None,
            output: Output {
                seed: file.generation().0,
                file,
                pending: Vec::with_capacity(APPEND_BYTES + options.block_size),
                len: 0,
                digest: Xxh3::new(),
                whole: Vec::new(),
            },
            index: IndexBuilder::default(),
            hashes: Vec::with_capacity(match options.filter_bits_per_key > 0.0 {
                true => options.expected_entries,
                false => 0,
            }),
            last_hash: 0,
            last_key: Vec::new(),
            unindexed_end: None,
            blob_refs: BTreeMap::new(),
            properties: TableProperties {
                smallest_seq: SeqNo::MAX,
                column_family: options.column_family.clone(),
                ..TableProperties::default()
            },
            options,
        }
    }

    /// Adds a version of a key. After an error the table cannot be finished.
    ///
    /// # Errors
    /// The file's, or a key or value over its limit.
    ///
    /// # Panics
    /// If `internal_key` is malformed or not after the one before.
    pub fn add(&mut self, internal_key: &[u8], value: &[u8]) -> Result<()> {
        let key = InternalKeyRef::decode(internal_key).expect("internal keys are well-formed");
        if key.user_key.len() > MAX_KEY_LEN || value.len() > MAX_VALUE_LEN {
            let (key_len, value_len) = (key.user_key.len(), value.len());
            return Err(Error::invalid_argument(format!(
                "key of {key_len} or value of {value_len} bytes, limits are {MAX_KEY_LEN} and \
                 {MAX_VALUE_LEN}"
            )));
        }
        let first = self.properties.entries == 0;
        assert!(
            first || compare_internal(&self.last_key, internal_key).is_lt(),
            "keys are added in ascending order"
        );
        if !self.block.is_empty() && self.is_full_before(internal_key.len() + value.len()) {
            self.flush_block()?;
        }
        if let Some(end) = self.unindexed_end.take() {
            self.index.add(&self.last_key, Some(internal_key), end);
        }
        if first || user_key(&self.last_key) != key.user_key {
            self.last_hash = filter::filter_hash(key.user_key);
            if self.options.filter_bits_per_key > 0.0 {
                self.hashes.push(self.last_hash);
            }
        }
        self.block.add(internal_key, self.last_hash, value);
        if key.kind == ValueKind::BlobReference {
            let reference = BlobReference::decode(value).expect("references are well-formed");
            self.blob_refs
                .entry(reference.file)
                .or_default()
                .add(reference.as_use());
        }
        self.count(key, value.len(), internal_key);
        self.last_key.clear();
        self.last_key.extend_from_slice(internal_key);
        if self.block.size() >= self.options.block_size {
            self.flush_block()?;
        }
        Ok(())
    }

    /// True where another entry of `len` bytes would take a well-filled block over its size.
    fn is_full_before(&self, len: usize) -> bool {
        let size = self.block.size();
        size + len > self.options.block_size && size > self.options.block_size / 10 * 9
    }

    fn count(&mut self, key: InternalKeyRef<'_>, value_len: usize, internal_key: &[u8]) {
        let properties = &mut self.properties;
        if properties.entries == 0 {
            properties.smallest = internal_key.to_vec();
        }
        properties.entries += 1;
        properties.deletions += u64::from(key.kind.is_delete());
        properties.blob_references += u64::from(key.kind == ValueKind::BlobReference);
        properties.raw_key_bytes += (key.user_key.len() + TRAILER_LEN) as u64;
        properties.raw_value_bytes += value_len as u64;
        properties.smallest_seq = properties.smallest_seq.min(key.seq);
        properties.largest_seq = properties.largest_seq.max(key.seq);
    }

    /// Versions added so far.
    pub fn entries(&self) -> u64 {
        self.properties.entries
    }

    /// The last internal key added; empty before the first.
    pub fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    /// Bytes of the file if it were finished now, about; blocks not yet written count
    /// uncompressed.
    pub fn estimated_size(&self) -> u64 {
        let filter = self.hashes.len() as f64 * self.options.filter_bits_per_key / 8.0;
        let block = if self.block.is_empty() {
            0
        } else {
            self.block.size()
        };
        self.output.len + block as u64 + self.index.size() as u64 + filter as u64
    }

    fn flush_block(&mut self) -> Result<()> {
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            None => self
                .compressor
                .insert(BlockCompressor::new(self.options.compression)?),
        };
        self.output.write_block(&self.block.finish(), compressor)?;
        self.block.reset();
        self.properties.data_blocks += 1;
        self.unindexed_end = Some(self.output.len);
        Ok(())
    }

    /// Writes what is left and makes the file durable, size included.
    ///
    /// # Panics
    /// If nothing was added.
    pub fn finish(mut self) -> Result<TableSummary> {
        assert!(self.properties.entries > 0, "a table has entries");
        if !self.block.is_empty() {
            self.flush_block()?;
        }
        let end = self.unindexed_end.expect("the last block was just written");
        self.index.add(&self.last_key, None, end);
        self.properties.data_bytes = end;
        self.properties.largest = std::mem::take(&mut self.last_key);
        self.properties.blob_refs = std::mem::take(&mut self.blob_refs).into_iter().collect();
        self.properties.filter_keys = self.hashes.len() as u64;
        let mut plain = BlockCompressor::new(super::Compression::None)?;
        let output = &mut self.output;
        let mut sections = Vec::new();
        if !self.hashes.is_empty() {
            let filter = filter::build(&self.hashes, self.options.filter_bits_per_key);
            sections.push((
                SECTION_FILTER,
                false,
                output.write_block(&[&filter], &mut plain)?,
            ));
        }
        let compressor = self.compressor.as_mut().expect("made with the first block");
        let index = output.write_block(&[&self.index.finish()], compressor)?;
        let properties = output.write_block(&[&self.properties.encode()], &mut plain)?;
        sections.push((SECTION_PROPERTIES, true, properties));
        let meta = output.write_block(&[&encode_sections(&sections)], &mut plain)?;
        let checksum = output.finish(index, meta)?;
        Ok(TableSummary {
            file_size: self.output.len,
            entries: self.properties.entries,
            deletions: self.properties.deletions,
            blob_references: self.properties.blob_references,
            smallest: self.properties.smallest,
            largest: self.properties.largest,
            smallest_seq: self.properties.smallest_seq,
            largest_seq: self.properties.largest_seq,
            raw_key_bytes: self.properties.raw_key_bytes,
            raw_value_bytes: self.properties.raw_value_bytes,
            checksum,
            blob_refs: self.properties.blob_refs,
        })
    }
}

impl std::fmt::Debug for TableBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "TableBuilder: {} entries in {:?}",
            self.entries(),
            self.output.file
        )
    }
}

impl Output {
    /// Writes a block of the concatenation of `parts`.
    fn write_block(&mut self, parts: &[&[u8]], compressor: &mut BlockCompressor) -> Result<Handle> {
        if !compressor.is_active() {
            return self.write_stored(parts, CODE_NONE);
        }
        let mut whole = std::mem::take(&mut self.whole);
        whole.clear();
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        let written = match compressor.compress(&whole) {
            Some(compressed) => self.write_stored(&[compressed], CODE_ZSTD),
            None => self.write_stored(&[&whole], CODE_NONE),
        };
        self.whole = whole;
        written
    }

    fn write_stored(&mut self, parts: &[&[u8]], code: u8) -> Result<Handle> {
        let offset = self.len;
        let mut crc = BlockCrc::new(self.seed, offset);
        parts.iter().for_each(|part| crc.update(part));
        let mut trailer = [code, 0, 0, 0, 0];
        trailer[1..].copy_from_slice(&crc.finish(code).to_le_bytes());
        let len = parts.iter().map(|part| part.len()).sum::<usize>() + BLOCK_TRAILER;
        if len >= APPEND_BYTES {
            let mut slices = vec![IoSlice::new(&self.pending)];
            slices.extend(parts.iter().map(|part| IoSlice::new(part)));
            slices.push(IoSlice::new(&trailer));
            slices.iter().for_each(|slice| self.digest.update(slice));
            self.file.append_vectored(&slices)?;
            self.pending.clear();
        } else {
            parts
                .iter()
                .for_each(|part| self.pending.extend_from_slice(part));
            self.pending.extend_from_slice(&trailer);
            if self.pending.len() >= APPEND_BYTES {
                self.append_pending()?;
            }
        }
        self.len += len as u64;
        Ok(Handle {
            offset,
            len: len as u64,
        })
    }

    fn append_pending(&mut self) -> Result<()> {
        self.digest.update(&self.pending);
        self.file.append(&self.pending)?;
        self.pending.clear();
        Ok(())
    }

    fn finish(&mut self, index: Handle, meta: Handle) -> Result<u64> {
        self.append_pending()?;
        let footer = Footer {
            seed: self.seed,
            index,
            meta,
            body_checksum: self.digest.digest(),
            file_size: self.len + FOOTER_LEN as u64,
        };
        let footer = footer.encode();
        self.pending.extend_from_slice(&footer);
        self.len += FOOTER_LEN as u64;
        self.append_pending()?;
        self.file.fsync()?;
        assert_eq!(
            self.file.size().lower(),
            self.len,
            "nobody else appends to the file"
        );
        Ok(self.digest.digest())
    }
}
