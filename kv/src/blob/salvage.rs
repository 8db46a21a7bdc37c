//! `SalvagedFile`: what is left of a blob file whose end is lost or damaged, so that it does not open.
//!
//! The header says which file it is and what its checksums are seeded with; records tell their own
//! lengths. They are walked from the first one to the first that does not check: what follows cannot be
//! found without the index. Values that need the file's dictionary, which lay behind the records, are
//! lost too.

use std::collections::HashMap;

use lavafs::FileRef;

use super::file_name;
use super::footer::{HEADER_LEN, Header};
use super::record::{CODEC_RAW, CODEC_ZSTD, HEAD_MAX, Record, RecordHead, padded};
use crate::error::{Error, Result};
use crate::sstable::compression::decompress;

/// The records that a damaged blob file begins with.
pub(crate) struct SalvagedFile {
    file: FileRef,
    name: String,
    seed: u64,
    /// Place and length of each sound record, by internal key.
    records: HashMap<Vec<u8>, (u64, usize)>,
}

impl SalvagedFile {
    /// Walks the records of the blob file with this number. Without a sound header of that number there are none.
    ///
    /// # Errors
    /// Those of reading.
    pub(crate) fn read(file: FileRef, number: u64) -> Result<Self> {
        let mut salvaged = SalvagedFile {
            name: file_name(number),
            seed: 0,
            records: HashMap::new(),
            file,
        };
        let mut header = [0; HEADER_LEN];
        if salvaged.file.read_at(0, &mut header)? < HEADER_LEN {
            return Ok(salvaged);
        }
        match Header::decode(&header, &salvaged.name) {
            Ok(header) if header.number == number => salvaged.seed = header.seed,
            Ok(_) => return Ok(salvaged),
            Err(error) if error.is_corrupt() => return Ok(salvaged),
            Err(error) => return Err(error),
        }
        let mut at = HEADER_LEN as u64;
        while let Some((bytes, len)) = salvaged.record_at(at)? {
            let Ok(record) = Record::decode(&bytes, salvaged.seed, at) else {
                break;
            };
            let key = record.internal_key.to_vec();
            salvaged.records.insert(key, (at, len));
            at += len as u64;
        }
        Ok(salvaged)
    }

    /// The bytes of what may be a record at `offset`; `None` where there is none.
    fn record_at(&self, offset: u64) -> Result<Option<(Vec<u8>, usize)>> {
        let mut head = [0; HEAD_MAX];
        let read = self.file.read_at(offset, &mut head)?;
        let Ok(head) = RecordHead::decode(&head[..read]) else {
            return Ok(None);
        };
        let len = padded(head.len());
        // No room is made for what the file cannot hold.
        if offset + len > self.file.size().upper() {
            return Ok(None);
        }
        let mut bytes = vec![0; len as usize];
        let read = self.file.read_at(offset, &mut bytes)?;
        Ok((read == bytes.len()).then_some((bytes, len as usize)))
    }

    /// The value of a key, if its record is among those found and does not need the dictionary.
    ///
    /// # Errors
    /// The file's, or [`Error::Corrupt`] where it does not decompress or has changed meanwhile.
    pub(crate) fn get(&self, internal_key: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(&(offset, len)) = self.records.get(internal_key) else {
            return Ok(None);
        };
        let corrupt = |detail: &str| Error::corrupt(&self.name, offset, detail);
        let mut bytes = vec![0; len];
        let read = self.file.read_at(offset, &mut bytes)?;
        let record = Record::decode(&bytes[..read], self.seed, offset).map_err(corrupt)?;
        match record.codec {
            CODEC_RAW => Ok(Some(record.stored.to_vec())),
            CODEC_ZSTD => decompress(record.stored).map(Some).map_err(corrupt),
            _ => Ok(None),
        }
    }
}
