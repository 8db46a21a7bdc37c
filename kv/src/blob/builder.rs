//! Writes a blob file: records in key order, then dictionary, index, properties and footer.
//!
//! Records are gathered and appended in large pieces. A file that is to train a dictionary holds its first
//! values back in memory (held.rs) until the dictionary is there, and writes them with it. Nothing is durable until
//! [`BlobFileBuilder::finish`] has returned; a file that was not finished has no footer, cannot be
//! opened, and is to be removed by whoever made it.

use std::collections::BTreeSet;
use std::sync::Arc;

use lavafs::FileRef;

use super::cbt_builder::IndexBuilder;
use super::footer::{
    FOOTER_LEN, Footer, HEADER_LEN, Header, SECTION_DICTIONARY, SECTION_INDEX, SECTION_PROPERTIES,
    seal,
};
use super::held::Held;
use super::iter::StoredValue;
use super::properties::BlobFileProperties;
use super::record::{
    CODEC_RAW, CODEC_ZSTD, CODEC_ZSTD_DICTIONARY, encode_head, encode_tail, padded,
};
use super::{BlobFileOptions, MAX_DICTIONARY_LEN};
use crate::error::{Error, Result};
use crate::key::{InternalKeyRef, SeqNo, compare_internal};
use crate::sstable::compression::{BlockCompressor, Compression};
use crate::sstable::{FileOutput, Handle, MAX_KEY_LEN, MAX_VALUE_LEN, encode_sections};

/// Bytes gathered before they are appended to the file. Also the size from which a value is
/// appended from where it is.
const APPEND_BYTES: usize = 1 << 20;

/// Builds one blob file. Belongs to one thread.
pub struct BlobFileBuilder {
    options: BlobFileOptions,
    compressor: BlockCompressor,
    /// Codec of what `compressor` gives.
    codec: u8,
    /// What `compressor` was given.
    dictionary: Option<Arc<[u8]>>,
    /// Values that wait for a dictionary; `None` without one and after it was trained.
    held: Option<Held>,
    output: Output,
    index: IndexBuilder,
    last_key: Vec<u8>,
    properties: BlobFileProperties,
    /// Head of the record that is written.
    head: Vec<u8>,
}

/// The file, and what is on its way there.
struct Output {
    file: FileOutput,
    header: Header,
}

impl BlobFileBuilder {
    /// Begins a blob file in `file`, which must be empty and is the builder's alone. `number` is
    /// the file's number in its database.
    ///
    /// # Errors
    /// Options that are out of range.
    pub fn create(file: FileRef, number: u64, options: BlobFileOptions) -> Result<Self> {
        let longest = options.dictionary.as_ref().map_or(0, |given| given.len());
        let longest = longest.max(options.zstd_dict_bytes);
        if longest > MAX_DICTIONARY_LEN {
            return Err(Error::invalid_argument(format!(
                "dictionary of {longest} bytes, at most {MAX_DICTIONARY_LEN}"
            )));
        }
        let held = match options.dictionary {
            Some(_) => None,
            None => Held::wanted(options.compression, options.zstd_dict_bytes),
        };
        let header = Header {
            seed: file.generation().0,
            number,
        };
        let mut output = Output {
            file: FileOutput::new(file, APPEND_BYTES),
            header,
        };
        output.file.write(&[], &header.encode())?;
        let mut builder = BlobFileBuilder {
            compressor: BlockCompressor::new(options.compression)?,
            codec: CODEC_ZSTD,
            dictionary: None,
            held,
            output,
            index: IndexBuilder::default(),
            last_key: Vec::new(),
            properties: BlobFileProperties {
                smallest_seq: SeqNo::MAX,
                ..BlobFileProperties::default()
            },
            head: Vec::new(),
            options,
        };
        if let Some(given) = builder.options.dictionary.clone() {
            builder.set_dictionary(given)?;
        }
        Ok(builder)
    }

    /// Compresses with this dictionary from now on, if at all.
    fn set_dictionary(&mut self, dictionary: Arc<[u8]>) -> Result<()> {
        if let (Compression::Zstd { level }, false) =
            (self.options.compression, dictionary.is_empty())
        {
            self.compressor = BlockCompressor::with_dictionary(level, &dictionary)?;
            self.codec = CODEC_ZSTD_DICTIONARY;
            self.dictionary = Some(dictionary);
        }
        Ok(())
    }

