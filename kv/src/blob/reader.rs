//! Reads a blob file: values by key, walks, verification.
//!
//! A value costs one read of exactly its record: the index, which is in memory, tells where it is.

use std::ops::Range;
use std::sync::Arc;

use lavafs::{FileRef, FileSystem, ReadRequest};
use xxhash_rust::xxh3::Xxh3;

use super::cbt::{BlobIndex, RecordLocation};
use super::file_name;
use super::footer::{
    FOOTER_LEN, Footer, HEADER_LEN, Header, SECTION_DICTIONARY, SECTION_INDEX, SECTION_PROPERTIES,
    unseal,
};
use super::iter::{BlobFileIterator, StoredValue};
use super::properties::BlobFileProperties;
use super::record::{CODEC_RAW, CODEC_ZSTD, HEAD_MAX, Record, RecordHead};
use crate::cache::{BlockCache, BlockKind, Reservation};
use crate::error::{Error, Result};
use crate::key::{InternalKeyRef, compare_internal};
use crate::sstable::compression::{Dictionary, decompress, decompress_with};
use crate::sstable::{Handle, decode_sections, read_exactly, varint};
use crate::stats::perf::{self, ReadFor};

/// Bytes read at the end of the file when it is opened: most files' index and all that follows it.
const TAIL_READ: u64 = 64 << 10;

/// Bytes read at once while the whole file is verified.
const VERIFY_READ: u64 = 1 << 20;

/// An open blob file. Any thread may read it.
pub struct BlobFileReader {
    file: FileRef,
    /// For messages.
    name: String,
    footer: Footer,
    properties: BlobFileProperties,
    index: Arc<BlobIndex>,
    dictionary: Option<Dictionary>,
    /// Charges its memory to a cache.
    charge: Option<Reservation>,
}

impl std::fmt::Debug for BlobFileReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} records", self.name, self.properties.records)
    }
}

impl BlobFileReader {
    /// Opens the finished blob file in `file`, which has this number. Reads footer, properties,
    /// dictionary and index.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the file is no whole blob file or not of this number,
    /// [`Error::Unsupported`] where it is of a newer format.
    pub fn open(file: FileRef, number: u64) -> Result<Arc<Self>> {
        Self::read(file, number).map(Arc::new)
    }

    /// As [`BlobFileReader::open`], with its memory charged to `cache` for as long as it is open, as what
    /// can be given up if `may_close`.
    pub(crate) fn open_charged(
        file: FileRef,
        number: u64,
        cache: &Arc<BlockCache>,
        may_close: bool,
    ) -> Result<Arc<Self>> {
        let bytes = perf::bytes_so_far();
        let mut reader = Self::read(file, number)?;
        let bytes = perf::bytes_so_far().wrapping_sub(bytes) as usize;
        cache.count_read(BlockKind::BlobIndex, bytes);
        reader.charge = Some(match may_close {
            true => cache.reserve_evictable(reader.memory()),
            false => cache.reserve(reader.memory()),
        });
        Ok(Arc::new(reader))
    }

    fn read(file: FileRef, number: u64) -> Result<Self> {
        let name = file_name(number);
        // A finished file was synced with its size; a file of an uncertain size is none.
        let size = file.size().lower();
        if size < (HEADER_LEN + FOOTER_LEN) as u64 {
            let detail = format!("{size} bytes are no blob file");
            return Err(Error::corrupt(name, 0u64, detail));
        }
        let mut tail = Tail {
            start: size.saturating_sub(TAIL_READ),
            bytes: Vec::new(),
            file: &file,
            name: &name,
            seed: 0,
        };
        tail.bytes = read_exactly(&file, &name, tail.start..size)?;
        perf::read(ReadFor::BlobIndex, tail.bytes.len());
        let footer = tail.bytes.last_chunk().expect("the tail holds the footer");
        let footer = Footer::decode(footer, &name, size)?;
        if footer.header.number != number {
            let detail = format!("the file says that it is number {}", footer.header.number);
            return Err(Error::corrupt(name, size - FOOTER_LEN as u64, detail));
        }
        tail.seed = footer.header.seed;
        let (properties, index, dictionary) = read_sections(&tail, &footer)?;
        Ok(BlobFileReader {
            file,
            name,
            footer,
            properties,
            index: Arc::new(index),
            dictionary,
            charge: None,
        })
    }

    /// The file's number.
    pub fn number(&self) -> u64 {
        self.footer.header.number
    }

    /// The file, for reads in a batch.
    pub(crate) fn file(&self) -> &FileRef {
        &self.file
    }

