//! Tests of the cache: its budget, who stays, the split, and threads that read, put in and evict at once.
//!
//! Miri runs those that say what threads do:
//! `MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test -p lavakv --lib -- cache::tests::threads the_last_holder same_hash`.

use std::sync::atomic::AtomicBool;

use super::*;

const BLOCK: usize = 4096;

fn key(offset: u64) -> CacheKey {
    CacheKey { table: 1, offset }
}

fn block(kind: BlockKind) -> Block {
    Block::for_cache_tests(kind, BLOCK)
}

fn read(cache: &BlockCache, offset: u64) -> bool {
    let hit = cache.get(key(offset), BlockKind::Data).is_some();
    if !hit {
        cache.insert(key(offset), block(BlockKind::Data), BLOCK);
    }
    hit
}

fn read_value(cache: &BlockCache, number: u64, len: usize) -> bool {
    let internal_key = number.to_le_bytes();
    let key = CacheKey::of_value(7, &internal_key);
    let hit = cache.get_value(key, &internal_key).is_some();
    if !hit {
        let value = vec![number as u8; len];
        cache.insert_value(key, &internal_key, value, len);
    }
    hit
}

#[test]
fn the_budget_holds_at_any_capacity() {
    for capacity in [0, 1, 5000, 100_000, 10 << 20] {
        let cache = BlockCache::new(capacity);
        for offset in 0..20_000u64 {
            read(&cache, offset * 7919 % 6000);
            if offset % 5 == 0 {
                read_value(&cache, offset * 31 % 3000, 100 + offset as usize % 20_000);
            }
            if offset.is_multiple_of(500) {
                assert!(cache.stats().charged <= capacity);
            }
        }
        let stats = cache.stats();
        assert!(stats.charged <= capacity);
        assert!(
            capacity < 10 << 20 || stats.charged > capacity * 9 / 10,
            "it is used: {stats:?}"
        );
        assert_eq!(stats.hits[0] + stats.misses[0], 20_000);
        assert_eq!(stats.hits[3] + stats.misses[3], 4000);
        assert_eq!(stats.inserts - stats.evictions, stats.blocks as u64);
    }
}

#[test]
fn entries_give_way_to_reserved_memory_down_to_a_quarter() {
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
    assert_eq!(cache.unreserved(), 2 << 20);
    let filter = cache.reserve(100 << 20);
    assert_eq!(cache.unreserved(), 0);
    fill(20_000);
    assert!((1 << 20..=2 << 20).contains(&cache.stats().charged));
    drop((index, filter));
    fill(30_000);
    assert!(cache.stats().charged > 7 << 20 && cache.stats().reserved == 0);
    let _all = cache.reserve(6 << 20);
    cache.make_room();
    assert!(cache.stats().charged <= 2 << 20);
}

/// What an open blob file is to the cache.
struct File {
    used: AtomicBool,
    memory: Mutex<Option<Reservation>>,
}

const FILE_BYTES: usize = 100 << 10;

impl File {
    fn open(cache: &Arc<BlockCache>, used: bool) -> Arc<Self> {
        let file = Arc::new(File {
            used: AtomicBool::new(used),
            memory: Mutex::new(Some(cache.reserve_evictable(FILE_BYTES))),
        });
        cache.keep(&file);
        file
    }

    fn is_open(&self) -> bool {
        self.memory.lock().is_some()
    }
}

impl Evictable for File {
    fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    fn evict(&self) -> usize {
        self.memory.lock().take().map_or(0, |_freed| FILE_BYTES)
    }
}

#[test]
fn open_files_give_way_to_each_other_at_three_quarters_of_the_budget() {
    let capacity = 8 << 20;
    let cache = BlockCache::new(capacity);
    for offset in 0..4000 {
        read(&cache, offset);
    }
    let hot = File::open(&cache, true);
    let mut files = Vec::new();
    for number in 0..300 {
        files.push(File::open(&cache, number % 2 == 0));
        hot.used.store(true, Ordering::Relaxed);
        read(&cache, 10_000 + number);
        let stats = cache.stats();
        assert!(stats.reserved <= capacity / 4 * 3, "{stats:?}");
        assert!(stats.charged + stats.reserved <= capacity, "{stats:?}");
    }
    assert!(hot.is_open(), "it was always in use");
    let open = files.iter().filter(|file| file.is_open()).count();
    assert!((50..=60).contains(&open), "{open} files are open");
    let unused = files.iter().skip(1).step_by(2);
    let recent = unused
        .clone()
        .skip(145)
        .filter(|file| file.is_open())
        .count();
    assert!(recent >= 4, "those opened last stay: {recent}");
    // Memory that is reserved for good goes first; some of both kinds stays all the same.
    let fixed = cache.reserve(7 << 20);
    for number in 0..1000 {
        read(&cache, 20_000 + number);
    }
    let stats = cache.stats();
    let left = capacity / 4;
    let evictable = stats.blob_index_reserved;
    assert!(
        evictable <= left / 4 * 3 && evictable > left / 2,
        "{stats:?}"
    );
    assert!(stats.charged + evictable <= left, "{stats:?}");
    assert!(stats.charged > left / 8, "{stats:?}");
    drop((fixed, hot, files));
    let stats = cache.stats();
    assert_eq!((stats.reserved, stats.blob_index_reserved), (0, 0));
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
    let kind = |offset: u64| match offset % 2 {
        0 => BlockKind::Index,
        _ => BlockKind::Filter,
    };
    for offset in 0..100 {
        cache.insert(key(offset), block(kind(offset)), BLOCK);
    }
    for offset in 0..10_000 {
        read(&cache, 1_000_000 + offset);
    }
    for offset in 0..100 {
        assert!(cache.get(key(offset), kind(offset)).is_some());
    }
}

