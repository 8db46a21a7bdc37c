//! The footer, the last bytes of a table, and the meta block, the list of its sections.
//!
//! ```text
//! footer
//!   off  len  field
//!     0    8  magic      "LAVA-SST"
//!     8    4  version    1
//!    12    4  incompat   feature bits; an unknown one: the file cannot be read.
//!                        bit 0: blocks may be compressed with the dictionary,
//!                        bit 1: the index block is that of index partitions
//!    16    4  compat     feature bits that a reader may ignore
//!    20    4  reserved   zero
//!    24    8  seed       of every block's checksum: the file's generation when it was written
//!    32   16  index      offset and length of the index block, its trailer included
//!    48   16  meta       the same of the meta block
//!    64    8  checksum   xxh3 of all bytes before the footer
//!    72    8  file size
//!    80   12  reserved   zero
//!    92    4  crc32c     of the footer before it
//!
//! meta block
//!     0    4  number of sections
//!   then for each section
//!     0    2  id         1 properties, 2 filter, 3 dictionary
//!     2    2  flags      bit 0: a reader that does not know the section must refuse the file
//!     4    4  reserved   zero
//!     8   16  offset and length, the trailer included
//! ```
//!
//! The seed is in the footer, not asked of the file, so that a copy of a table is a table.

use super::block::BadBlock;
use crate::error::{Error, Result};

/// First bytes of every footer.
pub(crate) const MAGIC: [u8; 8] = *b"LAVA-SST";
const VERSION: u32 = 1;
/// Blocks may be compressed with the file's dictionary.
pub(super) const FEATURE_DICTIONARY: u32 = 1;
/// The index block is that of index partitions.
pub(super) const FEATURE_PARTITIONED_INDEX: u32 = 2;
const KNOWN_INCOMPAT: u32 = FEATURE_DICTIONARY | FEATURE_PARTITIONED_INDEX;
/// Bytes of the footer.
pub(crate) const FOOTER_LEN: usize = 96;
const CRC_AT: usize = 92;
const SECTION_LEN: usize = 24;
const REQUIRED: u16 = 1;

/// Ids of sections in the meta block.
pub(super) const SECTION_PROPERTIES: u16 = 1;
/// See [`SECTION_PROPERTIES`].
pub(super) const SECTION_FILTER: u16 = 2;
/// See [`SECTION_PROPERTIES`].
pub(super) const SECTION_DICTIONARY: u16 = 3;

/// Where a block lies in the file, its trailer included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Handle {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// See the module's layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Footer {
    /// Incompatible features that the file has.
    pub(super) features: u32,
    pub(super) seed: u64,
    pub(super) index: Handle,
    pub(super) meta: Handle,
    pub(super) body_checksum: u64,
    pub(super) file_size: u64,
}

