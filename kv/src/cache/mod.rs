//! The cache: blocks of all tables of a process and separated values, under one budget.
//!
//! A hit takes no lock: it is one atomic operation on the slot of the entry, which holds the entry and counts the
//! read, and one more to let it go ([`slot`]); beside them a counter of the thread's own. What is put in
//! and what has to go is decided under the lock of a shard ([`shard`]), beside a read of the device; none is held
//! while something is read or freed.
//!
//! Memory that is kept beside the cache, as that of memtables and what open tables pin, is charged to the same budget
//! ([`BlockCache::reserve`]): it takes what it needs. Of what it leaves, at least a quarter of the budget, the
//! indexes of open blob files have up to three quarters ([`beside`]) and entries the rest. Of that, index and filter
//! blocks that are cached come first, and data blocks and values share what they leave by what each would gain
//! ([`split`]).
//!
//! A separated value is kept by the record's internal key, not by its place: it is the same value whichever blob
//! file a garbage collection or a compaction has moved it to, so a value stays valid for as long as
//! anybody can ask for it. The key is kept with it and compared in full.
//!
//! What is held ([`CacheRef`]) cannot go, and stays charged. It may outlive the cache.

mod beside;
mod figures;
mod ghost;
mod shard;
mod slot;
mod split;
mod sync;
#[cfg(all(test, not(lava_loom)))]
mod tests;

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use self::beside::Beside;
pub(crate) use self::beside::Evictable;
pub(crate) use self::figures::KINDS;
pub use self::figures::{BlockKind, CacheStats};
use self::ghost::GHOST_BYTES;
use self::shard::{Offer, Shard};
use self::slot::{Held, Slot, TableOwner};
use self::split::Split;
use crate::sstable::Block;
use crate::stats::metrics::{SETS, set_of_thread};

/// A shard has at least this many bytes, so that a block fits in it, also the filter of a table of
/// a hundred megabytes.
const SHARD_BYTES_MIN: usize = 2 << 20;
const SHARDS_MAX: usize = 64;
/// Bytes of the budget for each slot.
const BYTES_PER_SLOT: usize = 1 << 10;
/// Bytes of a slot with its ghosts of data blocks and of values.
const SLOT_BYTES: usize = size_of::<Slot>() + 2 * GHOST_BYTES;

/// Names what is cached. For a block: the cache's number for the table ([`BlockCache::new_id`]) and
/// the block's offset. For a value: 128 bits of hash of its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheKey {
    /// From [`BlockCache::new_id`].
    pub table: u64,
    /// The block's offset in the file.
    pub offset: u64,
}

impl CacheKey {
    /// The key of the value whose record has this internal key, in what `space` numbers
    /// ([`BlockCache::new_id`]).
    pub(crate) fn of_value(space: u64, internal_key: &[u8]) -> Self {
        let hash = xxh3_128_with_seed(internal_key, space);
        CacheKey {
            table: (hash >> 64) as u64,
            offset: hash as u64,
        }
    }

    /// A hash that is not 0.
    #[inline]
    fn tag(self) -> u64 {
        let mixed = (self.table.rotate_left(32) ^ self.offset).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (mixed ^ mixed >> 32).max(1)
    }
}

/// As what a block enters that was written anew and not asked for yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WarmRank {
    /// Like what a scan reads: it goes first if nobody asks for it.
    New,
    /// In the place of what was cached before.
    Heir,
}

/// What is cached.
#[derive(Debug)]
pub(crate) enum Item {
    Block(Block),
    Value { key: Box<[u8]>, value: Vec<u8> },
}

impl Item {
    fn kind(&self) -> BlockKind {
        match self {
            Item::Block(block) => block.kind(),
            Item::Value { .. } => BlockKind::Value,
        }
    }

    fn memory(&self) -> usize {
        match self {
            Item::Block(block) => block.memory() - size_of::<Block>(),
            Item::Value { key, value } => key.len() + value.capacity(),
        }
    }
}

/// Something that is cached, or was offered and not kept. Any thread may have it, and it may outlive
/// the cache; while it is there, the memory is.
#[derive(Clone)]
pub struct CacheRef(Place);

#[derive(Clone)]
enum Place {
    Cached(Held),
    Owned(Arc<Item>),
}

