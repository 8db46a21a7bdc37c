//! Snapshots: sequence numbers that merges must keep readable.
//!
//! A snapshot is taken and the list is read under one lock, and a merge reads the list before
//! it begins: a snapshot taken later sees at least everything the merge's inputs hold, so the newest version
//! of each key, which a merge always keeps, is the one it wants.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::key::SeqNo;

/// The snapshots that are held, with how often.
#[derive(Debug, Default)]
pub(crate) struct SnapshotList {
    held: Mutex<BTreeMap<SeqNo, usize>>,
}

impl SnapshotList {
    /// Holds the sequence number that is published now.
    pub(crate) fn take(self: &Arc<Self>, published: &AtomicU64) -> Snapshot {
        let mut held = self.held.lock();
        let sequence = published.load(Ordering::Acquire);
        *held.entry(sequence).or_default() += 1;
        Snapshot {
            hold: Arc::new(Hold {
                sequence,
                list: Arc::clone(self),
            }),
        }
    }

    /// The sequence numbers held, ascending.
    pub(crate) fn sequences(&self) -> Vec<SeqNo> {
        self.held.lock().keys().copied().collect()
    }
}

/// A consistent view of all column families at one moment, until the last clone is dropped.
/// Memory only: it does not outlive the process.
#[derive(Clone, Debug)]
pub struct Snapshot {
    hold: Arc<Hold>,
}

#[derive(Debug)]
struct Hold {
    sequence: SeqNo,
    list: Arc<SnapshotList>,
}

impl Snapshot {
    /// The sequence number of the last write that the snapshot sees.
    pub fn sequence(&self) -> SeqNo {
        self.hold.sequence
    }

    /// True for a snapshot of the database that `list` belongs to.
    pub(crate) fn is_of(&self, list: &Arc<SnapshotList>) -> bool {
        Arc::ptr_eq(&self.hold.list, list)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.list.held.lock();
        let count = held
            .get_mut(&self.sequence)
            .expect("a held snapshot is listed");
        *count -= 1;
        if *count == 0 {
            held.remove(&self.sequence);
        }
    }
}
