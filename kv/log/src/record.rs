//! Records of the datalog, and the directory of them that ends a sealed file.
//!
//! Payload of a data group: one byte of section type, then
//! - type 1, records back to back:
//!   crc32c (4 bytes) over the rest, seeded with the file's generation; kind (1 append); varints
//!   log, epoch, lsn, op, data_len; data;
//! - type 2, the directory: per record of the file, in file order, varints log, epoch, lsn, op,
//!   bytes between the record before and this one, framed length.
//!
//! A closing group's footer: version 1 (1 byte), then varints: offset of the directory's group,
//! number of entries.
//!
//! Invariants: a batch lies in one group, so it is durable as a whole or not at all; a record
//! names its log and LSN, so that a read through a wrong index is noticed; the operation number
//! never changes, wherever a record is copied to, and decides between duplicates.

use lavafs::codec::{Decoder, put_varint};

pub(crate) const SECTION_RECORDS: u8 = 1;
pub(crate) const SECTION_DIRECTORY: u8 = 2;

const KIND_APPEND: u8 = 1;
const FOOTER_VERSION: u8 = 1;

/// Most bytes that framing adds to a record's data.
pub(crate) const RECORD_OVERHEAD_MAX: usize = 4 + 1 + 10 + 5 + 10 + 10 + 5;

/// What a record is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordKey {
    pub(crate) log: u64,
    pub(crate) epoch: u32,
    pub(crate) lsn: u64,
    pub(crate) op: u64,
}

/// Appends a framed record to `out` and returns its framed length.
pub(crate) fn put_record(out: &mut Vec<u8>, generation: u64, key: RecordKey, data: &[u8]) -> u32 {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.push(KIND_APPEND);
    put_varint(out, key.log);
    put_varint(out, u64::from(key.epoch));
    put_varint(out, key.lsn);
    put_varint(out, key.op);
    put_varint(out, data.len() as u64);
    out.extend_from_slice(data);
    let crc = record_crc(generation, &out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    u32::try_from(out.len() - start).expect("a record is shorter than a group")
}

/// Takes a record off `cursor`: key, data, framed length.
pub(crate) fn take_record<'a>(
    cursor: &mut Decoder<'a>,
    generation: u64,
) -> Result<(RecordKey, &'a [u8], u32), &'static str> {
    let before = *cursor;
    let parsed = parse_record(cursor).ok_or("a record is cut off")?;
    let (crc, kind, key, data) = parsed;
    let framed = before.remaining() - cursor.remaining();
    let mut whole = before;
    let bytes = whole.take(framed).ok_or("a record is cut off")?;
    if record_crc(generation, &bytes[4..]) != crc {
        return Err("a record fails its checksum");
    }
    if kind != KIND_APPEND {
        return Err("a record is of an unknown kind");
    }
    let framed = u32::try_from(framed).map_err(|_| "a record is too long")?;
    Ok((key, data, framed))
}

fn parse_record<'a>(cursor: &mut Decoder<'a>) -> Option<(u32, u8, RecordKey, &'a [u8])> {
    let crc = cursor.u32()?;
    let kind = cursor.u8()?;
    let key = take_key(cursor)?;
    let data = cursor.bytes()?;
    Some((crc, kind, key, data))
}

fn take_key(cursor: &mut Decoder<'_>) -> Option<RecordKey> {
    Some(RecordKey {
        log: cursor.varint()?,
        epoch: cursor.varint_u32()?,
        lsn: cursor.varint()?,
        op: cursor.varint()?,
    })
}

fn record_crc(generation: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&generation.to_le_bytes()), bytes)
}

/// A record's key and place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DirectoryEntry {
    pub(crate) key: RecordKey,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// The directory of a file that is being written: about 10 bytes per record.
#[derive(Debug, Default)]
pub(crate) struct DirectoryBuilder {
    bytes: Vec<u8>,
    count: u64,
    end: u32,
}

