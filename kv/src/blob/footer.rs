//! The ends of a blob file, header and footer, and how the blocks between records and footer are sealed.
//!
//! ```text
//! header
//!   off  len  field
//!     0    8  magic       "LAVA-BLB"
//!     8    4  version     1
//!    12    4  incompat    feature bits; an unknown one: the file cannot be read
//!    16    4  compat      feature bits that a reader may ignore
//!    20    4  reserved    zero
//!    24    8  seed        of every checksum: the file's generation when it was written
//!    32    8  file number
//!    40   20  reserved    zero
//!    60    4  crc32c      of the header before it
//!
//! footer
//!     0    8  magic       "LAVA-BLF"
//!     8   32  version to file number, as in the header
//!    40   16  meta        offset and length of the list of sections, its trailer included
//!    56    8  checksum    xxh3 of all bytes before the footer
//!    64    8  file size
//!    72   20  reserved    zero
//!    92    4  crc32c      of the footer before it
//!
//! block
//!     n  contents
//!     1  zero
//!     4  crc32c           over seed (8), the block's offset (8), contents, the zero
//! ```
//!
//! The list of sections is an SST's (sstable/footer.rs) with ids of its own. Header and footer
//! each tell what the file is, so it is recognised without a manifest, and even where one end is lost.

use crate::error::{Error, Result};
use crate::sstable::{BlockCrc, Handle};

/// First bytes of every blob file.
pub(crate) const HEADER_MAGIC: [u8; 8] = *b"LAVA-BLB";
const FOOTER_MAGIC: [u8; 8] = *b"LAVA-BLF";
const VERSION: u32 = 1;
const KNOWN_INCOMPAT: u32 = 0;

/// Bytes of the header: where the first record begins.
pub(super) const HEADER_LEN: usize = 64;
/// Bytes of the footer.
pub(super) const FOOTER_LEN: usize = 96;
/// Bytes that follow a block's contents.
pub(super) const SEAL_LEN: usize = 5;

/// Ids of sections.
pub(super) const SECTION_PROPERTIES: u16 = 1;
/// See [`SECTION_PROPERTIES`].
pub(super) const SECTION_INDEX: u16 = 2;
/// See [`SECTION_PROPERTIES`].
pub(super) const SECTION_DICTIONARY: u16 = 3;

/// See the module's layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) seed: u64,
    pub(super) number: u64,
}

