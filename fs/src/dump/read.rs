//! Collecting a dump.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::{CopyDump, CopyState, Dump, HeaderDump, InodeDump, RegionDump, is_about_bytes};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::region::{HeaderCopy, RegionHeader};
use crate::format::superblock::{Superblock, SuperblockCopy};
use crate::fragmentation::Fragmentation;
use crate::meta::recovery::{
    for_each_record, load_checkpoint, read_headers, read_owner, recover_moving,
};
use crate::meta::superblocks;
use crate::meta::tables::{ROOT, Tables};
use crate::types::{FileSize, Ino};
use crate::vfs::FileKind;

pub(super) fn read(disk: Arc<Disk>) -> Result<Dump> {
    let geometry = disk.device().geometry();
    let mut dump = Dump {
        headers: [None; 2],
        device: disk.name().to_owned(),
        device_size: geometry.size,
        logical_block: geometry.logical_block,
        superblock: None,
        copies: Vec::new(),
        owner: None,
        owner_may_live: false,
        regions: Vec::new(),
        active_region: None,
        problems: Vec::new(),
        inodes: Vec::new(),
        free_runs: Vec::new(),
        fragmentation: Fragmentation::default(),
        disk,
    };
    match superblocks::read(&dump.disk) {
        Ok(found) => dump.superblock = Some(found.superblock),
        Err(error @ Error::Corrupt { .. }) => dump.problems.push(error.to_string()),
        Err(error) => return Err(error),
    }
    dump.copies = read_copies(&dump.disk, dump.superblock.as_ref())?;
    dump.owner = read_owner(&dump.disk)?;
    dump.owner_may_live = dump.owner.as_ref().is_some_and(|owner| owner.may_live());
    if let Some(superblock) = dump.superblock.clone() {
        read_regions(&mut dump, &superblock)?;
        read_tables(&mut dump, &superblock)?;
    }
    Ok(dump)
}

fn read_copies(disk: &Disk, superblock: Option<&Superblock>) -> Result<Vec<CopyDump>> {
    let device_blocks = superblocks::device_blocks(disk);
    let places = match superblock {
        Some(superblock) => superblock.copies(),
        None => [0, 1, device_blocks / 2, device_blocks - 1],
    };
    let mut copies = Vec::new();
    for block in places {
        let state = match superblocks::read_copy(disk, block) {
            Ok(SuperblockCopy::Valid(copy)) if Some(&copy) == superblock => CopyState::Current,
            Ok(SuperblockCopy::Valid(copy)) => CopyState::Other { epoch: copy.epoch },
            Ok(SuperblockCopy::Damaged | SuperblockCopy::Foreign) => CopyState::Damaged,
            Err(Error::Unsupported { .. }) => CopyState::Unsupported,
            Err(error) => return Err(error),
        };
        copies.push(CopyDump { block, state });
    }
    Ok(copies)
}

fn read_regions(dump: &mut Dump, superblock: &Superblock) -> Result<()> {
    let copies = read_headers(&dump.disk, superblock)?;
    for (region, pair) in copies.into_iter().enumerate() {
        let header = pair.into_iter().filter_map(valid).max_by_key(|h| h.epoch);
        let start = superblock.region_start(region);
        let mut found = RegionDump {
            start,
            blocks: superblock.journal_blocks,
            headers: pair.map(header_dump),
            checkpoint_is_whole: None,
            records: 0,
            records_end: 0,
            is_torn: false,
            damage: None,
        };
        if let Some(header) = &header {
            found.checkpoint_is_whole =
                match load_checkpoint(&dump.disk, superblock, region, header) {
                    Ok(_) => Some(true),
                    Err(error) if is_about_bytes(&error) => Some(false),
                    Err(error) => return Err(error),
                };
            let mut records = 0;
            let end = for_each_record(&dump.disk, superblock, region, header, &mut |_, _, _| {
                records += 1;
                Ok(())
            })?;
            found.records = records;
            found.records_end = end.offset;
            found.is_torn = end.torn;
            found.damage = end.damage;
        }
        dump.headers[region] = header;
        dump.regions.push(found);
    }
    Ok(())
}