#[test]
fn index_blocks_leave_data_a_quarter() {
    let cache = BlockCache::new(4 << 20);
    for offset in 0..2000 {
        read(&cache, 1_000_000 + offset);
        cache.insert(key(offset), block(BlockKind::Index), BLOCK);
    }
    let stats = cache.stats();
    assert!(stats.index_charged > 2 << 20, "{stats:?}");
    assert!(stats.data_charged > 700 << 10, "{stats:?}");
}

#[test]
fn large_values_do_not_drive_out_the_blocks_that_lead_to_them() {
    // Blocks for all keys just fit; values are a hundred times as much.
    let cache = BlockCache::new(4 << 20);
    let blocks = 800;
    let mut state = 88172645463325252u64;
    let mut misses = 0;
    for round in 0..40_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        misses += usize::from(!read(&cache, state % blocks) && round > 20_000);
        read_value(&cache, state % 50_000, 16_000);
    }
    let stats = cache.stats();
    assert!(misses < 200, "{misses} of 20,000 blocks, {stats:?}");
}

#[test]
fn the_split_follows_what_is_read_there_and_back() {
    let cache = BlockCache::new(8 << 20);
    let mut state = 88172645463325252u64;
    let mut draw = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    // Hot blocks that would take all, and values that are never read twice.
    let mut cold = 0;
    for _ in 0..60_000 {
        read(&cache, draw(2500));
        cold += 1;
        read_value(&cache, 1_000_000 + cold, 4000);
    }
    let first = cache.stats();
    // Hot values, and blocks that are never read twice.
    for _ in 0..60_000 {
        read_value(&cache, draw(2500), 4000);
        cold += 1;
        read(&cache, 1_000_000 + cold);
    }
    let second = cache.stats();
    for _ in 0..60_000 {
        read(&cache, draw(2500));
        cold += 1;
        read_value(&cache, 1_000_000 + cold, 4000);
    }
    let third = cache.stats();
    assert!(first.value_target < 100 << 10, "{first:?}");
    assert!(second.value_target > 6 << 20, "{second:?}");
    assert!(second.value_charged > 6 << 20, "{second:?}");
    assert!(third.value_target < 100 << 10, "{third:?}");
    assert!(third.data_charged > 7 << 20, "{third:?}");
    assert!(first.charged.max(second.charged).max(third.charged) <= 8 << 20);
}

#[test]
fn a_silent_look_keeps_nothing_alive() {
    let cache = BlockCache::new(2 << 20);
    for offset in 0..300 {
        read(&cache, offset);
    }
    let before = cache.stats();
    for offset in 0..300 {
        assert!(cache.peek(key(offset), BlockKind::Data).is_some());
    }
    assert_eq!(cache.stats(), before);
    for offset in 0..2000 {
        read(&cache, 1_000_000 + offset);
    }
    let kept = (0..300).filter(|&offset| cache.peek(key(offset), BlockKind::Data).is_some());
    assert_eq!(kept.count(), 0);
}

#[test]
fn what_is_held_stays_and_outlives_its_cache() {
    let cache = BlockCache::new(2 << 20);
    let kept = cache.insert(key(1), block(BlockKind::Data), BLOCK);
    let value = cache.insert_value(CacheKey::of_value(1, b"key"), b"key", vec![7; 100], 100);
    let same = kept.clone();
    for offset in 10..5000 {
        read(&cache, offset);
    }
    assert!(cache.peek(key(1), BlockKind::Data).is_some(), "held");
    drop(cache);
    assert_eq!(kept.kind(), BlockKind::Data);
    assert_eq!(*value, [7; 100]);
    drop(kept);
    let thread = std::thread::spawn(move || same.memory());
    assert!(thread.join().unwrap() >= BLOCK);
    assert_eq!(*value, [7; 100]);
}

#[test]
fn values_with_the_same_hash_are_not_taken_for_each_other() {
    let cache = BlockCache::new(2 << 20);
    let same_hash = CacheKey::of_value(1, b"a");
    cache.insert_value(same_hash, b"a", vec![1; 10], 10);
    assert!(cache.get_value(same_hash, b"b").is_none());
    let other = cache.insert_value(same_hash, b"b", vec![2; 10], 10);
    assert_eq!(*other, [2; 10]);
    let first = cache.get_value(same_hash, b"a").unwrap();
    assert_eq!(*first, [1; 10]);
}

