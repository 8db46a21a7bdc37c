//! Journal record: the operations that one group commit made durable together.
//!
//!  off  len  field
//!    0    4  magic      "LVJR"
//!    4    4  crc32c     over bytes 8..48+body_len, seeded with the uuid
//!    8    8  epoch      of the region's header
//!   16    8  seq        previous record's + 1
//!   24    4  prev_crc   crc of the previous record in the region, of the header for the first
//!   28    4  body_len   bytes
//!   32    8  reserved   zero
//!   40    8  next_id    as in the region header, at the time of the record
//!   48    n  body       operations (`op.rs`), back to back
//!
//! A record begins at a multiple of the write unit and is padded with zeros to the next one. One
//! record is in flight at a time, and is durable before the next is begun: a record that is not
//! valid is a torn tail only if no later record of the same epoch is valid.

use uuid::Uuid;

use crate::codec::Decoder;

const MAGIC: &[u8; 4] = b"LVJR";

/// Bytes of the fixed part.
pub(crate) const RECORD_HEADER_LEN: usize = 48;

/// Offset from which on the crc covers a record.
pub(crate) const CRC_START: usize = 8;

/// Longest body in bytes. Bounds what recovery allocates for one record, and how far behind a bad
/// record it must look for a later one.
pub(crate) const BODY_LEN_MAX: usize = 16 << 20;

const _: () = assert!(BODY_LEN_MAX <= u32::MAX as usize);

/// The decoded fixed part.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct RecordHeader {
    pub(crate) crc: u32,
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
    pub(crate) prev_crc: u32,
    pub(crate) body_len: usize,
    pub(crate) next_id: u64,
}

/// Writes the fixed part of a record into the first bytes of `out`, whose rest up to `48 +
/// body_len` already holds the body. Returns the record's crc.
pub(crate) fn seal(
    out: &mut [u8],
    uuid: Uuid,
    epoch: u64,
    seq: u64,
    prev_crc: u32,
    next_id: u64,
) -> u32 {
    let body_len = out.len() - RECORD_HEADER_LEN;
    assert!(body_len <= BODY_LEN_MAX);
    out[0..4].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&epoch.to_le_bytes());
    out[16..24].copy_from_slice(&seq.to_le_bytes());
    out[24..28].copy_from_slice(&prev_crc.to_le_bytes());
    out[28..32].copy_from_slice(&(body_len as u32).to_le_bytes());
    out[32..40].fill(0);
    out[40..48].copy_from_slice(&next_id.to_le_bytes());
    let crc = crc32c::crc32c_append(seed(uuid), &out[8..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Reads the fixed part, without verifying the crc. `None` where it cannot be a record.
pub(crate) fn peek(bytes: &[u8]) -> Option<RecordHeader> {
    let mut decoder = Decoder::new(bytes);
    if decoder.take(4)? != MAGIC {
        return None;
    }
    let crc = decoder.u32()?;
    let epoch = decoder.u64()?;
    let seq = decoder.u64()?;
    let prev_crc = decoder.u32()?;
    let body_len = decoder.u32()? as usize;
    let reserved = decoder.u64()?;
    let next_id = decoder.u64()?;
    (body_len <= BODY_LEN_MAX && reserved == 0).then_some(RecordHeader {
        crc,
        epoch,
        seq,
        prev_crc,
        body_len,
        next_id,
    })
}

/// The body of a record whose bytes begin at `bytes`, if its crc is right.
pub(crate) fn verified_body<'a>(
    bytes: &'a [u8],
    header: &RecordHeader,
    uuid: Uuid,
) -> Option<&'a [u8]> {
    let record = bytes.get(..RECORD_HEADER_LEN + header.body_len)?;
    (crc32c::crc32c_append(seed(uuid), &record[8..]) == header.crc)
        .then(|| &record[RECORD_HEADER_LEN..])
}

/// Like [`verified_body`], for who has only the crc of the record's bytes from [`CRC_START`] to its
/// end.
pub(crate) fn is_verified_by(crc: u32, header: &RecordHeader, uuid: Uuid) -> bool {
    let len = RECORD_HEADER_LEN - CRC_START + header.body_len;
    crc32c::crc32c_combine(seed(uuid), crc, len) == header.crc
}

fn seed(uuid: Uuid) -> u32 {
    crc32c::crc32c(uuid.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_whole_or_refused() {
        let uuid = Uuid::from_u128(1);
        let mut bytes = vec![0; RECORD_HEADER_LEN];
        bytes.extend_from_slice(b"operations");
        seal(&mut bytes, uuid, 2, 3, 4, 5);
        let header = peek(&bytes).unwrap();
        assert_eq!(
            (header.epoch, header.seq, header.prev_crc, header.next_id),
            (2, 3, 4, 5)
        );
        assert_eq!(
            verified_body(&bytes, &header, uuid),
            Some(&b"operations"[..])
        );
        assert_eq!(verified_body(&bytes, &header, Uuid::from_u128(2)), None);
        let crc = crc32c::crc32c(&bytes[CRC_START..]);
        assert!(is_verified_by(crc, &header, uuid));
        assert!(!is_verified_by(crc ^ 1, &header, uuid));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            let body = peek(&bad).and_then(|header| verified_body(&bad, &header, uuid));
            assert_eq!(body, None, "byte {at}");
        }
    }

    #[test]
    fn a_zeroed_block_holds_no_record() {
        assert_eq!(peek(&[0; 512]), None);
    }
}
