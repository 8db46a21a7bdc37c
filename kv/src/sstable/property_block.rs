//! The block in which tables and blob files say what they are.
//!
//! ```text
//! properties block: for each property
//!   varint  length of the name
//!   n       name
//!   varint  length of the value
//!   m       value: u64 little-endian for numbers, bytes for keys
//! ```
//!
//! No name stands twice. Names that a reader does not know are skipped, so properties can be added.

use std::collections::BTreeMap;

use lavafs::codec::{Decoder, put_bytes};

use super::block::BadBlock;

/// Appends a property to the block.
pub(crate) fn append(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    put_bytes(out, name.as_bytes());
    put_bytes(out, value);
}

/// Values by name, and where each property begins in the block.
#[derive(Debug)]
pub(crate) struct PropertyBlock<'a> {
    values: BTreeMap<&'a [u8], (usize, &'a [u8])>,
    len: usize,
}

impl<'a> PropertyBlock<'a> {
    /// Splits the block's contents.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, BadBlock> {
        let mut values = BTreeMap::new();
        let mut rest = Decoder::new(bytes);
        while !rest.is_empty() {
            let at = bytes.len() - rest.remaining();
            let bad = |detail| BadBlock { at, detail };
            let name = rest.bytes().ok_or(bad("property without a name"))?;
            let value = rest.bytes().ok_or(bad("property without a value"))?;
            if values.insert(name, (at, value)).is_some() {
                return Err(bad("property repeated"));
            }
        }
        let len = bytes.len();
        Ok(PropertyBlock { values, len })
    }

    /// The value of a property that each file has.
    pub(crate) fn bytes(&self, name: &str) -> Result<&'a [u8], BadBlock> {
        let found = self.values.get(name.as_bytes());
        found
            .map(|(_, value)| *value)
            .ok_or(self.bad("property missing"))
    }

    /// The same of a number.
    pub(crate) fn number(&self, name: &str) -> Result<u64, BadBlock> {
        let whole = |value: &[u8]| Some(u64::from_le_bytes(value.try_into().ok()?));
        let number = self.optional(name, whole, "property is not a number")?;
        number.ok_or(self.bad("property missing"))
    }

    /// What `read` makes of a property that not all files have; it fails with `detail` where that is nothing.
    pub(crate) fn optional<T>(
        &self,
        name: &str,
        read: impl FnOnce(&'a [u8]) -> Option<T>,
        detail: &'static str,
    ) -> Result<Option<T>, BadBlock> {
        let Some((at, value)) = self.values.get(name.as_bytes()) else {
            return Ok(None);
        };
        let value = read(value).ok_or(BadBlock { at: *at, detail })?;
        Ok(Some(value))
    }

    /// Damage that has no place of its own.
    pub(crate) fn bad(&self, detail: &'static str) -> BadBlock {
        BadBlock {
            at: self.len,
            detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_repeats_or_lacks_a_property_is_refused_at_its_place() {
        let mut bytes = Vec::new();
        append(&mut bytes, "a", &7_u64.to_le_bytes());
        let second = bytes.len();
        append(&mut bytes, "b", b"short");
        let block = PropertyBlock::parse(&bytes).unwrap();
        assert_eq!(block.number("a").unwrap(), 7);
        assert_eq!(block.bytes("b").unwrap(), b"short");
        assert_eq!(block.number("b").unwrap_err().at, second);
        assert_eq!(block.number("c").unwrap_err().at, bytes.len());
        let third = bytes.len();
        append(&mut bytes, "a", b"again");
        assert_eq!(PropertyBlock::parse(&bytes).unwrap_err().at, third);
    }
}
