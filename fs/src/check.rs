//! fsck as a library: proves that every block is owned exactly once, that every name leads to an
//! inode and every inode has its names, and that superblocks and journal are whole.
//!
//! A read-only check writes nothing. Repair never invents data: it rewrites damaged copies
//! from good ones and removes orphans (both what a mount would do itself), and in [`CheckMode::Yes`]
//! also accepts the newest readable state of a damaged journal, which loses what was journaled
//! after the damage. Blocks with several owners and names without inodes are left as they are:
//! who is right cannot be known, and everything can still be read from a read-only mount.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::device::{BlockDevice, Durability};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::superblock::Superblock;
use crate::fs::LavaFs;
use crate::meta::recovery::{Recovered, check_owner, recover};
use crate::meta::tables::Tables;
use crate::mkfs::{write_block, write_superblock};
use crate::types::BLOCK_SIZE;
use crate::vfs::FileKind;

/// What a check may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CheckMode {
    /// Nothing (`-n`).
    #[default]
    ReadOnly,
    /// What is safe without asking (`-p`): damaged copies, orphans. Refused where a process of another machine may
    /// have it mounted.
    Preen,
    /// Everything that can be repaired (`-y`), even where it loses what cannot be read, or takes over from another
    /// machine.
    Yes,
}

/// One finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// What is wrong, as a sentence.
    pub what: String,
    /// It was repaired.
    pub corrected: bool,
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckReport {
    /// Everything that is wrong; empty on a clean filesystem.
    pub problems: Vec<Problem>,
    /// Remarks that are no problem, such as a torn journal tail after a crash.
    pub remarks: Vec<String>,
    /// Number of regular files.
    pub files: u64,
    /// Number of directories, the root included.
    pub directories: u64,
    /// Number of symbolic links.
    pub symlinks: u64,
    /// Number of extents.
    pub extents: u64,
    /// Blocks of 4 KiB that files own.
    pub used_blocks: u64,
    /// Blocks of 4 KiB that files can own in all.
    pub total_blocks: u64,
}

impl CheckReport {
    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Something is wrong and was not repaired.
    pub fn has_uncorrected(&self) -> bool {
        self.problems.iter().any(|problem| !problem.corrected)
    }
}

/// Checks the filesystem on `device`, which nobody may have mounted read-write.
///
/// # Errors
/// `NotLavaFs`, `Unsupported` (to repair what this program may only read, too), `InUse`, `Io`. A filesystem whose metadata cannot be read at all is a report
/// with that problem, not an error.
pub fn check(device: Arc<dyn BlockDevice>, mode: CheckMode) -> Result<CheckReport> {
    let disk = Disk::new(device.clone());
    let recovered = match recover(&disk) {
        Ok(recovered) => recovered,
        Err(error @ Error::Corrupt { .. }) => return Ok(unreadable(&error)),
        Err(error) => return Err(error),
    };
    let mut report = survey(&recovered);
    if mode == CheckMode::ReadOnly || report.is_clean() {
        return Ok(report);
    }
    if recovered.superblock.must_be_read_only() {
        let features = recovered.superblock.ro_compat;
        let what =
            format!("repairing what has ro_compat features {features:#x} of a newer program");
        return Err(Error::Unsupported { what });
    }
    if mode == CheckMode::Preen {
        check_owner(&disk)?;
    }
    repair(&device, recovered, mode, &mut report)?;
    Ok(report)
}

fn unreadable(error: &Error) -> CheckReport {
    CheckReport {
        problems: vec![Problem {
            what: error.to_string(),
            corrected: false,
        }],
        remarks: Vec::new(),
        files: 0,
        directories: 0,
        symlinks: 0,
        extents: 0,
        used_blocks: 0,
        total_blocks: 0,
    }
}

/// Everything that a look at the recovered state tells.
fn survey(recovered: &Recovered) -> CheckReport {
    let Recovered {
        superblock, tables, ..
    } = recovered;
    let mut report = CheckReport {
        problems: Vec::new(),
        remarks: Vec::new(),
        files: 0,
        directories: 0,
        symlinks: 0,
        extents: 0,
        used_blocks: 0,
        total_blocks: superblock.data_runs().iter().map(|run| run.1).sum(),
    };
    for inode in tables.inodes.values() {
        let state = inode.state.read();
        match state.kind() {
            FileKind::File => report.files += 1,
            FileKind::Directory => report.directories += 1,
            FileKind::Symlink => report.symlinks += 1,
        }
        report.extents += state.extents.len() as u64;
        report.used_blocks += state.extents.blocks();
    }
    let mut what: Vec<String> = recovered.damage.clone();
    what.extend(
        recovered
            .bad_superblocks
            .iter()
            .map(|block| format!("the superblock copy in block {block} is damaged")),
    );
    what.extend(ownership_problems(superblock, tables));
    what.extend(tables.problems());
    report.problems = what
        .into_iter()
        .map(|what| Problem {
            what,
            corrected: false,
        })
        .collect();
    if recovered.torn_tail {
        let sentence =
            "the journal ends in a record that a crash interrupted; nobody was told of it";
        report.remarks.push(sentence.to_owned());
    }
    if !recovered.bad_headers.is_empty() {
        let sentence = "the second copy of the journal header was not written before a crash";
        report.remarks.push(sentence.to_owned());
    }
    for block in &recovered.stale_superblocks {
        report.remarks.push(format!(
            "a crash left an earlier superblock copy in block {block}; the next mount replaces it"
        ));
    }
    let orphans = tables.orphans().len();
    if orphans > 0 {
        report.remarks.push(format!(
            "{orphans} files were unlinked while open and never closed"
        ));
    }
    report.remarks.push(format!(
        "{} journal records since the checkpoint",
        recovered.records
    ));
    report
}

