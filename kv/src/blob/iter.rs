//! Walks a blob file's records in key order with large sequential reads.
//!
//! Records tell their own lengths, so a walk needs no index. Each record is checked as it is met; a value
//! is decompressed only when it is asked for.

use std::ops::Range;
use std::sync::Arc;

use super::cbt::RecordLocation;
use super::reader::BlobFileReader;
use super::record::{CODEC_RAW, HEAD_MAX, Record, RecordHead, padded};
use crate::error::Result;
use crate::sstable::varint;

/// Bytes read at once.
const READ_BYTES: u64 = 1 << 20;

/// A walk over a blob file's records in key order, once from the first to the last.
pub struct BlobFileIterator {
    reader: Arc<BlobFileReader>,
    /// Bytes of the file from `buffer_at` on.
    buffer: Vec<u8>,
    buffer_at: u64,
    /// Where the next record begins.
    next: u64,
    current: Option<Current>,
}

/// The record that the walk is at; ranges in the buffer.
struct Current {
    location: RecordLocation,
    key: Range<usize>,
    stored: Range<usize>,
    codec: u8,
}

/// A value as its record stores it, checked but not decompressed.
#[derive(Clone, Copy)]
pub struct StoredValue<'a> {
    pub(super) codec: u8,
    pub(super) bytes: &'a [u8],
    /// Where it is from.
    pub(super) reader: &'a BlobFileReader,
    pub(super) offset: u64,
}

impl std::fmt::Debug for StoredValue<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of codec {}", self.bytes.len(), self.codec)
    }
}

impl StoredValue<'_> {
    /// The value.
    pub fn decode(&self) -> Result<Vec<u8>> {
        self.reader
            .decode_value(self.codec, self.bytes, self.offset)
    }

    /// Bytes of the value.
    pub(super) fn value_len(&self) -> Result<u64> {
        match self.codec {
            CODEC_RAW => Ok(self.bytes.len() as u64),
            _ => varint::get(self.bytes, &mut 0)
                .ok_or_else(|| self.reader.corrupt(self.offset, "value without a length")),
        }
    }
}

impl BlobFileIterator {
    pub(super) fn new(reader: Arc<BlobFileReader>) -> Self {
        BlobFileIterator {
            buffer: Vec::new(),
            buffer_at: reader.data_range().start,
            next: reader.data_range().start,
            current: None,
            reader,
        }
    }

    /// Goes to the next record, or to the first; false at the end.
    ///
    /// # Errors
    /// The file's, or [`Error::Corrupt`] with the offset of the record; the walk is over then.
    ///
    /// [`Error::Corrupt`]: crate::Error::Corrupt
    pub fn advance(&mut self) -> Result<bool> {
        self.current = None;
        let end = self.reader.data_range().end;
        if self.next >= end {
            return Ok(false);
        }
        // After an error the walk is at its end.
        let offset = std::mem::replace(&mut self.next, end);
        let room = end - offset;
        let at = self.fill(offset, room.min(HEAD_MAX as u64))?;
        let head = RecordHead::decode(&self.buffer[at..])
            .map_err(|detail| self.reader.corrupt(offset, detail))?;
        let len = padded(head.len());
        if len > room {
            let detail = "record beyond the end of the records";
            return Err(self.reader.corrupt(offset, detail));
        }
        let at = self.fill(offset, len)?;
        let bytes = &self.buffer[at..at + len as usize];
        let record = Record::decode(bytes, self.reader.seed(), offset)
            .map_err(|detail| self.reader.corrupt(offset, detail))?;
        let stored_at = at + record.stored_at;
        self.current = Some(Current {
            location: RecordLocation { offset, len },
            key: stored_at - record.internal_key.len()..stored_at,
            stored: stored_at..stored_at + record.stored.len(),
            codec: record.codec,
        });
        self.next = offset + len;
        Ok(true)
    }

    /// Has `len` bytes at `offset` in the buffer, and more if they are read anyway; returns
    /// where in the buffer they begin. They lie within the records' area.
    fn fill(&mut self, offset: u64, len: u64) -> Result<usize> {
        let at = (offset - self.buffer_at) as usize;
        if self.buffer.len() >= at + len as usize {
            return Ok(at);
        }
        self.buffer.drain(..at.min(self.buffer.len()));
        self.buffer_at = offset;
        let held = self.buffer.len();
        let from = offset + held as u64;
        let to = (offset + len).max(from + READ_BYTES);
        let to = to.min(self.reader.data_range().end);
        self.buffer.resize(held + (to - from) as usize, 0);
        self.reader.read_into(from, &mut self.buffer[held..])?;
        Ok(0)
    }

    fn current(&self) -> &Current {
        self.current.as_ref().expect("the walk is at a record")
    }

    /// The record's internal key.
    ///
    /// # Panics
    /// Here and below, unless [`BlobFileIterator::advance`] has just returned true.
    pub fn key(&self) -> &[u8] {
        &self.buffer[self.current().key.clone()]
    }

    /// Where the record is.
    pub fn location(&self) -> RecordLocation {
        self.current().location
    }

    /// The record's value as it is stored.
    pub fn stored(&self) -> StoredValue<'_> {
        let current = self.current();
        StoredValue {
            codec: current.codec,
            bytes: &self.buffer[current.stored.clone()],
            reader: &self.reader,
            offset: current.location.offset,
        }
    }

    /// The record's value.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it does not decompress.
    ///
    /// [`Error::Corrupt`]: crate::Error::Corrupt
    pub fn value(&self) -> Result<Vec<u8>> {
        self.stored().decode()
    }
}

impl std::fmt::Debug for BlobFileIterator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "BlobFileIterator: {:?} at byte {}",
            self.reader, self.next
        )
    }
}
