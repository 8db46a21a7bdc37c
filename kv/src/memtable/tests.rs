//! Tests of the memtable; small enough for Miri:
//! `MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test -p lavakv --lib memtable`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::key::{InternalKey, MAX_SEQ, compare_internal};

fn keys_forward(iter: &mut MemTableIterator) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    iter.seek_to_first();
    while iter.valid() {
        keys.push(iter.key().to_vec());
        iter.next();
    }
    keys
}

fn keys_backward(iter: &mut MemTableIterator) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    iter.seek_to_last();
    while iter.valid() {
        keys.push(iter.key().to_vec());
        iter.prev();
    }
    keys.reverse();
    keys
}

#[test]
fn a_reader_sees_the_newest_version_at_its_snapshot() {
    let table = MemTable::new(1);
    assert!(table.is_empty());
    table.insert(5, ValueKind::Value, b"k", b"five");
    table.insert(9, ValueKind::Delete, b"k", b"");
    table.insert(7, ValueKind::Value, b"kk", b"");
    assert_eq!(table.get(b"k", 4), None);
    assert_eq!(
        table.get(b"k", 8),
        Some((5, ValueKind::Value, &b"five"[..]))
    );
    assert_eq!(
        table.get(b"k", MAX_SEQ),
        Some((9, ValueKind::Delete, &b""[..]))
    );
    assert_eq!(table.get(b"kk", 7), Some((7, ValueKind::Value, &b""[..])));
    assert_eq!(table.get(b"j", MAX_SEQ), None);
    assert_eq!(table.get(b"z", MAX_SEQ), None);
    assert_eq!(table.entries(), 3);
}

#[test]
#[should_panic(expected = "inserted twice")]
fn inserting_one_version_twice_panics() {
    let table = MemTable::new(1);
    table.insert(5, ValueKind::Value, b"k", b"");
    table.insert(5, ValueKind::Value, b"k", b"");
}

#[test]
fn an_iterator_keeps_its_memtable_alive() {
    let table = MemTable::new(1);
    table.insert(5, ValueKind::Value, b"k", b"v");
    let mut iter = table.iter();
    drop(table);
    iter.seek_to_first();
    assert_eq!(iter.value(), b"v");
}

#[test]
fn sequential_and_reverse_inserts_keep_order() {
    for reverse in [false, true] {
        let table = MemTable::new(1);
        let count: u64 = if cfg!(miri) { 60 } else { 20_000 };
        for i in 0..count {
            let key = if reverse { count - i } else { i };
            table.insert(i, ValueKind::Value, &key.to_be_bytes(), &i.to_le_bytes());
        }
        let keys = keys_forward(&mut table.iter());
        assert_eq!(keys.len() as u64, count);
        assert!(keys.is_sorted_by(|a, b| compare_internal(a, b).is_lt()));
        if count < 1000 {
            assert_eq!(keys_backward(&mut table.iter()), keys);
        }
    }
}