    /// What the file says of itself.
    pub fn properties(&self) -> &BlobFileProperties {
        &self.properties
    }

    /// The index.
    pub fn index(&self) -> &Arc<BlobIndex> {
        &self.index
    }

    /// Bytes of memory that the open file takes: about two per record and the dictionary.
    pub fn memory(&self) -> usize {
        let dictionary = self.dictionary.as_ref();
        let dictionary = dictionary.map_or(0, Dictionary::memory);
        self.index.memory() + dictionary + size_of::<Self>()
    }

    /// Where the record of a key is, without a read. A key that is not in the file gets `None` or
    /// another key's record.
    ///
    /// # Panics
    /// If `internal_key` is shorter than a trailer.
    pub fn locate(&self, internal_key: &[u8]) -> Option<RecordLocation> {
        let within = compare_internal(&self.properties.smallest, internal_key).is_le()
            && compare_internal(internal_key, &self.properties.largest).is_le();
        within.then(|| self.index.locate(internal_key))
    }

    /// The value of a key, with at most one read; `None` if the file has no such key.
    ///
    /// # Errors
    /// The file's, or [`Error::Corrupt`] with the offset of the record.
    pub fn get(&self, internal_key: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(location) = self.locate(internal_key) else {
            return Ok(None);
        };
        let record = self.read_record(location)?;
        self.decode_record(internal_key, location, record)
    }

    /// The bytes at a location that [`BlobFileReader::locate`] told, with one read.
    pub(crate) fn read_record(&self, location: RecordLocation) -> Result<Vec<u8>> {
        perf::read(ReadFor::Block(BlockKind::Value), location.len as usize);
        let end = location.offset + location.len;
        read_exactly(&self.file, &self.name, location.offset..end)
    }

    /// Bytes of the value of a key before compression; `None` if the file has no such key. Reads the
    /// beginning of its record alone, so its checksum is not checked.
    ///
    /// # Errors
    /// The file's, or [`Error::Corrupt`] for a record that is none.
    pub(crate) fn value_len(&self, internal_key: &[u8]) -> Result<Option<u64>> {
        let Some(location) = self.locate(internal_key) else {
            return Ok(None);
        };
        let corrupt = |detail: &str| self.corrupt(location.offset, detail);
        let len = location.len.min((2 * HEAD_MAX + internal_key.len()) as u64);
        let bytes = read_exactly(
            &self.file,
            &self.name,
            location.offset..location.offset + len,
        )?;
        let head = RecordHead::decode(&bytes).map_err(corrupt)?;
        let mut at = head.head_len + head.key_len;
        if bytes.get(head.head_len..at) != Some(internal_key) {
            return Ok(None);
        }
        match head.codec {
            CODEC_RAW => Ok(Some(head.stored_len as u64)),
            _ => varint::get(&bytes, &mut at)
                .map(Some)
                .ok_or_else(|| corrupt("value without a length")),
        }
    }

