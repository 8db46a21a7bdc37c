//! Superblock: identity and geometry of a filesystem, in four copies.
//!
//!  off  len  field
//!    0    8  magic              "LAVAFS\r\n"
//!    8    4  crc32c             over bytes 12..512
//!   12    4  version            1
//!   16    8  epoch              grows with every rewrite; the highest valid copy counts
//!   24   16  uuid
//!   40   64  label              UTF-8, padded with zeros
//!  104    4  block_size         4096
//!  108    4  reserved           zero
//!  112    8  total_blocks
//!  120    8  middle_block       where the third copy is; fixed at mkfs
//!  128    8  journal_start      first block of region A; B follows it
//!  136    8  journal_blocks     length of one region
//!  144    8  compat             unknown bits are ignored
//!  152    8  ro_compat          unknown bits: mount read-only
//!  160    8  incompat           unknown bits: refuse
//!  168    8  created_ns         time of mkfs, nanoseconds since 1970 UTC
//!  176  336  reserved           zero
//!  512 3584  padding            zero
//!
//! Copies lie in blocks 0, 1, `middle_block` and `total_blocks - 1`. Everything that counts is in
//! the first 512 bytes, so that a torn write leaves a copy whole or unchanged on any device.
//! Written only by mkfs, expand and changes of features or label.

use uuid::Uuid;

use crate::codec::Decoder;
use crate::error::{Error, Result};
use crate::types::BLOCK_SIZE;

const MAGIC: &[u8; 8] = b"LAVAFS\r\n";
const VERSION: u32 = 1;
const BODY_LEN: usize = 512;
const LABEL_LEN: usize = 64;

/// Longest label in bytes.
pub const LABEL_LEN_MAX: usize = LABEL_LEN;

/// Compat feature: freed extents are discarded on the device.
pub(crate) const COMPAT_DISCARD: u64 = 1 << 0;

/// Feature names as `mkfs.lavafs -O` and `lava fs dump` know them: compat bits.
pub(crate) const COMPAT_NAMES: &[(&str, u64)] = &[("discard", COMPAT_DISCARD)];

const RO_COMPAT_KNOWN: u64 = 0;
const INCOMPAT_KNOWN: u64 = 0;

/// Smallest journal region in blocks: a header, a checkpoint, some records, a second header.
pub(crate) const JOURNAL_BLOCKS_MIN: u64 = 64;

/// Blocks before the first journal region: two superblock copies and the owner record.
pub(crate) const JOURNAL_START: u64 = 3;

/// The block that names the process that has the filesystem mounted read-write.
pub(crate) const OWNER_BLOCK: u64 = 2;

/// The decoded superblock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Grows with every rewrite of the copies.
    pub epoch: u64,
    /// Identity of the filesystem; part of every journal checksum.
    pub uuid: Uuid,
    /// Name given by its user, at most 64 bytes.
    pub label: String,
    /// Length of the filesystem in 4 KiB blocks.
    pub total_blocks: u64,
    /// Block of the third superblock copy.
    pub middle_block: u64,
    /// First block of journal region A.
    pub journal_start: u64,
    /// Length of one journal region in blocks.
    pub journal_blocks: u64,
    /// Optional features; unknown ones are ignored.
    pub compat: u64,
    /// Features that an unknowing program may only read.
    pub ro_compat: u64,
    /// Features that an unknowing program must refuse.
    pub incompat: u64,
    /// When the filesystem was made, nanoseconds since 1970 UTC.
    pub created_ns: i64,
}

/// What one copy's block holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum SuperblockCopy {
    /// A good copy.
    Valid(Superblock),
    /// The magic is there but the contents are not whole.
    Damaged,
    /// Not a superblock at all.
    Foreign,
}