/// Writers insert keys that share heads, so that hints mislead; readers check all along that
/// what was published can be read.
#[test]
fn published_keys_are_found_while_others_are_inserted() {
    let writers: u64 = 3;
    let count: u64 = if cfg!(miri) { 25 } else { 20_000 };
    let key = |writer: u64, i: u64| {
        let mixed = (i * writers + writer).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let wide = mixed.to_be_bytes();
        // Half of the keys differ only after the head.
        if i.is_multiple_of(2) {
            wide.to_vec()
        } else {
            [b"same-head", &wide[..]].concat()
        }
    };
    let table = MemTable::new(1);
    let published: Vec<AtomicU64> = (0..writers).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let (table, published) = (&table, &published);
            scope.spawn(move || {
                for i in 0..count {
                    let seq = i * writers + writer;
                    table.insert(seq, ValueKind::Value, &key(writer, i), &seq.to_le_bytes());
                    published[writer as usize].store(i + 1, Ordering::Release);
                }
            });
        }
        for _ in 0..2 {
            let (table, published) = (&table, &published);
            scope.spawn(move || {
                let mut round = 0;
                while published.iter().any(|p| p.load(Ordering::Acquire) < count) {
                    round += 1;
                    for writer in 0..writers {
                        let done = published[writer as usize].load(Ordering::Acquire);
                        let Some(i) = (round * 7919u64).checked_rem(done) else {
                            continue;
                        };
                        let (key, seq) = (key(writer, i), i * writers + writer);
                        let value = seq.to_le_bytes();
                        let expected = (seq, ValueKind::Value, &value[..]);
                        assert_eq!(table.get(&key, MAX_SEQ), Some(expected));
                        let mut iter = table.iter();
                        let internal = InternalKey::new(&key, seq, ValueKind::Value);
                        iter.seek_for_prev(internal.as_bytes());
                        assert_eq!(iter.key(), internal.as_bytes());
                        iter.next();
                        if iter.valid() {
                            // What is before a later key is this one or newer than it.
                            iter.prev();
                            assert!(iter.valid());
                            let order = compare_internal(iter.key(), internal.as_bytes());
                            assert!(order.is_ge());
                        }
                    }
                }
            });
        }
    });
    assert_eq!(table.entries(), writers * count);
    let keys = keys_forward(&mut table.iter());
    assert_eq!(keys.len() as u64, writers * count);
    assert!(keys.is_sorted_by(|a, b| compare_internal(a, b).is_lt()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 128 }) })]
    #[test]
    fn agrees_with_an_ordered_map(
        writes in prop::collection::vec((prop::collection::vec(0u8..3, 0..12), 0usize..50), 1..80),
        probes in prop::collection::vec((prop::collection::vec(0u8..3, 0..12), 0u64..90), 1..40),
    ) {
        let table = MemTable::new(1);
        let mut model = BTreeMap::new();
        for (seq, (key, len)) in writes.into_iter().enumerate() {
            let value = vec![seq as u8; len];
            table.insert(seq as u64, ValueKind::Value, &key, &value);
            model.insert(InternalKey::new(&key, seq as u64, ValueKind::Value), value);
        }
        let mut iter = table.iter();
        let expected: Vec<_> = model.keys().map(|key| key.as_bytes().to_vec()).collect();
        prop_assert_eq!(keys_forward(&mut iter), &expected[..]);
        prop_assert_eq!(keys_backward(&mut iter), &expected[..]);
        for (key, seq) in probes {
            let target = InternalKey::new(&key, seq, ValueKind::Value);
            iter.seek(target.as_bytes());
            let at = model.range(&target..).next();
            prop_assert_eq!(iter.valid().then(|| iter.key()), at.map(|(key, _)| key.as_bytes()));
            iter.seek_for_prev(target.as_bytes());
            let at = model.range(..=&target).next_back();
            prop_assert_eq!(iter.valid().then(|| iter.key()), at.map(|(key, _)| key.as_bytes()));
            let found = table.get(&key, seq);
            let expected = model.range(&target..).next().filter(|(at, _)| at.user_key() == key);
            prop_assert_eq!(
                found.map(|(seq, _, value)| (seq, value)),
                expected.map(|(at, value)| (at.seq(), &value[..]))
            );
        }
    }
}

#[test]
fn a_protected_memtable_finds_an_entry_whose_checksum_disagrees() {
    let table = MemTable::with(1, None, true);
    for seq in 1..100 {
        table.insert(seq, ValueKind::Value, &seq.to_be_bytes(), b"value");
    }
    let walk = || {
        let mut iter = table.checked_iter();
        let mut count = 0;
        iter.seek_to_first();
        while iter.valid() {
            count += 1;
            iter.next();
        }
        (count, iter.status())
    };
    assert!(matches!(walk(), (99, Ok(()))));
    // As if a bit of the entry had changed after its checksum was computed.
    let trailer = pack_trailer(200, ValueKind::Value as u8);
    let right =
        crate::write::protection::of_entry(ValueKind::Value, &50_u64.to_be_bytes(), b"value");
    let right = crate::write::protection::in_memtable(right, trailer);
    table
        .list
        .insert(&50_u64.to_be_bytes(), trailer, b"valuE", right);
    let (count, status) = walk();
    assert_eq!(count, 49, "what comes before it is sound");
    assert!(status.unwrap_err().is_corrupt());
    let mut unchecked = table.iter();
    unchecked.seek_to_first();
    assert!(unchecked.valid() && unchecked.status().is_ok());
}
