//! Reading separated values: from an entry's internal key and reference to the value.
//!
//! A single value is one read of exactly its record, because the index of its blob file is in memory. Many
//! values are one submission; records that lie next to each other become one read, as they do
//! where a file was written in the order in which it is scanned.

use std::collections::BTreeSet;
use std::sync::Arc;

use lavafs::ReadRequest;

use crate::blob::reference::BlobReference;
use crate::blob::{BlobFileReader, RecordLocation};
use crate::cache::{BlockCache, BlockKind, CacheKey, ValueRef};
use crate::compaction::no_such_file;
use crate::db::engine::Engine;
use crate::error::{Error, Result};
use crate::file_names::FileName;
use crate::key::user_key;
use crate::stats::perf::{self, ReadFor};
use crate::version::{BlobFile, BlobMeta, BlobOpener, OpenBlob, Version};

/// Device reads of one submission that are in flight at a time.
const QUEUE_DEPTH: usize = 32;

/// Bytes of one read that takes several records.
const READ_MAX: u64 = 1 << 20;

/// Bytes between two records that are read in vain rather than starting another read.
const GAP_MAX: u64 = 4096;

/// Values of one batch of a scan from which their places say something.
const SCAN_MIN: usize = 16;

/// Files of one batch of a scan from which its values are scattered.
const SCATTERED_FILES: usize = 4;

/// An entry whose value is in a blob file.
#[derive(Clone, Debug)]
pub(crate) struct SeparatedValue {
    /// The internal key: that of the record too.
    pub(crate) key: Vec<u8>,
    pub(crate) reference: BlobReference,
}

/// A value to read, and where it is.
struct Located {
    /// Its place among those that the caller wants.
    at: usize,
    reader: Arc<BlobFileReader>,
    location: RecordLocation,
}

impl Located {
    fn end(&self) -> u64 {
        self.location.offset + self.location.len
    }

    /// True where `next` can be read together with this one, which begins a read at `start`.
    fn joins(&self, next: &Located) -> bool {
        Arc::ptr_eq(&self.reader, &next.reader)
            && next.location.offset >= self.end()
            && next.location.offset - self.end() <= GAP_MAX
    }
}

impl BlobOpener for Engine {
    fn open_blob(&self, meta: &BlobMeta) -> Result<Arc<BlobFileReader>> {
        let path = self.dir.join(FileName::Blob(meta.number).to_string());
        let file = self.fs.open(&path)?;
        let size = file.size().lower();
        if size != meta.file_size {
            let detail = format!("{size} bytes, but the manifest says {}", meta.file_size);
            return Err(Error::corrupt(path.display().to_string(), size, detail));
        }
        let reader = BlobFileReader::open_charged(file, meta.number, &self.cache, !self.read_only)?;
        self.tickers.blob_index_loads.add(1);
        Ok(reader)
    }

    fn closed_by(&self) -> Option<&BlockCache> {
        (!self.read_only).then_some(&*self.cache)
    }
}

impl Engine {
    /// The value of one entry of `version`, from the cache or with one read, after which it is kept in the cache if
    /// `fill_cache` is set.
    pub(crate) fn separated_value(
        &self,
        version: &Version,
        wanted: &SeparatedValue,
        fill_cache: bool,
    ) -> Result<ValueRef> {
        let cache_key = CacheKey::of_value(self.value_space, &wanted.key);
        if let Some(value) = self.cached_value(cache_key, wanted) {
            return Ok(value);
        }
        let file = file_of(version, wanted)?;
        let reader = self.looked_up(file)?;
        let location = reader.locate(&wanted.key);
        let location = location.ok_or_else(|| missing(wanted, file))?;
        let record = reader.read_record(location)?;
        let found = reader.decode_record(&wanted.key, location, record)?;
        self.tickers.blob_reads.add(1);
        let value = checked(wanted, file, found)?;
        if !fill_cache {
            return Ok(value.into());
        }
        let cost = location.len as usize;
        Ok(self.cache.insert_value(cache_key, &wanted.key, value, cost))
    }

    /// A blob file that a value is read from, open.
    fn looked_up(&self, file: &Arc<BlobFile>) -> Result<OpenBlob> {
        let open = file.open_reader();
        self.cache.count(BlockKind::BlobIndex, open.is_some());
        match open {
            Some(open) => {
                perf::hit(BlockKind::BlobIndex);
                Ok(open)
            }
            None => file.reader(self),
        }
    }

    /// A value that is in the cache and what its reference says.
    fn cached_value(&self, cache_key: CacheKey, wanted: &SeparatedValue) -> Option<ValueRef> {
        let value = self.cache.get_value(cache_key, &wanted.key)?;
        if value.len() as u64 != wanted.reference.value_len {
            return None;
        }
        perf::hit(BlockKind::Value);
        Some(value)
    }