    /// Gives the value of a key as its record stores it, checked, with at most one read; `None` if the
    /// file has no such key.
    ///
    /// # Errors
    /// As [`BlobFileReader::get`], or what `then` fails with.
    pub(crate) fn with_stored<R>(
        &self,
        internal_key: &[u8],
        then: impl FnOnce(StoredValue<'_>) -> Result<R>,
    ) -> Result<Option<R>> {
        let Some(location) = self.locate(internal_key) else {
            return Ok(None);
        };
        let offset = location.offset;
        let bytes = read_exactly(&self.file, &self.name, offset..offset + location.len)?;
        let corrupt = |detail: &str| self.corrupt(offset, detail);
        let found = Record::decode(&bytes, self.seed(), offset).map_err(corrupt)?;
        if found.internal_key != internal_key {
            return Ok(None);
        }
        let stored = StoredValue {
            codec: found.codec,
            bytes: found.stored,
            reader: self,
            offset,
        };
        then(stored).map(Some)
    }

    /// The values of several keys of several files, with at most one read each, all in one batch with up to
    /// `queue_depth` of them in flight. `fs` is the filesystem of the files.
    ///
    /// # Errors
    /// Outside: a read failed. Inside: that key's record is corrupt.
    pub fn get_batch(
        fs: &dyn FileSystem,
        wanted: &[(&BlobFileReader, &[u8])],
        queue_depth: usize,
    ) -> Result<Vec<Result<Option<Vec<u8>>>>> {
        let located = wanted.iter().map(|(reader, key)| {
            let location = reader.locate(key)?;
            Some((location, vec![0; location.len as usize]))
        });
        let mut located: Vec<_> = located.collect();
        let mut requests = Vec::with_capacity(wanted.len());
        for (found, (reader, _)) in located.iter_mut().zip(wanted) {
            if let Some((location, buf)) = found {
                requests.push(ReadRequest {
                    file: &reader.file,
                    offset: location.offset,
                    buf,
                    read: 0,
                });
            }
        }
        fs.read_batch(&mut requests, queue_depth)?;
        let reads: Vec<usize> = requests.iter().map(|request| request.read).collect();
        let mut reads = reads.into_iter();
        let values = located.into_iter().zip(wanted);
        Ok(values
            .map(|(found, (reader, key))| {
                let Some((location, mut record)) = found else {
                    return Ok(None);
                };
                record.truncate(reads.next().expect("one read per record"));
                reader.decode_record(key, location, record)
            })
            .collect())
    }

    /// The value in the bytes read at a location that [`BlobFileReader::locate`] told for the key; `None` if
    /// they are the record of another key. Checks all of them.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the offset of the record.
    pub fn decode_record(
        &self,
        internal_key: &[u8],
        location: RecordLocation,
        mut record: Vec<u8>,
    ) -> Result<Option<Vec<u8>>> {
        let corrupt = |detail: &str| self.corrupt(location.offset, detail);
        let found = Record::decode(&record, self.seed(), location.offset).map_err(corrupt)?;
        if found.internal_key != internal_key {
            return Ok(None);
        }
        if found.codec != CODEC_RAW {
            return self
                .decode_value(found.codec, found.stored, location.offset)
                .map(Some);
        }
        let value = found.stored_at..found.stored_at + found.stored.len();
        record.truncate(value.end);
        record.drain(..value.start);
        Ok(Some(record))
    }

    /// Walks the records in key order.
    pub fn iter(self: &Arc<Self>) -> BlobFileIterator {
        BlobFileIterator::new(Arc::clone(self))
    }

    /// Reads and checks everything: the checksum of the file, of every record and block, that keys
    /// ascend, that values decompress, and that the index finds each record and the properties
    /// agree with them.
    ///
    /// # Errors
    /// The first disagreement, as [`Error::Corrupt`].
    pub fn verify(self: &Arc<Self>) -> Result<()> {
        self.verify_file()?;
        let mut counted = BlobFileProperties {
            smallest_seq: u64::MAX,
            smallest: self.properties.smallest.clone(),
            file_bytes: self.properties.file_bytes,
            checksum: self.properties.checksum,
            ancestors: self.properties.ancestors.clone(),
            ..BlobFileProperties::default()
        };
        let mut iter = self.iter();
        while iter.advance()? {
            let location = iter.location();
            let wrong = |detail: &str| Err(self.corrupt(location.offset, detail));
            let key = InternalKeyRef::decode(iter.key()).expect("checked with its record");
            if counted.records == 0 && iter.key() != counted.smallest {
                return wrong("the first key is not what the properties say");
            }
            if counted.records > 0 && compare_internal(&counted.largest, iter.key()).is_ge() {
                return wrong("keys do not ascend");
            }
            if self.locate(iter.key()) != Some(location) {
                return wrong("the index does not find a record");
            }
            counted.records += 1;
            counted.raw_key_bytes += iter.key().len() as u64;
            counted.raw_value_bytes += iter.value()?.len() as u64;
            counted.stored_bytes += location.len;
            counted.smallest_seq = counted.smallest_seq.min(key.seq);
            counted.largest_seq = counted.largest_seq.max(key.seq);
            counted.largest.clear();
            counted.largest.extend_from_slice(iter.key());
        }
        if counted != self.properties {
            return Err(self.corrupt(0, "properties do not agree with the records"));
        }
        Ok(())
    }

    fn verify_file(&self) -> Result<()> {
        let body_end = self.footer.file_size - FOOTER_LEN as u64;
        let mut digest = Xxh3::new();
        let mut at = 0;
        while at < body_end {
            let end = body_end.min(at + VERIFY_READ);
            let bytes = read_exactly(&self.file, &self.name, at..end)?;
            if let (0, Some(header)) = (at, bytes.first_chunk())
                && Header::decode(header, &self.name)? != self.footer.header
            {
                return Err(self.corrupt(0, "header and footer disagree"));
            }
            digest.update(&bytes);
            at = end;
        }
        if digest.digest() != self.footer.body_checksum {
            return Err(self.corrupt(0, "file checksum mismatch"));
        }
        Ok(())
    }

    pub(super) fn seed(&self) -> u64 {
        self.footer.header.seed
    }

    /// Where the records begin and end.
    pub(super) fn data_range(&self) -> Range<u64> {
        self.index.data_range()
    }

    pub(super) fn corrupt(&self, offset: u64, detail: &str) -> Error {
        Error::corrupt(&self.name, offset, detail)
    }

    /// Reads bytes that the file must have.
    pub(super) fn read_into(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let read = self.file.read_at(offset, buf)?;
        if read < buf.len() {
            let wanted = buf.len();
            let detail = format!("file ends after {read} of {wanted} bytes");
            return Err(self.corrupt(offset, &detail));
        }
        Ok(())
    }

    /// The value of a record's stored value.
    pub(super) fn decode_value(&self, codec: u8, stored: &[u8], offset: u64) -> Result<Vec<u8>> {
        let value = match (codec, &self.dictionary) {
            (CODEC_RAW, _) => Ok(stored.to_vec()),
            (CODEC_ZSTD, _) => decompress(stored),
            (_, Some(dictionary)) => decompress_with(stored, dictionary),
            (_, None) => Err("value compressed with a dictionary that the file does not have"),
        };
        value.map_err(|detail| self.corrupt(offset, detail))
    }
}

/// The end of a file that is being opened.
struct Tail<'a> {
    file: &'a FileRef,
    name: &'a str,
    seed: u64,
    /// Where `bytes` are in the file.
    start: u64,
    bytes: Vec<u8>,
}