impl CacheRef {
    #[inline]
    fn item(&self) -> &Item {
        match &self.0 {
            Place::Cached(held) => &held.entry().item,
            Place::Owned(item) => item,
        }
    }

    fn owned(item: Item) -> Self {
        CacheRef(Place::Owned(Arc::new(item)))
    }
}

impl std::fmt::Debug for CacheRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.item().kind())
    }
}

/// A block, in the cache or not.
#[derive(Clone, Debug)]
pub struct BlockRef(CacheRef);

impl From<Block> for BlockRef {
    fn from(block: Block) -> Self {
        BlockRef(CacheRef::owned(Item::Block(block)))
    }
}

impl Deref for BlockRef {
    type Target = Block;

    #[inline]
    fn deref(&self) -> &Block {
        match self.0.item() {
            Item::Block(block) => block,
            Item::Value { .. } => unreachable!("made of blocks only"),
        }
    }
}

/// A separated value, in the cache or not.
#[derive(Clone, Debug)]
pub(crate) struct ValueRef(CacheRef);

impl From<Vec<u8>> for ValueRef {
    fn from(value: Vec<u8>) -> Self {
        let key = Box::default();
        ValueRef(CacheRef::owned(Item::Value { key, value }))
    }
}

impl Deref for ValueRef {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self.0.item() {
            Item::Value { value, .. } => value,
            Item::Block(_) => unreachable!("made of values only"),
        }
    }
}

/// One set of counters of lookups, on cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Lookups {
    hits: [AtomicU64; KINDS],
    misses: [AtomicU64; KINDS],
    read_bytes: [AtomicU64; KINDS],
}

struct LockedShard {
    table: TableOwner,
    lock: Mutex<Shard>,
}

/// A cache of blocks and values. All methods may be called from any thread.
pub struct BlockCache {
    /// None where the budget is too small for anything.
    shards: Box<[LockedShard]>,
    capacity: usize,
    /// Bytes of a shard's tables.
    overhead: usize,
    split: Split,
    beside: Beside,
    next_id: AtomicU64,
    lookups: [Lookups; SETS],
}

/// Memory beside the cache that is charged to its budget until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    cache: Arc<BlockCache>,
    bytes: usize,
    is_evictable: bool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.cache.beside.remove(self.bytes, self.is_evictable);
    }
}

impl BlockCache {
    /// A cache of at most `capacity` bytes, its own overhead included; with 0 it keeps nothing.
    pub fn new(capacity: usize) -> Arc<Self> {
        let shards = (capacity / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        let shards = 1 << shards.ilog2();
        let slots = capacity / shards / BYTES_PER_SLOT;
        let (shards, slots) = match slots {
            0 => (0, 1),
            slots => (shards, (1 << slots.ilog2()).max(4)),
        };
        let shard = |_| LockedShard {
            table: TableOwner::new(slots),
            lock: Mutex::new(Shard::new(slots)),
        };
        Arc::new(BlockCache {
            shards: (0..shards).map(shard).collect(),
            capacity,
            overhead: slots * SLOT_BYTES,
            split: Split::new(),
            beside: Beside::default(),
            next_id: AtomicU64::new(1),
            lookups: Default::default(),
        })
    }

    /// The budget in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Charges `bytes` of memory that the caller keeps beside the cache. Open blob files give way to it at once and
    /// entries with the next inserts, down to a quarter of the budget for both. What is reserved beyond the
    /// rest is memory over the budget; [`CacheStats::reserved`] tells.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Reservation {
        let reservation = self.reservation(bytes, false);
        self.shrink_beside();
        reservation
    }

    /// Charges `bytes` of memory that can be given up: what has them is to be told of to [`BlockCache::keep`] then.
    pub(crate) fn reserve_evictable(self: &Arc<Self>, bytes: usize) -> Reservation {
        self.reservation(bytes, true)
    }

    /// Bytes that [`BlockCache::reserve`] has room for now: beyond them memory is over the budget.
    pub(crate) fn unreserved(&self) -> usize {
        self.beside.unreserved(self.capacity)
    }

    fn reservation(self: &Arc<Self>, bytes: usize, is_evictable: bool) -> Reservation {
        self.beside.add(bytes, is_evictable);
        Reservation {
            cache: Arc::clone(self),
            bytes,
            is_evictable,
        }
    }

