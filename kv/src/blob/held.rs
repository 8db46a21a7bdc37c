//! `Held`: the first values of a blob file that gets a dictionary, kept in memory until the dictionary can be
//! trained on them.
//!
//! A value that has no room ends the sampling and is not held itself, so that what is held never takes more
//! than [`Held::memory`] says, however long values are.

use crate::sstable::compression::Compression;
use crate::sstable::samples::Samples;

/// Bytes that the lengths of an entry take beside its key and value.
const ENTRY_BYTES: usize = 2 * size_of::<usize>();

/// Entries that wait for the dictionary, in key order.
pub(super) struct Held {
    values: Samples,
    keys: Vec<u8>,
    key_ends: Vec<usize>,
}

impl Held {
    /// Begins to hold values for a dictionary of `dict_bytes` at most; `None` where the file gets none.
    pub(super) fn wanted(compression: Compression, dict_bytes: usize) -> Option<Held> {
        Samples::wanted(compression, dict_bytes).map(|values| Held {
            values,
            keys: Vec::new(),
            key_ends: Vec::new(),
        })
    }

    /// Takes an entry, unless there is no room for it.
    pub(super) fn push(&mut self, internal_key: &[u8], value: &[u8]) -> bool {
        let len = internal_key.len() + value.len() + ENTRY_BYTES;
        let fits = self.memory() + len <= self.values.enough();
        if fits {
            self.values.push(&[value]);
            self.keys.extend_from_slice(internal_key);
            self.key_ends.push(self.keys.len());
        }
        fits
    }

    /// Bytes of memory held.
    pub(super) fn memory(&self) -> usize {
        self.values.bytes() + self.keys.len() + self.values.len() * ENTRY_BYTES
    }

    /// Entries.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// The last internal key, if there is one.
    pub(super) fn last_key(&self) -> Option<&[u8]> {
        self.keys().last()
    }

    fn keys(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        let ends = &self.key_ends;
        (0..ends.len()).map(move |at| {
            let begin = at.checked_sub(1).map_or(0, |before| ends[before]);
            &self.keys[begin..ends[at]]
        })
    }

    /// Keys and values in the order they were taken.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.keys().zip(self.values.pieces())
    }

    /// The dictionary of what the values have in common; `None` where that is too little.
    pub(super) fn train(&self) -> Option<Vec<u8>> {
        self.values.train()
    }
}
