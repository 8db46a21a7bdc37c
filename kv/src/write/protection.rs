//! Protection of entries in memory: a checksum of each, from the batch to the table that a flush writes.
//!
//! The log and tables have checksums of their own; what lies between, in memory, has this one. It
//! is computed when an entry enters a batch, checked before the batch is logged, kept with
//! the entry in the memtable, and checked when a flush reads it there. The sequence number, which
//! comes later, and the column family are folded in where they are known.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::key::ValueKind;
use crate::write::batch::CfId;

/// Bytes that a protected entry takes more in a memtable.
pub(crate) const PROTECTION_LEN: usize = 8;

/// The checksum of an entry.
#[inline]
pub(crate) fn of_entry(kind: ValueKind, key: &[u8], value: &[u8]) -> u64 {
    let key = xxh3_64_with_seed(key, kind as u64);
    xxh3_64_with_seed(value, key)
}

/// The checksum of an entry in a batch.
#[inline]
pub(crate) fn in_batch(entry: u64, cf: CfId) -> u64 {
    entry ^ mixed(u64::from(cf.0) + 1)
}

/// The checksum of an entry in a memtable.
#[inline]
pub(crate) fn in_memtable(entry: u64, trailer: u64) -> u64 {
    entry ^ mixed(trailer)
}

fn mixed(number: u64) -> u64 {
    let mixed = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ mixed >> 27
}
