//! `MemoryLedger`: one limit for the memory of all databases of an `Env`.
//!
//! It counts memtables, blocks in the cache, index and filter blocks that open tables keep beside
//! it, and the buffers of background I/O. The block cache is the one that gives way: everything else
//! is reserved in its budget ([`BlockCache::reserve`]), and blocks get what is left, but at least a
//! quarter of the limit.
//!
//! Memtables may take half of the limit. Beyond that the largest memtable of all databases is
//! flushed, by a thread of the ledger's own that runs while there is such pressure, and
//! writers wait for it, at most a second per group: the limit bounds memory, and a database
//! whose readers hold on to memtables must not stop all others for ever.
//!
//! Lock: `members` is held to copy or prune the list, with no other lock taken.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::cache::{BlockCache, Reservation};
use crate::db::engine::Engine;

/// Longest that a group of writes waits for memtables to be flushed.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(1);

/// What a charge is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MemoryKind {
    /// Memtables, active and immutable.
    Memtable = 0,
    /// Buffers of flushes and compactions.
    Io = 1,
}

/// Bytes in use at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryUsage {
    /// The limit.
    pub limit: usize,
    /// Memtables, active and immutable.
    pub memtables: usize,
    /// Blocks in the cache.
    pub cache: usize,
    /// Index and filter blocks that open tables keep beside the cache.
    pub pinned: usize,
    /// Buffers of flushes and compactions in flight.
    pub io: usize,
}

impl MemoryUsage {
    /// All of it.
    pub fn total(&self) -> usize {
        self.memtables + self.cache + self.pinned + self.io
    }
}

/// The memory of the databases that share an `Env`. Any thread may ask and charge.
#[derive(Debug)]
pub struct MemoryLedger {
    limit: usize,
    cache: Arc<BlockCache>,
    used: [AtomicUsize; 2],
    members: Mutex<Vec<Weak<Engine>>>,
    /// True while the thread that flushes runs.
    relieving: AtomicBool,
    /// Signalled when memory of memtables returned.
    returned: Condvar,
    /// The condition's; guards nothing.
    waiting: Mutex<()>,
}

impl MemoryLedger {
    /// A ledger with a limit of `limit` bytes.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(MemoryLedger {
            limit,
            cache: BlockCache::new(limit),
            used: Default::default(),
            members: Mutex::new(Vec::new()),
            relieving: AtomicBool::new(false),
            returned: Condvar::new(),
            waiting: Mutex::new(()),
        })
    }

    /// The cache that all databases of the ledger share.
    pub fn cache(&self) -> &Arc<BlockCache> {
        &self.cache
    }

    /// What is in use now.
    pub fn usage(&self) -> MemoryUsage {
        let memtables = self.used(MemoryKind::Memtable);
        let io = self.used(MemoryKind::Io);
        let cache = self.cache.stats();
        MemoryUsage {
            limit: self.limit,
            memtables,
            cache: cache.charged,
            pinned: cache.reserved.saturating_sub(memtables + io),
            io,
        }
    }

    fn used(&self, kind: MemoryKind) -> usize {
        self.used[kind as usize].load(Ordering::Relaxed)
    }

    /// Charges `bytes` until the charge is dropped. Blocks leave the cache for it.
    pub(crate) fn charge(self: &Arc<Self>, kind: MemoryKind, bytes: usize) -> Charge {
        self.used[kind as usize].fetch_add(bytes, Ordering::Relaxed);
        let reservation = self.cache.reserve(bytes);
        self.cache.make_room();
        Charge {
            ledger: Arc::clone(self),
            kind,
            bytes,
            _reservation: reservation,
        }
    }

    /// Adds a database whose memtables may be flushed for the others.
    pub(crate) fn join(&self, engine: &Arc<Engine>) {
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() > 0);
        members.push(Arc::downgrade(engine));
    }

    /// True where memtables take more than they may.
    pub(crate) fn is_under_pressure(&self) -> bool {
        self.used(MemoryKind::Memtable) > self.limit / 2
    }

    /// Bytes that the memtables of each database may take if all of them write.
    pub(crate) fn fair_share(&self) -> usize {
        self.limit / 2 / self.members.lock().len().max(1)
    }

    /// Has the largest memtables flushed until there is no pressure any more; returns at once.
    pub(crate) fn relieve(self: &Arc<Self>) {
        if self.relieving.swap(true, Ordering::AcqRel) {
            return;
        }
        let ledger = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name("lavakv-memory".to_owned())
            .spawn(move || {
                ledger.flush_largest();
                ledger.relieving.store(false, Ordering::Release);
            });
        if let Err(error) = spawned {
            self.relieving.store(false, Ordering::Release);
            tracing::error!(%error, "no thread to flush memtables under memory pressure");
        }
    }

    fn flush_largest(&self) {
        while self.is_under_pressure() {
            let members: Vec<Arc<Engine>> = {
                let members = self.members.lock();
                members.iter().filter_map(Weak::upgrade).collect()
            };
            let largest = members
                .iter()
                .filter_map(|engine| Some((engine.largest_memtable()?, engine)))
                .filter(|((bytes, _), _)| *bytes >= self.fair_share() / 8)
                .max_by_key(|((bytes, _), _)| *bytes);
            let sealed = largest.is_some_and(|((_, cf), engine)| engine.seal_for_memory(cf));
            if !sealed && members.is_empty() {
                return;
            }
            drop(members);
            // What is sealed is flushed first: one after the other, or all would be.
            self.wait_for_memory(Duration::from_millis(20));
        }
    }

    /// Waits until memory of a memtable returns, or for this long.
    pub(crate) fn wait_for_memory(&self, longest: Duration) {
        let mut waiting = self.waiting.lock();
        self.returned.wait_for(&mut waiting, longest);
    }
}

/// Memory in use until this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    ledger: Arc<MemoryLedger>,
    kind: MemoryKind,
    bytes: usize,
    _reservation: Reservation,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.ledger.used[self.kind as usize].fetch_sub(self.bytes, Ordering::Relaxed);
        if self.kind == MemoryKind::Memtable {
            self.ledger.returned.notify_all();
        }
    }
}
