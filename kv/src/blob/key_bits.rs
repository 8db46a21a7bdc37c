//! Internal keys as strings of bits whose order is the keys' order and of which none is a prefix
//! of another: what a crit-bit tree needs.
//!
//! ```text
//! for each byte of the user key:  1, then the byte's bits, highest first
//! 0
//! 64 bits of the inverted trailer, highest first: newer versions come first
//! ```
//!
//! The bit before each byte puts a key before its extensions, whatever bytes follow.

use crate::key::{trailer, user_key};

/// Bits of a user key's byte.
const BYTE_BITS: u32 = 9;

/// An internal key, asked for its bits.
#[derive(Clone, Copy)]
pub(super) struct KeyBits<'a> {
    user_key: &'a [u8],
    inverted_trailer: u64,
}

impl<'a> KeyBits<'a> {
    /// # Panics
    /// If `internal_key` is shorter than a trailer.
    pub(super) fn new(internal_key: &'a [u8]) -> Self {
        KeyBits {
            user_key: user_key(internal_key),
            inverted_trailer: !trailer(internal_key),
        }
    }

    /// The bit at a position; zero beyond the end.
    #[inline]
    pub(super) fn bit(&self, at: u32) -> bool {
        let (byte, bit) = ((at / BYTE_BITS) as usize, at % BYTE_BITS);
        if let Some(byte) = self.user_key.get(byte) {
            return bit == 0 || byte >> (BYTE_BITS - 1 - bit) & 1 == 1;
        }
        let end = self.user_key.len() as u64 * u64::from(BYTE_BITS);
        match u64::from(at).checked_sub(end + 1) {
            Some(bit @ 0..64) => self.inverted_trailer >> (63 - bit) & 1 == 1,
            _ => false,
        }
    }
}

/// The first bit at which two different internal keys differ.
pub(super) fn first_difference(a: &[u8], b: &[u8]) -> u32 {
    let (user_a, user_b) = (user_key(a), user_key(b));
    let shared = shared_prefix(user_a, user_b);
    let at = shared as u32 * BYTE_BITS;
    match (user_a.get(shared), user_b.get(shared)) {
        (Some(a), Some(b)) => at + 1 + (a ^ b).leading_zeros(),
        (None, None) => at + 1 + (trailer(a) ^ trailer(b)).leading_zeros(),
        _ => at,
    }
}

fn shared_prefix(a: &[u8], b: &[u8]) -> usize {
    let words = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    let (chunks_a, chunks_b) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    for (index, (a, b)) in chunks_a.iter().zip(chunks_b).enumerate() {
        if a != b {
            return index * 8 + ((words(a) ^ words(b)).trailing_zeros() / 8) as usize;
        }
    }
    let from = chunks_a.len().min(chunks_b.len()) * 8;
    let same = a[from..].iter().zip(&b[from..]);
    from + same.take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{InternalKey, ValueKind, compare_internal};
    use proptest::prelude::*;

    fn keys() -> impl Strategy<Value = Vec<u8>> {
        let user_key = prop::collection::vec(prop::sample::select(vec![0u8, 1, 255]), 0..20);
        (user_key, 0u64..4).prop_map(|(user_key, seq)| {
            InternalKey::new(&user_key, seq, ValueKind::BlobReference).into_bytes()
        })
    }

    proptest! {
        #[test]
        fn the_first_difference_orders_keys(a in keys(), b in keys()) {
            prop_assume!(a != b);
            let at = first_difference(&a, &b);
            prop_assert_eq!(at, first_difference(&b, &a));
            let (bits_a, bits_b) = (KeyBits::new(&a), KeyBits::new(&b));
            for before in 0..at {
                prop_assert_eq!(bits_a.bit(before), bits_b.bit(before));
            }
            prop_assert_ne!(bits_a.bit(at), bits_b.bit(at));
            prop_assert_eq!(compare_internal(&a, &b).is_lt(), bits_b.bit(at));
            prop_assert!(!bits_a.bit(u32::MAX));
        }
    }
}
