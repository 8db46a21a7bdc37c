//! Data blocks: sorted entries with prefix compression, restart points and a hash index.
//!
//! ```text
//! data block (before compression)
//!   keys       one after another
//!   values     one after another, in the order of the keys
//!   restarts   2 x u32 each: offset of a key stored whole, offset of its value;
//!              the first is (0, end of the keys)
//!   buckets    u8 each: hash index, maybe none
//!   u32        number of restarts, at least 1
//!   u16        number of buckets
//!
//! key
//!   varint     shared: bytes of the user key that are those of the previous user key;
//!              0 at a restart, elsewhere as many as there are
//!   varint     rest of the user key's length
//!   varint     length of the value
//!   8          trailer (sequence number and kind; key.rs)
//!   n          rest of the user key
//! ```
//!
//! Keys and values are apart so that a search walks over few cache lines.
//!
//! Bucket `h % buckets`, `h` the lower half of the user key's filter hash, holds the number of
//! the restart before the only entries whose keys fall on it, [`NO_ENTRY`] or [`COLLISION`].
//!
//! That `shared` is maximal lets a search skip or stop without comparing keys: an entry that
//! shares more with its predecessor than the predecessor does with the target is before the
//! target as well, one that shares less is after it.
//!
//! Invariants kept here for bytes from disk: offsets are checked before use, so that bad bytes
//! give [`BadBlock`], never a panic or an endless loop. (A checksum is verified before.)

use std::cmp::Ordering;
use std::ops::Range;

use super::varint;
use crate::key::{LookupKey, TRAILER_LEN, ValueKind, compare_user, trailer, user_key};

/// A bucket on which no key falls.
const NO_ENTRY: u8 = 255;
/// A bucket on which keys of several restarts fall.
const COLLISION: u8 = 254;
/// Restarts that a bucket can tell apart.
const MAX_INDEXED_RESTARTS: usize = 254;
/// Buckets per key are one over this.
const BUCKET_LOAD: f64 = 0.75;
/// Bytes of a restart.
const RESTART: usize = 8;
/// Bytes after the buckets.
const TAIL: usize = 6;

/// What is wrong with a block's bytes, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadBlock {
    /// Offset within the block's contents.
    pub(crate) at: usize,
    pub(crate) detail: &'static str,
}

fn bad<T>(at: usize, detail: &'static str) -> Result<T, BadBlock> {
    Err(BadBlock { at, detail })
}

/// Builds one data block after another in one buffer.
pub(super) struct BlockBuilder {
    restart_interval: usize,
    hash_index: bool,
    keys: Vec<u8>,
    values: Vec<u8>,
    /// Restarts, buckets and tail, once finished.
    tables: Vec<u8>,
    /// Offsets in `keys` and `values`.
    restarts: Vec<(usize, usize)>,
    since_restart: usize,
    entries: usize,
    last_user_key: Vec<u8>,
    /// Lower hash halves and restart of each key.
    hashes: Vec<(u32, u8)>,
}

