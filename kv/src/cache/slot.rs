//! The table of a shard: slots that readers take entries from without a lock.
//!
//! Open addressing with linear probing. A slot's *meta* word holds its state and two counters, as
//! in RocksDB's HyperClockCache: `acquired` goes up when a reader takes the entry, `released`
//! when it lets go. Their difference is how many hold it; while nobody does, both are how often it was
//! read since the clock last passed. So a hit is one `fetch_add`, which takes the entry and counts
//! the hit in one, and letting go is another.
//!
//! ```text
//! bit 63..62   state
//! bit 61..31   released
//! bit 30..0    acquired
//!
//! EMPTY         no entry; what is counted here means nothing
//! CONSTRUCTION  the writer puts an entry in or takes it out; what is counted means nothing
//! SHAREABLE     has an entry that lookups may take
//! INVISIBLE     has an entry of a cache that is gone; the last who holds it frees it
//!
//! EMPTY -> CONSTRUCTION -> SHAREABLE    put, by the writer, with plain stores
//! SHAREABLE -> CONSTRUCTION -> EMPTY    taken out, by the writer, where nobody holds the entry: a
//!                                       compare-and-swap, which a reader that comes meanwhile fails
//! SHAREABLE -> INVISIBLE                the cache is dropped while somebody holds the entry
//! ```
//!
//! There is one writer at a time: whoever holds the shard's lock. Readers hold no lock:
//! 1. find a slot with the tag of the key, which may change under them;
//! 2. add to `acquired`; the word that was there before says SHAREABLE, or there is nothing to be had
//!    (and nothing to be undone: the writer overwrites the word);
//! 3. from here on the entry cannot go. Compare its key; if it is another's, take the addition back.
//!
//! `passed` of a slot is the number of entries that lie further on because this slot was taken when
//! they came: a lookup ends at a slot with none.
//!
//! Counters do not overflow: a reader that finds the top bit of `released` set clears it in both
//! while it holds the entry, and there are never 2^30 holders.
//!
//! An entry may be held longer than its cache lives. The table is therefore owned by its cache and by every
//! INVISIBLE entry together (`owners`), and freed by the last of them.

#![expect(
    unsafe_code,
    reason = "entries are read under a count in their slot, not under a lock"
)]

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use super::sync::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Watch, fence};
use super::{CacheKey, Item};

const STATE_SHIFT: u32 = 62;
const RELEASED_SHIFT: u32 = 31;
const COUNTER_MASK: u64 = (1 << 31) - 1;
const COUNTER_TOP: u64 = 1 << 30;

const ACQUIRED_ONE: u64 = 1;
const RELEASED_ONE: u64 = 1 << RELEASED_SHIFT;
const BOTH_TOPS: u64 = COUNTER_TOP | COUNTER_TOP << RELEASED_SHIFT;

const EMPTY: u64 = 0;
const CONSTRUCTION: u64 = 1;
const INVISIBLE: u64 = 2;
const SHAREABLE: u64 = 3;
/// The bit that SHAREABLE has and INVISIBLE has not.
const VISIBLE_BIT: u64 = 1 << STATE_SHIFT;

/// Most reads that are remembered of an entry.
pub(super) const COUNT_MAX: u64 = 3;

fn state(meta: u64) -> u64 {
    meta >> STATE_SHIFT
}

fn acquired(meta: u64) -> u64 {
    meta & COUNTER_MASK
}

fn holders(meta: u64) -> u64 {
    acquired(meta).wrapping_sub(meta >> RELEASED_SHIFT) & COUNTER_MASK
}

/// The word of an entry that nobody holds and that was read `count` times.
fn shareable(count: u64) -> u64 {
    SHAREABLE << STATE_SHIFT | count << RELEASED_SHIFT | count
}

/// What a slot leads to. Not changed while it is there.
pub(super) struct Entry {
    pub(super) key: CacheKey,
    /// Bytes of the budget.
    pub(super) charge: usize,
    pub(super) item: Item,
    /// The table that has the slot.
    table: NonNull<Table>,
    watch: Watch,
}

