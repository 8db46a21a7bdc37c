//! The index block: for each data block a separator and where it ends in the file.
//!
//! ```text
//! index block (before compression), n data blocks
//!   off  len  field
//!     0    4  n          at least 1
//!     4    4  prefix     bytes that all separators begin with
//!     8    4  flags      bit 0: separators carry trailers
//!    12    4  reserved   zero
//!    16   8n  heads      first eight bytes after the prefix, as a big-endian number, zero-padded
//!  +8n    8n  ends       offset after each data block, its trailer included
//! +16n    4n  key ends   end of each separator's rest in the key area
//! +20n     p  prefix
//!   +p        key area   each separator after the prefix, its trailer behind it with flag bit 0
//! ```
//!
//! Separator i is a user key at or after every key of block i and before every key of block
//! i + 1, as short as possible. Where versions of one user key span two blocks that is not
//! enough, and all separators of the table carry a trailer, 0 (after all versions) for most.
//!
//! A large index is cut into *partitions*, each an index of its data blocks, with an index of the
//! partitions in the place of the index block. Both kinds have eight bytes before them, where the first
//! of their blocks begins. A partition's last separator is that of the partition.
//!
//! Keys and places are apart, and a search runs over the heads alone until they tie: 14 steps in
//! 128 KiB for a table of 64 MiB. Data blocks lie one after another from offset 0, so their ends
//! say where they begin.

use std::cmp::Ordering;
use std::ops::Range;

use super::block::{BadBlock, common_prefix};
use crate::key::{TRAILER_LEN, compare_user, key_head, trailer, user_key};

const HEADER: usize = 16;
const FLAG_TRAILERS: u32 = 1;

/// Collects separators while a table is built.
#[derive(Default)]
pub(super) struct IndexBuilder {
    /// Internal keys one after another.
    keys: Vec<u8>,
    key_ends: Vec<usize>,
    ends: Vec<u64>,
    trailers: bool,
}

impl IndexBuilder {
    /// Adds a data block that ends at `end` in the file. `last` is its last internal key, `next`
    /// the first of the next block if there is one.
    #[cfg(test)]
    pub(super) fn add(&mut self, last: &[u8], next: Option<&[u8]>, end: u64) {
        self.add_separator(last, next);
        self.add_end(end);
    }

    /// Adds the separator of a data block: `last` is its last internal key, `next` the first of the next
    /// block if there is one.
    pub(super) fn add_separator(&mut self, last: &[u8], next: Option<&[u8]>) {
        let (last_key, next_key) = (user_key(last), next.map(user_key));
        if next_key == Some(last_key) {
            self.trailers = true;
            self.keys.extend_from_slice(last);
        } else {
            match next_key {
                Some(next_key) => append_separator(&mut self.keys, last_key, next_key),
                None => self.keys.extend_from_slice(last_key),
            }
            self.keys.extend_from_slice(&[0; TRAILER_LEN]);
        }
        self.key_ends.push(self.keys.len());
    }

    /// Adds the end of a data block, once that is written; in the order of the separators.
    pub(super) fn add_end(&mut self, end: u64) {
        self.ends.push(end);
    }

    /// Bytes of the block if it were finished now, at most.
    pub(super) fn size(&self) -> usize {
        HEADER + self.keys.len() + 20 * self.key_ends.len()
    }

    fn key(&self, index: usize) -> &[u8] {
        let start = if index == 0 {
            0
        } else {
            self.key_ends[index - 1]
        };
        &self.keys[start..self.key_ends[index]]
    }

