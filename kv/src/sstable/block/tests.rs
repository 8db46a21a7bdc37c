//! Tests of data blocks against a sorted list.

use proptest::prelude::*;

use super::*;
use crate::key::{InternalKey, compare_internal};
use crate::sstable::filter_hash;

type Pairs = Vec<(InternalKey, Vec<u8>)>;

fn build(pairs: &Pairs, restart_interval: usize, hash_index: bool) -> Vec<u8> {
    let mut builder = BlockBuilder::new(restart_interval, hash_index);
    // What an earlier block left in the builder must not matter.
    builder.add(
        InternalKey::new(b"zzz", 1, ValueKind::Value).as_bytes(),
        9,
        b"left over",
    );
    builder.finish();
    builder.reset();
    for (key, value) in pairs {
        builder.add(key.as_bytes(), filter_hash(key.user_key()), value);
    }
    let size = builder.size();
    let bytes = builder.finish().concat();
    assert!(
        bytes.len().abs_diff(size) <= 2 + pairs.len() / 2,
        "the size is about foretold"
    );
    bytes
}

fn pairs() -> impl Strategy<Value = Pairs> {
    let user_key = prop::collection::vec(0u8..3, 0..6);
    let wide_key = prop::collection::vec(any::<u8>(), 0..300);
    let key = prop_oneof![4 => user_key, 1 => wide_key];
    let pair = (key, 0u64..6, prop::collection::vec(any::<u8>(), 0..200));
    prop::collection::vec(pair, 1..120).prop_map(|list| {
        let mut pairs: Pairs = list
            .into_iter()
            .map(|(key, seq, value)| (InternalKey::new(&key, seq, ValueKind::Value), value))
            .collect();
        pairs.sort();
        pairs.dedup_by(|a, b| a.0 == b.0);
        pairs
    })
}

fn get(bytes: &[u8], layout: DataLayout, key: &[u8], seq: u64) -> Option<(u64, Vec<u8>)> {
    let lookup = LookupKey::new(key, seq);
    let found = layout
        .get(bytes, &lookup, filter_hash(key))
        .expect("the block is good");
    found.map(|found| (found.trailer >> 8, bytes[found.value].to_vec()))
}

proptest! {
    #[test]
    fn what_is_added_is_found_in_every_way(
        pairs in pairs(),
        restart_interval in 1usize..20,
        hash_index: bool,
        probes in prop::collection::vec((prop::collection::vec(0u8..3, 0..6), 0u64..7), 30),
    ) {
        let bytes = build(&pairs, restart_interval, hash_index);
        let layout = DataLayout::parse(&bytes).expect("as built");
        let mut cursor = BlockCursor::default();
        cursor.seek_to_first(&bytes, layout).expect("the block is good");
        for (key, value) in &pairs {
            prop_assert!(cursor.valid);
            prop_assert_eq!(&cursor.key, key.as_bytes());
            prop_assert_eq!(&bytes[cursor.value.clone()], &value[..]);
            cursor.next(&bytes, layout).expect("the block is good");
        }
        prop_assert!(!cursor.valid);
        cursor.seek_to_last(&bytes, layout).expect("the block is good");
        for (key, value) in pairs.iter().rev() {
            prop_assert!(cursor.valid);
            prop_assert_eq!(&cursor.key, key.as_bytes());
            prop_assert_eq!(&bytes[cursor.value.clone()], &value[..]);
            cursor.prev(&bytes, layout).expect("the block is good");
        }
        prop_assert!(!cursor.valid);

        let own = pairs.iter().map(|(key, _)| (key.user_key().to_vec(), key.seq()));
        for (key, seq) in own.chain(probes) {
            let target = LookupKey::new(&key, seq);
            let at = pairs.partition_point(|(key, _)| {
                compare_internal(key.as_bytes(), target.internal()).is_lt()
            });
            cursor.seek(&bytes, layout, target.internal()).expect("the block is good");
            prop_assert_eq!(cursor.valid, at < pairs.len());
            if at < pairs.len() {
                prop_assert_eq!(&cursor.key, pairs[at].0.as_bytes());
            }
            let version = pairs.get(at).filter(|(found, _)| found.user_key() == key);
            let expected = version.map(|(found, value)| (found.seq(), value.clone()));
            prop_assert_eq!(get(&bytes, layout, &key, seq), expected);
        }
    }

    /// Past the checksum, damaged blocks may give wrong entries, but they end.
    #[test]
    fn damaged_blocks_neither_panic_nor_loop(
        pairs in pairs(),
        restart_interval in 1usize..20,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        from_end: bool,
    ) {
        let mut bytes = build(&pairs, restart_interval, true);
        for (at, value) in damage {
            let len = bytes.len();
            let at = if from_end { len - 1 - at.index(len.min(40)) } else { at.index(len) };
            bytes[at] = value;
        }
        let Ok(layout) = DataLayout::parse(&bytes) else { return Ok(()) };
        let mut cursor = BlockCursor::default();
        let mut steps = 0;
        let mut moved = cursor.seek_to_first(&bytes, layout);
        while moved.is_ok() && cursor.valid {
            moved = cursor.next(&bytes, layout);
            steps += 1;
        }
        prop_assert!(steps <= bytes.len());
        let _ = cursor.seek_to_last(&bytes, layout);
        for _ in 0..200 {
            if !cursor.valid || cursor.prev(&bytes, layout).is_err() {
                break;
            }
        }
        for (key, _) in &pairs {
            let lookup = LookupKey::new(key.user_key(), key.seq());
            drop(layout.get(&bytes, &lookup, filter_hash(key.user_key())));
            let _ = cursor.seek(&bytes, layout, key.as_bytes());
        }
    }
}

#[test]
fn values_may_be_large_and_blocks_short() {
    let big = vec![7; 3 << 20];
    let pairs: Pairs = vec![
        (InternalKey::new(b"a", 1, ValueKind::Value), big.clone()),
        (InternalKey::new(b"b", 1, ValueKind::Delete), Vec::new()),
    ];
    let bytes = build(&pairs, 16, true);
    let layout = DataLayout::parse(&bytes).unwrap();
    assert_eq!(get(&bytes, layout, b"a", 1), Some((1, big)));
    assert_eq!(get(&bytes, layout, b"b", 1), Some((1, Vec::new())));
    for short in 0..TAIL {
        assert!(DataLayout::parse(&bytes[..short]).is_err());
    }
}

#[test]
fn common_prefixes_are_counted_across_words() {
    let a: Vec<u8> = (0..40).collect();
    for len in 0..40 {
        let mut b = a.clone();
        b[len] ^= 0x80;
        assert_eq!(common_prefix(&a, &b), len);
        assert_eq!(common_prefix(&a[..len], &a), len);
    }
}
