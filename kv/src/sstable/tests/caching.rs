//! Tests of what a table has in the cache: which form its blocks have there, and what it leaves behind.

use super::super::footer::{FOOTER_LEN, Footer, Handle, SECTION_PROPERTIES, decode_sections};
use super::*;
use crate::blob::reference::BlobReference;
use crate::cache::WarmRank;

fn contents(bytes: &[u8], place: Handle) -> &[u8] {
    let end = (place.offset + place.len) as usize;
    &bytes[place.offset as usize..end - BLOCK_TRAILER]
}

/// Gives a block of a file of [`MemFile`]'s generation a right checksum.
fn reseal(bytes: &mut [u8], place: Handle) {
    let end = (place.offset + place.len) as usize;
    let mut crc = BlockCrc::new(77, place.offset);
    crc.update(&bytes[place.offset as usize..end - BLOCK_TRAILER]);
    let crc = crc.finish(bytes[end - BLOCK_TRAILER]);
    bytes[end - 4..end].copy_from_slice(&crc.to_le_bytes());
}

/// A partition of the index said that it was a data block itself. A reader had just put it into the cache as a
/// partition, took it from there for data and panicked.
#[test]
fn a_partition_that_is_said_to_be_data_is_corruption_and_no_panic() {
    let model = model(300);
    let (file, _) = build(
        &model,
        TableOptions {
            block_size: 1000,
            index_partition_threshold: 1,
            index_partition_size: 1,
            ..TableOptions::default()
        },
    );
    let mut bytes = file.bytes.lock().clone();
    let body_end = (bytes.len() - FOOTER_LEN) as u64;
    let footer = bytes.last_chunk().unwrap();
    let footer = Footer::decode(footer, "table", bytes.len() as u64).unwrap();
    let top = contents(&bytes, footer.index).to_vec();
    let top = Block::partition(top, footer.index.offset).unwrap();
    let (index, layout) = top.as_index();
    assert!(layout.count() > 5);
    let first = layout.block(index, 0);
    let place = Handle {
        offset: first.start,
        len: first.end - first.start,
    };
    // The partition's only block begins where it begins (its first word) and ends where it ends (the second behind
    // the header of sixteen bytes).
    for (at, word) in [(0, first.start), (8 + 16 + 8, first.end)] {
        let at = first.start as usize + at;
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    reseal(&mut bytes, place);
    // The data is said to end behind it.
    let sections = decode_sections(contents(&bytes, footer.meta), body_end).unwrap();
    let properties = sections.iter().find(|(id, ..)| *id == SECTION_PROPERTIES);
    let properties = properties.unwrap().2;
    let name = b"data_bytes";
    let at = contents(&bytes, properties)
        .windows(name.len())
        .position(|window| window == name)
        .unwrap();
    let at = properties.offset as usize + at + name.len() + 1;
    bytes[at..at + 8].copy_from_slice(&first.end.to_le_bytes());
    reseal(&mut bytes, properties);

    for pin in [false, true] {
        let table = open(bytes.clone(), 1 << 20, pin).unwrap();
        let key = model.keys().next().unwrap().user_key().to_vec();
        for _ in 0..2 {
            let error = get(&table, &key, MAX_SEQ).unwrap_err();
            assert!(error.is_corrupt(), "{error}");
            let mut walk = table.iter(TableReadOptions::default());
            walk.seek_to_first();
            assert!(!walk.valid() && walk.status().unwrap_err().is_corrupt());
        }
        table.cool();
    }
}

/// A table of `references` references and `values` values, all of its blocks kept for the cache.
fn kept(references: u64, values: u64) -> (Vec<u8>, Vec<KeptBlock>) {
    let file = Arc::new(MemFile::default());
    let options = TableOptions {
        compression: Compression::Zstd { level: 1 },
        keep_bytes: 1 << 20,
        ..TableOptions::default()
    };
    let mut builder = TableBuilder::new(Arc::clone(&file) as FileRef, options);
    let mut reference = Vec::new();
    BlobReference {
        file: 9,
        value_len: 1000,
    }
    .encode_into(&mut reference);
    for number in 0..references + values {
        let key = format!("key/{number:08}");
        let (kind, value) = match number < references {
            true => (ValueKind::BlobReference, reference.clone()),
            false => (ValueKind::Value, vec![b'v'; 20]),
        };
        let key = InternalKey::new(key.as_bytes(), number, kind);
        builder.add_warm(key.as_bytes(), &value, true).unwrap();
    }
    let kept = builder.finish().unwrap().kept;
    let bytes = file.bytes.lock().clone();
    (bytes, kept)
}

/// Whether a table mostly refers to blob files is known at its end alone. Blocks from the beginning of one that
/// does not came into the cache compressed, and every read of theirs unpacked them anew.
#[test]
fn warmed_blocks_have_the_form_of_their_table_whatever_its_first_entries_are() {
    for (references, values, kind) in [
        (2000, 4000, BlockKind::Data),
        (4000, 2000, BlockKind::Packed),
        (0, 4000, BlockKind::Data),
    ] {
        let (bytes, blocks) = kept(references, values);
        assert_eq!(
            blocks.iter().any(|block| block.is_packed),
            references > 0,
            "as the builder saw it"
        );
        let table = open(bytes, 8 << 20, false).unwrap();
        let offsets: Vec<u64> = blocks.iter().map(|block| block.offset).collect();
        assert!(offsets.len() > 10);
        for block in blocks {
            table.warm_block(block, WarmRank::Heir).unwrap();
        }
        for offset in offsets {
            let cached = table
                .cache
                .peek(table.cache_key(offset), BlockKind::Data)
                .unwrap();
            assert_eq!(cached.kind(), kind, "{references} references, {offset}");
        }
        for number in [0, references + values - 1] {
            let key = format!("key/{number:08}");
            assert!(get(&table, key.as_bytes(), MAX_SEQ).unwrap().is_some());
        }
        let stats = table.cache.stats();
        assert_eq!(stats.hits[kind as usize], 2, "{stats:?}");
    }
}

/// Small blocks, and an index in partitions from `threshold` bytes on.
fn small_blocks(threshold: usize) -> TableOptions {
    TableOptions {
        block_size: 500,
        index_partition_threshold: threshold,
        index_partition_size: 300,
        ..TableOptions::default()
    }
}

/// Index and filter blocks go before data, and nothing made those of tables that were gone go: they took three
/// quarters of the cache after some compactions.
#[test]
fn a_closed_table_leaves_no_index_and_no_filter_in_the_cache() {
    for threshold in [0, 1] {
        let options = small_blocks(threshold);
        let model = model(500);
        let (file, _) = build(&model, options);
        let table = open(file.bytes.lock().clone(), 8 << 20, false).unwrap();
        let cache = Arc::clone(&table.cache);
        for key in model.keys() {
            get(&table, key.user_key(), MAX_SEQ).unwrap();
        }
        let before = cache.stats();
        assert!(before.index_charged > 0 && before.data_charged > 0);
        // The last to have the table stands in a block of its index.
        let mut walk = table.iter(TableReadOptions::default());
        walk.seek_to_first();
        drop(table);
        assert_eq!(cache.stats().index_charged, before.index_charged);
        drop(walk);
        let after = cache.stats();
        assert_eq!(after.index_charged, 0, "{after:?}");
        assert_eq!(after.data_charged, before.data_charged);
    }
}

#[test]
fn a_silent_walk_leaves_no_trace_of_the_index_either() {
    for threshold in [0, 1] {
        let options = small_blocks(threshold);
        let (file, _) = build(&model(500), options);
        let table = open(file.bytes.lock().clone(), 8 << 20, false).unwrap();
        let silent = TableReadOptions {
            silent: true,
            fill_cache: false,
            ..TableReadOptions::default()
        };
        let walk = |options| {
            let mut walk = table.iter(options);
            let mut entries = 0;
            walk.seek_to_first();
            while walk.valid() {
                entries += 1;
                walk.next();
            }
            walk.status().unwrap();
            entries
        };
        let empty = table.cache.stats();
        let entries = walk(silent);
        assert_eq!(table.cache.stats(), empty);
        assert_eq!(walk(TableReadOptions::default()), entries);
        let full = table.cache.stats();
        assert!(full.index_charged > 0);
        assert_eq!(walk(silent), entries);
        assert_eq!(table.cache.stats(), full);
    }
}