    /// The whole index.
    pub(super) fn finish(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.size());
        self.encode(0..self.ends.len(), &mut out);
        out
    }

    /// Data blocks by partition, each partition of about `partition` bytes.
    pub(super) fn partitions(&self, partition: usize) -> Vec<Range<usize>> {
        let mut partitions = Vec::new();
        let (mut begin, mut size) = (0, 0);
        for index in 0..self.ends.len() {
            size += self.key(index).len() + 20;
            if size >= partition || index + 1 == self.ends.len() {
                partitions.push(begin..index + 1);
                (begin, size) = (index + 1, 0);
            }
        }
        partitions
    }

    /// The partition of these data blocks.
    pub(super) fn partition(&self, blocks: Range<usize>) -> Vec<u8> {
        let begin = match blocks.start {
            0 => 0,
            first => self.ends[first - 1],
        };
        let mut out = begin.to_le_bytes().to_vec();
        self.encode(blocks, &mut out);
        out
    }

    /// The index of partitions, the first of which begins at `begin`; each with its end.
    pub(super) fn of_partitions(&self, begin: u64, partitions: &[(Range<usize>, u64)]) -> Vec<u8> {
        let mut top = IndexBuilder {
            trailers: self.trailers,
            ..IndexBuilder::default()
        };
        for (blocks, end) in partitions {
            top.keys.extend_from_slice(self.key(blocks.end - 1));
            top.key_ends.push(top.keys.len());
            top.ends.push(*end);
        }
        let mut out = begin.to_le_bytes().to_vec();
        top.encode(0..partitions.len(), &mut out);
        out
    }

    /// Appends the index of these data blocks.
    fn encode(&self, blocks: Range<usize>, out: &mut Vec<u8>) {
        let count = blocks.len();
        assert!(count > 0, "a table has blocks");
        assert_eq!(
            self.ends.len(),
            self.key_ends.len(),
            "each block has a separator"
        );
        let first = user_key(self.key(blocks.start));
        // The keys ascend, so what the first and last share all share.
        let prefix = common_prefix(first, user_key(self.key(blocks.end - 1)));
        let header = [
            count as u32,
            prefix as u32,
            u32::from(self.trailers) * FLAG_TRAILERS,
            0,
        ];
        out.extend(header.iter().flat_map(|field| field.to_le_bytes()));
        for index in blocks.clone() {
            let head = key_head(&user_key(self.key(index))[prefix..]);
            out.extend_from_slice(&head.to_le_bytes());
        }
        out.extend(
            self.ends[blocks.clone()]
                .iter()
                .flat_map(|end| end.to_le_bytes()),
        );
        let mut area = Vec::new();
        for index in blocks {
            let key = if self.trailers {
                self.key(index)
            } else {
                user_key(self.key(index))
            };
            area.extend_from_slice(&key[prefix..]);
            let end = u32::try_from(area.len()).expect("separators are below 4 GiB");
            out.extend_from_slice(&end.to_le_bytes());
        }
        out.extend_from_slice(&first[..prefix]);
        out.extend_from_slice(&area);
    }
}

/// Appends the shortest key that is not before `last` but before `next`; `last` is before `next`.
fn append_separator(out: &mut Vec<u8>, last: &[u8], next: &[u8]) {
    let common = common_prefix(last, next);
    if common >= last.len() {
        // `last` is a prefix of `next`: nothing is shorter.
        out.extend_from_slice(last);
        return;
    }
    let (low, high) = (last[common], next[common]);
    out.extend_from_slice(&last[..common]);
    if low + 1 < high || common + 1 < next.len() {
        // One more than `low` is after `last` and, being below `high` or a prefix of `next`,
        // before `next`.
        out.push(low + 1);
        return;
    }
    // `next` ends here, one above `low`: raise the first byte of the rest that can be raised.
    out.push(low);
    for &byte in &last[common + 1..] {
        if byte < 0xff {
            out.push(byte + 1);
            return;
        }
        out.push(byte);
    }
}

/// Where the parts of an index block's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct IndexLayout {
    count: usize,
    prefix: usize,
    trailers: bool,
    /// Start of the key area.
    area: usize,
    /// Where the first block begins in the file.
    begin: u64,
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

