//! mkfs: makes a filesystem on a device.
//!
//! The order of writes is such that a crash leaves no filesystem or a whole one: both regions'
//! headers are blanked and flushed, then checkpoint and header of region A are written, then the
//! superblock's last two copies, and its first two last.
//!
//! The journal's sequence numbers begin at the time of day in nanoseconds, and so above those of any filesystem that was
//! on the device before: a record of that one, of the same epoch and perhaps the same uuid, is never
//! taken for a later one of this, which would be damage.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::device::{AlignedBuf, BlockDevice, Durability};
use crate::error::{Error, Result};
use crate::format::owner::Owner;
use crate::format::region::RegionHeader;
use crate::format::superblock::{
    COMPAT_NAMES, JOURNAL_BLOCKS_MIN, JOURNAL_START, LABEL_LEN_MAX, OWNER_BLOCK, Superblock,
};
use crate::meta::tables::{FIRST_ID, Tables};
use crate::options::{DEVICE_SIZE_MIN, MkfsOptions};
use crate::types::{BLOCK_SIZE, align_down};

/// Default share of the device that one journal region takes.
const JOURNAL_SHARE: u64 = 128;

/// Largest default journal region in bytes.
const JOURNAL_SIZE_DEFAULT_MAX: u64 = 256 << 20;

/// Makes a filesystem on `device`, and returns its superblock; a dry run returns what would be.
///
/// # Errors
/// `Invalid` for options out of range or a device that is too small; `InUse` where it holds a known
/// filesystem and `force` is not set.
pub fn mkfs(device: &dyn BlockDevice, options: &MkfsOptions) -> Result<Superblock> {
    let superblock = plan(device, options)?;
    if !options.force
        && let Some(found) = known_contents(device)?
    {
        return Err(Error::InUse {
            target: device.name().to_owned(),
            owner: format!("{found}; use -f to overwrite it"),
        });
    }
    if !options.dry_run {
        write_all(device, &superblock)?;
    }
    Ok(superblock)
}

fn plan(device: &dyn BlockDevice, options: &MkfsOptions) -> Result<Superblock> {
    let size = device.geometry().size;
    if size < DEVICE_SIZE_MIN {
        let name = device.name();
        let what = format!("{name} is too small: {size} bytes, at least {DEVICE_SIZE_MIN} needed");
        return Err(Error::Invalid { what });
    }
    let label = options.label.clone().unwrap_or_default();
    check_label(&label)?;
    let total_blocks = size / BLOCK_SIZE;
    let journal_blocks = journal_blocks(size, options.journal_size)?;
    let mut superblock = Superblock {
        epoch: 1,
        uuid: options.uuid.unwrap_or_else(Uuid::new_v4),
        label,
        total_blocks,
        middle_block: total_blocks / 2,
        journal_start: JOURNAL_START,
        journal_blocks,
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        created_ns: now_ns(),
    };
    for name in &options.features {
        set_feature(&mut superblock, name)?;
    }
    Ok(superblock)
}

/// Refuses a label that does not fit the superblock.
pub(crate) fn check_label(label: &str) -> Result<()> {
    if label.len() > LABEL_LEN_MAX || label.contains('\0') {
        let what = format!("a label has at most {LABEL_LEN_MAX} bytes and no NUL");
        return Err(Error::Invalid { what });
    }
    Ok(())
}

fn journal_blocks(size: u64, wanted: Option<u64>) -> Result<u64> {
    let least = JOURNAL_BLOCKS_MIN * BLOCK_SIZE;
    let default = (size / JOURNAL_SHARE).clamp(least, JOURNAL_SIZE_DEFAULT_MAX);
    let bytes = align_down(wanted.unwrap_or(default), BLOCK_SIZE);
    // Both regions lie before the middle superblock and leave half of that for files.
    let most = size / 8;
    if bytes < least || bytes > most {
        let what = format!("a journal region has {least} to {most} bytes here, not {bytes}");
        return Err(Error::Invalid { what });
    }
    Ok(bytes / BLOCK_SIZE)
}

fn set_feature(superblock: &mut Superblock, name: &str) -> Result<()> {
    let (clear, plain) = match name.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, name),
    };
    let Some((_, bit)) = COMPAT_NAMES.iter().find(|(known, _)| *known == plain) else {
        let known: Vec<&str> = COMPAT_NAMES.iter().map(|(known, _)| *known).collect();
        let what = format!("unknown feature {plain:?}; known: {}", known.join(", "));
        return Err(Error::Invalid { what });
    };
    if clear {
        superblock.compat &= !bit;
    } else {
        superblock.compat |= bit;
    }
    Ok(())
}

