//! Journal region header: which checkpoint a region holds and where its records begin.
//!
//!  off  len  field
//!    0    8  magic            "LAVAJRNL"
//!    8    4  crc32c           over bytes 12..512
//!   12    4  reserved         zero
//!   16   16  uuid             of the superblock
//!   32    8  epoch            grows with every checkpoint; the region of the higher epoch is active
//!   40    8  first_seq        sequence number of the region's first record
//!   48    8  checkpoint_len   bytes, from the region's second block
//!   56    8  checkpoint_hash  xxh3-64 of those bytes
//!   64    8  next_id          no inode number or generation at or above it was ever given out
//!   72    8  carried          records that were durable before the switch; fewer is damage
//!   80  432  reserved         zero
//!  512 3584  padding          zero
//!
//! A region is: header | checkpoint, padded to a block | records ... | second copy of the header.
//! Writing the first copy durably is the switch to the region; the second copy follows. Both are
//! one 512-byte sector of content, which a device writes whole or not at all, so a header that
//! is neither blank nor valid is damage and not a torn switch.

use uuid::Uuid;

use crate::codec::Decoder;
use crate::types::{BLOCK_SIZE, align_up};

const MAGIC: &[u8; 8] = b"LAVAJRNL";
const BODY_LEN: usize = 512;

/// The decoded header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RegionHeader {
    pub(crate) uuid: Uuid,
    pub(crate) epoch: u64,
    pub(crate) first_seq: u64,
    pub(crate) checkpoint_len: u64,
    pub(crate) checkpoint_hash: u64,
    pub(crate) next_id: u64,
    pub(crate) carried: u64,
}

/// What a header's block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeaderCopy {
    /// A good header of this filesystem.
    Valid(RegionHeader),
    /// Zeros: never written since mkfs.
    Blank,
    /// Anything else.
    Damaged,
}

impl RegionHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_SIZE as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(self.uuid.as_bytes());
        for field in [
            self.epoch,
            self.first_seq,
            self.checkpoint_len,
            self.checkpoint_hash,
            self.next_id,
            self.carried,
        ] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.resize(BODY_LEN, 0);
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out.resize(BLOCK_SIZE as usize, 0);
        out
    }

    /// The header's checksum, to which the first record behind it is chained: a record left by a
    /// switch to the same epoch that a crash cut short then follows no header.
    pub(crate) fn crc(&self) -> u32 {
        let block = self.encode();
        crc32c::crc32c(&block[12..BODY_LEN])
    }

    /// Decodes a copy that belongs to the filesystem `uuid`, in a region of `region_blocks`.
    pub(crate) fn decode(block: &[u8], uuid: Uuid, region_blocks: u64) -> HeaderCopy {
        let body = &block[..BODY_LEN];
        if body.iter().all(|&byte| byte == 0) {
            return HeaderCopy::Blank;
        }
        match Self::decode_body(body) {
            Some(header) if header.uuid == uuid && header.fits(region_blocks) => {
                HeaderCopy::Valid(header)
            }
            _ => HeaderCopy::Damaged,
        }
    }

    /// Decodes a copy of whatever filesystem it is.
    pub(crate) fn decode_any(block: &[u8]) -> Option<RegionHeader> {
        Self::decode_body(block.get(..BODY_LEN)?)
    }

    fn decode_body(body: &[u8]) -> Option<RegionHeader> {
        let mut decoder = Decoder::new(body);
        let magic = decoder.take(8)?;
        let crc = decoder.u32()?;
        if magic != MAGIC || crc != crc32c::crc32c(&body[12..]) {
            return None;
        }
        decoder.u32()?;
        Some(RegionHeader {
            uuid: Uuid::from_bytes(decoder.take(16)?.try_into().ok()?),
            epoch: decoder.u64()?,
            first_seq: decoder.u64()?,
            checkpoint_len: decoder.u64()?,
            checkpoint_hash: decoder.u64()?,
            next_id: decoder.u64()?,
            carried: decoder.u64()?,
        })
    }

    fn fits(&self, region_blocks: u64) -> bool {
        self.epoch > 0 && self.checkpoint_len <= (region_blocks - 2) * BLOCK_SIZE
    }

    /// Offset of the first record, in bytes from the region's start.
    pub(crate) fn records_offset(&self) -> u64 {
        BLOCK_SIZE + align_up(self.checkpoint_len, BLOCK_SIZE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_valid_blank_or_damaged_and_nothing_else() {
        let uuid = Uuid::from_u128(7);
        let header = RegionHeader {
            uuid,
            epoch: 5,
            first_seq: 100,
            checkpoint_len: 8000,
            checkpoint_hash: 1,
            next_id: 9,
            carried: 1,
        };
        let block = header.encode();
        assert_eq!(
            RegionHeader::decode(&block, uuid, 64),
            HeaderCopy::Valid(header)
        );
        assert_eq!(header.records_offset(), 3 * BLOCK_SIZE);
        assert_eq!(
            RegionHeader::decode(&[0; 4096], uuid, 64),
            HeaderCopy::Blank
        );
        assert_eq!(
            RegionHeader::decode(&block, Uuid::from_u128(8), 64),
            HeaderCopy::Damaged
        );
        assert_eq!(RegionHeader::decode(&block, uuid, 3), HeaderCopy::Damaged);
        for at in 0..BODY_LEN {
            let mut bad = block.clone();
            bad[at] ^= 1;
            assert_eq!(
                RegionHeader::decode(&bad, uuid, 64),
                HeaderCopy::Damaged,
                "byte {at}"
            );
        }
    }
}
