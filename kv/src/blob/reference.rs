//! `BlobReference`: what a table holds in the place of a value that is in a blob file.
//!
//! ```text
//! value of a key of kind 3
//!   varint  number of the blob file
//!   varint  length of the value in bytes, before compression
//! ```
//!
//! The number is the one that the file had when the reference was written; the version's
//! [`crate::version::BlobSet`] says which file has the value now. The length serves accounting:
//! it is the same in whatever file the value lies.

use crate::error::{Error, Result};
use crate::file_names::FileNumber;
use crate::version::BlobUse;
use lavafs::codec::{Decoder, put_varint};

/// Bytes of a reference at most.
const ENCODED_MAX: usize = 20;

/// Where a separated value is, and how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlobReference {
    pub(crate) file: FileNumber,
    pub(crate) value_len: u64,
}

impl BlobReference {
    /// Reads a reference; `None` for bytes that are none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut decoder = Decoder::new(bytes);
        let reference = BlobReference {
            file: decoder.varint()?,
            value_len: decoder.varint()?,
        };
        decoder.is_empty().then_some(reference)
    }

    /// As [`BlobReference::decode`], of an entry found in a table.
    pub(crate) fn of_entry(bytes: &[u8]) -> Result<Self> {
        BlobReference::decode(bytes)
            .ok_or_else(|| Error::corrupt("table", 0_u64, "an entry is no blob reference"))
    }

    /// Writes it over `out`.
    pub(crate) fn encode_into(self, out: &mut Vec<u8>) {
        out.clear();
        out.reserve(ENCODED_MAX);
        put_varint(out, self.file);
        put_varint(out, self.value_len);
    }

    /// What it adds to a file's use.
    pub(crate) fn as_use(self) -> BlobUse {
        BlobUse {
            references: 1,
            value_bytes: self.value_len,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_come_back_in_five_bytes_and_nothing_else_does() {
        let reference = BlobReference {
            file: 1_000_000,
            value_len: 16_000,
        };
        let mut bytes = Vec::new();
        reference.encode_into(&mut bytes);
        assert_eq!(bytes.len(), 5);
        assert_eq!(BlobReference::decode(&bytes), Some(reference));
        assert_eq!(BlobReference::decode(&bytes[..4]), None);
        bytes.push(0);
        assert_eq!(BlobReference::decode(&bytes), None);
        assert_eq!(BlobReference::decode(&[]), None);
    }
}
