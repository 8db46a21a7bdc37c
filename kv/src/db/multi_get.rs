//! MultiGet: point lookups of many keys as of one moment, with their device reads in batches.
//!
//! It goes in rounds. In each round every key that is not settled moves on to the next table, from
//! new to old, that its filter does not rule out; all blocks that these tables need and that are
//! not in the cache are read in one submission, or a few MiB at a time where they are many; then each key looks into
//! its block. A key that is there is settled in its first round but for false positives of filters, so most calls
//! submit once, whatever the number of levels. Values in blob files are read after the rounds, in one
//! submission more.
//!
//! In the statistics each key is a Get of its own, which took the requests of the filesystem that were made for
//! it. One that several keys needed counts for the first of them, as if they had been looked up one after
//! another: the sum over the keys is what the call made.

use std::sync::Arc;
use std::vec::IntoIter;

use lavafs::{FileRef, ReadRequest};

use crate::cache::BlockRef;
use crate::db::engine::{Engine, View};
use crate::db::read::separated;
use crate::error::Result;
use crate::key::{LookupKey, ValueKind};
use crate::options::ReadOptions;
use crate::sstable::{BlockPlace, Table, filter_hash};
use crate::stats::perf;
use crate::version::Run;
use crate::write::batch::CfId;

/// Device reads of one submission that are in flight at a time.
const QUEUE_DEPTH: usize = 32;

/// Bytes of blocks, as they are stored, that are read in one submission and held at a time, unless one alone has more:
/// bounds the memory of a call with very many keys.
const BLOCK_BYTES_MAX: u64 = 4 << 20;

/// A key whose value is not known yet.
struct Pending {
    /// Its place among the caller's keys.
    at: usize,
    lookup: LookupKey,
    hash: u64,
    /// The first run, counted from the newest, that was not asked yet.
    next_run: usize,
    /// Requests of the filesystem that were made for it.
    requests: u64,
}

/// A key of a round, and the block where its table would have it.
struct Candidate<'a> {
    key: Pending,
    table: &'a Arc<Table>,
    place: BlockPlace,
    block: Option<BlockRef>,
}

impl Candidate<'_> {
    fn order(&self) -> (u64, u64) {
        (self.table.file_number(), self.place.start)
    }
}

