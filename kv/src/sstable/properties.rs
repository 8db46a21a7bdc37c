//! What a table says of itself: counts, sizes and bounds, enough to rebuild a manifest from.
//!
//! All that are listed in [`TableProperties`] are always written, but for the references to blob files and the column
//! family. The encoding is in property_block.rs.

use super::block::BadBlock;
use super::property_block::{PropertyBlock, append};
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
        let block = PropertyBlock::parse(bytes)?;
        let mut properties = TableProperties::default();
        for (name, number) in properties.numbers() {
            *number = block.number(name)?;
        }
        properties.smallest = block.bytes("smallest")?.to_vec();
        properties.largest = block.bytes("largest")?.to_vec();
        let refs = block.optional(
            "blob_refs",
            |value| take_refs(&mut Decoder::new(value)),
            "bad references to blob files",
        )?;
        properties.blob_refs = refs.unwrap_or_default();
        let family = |value: &[u8]| {
            let (id, name) = value.split_first_chunk()?;
            let name = String::from_utf8(name.to_vec()).ok()?;
            Some((u32::from_le_bytes(*id), name))
        };
        properties.column_family = block.optional(
            "column_family",
            family,
            "column family without an id or with a name that is not UTF-8",
        )?;
        let counted = properties.blob_refs.iter();
        let counted = counted.fold(0_u64, |sum, (_, used)| sum.saturating_add(used.references));
        if counted != properties.blob_references {
            return Err(block.bad("references to blob files do not add up"));
        }
        Ok(properties)
    }
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
