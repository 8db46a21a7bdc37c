//! Snapshots: sequence numbers that merges must keep readable.
//!
//! A snapshot is taken and the list is read under one lock, and a merge reads the list before
//! it begins: a snapshot taken later sees at least everything the merge's inputs hold, so the newest version
//! of each key, which a merge always keeps, is the one it wants.
//!
//! What was kept for a snapshot may go when it is released, though nobody writes. The scheduler therefore leaves with
//! the list the sequence number that the oldest snapshot must reach, and the release that makes it so has the
//! scheduler look again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use crate::background::scheduler::schedule_soon;
use crate::db::engine::Engine;
use crate::key::SeqNo;

/// The snapshots of a database.
#[derive(Debug, Default)]
pub(crate) struct SnapshotList {
    /// No other lock is taken while it is held.
    held: Mutex<Held>,
    engine: OnceLock<Weak<Engine>>,
}

#[derive(Debug, Default)]
struct Held {
    /// How often each is held.
    counts: BTreeMap<SeqNo, usize>,
    /// What the oldest must reach for work to be due.
    awaited: Option<SeqNo>,
}

impl SnapshotList {
    /// Holds the sequence number that is published now.
    pub(crate) fn take(self: &Arc<Self>, published: &AtomicU64) -> Snapshot {
        let mut held = self.held.lock();
        let sequence = published.load(Ordering::Acquire);
        *held.counts.entry(sequence).or_default() += 1;
        Snapshot {
            hold: Arc::new(Hold {
                sequence,
                list: Arc::clone(self),
            }),
        }
    }

    /// The sequence numbers held, ascending.
    pub(crate) fn sequences(&self) -> Vec<SeqNo> {
        self.held.lock().counts.keys().copied().collect()
    }

    /// How many are held, those of one sequence number each counted.
    pub(crate) fn count(&self) -> usize {
        self.held.lock().counts.values().sum()
    }

    /// The oldest one held.
    pub(crate) fn oldest(&self) -> Option<SeqNo> {
        self.held.lock().oldest()
    }

    /// Whose scheduler is told; the first call counts.
    pub(crate) fn set_engine(&self, engine: &Arc<Engine>) {
        let _ = self.engine.set(Arc::downgrade(engine));
    }

    /// Notes what `awaited` says for the oldest snapshot of this moment; it must take no lock.
    pub(crate) fn watch(&self, awaited: impl FnOnce(SeqNo) -> Option<SeqNo>) {
        let mut held = self.held.lock();
        held.awaited = held.oldest().and_then(awaited);
    }

    fn release(&self, sequence: SeqNo) {
        let mut held = self.held.lock();
        let count = held.counts.get_mut(&sequence);
        let count = count.expect("a held snapshot is listed");
        *count -= 1;
        if *count > 0 {
            return;
        }
        held.counts.remove(&sequence);
        let oldest = held.oldest().unwrap_or(SeqNo::MAX);
        let is_due = held.awaited.take_if(|awaited| *awaited <= oldest).is_some();
        drop(held);
        if is_due && let Some(engine) = self.engine.get().and_then(Weak::upgrade) {
            schedule_soon(&engine);
        }
    }
}

impl Held {
    fn oldest(&self) -> Option<SeqNo> {
        self.counts.keys().next().copied()
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
        self.list.release(self.sequence);
    }
}