/// How many of the candidates, which are in the order of their blocks, are looked for at once.
fn part_len(candidates: &[Candidate<'_>]) -> usize {
    let (mut len, mut bytes) = (0, 0);
    for group in candidates.chunk_by(|a, b| a.order() == b.order()) {
        bytes += group[0].place.end - group[0].place.start;
        if len > 0 && bytes > BLOCK_BYTES_MAX {
            break;
        }
        len += group.len();
    }
    len
}

impl Engine {
    /// The values of `keys`, all as of one moment, in their order.
    pub(crate) fn multi_get(
        &self,
        cf: CfId,
        keys: &[&[u8]],
        options: &ReadOptions,
    ) -> Result<Vec<Option<Vec<u8>>>> {
        let (view, sequence) = self.read_view(cf, options)?;
        let mut results = vec![None; keys.len()];
        let mut pending = Vec::with_capacity(keys.len());
        for (at, key) in keys.iter().enumerate() {
            let lookup = LookupKey::new(key, sequence);
            match self.get_in_memtables(&view, &lookup) {
                Some(found) => results[at] = found.map(|value| value.to_vec()),
                None => pending.push(Pending {
                    at,
                    hash: filter_hash(key),
                    lookup,
                    next_run: 0,
                    requests: 0,
                }),
            }
        }
        self.read_pending(&view, pending, options, &mut results)?;
        for found in &results {
            self.count_read(found.as_deref());
        }
        Ok(results)
    }

    fn read_pending(
        &self,
        view: &View,
        mut pending: Vec<Pending>,
        options: &ReadOptions,
        results: &mut [Option<Vec<u8>>],
    ) -> Result<()> {
        let levels = &view.version.levels;
        // The keys with values in blob files, their entries, and the requests made for them.
        let (mut separated_at, mut wanted, mut requests) = (Vec::new(), Vec::new(), Vec::new());
        let mut settled = Vec::with_capacity(pending.len());
        let runs: Vec<&Run> = levels.iter().flat_map(|level| &level.runs).collect();
        while !pending.is_empty() {
            let mut candidates = Vec::with_capacity(pending.len());
            for key in pending.drain(..) {
                candidates.extend(self.next_candidate(&runs, key, &mut settled)?);
            }
            candidates.sort_by_key(Candidate::order);
            let mut candidates = candidates.into_iter();
            while let Some(part) = self.load_part(&mut candidates)? {
                for Candidate {
                    key,
                    table,
                    place,
                    block,
                } in part
                {
                    let block = block.expect("every candidate's block was loaded");
                    match table.find_in(block, &place, &key.lookup, key.hash)? {
                        Some(hit) if hit.kind == ValueKind::BlobReference => {
                            wanted.push(separated(key.lookup.user_key(), &hit)?);
                            separated_at.push(key.at);
                            requests.push(key.requests);
                        }
                        Some(hit) => {
                            results[key.at] = (!hit.kind.is_delete()).then(|| hit.value.to_vec());
                            settled.push(key.requests);
                        }
                        None => pending.push(key),
                    }
                }
            }
        }
        if !wanted.is_empty() {
            let fill_cache = options.fill_cache;
            let values =
                self.separated_values(&view.version, &wanted, fill_cache, &mut requests)?;
            for (at, value) in separated_at.into_iter().zip(values) {
                results[at] = Some(value);
            }
            settled.extend(requests);
        }
        for requests in settled {
            self.count_requests_of_get(requests);
        }
        Ok(())
    }

    /// The next table that may hold `key`, if there is one, and the block; else the key is settled, and the
    /// requests made for it are added to `settled`.
    fn next_candidate<'a>(
        &self,
        runs: &[&'a Run],
        mut key: Pending,
        settled: &mut Vec<u64>,
    ) -> Result<Option<Candidate<'a>>> {
        let so_far = perf::reads_so_far();
        let made = || perf::reads_so_far().wrapping_sub(so_far);
        while let Some(run) = runs.get(key.next_run) {
            key.next_run += 1;
            let Some(file) = run.file_for(key.lookup.user_key()) else {
                continue;
            };
            let table = file.table(self)?;
            if let Some(place) = table.locate(&key.lookup, key.hash)? {
                key.requests += made();
                return Ok(Some(Candidate {
                    key,
                    table,
                    place,
                    block: None,
                }));
            }
        }
        settled.push(key.requests + made());
        Ok(None)
    }

    /// The next candidates with their blocks, from the cache or in one submission; none after the last. Several keys,
    /// one after the other, may want one block.
    fn load_part<'a>(
        &self,
        candidates: &mut IntoIter<Candidate<'a>>,
    ) -> Result<Option<Vec<Candidate<'a>>>> {
        let len = part_len(candidates.as_slice());
        let mut part: Vec<Candidate<'a>> = candidates.take(len).collect();
        let mut groups: Vec<&mut [Candidate<'_>]> =
            part.chunk_by_mut(|a, b| a.order() == b.order()).collect();
        for group in &mut groups {
            let block = group[0].table.cached_block(&group[0].place);
            group
                .iter_mut()
                .for_each(|one| one.block.clone_from(&block));
        }
        groups.retain(|group| group[0].block.is_none());
        if !groups.is_empty() {
            self.read_blocks(&mut groups)?;
        }
        Ok((len > 0).then_some(part))
    }

    fn read_blocks(&self, groups: &mut [&mut [Candidate<'_>]]) -> Result<()> {
        let mut stored: Vec<(FileRef, Vec<u8>)> = groups
            .iter()
            .map(|group| {
                let place = &group[0].place;
                let len = (place.end - place.start) as usize;
                (group[0].table.file().clone(), vec![0; len])
            })
            .collect();
        let mut requests: Vec<ReadRequest<'_>> = stored
            .iter_mut()
            .zip(groups.iter())
            .map(|((file, buf), group)| ReadRequest {
                file,
                offset: group[0].place.start,
                buf,
                read: 0,
            })
            .collect();
        self.fs.read_batch(&mut requests, QUEUE_DEPTH)?;
        let lengths: Vec<usize> = requests.iter().map(|request| request.read).collect();
        drop(requests);
        for ((group, (_, bytes)), len) in groups.iter_mut().zip(stored).zip(lengths) {
            let block = group[0].table.admit_block(&bytes[..len], &group[0].place)?;
            let first = group.iter_mut().min_by_key(|one| one.key.at);
            first.expect("groups are not empty").key.requests += 1;
            for one in group.iter_mut() {
                one.block = Some(block.clone());
            }
        }
        Ok(())
    }
}
