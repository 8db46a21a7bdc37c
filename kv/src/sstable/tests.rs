//! Tests of whole tables, on a file in memory whose bytes can be damaged.

mod caching;

use std::any::Any;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;

use lavafs::{File, FileRef, FileSize, Generation};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::cache::BlockCache;
use crate::error::{Error, Result};
use crate::iter::InternalIterator;
use crate::key::{InternalKey, LookupKey, MAX_SEQ, ValueKind, compare_internal};

/// A file in memory.
#[derive(Debug, Default)]
struct MemFile {
    bytes: Mutex<Vec<u8>>,
    synced: Mutex<usize>,
}

impl File for MemFile {
    fn append_vectored(&self, parts: &[IoSlice<'_>]) -> lavafs::Result<u64> {
        let mut bytes = self.bytes.lock();
        let at = bytes.len() as u64;
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        Ok(at)
    }

    fn fdatasync(&self) -> lavafs::Result<()> {
        self.fsync()
    }

    fn fsync(&self) -> lavafs::Result<()> {
        *self.synced.lock() = self.bytes.lock().len();
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> lavafs::Result<usize> {
        let bytes = self.bytes.lock();
        let from = (offset as usize).min(bytes.len());
        let len = buf.len().min(bytes.len() - from);
        buf[..len].copy_from_slice(&bytes[from..from + len]);
        Ok(len)
    }

    fn read_unverified(&self, offset: u64, buf: &mut [u8]) -> lavafs::Result<usize> {
        self.read_at(offset, buf)
    }

    fn size(&self) -> FileSize {
        FileSize::Exact(self.bytes.lock().len() as u64)
    }

    fn settle(&self, _: u64) -> lavafs::Result<()> {
        Ok(())
    }

    fn truncate(&self, size: u64) -> lavafs::Result<()> {
        self.bytes.lock().truncate(size as usize);
        Ok(())
    }

    fn generation(&self) -> Generation {
        Generation(77)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn file_of(bytes: Vec<u8>) -> FileRef {
    Arc::new(MemFile {
        synced: Mutex::new(0),
        bytes: Mutex::new(bytes),
    })
}

type Model = BTreeMap<InternalKey, Vec<u8>>;

fn build(model: &Model, options: TableOptions) -> (Arc<MemFile>, TableSummary) {
    let file = Arc::new(MemFile::default());
    let mut builder = TableBuilder::new(Arc::clone(&file) as FileRef, options);
    for (key, value) in model {
        builder.add(key.as_bytes(), value).unwrap();
    }
    (Arc::clone(&file), builder.finish().unwrap())
}

fn open(bytes: Vec<u8>, cache_bytes: usize, pin: bool) -> Result<Arc<Table>> {
    let options = OpenOptions {
        pin_index_and_filter: pin,
    };
    Table::open(file_of(bytes), 12, BlockCache::new(cache_bytes), options)
}

fn get(table: &Table, key: &[u8], seq: u64) -> Result<Option<(u64, ValueKind, Vec<u8>)>> {
    let hit = table.get(&LookupKey::new(key, seq), filter_hash(key))?;
    Ok(hit.map(|hit| (hit.seq, hit.kind, hit.value.to_vec())))
}

fn expected(model: &Model, key: &[u8], seq: u64) -> Option<(u64, ValueKind, Vec<u8>)> {
    let mut versions = model
        .iter()
        .filter(|(at, _)| at.user_key() == key && at.seq() <= seq);
    let (at, value) = versions.next()?;
    Some((
        at.seq(),
        crate::key::kind(at.as_bytes()).unwrap(),
        value.clone(),
    ))
}

/// `count` keys with a common beginning, some with several versions and deletions.
fn model(count: u64) -> Model {
    let mut model = Model::new();
    for i in 0..count {
        let key = format!("user/{:08}", i * 3);
        for version in 0..1 + i % 3 {
            let kind = if version == 1 {
                ValueKind::Delete
            } else {
                ValueKind::Value
            };
            let value = match kind {
                ValueKind::Delete => Vec::new(),
                _ => format!("value {i} {version} ")
                    .repeat(1 + (i % 7) as usize)
                    .into_bytes(),
            };
            model.insert(
                InternalKey::new(key.as_bytes(), 10 + i + version, kind),
                value,
            );
        }
    }
    model
}

fn check_walks(model: &Model, table: &Arc<Table>, options: TableReadOptions) {
    let mut iter = table.iter(options);
    iter.seek_to_first();
    for (key, value) in model {
        assert!(iter.valid(), "{:?}", iter.status());
        assert_eq!((iter.key(), iter.value()), (key.as_bytes(), &value[..]));
        iter.next();
    }
    assert!(!iter.valid());
    iter.seek_to_last();
    for (key, value) in model.iter().rev() {
        assert!(iter.valid(), "{:?}", iter.status());
        assert_eq!((iter.key(), iter.value()), (key.as_bytes(), &value[..]));
        iter.prev();
    }
    assert!(!iter.valid());
    iter.status().unwrap();
}

#[test]
fn a_table_gives_back_what_was_added_with_all_options() {
    let model = model(700);
    for (compression, filter_bits_per_key, hash_index, restart_interval) in [
        (Compression::None, 10.0, true, 16),
        (Compression::Zstd { level: 1 }, 0.0, false, 1),
        (Compression::Zstd { level: 3 }, 4.5, true, 5),
    ] {
        let options = TableOptions {
            block_size: 700,
            restart_interval,
            compression,
            filter_bits_per_key,
            hash_index,
            zstd_dict_bytes: if restart_interval == 5 { 512 } else { 0 },
            index_partition_threshold: if restart_interval == 16 { 0 } else { 500 },
            index_partition_size: 200 * restart_interval,
            expected_entries: 10,
            keep_bytes: 0,
            column_family: None,
        };
        let (file, summary) = build(&model, options);
        assert_eq!(
            *file.synced.lock() as u64,
            summary.file_size,
            "finish makes it durable"
        );
        let bytes = file.bytes.lock().clone();
        assert_eq!(summary.entries, model.len() as u64);
        assert_eq!(summary.smallest, model.keys().next().unwrap().as_bytes());
        assert_eq!(summary.largest, model.keys().last().unwrap().as_bytes());
        assert_eq!(summary.checksum, xxhash_rust::xxh3::xxh3_64(&bytes));
        for (cache_bytes, pin) in [(0, false), (8 << 20, false), (20 << 10, true)] {
            let table = open(bytes.clone(), cache_bytes, pin).unwrap();
            assert_eq!(table.verify().unwrap(), summary.checksum);
            let readahead_bytes = if pin { 5000 } else { 0 };
            let read = TableReadOptions {
                readahead_bytes,
                ..TableReadOptions::default()
            };
            check_walks(&model, &table, read);
            for i in (0..2100u64).step_by(5) {
                let key = format!("user/{i:08}");
                for seq in [10 + i / 3, MAX_SEQ] {
                    let found = get(&table, key.as_bytes(), seq).unwrap();
                    assert_eq!(
                        found,
                        expected(&model, key.as_bytes(), seq),
                        "{key} at {seq}"
                    );
                }
            }
            let kept = table.pinned_memory();
            assert!(
                if pin { kept > 0 } else { kept <= 64 << 10 },
                "{kept} bytes"
            );
        }
    }
}

/// Damages each byte in turn: reads are right or fail, and a verification always fails.
#[test]
fn no_damaged_byte_goes_unseen_or_panics() {
    let model = model(60);
    let zstd = Compression::Zstd { level: 1 };
    for (compression, extras) in [(Compression::None, false), (zstd, false), (zstd, true)] {
        let options = TableOptions {
            block_size: 400,
            compression,
            zstd_dict_bytes: if extras { 256 } else { 0 },
            index_partition_threshold: usize::from(extras),
            index_partition_size: 100,
            ..TableOptions::default()
        };
        let (file, _) = build(&model, options);
        let good = file.bytes.lock().clone();
        for at in 0..good.len() {
            for flip in [0x01, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                let Ok(table) = open(bad, 0, false) else {
                    continue;
                };
                let error = table.verify().expect_err("verification sees every byte");
                assert!(error.is_corrupt(), "{error}");
                for key in model.keys().step_by(3) {
                    match get(&table, key.user_key(), MAX_SEQ) {
                        Ok(found) => assert_eq!(found, expected(&model, key.user_key(), MAX_SEQ)),
                        Err(error) => assert!(matches!(error, Error::Corrupt { .. }), "{error}"),
                    }
                }
                let mut iter = table.iter(TableReadOptions::default());
                let mut walk = model.iter();
                iter.seek_to_first();
                while iter.valid() {
                    let (key, value) = walk.next().unwrap();
                    assert_eq!((iter.key(), iter.value()), (key.as_bytes(), &value[..]));
                    iter.next();
                }
                assert!(
                    iter.status().is_err() || walk.next().is_none(),
                    "a walk ended early"
                );
            }
        }
    }
}

#[test]
fn a_dictionary_and_a_partitioned_index_are_told_by_the_footer_and_pay() {
    let model = model(3000);
    let options = TableOptions {
        block_size: 256,
        compression: Compression::Zstd { level: 3 },
        index_partition_threshold: 0,
        ..TableOptions::default()
    };
    let features = |file: &MemFile| {
        let bytes = file.bytes.lock();
        let at = bytes.len() - footer::FOOTER_LEN + 12;
        (
            u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()),
            bytes.len(),
        )
    };
    let (plain, _) = build(&model, options.clone());
    assert_eq!(features(&plain).0, 0, "readable by the first version");
    let (with_dictionary, _) = build(
        &model,
        TableOptions {
            zstd_dict_bytes: 2048,
            ..options.clone()
        },
    );
    let (told, len) = features(&with_dictionary);
    assert_eq!(told, footer::FEATURE_DICTIONARY);
    assert!(
        len < features(&plain).1 * 3 / 4,
        "{len} of {}",
        features(&plain).1
    );
    // Too few blocks to learn from: as without.
    let few = self::model(20);
    let (small, _) = build(
        &few,
        TableOptions {
            zstd_dict_bytes: 2048,
            block_size: 4096,
            ..options.clone()
        },
    );
    assert_eq!(features(&small).0, 0);
    let (partitioned, _) = build(
        &model,
        TableOptions {
            index_partition_threshold: 1000,
            index_partition_size: 1000,
            ..options
        },
    );
    assert_eq!(features(&partitioned).0, footer::FEATURE_PARTITIONED_INDEX);
    // What a lookup takes into the cache is a partition, not the index.
    let cache = |file: &MemFile| {
        let table = open(file.bytes.lock().clone(), 8 << 20, false).unwrap();
        let key = format!("user/{:08}", 1500 * 3);
        assert!(get(&table, key.as_bytes(), MAX_SEQ).unwrap().is_some());
        table.index().unwrap().memory()
    };
    assert!(cache(&partitioned) * 10 < cache(&plain));
}

#[test]
fn truncated_and_foreign_files_are_refused() {
    let (file, _) = build(&model(60), TableOptions::default());
    let good = file.bytes.lock().clone();
    for len in (0..good.len()).step_by(7) {
        assert!(
            open(good[..len].to_vec(), 0, false)
                .unwrap_err()
                .is_corrupt()
        );
    }
    assert!(open(vec![0; 100_000], 0, false).unwrap_err().is_corrupt());
    assert!(
        open([good, vec![0]].concat(), 0, false)
            .unwrap_err()
            .is_corrupt()
    );
}

/// To find the best number of probes for a ten-thousandth of a bit took seconds, and hours for less, in every
/// flush and compaction; the filter that came of it ruled nothing out.
#[test]
fn a_filter_that_could_rule_nothing_out_is_not_made() {
    let model: Model = (0..2000u64)
        .map(|i| {
            let key = InternalKey::new(&i.to_be_bytes(), 5, ValueKind::Value);
            (key, vec![1; 8])
        })
        .collect();
    for (filter_bits_per_key, is_made) in [(0.0001, false), (f64::MIN_POSITIVE, false), (1.0, true)]
    {
        let options = TableOptions {
            filter_bits_per_key,
            ..TableOptions::default()
        };
        let (file, _) = build(&model, options);
        let bytes = file.bytes.lock().clone();
        let table = open(bytes, 0, false).unwrap();
        assert_eq!(table.filter_bytes() > 0, is_made, "{filter_bits_per_key}");
        assert!(table.may_contain(filter_hash(&7u64.to_be_bytes())).unwrap());
    }
}

#[test]
fn a_block_of_another_place_or_file_is_refused() {
    let options = TableOptions {
        block_size: 300,
        filter_bits_per_key: 0.0,
        ..TableOptions::default()
    };
    // Equal entry lengths make equal blocks, so that two of them can be swapped.
    let model: Model = (0..40u64)
        .map(|i| {
            (
                InternalKey::new(&i.to_be_bytes(), 5, ValueKind::Value),
                vec![1; 80],
            )
        })
        .collect();
    let (file, _) = build(&model, options);
    let mut bytes = file.bytes.lock().clone();
    let table = open(bytes.clone(), 0, false).unwrap();
    let index = table.index().unwrap();
    let (contents, layout) = index.as_index();
    let (first, second) = (layout.block(contents, 0), layout.block(contents, 1));
    assert_eq!(first.end - first.start, second.end - second.start);
    bytes.copy_within(
        second.start as usize..second.end as usize,
        first.start as usize,
    );
    let table = open(bytes, 0, false).unwrap();
    assert!(
        get(&table, &0u64.to_be_bytes(), MAX_SEQ)
            .unwrap_err()
            .is_corrupt()
    );
    assert!(
        get(&table, &39u64.to_be_bytes(), MAX_SEQ)
            .unwrap()
            .is_some()
    );
}

#[test]
fn large_values_make_large_blocks() {
    let mut model = Model::new();
    for i in 0..6u8 {
        let len = if i % 2 == 0 { 1 << 20 } else { 10 };
        let value = (0..len).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8 ^ i);
        model.insert(InternalKey::new(&[i], 1, ValueKind::Value), value.collect());
    }
    for compression in [Compression::None, Compression::Zstd { level: 1 }] {
        let options = TableOptions {
            compression,
            ..TableOptions::default()
        };
        let (file, _) = build(&model, options);
        let table = open(file.bytes.lock().clone(), 1 << 20, false).unwrap();
        table.verify().unwrap();
        check_walks(&model, &table, TableReadOptions::default());
        for key in model.keys() {
            let found = get(&table, key.user_key(), MAX_SEQ).unwrap();
            assert_eq!(found, expected(&model, key.user_key(), MAX_SEQ));
        }
    }
}

#[test]
fn a_value_outlives_its_blocks_eviction() {
    let model = model(2000);
    let (file, _) = build(&model, TableOptions::default());
    let table = open(file.bytes.lock().clone(), 64 << 10, false).unwrap();
    let key = b"user/00000000";
    let hit = table
        .get(&LookupKey::new(key, MAX_SEQ), filter_hash(key))
        .unwrap()
        .unwrap();
    check_walks(&model, &table, TableReadOptions::default());
    assert_eq!(
        hit.value.to_vec(),
        expected(&model, key, MAX_SEQ).unwrap().2
    );
}

#[test]
#[should_panic(expected = "ascending")]
fn keys_out_of_order_are_refused() {
    let mut builder = TableBuilder::new(file_of(Vec::new()), TableOptions::default());
    builder
        .add(InternalKey::new(b"a", 4, ValueKind::Value).as_bytes(), b"")
        .unwrap();
    drop(builder.add(InternalKey::new(b"a", 5, ValueKind::Value).as_bytes(), b""));
}

#[test]
fn one_cache_serves_a_hundred_tables_within_its_budget() {
    let cache = BlockCache::new(256 << 10);
    let model = model(300);
    let (file, _) = build(&model, TableOptions::default());
    let bytes = file.bytes.lock().clone();
    let tables: Vec<_> = (0..100)
        .map(|number| {
            let (cache, options) = (Arc::clone(&cache), OpenOptions::default());
            Table::open(file_of(bytes.clone()), number, cache, options).unwrap()
        })
        .collect();
    for table in &tables {
        for key in model.keys().step_by(50) {
            let found = get(table, key.user_key(), MAX_SEQ).unwrap();
            assert_eq!(found, expected(&model, key.user_key(), MAX_SEQ));
        }
        assert!(cache.stats().charged <= 256 << 10);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn seeks_agree_with_a_sorted_map(
        pairs in prop::collection::vec((prop::collection::vec(0u8..4, 0..5), 0u64..9, 0usize..90), 1..200),
        probes in prop::collection::vec((prop::collection::vec(0u8..4, 0..6), 0u64..10), 60),
        block_size in 50usize..900,
        restart_interval in 1usize..9,
        index_partition_threshold in 0usize..300,
        index_partition_size in 20usize..400,
    ) {
        let model: Model = pairs
            .into_iter()
            .map(|(key, seq, len)| (InternalKey::new(&key, seq, ValueKind::Value), vec![9; len]))
            .collect();
        let options = TableOptions {
            block_size,
            restart_interval,
            index_partition_threshold,
            index_partition_size,
            ..TableOptions::default()
        };
        let (file, _) = build(&model, options);
        let table = open(file.bytes.lock().clone(), 30_000, false).expect("just built");
        let mut iter = table.iter(TableReadOptions::default());
        for (key, seq) in probes {
            let target = LookupKey::new(&key, seq);
            let target = target.internal();
            let is_before = |key: &InternalKey| compare_internal(key.as_bytes(), target).is_lt();
            iter.seek(target);
            let at = model.keys().find(|key| !is_before(key));
            prop_assert_eq!(iter.valid().then(|| iter.key()), at.map(|key| key.as_bytes()));
            iter.seek_for_prev(target);
            let at = model.keys().rev().find(|key| is_before(key));
            prop_assert_eq!(iter.valid().then(|| iter.key()), at.map(|key| key.as_bytes()));
            prop_assert_eq!(get(&table, &key, seq).unwrap(), expected(&model, &key, seq));
        }
    }
}
