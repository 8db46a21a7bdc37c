//! A shard of the cache: a table that readers use without a lock, and under one lock what decides who
//! stays.
//!
//! Entries are in one of three pools: *index* (index and filter blocks), *data* (data blocks) and *values*
//! (separated values). Each evicts by S3-FIFO (Yang et al., "FIFO queues are all you need for cache
//! eviction", SOSP 2023): a new entry enters the *small* queue, a tenth of the pool; if it is not read
//! again before it reaches the end it goes, so that a scan passes through the tenth alone; read again, it
//! moves to the *main* queue, a clock whose counters readers bump ([`super::slot`]). An entry that left not
//! long ago and comes back enters main at once; so do index and filter blocks, with a full counter, and blocks written anew
//! in the place of cached ones, whose own counters are cleared then so that they are the first to go.
//!
//! Which pool gives, when there is no room:
//! - the index pool, to an index or filter block, when it has all but a quarter of the room;
//! - values, when they have more than their share of what the index pool leaves;
//! - else data blocks; then whatever there is.
//!
//! A value that would take its pool over its share never makes a data block go: it takes the place of
//! other values, or is not kept and only remembered ([`super::ghost`]), so that values which are not worth
//! their bytes do not drive out what they are found by. The share follows what comes back ([`super::split`]).
//!
//! Invariants, whenever the lock is free: `charged` is the sum of the charges of the entries in the table;
//! every entry is in exactly one queue; an insert leaves at most the room of its moment charged.

use std::collections::VecDeque;

use super::ghost::Ghosts;
use super::slot::{COUNT_MAX, Entry, Held, TableOwner, Visited};
use super::split::Split;
use super::{BlockKind, CacheKey, Item, WarmRank};

/// Bytes that an entry takes beside its contents and its slot: itself and its place in a queue.
pub(super) const ENTRY_OVERHEAD: usize = size_of::<Entry>() + 16;

/// A value larger than this part of the room is not kept.
const VALUE_PART_MAX: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PoolKind {
    Index = 0,
    Data = 1,
    Values = 2,
}

impl PoolKind {
    pub(super) fn of(kind: BlockKind) -> Self {
        match kind {
            BlockKind::Data | BlockKind::Packed => PoolKind::Data,
            BlockKind::Index | BlockKind::Filter | BlockKind::BlobIndex => PoolKind::Index,
            BlockKind::Value => PoolKind::Values,
        }
    }
}

/// What is to be put in.
pub(super) struct Offer {
    pub(super) key: CacheKey,
    pub(super) item: Item,
    /// Bytes that were read from the device for it; 0 where it is kept in advance.
    pub(super) cost: usize,
    pub(super) rank: WarmRank,
}

#[derive(Default)]
struct Pool {
    charged: usize,
    small_charged: usize,
    /// Slots, oldest first.
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghosts: Option<Ghosts>,
    ghost_hits: u64,
}

/// What the lock guards, and the table's writer.
pub(super) struct Shard {
    pools: [Pool; 3],
    entries: usize,
    inserts: u64,
    evictions: u64,
}

/// What a shard holds and did.
#[derive(Clone, Copy, Default)]
pub(super) struct ShardStats {
    pub(super) charged: [usize; 3],
    pub(super) ghost_hits: [u64; 3],
    pub(super) entries: usize,
    pub(super) inserts: u64,
    pub(super) evictions: u64,
}

/// Entries taken out, to be freed when the lock is.
pub(super) type Evicted = Vec<Box<Entry>>;

impl Shard {
    /// A shard whose table has so many slots.
    pub(super) fn new(slots: usize) -> Self {
        let pool = |ghosts: bool| Pool {
            ghosts: ghosts.then(|| Ghosts::new(slots)),
            ..Pool::default()
        };
        Shard {
            pools: [pool(false), pool(true), pool(true)],
            entries: 0,
            inserts: 0,
            evictions: 0,
        }
    }

    pub(super) fn charged(&self) -> usize {
        self.pools.iter().map(|pool| pool.charged).sum()
    }

    pub(super) fn stats(&self) -> ShardStats {
        ShardStats {
            charged: self.pools.each_ref().map(|pool| pool.charged),
            ghost_hits: self.pools.each_ref().map(|pool| pool.ghost_hits),
            entries: self.entries,
            inserts: self.inserts,
            evictions: self.evictions,
        }
    }

    /// Lets entries go until at most `room` bytes are charged, as far as nobody holds them.
    pub(super) fn shrink(
        &mut self,
        table: &TableOwner,
        room: usize,
        split: &Split,
        evicted: &mut Evicted,
    ) {
        while self.charged() > room && self.evict(table, self.victim(room, split), evicted) {}
    }

