//! The table under loom: small tables in which a slot is read, emptied and used again at once, in every order
//! of the steps with up to three preemptions.
//!
//! Each model fails where an entry is read that was not yet whole, where it or the table is freed before all who
//! read it are done, or never ([`Watch`]), and where what it asserts does not hold.

use ::loom::sync::{Arc, Mutex};
use ::loom::thread;

use super::*;

const A: u8 = b'a';
const B: u8 = b'b';
const C: u8 = b'c';

/// All keys of a model have this tag where it does not say otherwise: they want the same slot, and a reader tells
/// them apart by the key alone.
const TAG: u64 = 4;

fn explore(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = ::loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn key(name: u8) -> CacheKey {
    CacheKey {
        table: u64::from(name),
        offset: 0,
    }
}

/// A table, and the shard's lock, which makes a thread its writer.
struct Shared {
    table: TableOwner,
    lock: Mutex<()>,
}

impl Shared {
    fn new(slots: usize) -> Arc<Self> {
        Arc::new(Shared {
            table: TableOwner::new(slots),
            lock: Mutex::new(()),
        })
    }

    /// Puts an entry in that was never read; returns its slot.
    fn put(&self, name: u8, tag: u64) -> u32 {
        let _writer = self.lock.lock().expect("no model panics");
        let item = Item::Value {
            key: [name].into(),
            value: vec![name],
        };
        self.table.put(key(name), tag, 1, item, 0).0
    }

    /// The entry, if it is found; it is the key's own.
    fn find(&self, name: u8, tag: u64) -> Option<Held> {
        let held = self.table.find(&key(name), tag, false)?;
        assert_own(&held, name);
        Some(held)
    }

    /// One visit of the clock; true where the entry went. What it was is freed with the lock released.
    fn visit(&self, at: u32) -> bool {
        let writer = self.lock.lock().expect("no model panics");
        let visited = self.table.visit(at, true);
        drop(writer);
        match visited {
            Visited::Out(entry) => {
                entry.watch.read();
                true
            }
            Visited::Held | Visited::Read => false,
        }
    }

    fn meta(&self, at: u32) -> u64 {
        self.table.slots()[at as usize].meta.load(Ordering::SeqCst)
    }

    /// Nobody holds the entry: it goes with the visit after the one that forgets its reads.
    fn assert_free(&self, at: u32) {
        let meta = self.meta(at);
        assert_eq!((state(meta), holders(meta)), (SHAREABLE, 0));
        assert!(self.visit(at) || self.visit(at), "somebody still holds it");
    }
}

fn assert_own(held: &Held, name: u8) {
    match &held.entry().item {
        Item::Value { key, value } => assert_eq!((&**key, &**value), (&[name][..], &[name][..])),
        Item::Block(_) => unreachable!("models put values in"),
    }
}

#[test]
fn a_slot_that_changes_hands_gives_each_reader_his_own_entry_or_none() {
    explore(|| {
        let shared = Shared::new(1);
        let at = shared.put(A, TAG);
        let readers = [A, B].map(|name| {
            let shared = shared.clone();
            thread::spawn(move || drop(shared.find(name, TAG)))
        });
        let went = shared.visit(at) || shared.visit(at);
        if went {
            assert_eq!(shared.put(B, TAG), at);
        }
        for reader in readers {
            reader.join().expect("no reader panics");
        }
        assert!(shared.find(if went { B } else { A }, TAG).is_some());
        assert!(shared.find(if went { A } else { B }, TAG).is_none());
        shared.assert_free(at);
        assert_eq!(shared.meta(at), EMPTY);
    });
}

#[test]
fn what_two_readers_hold_goes_after_both_let_go() {
    explore(|| {
        let shared = Shared::new(1);
        let at = shared.put(A, TAG);
        let readers = [false, true].map(|clones| {
            let shared = shared.clone();
            thread::spawn(move || {
                let Some(held) = shared.find(A, TAG) else {
                    return;
                };
                let other = clones.then(|| held.clone());
                drop(held);
                if let Some(other) = other {
                    assert_own(&other, A);
                }
            })
        });
        let went = shared.visit(at);
        for reader in readers {
            reader.join().expect("no reader panics");
        }
        if !went {
            shared.assert_free(at);
        }
        // Counts that late readers left in the empty slot mean nothing to the next entry.
        assert_eq!(shared.put(B, TAG), at);
        shared.assert_free(at);
    });
}

#[test]
fn a_silent_look_that_meets_an_eviction_leaves_no_count() {
    explore(|| {
        let shared = Shared::new(1);
        let at = shared.put(A, TAG);
        let looker = {
            let shared = shared.clone();
            thread::spawn(move || {
                if let Some(held) = shared.table.find(&key(A), TAG, true) {
                    assert_own(&held, A);
                }
            })
        };
        let went = shared.visit(at);
        looker.join().expect("no looker panics");
        if !went {
            assert_eq!(shared.meta(at), shareable(0));
            assert!(shared.visit(at), "nobody has read it");
        }
    });
}

#[test]
fn reads_are_forgotten_of_what_nobody_holds_alone() {
    explore(|| {
        let shared = Shared::new(1);
        let at = shared.put(A, TAG);
        drop(shared.find(A, TAG));
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || {
                assert!(shared.find(A, TAG).is_some(), "A was always there");
            })
        };
        let writer = shared.lock.lock().expect("no model panics");
        shared.table.forget_reads(&key(A), TAG);
        drop(writer);
        reader.join().expect("no reader panics");
        // All, the one that came later, or both where the reader was there.
        let meta = shared.meta(at);
        assert!((0..=2).any(|count| meta == shareable(count)), "{meta:x}");
        shared.assert_free(at);
    });
}