impl BlockBuilder {
    pub(super) fn new(restart_interval: usize, hash_index: bool) -> Self {
        BlockBuilder {
            restart_interval: restart_interval.max(1),
            hash_index,
            keys: Vec::new(),
            values: Vec::new(),
            tables: Vec::new(),
            restarts: Vec::new(),
            since_restart: 0,
            entries: 0,
            last_user_key: Vec::new(),
            hashes: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Bytes of the block if it were finished now.
    pub(super) fn size(&self) -> usize {
        let buckets = if self.hash_index { self.entries } else { 0 };
        let areas = self.keys.len() + self.values.len();
        areas + RESTART * self.restarts.len() + buckets + TAIL
    }

    /// Adds an entry; keys must ascend (the caller has checked).
    pub(super) fn add(&mut self, internal_key: &[u8], hash: u64, value: &[u8]) {
        let key = user_key(internal_key);
        let restart = self.entries == 0 || self.since_restart == self.restart_interval;
        let shared = if restart {
            self.restarts.push((self.keys.len(), self.values.len()));
            self.since_restart = 0;
            0
        } else {
            common_prefix(&self.last_user_key, key)
        };
        self.since_restart += 1;
        self.entries += 1;
        if self.hash_index && self.restarts.len() <= MAX_INDEXED_RESTARTS {
            self.hashes
                .push((hash as u32, (self.restarts.len() - 1) as u8));
        }
        let rest = &key[shared..];
        varint::put(&mut self.keys, shared as u64);
        varint::put(&mut self.keys, rest.len() as u64);
        varint::put(&mut self.keys, value.len() as u64);
        self.keys.extend_from_slice(&internal_key[key.len()..]);
        self.keys.extend_from_slice(rest);
        self.values.extend_from_slice(value);
        self.last_user_key.truncate(shared);
        self.last_user_key.extend_from_slice(rest);
    }

    /// Ends the block and returns its parts; [`BlockBuilder::reset`] begins the next.
    pub(super) fn finish(&mut self) -> [&[u8]; 3] {
        assert!(self.entries > 0, "a block has entries");
        for &(key, value) in &self.restarts {
            for offset in [key, self.keys.len() + value] {
                let offset = u32::try_from(offset).expect("a block is below 4 GiB");
                self.tables.extend_from_slice(&offset.to_le_bytes());
            }
        }
        let buckets = self.append_buckets();
        self.tables
            .extend_from_slice(&(self.restarts.len() as u32).to_le_bytes());
        self.tables.extend_from_slice(&buckets.to_le_bytes());
        [&self.keys, &self.values, &self.tables]
    }

    fn append_buckets(&mut self) -> u16 {
        if !self.hash_index || self.restarts.len() > MAX_INDEXED_RESTARTS {
            return 0;
        }
        let buckets = (self.hashes.len() as f64 / BUCKET_LOAD).ceil() as usize | 1;
        let Ok(count) = u16::try_from(buckets) else {
            return 0;
        };
        let start = self.tables.len();
        self.tables.resize(start + buckets, NO_ENTRY);
        for &(hash, restart) in &self.hashes {
            let bucket = &mut self.tables[start + hash as usize % buckets];
            *bucket = match *bucket {
                NO_ENTRY => restart,
                same if same == restart => restart,
                _ => COLLISION,
            };
        }
        count
    }

    pub(super) fn reset(&mut self) {
        self.keys.clear();
        self.values.clear();
        self.tables.clear();
        self.restarts.clear();
        self.hashes.clear();
        self.entries = 0;
        self.since_restart = 0;
    }
}

/// Bytes that two keys begin with in common.
#[inline]
pub(super) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let limit = a.len().min(b.len());
    let mut at = 0;
    while at + 8 <= limit {
        let word =
            |bytes: &[u8]| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let differ = word(a) ^ word(b);
        if differ != 0 {
            return at + differ.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while at < limit && a[at] == b[at] {
        at += 1;
    }
    at
}

/// Where the parts of a data block's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DataLayout {
    keys_end: usize,
    /// End of the values and start of the restarts.
    values_end: usize,
    restarts: usize,
    buckets: usize,
}

/// One key, decoded.
struct Entry {
    shared: usize,
    trailer: u64,
    /// The rest of the user key; the next key begins at its end.
    rest: Range<usize>,
    value_len: usize,
}

/// What a lookup found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub(super) trailer: u64,
    /// The value's place in the block's bytes.
    pub(super) value: Range<usize>,
}

impl DataLayout {
    /// Reads a block's tail.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BadBlock> {
        let Some((_, tail)) = bytes.split_last_chunk::<TAIL>() else {
            return bad(0, "block shorter than its tail");
        };
        let [a, b, c, d, e, f] = *tail;
        let restarts = u32::from_le_bytes([a, b, c, d]) as usize;
        let buckets = u16::from_le_bytes([e, f]) as usize;
        let tables = restarts * RESTART + buckets + TAIL;
        if restarts == 0 || tables >= bytes.len() {
            return bad(
                bytes.len() - TAIL,
                "block with an impossible number of restarts",
            );
        }
        let mut layout = DataLayout {
            keys_end: 0,
            values_end: bytes.len() - tables,
            restarts,
            buckets,
        };
        layout.keys_end = layout.restart(bytes, 0).1;
        if layout.keys_end > layout.values_end {
            return bad(layout.values_end, "keys beyond the block's end");
        }
        Ok(layout)
    }

    /// Offsets of a restart's key and value.
    #[inline]
    fn restart(self, bytes: &[u8], index: usize) -> (usize, usize) {
        let at = self.values_end + RESTART * index;
        let word = |at: usize| {
            u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
        };
        (word(at), word(at + 4))
    }