    /// Keeps what is offered, if `room` bytes have a place for it; gives it back if not. Its key is not in
    /// the table.
    pub(super) fn insert(
        &mut self,
        table: &TableOwner,
        offer: Offer,
        room: usize,
        split: &Split,
        evicted: &mut Evicted,
    ) -> Result<Held, Item> {
        let kind = PoolKind::of(offer.item.kind());
        let tag = offer.key.tag();
        let charge = offer.item.memory() + ENTRY_OVERHEAD;
        let index = self.pools[PoolKind::Index as usize].charged;
        let shared = room.saturating_sub(index);
        let too_large = match kind {
            PoolKind::Values => charge > room / VALUE_PART_MAX,
            _ => charge > room,
        };
        if too_large {
            return Err(offer.item);
        }
        let pool = &mut self.pools[kind as usize];
        let ghosts = pool.ghosts.as_mut();
        let came_back = ghosts.is_some_and(|ghosts| ghosts.take(tag, shared / 2));
        if came_back && offer.cost > 0 {
            pool.ghost_hits += 1;
            split.step(kind == PoolKind::Values, offer.cost, room);
        }
        if !self.make_room(table, kind, charge, (room, split), evicted) {
            let pool = &mut self.pools[kind as usize];
            if let Some(ghosts) = &mut pool.ghosts {
                ghosts.remember(tag, charge);
            }
            return Err(offer.item);
        }
        let important = kind == PoolKind::Index;
        let count = if important { COUNT_MAX } else { 0 };
        let (at, held) = table.put(offer.key, tag, charge, offer.item, count);
        let pool = &mut self.pools[kind as usize];
        pool.charged += charge;
        self.entries += 1;
        self.inserts += 1;
        if important || came_back || offer.rank == WarmRank::Heir {
            pool.main.push_back(at);
        } else {
            pool.small.push_back(at);
            pool.small_charged += charge;
        }
        Ok(held)
    }

    /// Takes the entry of `key` out, if it is here and nobody holds it. It is looked for in its queue, so this is for
    /// entries of the index pool, of which there are few.
    pub(super) fn discard(
        &mut self,
        table: &TableOwner,
        key: &CacheKey,
        tag: u64,
    ) -> Option<Box<Entry>> {
        let (at, entry) = table.remove(key, tag)?;
        let pool = &mut self.pools[PoolKind::of(entry.item.kind()) as usize];
        pool.charged -= entry.charge;
        if let Some(place) = pool.main.iter().position(|&slot| slot == at) {
            pool.main.remove(place);
        } else {
            let place = pool.small.iter().position(|&slot| slot == at);
            pool.small.remove(place.expect("every entry is in a queue"));
            pool.small_charged -= entry.charge;
        }
        self.entries -= 1;
        self.evictions += 1;
        Some(entry)
    }

    /// Evicts until `charge` bytes more fit into `room`; false where they cannot.
    fn make_room(
        &mut self,
        table: &TableOwner,
        kind: PoolKind,
        charge: usize,
        (room, split): (usize, &Split),
        evicted: &mut Evicted,
    ) -> bool {
        // Probes stay short while a quarter of the slots is empty.
        let entries_max = table.len() / 4 * 3;
        while self.charged() + charge > room || self.entries >= entries_max {
            let [index, _, values] = &self.pools;
            let for_values = split.values_of(room.saturating_sub(index.charged));
            let victim = match kind {
                PoolKind::Index if index.charged + charge > room / 4 * 3 => PoolKind::Index,
                PoolKind::Values if values.charged + charge > for_values => PoolKind::Values,
                _ => self.victim(room, split),
            };
            if !self.evict(table, victim, evicted) {
                return false;
            }
        }
        true
    }

    /// The pool that gives when nothing else says which.
    fn victim(&self, room: usize, split: &Split) -> PoolKind {
        let [index, data, values] = &self.pools;
        let for_values = split.values_of(room.saturating_sub(index.charged));
        if values.charged > for_values || data.charged == 0 && values.charged > 0 {
            PoolKind::Values
        } else if data.charged > 0 {
            PoolKind::Data
        } else {
            PoolKind::Index
        }
    }

    /// Lets one entry of a pool go; false where there is none that nobody holds.
    fn evict(&mut self, table: &TableOwner, kind: PoolKind, evicted: &mut Evicted) -> bool {
        let pool = &mut self.pools[kind as usize];
        // An entry is passed over at most as often as it was read, and once to move to main.
        let steps = (pool.small.len() + pool.main.len()) * (COUNT_MAX as usize + 2);
        for _ in 0..steps {
            let from_small = !pool.small.is_empty()
                && (pool.small_charged > pool.charged / 10 || pool.main.is_empty());
            let queue = match from_small {
                true => &mut pool.small,
                false => &mut pool.main,
            };
            let at = queue.pop_front().expect("a pool with steps has an entry");
            match table.visit(at, from_small) {
                Visited::Out(entry) => {
                    pool.charged -= entry.charge;
                    if from_small {
                        pool.small_charged -= entry.charge;
                    }
                    if let Some(ghosts) = &mut pool.ghosts {
                        ghosts.remember(entry.key.tag(), entry.charge);
                    }
                    self.entries -= 1;
                    self.evictions += 1;
                    evicted.push(entry);
                    return true;
                }
                Visited::Held | Visited::Read => {
                    if from_small {
                        pool.small_charged -= table.charge_of(at);
                    }
                    pool.main.push_back(at);
                }
            }
        }
        false
    }
}
