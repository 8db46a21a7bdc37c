//! The keys of `lava kv stress`, and values that tell which write they are of.

use lavakv::{Db, ReadOptions};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::cli::{Failure, Outcome};

/// Pairs of a thread at most.
pub(super) const PAIRS_MAX: u64 = 1_000_000;

/// What is wrong with a value that does not follow from its counter.
pub(super) const NEVER_WRITTEN: &str =
    "holds a value that was never written, or with another --value-size";

/// The keys of a pair.
pub(super) fn names(thread: u64, pair: u64) -> [Vec<u8>; 2] {
    // The two keys of a pair lie far apart, so that they are in different tables.
    ["a", "b"].map(|half| format!("{half}/{thread:03}/{pair:06}").into_bytes())
}

/// The pair that a key is of.
pub(super) fn pair_of(key: &[u8]) -> Outcome<u64> {
    let number = key.rsplit(|&byte| byte == b'/').next();
    let number = number.and_then(|digits| std::str::from_utf8(digits).ok());
    let number = number.and_then(|digits| digits.parse().ok());
    number
        .filter(|&pair| pair < PAIRS_MAX)
        .ok_or_else(|| Failure::new("a key that was never written"))
}

/// The number after that of the last pair of a thread.
pub(super) fn pairs_left(db: &Db, thread: u64) -> Outcome<u64> {
    let mut pairs = 0;
    for half in ["a", "b"] {
        let of_thread = ReadOptions {
            prefix: Some(format!("{half}/{thread:03}/").into_bytes()),
            ..ReadOptions::default()
        };
        let mut iter = db.iter(&of_thread)?;
        iter.seek_to_last();
        if iter.valid() {
            pairs = pairs.max(pair_of(iter.key())? + 1);
        }
        iter.status()?;
    }
    Ok(pairs)
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
