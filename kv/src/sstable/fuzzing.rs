//! What fuzz targets of tables need of this folder: the parts' decoders, and right checksums for
//! damaged files.

use std::ops::Range;

use super::block::{BlockCursor, DataLayout};
use super::filter::Filter;
use super::footer::{
    FEATURE_PARTITIONED_INDEX, FOOTER_LEN, Footer, Handle, decode_sections, encode_sections,
};
use super::index::IndexLayout;
use super::properties::TableProperties;
use super::{BLOCK_TRAILER, Block, BlockCrc, filter_hash};
use crate::key::{LookupKey, MAX_SEQ};

/// The same bytes as each kind of block's contents.
pub(crate) fn fuzz_parts(bytes: &[u8]) {
    let lookup = LookupKey::new(b"key-0100", MAX_SEQ);
    let hash = filter_hash(b"key-0100");
    if let Ok(layout) = DataLayout::parse(bytes) {
        let _ = layout.get(bytes, &lookup, hash);
        let mut cursor = BlockCursor::default();
        let mut moved = cursor.seek_to_first(bytes, layout);
        for _ in 0..=bytes.len() {
            if moved.is_err() || !cursor.valid {
                break;
            }
            assert!(cursor.value.end <= bytes.len());
            moved = cursor.next(bytes, layout);
        }
        let _ = cursor.seek(bytes, layout, lookup.internal());
        let _ = cursor.seek_to_last(bytes, layout);
    }
    for limit in [u64::MAX, 1000] {
        if let Ok(layout) = IndexLayout::parse_from(bytes, 3, limit) {
            let at = layout.find(bytes, lookup.internal());
            assert!(at <= layout.count());
            for block in (0..layout.count()).map(|at| layout.block(bytes, at)) {
                assert!(block.start < block.end && block.end <= limit);
            }
        }
    }
    if let Ok(filter) = Filter::parse(bytes) {
        let _ = filter.may_contain(bytes, hash);
    }
    if let Ok(sections) = decode_sections(bytes, 1 << 40) {
        let again = encode_sections(&sections);
        assert_eq!(decode_sections(&again, 1 << 40).ok(), Some(sections));
    }
    if let Ok(properties) = TableProperties::decode(bytes) {
        let again = TableProperties::decode(&properties.encode());
        assert_eq!(again.ok(), Some(properties));
    }
    let _ = crate::sstable::compression::decompress(bytes);
}

/// `bytes` as a table whose footer and blocks have right checksums, as far as they can be found.
pub(crate) fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let Some(at) = bytes.len().checked_sub(FOOTER_LEN) else {
        return bytes;
    };
    let len = bytes.len() as u64;
    bytes[at..at + 8].copy_from_slice(b"LAVA-SST");
    bytes[at + 8..at + 12].copy_from_slice(&1_u32.to_le_bytes());
    bytes[at + 72..at + 80].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[at..at + 92]);
    bytes[at + 92..].copy_from_slice(&crc.to_le_bytes());
    let footer = bytes[at..].try_into().expect("a footer's length");
    let Ok(footer) = Footer::decode(footer, "fuzzed", len) else {
        return bytes;
    };
    let Some(sections) = reseal(&mut bytes, footer.seed, footer.meta) else {
        return bytes;
    };
    for (_, _, handle) in decode_sections(&sections, at as u64).unwrap_or_default() {
        reseal(&mut bytes, footer.seed, handle);
    }
    let partitioned = footer.features & FEATURE_PARTITIONED_INDEX != 0;
    let mut places = match reseal(&mut bytes, footer.seed, footer.index) {
        Some(index) => places_of(index, partitioned),
        None => Vec::new(),
    };
    if partitioned {
        let parts = std::mem::take(&mut places);
        for part in parts {
            let contents = reseal(&mut bytes, footer.seed, handle_of(&part));
            places.extend(contents.into_iter().flat_map(|part| places_of(part, true)));
        }
    }
    for place in places {
        reseal(&mut bytes, footer.seed, handle_of(&place));
    }
    bytes
}

fn handle_of(place: &Range<u64>) -> Handle {
    Handle {
        offset: place.start,
        len: place.end - place.start,
    }
}

/// Gives a block a right checksum; its contents as they are stored.
fn reseal(bytes: &mut [u8], seed: u64, handle: Handle) -> Option<Vec<u8>> {
    let end = (bytes.len() - FOOTER_LEN) as u64;
    if !handle.lies_before(end) || handle.len < BLOCK_TRAILER as u64 {
        return None;
    }
    let (offset, len) = (handle.offset as usize, handle.len as usize);
    let block = &mut bytes[offset..offset + len];
    let (contents, trailer) = block.split_at_mut(len - BLOCK_TRAILER);
    let mut crc = BlockCrc::new(seed, handle.offset);
    crc.update(contents);
    let crc = crc.finish(trailer[0]);
    trailer[1..].copy_from_slice(&crc.to_le_bytes());
    Some(contents.to_vec())
}

fn places_of(contents: Vec<u8>, partition: bool) -> Vec<Range<u64>> {
    let index = match partition {
        true => Block::partition(contents, u64::MAX),
        false => {
            let layout = IndexLayout::parse_from(&contents, 0, u64::MAX);
            layout.map(|layout| Block {
                bytes: contents,
                start: 0,
                layout: super::Layout::Index(layout),
            })
        }
    };
    let Ok(index) = index else { return Vec::new() };
    let (bytes, layout) = index.as_index();
    (0..layout.count())
        .map(|at| layout.block(bytes, at))
        .collect()
}
