//! Appending: what the leader of a commit group does.
//!
//! Items are admitted in order of arrival, framed into one payload, appended as one group, put
//! into the indexes (from then on visible), and made durable by one flush if anybody asked.
//! A batch is admitted as a whole or refused as a whole, and never divided between groups.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::data::DataLog;
use crate::engine::{Appended, Inner};
use crate::error::{Error, Result};
use crate::group::PAYLOAD_LEN_MAX;
use crate::index::Entry;
use crate::record::{DirectoryEntry, RECORD_OVERHEAD_MAX, RecordKey, SECTION_RECORDS, put_record};
use crate::state::{Admission, LogState, Staged};

/// Payload length from which a group takes no further item: the copy stays in the cache, and
/// readers need no huge buffer.
const GROUP_LEN_SOFT_MAX: usize = 4 << 20;

/// One call's appends, atomic together.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) appends: Vec<PendingAppend>,
    pub(crate) sync: bool,
}

#[derive(Debug)]
pub(crate) struct PendingAppend {
    pub(crate) log: Arc<LogState>,
    pub(crate) lsn: u64,
    pub(crate) data: Vec<u8>,
}

pub(crate) type Outcome = Result<Vec<Appended>>;

impl Pending {
    /// Refuses what cannot lie in one group.
    pub(crate) fn check(&self) -> Result<()> {
        let framed = |a: &PendingAppend| a.data.len() + RECORD_OVERHEAD_MAX;
        let total: usize = self.appends.iter().map(framed).sum();
        let max = PAYLOAD_LEN_MAX - 1;
        if total > max {
            return Err(Error::Invalid {
                what: format!("a batch of {total} bytes; at most {max} with framing"),
            });
        }
        let mut seen = HashSet::new();
        for append in &self.appends {
            if self.appends.len() > 1 && !seen.insert((append.log.id, append.lsn)) {
                return Err(Error::Invalid {
                    what: format!("a batch with LSN {} of one log twice", append.lsn),
                });
            }
        }
        Ok(())
    }
}

/// The group that is being built.
#[derive(Default)]
struct Building {
    file: u32,
    generation: u64,
    payload: Vec<u8>,
    records: Vec<BuiltRecord>,
    lsns: HashSet<(u64, u64)>,
    last: HashMap<u64, u64>,
    /// A full file was sealed on the way.
    sealed: bool,
}

struct BuiltRecord {
    log: Arc<LogState>,
    key: RecordKey,
    start: usize,
    len: u32,
}

impl Inner {
    /// Commits `items`, as leader.
    ///
    /// # Errors
    /// A failure of the filesystem, which is final. What an item does wrong is its own outcome. So is
    /// want of space, which a trim or delete ends: it is told to all items.
    pub(crate) fn commit(&self, items: Vec<Pending>) -> Result<Vec<Outcome>> {
        let count = items.len();
        match self.commit_groups(items) {
            Err(error) if error.is_no_space() => Ok(vec![Err(error); count]),
            other => other,
        }
    }

    fn commit_groups(&self, items: Vec<Pending>) -> Result<Vec<Outcome>> {
        let mut data = self.data.lock();
        let mut building = Building::default();
        let mut outcomes = Vec::with_capacity(items.len());
        let mut sync = false;
        let only_one = items.len() == 1 && items[0].appends.len() == 1;
        for item in items {
            if building.payload.len() >= GROUP_LEN_SOFT_MAX {
                self.append_group(&mut data, &mut building)?;
            }
            let outcome = self.admit(&building, &item);
            if let Ok(admissions) = &outcome {
                sync |= item.sync;
                self.build(&mut data, &mut building, &item, admissions, only_one)?;
            }
            outcomes.push(outcome);
        }
        self.append_group(&mut data, &mut building)?;
        if sync {
            let durable = data.sync()?;
            self.durable.fetch_max(durable, Ordering::Release);
        }
        drop(data);
        if building.sealed && self.files.has_dead() {
            self.remove_dead_files()?;
        }
        Ok(outcomes)
    }