    /// The values of entries of `version`, in their order. Those that had to be read are kept in the cache if
    /// `fill_cache` is set. Adds to `requests` of each entry those that were made of the filesystem for it; one for
    /// several values counts for the first of them.
    pub(crate) fn separated_values(
        &self,
        version: &Version,
        wanted: &[SeparatedValue],
        fill_cache: bool,
        requests: &mut [u64],
    ) -> Result<Vec<Vec<u8>>> {
        assert_eq!(requests.len(), wanted.len());
        let mut values = vec![Vec::new(); wanted.len()];
        let mut located = Vec::with_capacity(wanted.len());
        for (at, one) in wanted.iter().enumerate() {
            let cache_key = CacheKey::of_value(self.value_space, &one.key);
            if let Some(value) = self.cached_value(cache_key, one) {
                values[at] = value.to_vec();
                continue;
            }
            let file = file_of(version, one)?;
            let so_far = perf::reads_so_far();
            let reader = Arc::clone(&*self.looked_up(file)?);
            requests[at] += perf::reads_so_far().wrapping_sub(so_far);
            let location = reader.locate(&one.key);
            let location = location.ok_or_else(|| missing(one, file))?;
            located.push(Located {
                at,
                reader,
                location,
            });
        }
        located.sort_by_key(|one| (one.reader.number(), one.location.offset));
        let groups: Vec<&[Located]> = join(&located);
        let mut buffers = self.read_groups(&groups)?;
        for (group, buffer) in groups.iter().zip(&mut buffers) {
            let first = group.iter().map(|one| one.at).min();
            requests[first.expect("groups are not empty")] += 1;
            for one in *group {
                let record = match group.len() {
                    1 => std::mem::take(buffer),
                    _ => {
                        let start = (one.location.offset - group[0].location.offset) as usize;
                        let end = (start + one.location.len as usize).min(buffer.len());
                        buffer[start.min(end)..end].to_vec()
                    }
                };
                let entry = &wanted[one.at];
                let found = one.reader.decode_record(&entry.key, one.location, record)?;
                let value = checked(entry, file_of(version, entry)?, found)?;
                if fill_cache {
                    let cost = one.location.len as usize;
                    let cache_key = CacheKey::of_value(self.value_space, &entry.key);
                    let copy = value.clone();
                    self.cache.insert_value(cache_key, &entry.key, copy, cost);
                }
                values[one.at] = value;
            }
        }
        self.tickers.blob_reads.add(groups.len() as u64);
        Ok(values)
    }

    /// The values of neighbouring entries of `version`, in their order. Where they lie in many files, compactions
    /// are asked to bring them together.
    pub(crate) fn scanned_values(
        &self,
        version: &Version,
        wanted: &[SeparatedValue],
    ) -> Result<Vec<Vec<u8>>> {
        if wanted.len() >= SCAN_MIN {
            let files = wanted.iter().filter_map(|one| {
                let number = one.reference.file;
                version.blobs.resolve_number(number, user_key(&one.key))
            });
            let files: BTreeSet<_> = files.collect();
            if files.len() > SCATTERED_FILES {
                let new = files
                    .into_iter()
                    .filter(|number| version.blobs.files()[number].file.mark_scattered());
                self.newly_scattered.lock().extend(new);
            }
        }
        self.separated_values(version, wanted, false, &mut vec![0; wanted.len()])
    }

    /// Reads each group's bytes, all in one submission.
    fn read_groups(&self, groups: &[&[Located]]) -> Result<Vec<Vec<u8>>> {
        let length = |group: &&[Located]| {
            let last = group.last().expect("groups are not empty");
            (last.end() - group[0].location.offset) as usize
        };
        let mut buffers: Vec<Vec<u8>> = groups.iter().map(|g| vec![0; length(g)]).collect();
        let requests = groups
            .iter()
            .zip(&mut buffers)
            .map(|(group, buf)| ReadRequest {
                file: group[0].reader.file(),
                offset: group[0].location.offset,
                buf,
                read: 0,
            });
        let mut requests: Vec<ReadRequest<'_>> = requests.collect();
        self.fs.read_batch(&mut requests, QUEUE_DEPTH)?;
        let lengths: Vec<usize> = requests.iter().map(|request| request.read).collect();
        for len in &lengths {
            perf::read(ReadFor::Block(BlockKind::Value), *len);
        }
        for (buffer, len) in buffers.iter_mut().zip(lengths) {
            buffer.truncate(len);
        }
        Ok(buffers)
    }
}

/// Cuts values in the order of their places into reads.
fn join(located: &[Located]) -> Vec<&[Located]> {
    let mut groups = Vec::new();
    let mut start = 0;
    for at in 1..=located.len() {
        let goes_on = located.get(at).is_some_and(|next| {
            located[at - 1].joins(next) && next.end() - located[start].location.offset <= READ_MAX
        });
        if !goes_on && start < at {
            groups.push(&located[start..at]);
            start = at;
        }
    }
    groups
}

fn file_of<'a>(version: &'a Version, wanted: &SeparatedValue) -> Result<&'a Arc<BlobFile>> {
    let number = wanted.reference.file;
    let file = version.blobs.resolve(number, user_key(&wanted.key));
    file.ok_or_else(|| no_such_file(number))
}

fn missing(wanted: &SeparatedValue, file: &BlobFile) -> Error {
    let name = FileName::Blob(file.meta.number).to_string();
    let key = wanted.key.escape_ascii();
    Error::corrupt(name, 0_u64, format!("no record for key {key}"))
}

fn checked(wanted: &SeparatedValue, file: &BlobFile, found: Option<Vec<u8>>) -> Result<Vec<u8>> {
    let value = found.ok_or_else(|| missing(wanted, file))?;
    if value.len() as u64 != wanted.reference.value_len {
        let name = FileName::Blob(file.meta.number).to_string();
        let (is, says) = (value.len(), wanted.reference.value_len);
        let detail = format!("a value has {is} bytes, but its reference says {says}");
        return Err(Error::corrupt(name, 0_u64, detail));
    }
    Ok(value)
}
