//! What the fuzz target of blob files needs of this folder: right checksums for damaged files.

use super::footer::{FOOTER_LEN, Footer, HEADER_LEN, SEAL_LEN, seal};
use super::record::RecordHead;
use crate::sstable::{BlockCrc, Handle, decode_sections};

/// `bytes` as a blob file whose ends, blocks and records have right checksums, as far as they can be
/// found.
pub(crate) fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let len = bytes.len();
    if len < HEADER_LEN + FOOTER_LEN {
        return bytes;
    }
    let end = len - FOOTER_LEN;
    bytes[end + 64..end + 72].copy_from_slice(&(len as u64).to_le_bytes());
    for (start, end, magic) in [(0, HEADER_LEN, b"LAVA-BLB"), (end, len, b"LAVA-BLF")] {
        bytes[start..start + 8].copy_from_slice(magic);
        // Version 1, no features, the same seed and number at both ends.
        bytes[start + 8..start + 24].fill(0);
        bytes[start + 8] = 1;
        bytes[start + 24..start + 40].fill(0);
        bytes[start + 24] = 1;
        bytes[start + 32] = 1;
        let crc = crc32c::crc32c(&bytes[start..end - 4]);
        bytes[end - 4..end].copy_from_slice(&crc.to_le_bytes());
    }
    let footer = bytes[end..].try_into().expect("a footer's length");
    let Ok(footer) = Footer::decode(footer, "fuzzed", len as u64) else {
        return bytes;
    };
    let seed = footer.header.seed;
    if let Some(sections) = reseal(&mut bytes, seed, footer.meta) {
        for (_, _, handle) in decode_sections(&sections, end as u64).unwrap_or_default() {
            reseal(&mut bytes, seed, handle);
        }
    }
    let mut at = HEADER_LEN;
    while at < end {
        let Ok(head) = RecordHead::decode(&bytes[at..end]) else {
            break;
        };
        let Some(crc_at) = usize::try_from(head.len()).ok().and_then(|len| {
            let crc_at = at.checked_add(len)?.checked_sub(4)?;
            (crc_at > at && crc_at + 4 <= end).then_some(crc_at)
        }) else {
            break;
        };
        let mut crc = BlockCrc::new(seed, at as u64);
        crc.update(&bytes[at..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.value().to_le_bytes());
        let Ok(len) = usize::try_from(super::record::padded(head.len())) else {
            break;
        };
        at += len;
    }
    bytes
}

/// Gives a block a right checksum; its contents.
fn reseal(bytes: &mut [u8], seed: u64, handle: Handle) -> Option<Vec<u8>> {
    let end = (bytes.len() - FOOTER_LEN) as u64;
    if !handle.lies_before(end) || handle.len < SEAL_LEN as u64 {
        return None;
    }
    let (offset, len) = (handle.offset as usize, handle.len as usize);
    let contents = bytes[offset..offset + len - SEAL_LEN].to_vec();
    let trailer = seal(seed, handle.offset, &contents);
    bytes[offset + len - SEAL_LEN..offset + len].copy_from_slice(&trailer);
    Some(contents)
}