    fn admit(&self, building: &Building, item: &Pending) -> Outcome {
        if self.closed.get().is_some() {
            return Err(self.ended());
        }
        let mut last = HashMap::new();
        let mut admissions = Vec::with_capacity(item.appends.len());
        for append in &item.appends {
            let id = append.log.id;
            let before = last.get(&id).or_else(|| building.last.get(&id));
            let staged = Staged {
                same: building.lsns.contains(&(id, append.lsn)),
                last: before.copied(),
            };
            let core = append.log.core.lock();
            let admission = append.log.admit(&core, append.lsn, staged)?;
            admissions.push(match admission {
                Admission::Store => Appended::Stored,
                Admission::Duplicate => Appended::Duplicate,
            });
            if item.appends.len() > 1 {
                last.insert(id, append.lsn);
            }
        }
        Ok(admissions)
    }

    /// Frames the records of an admitted item.
    fn build(
        &self,
        data: &mut DataLog,
        building: &mut Building,
        item: &Pending,
        admissions: &[Appended],
        only_one: bool,
    ) -> Result<()> {
        let framed = |a: &PendingAppend| a.data.len() + RECORD_OVERHEAD_MAX;
        let len: usize = item.appends.iter().map(framed).sum();
        let fits = building.payload.len() + len <= PAYLOAD_LEN_MAX;
        if !fits {
            self.append_group(data, building)?;
        }
        for (append, admission) in item.appends.iter().zip(admissions) {
            if *admission == Appended::Duplicate {
                continue;
            }
            if building.records.is_empty() {
                let prepared = data.prepare(&self.fs, &self.files)?;
                building.sealed |= prepared.sealed;
                (building.file, building.generation) = (prepared.number, prepared.generation);
                building.payload.clear();
                building.payload.reserve(len + 1);
                building.payload.push(SECTION_RECORDS);
            }
            let key = RecordKey {
                log: append.log.id,
                // Only a truncation changes the epoch, and it holds the lock of the datalog.
                epoch: append.log.core.lock().epoch,
                lsn: append.lsn,
                op: self.next_op.fetch_add(1, Ordering::Relaxed),
            };
            let start = building.payload.len();
            let (payload, generation) = (&mut building.payload, building.generation);
            let len = put_record(payload, generation, key, &append.data);
            building.records.push(BuiltRecord {
                log: append.log.clone(),
                key,
                start,
                len,
            });
            if !only_one {
                building.lsns.insert((key.log, key.lsn));
                building.last.insert(key.log, key.lsn);
            }
        }
        Ok(())
    }

    /// Appends what was built and makes it visible.
    fn append_group(&self, data: &mut DataLog, building: &mut Building) -> Result<()> {
        if building.records.is_empty() {
            return Ok(());
        }
        let (position, directory) = data.append(&building.payload)?;
        // Counted before the entries are there: a file in use never looks dead.
        self.files
            .add_live(building.file, building.records.len() as u64);
        let mut gone = 0;
        let mut replaced = std::collections::BTreeMap::new();
        for record in building.records.drain(..) {
            let offset = u32::try_from(position.offset + record.start as u64)
                .expect("offsets in a data file fit in 32 bits");
            directory.add(DirectoryEntry {
                key: record.key,
                offset,
                len: record.len,
            });
            let entry = Entry {
                lsn: record.key.lsn,
                file: building.file,
                offset,
                len: record.len,
            };
            let mut core = record.log.core.lock();
            // A trim or delete may have come since the item was admitted.
            if core.deleted || entry.lsn < core.floor {
                gone += 1;
            } else if let Some(old) = core.index.insert(entry) {
                *replaced.entry(old.file).or_insert(0) += 1;
            }
        }
        if gone > 0 {
            *replaced.entry(building.file).or_insert(0) += gone;
        }
        self.files.remove_live(&replaced);
        building.payload.clear();
        building.lsns.clear();
        building.last.clear();
        Ok(())
    }
}