/// See the module's layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Footer {
    pub(super) header: Header,
    pub(super) meta: Handle,
    pub(super) body_checksum: u64,
    pub(super) file_size: u64,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        self.encode_end(HEADER_MAGIC, [])
    }

    /// The part that header and footer share, then `words`, zeros and the checksum.
    fn encode_end<const LEN: usize, const WORDS: usize>(
        &self,
        magic: [u8; 8],
        words: [u64; WORDS],
    ) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..8].copy_from_slice(&magic);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let shared = [self.seed, self.number];
        for (index, word) in shared.into_iter().chain(words).enumerate() {
            let at = 24 + 8 * index;
            out[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[..LEN - 4]);
        out[LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of the file named `name`.
    pub(super) fn decode(bytes: &[u8; HEADER_LEN], name: &str) -> Result<Self> {
        Self::decode_end(bytes, HEADER_MAGIC, name, 0)
    }

    fn decode_end(bytes: &[u8], magic: [u8; 8], name: &str, offset: u64) -> Result<Self> {
        if bytes[..8] != magic {
            return Err(Error::corrupt(name, offset, "not a blob file: no magic"));
        }
        let crc_at = bytes.len() - 4;
        if crc32c::crc32c(&bytes[..crc_at]) != half(bytes, crc_at) {
            return Err(Error::corrupt(
                name,
                offset,
                "header or footer checksum mismatch",
            ));
        }
        let (version, features) = (half(bytes, 8), half(bytes, 12));
        if version != VERSION || features & !KNOWN_INCOMPAT != 0 {
            return Err(Error::Unsupported {
                what: format!("{name}: blob file format {version} with features {features:#x}"),
            });
        }
        Ok(Header {
            seed: word(bytes, 24),
            number: word(bytes, 32),
        })
    }
}

impl Footer {
    pub(super) fn encode(&self) -> [u8; FOOTER_LEN] {
        let words = [
            self.meta.offset,
            self.meta.len,
            self.body_checksum,
            self.file_size,
        ];
        self.header.encode_end(FOOTER_MAGIC, words)
    }

    /// Reads the footer of a file of `file_size` bytes named `name`.
    pub(super) fn decode(bytes: &[u8; FOOTER_LEN], name: &str, file_size: u64) -> Result<Self> {
        let offset = file_size - FOOTER_LEN as u64;
        let footer = Footer {
            header: Header::decode_end(bytes, FOOTER_MAGIC, name, offset)?,
            meta: Handle {
                offset: word(bytes, 40),
                len: word(bytes, 48),
            },
            body_checksum: word(bytes, 56),
            file_size: word(bytes, 64),
        };
        if footer.file_size != file_size {
            return Err(Error::corrupt(
                name,
                offset + 64,
                "footer tells another file size",
            ));
        }
        if !footer.meta.lies_before(offset) {
            return Err(Error::corrupt(
                name,
                offset + 40,
                "sections outside of the file",
            ));
        }
        Ok(footer)
    }
}

/// What follows the contents of a block at an offset of a file with a seed.
pub(super) fn seal(seed: u64, offset: u64, contents: &[u8]) -> [u8; SEAL_LEN] {
    let mut crc = BlockCrc::new(seed, offset);
    crc.update(contents);
    let mut trailer = [0; SEAL_LEN];
    trailer[1..].copy_from_slice(&crc.finish(0).to_le_bytes());
    trailer
}

/// The contents of a block at an offset of a file with a seed; `None` where the seal does not fit.
pub(super) fn unseal(seed: u64, offset: u64, block: &[u8]) -> Option<&[u8]> {
    let (contents, trailer) = block.split_last_chunk::<SEAL_LEN>()?;
    (*trailer == seal(seed, offset, contents)).then_some(contents)
}

/// The contents of the block that `bytes`, at an offset of a file with a seed, begin with, where its length is not
/// known: up to the first seal that fits.
pub(super) fn find_sealed(seed: u64, offset: u64, bytes: &[u8]) -> Option<&[u8]> {
    let mut crc = BlockCrc::new(seed, offset);
    for (len, trailer) in bytes.windows(SEAL_LEN).enumerate() {
        if trailer[0] == 0 && trailer[1..] == crc.finish(0).to_le_bytes() {
            return Some(&bytes[..len]);
        }
        crc.update(&bytes[len..=len]);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOOTER: Footer = Footer {
        header: Header { seed: 7, number: 8 },
        meta: Handle {
            offset: 100,
            len: 50,
        },
        body_checksum: 9,
        file_size: 150 + FOOTER_LEN as u64,
    };

    #[test]
    fn any_flipped_bit_of_header_and_footer_is_seen() {
        let header = FOOTER.header.encode();
        assert_eq!(Header::decode(&header, "b").unwrap(), FOOTER.header);
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = header;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, "b").unwrap_err().is_corrupt());
        }
        let footer = FOOTER.encode();
        let decode = |bytes: &[u8; FOOTER_LEN]| Footer::decode(bytes, "b", FOOTER.file_size);
        assert_eq!(decode(&footer).unwrap(), FOOTER);
        for bit in 0..FOOTER_LEN * 8 {
            let mut bad = footer;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).unwrap_err().is_corrupt());
        }
        assert!(Footer::decode(&footer, "b", FOOTER.file_size + 1).is_err());
    }

    #[test]
    fn a_newer_format_is_unsupported_not_corrupt() {
        for at in [8, 12] {
            let mut newer = FOOTER.encode();
            newer[at] ^= 2;
            let crc = crc32c::crc32c(&newer[..FOOTER_LEN - 4]);
            newer[FOOTER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
            let error = Footer::decode(&newer, "b", FOOTER.file_size).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }));
        }
    }

    #[test]
    fn a_block_of_another_file_or_place_is_refused() {
        let block = [&b"contents"[..], &seal(1, 2, b"contents")].concat();
        assert_eq!(unseal(1, 2, &block), Some(&b"contents"[..]));
        assert_eq!(unseal(1, 3, &block), None);
        assert_eq!(unseal(3, 2, &block), None);
        assert_eq!(unseal(1, 2, &block[..4]), None);
    }
}
