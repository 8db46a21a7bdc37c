//! The index of one log (L0): where each LSN's record lies, in memory.
//!
//! Entries of 24 bytes in sorted chunks of at most [`CHUNK_LEN`]. Appends in order push to the
//! last chunk; an LSN out of order is put in its place within one chunk; a trim drops chunks from
//! the front.
//!
//! Invariants: chunks are not empty, sorted by LSN and disjoint; an LSN has one entry.

use std::collections::VecDeque;

const CHUNK_LEN: usize = 256;

/// Where a record lies: file number, offset and framed length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) lsn: u64,
    pub(crate) file: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

const _: () = assert!(size_of::<Entry>() == 24);

#[derive(Debug, Default)]
pub(crate) struct Index {
    chunks: VecDeque<Vec<Entry>>,
    len: u64,
}

impl Index {
    pub(crate) fn first(&self) -> Option<u64> {
        Some(self.chunks.front()?.first()?.lsn)
    }

    pub(crate) fn last(&self) -> Option<u64> {
        Some(self.chunks.back()?.last()?.lsn)
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn get(&self, lsn: u64) -> Option<Entry> {
        let chunk = self.chunks.get(self.chunk_of(lsn))?;
        let at = chunk.binary_search_by_key(&lsn, |entry| entry.lsn).ok()?;
        Some(chunk[at])
    }

    /// Adds an entry and returns the one of the same LSN that it replaced.
    pub(crate) fn insert(&mut self, entry: Entry) -> Option<Entry> {
        if self.last().is_none_or(|last| last < entry.lsn) {
            match self.chunks.back_mut() {
                Some(chunk) if chunk.len() < CHUNK_LEN => chunk.push(entry),
                _ => self.chunks.push_back(vec![entry]),
            }
            self.len += 1;
            return None;
        }
        let index = self.chunk_of(entry.lsn);
        let chunk = &mut self.chunks[index];
        match chunk.binary_search_by_key(&entry.lsn, |entry| entry.lsn) {
            Ok(at) => Some(std::mem::replace(&mut chunk[at], entry)),
            Err(at) => {
                chunk.insert(at, entry);
                if chunk.len() > CHUNK_LEN {
                    let upper = chunk.split_off(CHUNK_LEN / 2);
                    self.chunks.insert(index + 1, upper);
                }
                self.len += 1;
                None
            }
        }
    }

    /// Removes every entry below `floor` and gives it to `removed`.
    pub(crate) fn trim_before(&mut self, floor: u64, mut removed: impl FnMut(Entry)) {
        while let Some(chunk) = self.chunks.front_mut() {
            let count = chunk.partition_point(|entry| entry.lsn < floor);
            chunk.drain(..count).for_each(&mut removed);
            self.len -= count as u64;
            if !chunk.is_empty() {
                return;
            }
            self.chunks.pop_front();
        }
    }

    /// Removes every entry at or above `from` and gives it to `removed`.
    pub(crate) fn truncate_from(&mut self, from: u64, mut removed: impl FnMut(Entry)) {
        while let Some(chunk) = self.chunks.back_mut() {
            let keep = chunk.partition_point(|entry| entry.lsn < from);
            self.len -= (chunk.len() - keep) as u64;
            chunk.drain(keep..).for_each(&mut removed);
            if !chunk.is_empty() {
                return;
            }
            self.chunks.pop_back();
        }
    }

    /// The entries from `lsn` on.
    pub(crate) fn iter_from(&self, lsn: u64) -> impl Iterator<Item = &Entry> {
        let first = self.chunk_of(lsn);
        self.chunks
            .range(first..)
            .flatten()
            .skip_while(move |entry| entry.lsn < lsn)
    }

    /// The last LSN of the run without gaps that begins at the first one.
    pub(crate) fn contiguous_upto(&self) -> Option<u64> {
        let mut upto = None;
        for chunk in &self.chunks {
            let (first, last) = (chunk[0].lsn, chunk[chunk.len() - 1].lsn);
            if upto.is_some_and(|upto| upto + 1 != first) {
                return upto;
            }
            if last - first == chunk.len() as u64 - 1 {
                upto = Some(last);
                continue;
            }
            let run = chunk
                .iter()
                .zip(first..)
                .take_while(|(entry, lsn)| entry.lsn == *lsn);
            return run.last().map(|(entry, _)| entry.lsn);
        }
        upto
    }

    /// The chunk that holds `lsn` or the first one behind it; `chunks.len()` if none.
    fn chunk_of(&self, lsn: u64) -> usize {
        self.chunks
            .partition_point(|chunk| chunk.last().is_some_and(|last| last.lsn < lsn))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn it_agrees_with_a_map_under_random_operations() {
        let seed = std::env::var("LAVA_SEED").map_or(1, |seed| seed.parse().unwrap());
        println!("LAVA_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut index, mut model) = (Index::default(), BTreeMap::new());
        for step in 0..30_000u32 {
            let lsn = rng.random_range(0..3000);
            match rng.random_range(0..1000) {
                0 => {
                    let mut removed = 0;
                    index.trim_before(lsn / 3, |_| removed += 1);
                    let kept = model.split_off(&(lsn / 3));
                    assert_eq!(removed, model.len());
                    model = kept;
                }
                1 => {
                    let mut removed = Vec::new();
                    index.truncate_from(lsn, |entry| removed.push(entry.lsn));
                    removed.sort_unstable();
                    let gone = model.split_off(&lsn);
                    assert_eq!(removed, gone.into_keys().collect::<Vec<_>>());
                }
                2..500 => {
                    let entry = Entry {
                        lsn,
                        file: 1,
                        offset: step,
                        len: 4,
                    };
                    assert_eq!(index.insert(entry), model.insert(lsn, entry));
                }
                _ => assert_eq!(index.get(lsn), model.get(&lsn).copied()),
            }
            if step % 500 == 0 {
                assert!(index.iter_from(lsn).eq(model.range(lsn..).map(|(_, e)| e)));
                let run = model
                    .keys()
                    .zip(model.keys().next().copied().unwrap_or(0)..);
                let run = run
                    .take_while(|(key, lsn)| *key == lsn)
                    .last()
                    .map(|(k, _)| *k);
                assert_eq!(index.contiguous_upto(), run);
                assert_eq!(index.len(), model.len() as u64);
                assert_eq!(index.last(), model.keys().last().copied());
            }
        }
    }
}