impl Footer {
    pub(super) fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut out = [0; FOOTER_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.features.to_le_bytes());
        let words = [
            (24, self.seed),
            (32, self.index.offset),
            (40, self.index.len),
            (48, self.meta.offset),
            (56, self.meta.len),
            (64, self.body_checksum),
            (72, self.file_size),
        ];
        for (at, word) in words {
            out[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the footer of a file of `file_size` bytes named `name`.
    pub(super) fn decode(bytes: &[u8; FOOTER_LEN], name: &str, file_size: u64) -> Result<Self> {
        let offset = file_size - FOOTER_LEN as u64;
        let corrupt = |at: u64, detail: &str| Err(Error::corrupt(name, offset + at, detail));
        let word =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let half =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[..8] != MAGIC {
            return corrupt(0, "not a table: no magic in the footer");
        }
        if crc32c::crc32c(&bytes[..CRC_AT]) != half(CRC_AT) {
            return corrupt(0, "footer checksum mismatch");
        }
        if half(8) != VERSION || half(12) & !KNOWN_INCOMPAT != 0 {
            let (version, features) = (half(8), half(12));
            return Err(Error::Unsupported {
                what: format!("{name}: table format {version} with features {features:#x}"),
            });
        }
        let handle = |at| Handle {
            offset: word(at),
            len: word(at + 8),
        };
        let footer = Footer {
            features: half(12),
            seed: word(24),
            index: handle(32),
            meta: handle(48),
            body_checksum: word(64),
            file_size: word(72),
        };
        if footer.file_size != file_size {
            return corrupt(72, "footer tells another file size");
        }
        if !footer.index.lies_before(offset) || !footer.meta.lies_before(offset) {
            return corrupt(32, "block outside of the file");
        }
        Ok(footer)
    }
}

impl Handle {
    /// True where the block is not empty and ends at or before `end`.
    pub(crate) fn lies_before(self, end: u64) -> bool {
        self.len > 0
            && self
                .offset
                .checked_add(self.len)
                .is_some_and(|block_end| block_end <= end)
    }
}

/// A section's id, whether it must be understood, and its place.
pub(crate) type Section = (u16, bool, Handle);

/// The contents of the meta block.
pub(crate) fn encode_sections(sections: &[Section]) -> Vec<u8> {
    let mut out = (sections.len() as u32).to_le_bytes().to_vec();
    for &(id, required, handle) in sections {
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&(u16::from(required) * REQUIRED).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&handle.offset.to_le_bytes());
        out.extend_from_slice(&handle.len.to_le_bytes());
    }
    out
}

/// Reads the meta block of a file whose footer begins at `end`.
pub(crate) fn decode_sections(bytes: &[u8], end: u64) -> Result<Vec<Section>, BadBlock> {
    let bad = |at, detail| Err(BadBlock { at, detail });
    let Some((count, rest)) = bytes.split_first_chunk::<4>() else {
        return bad(0, "meta block too short");
    };
    if rest.len() != u32::from_le_bytes(*count) as usize * SECTION_LEN {
        return bad(0, "meta block of another length than it says");
    }
    let mut sections = Vec::new();
    for (index, section) in rest.as_chunks::<SECTION_LEN>().0.iter().enumerate() {
        let short = |at: usize| u16::from_le_bytes([section[at], section[at + 1]]);
        let word =
            |at: usize| u64::from_le_bytes(section[at..at + 8].try_into().expect("eight bytes"));
        let handle = Handle {
            offset: word(8),
            len: word(16),
        };
        if !handle.lies_before(end) {
            return bad(4 + index * SECTION_LEN, "section outside of the file");
        }
        sections.push((short(0), short(2) & REQUIRED != 0, handle));
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOOTER: Footer = Footer {
        features: 0,
        seed: 7,
        index: Handle {
            offset: 100,
            len: 20,
        },
        meta: Handle {
            offset: 120,
            len: 30,
        },
        body_checksum: 9,
        file_size: 150 + FOOTER_LEN as u64,
    };

    #[test]
    fn any_flipped_bit_of_a_footer_is_seen() {
        let bytes = FOOTER.encode();
        assert_eq!(
            Footer::decode(&bytes, "t", FOOTER.file_size).unwrap(),
            FOOTER
        );
        for bit in 0..FOOTER_LEN * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = Footer::decode(&bad, "t", FOOTER.file_size).unwrap_err();
            assert!(error.is_corrupt(), "bit {bit}: {error}");
        }
        assert!(Footer::decode(&bytes, "t", FOOTER.file_size + 1).is_err());
    }

    #[test]
    fn a_newer_format_is_unsupported_not_corrupt() {
        for at in [8, 12] {
            let mut newer = FOOTER.encode();
            newer[at] ^= 0x40;
            let crc = crc32c::crc32c(&newer[..CRC_AT]);
            newer[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
            let error = Footer::decode(&newer, "t", FOOTER.file_size).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }));
        }
    }

    #[test]
    fn sections_come_back_and_damaged_lists_are_refused() {
        let sections = [
            (SECTION_PROPERTIES, true, FOOTER.index),
            (SECTION_FILTER, false, FOOTER.meta),
        ];
        let bytes = encode_sections(&sections);
        assert_eq!(decode_sections(&bytes, 150).unwrap(), sections);
        assert!(decode_sections(&bytes, 149).is_err());
        for cut in 0..bytes.len() {
            assert!(decode_sections(&bytes[..cut], 150).is_err());
        }
    }
}
