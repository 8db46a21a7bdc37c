//! What a table says of itself: counts, sizes and bounds, enough to rebuild a manifest from.
//!
//! ```text
//! properties block: for each property
//!   varint  length of the name
//!   n       name
//!   varint  length of the value
//!   m       value: u64 little-endian for numbers, bytes for keys
//! ```
//!
//! Names that a reader does not know are skipped, so properties can be added; all that are listed
//! in [`TableProperties`] are always written, but for the column family.

use super::block::BadBlock;
use super::varint;
use crate::key::SeqNo;
use crate::version::{TableRefs, put_refs, take_refs};
use lavafs::codec::Decoder;

/// Counts, sizes and bounds of a table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TableProperties {
    /// Versions of keys.
    pub entries: u64,
    /// Versions that are deletions.
    pub deletions: u64,
    /// Versions whose value is in a blob file.
    pub blob_references: u64,
    /// Bytes of internal keys before compression.
    pub raw_key_bytes: u64,
    /// Bytes of values before compression.
    pub raw_value_bytes: u64,
    /// Data blocks.
    pub data_blocks: u64,
    /// Bytes of data blocks in the file.
    pub data_bytes: u64,
    /// User keys in the filter; 0 without one.
    pub filter_keys: u64,
    /// The smallest sequence number.
    pub smallest_seq: SeqNo,
    /// The largest sequence number.
    pub largest_seq: SeqNo,
    /// The first internal key.
    pub smallest: Vec<u8>,
    /// The last internal key.
    pub largest: Vec<u8>,
    /// References to blob files by the number they name; empty ones are not written.
    pub(crate) blob_refs: TableRefs,
    /// Id and name of the column family that the table was written for, where that was told.
    pub column_family: Option<(u32, String)>,
}

impl TableProperties {
    /// True where most entries lead to blob files. The blocks of such a table are cached compressed:
    /// unpacking one is cheap beside the read of a value, and whole tables then fit where a part of
    /// them would.
    pub(super) fn is_mostly_references(&self) -> bool {
        self.blob_references > self.entries / 2
    }

    /// Names and places of the numbers: the one list for both directions.
    fn numbers(&mut self) -> [(&'static str, &mut u64); 10] {
        [
            ("entries", &mut self.entries),
            ("deletions", &mut self.deletions),
            ("blob_references", &mut self.blob_references),
            ("raw_key_bytes", &mut self.raw_key_bytes),
            ("raw_value_bytes", &mut self.raw_value_bytes),
            ("data_blocks", &mut self.data_blocks),
            ("data_bytes", &mut self.data_bytes),
            ("filter_keys", &mut self.filter_keys),
            ("smallest_seq", &mut self.smallest_seq),
            ("largest_seq", &mut self.largest_seq),
        ]
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut copy = self.clone();
        let mut out = Vec::new();
        for (name, number) in copy.numbers() {
            append(&mut out, name, &number.to_le_bytes());
        }
        append(&mut out, "smallest", &self.smallest);
        append(&mut out, "largest", &self.largest);
        if !self.blob_refs.is_empty() {
            let mut refs = Vec::new();
            put_refs(&mut refs, &self.blob_refs);
            append(&mut out, "blob_refs", &refs);
        }
        if let Some((id, name)) = &self.column_family {
            let value = [&id.to_le_bytes()[..], name.as_bytes()].concat();
            append(&mut out, "column_family", &value);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadBlock> {
        let mut properties = TableProperties::default();
        let mut found = 0;
        let mut at = 0;
        while at < bytes.len() {
            let start = at;
            let bad = |detail| BadBlock { at: start, detail };
            let name = take(bytes, &mut at).ok_or(bad("property without a name"))?;
            let value = take(bytes, &mut at).ok_or(bad("property without a value"))?;
            match name {
                b"column_family" => {
                    let (id, name) = value
                        .split_first_chunk()
                        .ok_or(bad("column family without an id"))?;
                    let name = String::from_utf8(name.to_vec())
                        .map_err(|_| bad("column family's name is not UTF-8"))?;
                    properties.column_family = Some((u32::from_le_bytes(*id), name));
                    continue;
                }
                b"smallest" => properties.smallest = value.to_vec(),
                b"largest" => properties.largest = value.to_vec(),
                b"blob_refs" => {
                    let refs = take_refs(&mut Decoder::new(value));
                    properties.blob_refs = refs.ok_or(bad("bad references to blob files"))?;
                    continue;
                }
                _ => {
                    let mut numbers = properties.numbers();
                    let known = numbers
                        .iter_mut()
                        .find(|(known, _)| known.as_bytes() == name);
                    let Some((_, number)) = known else { continue };
                    let value = value
                        .try_into()
                        .map_err(|_| bad("property is not a number"))?;
                    **number = u64::from_le_bytes(value);
                }
            }
            found += 1;
        }
        let counted = properties.blob_refs.iter();
        let counted = counted.fold(0_u64, |sum, (_, used)| sum.saturating_add(used.references));
        if counted != properties.blob_references {
            let detail = "references to blob files do not add up";
            return Err(BadBlock { at, detail });
        }
        let wanted = properties.numbers().len() + 2;
        if found != wanted {
            let detail = "properties missing or repeated";
            return Err(BadBlock { at, detail });
        }
        Ok(properties)
    }
}

/// Appends a property.
pub(crate) fn append(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    varint::put(out, name.len() as u64);
    out.extend_from_slice(name.as_bytes());
    varint::put(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Takes a name or a value; `None` where the bytes end first.
pub(crate) fn take<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let len = varint::get(bytes, at)?;
    let rest = &bytes[*at..];
    let taken = rest.get(..usize::try_from(len).ok()?)?;
    *at += taken.len();
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_come_back_and_unknown_ones_are_skipped() {
        let mut properties = TableProperties {
            smallest: b"a".to_vec(),
            largest: vec![b'z'; 300],
            ..TableProperties::default()
        };
        for (index, (_, number)) in properties.numbers().into_iter().enumerate() {
            *number = 1 << (6 * index);
        }
        let used = crate::version::BlobUse {
            references: properties.blob_references,
            value_bytes: 1 << 30,
        };
        properties.blob_refs.push((12, used));
        let mut bytes = properties.encode();
        append(&mut bytes, "from the future", b"?");
        assert_eq!(TableProperties::decode(&bytes).unwrap(), properties);
        assert!(TableProperties::decode(&[]).is_err());
        for cut in 1..properties.encode().len() {
            assert!(TableProperties::decode(&properties.encode()[..cut]).is_err());
        }
    }
}
