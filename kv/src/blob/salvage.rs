//! `SalvagedFile`: what is left of a blob file whose end is lost or damaged, so that it does not open.
//!
//! The header says which file it is and what its checksums are seeded with; records tell their own
//! lengths. They are walked from the first one to the first that does not check: what follows cannot be
//! found without the index. The dictionary lies right behind the last record; its length is not known, but its
//! seal tells where it ends. Where a record between or the dictionary is damaged, values that need it are lost too.

use std::collections::HashMap;

use lavafs::FileRef;

use super::MAX_DICTIONARY_LEN;
use super::file_name;
use super::footer::{HEADER_LEN, Header, SEAL_LEN, find_sealed};
use super::record::{
    CODEC_RAW, CODEC_ZSTD, CODEC_ZSTD_DICTIONARY, HEAD_MAX, Record, RecordHead, padded,
};
use crate::error::{Error, Result};
use crate::sstable::compression::{Dictionary, decompress, decompress_with};

/// The records that a damaged blob file begins with.
pub(crate) struct SalvagedFile {
    file: FileRef,
    name: String,
    seed: u64,
    /// Place and length of each sound record, by internal key.
    records: HashMap<Vec<u8>, (u64, usize)>,
    dictionary: Option<Dictionary>,
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
            dictionary: None,
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
        let mut needs_dictionary = false;
        while let Some((bytes, len)) = salvaged.record_at(at)? {
            let Ok(record) = Record::decode(&bytes, salvaged.seed, at) else {
                break;
            };
            needs_dictionary |= record.codec == CODEC_ZSTD_DICTIONARY;
            let key = record.internal_key.to_vec();
            salvaged.records.insert(key, (at, len));
            at += len as u64;
        }
        if needs_dictionary {
            salvaged.dictionary = salvaged.dictionary_at(at)?;
        }
        Ok(salvaged)
    }

    /// The dictionary that begins at `offset`; `None` where there is none.
    fn dictionary_at(&self, offset: u64) -> Result<Option<Dictionary>> {
        let longest = (MAX_DICTIONARY_LEN + SEAL_LEN) as u64;
        let left = self.file.size().upper().saturating_sub(offset);
        let mut bytes = vec![0; left.min(longest) as usize];
        let read = self.file.read_at(offset, &mut bytes)?;
        let found = find_sealed(self.seed, offset, &bytes[..read]);
        Ok(found.and_then(|dictionary| Dictionary::new(dictionary).ok()))
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

    /// The value of a key, if its record is among those found, and the dictionary too where it needs it.
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
        let value = match (record.codec, &self.dictionary) {
            (CODEC_RAW, _) => Ok(record.stored.to_vec()),
            (CODEC_ZSTD, _) => decompress(record.stored),
            (_, Some(dictionary)) => decompress_with(record.stored, dictionary),
            (_, None) => return Ok(None),
        };
        value.map(Some).map_err(corrupt)
    }
}
