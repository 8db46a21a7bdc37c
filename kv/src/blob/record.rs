//! Records of a blob file: one value with its full internal key.
//!
//! ```text
//!  len  field
//!    v  key length     varint, at least 8
//!    v  stored length  varint
//!    1  codec          0 as it is, 1 zstd, 2 zstd with the file's dictionary
//!    k  internal key
//!    s  stored value; of codec 1 and 2: varint length of the value, one zstd frame
//!    4  crc32c         over seed (8), the record's offset (8), the record before it
//!    p  padding        zeros
//! ```
//!
//! The seed makes a record of another file fail, the offset one of another place in the same file.
//!
//! Padding makes the length a multiple of [`length_unit`], about a thousandth of it: lengths then need no
//! more than eleven bits beside a power of two, which is what keeps the index small. It costs
//! 0.05% of a file on average and nothing below 2 KiB.

use super::cbt::SHIFT_MAX;
use crate::key::{InternalKeyRef, TRAILER_LEN};
use crate::sstable::{BlockCrc, MAX_KEY_LEN, MAX_VALUE_LEN, varint};

/// The value is stored as it is.
pub(super) const CODEC_RAW: u8 = 0;
/// See the module's layout.
pub(super) const CODEC_ZSTD: u8 = 1;
/// See the module's layout.
pub(super) const CODEC_ZSTD_DICTIONARY: u8 = 2;

const CRC_LEN: usize = 4;

/// The longest head: two varints and the codec.
pub(super) const HEAD_MAX: usize = 21;

/// What a record's length is a multiple of, given the length without padding: a power of two.
pub(super) fn length_unit(len: u64) -> u64 {
    1 << len.max(1).ilog2().saturating_sub(10).min(SHIFT_MAX)
}

/// The length with padding. Padding never takes a length to another unit's range but to its
/// beginning, which is a multiple of both.
pub(super) fn padded(len: u64) -> u64 {
    len.next_multiple_of(length_unit(len))
}

/// A record's head and lengths, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RecordHead {
    pub(super) head_len: usize,
    pub(super) key_len: usize,
    pub(super) stored_len: usize,
    pub(super) codec: u8,
}

impl RecordHead {
    /// Reads the head of the record that `bytes` begin with, not all of it perhaps.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut at = 0;
        let key_len = varint::get(bytes, &mut at).ok_or("record without a key length")?;
        let stored_len = varint::get(bytes, &mut at).ok_or("record without a length")?;
        let codec = *bytes.get(at).ok_or("record without a codec")?;
        if !(TRAILER_LEN as u64..=(MAX_KEY_LEN + TRAILER_LEN) as u64).contains(&key_len) {
            return Err("record with an impossible key length");
        }
        if stored_len > MAX_VALUE_LEN as u64 {
            return Err("record with an impossible length");
        }
        Ok(RecordHead {
            head_len: at + 1,
            key_len: key_len as usize,
            stored_len: stored_len as usize,
            codec,
        })
    }

    /// Bytes of the record without padding.
    pub(super) fn len(&self) -> u64 {
        (self.head_len + self.key_len + self.stored_len + CRC_LEN) as u64
    }
}

/// What comes before the stored value.
pub(super) fn encode_head(internal_key: &[u8], stored_len: usize, codec: u8, out: &mut Vec<u8>) {
    varint::put(out, internal_key.len() as u64);
    varint::put(out, stored_len as u64);
    out.push(codec);
    out.extend_from_slice(internal_key);
}

/// What comes after the stored value: the checksum and the padding.
pub(super) fn encode_tail(seed: u64, offset: u64, head: &[u8], stored: &[u8]) -> Vec<u8> {
    let len = (head.len() + stored.len() + CRC_LEN) as u64;
    let mut tail = checksum(seed, offset, [head, stored])
        .to_le_bytes()
        .to_vec();
    tail.resize(CRC_LEN + (padded(len) - len) as usize, 0);
    tail
}

fn checksum(seed: u64, offset: u64, parts: [&[u8]; 2]) -> u32 {
    let mut crc = BlockCrc::new(seed, offset);
    parts.iter().for_each(|part| crc.update(part));
    crc.value()
}

/// A checked record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) internal_key: &'a [u8],
    pub(super) codec: u8,
    pub(super) stored: &'a [u8],
    /// Where the stored value begins in the record.
    pub(super) stored_at: usize,
}

impl<'a> Record<'a> {
    /// Checks all bytes of the record at `offset` of a file with a seed, and takes it apart.
    pub(super) fn decode(bytes: &'a [u8], seed: u64, offset: u64) -> Result<Self, &'static str> {
        let head = RecordHead::decode(bytes)?;
        if padded(head.len()) != bytes.len() as u64 {
            return Err("record of another length than the index says");
        }
        let stored_at = head.head_len + head.key_len;
        let end = stored_at + head.stored_len;
        let (sealed, tail) = bytes.split_at(end);
        let (crc, padding) = tail.split_at(CRC_LEN);
        if checksum(seed, offset, [sealed, &[]]).to_le_bytes() != crc {
            return Err("record checksum mismatch");
        }
        if padding.iter().any(|byte| *byte != 0) {
            return Err("record padding is not zero");
        }
        if head.codec > CODEC_ZSTD_DICTIONARY {
            return Err("record of an unknown codec");
        }
        let internal_key = &sealed[head.head_len..stored_at];
        if InternalKeyRef::decode(internal_key).is_none() {
            return Err("record with a malformed key");
        }
        Ok(Record {
            internal_key,
            codec: head.codec,
            stored: &sealed[stored_at..],
            stored_at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{InternalKey, ValueKind};

    fn record(value: &[u8]) -> Vec<u8> {
        let key = InternalKey::new(b"key", 9, ValueKind::BlobReference);
        let mut bytes = Vec::new();
        encode_head(key.as_bytes(), value.len(), CODEC_RAW, &mut bytes);
        let tail = encode_tail(7, 1000, &bytes, value);
        [bytes, value.to_vec(), tail].concat()
    }

    #[test]
    fn padding_costs_a_thousandth_and_stays_put() {
        for len in (1..70_000).chain((1 << 20)..(1 << 20) + 5000) {
            let whole = padded(len);
            assert!(whole - len <= len / 1024, "{len}");
            assert_eq!(padded(whole), whole, "{len}");
        }
        assert_eq!(padded(2047), 2047);
        assert_eq!(length_unit(u64::MAX), 4096);
    }

    #[test]
    fn any_flipped_bit_of_a_record_is_seen_padding_included() {
        let bytes = record(&[5; 9001]);
        let head = RecordHead::decode(&bytes).unwrap();
        assert!(bytes.len() as u64 > head.len(), "the record has padding");
        let found = Record::decode(&bytes, 7, 1000).unwrap();
        assert_eq!(found.stored, &[5; 9001]);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&bad, 7, 1000).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(Record::decode(&bytes[..cut], 7, 1000).is_err());
        }
    }

    #[test]
    fn a_record_of_another_file_or_place_is_refused() {
        let bytes = record(b"value");
        assert!(Record::decode(&bytes, 7, 1000).is_ok());
        assert!(Record::decode(&bytes, 8, 1000).is_err());
        assert!(Record::decode(&bytes, 7, 1001).is_err());
    }
}