pub(super) struct Slot {
    meta: AtomicU64,
    /// [`CacheKey::tag`] of the entry's key; 0 where there is none.
    tag: AtomicU64,
    entry: AtomicPtr<Entry>,
    passed: AtomicU32,
}

#[cfg(not(lava_loom))]
const _: () = assert!(size_of::<Slot>() == 32, "two slots to a cache line");

impl Slot {
    fn empty() -> Self {
        Slot {
            meta: AtomicU64::new(EMPTY),
            tag: AtomicU64::new(0),
            entry: AtomicPtr::new(std::ptr::null_mut()),
            passed: AtomicU32::new(0),
        }
    }

    /// Takes the entry, if it is that of `key`.
    #[inline]
    fn take(&self, key: &CacheKey, silent: bool) -> Option<Held> {
        let before = self.meta.fetch_add(ACQUIRED_ONE, Ordering::Acquire);
        if state(before) != SHAREABLE {
            return None;
        }
        if before & COUNTER_TOP << RELEASED_SHIFT != 0 {
            self.meta.fetch_and(!BOTH_TOPS, Ordering::Relaxed);
        }
        let entry = NonNull::new(self.entry.load(Ordering::Relaxed));
        let mut held = Held {
            slot: NonNull::from(self),
            entry: entry.expect("a shareable slot has an entry"),
            silent: true,
        };
        if held.entry().key != *key {
            return None;
        }
        held.silent = silent;
        Some(held)
    }
}

pub(super) struct Table {
    slots: Box<[Slot]>,
    /// The cache, and each INVISIBLE entry.
    owners: AtomicUsize,
    watch: Watch,
}

/// What the writer found when the clock came to a slot.
pub(super) enum Visited {
    /// Somebody holds the entry.
    Held,
    /// It was read so often; one is forgotten.
    Read,
    /// Nobody has read it: it was taken out.
    Out(Box<Entry>),
}

/// A shard's own handle of its table. Of the methods, those that say so are the writer's.
pub(super) struct TableOwner(NonNull<Table>);

// SAFETY: the table is made of atomics; entries behind it are Send and Sync and are freed by one thread, which
// a counter chooses.
unsafe impl Send for TableOwner {}
// SAFETY: as above.
unsafe impl Sync for TableOwner {}

impl TableOwner {
    /// A table of `slots` slots, a power of two.
    pub(super) fn new(slots: usize) -> Self {
        assert!(slots.is_power_of_two());
        let table = Box::new(Table {
            slots: (0..slots).map(|_| Slot::empty()).collect(),
            owners: AtomicUsize::new(1),
            watch: Watch::new(),
        });
        TableOwner(NonNull::from(Box::leak(table)))
    }

    #[inline]
    fn slots(&self) -> &[Slot] {
        // SAFETY: the table lives at least until this owner is dropped.
        let table = unsafe { self.0.as_ref() };
        table.watch.read();
        &table.slots
    }

    pub(super) fn len(&self) -> usize {
        self.slots().len()
    }

