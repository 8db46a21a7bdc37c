//! The block cache: decoded blocks of all tables of a process, under one budget.
//!
//! Sharded by the key's hash; a shard is a hash table and two queues under one mutex. Eviction is
//! S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): a new
//! block enters the *small* queue, a tenth of the budget; if it is not read again before it
//! reaches the end it goes, so that a scan passes through the tenth alone; read again, it moves
//! to the *main* queue, a clock with a two-bit counter. The fingerprints of blocks that left the
//! small queue are kept for as long as main has entries; a block that comes back with one enters
//! main at once. Index and filter blocks enter main at once, with a full counter.
//!
//! A hit takes the shard's lock, looks up, bumps a counter and clones the `Arc`: nothing moves,
//! and the lock is uncontended but by chance. No lock is held while a block is read.
//!
//! Memory that tables keep beside the cache, their index and filter, is charged to the same budget
//! ([`BlockCache::reserve`]): blocks get what it leaves, at least a quarter of the budget.
//!
//! Invariants: a shard's `charged` is the sum of its entries' charges and at most its capacity
//! of the moment when the lock is free after an insert; every entry is in exactly one queue and in the map.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::sstable::Block;

/// A shard has at least this many bytes, so that a block fits in it, also the filter of a table of
/// a hundred megabytes.
const SHARD_BYTES_MIN: usize = 2 << 20;
const SHARDS_MAX: usize = 64;
/// Most times a block passes the end of main unread after it was read often.
const COUNT_MAX: u8 = 3;
/// Bytes that an entry takes beside its block.
const ENTRY_OVERHEAD: usize = 112;

/// Names a block: the cache's number for the table ([`BlockCache::new_id`]) and its offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CacheKey {
    /// From [`BlockCache::new_id`].
    pub table: u64,
    /// The block's offset in the file.
    pub offset: u64,
}

impl CacheKey {
    #[inline]
    fn hash_u64(self) -> u64 {
        let mixed = (self.table.rotate_left(32) ^ self.offset).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ mixed >> 32
    }
}

impl std::hash::Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash_u64());
    }
}

/// Passes on the hash that [`CacheKey`] has computed.
#[derive(Default)]
struct Passed(u64);

impl Hasher for Passed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("cache keys hash to one u64");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// What kind of block is looked up or kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockKind {
    /// Keys and values.
    Data = 0,
    /// Where the data blocks are.
    Index = 1,
    /// A Bloom filter.
    Filter = 2,
}

/// What a cache did so far and what it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheStats {
    /// Lookups that found a block, by [`BlockKind`].
    pub hits: [u64; 3],
    /// Lookups that did not.
    pub misses: [u64; 3],
    /// Blocks put in.
    pub inserts: u64,
    /// Blocks that had to go.
    pub evictions: u64,
    /// Bytes charged now for blocks.
    pub charged: usize,
    /// Bytes reserved now beside them.
    pub reserved: usize,
    /// Blocks held now.
    pub blocks: usize,
}

/// A cache of blocks. All methods may be called from any thread.
pub struct BlockCache {
    shards: Box<[Mutex<Shard>]>,
    capacity: usize,
    reserved: AtomicUsize,
    next_id: AtomicU64,
}

/// Memory beside the cache that is charged to its budget until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    cache: Arc<BlockCache>,
    bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.cache.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Shard {
    capacity: usize,
    charged: usize,
    small_charged: usize,
    map: HashMap<CacheKey, Entry, BuildHasherDefault<Passed>>,
    small: VecDeque<CacheKey>,
    main: VecDeque<CacheKey>,
    /// Hashes of blocks that left `small`, oldest first, and how often each is queued.
    ghosts: VecDeque<u64>,
    ghost_set: HashMap<u64, u32, BuildHasherDefault<Passed>>,
    hits: [u64; 3],
    misses: [u64; 3],
    inserts: u64,
    evictions: u64,
}

struct Entry {
    block: Arc<Block>,
    charge: usize,
    count: u8,
}

impl BlockCache {
    /// A cache of at most `capacity` bytes, its own overhead included; with 0 it keeps nothing.
    pub fn new(capacity: usize) -> Arc<Self> {
        let shards = (capacity / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        let shards = 1 << shards.ilog2();
        Arc::new(BlockCache {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            capacity,
            reserved: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
        })
    }

    /// The budget in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Charges `bytes` of memory that the caller keeps beside the cache. Blocks give way to it with the
    /// next inserts, down to a quarter of the budget. What is reserved beyond the rest is memory
    /// over the budget; [`CacheStats::reserved`] tells.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Reservation {
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        Reservation {
            cache: Arc::clone(self),
            bytes,
        }
    }

    /// Bytes that a shard may hold now.
    fn shard_capacity(&self) -> usize {
        let reserved = self.reserved.load(Ordering::Relaxed);
        (self.capacity - reserved.min(self.capacity / 4 * 3)) / self.shards.len()
    }