#[test]
fn what_a_writer_takes_out_is_a_readers_before_or_never() {
    explore(|| {
        let shared = Shared::new(1);
        let at = shared.put(A, TAG);
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || drop(shared.find(A, TAG)))
        };
        let writer = shared.lock.lock().expect("no model panics");
        let removed = shared.table.remove(&key(A), TAG);
        drop(writer);
        let went = removed.is_some();
        if let Some((slot, entry)) = removed {
            assert_eq!(slot, at);
            entry.watch.read();
            drop(entry);
            assert_eq!(shared.put(B, TAG), at);
        }
        reader.join().expect("no reader panics");
        assert!(shared.find(if went { B } else { A }, TAG).is_some());
        shared.assert_free(at);
    });
}

#[test]
fn an_entry_past_another_is_found_while_that_one_goes_and_a_third_comes() {
    explore(|| {
        let shared = Shared::new(4);
        // Both want slot 0; B lies in slot 1.
        let (first, second) = (shared.put(A, TAG), shared.put(B, TAG + 4));
        assert_eq!((first, second), (0, 1));
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || {
                assert!(shared.find(B, TAG + 4).is_some(), "B was always there");
            })
        };
        assert!(shared.visit(first), "nobody asks for A");
        assert_eq!(shared.put(C, TAG), first);
        reader.join().expect("no reader panics");
        shared.assert_free(first);
        shared.assert_free(second);
    });
}

#[test]
fn counters_near_their_top_are_halved_by_readers_and_never_carry() {
    explore(|| {
        let shared = Shared::new(1);
        let at = shared.put(A, TAG);
        // As after very many reads: the next one to let go sets the top bits.
        let reads = COUNTER_TOP - 1;
        shared.table.slots()[0]
            .meta
            .store(shareable(reads), Ordering::SeqCst);
        let readers = [1, 2].map(|reads| {
            let shared = shared.clone();
            thread::spawn(move || {
                for _ in 0..reads {
                    assert!(shared.find(A, TAG).is_some(), "A was always there");
                }
            })
        });
        for reader in readers {
            reader.join().expect("no reader panics");
        }
        let meta = shared.meta(at);
        assert_eq!((state(meta), holders(meta)), (SHAREABLE, 0));
        // Three more reads, of which the first to find the top bit took it from both.
        let counted = acquired(meta);
        assert!(counted == 2 || counted == reads + 3, "{counted}");
        shared.assert_free(at);
    });
}

#[test]
fn the_last_of_a_cache_and_its_holders_frees_entry_and_table_once() {
    explore(|| {
        let table = TableOwner::new(1);
        let item = Item::Value {
            key: [A].into(),
            value: vec![A],
        };
        let (_, held) = table.put(key(A), TAG, 1, item, 0);
        let read = table.find(&key(A), TAG, false).expect("it was just put in");
        let holders = [held, read].map(|held| {
            thread::spawn(move || {
                let other = held.clone();
                drop(held);
                assert_own(&other, A);
            })
        });
        drop(table);
        for holder in holders {
            holder.join().expect("no holder panics");
        }
    });
}
