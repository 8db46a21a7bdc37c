//! Scanning a log: records and typed gaps, read in batches.

use std::collections::VecDeque;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;

use lavafs::ReadRequest;

use crate::data::{DataFile, unframe};
use crate::engine::Inner;
use crate::error::Result;
use crate::index::Entry;
use crate::state::LogState;

const BATCH_RECORDS_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Reads of a batch in flight at a time.
const READ_DEPTH: usize = 32;

/// What a scan yields.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScanItem {
    /// A record.
    Entry {
        /// Its LSN.
        lsn: u64,
        /// Its data.
        data: Vec<u8>,
    },
    /// LSNs without a record.
    Gap {
        /// Why there is none.
        kind: GapKind,
        /// Which LSNs.
        lsns: RangeInclusive<u64>,
    },
}

/// Why a record is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GapKind {
    /// Below the floor.
    Trimmed,
    /// Never appended.
    Missing,
}

/// Iterator over a range of one log, made by [`crate::Log::scan`]. Ends after an error.
pub struct Scan {
    inner: Arc<Inner>,
    state: Arc<LogState>,
    /// The next LSN to look for; `None` at the end.
    next: Option<u64>,
    last: u64,
    ready: VecDeque<ScanItem>,
}

enum Found {
    Gap(GapKind, RangeInclusive<u64>),
    Record(Entry, Arc<DataFile>),
}

impl Scan {
    pub(crate) fn new(
        inner: Arc<Inner>,
        state: Arc<LogState>,
        range: &impl RangeBounds<u64>,
    ) -> Scan {
        let first = match range.start_bound() {
            Bound::Included(first) => Some(*first),
            Bound::Excluded(before) => before.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let last = match range.end_bound() {
            Bound::Included(last) => Some(*last),
            Bound::Excluded(end) => end.checked_sub(1),
            Bound::Unbounded => Some(u64::MAX),
        };
        Scan {
            inner,
            state,
            next: first.filter(|first| last.is_some_and(|last| *first <= last)),
            last: last.unwrap_or(0),
            ready: VecDeque::new(),
        }
    }

    /// Looks up the next batch in the index.
    fn find(&mut self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        let core = self.state.core.lock();
        core.check_alive(&self.state.name)?;
        let Some(mut next) = self.next.take() else {
            return Ok(found);
        };
        if next < core.floor {
            let upto = (core.floor - 1).min(self.last);
            found.push(Found::Gap(GapKind::Trimmed, next..=upto));
            if upto == self.last {
                return Ok(found);
            }
            next = upto + 1;
        }
        let (mut records, mut bytes) = (0, 0);
        for entry in core.index.iter_from(next) {
            if records > 0 && (records == BATCH_RECORDS_MAX || bytes >= BATCH_BYTES_MAX) {
                self.next = Some(next);
                break;
            }
            if entry.lsn > next {
                let upto = (entry.lsn - 1).min(self.last);
                found.push(Found::Gap(GapKind::Missing, next..=upto));
            }
            if entry.lsn > self.last {
                break;
            }
            found.push(Found::Record(*entry, self.inner.files.of(*entry)));
            records += 1;
            bytes += entry.len as usize;
            match entry.lsn.checked_add(1) {
                Some(after) if after <= self.last => next = after,
                _ => break,
            }
        }
        Ok(found)
    }

    fn fill(&mut self) -> Result<()> {
        let found = self.find()?;
        let mut buffers: Vec<Vec<u8>> = found.iter().map(Found::buffer).collect();
        let mut requests: Vec<_> = found
            .iter()
            .zip(&mut buffers)
            .filter_map(|(found, buf)| match found {
                Found::Record(entry, file) => Some(ReadRequest {
                    file: &file.file,
                    offset: u64::from(entry.offset),
                    buf,
                    read: 0,
                }),
                Found::Gap(..) => None,
            })
            .collect();
        self.inner.fs.read_batch(&mut requests, READ_DEPTH)?;
        let lens: Vec<usize> = requests.iter().map(|request| request.read).collect();
        let mut lens = lens.into_iter();
        for (found, mut buf) in found.into_iter().zip(buffers) {
            let item = match found {
                Found::Gap(kind, lsns) => ScanItem::Gap { kind, lsns },
                Found::Record(entry, file) => {
                    let len = lens.next().expect("one request for each record");
                    let len = file.read_rest(entry, &mut buf, len)?;
                    ScanItem::Entry {
                        lsn: entry.lsn,
                        data: unframe(&buf[..len], self.state.id, entry, &file)?,
                    }
                }
            };
            self.ready.push_back(item);
        }
        Ok(())
    }
}

impl Found {
    fn buffer(&self) -> Vec<u8> {
        match self {
            Found::Record(entry, _) => vec![0; entry.len as usize],
            Found::Gap(..) => Vec::new(),
        }
    }
}

impl Iterator for Scan {
    type Item = Result<ScanItem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty()
            && self.next.is_some()
            && let Err(error) = self.fill()
        {
            self.next = None;
            self.ready.clear();
            return Some(Err(error));
        }
        self.ready.pop_front().map(Ok)
    }
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scan({} at {:?})", self.state.name, self.next)
    }
}
