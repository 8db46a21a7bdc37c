//! Reading a journal that its owner goes on writing.
//!
//! What a reader beside a living owner can see, and what is made of it:
//! - a record half-written: the end of what there is so far;
//! - the region switched, and the one being read overwritten by the next checkpoint: the headers are
//!   read again when everything else has been, and if they changed, all is read once more;
//! - a later record without the one before it, since one read of the device is not atomic: reading
//!   again shows the earlier one, which was durable before the later was begun. Damage is believed
//!   only if it stays while nothing moves.
//!
//! A record is bound to its place by uuid, epoch, sequence and the crc of the one before, so that
//! whatever is read as valid is a true record, however old.

use std::time::Duration;

use super::{Recovered, Replay, Window, read_headers, recover};
use crate::device::AlignedBuf;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::owner::Owner;
use crate::format::record::RecordHeader;
use crate::format::region::{HeaderCopy, RegionHeader};
use crate::format::superblock::{OWNER_BLOCK, Superblock};
use crate::meta::journal::JournalEnd;
use crate::meta::superblocks;
use crate::types::BLOCK_SIZE;

/// Attempts to read a state between two switches of the journal.
const ATTEMPTS_MAX: u32 = 40;

/// Attempts after which damage is believed though an owner lives, if nothing moves.
const DAMAGED_ATTEMPTS: u32 = 6;

/// Bytes of operations read before they are applied.
const BATCH_LEN: usize = 4 << 20;

/// Recovers like [`recover`], from a device that another process may be writing to.
///
/// # Errors
/// As `recover`; `InUse` where the journal switches faster than it can be read.
pub(crate) fn recover_moving(disk: &Disk) -> Result<Recovered> {
    let mut damaged = 0;
    for attempt in 0..ATTEMPTS_MAX {
        let before = marks(disk);
        let outcome = recover(disk);
        let (still, moved) = match (before, marks(disk)) {
            (Ok(before), Ok(after)) => (before == after, before != after),
            _ => (false, false),
        };
        let sound = outcome.as_ref().is_ok_and(|found| found.damage.is_empty());
        if sound && still {
            return outcome;
        }
        if !sound && !moved {
            let owned = read_owner(disk)?.is_some_and(|owner| owner.may_live());
            damaged += 1;
            if !owned || damaged >= DAMAGED_ATTEMPTS {
                return outcome;
            }
        }
        std::thread::sleep(Duration::from_millis(1 << attempt.min(5)));
    }
    Err(Error::InUse {
        target: disk.name().to_owned(),
        owner: "a process that changes it faster than it can be read".to_owned(),
    })
}

/// What changes when a region switches or the superblock is rewritten.
fn marks(disk: &Disk) -> Result<(Superblock, [[HeaderCopy; 2]; 2])> {
    let superblock = superblocks::read(disk)?.superblock;
    let headers = read_headers(disk, &superblock)?;
    Ok((superblock, headers))
}

/// The process that has the filesystem mounted for writing, or died while it had.
pub(crate) fn read_owner(disk: &Disk) -> Result<Option<Owner>> {
    let mut block = AlignedBuf::zeroed(BLOCK_SIZE as usize);
    disk.read(OWNER_BLOCK * BLOCK_SIZE, &mut block)?;
    Ok(Owner::decode(&block))
}

/// Refuses a device that a living process of another machine may own.
pub(crate) fn check_owner(disk: &Disk) -> Result<()> {
    match read_owner(disk)? {
        Some(owner) if owner.is_elsewhere() => Err(Error::InUse {
            target: disk.name().to_owned(),
            owner: format!("{owner}, which did not unmount it (take over if it is gone)"),
        }),
        _ => Ok(()),
    }
}

/// How the records of a region end.
#[derive(Debug)]
pub(crate) struct RecordsEnd {
    /// A record was being written.
    pub(crate) torn: bool,
    pub(crate) damage: Option<String>,
    /// Byte offset on the device behind the last record.
    pub(crate) offset: u64,
}

/// Takes a record's byte offset on the device, its header and its body.
pub(crate) type RecordVisitor<'a> = dyn FnMut(u64, &RecordHeader, &[u8]) -> Result<()> + 'a;

/// Gives every record of a region to `visit`, in order, with its byte offset on the device.
pub(crate) fn for_each_record(
    disk: &Disk,
    superblock: &Superblock,
    region: usize,
    header: &RegionHeader,
    visit: &mut RecordVisitor<'_>,
) -> Result<RecordsEnd> {
    let mut replay = Replay::new(disk, superblock, region, header);
    let base = superblock.region_start(region) * BLOCK_SIZE;
    let mut window = Window::new(disk, base, (superblock.journal_blocks - 1) * BLOCK_SIZE);
    while let Some((record, body)) = replay.next_record(&mut window)? {
        visit(base + replay.position, &record, &body)?;
        replay.step_over(&record);
    }
    replay.look_behind(&mut window)?;
    Ok(RecordsEnd {
        torn: replay.torn,
        damage: replay.damage(),
        offset: base + replay.position,
    })
}

/// The operations of the records behind `end`, record by record, and the end behind them. At most
/// some megabytes at a time; nothing where there are no further records.
pub(crate) fn read_on(
    disk: &Disk,
    superblock: &Superblock,
    end: &JournalEnd,
) -> Result<(Vec<Vec<u8>>, JournalEnd)> {
    let header = RegionHeader {
        uuid: superblock.uuid,
        epoch: end.epoch,
        first_seq: end.seq,
        checkpoint_len: end.records_offset - BLOCK_SIZE,
        checkpoint_hash: 0,
        next_id: end.next_id,
        carried: 0,
    };
    let mut replay = Replay::new(disk, superblock, end.region, &header);
    replay.position = end.position;
    replay.prev_crc = end.prev_crc;
    replay.ops_len = end.ops_len;
    let base = superblock.region_start(end.region) * BLOCK_SIZE;
    let mut window = Window::new(disk, base, (superblock.journal_blocks - 1) * BLOCK_SIZE);
    let mut bodies = Vec::new();
    let mut len = 0;
    while len < BATCH_LEN
        && let Some((record, body)) = replay.next_record(&mut window)?
    {
        replay.step_over(&record);
        len += body.len();
        bodies.push(body);
    }
    Ok((bodies, replay.end()))
}