    #[inline]
    fn bucket(self, bytes: &[u8], hash: u64) -> u8 {
        if self.buckets == 0 {
            return COLLISION;
        }
        let start = self.values_end + RESTART * self.restarts;
        bytes[start + hash as u32 as usize % self.buckets]
    }

    /// The place of a value in the block, if it is one.
    #[inline]
    fn value(self, start: usize, len: usize) -> Result<Range<usize>, BadBlock> {
        let end = start.saturating_add(len);
        if start < self.keys_end || end > self.values_end {
            return bad(start, "value outside of the block");
        }
        Ok(start..end)
    }

    /// Decodes the key at `at`.
    #[inline]
    fn entry(self, bytes: &[u8], at: usize) -> Result<Entry, BadBlock> {
        let Some(entries) = bytes.get(at..self.keys_end) else {
            return bad(at, "restart outside of the block");
        };
        let (shared, rest_len, value_len, head) = match *entries {
            [shared, rest, value, ..] if (shared | rest | value) < 0x80 => {
                (shared as usize, rest as usize, value as usize, 3)
            }
            _ => {
                let mut head = 0;
                let mut number = || varint::get(entries, &mut head).filter(|n| *n < 1 << 32);
                let (Some(shared), Some(rest), Some(value)) = (number(), number(), number()) else {
                    return bad(at, "entry with bad lengths");
                };
                (shared as usize, rest as usize, value as usize, head)
            }
        };
        let Some(trailer) = entries[head..].first_chunk::<TRAILER_LEN>() else {
            return bad(at, "entry beyond the block's end");
        };
        let trailer = u64::from_le_bytes(*trailer);
        let rest_start = at + head + TRAILER_LEN;
        let rest_end = rest_start + rest_len;
        if rest_end > self.keys_end {
            return bad(at, "entry beyond the block's end");
        }
        if ValueKind::from_u8(trailer as u8).is_none() {
            return bad(at, "entry of an unknown kind");
        }
        Ok(Entry {
            shared,
            trailer,
            rest: rest_start..rest_end,
            value_len,
        })
    }