    /// Lets blocks go until all shards are within the budget that reservations leave.
    pub fn make_room(&self) {
        let capacity = self.shard_capacity();
        for shard in &self.shards {
            let mut evicted = Vec::new();
            let mut shard = shard.lock();
            shard.capacity = capacity;
            while shard.charged > capacity {
                shard.evict_one(&mut evicted);
            }
            // Blocks are freed after the lock is.
            drop(shard);
        }
    }

    /// A number for a table that no other table of this cache has.
    pub fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    #[inline]
    fn shard(&self, key: CacheKey) -> &Mutex<Shard> {
        // The map takes the low bits and the seven highest; the shard takes others.
        &self.shards[(key.hash_u64() >> 40) as usize & (self.shards.len() - 1)]
    }

    /// The block, if it is here.
    #[inline]
    pub fn get(&self, key: CacheKey, kind: BlockKind) -> Option<Arc<Block>> {
        let mut shard = self.shard(key).lock();
        let shard = &mut *shard;
        let Some(entry) = shard.map.get_mut(&key) else {
            shard.misses[kind as usize] += 1;
            return None;
        };
        shard.hits[kind as usize] += 1;
        entry.count = (entry.count + 1).min(COUNT_MAX);
        Some(Arc::clone(&entry.block))
    }

    /// Keeps a block, as far as it fits, and returns the one to use: that of another thread if
    /// one was quicker.
    pub fn insert(&self, key: CacheKey, block: Arc<Block>) -> Arc<Block> {
        let mut evicted = Vec::new();
        let capacity = self.shard_capacity();
        let mut shard = self.shard(key).lock();
        shard.capacity = capacity;
        let kept = shard.insert(key, block, &mut evicted);
        // Blocks are freed after the lock is.
        drop(shard);
        kept
    }