impl Tail<'_> {
    /// The contents of a block, from the bytes at hand if they hold it.
    fn block(&self, handle: Handle) -> Result<Vec<u8>> {
        let unseal = |block: &[u8]| match unseal(self.seed, handle.offset, block) {
            Some(contents) => Ok(contents.to_vec()),
            None => Err(self.corrupt(handle, "block checksum mismatch")),
        };
        match handle.offset.checked_sub(self.start) {
            Some(at) => unseal(&self.bytes[at as usize..(at + handle.len) as usize]),
            None => {
                let place = handle.offset..handle.offset + handle.len;
                perf::read(ReadFor::BlobIndex, handle.len as usize);
                unseal(&read_exactly(self.file, self.name, place)?)
            }
        }
    }

    fn corrupt(&self, handle: Handle, detail: &str) -> Error {
        Error::corrupt(self.name, handle.offset, detail)
    }
}

type Sections = (BlobFileProperties, BlobIndex, Option<Dictionary>);

fn read_sections(tail: &Tail<'_>, footer: &Footer) -> Result<Sections> {
    let meta = footer.meta;
    let sections = decode_sections(&tail.block(meta)?, meta.offset)
        .map_err(|bad| tail.corrupt(meta, bad.detail))?;
    let (mut properties, mut index, mut dictionary) = (None, None, None);
    for (id, required, handle) in sections {
        let bad = |detail| tail.corrupt(handle, detail);
        match id {
            SECTION_PROPERTIES => {
                let decoded = BlobFileProperties::decode(&tail.block(handle)?);
                properties = Some(decoded.map_err(|error| bad(error.detail))?);
            }
            SECTION_INDEX => {
                let parsed = BlobIndex::parse(tail.block(handle)?).map_err(bad)?;
                let records = parsed.data_range();
                if records.start != HEADER_LEN as u64 || records.end > handle.offset {
                    return Err(bad("index of records outside of the file"));
                }
                index = Some(parsed);
            }
            SECTION_DICTIONARY => {
                dictionary = Some(Dictionary::new(&tail.block(handle)?).map_err(bad)?);
            }
            _ if required => {
                let name = tail.name;
                return Err(Error::Unsupported {
                    what: format!("{name}: section {id} of a newer blob file format"),
                });
            }
            _ => {}
        }
    }
    let missing = |what: &str| tail.corrupt(meta, &format!("blob file without {what}"));
    let mut properties = properties.ok_or_else(|| missing("properties"))?;
    let index = index.ok_or_else(|| missing("an index"))?;
    let bounds = [&properties.smallest, &properties.largest];
    if bounds
        .iter()
        .any(|key| InternalKeyRef::decode(key).is_none())
    {
        return Err(missing("bounds"));
    }
    let stored_bytes = index.data_range().end - index.data_range().start;
    if properties.records != u64::from(index.records()) || properties.stored_bytes != stored_bytes {
        return Err(tail.corrupt(meta, "index and properties disagree"));
    }
    properties.file_bytes = footer.file_size;
    properties.checksum = footer.body_checksum;
    Ok((properties, index, dictionary))
}