    /// The restart from which a walk forward meets the first entry at or after the target.
    fn search_restarts(
        self,
        bytes: &[u8],
        target_key: &[u8],
        target_trailer: u64,
    ) -> Result<usize, BadBlock> {
        // The last restart before the target, or the first one.
        let (mut low, mut high) = (0, self.restarts);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let entry = self.entry(bytes, self.restart(bytes, middle).0)?;
            let order = compare_user(&bytes[entry.rest], target_key)
                .then_with(|| target_trailer.cmp(&entry.trailer));
            match order {
                Ordering::Less => low = middle,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// The first entry at or after the lookup's key, if it is a version of the same user key.
    #[inline]
    pub(super) fn get(
        self,
        bytes: &[u8],
        lookup: &LookupKey,
        hash: u64,
    ) -> Result<Option<Found>, BadBlock> {
        let target = lookup.internal();
        let (target_key, target_trailer) = (user_key(target), trailer(target));
        let restart = match self.bucket(bytes, hash) {
            NO_ENTRY => return Ok(None),
            COLLISION => self.search_restarts(bytes, target_key, target_trailer)?,
            index if usize::from(index) < self.restarts => usize::from(index),
            _ => return bad(self.values_end, "bucket without a restart"),
        };
        self.scan(bytes, restart, target_key, target_trailer)
    }

    /// Walks from a restart to the first entry at or after the target; see the module's words on
    /// `shared`.
    fn scan(
        self,
        bytes: &[u8],
        restart: usize,
        target_key: &[u8],
        target_trailer: u64,
    ) -> Result<Option<Found>, BadBlock> {
        let (mut at, mut value_at) = self.restart(bytes, restart);
        let mut next_restart = restart;
        let mut next_restart_at = at;
        // Bytes that the previous user key, which is not after the target's, shares with it.
        let mut matched = 0;
        while at < self.keys_end {
            if at == next_restart_at {
                matched = 0;
                next_restart += 1;
                next_restart_at = match next_restart < self.restarts {
                    true => self.restart(bytes, next_restart).0,
                    false => usize::MAX,
                };
            }
            let entry = self.entry(bytes, at)?;
            let value_start = value_at;
            at = entry.rest.end;
            value_at += entry.value_len;
            if entry.shared > matched {
                continue;
            }
            if entry.shared < matched {
                return Ok(None);
            }
            let rest = &bytes[entry.rest];
            let wanted = &target_key[matched..];
            let common = common_prefix(rest, wanted);
            if common == wanted.len() {
                if common < rest.len() {
                    return Ok(None);
                }
                if entry.trailer <= target_trailer {
                    let value = self.value(value_start, entry.value_len)?;
                    let trailer = entry.trailer;
                    return Ok(Some(Found { trailer, value }));
                }
            } else if common < rest.len() && rest[common] > wanted[common] {
                return Ok(None);
            }
            matched += common;
        }
        Ok(None)
    }
}

/// A place in a data block; the block's bytes and layout are given to each call, always the same
/// ones between two seeks.
#[derive(Debug, Default)]
pub(super) struct BlockCursor {
    /// The internal key here.
    pub(super) key: Vec<u8>,
    /// The value's place in the block's bytes.
    pub(super) value: Range<usize>,
    /// Where the key here begins.
    at: usize,
    /// Where the next key begins.
    next_at: usize,
    pub(super) valid: bool,
}

impl BlockCursor {
    pub(super) fn seek_to_first(
        &mut self,
        bytes: &[u8],
        layout: DataLayout,
    ) -> Result<(), BadBlock> {
        self.seek_to_restart(bytes, layout, 0)
    }

    pub(super) fn seek_to_last(
        &mut self,
        bytes: &[u8],
        layout: DataLayout,
    ) -> Result<(), BadBlock> {
        self.seek_to_restart(bytes, layout, layout.restarts - 1)?;
        self.walk_to(bytes, layout, layout.keys_end)
    }

    /// Moves to the first entry at or after `target`; invalid where there is none.
    pub(super) fn seek(
        &mut self,
        bytes: &[u8],
        layout: DataLayout,
        target: &[u8],
    ) -> Result<(), BadBlock> {
        let (target_key, target_trailer) = (user_key(target), trailer(target));
        let restart = layout.search_restarts(bytes, target_key, target_trailer)?;
        self.seek_to_restart(bytes, layout, restart)?;
        while self.valid && crate::key::compare_internal(&self.key, target).is_lt() {
            self.next(bytes, layout)?;
        }
        Ok(())
    }

    fn seek_to_restart(
        &mut self,
        bytes: &[u8],
        layout: DataLayout,
        restart: usize,
    ) -> Result<(), BadBlock> {
        self.key.clear();
        let (at, value_at) = layout.restart(bytes, restart);
        self.load(bytes, layout, at, value_at)
    }

    #[inline]
    pub(super) fn next(&mut self, bytes: &[u8], layout: DataLayout) -> Result<(), BadBlock> {
        if self.next_at >= layout.keys_end {
            self.valid = false;
            return Ok(());
        }
        self.load(bytes, layout, self.next_at, self.value.end)
    }

    /// Walks to the entry before this one from the restart before it.
    pub(super) fn prev(&mut self, bytes: &[u8], layout: DataLayout) -> Result<(), BadBlock> {
        let end = self.at;
        let (mut low, mut high) = (0, layout.restarts);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match layout.restart(bytes, middle).0 < end {
                true => low = middle,
                false => high = middle,
            }
        }
        if layout.restart(bytes, low).0 >= end {
            self.valid = false;
            return Ok(());
        }
        self.seek_to_restart(bytes, layout, low)?;
        self.walk_to(bytes, layout, end)
    }

    /// Walks to the entry whose key ends at `end`.
    fn walk_to(&mut self, bytes: &[u8], layout: DataLayout, end: usize) -> Result<(), BadBlock> {
        while self.next_at < end {
            self.load(bytes, layout, self.next_at, self.value.end)?;
        }
        Ok(())
    }

    /// Decodes the key at `at`, whose value is at `value_at`; `key` is that of the entry before,
    /// or empty at a restart.
    #[inline]
    fn load(
        &mut self,
        bytes: &[u8],
        layout: DataLayout,
        at: usize,
        value_at: usize,
    ) -> Result<(), BadBlock> {
        self.valid = false;
        let entry = layout.entry(bytes, at)?;
        if entry.shared > self.key.len().saturating_sub(TRAILER_LEN) {
            return bad(at, "key that shares more than there is");
        }
        self.value = layout.value(value_at, entry.value_len)?;
        self.at = at;
        self.next_at = entry.rest.end;
        self.key.truncate(entry.shared);
        self.key.extend_from_slice(&bytes[entry.rest]);
        self.key.extend_from_slice(&entry.trailer.to_le_bytes());
        self.valid = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
