//! The index alone: every key found, its size asserted, damage refused.

use proptest::prelude::*;

use super::cbt::{BlobIndex, RecordLocation};
use super::cbt_builder::IndexBuilder;
use super::record::padded;
use crate::key::{InternalKey, ValueKind, compare_internal};

fn internal(user_key: &[u8], seq: u64) -> Vec<u8> {
    InternalKey::new(user_key, seq, ValueKind::BlobReference).into_bytes()
}

fn random(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 20
}

/// The index of sorted keys whose records have these lengths, from byte 64 on.
fn encode(keys: &[Vec<u8>], lengths: &[u64]) -> Vec<u8> {
    let mut builder = IndexBuilder::default();
    let mut before: Option<&[u8]> = None;
    for (key, len) in keys.iter().zip(lengths) {
        builder.add(before, key, *len);
        before = Some(key);
    }
    builder.finish(64)
}

fn sorted(mut keys: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    keys.sort_by(|a, b| compare_internal(a, b));
    keys.dedup();
    keys
}

fn check_all(index: &BlobIndex, keys: &[Vec<u8>], lengths: &[u64]) {
    assert_eq!(index.records() as usize, keys.len());
    let mut offset = 64;
    for (key, &len) in keys.iter().zip(lengths) {
        assert_eq!(index.locate(key), RecordLocation { offset, len });
        offset += len;
    }
    assert_eq!(index.data_range(), 64..offset);
}

fn build_and_check(keys: Vec<Vec<u8>>, seed: u64) -> BlobIndex {
    let keys = sorted(keys);
    let mut state = seed;
    let lengths: Vec<u64> = keys
        .iter()
        .map(|_| padded(20 + random(&mut state) % (1 << (random(&mut state) % 34))))
        .collect();
    let index = BlobIndex::parse(encode(&keys, &lengths)).unwrap();
    check_all(&index, &keys, &lengths);
    index
}

#[test]
fn keys_of_awkward_shapes_are_found() {
    // Each key a prefix of the next.
    build_and_check(
        (0..600).map(|len| internal(&vec![b'a'; len], 5)).collect(),
        1,
    );
    build_and_check((0..600).map(|len| internal(&vec![0; len], 5)).collect(), 2);
    build_and_check(
        (0..600).map(|len| internal(&vec![255; len], 5)).collect(),
        3,
    );
    // Versions of one key, of the empty key, the ends of the sequence numbers.
    build_and_check((0..1000).map(|seq| internal(b"key", seq)).collect(), 4);
    build_and_check((0..1000).map(|seq| internal(b"", seq << 40)).collect(), 5);
    build_and_check(vec![internal(b"", 0)], 6);
    build_and_check(
        vec![internal(b"", crate::key::MAX_SEQ), internal(b"", 0)],
        7,
    );
    // Keys of 64 KiB that differ in their last bytes, and one that differs in the first.
    let long = |tail: u16| [vec![b'x'; 65_533], tail.to_be_bytes().to_vec()].concat();
    let mut keys: Vec<_> = (0..300).map(|tail| internal(&long(tail), 9)).collect();
    keys.push(internal(b"a", 9));
    keys.push(internal(&[b'x'; 65_535], 9));
    build_and_check(keys, 8);
}

#[test]
fn counts_around_a_bucket_are_found() {
    for count in (1u64..10)
        .chain(120..140)
        .chain(250..260)
        .chain([1000, 5000])
    {
        let mut state = count;
        build_and_check(
            (0..count).map(|i| internal(&i.to_be_bytes(), 1)).collect(),
            count,
        );
        let keys = (0..count).map(|_| internal(&random(&mut state).to_le_bytes(), 1));
        build_and_check(keys.collect(), count);
    }
}

