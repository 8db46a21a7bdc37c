//! The keys of `lava kv stress`, and values that tell which write they are of.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// The keys of a pair.
pub(super) fn names(thread: u64, pair: u64) -> [Vec<u8>; 2] {
    // The two keys of a pair lie far apart, so that they are in different tables.
    ["a", "b"].map(|half| format!("{half}/{thread:03}/{pair:06}").into_bytes())
}

/// In the second column family.
pub(super) fn copy_name(thread: u64, pair: u64) -> Vec<u8> {
    format!("c/{thread:03}/{pair:06}").into_bytes()
}

/// Of a key that is written without a log.
pub(super) fn unlogged_name(thread: u64, pair: u64) -> Vec<u8> {
    format!("unlogged/{thread:03}/{pair:06}").into_bytes()
}

/// A counter as text, and bytes that follow from it.
pub(super) fn value_of(pair: u64, counter: u64, size: usize) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(pair.rotate_left(32) ^ counter);
    let len = rng.random_range(32..=size.max(32));
    let mut value = format!("{counter:016x} ").into_bytes();
    while value.len() < len {
        value.push(rng.random_range(b'a'..=b'z'));
    }
    value
}

/// The counter of a value that was written to `pair`.
pub(super) fn counter_of(pair: u64, value: &[u8], size: usize) -> Option<u64> {
    let digits = std::str::from_utf8(value.get(..16)?).ok()?;
    let counter = u64::from_str_radix(digits, 16).ok()?;
    (value_of(pair, counter, size) == value).then_some(counter)
}