    /// Adds the value of a version of a key, and returns the bytes of the records that this wrote: its own, none
    /// while it waits for a dictionary, and those of all that waited where it ends the waiting. After an error
    /// the file cannot be finished.
    ///
    /// # Errors
    /// The file's, or a key or value over its limit.
    ///
    /// # Panics
    /// If `internal_key` is malformed or not after the one before.
    pub fn add(&mut self, internal_key: &[u8], value: &[u8]) -> Result<u64> {
        check_order(self.last_key(), internal_key);
        check_limits(internal_key, value.len())?;
        if let Some(held) = &mut self.held
            && held.push(internal_key, value)
        {
            return Ok(0);
        }
        let waited = self.end_sampling()?;
        Ok(waited + self.write_value(internal_key, value)?)
    }

    /// Trains the dictionary, if the values held give one, and writes them. Returns the bytes of their records.
    fn end_sampling(&mut self) -> Result<u64> {
        let Some(held) = self.held.take() else {
            return Ok(0);
        };
        if let Some(dictionary) = held.train() {
            self.set_dictionary(dictionary.into())?;
        }
        let mut written = 0;
        for (internal_key, value) in held.entries() {
            written += self.write_value(internal_key, value)?;
        }
        Ok(written)
    }

    fn write_value(&mut self, internal_key: &[u8], value: &[u8]) -> Result<u64> {
        let (compressor, mut codec) = (&mut self.compressor, self.codec);
        // Taken apart from `self`, whose other parts write the record.
        let stored = match compressor.compress(value) {
            Some(stored) => stored,
            None => {
                codec = CODEC_RAW;
                value
            }
        };
        let output = &mut self.output;
        let head = &mut self.head;
        let len = output.write_record(head, (internal_key, codec, stored))?;
        self.count(internal_key, value.len() as u64, len);
        Ok(len)
    }

    /// Like [`BlobFileBuilder::add`] of a value as another blob file stores it, without
    /// compressing it again, unless that file's dictionary or this one's makes a difference.
    ///
    /// # Errors
    /// As [`BlobFileBuilder::add`].
    pub fn add_stored(&mut self, internal_key: &[u8], value: StoredValue<'_>) -> Result<u64> {
        let dictionaries = [value.codec, self.codec].contains(&CODEC_ZSTD_DICTIONARY);
        if dictionaries || self.held.is_some() {
            return self.add(internal_key, &value.decode()?);
        }
        let value_len = value.value_len()?;
        check_order(&self.last_key, internal_key);
        check_limits(internal_key, value_len as usize)?;
        let record = (internal_key, value.codec, value.bytes);
        let len = self.output.write_record(&mut self.head, record)?;
        self.count(internal_key, value_len, len);
        Ok(len)
    }

    fn count(&mut self, internal_key: &[u8], value_len: u64, record_len: u64) {
        let key = InternalKeyRef::decode(internal_key).expect("internal keys are well-formed");
        let properties = &mut self.properties;
        let before = (properties.records > 0).then_some(&self.last_key[..]);
        self.index.add(before, internal_key, record_len);
        if before.is_none() {
            properties.smallest = internal_key.to_vec();
        }
        properties.records += 1;
        properties.raw_key_bytes += internal_key.len() as u64;
        properties.raw_value_bytes += value_len;
        properties.stored_bytes += record_len;
        properties.smallest_seq = properties.smallest_seq.min(key.seq);
        properties.largest_seq = properties.largest_seq.max(key.seq);
        self.last_key.clear();
        self.last_key.extend_from_slice(internal_key);
    }

    /// Notes the numbers by which tables know the values that are copied here: what a repair needs
    /// where no manifest tells.
    pub fn set_ancestors(&mut self, numbers: impl IntoIterator<Item = u64>) {
        let ancestors: BTreeSet<u64> = numbers.into_iter().collect();
        self.properties.ancestors = ancestors.into_iter().collect();
    }