/// Blocks with several owners or outside the space for files, as sentences.
fn ownership_problems(superblock: &Superblock, tables: &Tables) -> Vec<String> {
    let mut used = tables.used_runs();
    used.sort_unstable_by_key(|run| run.0);
    let space = superblock.data_runs();
    let mut problems = Vec::new();
    let mut owned_to = (0, crate::types::Ino(0));
    for (start, blocks, ino) in used {
        let end = start.saturating_add(blocks);
        if !space
            .iter()
            .any(|&(from, len)| start >= from && end <= from + len)
        {
            problems.push(format!(
                "inode {ino} owns blocks {start}..{end}, which no file may own"
            ));
        }
        if start < owned_to.0 {
            let first = owned_to.1;
            problems.push(format!(
                "blocks {start}..{} belong to inodes {first} and {ino}",
                end.min(owned_to.0)
            ));
        }
        if end > owned_to.0 {
            owned_to = (end, ino);
        }
    }
    problems
}

/// Repairs what `mode` allows, by rewriting superblocks and a mount that writes a fresh
/// checkpoint, and marks it in `report`.
fn repair(
    device: &Arc<dyn BlockDevice>,
    recovered: Recovered,
    mode: CheckMode,
    report: &mut CheckReport,
) -> Result<()> {
    let fatal: BTreeSet<String> = ownership_problems(&recovered.superblock, &recovered.tables)
        .into_iter()
        .chain(recovered.tables.problems())
        .collect();
    let damage: BTreeSet<String> = recovered.damage.iter().cloned().collect();
    if !recovered.bad_superblocks.is_empty() {
        write_superblock(device.as_ref(), &recovered.superblock)?;
    }
    let may_remount = fatal.is_empty() && (damage.is_empty() || mode == CheckMode::Yes);
    if may_remount {
        if !damage.is_empty() {
            clear_damaged_journal(device.as_ref(), &recovered)?;
        }
        LavaFs::restart(device.clone(), recovered)?;
    }
    for problem in &mut report.problems {
        problem.corrected =
            !fatal.contains(&problem.what) && (may_remount || !damage.contains(&problem.what));
    }
    Ok(())
}

/// Blanks the header copies of the region that is not used, so that what it may have held is not
/// in question any more.
fn clear_damaged_journal(device: &dyn BlockDevice, recovered: &Recovered) -> Result<()> {
    let superblock = &recovered.superblock;
    let start = superblock.region_start(1 - recovered.end.region);
    let blank = vec![0; BLOCK_SIZE as usize];
    for block in [start, start + superblock.journal_blocks - 1] {
        write_block(device, block, &blank, Durability::Durable)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::SimDevice;
    use crate::format::owner::Owner;
    use crate::format::superblock::OWNER_BLOCK;
    use crate::{MkfsOptions, mkfs};

    /// A mount refuses it; `fsck -p`, as a boot runs it, changed it under the machine that had it mounted.
    #[test]
    fn what_another_machine_may_have_mounted_is_repaired_only_by_force() {
        let device = Arc::new(SimDevice::new(4 << 20, 512));
        mkfs(&*device, &MkfsOptions::default()).unwrap();
        let owner = Owner {
            host: "another machine".to_owned(),
            ..Owner::this_process(0)
        };
        let durably = Durability::Durable;
        write_block(&*device, OWNER_BLOCK, &owner.encode(), durably).unwrap();
        device.flip_bit(BLOCK_SIZE + 100, 0);
        let before = device.counters();
        let error = check(device.clone(), CheckMode::Preen).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        assert_eq!((device.counters() - before).write_ios, 0);
        assert!(
            !check(device.clone(), CheckMode::Yes)
                .unwrap()
                .has_uncorrected()
        );
        assert!(check(device, CheckMode::ReadOnly).unwrap().is_clean());
    }

    #[test]
    fn what_may_only_be_read_is_checked_and_not_repaired() {
        let device = Arc::new(SimDevice::new(4 << 20, 512));
        let mut superblock = mkfs(&*device, &MkfsOptions::default()).unwrap();
        superblock.ro_compat = 1 << 40;
        write_superblock(&*device, &superblock).unwrap();
        device.flip_bit(BLOCK_SIZE + 100, 0);
        let before = device.counters();
        let report = check(device.clone(), CheckMode::ReadOnly).unwrap();
        assert_eq!(report.problems.len(), 1, "{report:?}");
        for mode in [CheckMode::Preen, CheckMode::Yes] {
            let error = check(device.clone(), mode).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        }
        assert_eq!((device.counters() - before).write_ios, 0);
    }
}
