//! Writes a table: entries in key order, then filter, index, properties and footer.
//!
//! Blocks are gathered and appended in large pieces. A table with a dictionary keeps its first blocks
//! in memory, a hundred times as much as the dictionary is to have: they are the samples that
//! it is trained on (samples.rs), and are compressed with it like those that follow. Nothing is durable until
//! [`TableBuilder::finish`] has returned; a table that was not finished has no footer, cannot be
//! opened, and is to be removed by whoever made the file.
//!
//! Blocks that readers are likely to ask for are kept as they were built, for the cache, unless they wait for a
//! dictionary.

use std::collections::BTreeMap;

use lavafs::FileRef;

use super::block::BlockBuilder;
use super::footer::{
    FEATURE_DICTIONARY, FEATURE_PARTITIONED_INDEX, FOOTER_LEN, Footer, Handle, SECTION_DICTIONARY,
    SECTION_FILTER, SECTION_PROPERTIES, encode_sections,
};
use super::index::IndexBuilder;
use super::output::FileOutput;
use super::properties::TableProperties;
use super::samples::Samples;
use super::{BLOCK_TRAILER, BlockCrc, MAX_KEY_LEN, MAX_VALUE_LEN, TableOptions, filter};
use crate::blob::reference::BlobReference;
use crate::error::{Error, Result};
use crate::file_names::FileNumber;
use crate::key::{InternalKeyRef, SeqNo, TRAILER_LEN, ValueKind, compare_internal, user_key};
use crate::sstable::compression::{
    BlockCompressor, CODE_NONE, CODE_ZSTD, CODE_ZSTD_DICTIONARY, Compression,
};
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
    /// Blocks kept for the cache.
    pub(crate) kept: Vec<KeptBlock>,
}

/// A data block as it was built, kept for the cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptBlock {
    /// Where it is in the file.
    pub(crate) offset: u64,
    /// Its contents, compressed if `is_packed`.
    pub(crate) bytes: Vec<u8>,
    /// True for a block that is cached compressed ([`TableProperties::is_mostly_references`]).
    pub(crate) is_packed: bool,
}

/// Blocks kept, and whether the one under construction is to be.
#[derive(Default)]
struct Keeping {
    blocks: Vec<KeptBlock>,
    bytes: usize,
    /// Entries of the block under construction that are worth it, less those that are not.
    worth: i64,
}

/// Builds one table in a new file. Belongs to one thread.
pub struct TableBuilder {
    options: TableOptions,
    block: BlockBuilder,
    compressor: Option<BlockCompressor>,
    /// Blocks that wait for the dictionary; `None` without one and after it was trained.
    samples: Option<Samples>,
    dictionary: Option<Vec<u8>>,
    output: Output,
    index: IndexBuilder,
    /// Filter hash of each user key.
    hashes: Vec<u64>,
    /// Filter hash of the last user key.
    last_hash: u64,
    last_key: Vec<u8>,
    /// A block waits for the key after it to get its separator.
    unindexed: bool,
    properties: TableProperties,
    blob_refs: BTreeMap<FileNumber, BlobUse>,
    keeping: Keeping,
}

/// The file, and what is on its way there.
struct Output {
    file: FileOutput,
    seed: u64,
    /// A block's parts put together for compression.
    whole: Vec<u8>,
    /// The number on disk of how blocks are compressed that are.
    compressed: u8,
}

