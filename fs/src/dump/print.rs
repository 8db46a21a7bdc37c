//! The text form of a dump.

use std::fmt;

use super::{CopyState, Dump, HeaderDump, InodeDump, RecordDump, RegionDump};
use crate::format::op::{FLAG_EXACT, FLAG_SEAL, Op};
use crate::format::superblock::Superblock;

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Dump {
            device,
            device_size,
            logical_block,
            ..
        } = self;
        writeln!(
            f,
            "device {device}: {device_size} bytes in logical blocks of {logical_block}"
        )?;
        if let Some(superblock) = &self.superblock {
            print_superblock(superblock, f)?;
        }
        for copy in &self.copies {
            let state = match copy.state {
                CopyState::Current => "current".to_owned(),
                CopyState::Other { epoch } => format!("of epoch {epoch}"),
                CopyState::Damaged => "damaged or missing".to_owned(),
                CopyState::Unsupported => "of a newer format".to_owned(),
            };
            writeln!(f, "  copy in block {}: {state}", copy.block)?;
        }
        match &self.owner {
            Some(owner) if self.owner_may_live => {
                writeln!(f, "owner: {owner}; this is a moving view")?;
            }
            Some(owner) => writeln!(f, "owner: {owner}, which is gone")?,
            None => writeln!(f, "owner: nobody")?,
        }
        for (index, region) in self.regions.iter().enumerate() {
            let name = if index == 0 { 'A' } else { 'B' };
            let active = if self.active_region == Some(index) {
                ", active"
            } else {
                ""
            };
            writeln!(
                f,
                "journal region {name}{active}: blocks {}..{}",
                region.start,
                region.start + region.blocks
            )?;
            region.fmt(f)?;
        }
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        for inode in &self.inodes {
            inode.fmt(f)?;
        }
        for (start, blocks) in &self.free_runs {
            writeln!(f, "free: blocks {start}..{}", start + blocks)?;
        }
        self.fragmentation.fmt(f)
    }
}

fn print_superblock(superblock: &Superblock, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "superblock: epoch {}, uuid {}",
        superblock.epoch, superblock.uuid
    )?;
    writeln!(f, "  label {:?}", superblock.label)?;
    writeln!(
        f,
        "  {} blocks, journal of 2 x {} from block {}",
        superblock.total_blocks, superblock.journal_blocks, superblock.journal_start
    )?;
    writeln!(
        f,
        "  features: compat {:#x} {:?}, ro_compat {:#x}, incompat {:#x}",
        superblock.compat,
        superblock.feature_names(),
        superblock.ro_compat,
        superblock.incompat
    )?;
    writeln!(f, "  made at {} ns since 1970", superblock.created_ns)
}

impl fmt::Display for RegionDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (copy, header) in ["first", "second"].iter().zip(&self.headers) {
            match header {
                HeaderDump::Valid {
                    epoch,
                    first_seq,
                    checkpoint_len,
                    checkpoint_hash,
                    next_id,
                    carried,
                } => writeln!(
                    f,
                    "  {copy} header: epoch {epoch}, first record {first_seq}, checkpoint of \
                     {checkpoint_len} bytes with hash {checkpoint_hash:016x}, next id {next_id}, \
                     {carried} records carried over"
                )?,
                HeaderDump::Blank => writeln!(f, "  {copy} header: blank")?,
                HeaderDump::Damaged => writeln!(f, "  {copy} header: damaged")?,
            }
        }
        match self.checkpoint_is_whole {
            Some(true) => writeln!(f, "  checkpoint: whole")?,
            Some(false) => writeln!(f, "  checkpoint: unreadable or being overwritten")?,
            None => return Ok(()),
        }
        let torn = if self.is_torn {
            ", then one that was not completed"
        } else {
            ""
        };
        writeln!(
            f,
            "  {} records to byte {}{torn}",
            self.records, self.records_end
        )?;
        match &self.damage {
            Some(sentence) => writeln!(f, "  {sentence}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for InodeDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let InodeDump {
            ino,
            kind,
            links,
            generation,
            size: (lower, upper),
            ..
        } = self;
        let path = self.path.as_deref().unwrap_or("(no name)");
        let size = if lower == upper {
            lower.to_string()
        } else {
            format!("{lower} to {upper}")
        };
        writeln!(
            f,
            "inode {ino}: {kind} {path:?}, {size} bytes, {links} names, generation {generation}"
        )?;
        for (start, blocks) in &self.extents {
            writeln!(f, "  blocks {start}..{}", start.saturating_add(*blocks))?;
        }
        Ok(())
    }
}

impl fmt::Display for RecordDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "record {} at byte {}: {} bytes, next id {}",
            self.seq, self.offset, self.len, self.next_id
        )?;
        for operation in &self.operations {
            writeln!(f, "  {operation}")?;
        }
        if !self.is_whole {
            writeln!(f, "  (the rest cannot be decoded)")?;
        }
        Ok(())
    }
}

/// One operation as a sentence.
pub(super) fn operation(op: &Op<'_>) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match *op {
        Op::SetInode(r) => {
            let size = if r.flags & FLAG_EXACT != 0 {
                "exactly"
            } else {
                "at least"
            };
            let tail = if r.flags & FLAG_SEAL != 0 {
                "seal"
            } else {
                "pack"
            };
            format!(
                "inode {}: mode {:o}, owner {}:{}, {} names, generation {}, {size} {} bytes, tail \
                 {tail}",
                r.ino, r.mode, r.uid, r.gid, r.links, r.generation, r.size
            )
        }
        Op::RemoveInode { ino } => format!("inode {ino} is removed"),
        Op::SetExtent {
            ino,
            index,
            start,
            blocks,
        } => {
            let end = start.saturating_add(blocks);
            format!("inode {ino}: extent {index} is blocks {start}..{end}")
        }
        Op::KeepExtents {
            ino,
            count,
            last_blocks,
        } => format!("inode {ino}: {count} extents remain, the last of {last_blocks} blocks"),
        Op::SetSize {
            ino,
            exact,
            size,
            check_from,
            check_crc,
            ..
        } => {
            let what = if exact { "exactly" } else { "at least" };
            if check_from < size {
                format!(
                    "inode {ino}: {what} {size} bytes, if those from {check_from} have checksum \
                     {check_crc:08x}"
                )
            } else {
                format!("inode {ino}: {what} {size} bytes")
            }
        }
        Op::Link { dir, name, ino } => {
            format!("directory {dir}: {:?} is inode {ino}", text(name))
        }
        Op::Unlink { dir, name } => format!("directory {dir}: {:?} is no more", text(name)),
        Op::SetTarget { ino, target } => format!("inode {ino}: links to {:?}", text(target)),
        Op::SetXattr { ino, name, value } => {
            format!(
                "inode {ino}: attribute {:?} has {} bytes",
                text(name),
                value.len()
            )
        }
        Op::RemoveXattr { ino, name } => {
            format!("inode {ino}: attribute {:?} is no more", text(name))
        }
    }
}
