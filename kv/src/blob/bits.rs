//! Bit fields: numbers of any width up to 57 bits, one after another, the lowest bit first.
//!
//! A field is read with one load of eight bytes, so whoever lays out fields ends them with
//! [`SLACK`] bytes of zeros, and checks once that every field lies before the slack.

/// Bytes after the last field, so that a load of eight bytes at any field is in bounds.
pub(super) const SLACK: usize = 8;

/// The widest field: seven bits of offset within a byte and the field fit in eight bytes.
pub(super) const MAX_WIDTH: u32 = 57;

/// Bits needed to write `value`; 0 for 0.
pub(super) const fn width_of(value: u64) -> u32 {
    u64::BITS - value.leading_zeros()
}

/// The field of `width` bits, at most [`MAX_WIDTH`], that begins at bit `at`.
///
/// # Panics
/// If the eight bytes at the field are not within `bytes`.
#[inline]
pub(super) fn get(bytes: &[u8], at: usize, width: u32) -> u64 {
    debug_assert!(width <= MAX_WIDTH, "a field fits in one load");
    let from = at / 8;
    let load: [u8; 8] = bytes[from..from + 8].try_into().expect("eight bytes");
    (u64::from_le_bytes(load) >> (at % 8)) & ((1 << width) - 1)
}

/// Writes fields one after another.
#[derive(Default)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    /// Bits written; the last byte of `bytes` is the one they end in.
    len: usize,
}

impl BitWriter {
    /// Appends a field.
    ///
    /// # Panics
    /// If `value` does not fit in `width` bits.
    pub(super) fn put(&mut self, value: u64, width: u32) {
        assert!(width <= MAX_WIDTH, "a field fits in one load");
        assert!(width_of(value) <= width, "{value} in {width} bits");
        let shift = self.len % 8;
        let mut rest = value << shift;
        let mut bits = width as usize;
        if shift > 0 && bits > 0 {
            *self.bytes.last_mut().expect("a byte is begun") |= rest as u8;
            rest >>= 8;
            bits -= bits.min(8 - shift);
        }
        while bits > 0 {
            self.bytes.push(rest as u8);
            rest >>= 8;
            bits -= bits.min(8);
        }
        self.len += width as usize;
    }

    /// Bits written.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The bytes, the last one filled up with zeros.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_of_any_width_come_back(
            fields in prop::collection::vec((any::<u64>(), 0..=MAX_WIDTH), 0..200),
        ) {
            let mut writer = BitWriter::default();
            for &(value, width) in &fields {
                writer.put(value & ((1 << width) - 1), width);
            }
            prop_assert_eq!(
                writer.len(),
                fields.iter().map(|field| field.1 as usize).sum::<usize>()
            );
            let mut bytes = writer.into_bytes();
            bytes.extend_from_slice(&[0; SLACK]);
            let mut at = 0;
            for &(value, width) in &fields {
                prop_assert_eq!(get(&bytes, at, width), value & ((1 << width) - 1));
                at += width as usize;
            }
        }
    }
}