/// A reader missed a block, and while it read, a compaction warmed the cache with the compressed form: the reader
/// got that back for its own, and panicked.
#[test]
fn a_block_is_not_exchanged_for_its_compressed_form() {
    let cache = BlockCache::new(1 << 20);
    cache.insert_warm(key(0), block(BlockKind::Packed), WarmRank::Heir);
    let own = cache.insert(key(0), block(BlockKind::Data), BLOCK);
    assert_eq!(own.kind(), BlockKind::Data);
    let there = cache.get(key(0), BlockKind::Data).unwrap();
    assert_eq!(
        there.kind(),
        BlockKind::Packed,
        "the one that came first stays"
    );
}

/// A value of another length than the reference says counts as a miss; it came back from the insert all the same.
#[test]
fn a_value_is_not_exchanged_for_one_of_another_length() {
    let cache = BlockCache::new(1 << 20);
    let key = CacheKey::of_value(1, b"key");
    cache.insert_value(key, b"key", vec![1; 10], 10);
    assert_eq!(*cache.insert_value(key, b"key", vec![2; 20], 20), [2; 20]);
    assert_eq!(*cache.insert_value(key, b"key", vec![3; 10], 10), [1; 10]);
}

#[test]
fn what_is_discarded_is_gone_and_its_room_free_unless_it_is_held() {
    let cache = BlockCache::new(1 << 20);
    let empty = cache.stats().charged;
    for offset in 0..30 {
        cache.insert(key(offset), block(BlockKind::Index), BLOCK);
        read(&cache, 1000 + offset);
    }
    let held = cache.get(key(7), BlockKind::Index).unwrap();
    for offset in 0..30 {
        cache.discard(key(offset));
        cache.discard(key(1000 + offset));
        cache.discard(key(2000 + offset));
    }
    let stats = cache.stats();
    assert_eq!((stats.blocks, stats.data_charged), (1, 0), "{stats:?}");
    assert_eq!(stats.inserts - stats.evictions, 1);
    assert_eq!(held.kind(), BlockKind::Index);
    drop(held);
    cache.discard(key(7));
    assert_eq!(cache.stats().charged, empty);
    // Its queues and slots are as good as new.
    for offset in 0..20_000 {
        read(&cache, offset % 500);
        assert!(offset % 1000 > 0 || cache.stats().charged <= 1 << 20);
    }
}

/// Threads that read, put in, hold, clone and discard, in a table so small that every slot is used again and again.
#[test]
fn threads_find_what_they_ask_for_or_nothing() {
    let rounds = if cfg!(miri) { 60 } else { 30_000 };
    let cache = BlockCache::new(24 << 10);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let cache = &cache;
            scope.spawn(move || {
                let mut state = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(thread + 1);
                let mut held = Vec::new();
                for _ in 0..rounds {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    let number = state % 60;
                    let internal_key = number.to_le_bytes();
                    let key = CacheKey::of_value(7, &internal_key);
                    let value = match cache.get_value(key, &internal_key) {
                        Some(value) => value,
                        None => {
                            let value = vec![number as u8; 100 + number as usize * 8];
                            cache.insert_value(key, &internal_key, value, 100)
                        }
                    };
                    assert_eq!(value.len(), 100 + number as usize * 8);
                    assert!(value.iter().all(|&byte| byte == number as u8));
                    if state & 7 == 0 {
                        held.push(value.clone());
                    }
                    if state & 0x70 == 0 {
                        drop(value);
                        cache.discard(key);
                    }
                    if held.len() > 6 {
                        held.clear();
                    }
                }
            });
        }
    });
    let stats = cache.stats();
    assert!(stats.charged <= 24 << 10, "{stats:?}");
    assert_eq!(stats.inserts - stats.evictions, stats.blocks as u64);
    assert!(cfg!(miri) || stats.evictions > 1000, "{stats:?}");
}

/// The cache goes while other threads hold what it had: the last of them frees it.
#[test]
fn the_last_holder_frees_what_its_cache_left() {
    for round in 0..if cfg!(miri) { 3 } else { 200 } {
        let cache = BlockCache::new(64 << 10);
        let values: Vec<ValueRef> = (0..8u8)
            .map(|number| {
                cache.insert_value(
                    CacheKey::of_value(round, &[number]),
                    &[number],
                    vec![number; 500],
                    500,
                )
            })
            .collect();
        std::thread::scope(|scope| {
            for (number, value) in values.into_iter().enumerate() {
                let other = value.clone();
                scope.spawn(move || assert_eq!(*value, [number as u8; 500]));
                scope.spawn(move || assert_eq!(*other, [number as u8; 500]));
            }
            drop(cache);
        });
    }
}