    /// Keeps memory of [`BlockCache::reserve_evictable`] until others need the room more: it may be asked to go
    /// before this returns.
    pub(crate) fn keep<T: Evictable + 'static>(&self, thing: &Arc<T>) {
        let weak: Weak<T> = Arc::downgrade(thing);
        self.beside.keep(weak);
        self.shrink_beside();
        self.make_room();
    }

    fn shrink_beside(&self) {
        // Without a budget there is none to be held: what is beside the cache stays, as what tables pin.
        if self.capacity > 0 {
            self.beside.shrink(self.beside.room(self.capacity).0);
        }
    }

    /// Bytes that the entries of a shard may have now.
    fn room(&self) -> usize {
        let (_, left) = self.beside.room(self.capacity);
        (left / self.shards.len().max(1)).saturating_sub(self.overhead)
    }

    /// Lets entries go until all shards are within the budget that reservations leave.
    pub fn make_room(&self) {
        for LockedShard { table, lock } in &self.shards {
            let mut evicted = Vec::new();
            let mut shard = lock.lock();
            let room = self.room();
            shard.shrink(table, room, &self.split, &mut evicted);
            // Entries are freed after the lock is.
            drop(shard);
        }
    }

    /// A number that nothing else of this cache has, for a table or a space of values.
    pub fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    #[inline]
    fn shard(&self, tag: u64) -> Option<&LockedShard> {
        // The table takes the low bits, ghosts the highest as well; the shard takes others.
        match self.shards.len() {
            0 => None,
            shards => Some(&self.shards[(tag >> 26) as usize & (shards - 1)]),
        }
    }

    #[inline]
    fn find(&self, key: CacheKey, silent: bool) -> Option<CacheRef> {
        let tag = key.tag();
        let held = self.shard(tag)?.table.find(&key, tag, silent)?;
        Some(CacheRef(Place::Cached(held)))
    }

    /// Counts a lookup. The cache's own are counted; this is for what is kept beside it.
    #[inline]
    pub(crate) fn count(&self, kind: BlockKind, hit: bool) {
        let set = &self.lookups[set_of_thread()];
        let counters = if hit { &set.hits } else { &set.misses };
        counters[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes read from the device. As for [`BlockCache::count`].
    pub(crate) fn count_read(&self, kind: BlockKind, bytes: usize) {
        if bytes > 0 {
            let set = &self.lookups[set_of_thread()];
            set.read_bytes[kind as usize].fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// The block, if it is here. A block of another kind is not taken for it: only a damaged file has two kinds at one
    /// place.
    #[inline]
    pub fn get(&self, key: CacheKey, kind: BlockKind) -> Option<BlockRef> {
        let found = self
            .find(key, false)
            .filter(|found| found.item().kind().is_form_of(kind));
        self.count(kind, found.is_some());
        found.map(BlockRef)
    }

    /// As [`BlockCache::get`], without a trace: it counts neither in the statistics nor for what is to stay.
    pub(crate) fn peek(&self, key: CacheKey, kind: BlockKind) -> Option<BlockRef> {
        self.find(key, true)
            .filter(|found| found.item().kind().is_form_of(kind))
            .map(BlockRef)
    }

    /// The value whose record has this internal key, if it is here. `key` is [`CacheKey::of_value`].
    pub(crate) fn get_value(&self, key: CacheKey, internal_key: &[u8]) -> Option<ValueRef> {
        let same = |found: &CacheRef| match found.item() {
            Item::Value { key, .. } => **key == *internal_key,
            Item::Block(_) => false,
        };
        let found = self.find(key, false).filter(same);
        self.count(BlockKind::Value, found.is_some());
        found.map(ValueRef)
    }

    /// Keeps a block that was read with `cost` bytes of the device, as far as it fits, and returns the
    /// one to use: that of another thread if one was quicker and keeps it in the same form.
    pub fn insert(&self, key: CacheKey, block: Block, cost: usize) -> BlockRef {
        BlockRef(self.offer(key, Item::Block(block), cost))
    }

    /// Keeps a block that nobody has asked for yet, as far as it fits.
    pub(crate) fn insert_warm(&self, key: CacheKey, block: Block, rank: WarmRank) {
        drop(self.offer_ranked(key, Item::Block(block), 0, rank));
    }

    /// Lets the block, if it is here, count as never read: it goes when the clock next comes to it.
    pub(crate) fn cool(&self, key: CacheKey) {
        let tag = key.tag();
        if let Some(LockedShard { table, lock }) = self.shard(tag) {
            let _writer = lock.lock();
            table.forget_reads(&key, tag);
        }
    }

    /// Lets the block, if it is here, go at once, unless somebody holds it: nobody will ask for it any more.
    pub(crate) fn discard(&self, key: CacheKey) {
        let tag = key.tag();
        if let Some(LockedShard { table, lock }) = self.shard(tag) {
            let entry = lock.lock().discard(table, &key, tag);
            // Freed after the lock is.
            drop(entry);
        }
    }

    /// Keeps a value that was read with `cost` bytes of the device, if it is worth it.
    pub(crate) fn insert_value(
        &self,
        key: CacheKey,
        internal_key: &[u8],
        value: Vec<u8>,
        cost: usize,
    ) -> ValueRef {
        let item = Item::Value {
            key: internal_key.into(),
            value,
        };
        ValueRef(self.offer(key, item, cost))
    }

    fn offer(&self, key: CacheKey, item: Item, cost: usize) -> CacheRef {
        self.offer_ranked(key, item, cost, WarmRank::New)
    }

    fn offer_ranked(&self, key: CacheKey, item: Item, cost: usize, rank: WarmRank) -> CacheRef {
        let tag = key.tag();
        self.count_read(item.kind(), cost);
        let Some(LockedShard { table, lock }) = self.shard(tag) else {
            return CacheRef::owned(item);
        };
        let mut evicted = Vec::new();
        let mut shard = lock.lock();
        // Read under the lock: who reserves memory and then makes room finds the shard within it after all.
        let room = self.room();
        if let Some(present) = table.find(&key, tag, true) {
            let same = match (&present.entry().item, &item) {
                // One may be the compressed form of the other, which the caller has no use for.
                (Item::Block(a), Item::Block(b)) => a.kind() == b.kind(),
                // The caller knows the length, and has asked in vain if that of what is here is another.
                (Item::Value { key: a, value: old }, Item::Value { key: b, value: new }) => {
                    a == b && old.len() == new.len()
                }
                _ => false,
            };
            return match same {
                true => CacheRef(Place::Cached(present)),
                false => CacheRef::owned(item),
            };
        }
        let offer = Offer {
            key,
            item,
            cost,
            rank,
        };
        let kept = shard.insert(table, offer, room, &self.split, &mut evicted);
        // Entries are freed after the lock is.
        drop(shard);
        match kept {
            Ok(held) => CacheRef(Place::Cached(held)),
            Err(item) => CacheRef::owned(item),
        }
    }

    /// Figures, summed over the shards one after another.
    pub fn stats(&self) -> CacheStats {
        let (reserved, blob_index_reserved) = self.beside.charged();
        let mut stats = CacheStats {
            reserved,
            blob_index_reserved,
            ..CacheStats::default()
        };
        for set in &self.lookups {
            for kind in 0..KINDS {
                stats.hits[kind] += set.hits[kind].load(Ordering::Relaxed);
                stats.misses[kind] += set.misses[kind].load(Ordering::Relaxed);
                stats.read_bytes[kind] += set.read_bytes[kind].load(Ordering::Relaxed);
            }
        }
        let room = self.room();
        for LockedShard { lock, .. } in &self.shards {
            let of_shard = lock.lock().stats();
            let [index, data, values] = of_shard.charged;
            stats.charged += index + data + values + self.overhead;
            stats.index_charged += index;
            stats.data_charged += data;
            stats.value_charged += values;
            stats.value_target += self.split.values_of(room.saturating_sub(index));
            stats.ghost_hits[0] += of_shard.ghost_hits[1];
            stats.ghost_hits[1] += of_shard.ghost_hits[2];
            stats.inserts += of_shard.inserts;
            stats.evictions += of_shard.evictions;
            stats.blocks += of_shard.entries;
        }
        stats
    }
}

impl std::fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "BlockCache of {} bytes: {:?}",
            self.capacity,
            self.stats()
        )
    }
}