    /// The entry of `key`; a silent look is not counted as a read.
    #[inline]
    pub(super) fn find(&self, key: &CacheKey, tag: u64, silent: bool) -> Option<Held> {
        let slots = self.slots();
        let mask = slots.len() - 1;
        let mut at = tag as usize & mask;
        for _ in 0..slots.len() {
            let slot = &slots[at];
            if slot.tag.load(Ordering::Relaxed) == tag
                && let Some(held) = slot.take(key, silent)
            {
                return Some(held);
            }
            if slot.passed.load(Ordering::Relaxed) == 0 {
                return None;
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// Puts an entry in, which then counts as read `count` times. For the writer, who knows that there is
    /// an empty slot. Returns its number, and the entry held.
    pub(super) fn put(
        &self,
        key: CacheKey,
        tag: u64,
        charge: usize,
        item: Item,
        count: u64,
    ) -> (u32, Held) {
        let slots = self.slots();
        let mask = slots.len() - 1;
        let mut at = tag as usize & mask;
        while state(slots[at].meta.load(Ordering::Relaxed)) != EMPTY {
            slots[at].passed.fetch_add(1, Ordering::Relaxed);
            at = (at + 1) & mask;
        }
        let slot = &slots[at];
        slot.meta
            .store(CONSTRUCTION << STATE_SHIFT, Ordering::Relaxed);
        let entry = NonNull::from(Box::leak(Box::new(Entry {
            key,
            charge,
            item,
            table: self.0,
            watch: Watch::new(),
        })));
        slot.entry.store(entry.as_ptr(), Ordering::Relaxed);
        slot.tag.store(tag, Ordering::Relaxed);
        // Who reads this word, or one that a reader made of it, sees the entry whole.
        slot.meta
            .store(shareable(count) + ACQUIRED_ONE, Ordering::Release);
        let held = Held {
            slot: NonNull::from(slot),
            entry,
            silent: true,
        };
        (at as u32, held)
    }

    /// Passes over the entry in slot `at`: forgets one of its reads (all of them if `forget_all`), or takes it
    /// out if it has none. For the writer, who has put it there.
    pub(super) fn visit(&self, at: u32, forget_all: bool) -> Visited {
        let slot = &self.slots()[at as usize];
        let before = slot.meta.load(Ordering::Relaxed);
        assert_eq!(state(before), SHAREABLE, "queued slots have entries");
        if holders(before) > 0 {
            return Visited::Held;
        }
        let count = acquired(before).min(COUNT_MAX);
        let after = match count {
            0 => CONSTRUCTION << STATE_SHIFT,
            _ if forget_all => shareable(0),
            _ => shareable(count - 1),
        };
        // Acquire: what the last holder did with the entry is over before it is freed.
        let swapped =
            slot.meta
                .compare_exchange(before, after, Ordering::Acquire, Ordering::Relaxed);
        match swapped {
            Err(_) => Visited::Held,
            Ok(_) if count > 0 => Visited::Read,
            Ok(_) => Visited::Out(self.take_out(at as usize)),
        }
    }

    /// Forgets the reads of the entry of `key`, if it is here and nobody holds it. For the writer.
    pub(super) fn forget_reads(&self, key: &CacheKey, tag: u64) {
        let Some(held) = self.find(key, tag, true) else {
            return;
        };
        // Only the writer takes an entry out, so the slot keeps this one when it is let go.
        let slot = held.slot;
        drop(held);
        // SAFETY: the table lives at least until this owner is dropped.
        let meta = unsafe { &slot.as_ref().meta };
        let before = meta.load(Ordering::Relaxed);
        if state(before) == SHAREABLE && holders(before) == 0 {
            // Acquire: as in `visit`, what the last holder did comes before. Who takes it meanwhile has read it.
            let _read_again =
                meta.compare_exchange(before, shareable(0), Ordering::Acquire, Ordering::Relaxed);
        }
    }

    /// Takes the entry of `key` out, if it is here and nobody holds it; returns its slot's number too. For the writer.
    pub(super) fn remove(&self, key: &CacheKey, tag: u64) -> Option<(u32, Box<Entry>)> {
        let held = self.find(key, tag, true)?;
        let slots = self.slots();
        let at = (held.slot.as_ptr().addr() - slots.as_ptr().addr()) / size_of::<Slot>();
        drop(held);
        // Only the writer takes an entry out, so the slot still has this one.
        let meta = &slots[at].meta;
        let before = meta.load(Ordering::Relaxed);
        if holders(before) > 0 {
            return None;
        }
        // Acquire: as in `visit`. Who takes it meanwhile holds it.
        let taken = meta.compare_exchange(
            before,
            CONSTRUCTION << STATE_SHIFT,
            Ordering::Acquire,
            Ordering::Relaxed,
        );
        taken.ok().map(|_| (at as u32, self.take_out(at)))
    }

    /// The charge of the entry in slot `at`. For the writer, who has put it there.
    pub(super) fn charge_of(&self, at: u32) -> usize {
        let entry = self.slots()[at as usize].entry.load(Ordering::Relaxed);
        // SAFETY: only the writer takes entries out, and it has not.
        unsafe { (*entry).charge }
    }

    /// Empties a slot in construction.
    fn take_out(&self, at: usize) -> Box<Entry> {
        let slots = self.slots();
        let mask = slots.len() - 1;
        let slot = &slots[at];
        let mut from = slot.tag.load(Ordering::Relaxed) as usize & mask;
        slot.tag.store(0, Ordering::Relaxed);
        let entry = slot.entry.swap(std::ptr::null_mut(), Ordering::Relaxed);
        slot.meta.store(EMPTY, Ordering::Release);
        while from != at {
            slots[from].passed.fetch_sub(1, Ordering::Relaxed);
            from = (from + 1) & mask;
        }
        // SAFETY: `put` leaked it; nobody holds it, and nobody can take it from a slot that is not shareable.
        unsafe { Box::from_raw(entry) }
    }
}

impl Drop for TableOwner {
    fn drop(&mut self) {
        // SAFETY: this owner still counts.
        let table = unsafe { self.0.as_ref() };
        for slot in &table.slots {
            if state(slot.meta.load(Ordering::Relaxed)) != SHAREABLE {
                continue;
            }
            let entry = slot.entry.load(Ordering::Relaxed);
            table.owners.fetch_add(1, Ordering::Relaxed);
            // From here on the last holder frees the entry, unless there is none.
            let before = slot.meta.fetch_and(!VISIBLE_BIT, Ordering::AcqRel);
            if holders(before) == 0 {
                // SAFETY: nobody holds it, and without a cache nobody can look it up.
                drop(unsafe { Box::from_raw(entry) });
                table.owners.fetch_sub(1, Ordering::Relaxed);
            }
        }
        disown(self.0);
    }
}

/// Gives up a share in a table, and frees it if that was the last.
fn disown(table: NonNull<Table>) {
    // SAFETY: the caller's share has kept it until now.
    let before = unsafe { table.as_ref() }
        .owners
        .fetch_sub(1, Ordering::Release);
    if before == 1 {
        fence(Ordering::Acquire);
        // SAFETY: leaked by `TableOwner::new`; no share is left, and so nobody who holds an entry.
        drop(unsafe { Box::from_raw(table.as_ptr()) });
    }
}

/// An entry that is held: it stays where it is until this is dropped.
pub(super) struct Held {
    slot: NonNull<Slot>,
    entry: NonNull<Entry>,
    /// Letting go takes the addition back, so that it does not count as a read.
    silent: bool,
}

// SAFETY: it gives shared access to an entry that is Sync, and any thread may let go of it or free it (Send).
unsafe impl Send for Held {}
// SAFETY: as above.
unsafe impl Sync for Held {}

impl Held {
    #[inline]
    pub(super) fn entry(&self) -> &Entry {
        // SAFETY: the entry is not freed while it is held.
        let entry = unsafe { self.entry.as_ref() };
        entry.watch.read();
        entry
    }

    #[inline]
    fn slot(&self) -> &Slot {
        // SAFETY: a table is not freed while an entry of it is held.
        unsafe { self.slot.as_ref() }
    }

    #[cold]
    fn free_orphan(&self) {
        fence(Ordering::Acquire);
        // SAFETY: `put` leaked it; the cache is gone, and this was the last who held it.
        let entry = unsafe { Box::from_raw(self.entry.as_ptr()) };
        disown(entry.table);
    }
}

impl Clone for Held {
    fn clone(&self) -> Self {
        // The entry is held, so there is nothing to be checked, whether the cache lives or not.
        let before = self.slot().meta.fetch_add(ACQUIRED_ONE, Ordering::Relaxed);
        assert!(holders(before) < COUNTER_TOP - 1, "too many holders");
        Held {
            slot: self.slot,
            entry: self.entry,
            silent: true,
        }
    }
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        let meta = &self.slot().meta;
        let before = match self.silent {
            true => meta.fetch_sub(ACQUIRED_ONE, Ordering::Release),
            false => meta.fetch_add(RELEASED_ONE, Ordering::Release),
        };
        if state(before) == INVISIBLE && holders(before) == 1 {
            self.free_orphan();
        }
    }
}

#[cfg(all(test, lava_loom))]
#[path = "slot_loom.rs"]
mod loom;