impl TableBuilder {
    /// Begins a table in `file`, which must be empty and is the builder's alone.
    pub fn new(file: FileRef, options: TableOptions) -> Self {
        TableBuilder {
            block: BlockBuilder::new(options.restart_interval, options.hash_index),
            compressor: None,
            samples: Samples::wanted(options.compression, options.zstd_dict_bytes),
            dictionary: None,
            output: Output {
                seed: file.generation().0,
                file: FileOutput::new(file, APPEND_BYTES),
                whole: Vec::new(),
                compressed: CODE_ZSTD,
            },
            index: IndexBuilder::default(),
            hashes: Vec::with_capacity(match options.filter_bits_per_key > 0.0 {
                true => options.expected_entries,
                false => 0,
            }),
            last_hash: 0,
            last_key: Vec::new(),
            unindexed: false,
            blob_refs: BTreeMap::new(),
            keeping: Keeping::default(),
            properties: TableProperties {
                smallest_seq: SeqNo::MAX,
                column_family: options.column_family.clone(),
                ..TableProperties::default()
            },
            options,
        }
    }

    /// Like [`TableBuilder::add`]; a block of which most entries are `warm` is kept for the cache, up to
    /// [`TableOptions::keep_bytes`] in all.
    ///
    /// # Errors
    /// As [`TableBuilder::add`].
    pub(crate) fn add_warm(&mut self, internal_key: &[u8], value: &[u8], warm: bool) -> Result<()> {
        if !self.block.is_empty() && self.is_full_before(internal_key.len() + value.len()) {
            self.flush_block()?;
        }
        self.keeping.worth += if warm { 1 } else { -1 };
        self.add(internal_key, value)
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
        if std::mem::take(&mut self.unindexed) {
            self.index.add_separator(&self.last_key, Some(internal_key));
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
        let samples = self.samples.as_ref().map_or(0, Samples::bytes);
        self.output.file.len() + (block + samples) as u64 + self.index.size() as u64 + filter as u64
    }

    fn flush_block(&mut self) -> Result<()> {
        self.properties.data_blocks += 1;
        self.unindexed = true;
        let parts = self.block.finish();
        let worth = std::mem::take(&mut self.keeping.worth);
        if let Some(samples) = &mut self.samples {
            samples.push(&parts);
            self.block.reset();
            return match samples.bytes() >= samples.enough() {
                true => self.end_sampling(),
                false => Ok(()),
            };
        }
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            None => self
                .compressor
                .insert(BlockCompressor::new(self.options.compression)?),
        };
        let (written, compressed) = self.output.write_block(&parts, compressor)?;
        let packed = compressed.filter(|_| {
            self.output.compressed == CODE_ZSTD && self.properties.is_mostly_references()
        });
        let len = match packed {
            Some(packed) => packed.len(),
            None => parts.iter().map(|part| part.len()).sum(),
        };
        if worth > 0 && self.keeping.bytes + len <= self.options.keep_bytes {
            self.keeping.bytes += len;
            self.keeping.blocks.push(KeptBlock {
                offset: written.offset,
                bytes: packed.map_or_else(|| parts.concat(), <[u8]>::to_vec),
                is_packed: packed.is_some(),
            });
        }
        self.block.reset();
        self.index.add_end(self.output.file.len());
        Ok(())
    }