impl DirectoryBuilder {
    /// Adds a record, which must lie behind the one added before.
    pub(crate) fn add(&mut self, entry: DirectoryEntry) {
        assert!(entry.offset >= self.end, "records are added in file order");
        if self.bytes.is_empty() {
            self.bytes.push(SECTION_DIRECTORY);
        }
        put_varint(&mut self.bytes, entry.key.log);
        put_varint(&mut self.bytes, u64::from(entry.key.epoch));
        put_varint(&mut self.bytes, entry.key.lsn);
        put_varint(&mut self.bytes, entry.key.op);
        put_varint(&mut self.bytes, u64::from(entry.offset - self.end));
        put_varint(&mut self.bytes, u64::from(entry.len));
        self.end = entry.offset + entry.len;
        self.count += 1;
    }

    /// The payload of the directory's group.
    pub(crate) fn payload(&self) -> &[u8] {
        if self.bytes.is_empty() {
            &[SECTION_DIRECTORY]
        } else {
            &self.bytes
        }
    }

    pub(crate) fn footer(&self, directory_offset: u64) -> Vec<u8> {
        let mut out = vec![FOOTER_VERSION];
        put_varint(&mut out, directory_offset);
        put_varint(&mut out, self.count);
        out
    }
}

/// Where the directory begins, and its number of entries.
pub(crate) fn parse_footer(footer: &[u8]) -> Option<(u64, u64)> {
    let mut cursor = Decoder::new(footer);
    if cursor.u8()? != FOOTER_VERSION {
        return None;
    }
    Some((cursor.varint()?, cursor.varint()?))
}

/// The entries in the payload of a directory's group.
pub(crate) fn parse_directory(payload: &[u8], count: u64) -> Option<Vec<DirectoryEntry>> {
    let mut cursor = Decoder::new(payload);
    if cursor.u8()? != SECTION_DIRECTORY {
        return None;
    }
    let mut entries = Vec::with_capacity(usize::try_from(count).ok()?.min(payload.len() / 6 + 1));
    let mut end = 0u32;
    while !cursor.is_empty() {
        let key = take_key(&mut cursor)?;
        let offset = end.checked_add(cursor.varint_u32()?)?;
        let len = cursor.varint_u32()?;
        end = offset.checked_add(len)?;
        entries.push(DirectoryEntry { key, offset, len });
    }
    (entries.len() as u64 == count).then_some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: RecordKey = RecordKey {
        log: 3,
        epoch: 1,
        lsn: 700,
        op: 99,
    };

    #[test]
    fn a_record_comes_back_and_any_flipped_bit_is_noticed() {
        let mut out = Vec::new();
        let len = put_record(&mut out, 5, KEY, b"some data");
        assert_eq!(len as usize, out.len());
        let found = take_record(&mut Decoder::new(&out), 5).unwrap();
        assert_eq!(found, (KEY, &b"some data"[..], len));
        assert!(take_record(&mut Decoder::new(&out), 6).is_err());
        for bit in 0..out.len() * 8 {
            let mut bad = out.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                take_record(&mut Decoder::new(&bad), 5).is_err(),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn a_directory_comes_back_and_a_wrong_count_is_refused() {
        let mut builder = DirectoryBuilder::default();
        let entry = |i: u32| DirectoryEntry {
            key: RecordKey {
                lsn: u64::from(i) * 5,
                ..KEY
            },
            offset: 100 + i * 4200,
            len: 4100,
        };
        for i in 0..50 {
            builder.add(entry(i));
        }
        let (offset, count) = parse_footer(&builder.footer(512)).unwrap();
        assert_eq!((offset, count), (512, 50));
        let entries = parse_directory(builder.payload(), count).unwrap();
        assert!(entries.iter().zip(0..).all(|(e, i)| *e == entry(i)));
        assert!(parse_directory(builder.payload(), 49).is_none());
        assert!(parse_directory(&builder.payload()[..90], u64::MAX).is_none());
        assert!(builder.payload().len() <= 50 * 10, "compact");
    }
}