impl Superblock {
    /// Encodes into one block.
    pub(crate) fn encode(&self) -> Vec<u8> {
        assert!(self.label.len() <= LABEL_LEN);
        let mut out = Vec::with_capacity(BLOCK_SIZE as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(self.uuid.as_bytes());
        out.extend_from_slice(self.label.as_bytes());
        out.resize(104, 0);
        out.extend_from_slice(&(BLOCK_SIZE as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for field in [
            self.total_blocks,
            self.middle_block,
            self.journal_start,
            self.journal_blocks,
            self.compat,
            self.ro_compat,
            self.incompat,
        ] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.created_ns.to_le_bytes());
        out.resize(BODY_LEN, 0);
        let crc = crc32c::crc32c(&out[12..BODY_LEN]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out.resize(BLOCK_SIZE as usize, 0);
        out
    }

    /// Decodes one copy.
    ///
    /// # Errors
    /// `Unsupported` for an intact superblock of a newer version or with unknown incompat
    /// features.
    pub(crate) fn decode(block: &[u8]) -> Result<SuperblockCopy> {
        if block.len() < BODY_LEN || &block[..8] != MAGIC {
            return Ok(SuperblockCopy::Foreign);
        }
        let mut decoder = Decoder::new(&block[8..BODY_LEN]);
        let Some(crc) = decoder.u32() else {
            return Ok(SuperblockCopy::Damaged);
        };
        if crc != crc32c::crc32c(&block[12..BODY_LEN]) {
            return Ok(SuperblockCopy::Damaged);
        }
        let version = decoder.u32().unwrap_or(0);
        if version != VERSION {
            return Err(Error::Unsupported {
                what: format!("filesystem format version {version}; this program knows {VERSION}"),
            });
        }
        let Some(superblock) = Self::decode_body(&mut decoder) else {
            return Ok(SuperblockCopy::Damaged);
        };
        let unknown = superblock.incompat & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(Error::Unsupported {
                what: format!("filesystem with incompat features {unknown:#x} of a newer program"),
            });
        }
        Ok(SuperblockCopy::Valid(superblock))
    }

    fn decode_body(decoder: &mut Decoder<'_>) -> Option<Superblock> {
        let epoch = decoder.u64()?;
        let uuid = Uuid::from_bytes(decoder.take(16)?.try_into().ok()?);
        let label = decoder.take(LABEL_LEN)?;
        let label_len = label
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(LABEL_LEN);
        let label = std::str::from_utf8(&label[..label_len]).ok()?.to_owned();
        let block_size = decoder.u32()?;
        decoder.u32()?;
        let superblock = Superblock {
            epoch,
            uuid,
            label,
            total_blocks: decoder.u64()?,
            middle_block: decoder.u64()?,
            journal_start: decoder.u64()?,
            journal_blocks: decoder.u64()?,
            compat: decoder.u64()?,
            ro_compat: decoder.u64()?,
            incompat: decoder.u64()?,
            created_ns: decoder.i64()?,
        };
        (u64::from(block_size) == BLOCK_SIZE && superblock.is_plausible()).then_some(superblock)
    }

    /// True where the geometry is one that mkfs or expand could have made.
    fn is_plausible(&self) -> bool {
        let Some(journal_end) = self
            .journal_blocks
            .checked_mul(2)
            .and_then(|blocks| blocks.checked_add(self.journal_start))
        else {
            return false;
        };
        self.total_blocks <= u64::MAX / BLOCK_SIZE
            && self.journal_start == JOURNAL_START
            && self.journal_blocks >= JOURNAL_BLOCKS_MIN
            && journal_end < self.middle_block
            && self.middle_block < self.total_blocks - 1
    }

    /// True where unknown ro_compat features forbid writing.
    pub(crate) fn must_be_read_only(&self) -> bool {
        self.ro_compat & !RO_COMPAT_KNOWN != 0
    }

    /// The blocks of all four copies.
    pub(crate) fn copies(&self) -> [u64; 4] {
        [0, 1, self.middle_block, self.total_blocks - 1]
    }

    /// First block of region 0 (A) or 1 (B).
    pub(crate) fn region_start(&self, region: usize) -> u64 {
        assert!(region < 2);
        self.journal_start + self.journal_blocks * region as u64
    }

    /// First block after the journal.
    pub(crate) fn journal_end(&self) -> u64 {
        self.journal_start + 2 * self.journal_blocks
    }

    /// Runs of blocks that files may use, as (start, blocks), ascending.
    pub(crate) fn data_runs(&self) -> [(u64, u64); 2] {
        let first = self.journal_end();
        let second = self.middle_block + 1;
        [
            (first, self.middle_block - first),
            (second, self.total_blocks - 1 - second),
        ]
    }

    /// Names of the set features.
    pub fn feature_names(&self) -> Vec<&'static str> {
        COMPAT_NAMES
            .iter()
            .filter(|(_, bit)| self.compat & bit != 0)
            .map(|(name, _)| *name)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            epoch: 3,
            uuid: Uuid::from_u128(42),
            label: "orders".into(),
            total_blocks: 1000,
            middle_block: 500,
            journal_start: JOURNAL_START,
            journal_blocks: 64,
            compat: COMPAT_DISCARD,
            ro_compat: 0,
            incompat: 0,
            created_ns: 1_700_000_000_000_000_000,
        }
    }

    #[test]
    fn a_superblock_comes_back_as_it_went_in() {
        let block = sample().encode();
        assert_eq!(block.len() as u64, BLOCK_SIZE);
        assert_eq!(
            Superblock::decode(&block).unwrap(),
            SuperblockCopy::Valid(sample())
        );
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let block = sample().encode();
        for at in 0..BODY_LEN {
            let mut bad = block.clone();
            bad[at] ^= 0x40;
            let copy = Superblock::decode(&bad).unwrap();
            assert!(!matches!(copy, SuperblockCopy::Valid(_)), "byte {at}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let mut newer = sample().encode();
        newer[12..16].copy_from_slice(&9u32.to_le_bytes());
        let crc = crc32c::crc32c(&newer[12..BODY_LEN]);
        newer[8..12].copy_from_slice(&crc.to_le_bytes());
        let message = Superblock::decode(&newer).unwrap_err().to_string();
        assert!(message.contains("version 9"), "{message}");

        let unknown = Superblock {
            incompat: 1 << 63,
            ..sample()
        }
        .encode();
        assert!(matches!(
            Superblock::decode(&unknown),
            Err(Error::Unsupported { .. })
        ));
    }

    #[test]
    fn implausible_geometry_is_damage() {
        for bad in [
            Superblock {
                middle_block: 2,
                ..sample()
            },
            Superblock {
                total_blocks: 500,
                ..sample()
            },
            Superblock {
                journal_blocks: u64::MAX,
                ..sample()
            },
            Superblock {
                total_blocks: u64::MAX,
                ..sample()
            },
        ] {
            assert_eq!(
                Superblock::decode(&bad.encode()).unwrap(),
                SuperblockCopy::Damaged
            );
        }
    }
}
