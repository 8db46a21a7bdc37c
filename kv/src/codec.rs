//! Varints and a bounded decoder, for the encodings of batch and manifest.
//!
//! A varint holds 7 bits a byte, lowest first, the high bit set on all but the last byte.
//! Decoding never reads past its input and allocates nothing: `None` says that the bytes disagree
//! with the format, and the caller names file and offset.

/// Appends `value` as a varint of 1 to 10 bytes.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a varint length and the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Takes fields off the front of a byte slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoder<'a> {
    data: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Decodes `data` from its beginning.
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Decoder { data }
    }

    /// What was not yet taken.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.data
    }

    /// True when everything was taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Takes `len` bytes.
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.data.split_at_checked(len)?;
        self.data = rest;
        Some(taken)
    }

    /// Takes one byte.
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// Takes a little-endian `u32`.
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take(4)
            .map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    /// Takes a little-endian `u64`.
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take(8)
            .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    /// Takes a varint; `None` if it is cut or does not fit in 64 bits.
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// Takes a varint length of at most `max` and that many bytes.
    pub(crate) fn bytes(&mut self, max: usize) -> Option<&'a [u8]> {
        let len = usize::try_from(self.varint()?).ok()?;
        if len > max {
            return None;
        }
        self.take(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_read_back_and_reject_overflow() {
        for value in [0, 1, 127, 128, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            let mut decoder = Decoder::new(&out);
            assert_eq!(decoder.varint(), Some(value));
            assert!(decoder.is_empty());
            assert_eq!(Decoder::new(&out[..out.len() - 1]).varint(), None);
        }
        assert_eq!(Decoder::new(&[0xff; 10]).varint(), None);
        assert_eq!(Decoder::new(&[0xff; 11]).varint(), None);
    }

    #[test]
    fn a_length_beyond_its_limit_or_input_is_refused() {
        let mut out = Vec::new();
        put_bytes(&mut out, b"abc");
        assert_eq!(Decoder::new(&out).bytes(3), Some(&b"abc"[..]));
        assert_eq!(Decoder::new(&out).bytes(2), None);
        assert_eq!(Decoder::new(&out[..3]).bytes(3), None);
    }
}
