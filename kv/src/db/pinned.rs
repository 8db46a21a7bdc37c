//! `PinnedSlice`: a value that a read found, kept where it was found instead of copied.
//!
//! It keeps the memtable or the block alive, and with it memory that the cache or a flush would
//! otherwise free: hold it for as long as it is looked at, not for as long as the database is open.

use std::ops::Deref;

use crate::cache::ValueRef;
use crate::memtable::PinnedEntry;
use crate::sstable::PinnedValue;

/// The bytes of a value. May be read from any thread, and outlives the [`crate::Db`].
#[derive(Clone)]
pub struct PinnedSlice(Place);

#[derive(Clone)]
enum Place {
    Memtable(PinnedEntry),
    Block(PinnedValue),
    Value(ValueRef),
}

impl From<PinnedEntry> for PinnedSlice {
    fn from(entry: PinnedEntry) -> Self {
        PinnedSlice(Place::Memtable(entry))
    }
}

impl From<PinnedValue> for PinnedSlice {
    fn from(value: PinnedValue) -> Self {
        PinnedSlice(Place::Block(value))
    }
}

impl From<ValueRef> for PinnedSlice {
    fn from(value: ValueRef) -> Self {
        PinnedSlice(Place::Value(value))
    }
}

impl Deref for PinnedSlice {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Place::Memtable(entry) => entry.value(),
            Place::Block(value) => value,
            Place::Value(value) => value,
        }
    }
}

impl AsRef<[u8]> for PinnedSlice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq<[u8]> for PinnedSlice {
    fn eq(&self, other: &[u8]) -> bool {
        **self == *other
    }
}

impl std::fmt::Debug for PinnedSlice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
