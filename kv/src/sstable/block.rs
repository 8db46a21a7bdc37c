//! Data blocks: sorted entries with prefix compression, restart points and a hash index.
//!
//! ```text
//! data block (before compression)
//!   entries
//!   restarts   u32 each: offset of an entry stored with its whole key; the first is 0
//!   buckets    u8 each: hash index, maybe none
//!   u32        number of restarts, at least 1
//!   u16        number of buckets
//!
//! entry
//!   varint     shared: bytes of the user key that are those of the previous user key;
//!              0 at a restart, elsewhere as many as there are
//!   varint     rest of the user key's length
//!   varint     length of the value
//!   8          trailer (sequence number and kind; key.rs)
//!   n          rest of the user key
//!   m          value
//! ```
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
/// Bytes after the buckets.
const TAIL: usize = 6;

/// What is wrong with a block's bytes, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BadBlock {
    /// Offset within the block's contents.
    pub(super) at: usize,
    pub(super) detail: &'static str,
}

fn bad<T>(at: usize, detail: &'static str) -> Result<T, BadBlock> {
    Err(BadBlock { at, detail })
}

/// Builds one data block after another in one buffer.
pub(super) struct BlockBuilder {
    restart_interval: usize,
    hash_index: bool,
    buf: Vec<u8>,
    restarts: Vec<u32>,
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
            buf: Vec::new(),
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
        self.buf.len() + 4 * self.restarts.len() + buckets + TAIL
    }

    /// Adds an entry; keys must ascend (the caller has checked).
    pub(super) fn add(&mut self, internal_key: &[u8], hash: u64, value: &[u8]) {
        let key = user_key(internal_key);
        let restart = self.entries == 0 || self.since_restart == self.restart_interval;
        let shared = if restart {
            let at = u32::try_from(self.buf.len()).expect("a block is below 4 GiB");
            self.restarts.push(at);
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
        varint::put(&mut self.buf, shared as u64);
        varint::put(&mut self.buf, rest.len() as u64);
        varint::put(&mut self.buf, value.len() as u64);
        self.buf.extend_from_slice(&internal_key[key.len()..]);
        self.buf.extend_from_slice(rest);
        self.buf.extend_from_slice(value);
        self.last_user_key.truncate(shared);
        self.last_user_key.extend_from_slice(rest);
    }

    /// Ends the block; [`BlockBuilder::reset`] begins the next.
    pub(super) fn finish(&mut self) -> &[u8] {
        assert!(self.entries > 0, "a block has entries");
        for restart in &self.restarts {
            self.buf.extend_from_slice(&restart.to_le_bytes());
        }
        let buckets = self.append_buckets();
        self.buf
            .extend_from_slice(&(self.restarts.len() as u32).to_le_bytes());
        self.buf.extend_from_slice(&buckets.to_le_bytes());
        &self.buf
    }

    fn append_buckets(&mut self) -> u16 {
        if !self.hash_index || self.restarts.len() > MAX_INDEXED_RESTARTS {
            return 0;
        }
        let buckets = (self.hashes.len() as f64 / BUCKET_LOAD).ceil() as usize | 1;
        let Ok(count) = u16::try_from(buckets) else {
            return 0;
        };
        let start = self.buf.len();
        self.buf.resize(start + buckets, NO_ENTRY);
        for &(hash, restart) in &self.hashes {
            let bucket = &mut self.buf[start + hash as usize % buckets];
            *bucket = match *bucket {
                NO_ENTRY => restart,
                same if same == restart => restart,
                _ => COLLISION,
            };
        }
        count
    }

    pub(super) fn reset(&mut self) {
        self.buf.clear();
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
    /// End of the entries and start of the restarts.
    entries_end: usize,
    restarts: usize,
    buckets: usize,
}

/// One entry, decoded.
struct Entry {
    shared: usize,
    trailer: u64,
    /// The rest of the user key.
    rest: Range<usize>,
    value: Range<usize>,
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
        let tables = restarts * 4 + buckets + TAIL;
        if restarts == 0 || tables >= bytes.len() {
            return bad(
                bytes.len() - TAIL,
                "block with an impossible number of restarts",
            );
        }
        Ok(DataLayout {
            entries_end: bytes.len() - tables,
            restarts,
            buckets,
        })
    }

    #[inline]
    fn restart(self, bytes: &[u8], index: usize) -> usize {
        let at = self.entries_end + 4 * index;
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
    }

    /// Decodes the entry at `at`.
    #[inline]
    fn entry(self, bytes: &[u8], at: usize) -> Result<Entry, BadBlock> {
        let Some(entries) = bytes.get(at..self.entries_end) else {
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
        let value_start = rest_start + rest_len;
        let end = value_start + value_len;
        if end > self.entries_end {
            return bad(at, "entry beyond the block's end");
        }
        if ValueKind::from_u8(trailer as u8).is_none() {
            return bad(at, "entry of an unknown kind");
        }
        Ok(Entry {
            shared,
            trailer,
            rest: rest_start..value_start,
            value: value_start..end,
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
            let entry = self.entry(bytes, self.restart(bytes, middle))?;
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
        let mut restart = COLLISION;
        if self.buckets > 0 {
            let start = self.entries_end + 4 * self.restarts;
            restart = bytes[start + hash as u32 as usize % self.buckets];
        }
        let restart = match restart {
            NO_ENTRY => return Ok(None),
            COLLISION => self.search_restarts(bytes, target_key, target_trailer)?,
            index if usize::from(index) < self.restarts => usize::from(index),
            _ => return bad(self.entries_end, "bucket without a restart"),
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
        let mut at = self.restart(bytes, restart);
        let mut next_restart = restart;
        let mut next_restart_at = at;
        // Bytes that the previous user key, which is not after the target's, shares with it.
        let mut matched = 0;
        while at < self.entries_end {
            if at == next_restart_at {
                matched = 0;
                next_restart += 1;
                next_restart_at = match next_restart < self.restarts {
                    true => self.restart(bytes, next_restart),
                    false => usize::MAX,
                };
            }
            let entry = self.entry(bytes, at)?;
            at = entry.value.end;
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
                    let (trailer, value) = (entry.trailer, entry.value);
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
    /// Where the entry here begins.
    at: usize,
    pub(super) valid: bool,
}

impl BlockCursor {
    pub(super) fn seek_to_first(
        &mut self,
        bytes: &[u8],
        layout: DataLayout,
    ) -> Result<(), BadBlock> {
        self.key.clear();
        self.load(bytes, layout, layout.restart(bytes, 0))
    }

    pub(super) fn seek_to_last(
        &mut self,
        bytes: &[u8],
        layout: DataLayout,
    ) -> Result<(), BadBlock> {
        self.seek_to_restart(bytes, layout, layout.restarts - 1)?;
        while self.value.end < layout.entries_end {
            self.next(bytes, layout)?;
        }
        Ok(())
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
        self.load(bytes, layout, layout.restart(bytes, restart))
    }

    #[inline]
    pub(super) fn next(&mut self, bytes: &[u8], layout: DataLayout) -> Result<(), BadBlock> {
        let at = self.value.end;
        if at >= layout.entries_end {
            self.valid = false;
            return Ok(());
        }
        self.load(bytes, layout, at)
    }

    /// Walks to the entry before this one from the restart before it.
    pub(super) fn prev(&mut self, bytes: &[u8], layout: DataLayout) -> Result<(), BadBlock> {
        let end = self.at;
        let (mut low, mut high) = (0, layout.restarts);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match layout.restart(bytes, middle) < end {
                true => low = middle,
                false => high = middle,
            }
        }
        if layout.restart(bytes, low) >= end {
            self.valid = false;
            return Ok(());
        }
        self.seek_to_restart(bytes, layout, low)?;
        while self.value.end < end {
            self.next(bytes, layout)?;
        }
        Ok(())
    }

    /// Decodes the entry at `at`; `key` is that of the entry before, or empty at a restart.
    #[inline]
    fn load(&mut self, bytes: &[u8], layout: DataLayout, at: usize) -> Result<(), BadBlock> {
        self.valid = false;
        let entry = layout.entry(bytes, at)?;
        if entry.shared > self.key.len().saturating_sub(TRAILER_LEN) {
            return bad(at, "entry that shares more than there is");
        }
        self.key.truncate(entry.shared);
        self.key.extend_from_slice(&bytes[entry.rest]);
        self.key.extend_from_slice(&entry.trailer.to_le_bytes());
        self.value = entry.value;
        self.at = at;
        self.valid = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