    /// Figures, summed over the shards one after another.
    pub fn stats(&self) -> CacheStats {
        let mut stats = CacheStats {
            reserved: self.reserved.load(Ordering::Relaxed),
            ..CacheStats::default()
        };
        for shard in &self.shards {
            let shard = shard.lock();
            for kind in 0..3 {
                stats.hits[kind] += shard.hits[kind];
                stats.misses[kind] += shard.misses[kind];
            }
            stats.inserts += shard.inserts;
            stats.evictions += shard.evictions;
            stats.charged += shard.charged;
            stats.blocks += shard.map.len();
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

impl Shard {
    fn insert(
        &mut self,
        key: CacheKey,
        block: Arc<Block>,
        evicted: &mut Vec<Arc<Block>>,
    ) -> Arc<Block> {
        if let Some(present) = self.map.get(&key) {
            return Arc::clone(&present.block);
        }
        let charge = block.memory() + ENTRY_OVERHEAD;
        if charge > self.capacity {
            return block;
        }
        while self.charged + charge > self.capacity {
            self.evict_one(evicted);
        }
        let important = block.kind() != BlockKind::Data;
        let to_main = important || self.ghost_set.contains_key(&key.hash_u64());
        let entry = Entry {
            block: Arc::clone(&block),
            charge,
            count: if important { COUNT_MAX } else { 0 },
        };
        self.map.insert(key, entry);
        self.charged += charge;
        self.inserts += 1;
        if to_main {
            self.main.push_back(key);
        } else {
            self.small.push_back(key);
            self.small_charged += charge;
        }
        block
    }

    /// Lets one block go. There is one: something is charged.
    fn evict_one(&mut self, evicted: &mut Vec<Arc<Block>>) {
        loop {
            let from_small = self.small_charged > self.capacity / 10 || self.main.is_empty();
            let queue = if from_small {
                &mut self.small
            } else {
                &mut self.main
            };
            let key = queue.pop_front().expect("something is charged");
            let entry = self.map.get_mut(&key).expect("queued keys are mapped");
            if from_small {
                self.small_charged -= entry.charge;
            }
            if entry.count > 0 {
                entry.count = if from_small { 0 } else { entry.count - 1 };
                self.main.push_back(key);
                continue;
            }
            self.charged -= entry.charge;
            self.evictions += 1;
            evicted.extend(self.map.remove(&key).map(|entry| entry.block));
            if from_small {
                self.remember(key.hash_u64());
            }
            return;
        }
    }

    /// Keeps a fingerprint, and as many as main has entries.
    fn remember(&mut self, hash: u64) {
        self.ghosts.push_back(hash);
        *self.ghost_set.entry(hash).or_insert(0) += 1;
        while self.ghosts.len() > self.main.len().max(16) {
            let oldest = self.ghosts.pop_front().expect("just counted");
            let left = self
                .ghost_set
                .get_mut(&oldest)
                .expect("queued fingerprints are counted");
            *left -= 1;
            if *left == 0 {
                self.ghost_set.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 4096;

    fn key(offset: u64) -> CacheKey {
        CacheKey { table: 1, offset }
    }

    fn data() -> Arc<Block> {
        Arc::new(Block::for_cache_tests(BlockKind::Data, BLOCK))
    }

    fn read(cache: &BlockCache, offset: u64) -> bool {
        let hit = cache.get(key(offset), BlockKind::Data).is_some();
        if !hit {
            cache.insert(key(offset), data());
        }
        hit
    }

    #[test]
    fn the_budget_holds_at_any_capacity() {
        for capacity in [0, 1, 5000, 100_000, 10 << 20] {
            let cache = BlockCache::new(capacity);
            for offset in 0..20_000u64 {
                read(&cache, offset * 7919 % 6000);
                if offset.is_multiple_of(500) {
                    assert!(cache.stats().charged <= capacity);
                }
            }
            let stats = cache.stats();
            assert!(stats.charged <= capacity);
            assert!(
                capacity < 10 << 20 || stats.charged > capacity * 9 / 10,
                "it is used"
            );
            assert_eq!(stats.hits[0] + stats.misses[0], 20_000);
            assert_eq!(stats.inserts - stats.evictions, stats.blocks as u64);
        }
    }

    #[test]
    fn blocks_give_way_to_reserved_memory_down_to_a_quarter() {
        let cache = BlockCache::new(8 << 20);
        let fill = |from: u64| {
            for offset in from..from + 5000 {
                read(&cache, offset);
            }
        };
        fill(0);
        let index = cache.reserve(4 << 20);
        fill(10_000);
        let stats = cache.stats();
        assert_eq!(stats.reserved, 4 << 20);
        assert!((3 << 20..=4 << 20).contains(&stats.charged), "{stats:?}");
        let filter = cache.reserve(100 << 20);
        fill(20_000);
        assert!((1 << 20..=2 << 20).contains(&cache.stats().charged));
        drop((index, filter));
        fill(30_000);
        assert!(cache.stats().charged > 7 << 20 && cache.stats().reserved == 0);
    }

    #[test]
    fn a_scan_does_not_drive_out_what_is_read_often() {
        let cache = BlockCache::new(8 << 20);
        let hot = 500u64;
        for _ in 0..4 {
            for offset in 0..hot {
                read(&cache, offset);
            }
        }
        for offset in 0..20_000 {
            read(&cache, 1_000_000 + offset);
        }
        let kept = (0..hot).filter(|&offset| read(&cache, offset)).count();
        assert!(
            kept > 450,
            "{kept} of {hot} hot blocks survived a scan of ten times the cache"
        );
    }

    #[test]
    fn index_and_filter_blocks_outlive_data() {
        let cache = BlockCache::new(8 << 20);
        for offset in 0..100 {
            let kind = if offset % 2 == 0 {
                BlockKind::Index
            } else {
                BlockKind::Filter
            };
            cache.insert(key(offset), Arc::new(Block::for_cache_tests(kind, BLOCK)));
        }
        for offset in 0..10_000 {
            read(&cache, 1_000_000 + offset);
        }
        for offset in 0..100 {
            let kind = if offset % 2 == 0 {
                BlockKind::Index
            } else {
                BlockKind::Filter
            };
            assert!(
                cache.get(key(offset), kind).is_some(),
                "{kind:?} {offset} is gone"
            );
        }
        let stats = cache.stats();
        assert_eq!(stats.hits, [0, 50, 50]);
    }

    #[test]
    fn a_skewed_workload_hits_about_as_often_as_its_hot_set_allows() {
        let cache = BlockCache::new(4 << 20);
        let mut state = 7u64;
        for _ in 0..200_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let random = state >> 33;
            // Nine of ten reads go to 500 blocks of the 1000 that fit, the rest to 100,000.
            let offset = if random % 10 < 9 {
                random % 500
            } else {
                1000 + random % 100_000
            };
            read(&cache, offset);
        }
        let stats = cache.stats();
        let rate = stats.hits[0] as f64 / 200_000.0;
        assert!(rate > 0.87, "hit rate {rate}");
    }

    #[test]
    fn the_first_of_two_inserts_wins() {
        let cache = BlockCache::new(1 << 20);
        let first = cache.insert(key(1), data());
        let second = cache.insert(key(1), data());
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(cache.stats().blocks, 1);
    }

    #[test]
    fn threads_share_a_cache() {
        let cache = BlockCache::new(2 << 20);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let cache = &cache;
                scope.spawn(move || {
                    for offset in 0..20_000u64 {
                        read(cache, (offset * 31 + thread * 17) % 1500);
                    }
                });
            }
        });
        let stats = cache.stats();
        assert_eq!(stats.hits[0] + stats.misses[0], 80_000);
        assert!(stats.charged <= 2 << 20);
    }
}