impl IndexLayout {
    /// Checks an index block whose data blocks must end at `data_end`, so that no later call can
    /// leave the bytes.
    pub(super) fn parse(bytes: &[u8], data_end: u64) -> Result<Self, BadBlock> {
        let layout = Self::parse_from(bytes, 0, data_end)?;
        match layout.end(bytes, layout.count - 1) == data_end {
            true => Ok(layout),
            false => Err(BadBlock {
                at: 0,
                detail: "index that does not end where the data does",
            }),
        }
    }

    /// Like [`IndexLayout::parse`], of blocks that begin at `begin` and end at or before `limit`.
    pub(super) fn parse_from(bytes: &[u8], begin: u64, limit: u64) -> Result<Self, BadBlock> {
        let bad = |at, detail| Err(BadBlock { at, detail });
        if bytes.len() < HEADER {
            return bad(0, "index shorter than its header");
        }
        let count = u32_at(bytes, 0) as usize;
        let prefix = u32_at(bytes, 4) as usize;
        let flags = u32_at(bytes, 8);
        let area = HEADER + 20 * count + prefix;
        if count == 0 || area > bytes.len() {
            return bad(0, "index with an impossible number of blocks");
        }
        if flags & !FLAG_TRAILERS != 0 || u32_at(bytes, 12) != 0 {
            return bad(8, "index with unknown flags");
        }
        let layout = IndexLayout {
            count,
            prefix,
            trailers: flags & FLAG_TRAILERS != 0,
            area,
            begin,
        };
        let (mut end, mut key_end) = (begin, 0);
        let least = if layout.trailers { TRAILER_LEN } else { 0 };
        for index in 0..count {
            let next_end = layout.end(bytes, index);
            let next_key_end = layout.key_end(bytes, index);
            if next_end <= end {
                return bad(
                    HEADER + 8 * (count + index),
                    "data blocks that do not ascend",
                );
            }
            if next_key_end < key_end + least || next_key_end > bytes.len() - area {
                return bad(
                    HEADER + 16 * count + 4 * index,
                    "separators that do not ascend",
                );
            }
            (end, key_end) = (next_end, next_key_end);
        }
        if end > limit || key_end != bytes.len() - area {
            return bad(0, "index that does not end where the data does");
        }
        Ok(layout)
    }

    /// Number of data blocks.
    pub(super) fn count(self) -> usize {
        self.count
    }

    fn end(self, bytes: &[u8], index: usize) -> u64 {
        u64_at(bytes, HEADER + 8 * (self.count + index))
    }

    fn key_end(self, bytes: &[u8], index: usize) -> usize {
        u32_at(bytes, HEADER + 16 * self.count + 4 * index) as usize
    }

    /// Where data block `index` lies in the file, its trailer included.
    #[inline]
    pub(super) fn block(self, bytes: &[u8], index: usize) -> Range<u64> {
        let start = if index == 0 {
            self.begin
        } else {
            self.end(bytes, index - 1)
        };
        start..self.end(bytes, index)
    }

    /// Orders separator `index`, whose first `prefix` bytes are known to be the target's too.
    fn compare(self, bytes: &[u8], index: usize, target_rest: &[u8], target: u64) -> Ordering {
        let start = if index == 0 {
            0
        } else {
            self.key_end(bytes, index - 1)
        };
        let key = &bytes[self.area + start..self.area + self.key_end(bytes, index)];
        if self.trailers {
            compare_user(user_key(key), target_rest).then_with(|| target.cmp(&trailer(key)))
        } else {
            // Without a trailer a separator is after every version of its key.
            compare_user(key, target_rest).then(Ordering::Greater)
        }
    }

