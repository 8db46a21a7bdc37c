//! `MemoryLedger`: one limit for the memory of all databases of an `Env`.
//!
//! It counts memtables, blocks in the cache, index and filter blocks that open tables keep beside
//! it, indexes of open blob files, the buffers of background I/O, and what the databases' filesystems read ahead and write behind with. The block cache
//! is the one that gives way: everything else is reserved in its budget ([`BlockCache::reserve`]),
//! and indexes of blob files and blocks get what is left, but at least a quarter of the limit.
//!
//! Memtables may take half of the limit, active ones half of that: the other half is there for
//! those that are being flushed, so that writers go on meanwhile. Where active memtables grow beyond their
//! part, the largest of all databases is flushed: by its own writer if it has more than a fair share, else by
//! a thread of the ledger's own that runs while it is needed. Where memtables fill
//! their half, writers wait, at most a second per group: the limit bounds memory, and a database
//! whose readers hold on to memtables must not stop all others for ever.
//!
//! An eighth of the limit is left to what nobody counts: code, stacks, and what the process's allocator keeps
//! of the memory that it gets back. The allocator is the process's own choice; one that keeps much can be
//! told by a function ([`crate::EnvOptions::trim_allocator`]), which the ledger calls when the cache may have given
//! way to something else.
//!
//! A filesystem's buffers are bounded to a sixteenth of the limit when its first database joins
//! ([`FileSystem::limit_buffer_memory`]), and counted whole for as long as a database on it is open.
//!
//! Lock: `members` is held to copy or prune the list, with no other lock taken; `filesystems` to
//! change it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use lavafs::{FileSystem, FileSystemRef};
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
    /// Buffers of flushes and compactions, and of iterators that read separated values ahead.
    Io = 1,
    /// What filesystems read ahead into and write behind from.
    Filesystem = 2,
}

const KINDS: usize = 3;

/// The part of the limit for the buffers of a filesystem.
const FILESYSTEM_PART: usize = 16;

/// The part of the limit that nothing is charged to.
const UNCOUNTED_PART: usize = 8;

/// The part of the limit by which charges grow until the allocator is trimmed.
const TRIM_PART: usize = 8;

/// The part of the limit for the buffers of one merge.
const MERGE_PART: usize = 16;

/// Bytes in use at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryUsage {
    /// The limit.
    pub limit: usize,
    /// Memtables, active and immutable.
    pub memtables: usize,
    /// Blocks in the cache.
    pub cache: usize,
    /// Index and filter blocks that open tables keep beside the cache, and indexes of open blob files.
    pub pinned: usize,
    /// Buffers of flushes and compactions in flight, and of scans of separated values.
    pub io: usize,
    /// What filesystems may read ahead into and write behind from.
    pub filesystem: usize,
}

impl MemoryUsage {
    /// All of it.
    pub fn total(&self) -> usize {
        self.memtables + self.cache + self.pinned + self.io + self.filesystem
    }
}

/// The memory of the databases that share an `Env`. Any thread may ask and charge.
#[derive(Debug)]
pub struct MemoryLedger {
    limit: usize,
    cache: Arc<BlockCache>,
    /// Keeps the uncounted part from the cache.
    _uncounted: Reservation,
    trim: Option<fn()>,
    /// Charges when the allocator was last trimmed, or less where there were less since.
    trimmed_at: AtomicUsize,
    trimming: AtomicBool,
    used: [AtomicUsize; KINDS],
    /// The part of the memtables' bytes that is immutable.
    sealed: AtomicUsize,
    filesystems: Mutex<Vec<KnownFilesystem>>,
    members: Mutex<Vec<Weak<Engine>>>,
    /// True while the thread that flushes runs.
    relieving: AtomicBool,
    /// Signalled when memory of memtables returned.
    returned: Condvar,
    /// The condition's; guards nothing.
    waiting: Mutex<()>,
}

/// A filesystem that databases of the ledger are on.
#[derive(Debug)]
struct KnownFilesystem {
    fs: Weak<dyn FileSystem>,
    charge: Weak<Charge>,
}

