//! The superblock's copies on a device: which one counts, and how all of them are replaced.
//!
//! Copies 1 and 2 are in known places. The other two are looked for in the middle and at the end of
//! the device, where mkfs and expand put the last one; but after a device grew, these places hold file
//! data or whatever was there before. So a block counts as a copy only if the superblock in it names that
//! block, and one whose uuid is that of the journal outweighs one whose is not (an older filesystem
//! of a larger device, an image kept in a file). Among those the highest epoch counts.
//!
//! If no copy of the journal's filesystem is found although the journal's first header is there, the device grew and both first
//! copies are lost: then the first half of the device is searched for the third.
//!
//! Rewriting goes from the last copy to the first, each one durable before the next. The new last
//! copy is found at the device's end and has the higher epoch, so the new superblock counts from
//! the first write on; a crash then leaves older copies behind, which the next mount replaces.

use crate::device::{AlignedBuf, DeviceWrite, Durability};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::region::{HeaderCopy, RegionHeader};
use crate::format::superblock::{JOURNAL_START, Superblock, SuperblockCopy};
use crate::types::BLOCK_SIZE;

/// Bytes read at a time in the search for a copy.
const SEARCH_LEN: u64 = 1 << 20;

/// The superblock that counts, and the state of its copies.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) superblock: Superblock,
    /// Copies that are not readable, by block.
    pub(crate) damaged: Vec<u64>,
    /// Good copies of an earlier epoch, left by a crash while they were rewritten.
    pub(crate) stale: Vec<u64>,
}

/// Finds the superblock that counts.
///
/// # Errors
/// `NotLavaFs`; `Unsupported` for a newer format; `Corrupt` where no copy is readable or the
/// filesystem is longer than the device.
pub(crate) fn read(disk: &Disk) -> Result<Found> {
    let device_blocks = device_blocks(disk);
    let not_lavafs = |detail: &str| Error::NotLavaFs {
        target: disk.name().to_owned(),
        detail: detail.to_owned(),
    };
    if device_blocks < 4 {
        return Err(not_lavafs("it is smaller than a superblock and its copies"));
    }
    let mut best: Option<((bool, u64), Superblock)> = None;
    let mut damaged = false;
    let mut newer = None;
    for block in [0, 1, device_blocks / 2, device_blocks - 1] {
        match read_copy(disk, block) {
            Ok(SuperblockCopy::Valid(found)) if found.copies().contains(&block) => {
                let rank = (is_confirmed(disk, &found)?, found.epoch);
                if best.as_ref().is_none_or(|(other, _)| rank > *other) {
                    best = Some((rank, found));
                }
            }
            Ok(SuperblockCopy::Damaged) => damaged = true,
            Ok(SuperblockCopy::Valid(_) | SuperblockCopy::Foreign) => {}
            Err(error @ Error::Unsupported { .. }) if block > 1 => newer = Some(error),
            Err(error) => return Err(error),
        }
    }
    let found = match best {
        Some(((true, _), superblock)) => Some(superblock),
        unconfirmed => search(disk)?.or(unconfirmed.map(|(_, superblock)| superblock)),
    };
    let Some(superblock) = found else {
        return Err(match newer {
            Some(error) => error,
            None if damaged => Error::corrupt("superblock", 0, "no copy is readable"),
            None => not_lavafs("it has no superblock"),
        });
    };
    if superblock.total_blocks > device_blocks {
        let detail = format!(
            "the filesystem is {} blocks long, the device only {device_blocks}",
            superblock.total_blocks
        );
        return Err(Error::corrupt("superblock", 0, detail));
    }
    survey(disk, superblock)
}

/// Sorts the copies that `superblock` names.
fn survey(disk: &Disk, superblock: Superblock) -> Result<Found> {
    let (mut damaged, mut stale) = (Vec::new(), Vec::new());
    for block in superblock.copies() {
        match read_copy(disk, block) {
            Ok(SuperblockCopy::Valid(copy)) if copy == superblock => {}
            Ok(SuperblockCopy::Valid(copy))
                if copy.uuid == superblock.uuid && copy.epoch < superblock.epoch =>
            {
                stale.push(block);
            }
            Ok(_) | Err(Error::Unsupported { .. }) => damaged.push(block),
            Err(error) => return Err(error),
        }
    }
    Ok(Found {
        superblock,
        damaged,
        stale,
    })
}

/// Writes `superblock` to the copies in `blocks`, the last first, each one durable before the next.
pub(crate) fn write(disk: &Disk, superblock: &Superblock, blocks: &[u64]) -> Result<()> {
    let mut block = AlignedBuf::zeroed(BLOCK_SIZE as usize);
    block.copy_from_slice(&superblock.encode());
    for at in superblock.copies().into_iter().rev() {
        if blocks.contains(&at) {
            let write = DeviceWrite {
                offset: at * BLOCK_SIZE,
                data: &block,
            };
            disk.write(&[write], Durability::Durable)?;
        }
    }
    Ok(())
}

pub(crate) fn device_blocks(disk: &Disk) -> u64 {
    disk.device().geometry().size / BLOCK_SIZE
}

pub(crate) fn read_copy(disk: &Disk, block: u64) -> Result<SuperblockCopy> {
    Superblock::decode(&read_block(disk, block)?)
}

fn read_block(disk: &Disk, block: u64) -> Result<AlignedBuf> {
    let mut buf = AlignedBuf::zeroed(BLOCK_SIZE as usize);
    disk.read(block * BLOCK_SIZE, &mut buf)?;
    Ok(buf)
}

/// True where a journal header on the device is of the same filesystem.
fn is_confirmed(disk: &Disk, superblock: &Superblock) -> Result<bool> {
    for region in 0..2 {
        let block = superblock.region_start(region);
        if block >= device_blocks(disk) {
            continue;
        }
        let header = read_block(disk, block)?;
        let header = RegionHeader::decode(&header, superblock.uuid, superblock.journal_blocks);
        if matches!(header, HeaderCopy::Valid(_)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Looks for the third copy by reading, where the journal shows that there is a filesystem.
fn search(disk: &Disk) -> Result<Option<Superblock>> {
    let Some(journal) = RegionHeader::decode_any(&read_block(disk, JOURNAL_START)?) else {
        return Ok(None);
    };
    tracing::warn!(
        device = disk.name(),
        "both first superblock copies are lost: searching the device for another"
    );
    let end = (device_blocks(disk) / 2 + 1) * BLOCK_SIZE;
    let mut buf = AlignedBuf::zeroed(SEARCH_LEN as usize);
    let mut at = JOURNAL_START * BLOCK_SIZE;
    while at < end {
        let len = SEARCH_LEN.min(end - at);
        disk.read(at, &mut buf[..len as usize])?;
        for (bytes, block) in buf[..len as usize]
            .chunks(BLOCK_SIZE as usize)
            .zip(at / BLOCK_SIZE..)
        {
            if let Ok(SuperblockCopy::Valid(found)) = Superblock::decode(bytes)
                && found.uuid == journal.uuid
                && found.copies().contains(&block)
            {
                return Ok(Some(found));
            }
        }
        at += len;
    }
    Ok(None)
}