    /// The one data block that can hold the first key at or after the target, an internal key;
    /// `count` where all keys are before it.
    #[inline]
    pub(super) fn find(self, bytes: &[u8], target: &[u8]) -> usize {
        let (key, target_trailer) = (user_key(target), trailer(target));
        let prefix = &bytes[self.area - self.prefix..self.area];
        let common = self.prefix.min(key.len());
        match prefix[..common].cmp(&key[..common]) {
            Ordering::Less => return self.count,
            Ordering::Greater => return 0,
            // The target is shorter than the prefix: before all separators.
            Ordering::Equal if common < self.prefix => return 0,
            Ordering::Equal => {}
        }
        let rest = &key[self.prefix..];
        let head = key_head(rest);
        let heads = &bytes[HEADER..HEADER + 8 * self.count];
        let heads = heads.as_chunks::<8>().0;
        let mut low = heads.partition_point(|bytes| u64::from_le_bytes(*bytes) < head);
        if heads
            .get(low)
            .is_none_or(|bytes| u64::from_le_bytes(*bytes) != head)
        {
            return low;
        }
        let ties = heads[low..].partition_point(|bytes| u64::from_le_bytes(*bytes) == head);
        let mut high = low + ties;
        while low < high {
            let middle = low + (high - low) / 2;
            match self.compare(bytes, middle, rest, target_trailer) {
                Ordering::Less => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{InternalKey, ValueKind, compare_internal};
    use proptest::prelude::*;

    fn user_keys() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(2), Just(254), Just(255)];
        prop::collection::vec(byte, 0..14)
    }

    proptest! {
        #[test]
        fn separators_separate(a in user_keys(), b in user_keys()) {
            let (low, high) = if a < b { (a, b) } else { (b, a) };
            prop_assume!(low != high);
            let mut separator = Vec::new();
            append_separator(&mut separator, &low, &high);
            prop_assert!(low <= separator && separator < high, "{separator:?}");
            prop_assert!(separator.len() <= low.len());
        }

        #[test]
        fn the_found_block_is_the_one_that_holds_the_key(
            prefix in user_keys(),
            keys in prop::collection::btree_set((user_keys(), 0u64..4), 2..60),
            probes in prop::collection::vec((user_keys(), 0u64..5, any::<bool>()), 20),
            per_block in 1usize..4,
        ) {
            let key = |user: &[u8], seq| {
                InternalKey::new(&[&prefix[..], user].concat(), seq, ValueKind::Value)
            };
            let mut keys: Vec<_> = keys.iter().map(|(user, seq)| key(user, *seq)).collect();
            keys.sort();
            let blocks: Vec<_> = keys.chunks(per_block).collect();
            let mut builder = IndexBuilder::default();
            for (index, block) in blocks.iter().enumerate() {
                let next = blocks.get(index + 1).map(|next| next[0].as_bytes());
                let last = block.last().expect("chunks are not empty").as_bytes();
                builder.add(last, next, 10 * (index as u64 + 1));
            }
            let bytes = builder.finish();
            prop_assert!(bytes.len() <= builder.size());
            let layout = IndexLayout::parse(&bytes, 10 * blocks.len() as u64).expect("as built");
            prop_assert!(IndexLayout::parse(&bytes, 10 * blocks.len() as u64 + 1).is_err());
            for cut in 0..bytes.len() {
                let end = 10 * blocks.len() as u64;
                prop_assert!(IndexLayout::parse(&bytes[..cut], end).is_err());
            }
            for (user, seq, with_prefix) in probes {
                let target = if with_prefix {
                    key(&user, seq)
                } else {
                    InternalKey::new(&user, seq, ValueKind::Value)
                };
                let found = layout.find(&bytes, target.as_bytes());
                let wanted = blocks.iter().position(|block| {
                    let last = block.last().expect("chunks are not empty");
                    compare_internal(last.as_bytes(), target.as_bytes()).is_ge()
                });
                // A separator may lie beyond its block's last key, never beyond the next's first.
                let wanted = wanted.unwrap_or(blocks.len());
                let first_of_wanted = blocks.get(wanted).map(|block| &block[0]);
                let between = first_of_wanted.is_some_and(|first| target <= *first)
                    || wanted == blocks.len();
                prop_assert!(found == wanted || between && found + 1 == wanted);
                // A version of the very key is in the found block or nowhere.
                let version = keys.iter().position(|key| {
                    *key >= target && key.user_key() == target.user_key()
                });
                prop_assert!(version.is_none_or(|at| at / per_block == found));
            }
        }
    }
}