impl MemoryLedger {
    /// A ledger with a limit of `limit` bytes.
    /// `trim` has the allocator give back what it keeps.
    pub(crate) fn new(limit: usize, trim: Option<fn()>) -> Arc<Self> {
        let cache = BlockCache::new(limit);
        Arc::new(MemoryLedger {
            limit,
            _uncounted: cache.reserve(limit / UNCOUNTED_PART),
            cache,
            trim,
            trimmed_at: AtomicUsize::new(0),
            trimming: AtomicBool::new(false),
            used: Default::default(),
            sealed: AtomicUsize::new(0),
            filesystems: Mutex::new(Vec::new()),
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
        let filesystem = self.used(MemoryKind::Filesystem);
        let cache = self.cache.stats();
        MemoryUsage {
            limit: self.limit,
            memtables,
            cache: cache.charged,
            pinned: cache
                .reserved
                .saturating_sub(memtables + io + filesystem + self.limit / UNCOUNTED_PART),
            io,
            filesystem,
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
        self.trim_if_due();
        Charge {
            ledger: Arc::clone(self),
            kind,
            bytes,
            _reservation: reservation,
        }
    }

    fn charged(&self) -> usize {
        let used = self.used.iter();
        used.map(|used| used.load(Ordering::Relaxed)).sum()
    }

    /// Has the allocator trimmed, on a thread of its own, where charges have grown: blocks have left the
    /// cache for them, and what they were in is to go back to the system.
    fn trim_if_due(self: &Arc<Self>) {
        let Some(trim) = self.trim else { return };
        let due = self.trimmed_at.load(Ordering::Relaxed) + self.limit / TRIM_PART;
        if self.charged() < due || self.trimming.swap(true, Ordering::AcqRel) {
            return;
        }
        let ledger = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name("lavakv-trim".to_owned())
            .spawn(move || {
                trim();
                let charged = ledger.charged();
                ledger.trimmed_at.store(charged, Ordering::Relaxed);
                ledger.trimming.store(false, Ordering::Release);
            });
        if let Err(error) = spawned {
            self.trimming.store(false, Ordering::Release);
            tracing::warn!(%error, "no thread to trim the allocator");
        }
    }

    /// Adds a database whose memtables may be flushed for the others.
    pub(crate) fn join(&self, engine: &Arc<Engine>) {
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() > 0);
        members.push(Arc::downgrade(engine));
    }

    /// Bounds the buffers of `fs` and charges it until the last holder drops the charge.
    pub(crate) fn charge_filesystem(self: &Arc<Self>, fs: &FileSystemRef) -> Arc<Charge> {
        let mut known = self.filesystems.lock();
        known.retain(|one| one.charge.strong_count() > 0);
        let same = |one: &&KnownFilesystem| one.fs.as_ptr().addr() == Arc::as_ptr(fs).addr();
        if let Some(charge) = known.iter().find(same).and_then(|one| one.charge.upgrade()) {
            return charge;
        }
        fs.limit_buffer_memory((self.limit / FILESYSTEM_PART) as u64);
        let bytes = usize::try_from(fs.buffer_memory()).unwrap_or(usize::MAX);
        let charge = Arc::new(self.charge(MemoryKind::Filesystem, bytes));
        known.push(KnownFilesystem {
            fs: Arc::downgrade(fs),
            charge: Arc::downgrade(&charge),
        });
        charge
    }

    /// Bytes that the buffers of one merge should stay within.
    pub(crate) fn merge_share(&self) -> usize {
        self.limit / MERGE_PART
    }

    /// Notes that `bytes` of memtables take no more writes.
    pub(crate) fn seal(&self, bytes: usize) {
        self.sealed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that `bytes` of memtables that took no more writes are about to be freed.
    pub(crate) fn unseal(&self, bytes: usize) {
        self.sealed.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn memtables_max(&self) -> usize {
        self.limit / 2
    }

    fn active_max(&self) -> usize {
        self.memtables_max() / 2
    }

    /// True where active memtables take more than their part, so that one is to be flushed.
    pub(crate) fn is_under_pressure(&self) -> bool {
        let active = self.used(MemoryKind::Memtable);
        active.saturating_sub(self.sealed.load(Ordering::Relaxed)) > self.active_max()
    }

    /// True where memtables take all that they may, so that writers wait.
    pub(crate) fn is_full(&self) -> bool {
        self.used(MemoryKind::Memtable) >= self.memtables_max()
    }

    /// Bytes that the active memtables of each database may take if all of them write.
    pub(crate) fn fair_share(&self) -> usize {
        self.active_max() / self.members.lock().len().max(1)
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
            if members.is_empty() {
                return;
            }
            let families = members.iter().map(|engine| engine.state.lock().cfs.len());
            // Where the pressure comes from what cannot be flushed, the others are not to be flushed all the time.
            let least = self.active_max() / families.sum::<usize>().max(1) / 8;
            // Only the one is kept while its writers are waited for.
            let largest = members
                .into_iter()
                .filter_map(|engine| Some((engine.largest_memtable()?, engine)))
                .filter(|((bytes, _), _)| *bytes >= least)
                .max_by_key(|((bytes, _), _)| *bytes);
            if let Some(((_, cf), engine)) = largest {
                engine.seal_for_memory(cf);
            }
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
        if self.ledger.trim.is_some() {
            let charged = self.ledger.charged();
            self.ledger.trimmed_at.fetch_min(charged, Ordering::Relaxed);
        }
        if self.kind == MemoryKind::Memtable {
            self.ledger.returned.notify_all();
        }
    }
}