    /// Trains the dictionary, if the samples give one, and writes the blocks that waited for it.
    fn end_sampling(&mut self) -> Result<()> {
        let Some(samples) = self.samples.take() else {
            return Ok(());
        };
        let dictionary = samples.train();
        let compressor = match (&dictionary, self.options.compression) {
            (Some(dictionary), Compression::Zstd { level }) => {
                self.output.compressed = CODE_ZSTD_DICTIONARY;
                BlockCompressor::with_dictionary(level, dictionary)?
            }
            (_, compression) => BlockCompressor::new(compression)?,
        };
        self.dictionary = dictionary;
        let compressor = self.compressor.insert(compressor);
        for block in samples.pieces() {
            self.output.write_block(&[block], compressor)?;
            self.index.add_end(self.output.file.len());
        }
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
        self.end_sampling()?;
        assert!(self.unindexed, "the last block was just written");
        self.index.add_separator(&self.last_key, None);
        self.properties.data_bytes = self.output.file.len();
        self.properties.largest = std::mem::take(&mut self.last_key);
        self.properties.blob_refs = std::mem::take(&mut self.blob_refs).into_iter().collect();
        self.properties.filter_keys = self.hashes.len() as u64;
        let mut plain = BlockCompressor::new(Compression::None)?;
        let output = &mut self.output;
        let mut sections = Vec::new();
        let mut features = 0;
        if let Some(dictionary) = &self.dictionary {
            features |= FEATURE_DICTIONARY;
            let (handle, _) = output.write_block(&[dictionary], &mut plain)?;
            sections.push((SECTION_DICTIONARY, true, handle));
        }
        if !self.hashes.is_empty() {
            let filter = filter::build(&self.hashes, self.options.filter_bits_per_key);
            sections.push((
                SECTION_FILTER,
                false,
                output.write_block(&[&filter], &mut plain)?.0,
            ));
        }
        let compressor = self.compressor.as_mut().expect("made with the first block");
        let threshold = self.options.index_partition_threshold;
        let index = match threshold > 0 && self.index.size() >= threshold {
            true => {
                features |= FEATURE_PARTITIONED_INDEX;
                let partition = self.options.index_partition_size;
                output.write_partitioned(&self.index, partition, compressor)?
            }
            false => output.write_block(&[&self.index.finish()], compressor)?.0,
        };
        let (properties, _) = output.write_block(&[&self.properties.encode()], &mut plain)?;
        sections.push((SECTION_PROPERTIES, true, properties));
        let (meta, _) = output.write_block(&[&encode_sections(&sections)], &mut plain)?;
        let checksum = output.finish(features, index, meta)?;
        Ok(TableSummary {
            file_size: self.output.file.len(),
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
            kept: self.keeping.blocks,
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
    /// Writes a block of the concatenation of `parts`; its place, and its compressed form if it has one.
    fn write_block<'c>(
        &mut self,
        parts: &[&[u8]],
        compressor: &'c mut BlockCompressor,
    ) -> Result<(Handle, Option<&'c [u8]>)> {
        if !compressor.is_active() {
            return Ok((self.write_stored(parts, CODE_NONE)?, None));
        }
        let mut whole = std::mem::take(&mut self.whole);
        whole.clear();
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        let compressed = compressor.compress(&whole);
        let written = match compressed {
            Some(compressed) => self.write_stored(&[compressed], self.compressed),
            None => self.write_stored(&[&whole], CODE_NONE),
        };
        self.whole = whole;
        Ok((written?, compressed))
    }

    /// Writes the index in partitions, and their index, whose place it returns.
    fn write_partitioned(
        &mut self,
        index: &IndexBuilder,
        partition: usize,
        compressor: &mut BlockCompressor,
    ) -> Result<Handle> {
        let begin = self.file.len();
        let mut written = Vec::new();
        for blocks in index.partitions(partition) {
            self.write_block(&[&index.partition(blocks.clone())], compressor)?;
            written.push((blocks, self.file.len()));
        }
        let (handle, _) = self.write_block(&[&index.of_partitions(begin, &written)], compressor)?;
        Ok(handle)
    }

    fn write_stored(&mut self, parts: &[&[u8]], code: u8) -> Result<Handle> {
        let offset = self.file.len();
        let mut crc = BlockCrc::new(self.seed, offset);
        parts.iter().for_each(|part| crc.update(part));
        let mut trailer = [code; BLOCK_TRAILER];
        trailer[1..].copy_from_slice(&crc.finish(code).to_le_bytes());
        self.file.write(parts, &trailer)?;
        Ok(Handle {
            offset,
            len: self.file.len() - offset,
        })
    }

    /// Writes the footer and makes all durable; returns the checksum of the file.
    fn finish(&mut self, features: u32, index: Handle, meta: Handle) -> Result<u64> {
        let footer = Footer {
            features,
            seed: self.seed,
            index,
            meta,
            body_checksum: self.file.checksum()?,
            file_size: self.file.len() + FOOTER_LEN as u64,
        };
        self.file.finish(&footer.encode())
    }
}