fn write_all(device: &dyn BlockDevice, superblock: &Superblock) -> Result<()> {
    let blank = vec![0; BLOCK_SIZE as usize];
    for region in 0..2 {
        let start = superblock.region_start(region);
        write_block(device, start, &blank, Durability::Volatile)?;
        write_block(
            device,
            start + superblock.journal_blocks - 1,
            &blank,
            Durability::Volatile,
        )?;
    }
    flush(device)?;
    let checkpoint = Tables::initial(superblock.created_ns);
    let header = RegionHeader {
        uuid: superblock.uuid,
        epoch: 1,
        first_seq: superblock.created_ns.unsigned_abs(),
        checkpoint_len: checkpoint.len() as u64,
        checkpoint_hash: xxh3_64(&checkpoint),
        next_id: FIRST_ID,
        carried: 0,
    };
    let start = superblock.region_start(0);
    write_block(device, start + 1, &checkpoint, Durability::Volatile)?;
    // A record area that begins with zeros cannot be taken for a torn record.
    write_block(device, start + 2, &blank, Durability::Volatile)?;
    write_block(
        device,
        OWNER_BLOCK,
        &Owner::nobody().encode(),
        Durability::Volatile,
    )?;
    flush(device)?;
    let header = header.encode();
    write_block(device, start, &header, Durability::Durable)?;
    write_block(
        device,
        start + superblock.journal_blocks - 1,
        &header,
        Durability::Durable,
    )?;
    write_superblock(device, superblock)
}

/// Writes all copies, the first two last.
pub(crate) fn write_superblock(device: &dyn BlockDevice, superblock: &Superblock) -> Result<()> {
    let block = superblock.encode();
    for at in superblock.copies().into_iter().rev() {
        write_block(device, at, &block, Durability::Durable)?;
    }
    Ok(())
}

pub(crate) fn write_block(
    device: &dyn BlockDevice,
    block: u64,
    bytes: &[u8],
    durability: Durability,
) -> Result<()> {
    assert!(bytes.len() as u64 <= BLOCK_SIZE);
    let mut buf = AlignedBuf::zeroed(BLOCK_SIZE as usize);
    buf[..bytes.len()].copy_from_slice(bytes);
    let offset = block * BLOCK_SIZE;
    device
        .write(offset, &buf, durability)
        .map_err(|e| Error::io("write", device.name(), offset, e))
}

fn flush(device: &dyn BlockDevice) -> Result<()> {
    device
        .flush()
        .map_err(|e| Error::io("flush", device.name(), 0, e))
}

fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Names the filesystem or other known format that a device holds, from its magic numbers.
///
/// # Errors
/// `Io` where the device cannot be read.
pub fn known_contents(device: &dyn BlockDevice) -> Result<Option<&'static str>> {
    const PROBE_LEN: u64 = 68 << 10;
    const MAGICS: &[(&str, usize, &[u8])] = &[
        ("a LavaFS filesystem", 0, b"LAVAFS"),
        ("a LavaFS filesystem", 4096, b"LAVAFS"),
        ("an ext2, ext3 or ext4 filesystem", 1080, &[0x53, 0xef]),
        ("an XFS filesystem", 0, b"XFSB"),
        ("a Btrfs filesystem", 65600, b"_BHRfS_M"),
        ("an F2FS filesystem", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
        ("an NTFS filesystem", 3, b"NTFS    "),
        ("an exFAT filesystem", 3, b"EXFAT   "),
        ("a FAT filesystem", 82, b"FAT32   "),
        ("a FAT filesystem", 54, b"FAT1"),
        ("an ISO 9660 filesystem", 32769, b"CD001"),
        ("a SquashFS filesystem", 0, b"hsqs"),
        ("a LUKS volume", 0, b"LUKS\xba\xbe"),
        ("an LVM physical volume", 536, b"LVM2 001"),
        ("a Linux RAID member", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
        ("a Ceph BlueStore device", 0, b"bluestore block device"),
        ("swap space", 4086, b"SWAPSPACE2"),
        ("a GUID partition table", 512, b"EFI PART"),
    ];
    let len = PROBE_LEN.min(align_down(device.geometry().size, BLOCK_SIZE));
    let mut buf = AlignedBuf::zeroed(len as usize);
    device
        .read(0, &mut buf)
        .map_err(|e| Error::io("read", device.name(), 0, e))?;
    let holds = |at: usize, magic: &[u8]| buf.get(at..at + magic.len()) == Some(magic);
    Ok(MAGICS
        .iter()
        .find(|(_, at, magic)| holds(*at, magic))
        .map(|(name, ..)| *name))
}