fn valid(copy: HeaderCopy) -> Option<RegionHeader> {
    match copy {
        HeaderCopy::Valid(header) => Some(header),
        HeaderCopy::Blank | HeaderCopy::Damaged => None,
    }
}

fn header_dump(copy: HeaderCopy) -> HeaderDump {
    match copy {
        HeaderCopy::Valid(header) => HeaderDump::Valid {
            epoch: header.epoch,
            first_seq: header.first_seq,
            checkpoint_len: header.checkpoint_len,
            checkpoint_hash: header.checkpoint_hash,
            next_id: header.next_id,
            carried: header.carried,
        },
        HeaderCopy::Blank => HeaderDump::Blank,
        HeaderCopy::Damaged => HeaderDump::Damaged,
    }
}

fn read_tables(dump: &mut Dump, superblock: &Superblock) -> Result<()> {
    let recovered = match recover_moving(&dump.disk) {
        Ok(recovered) => recovered,
        Err(error) if is_about_bytes(&error) => {
            dump.problems.push(error.to_string());
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    dump.active_region = Some(recovered.end.region);
    dump.problems.extend(recovered.damage);
    dump.problems.extend(recovered.tables.problems());
    let paths = paths(&recovered.tables);
    for (&ino, inode) in &recovered.tables.inodes {
        let state = inode.state.read();
        let size = match state.journaled_size() {
            FileSize::Exact(size) => (size, size),
            FileSize::Between { lower, upper } => (lower, upper),
        };
        dump.inodes.push(InodeDump {
            ino: ino.0,
            path: paths.get(&ino).cloned(),
            kind: match state.kind() {
                FileKind::File => "file",
                FileKind::Directory => "directory",
                FileKind::Symlink => "symlink",
            },
            links: state.links,
            generation: state.generation,
            size,
            extents: state
                .extents
                .runs()
                .map(|run| (run.start, run.blocks))
                .collect(),
        });
    }
    let mut used: Vec<(u64, u64)> = dump.inodes.iter().flat_map(|i| i.extents.clone()).collect();
    used.sort_unstable();
    dump.free_runs = gaps(&superblock.data_runs(), &used);
    dump.fragmentation = Fragmentation::new(
        dump.free_runs.iter().map(|run| run.1),
        dump.inodes
            .iter()
            .map(|i| (i.extents.len() as u64, i.extents.iter().map(|e| e.1).sum())),
    );
    Ok(())
}

/// One path of every inode that a name leads to.
fn paths(tables: &Tables) -> BTreeMap<Ino, String> {
    let mut paths = BTreeMap::from([(ROOT, "/".to_owned())]);
    let mut seen = HashSet::from([ROOT]);
    let mut next = vec![ROOT];
    while let Some(dir) = next.pop() {
        let prefix = paths[&dir].clone();
        for (name, ino) in tables.entries(dir, None) {
            let slash = if dir == ROOT { "" } else { "/" };
            let path = format!("{prefix}{slash}{}", String::from_utf8_lossy(name));
            paths.entry(ino).or_insert(path);
            if tables.is_directory(ino) && seen.insert(ino) {
                next.push(ino);
            }
        }
    }
    paths
}

/// What `used`, ascending, leaves of the runs `space`; unlike the allocator's, also where used runs
/// overlap or lie outside.
fn gaps(space: &[(u64, u64)], used: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    for &(start, blocks) in space {
        let end = start + blocks;
        let mut at = start;
        for &(used_start, used_blocks) in used {
            let used_end = used_start.saturating_add(used_blocks);
            if used_end <= at {
                continue;
            }
            if used_start >= end {
                break;
            }
            if used_start > at {
                out.push((at, used_start - at));
            }
            at = used_end;
        }
        if at < end {
            out.push((at, end - at));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::gaps;

    #[test]
    fn gaps_are_found_between_runs_that_overlap_too() {
        let used = [
            (0, 12),
            (20, 5),
            (22, 10),
            (22, 1),
            (95, 10),
            (300, u64::MAX),
        ];
        assert_eq!(
            gaps(&[(10, 90), (200, 50)], &used),
            [(12, 8), (32, 63), (200, 50)]
        );
    }
}