    /// Values added so far.
    pub fn records(&self) -> u64 {
        self.properties.records + self.held.as_ref().map_or(0, Held::len) as u64
    }

    /// The last internal key added; empty before the first.
    pub fn last_key(&self) -> &[u8] {
        let held = self.held.as_ref().and_then(Held::last_key);
        held.unwrap_or(&self.last_key)
    }

    /// Bytes of the file if it were finished now, about; values not yet written count uncompressed.
    pub fn estimated_size(&self) -> u64 {
        let dictionary = self.dictionary.as_ref().map_or(0, |given| given.len());
        let held = self.held.as_ref().map_or(0, Held::memory);
        self.output.file.len() + (self.index.estimated_size() + dictionary + held) as u64
    }

    /// Writes what is left and makes the file durable, size included.
    ///
    /// # Panics
    /// If nothing was added.
    pub fn finish(mut self) -> Result<BlobFileProperties> {
        self.end_sampling()?;
        assert!(self.properties.records > 0, "a blob file has records");
        let output = &mut self.output;
        let mut sections = Vec::new();
        if let Some(dictionary) = &self.dictionary {
            sections.push((SECTION_DICTIONARY, true, output.write_block(dictionary)?));
        }
        let index = self.index.finish(HEADER_LEN as u64);
        sections.push((SECTION_INDEX, true, output.write_block(&index)?));
        let mut properties = self.properties;
        properties.largest = self.last_key;
        let handle = output.write_block(&properties.encode())?;
        sections.push((SECTION_PROPERTIES, true, handle));
        let meta = output.write_block(&encode_sections(&sections))?;
        properties.checksum = output.finish(meta)?;
        properties.file_bytes = output.file.len();
        Ok(properties)
    }

    /// Gives the file up: nothing more is written to it. Its maker removes it.
    pub fn abandon(self) {}
}

impl std::fmt::Debug for BlobFileBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let records = self.records();
        write!(
            f,
            "BlobFileBuilder: {records} records in {:?}",
            self.output.file
        )
    }
}

fn check_order(last_key: &[u8], internal_key: &[u8]) {
    assert!(
        InternalKeyRef::decode(internal_key).is_some(),
        "internal keys are well-formed"
    );
    assert!(
        last_key.is_empty() || compare_internal(last_key, internal_key).is_lt(),
        "keys are added in ascending order"
    );
}

fn check_limits(internal_key: &[u8], value_len: usize) -> Result<()> {
    if internal_key.len() > MAX_KEY_LEN || value_len > MAX_VALUE_LEN {
        let key_len = internal_key.len();
        return Err(Error::invalid_argument(format!(
            "key of {key_len} or value of {value_len} bytes, limits are {MAX_KEY_LEN} and \
             {MAX_VALUE_LEN}"
        )));
    }
    Ok(())
}

impl Output {
    /// Writes a record of key, codec and stored value; returns its length.
    fn write_record(
        &mut self,
        head: &mut Vec<u8>,
        (internal_key, codec, stored): (&[u8], u8, &[u8]),
    ) -> Result<u64> {
        head.clear();
        encode_head(internal_key, stored.len(), codec, head);
        let tail = encode_tail(self.header.seed, self.file.len(), head, stored);
        let len = (head.len() + stored.len() + tail.len()) as u64;
        assert_eq!(len, padded(len), "padding is complete");
        self.file.write(&[head, stored], &tail)?;
        Ok(len)
    }

    fn write_block(&mut self, contents: &[u8]) -> Result<Handle> {
        let offset = self.file.len();
        let seal = seal(self.header.seed, offset, contents);
        self.file.write(&[contents], &seal)?;
        Ok(Handle {
            offset,
            len: self.file.len() - offset,
        })
    }

    /// Writes the footer and makes all durable; returns the checksum of what is before it.
    fn finish(&mut self, meta: Handle) -> Result<u64> {
        let body_checksum = self.file.checksum()?;
        let footer = Footer {
            header: self.header,
            meta,
            body_checksum,
            file_size: self.file.len() + FOOTER_LEN as u64,
        };
        self.file.finish(&footer.encode())?;
        Ok(body_checksum)
    }
}