proptest! {
    #[test]
    fn any_keys_are_found(
        keys in prop::collection::vec(
            (prop::collection::vec(prop::sample::select(vec![0u8, 1, 2, 127, 128, 255]), 0..12), 0u64..3),
            1..700,
        ),
        seed: u64,
    ) {
        build_and_check(keys.iter().map(|(key, seq)| internal(key, *seq)).collect(), seed);
    }

    #[test]
    fn damaged_indexes_are_refused_or_harmless(
        count in 1u64..400, seed: u64, damage in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<usize>()),
    ) {
        let mut state = seed;
        let keys = sorted((0..count).map(|_| internal(&random(&mut state).to_be_bytes(), 1)).collect());
        let lengths: Vec<u64> = keys.iter().map(|_| 500 + random(&mut state) % 500).collect();
        let mut bytes = encode(&keys, &lengths);
        for (at, byte) in damage {
            let at = at % bytes.len();
            bytes[at] ^= byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut % bytes.len());
        }
        // The block's checksum was passed: what is in it may still be hostile.
        if let Ok(index) = BlobIndex::parse(bytes) {
            let records = index.data_range();
            for key in &keys {
                let found = index.locate(key);
                prop_assert!(found.offset >= records.start && found.len > 0);
                prop_assert!(found.offset + found.len <= records.end);
            }
        }
    }

    #[test]
    fn nonsense_is_refused_without_allocating(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = BlobIndex::parse(bytes.clone());
        if bytes.len() > 40 {
            // Plausible counts get further.
            bytes[1..4].fill(0);
            bytes[4..8].copy_from_slice(&[1, 0, 0, 0]);
            bytes[32..40].fill(4);
            let _ = BlobIndex::parse(bytes);
        }
    }
}

/// Bytes per key of keys whose values compress to lengths within `spread` of `mean`.
fn bytes_per_key(keys: Vec<Vec<u8>>, mean: u64, spread: u64) -> f64 {
    let keys = sorted(keys);
    let mut state = 5;
    let lengths: Vec<u64> = keys
        .iter()
        .map(|_| padded(mean - spread / 2 + random(&mut state) % spread))
        .collect();
    let bytes = encode(&keys, &lengths);
    let per_key = bytes.len() as f64 / keys.len() as f64;
    check_all(&BlobIndex::parse(bytes).unwrap(), &keys, &lengths);
    per_key
}

/// A 36-byte internal key: db_bench's 28-byte user key of eight bytes of number and zeros.
fn bench_key(number: u64, len: usize) -> Vec<u8> {
    let mut key = vec![b'0'; len];
    key[..8].copy_from_slice(&number.to_be_bytes());
    internal(&key, number)
}

#[test]
fn an_index_takes_at_most_2_3_bytes_per_key() {
    for count in [16_000u64, 100_000] {
        let mut state = 7;
        let mut next = || random(&mut state);
        let sequential = (0..count).map(|i| bench_key(i, 36)).collect();
        let sampled = (0..count)
            .map(|_| bench_key(next() % (count * 40), 36))
            .collect();
        let bytes = |state: &mut u64| (0..36).map(|_| random(state) as u8).collect::<Vec<u8>>();
        let mut state = 8;
        let uniform = (0..count)
            .map(|_| internal(&bytes(&mut state), 1))
            .collect();
        let decimal =
            (0..count).map(|_| internal(format!("user{:032}", next() % (1 << 40)).as_bytes(), 3));
        let shapes: [(&str, Vec<Vec<u8>>); 4] = [
            ("sequential", sequential),
            ("sampled", sampled),
            ("uniform", uniform),
            ("decimal", decimal.collect()),
        ];
        for (name, keys) in shapes {
            // Half-compressible 16,000-byte values vary by tens of bytes.
            let near = bytes_per_key(keys.clone(), 8100, 200);
            // Any length from 8 to 16 KiB.
            let far = bytes_per_key(keys, 12_288, 8192);
            println!("{count} {name}: {near:.3} and {far:.3} bytes per key");
            assert!(near <= 1.75, "{count} {name}: {near:.3}");
            assert!(far <= 2.25, "{count} {name}: {far:.3}");
        }
    }
}
