//! What a blob file says of itself, enough to list it in a manifest again. Encoded as an SST's
//! properties (sstable/property_block.rs).

use lavafs::codec::{Decoder, put_varint};

use crate::file_names::FileNumber;
use crate::key::SeqNo;
use crate::sstable::{BadBlock, PropertyBlock, append_property};

/// Counts, sizes and bounds of a blob file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BlobFileProperties {
    /// Values.
    pub records: u64,
    /// Bytes of internal keys.
    pub raw_key_bytes: u64,
    /// Bytes of values before compression.
    pub raw_value_bytes: u64,
    /// Bytes of records as they are stored, padding included: the unit in which garbage is counted.
    pub stored_bytes: u64,
    /// The smallest sequence number.
    pub smallest_seq: SeqNo,
    /// The largest sequence number.
    pub largest_seq: SeqNo,
    /// The first internal key.
    pub smallest: Vec<u8>,
    /// The last internal key.
    pub largest: Vec<u8>,
    /// Numbers of files whose live values a collection wrote here, ascending: tables may still
    /// name the values by them. Written where there are any.
    pub ancestors: Vec<u64>,
    /// Bytes of the file. Kept in the footer.
    pub file_bytes: u64,
    /// xxh3 of all bytes before the footer. Kept in the footer.
    pub checksum: u64,
}

impl BlobFileProperties {
    /// Names and places of the numbers in the properties block.
    fn numbers(&mut self) -> [(&'static str, &mut u64); 6] {
        [
            ("records", &mut self.records),
            ("raw_key_bytes", &mut self.raw_key_bytes),
            ("raw_value_bytes", &mut self.raw_value_bytes),
            ("stored_bytes", &mut self.stored_bytes),
            ("smallest_seq", &mut self.smallest_seq),
            ("largest_seq", &mut self.largest_seq),
        ]
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut copy = self.clone();
        let mut out = Vec::new();
        for (name, number) in copy.numbers() {
            append_property(&mut out, name, &number.to_le_bytes());
        }
        append_property(&mut out, "smallest", &self.smallest);
        append_property(&mut out, "largest", &self.largest);
        if !self.ancestors.is_empty() {
            let mut numbers = Vec::new();
            for number in &self.ancestors {
                put_varint(&mut numbers, *number);
            }
            append_property(&mut out, "ancestors", &numbers);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadBlock> {
        let block = PropertyBlock::parse(bytes)?;
        let mut properties = BlobFileProperties::default();
        for (name, number) in properties.numbers() {
            *number = block.number(name)?;
        }
        properties.smallest = block.bytes("smallest")?.to_vec();
        properties.largest = block.bytes("largest")?.to_vec();
        let ancestors = block.optional(
            "ancestors",
            |value| take_ancestors(&mut Decoder::new(value)),
            "ancestors do not ascend",
        )?;
        properties.ancestors = ancestors.unwrap_or_default();
        Ok(properties)
    }
}

/// Numbers until nothing is left; `None` where they do not ascend.
fn take_ancestors(body: &mut Decoder<'_>) -> Option<Vec<FileNumber>> {
    let mut numbers: Vec<FileNumber> = Vec::new();
    while !body.is_empty() {
        let number = body.varint()?;
        if numbers.last().is_some_and(|&last| last >= number) {
            return None;
        }
        numbers.push(number);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_come_back_and_unknown_ones_are_skipped() {
        let mut properties = BlobFileProperties {
            smallest: b"a".to_vec(),
            largest: vec![b'z'; 300],
            ..BlobFileProperties::default()
        };
        for (index, (_, number)) in properties.numbers().into_iter().enumerate() {
            *number = 1 << (9 * index);
        }
        let without = properties.encode().len();
        properties.ancestors = vec![3, 700, 1 << 40];
        let mut bytes = properties.encode();
        append_property(&mut bytes, "from the future", b"?");
        assert_eq!(BlobFileProperties::decode(&bytes).unwrap(), properties);
        for cut in 0..properties.encode().len() {
            // Files without ancestors, and those of before, end here.
            let whole = cut == without;
            let decoded = BlobFileProperties::decode(&properties.encode()[..cut]);
            assert_eq!(decoded.is_ok(), whole, "{cut}");
        }
        properties.ancestors = vec![3, 3];
        assert!(BlobFileProperties::decode(&properties.encode()).is_err());
    }
}
