//! Dumps of whole and of damaged filesystems.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use lavafs::device::SimDevice;
use lavafs::{
    BLOCK_SIZE, CopyState, CreateOptions, Dump, Error, FileSystem, HeaderDump, LavaFs, MkfsOptions,
    MountOptions, mkfs,
};

const MIB: u64 = 1 << 20;

/// A filesystem with some files that was not unmounted, and what is free in it.
fn sample() -> (Arc<SimDevice>, Vec<(u64, u64)>) {
    let device = Arc::new(SimDevice::new(8 * MIB, 512));
    mkfs(&*device, &MkfsOptions::default()).unwrap();
    let options = MountOptions {
        background: false,
        ..MountOptions::default()
    };
    let fs = LavaFs::mount(device.clone(), &options).unwrap();
    fs.create_dir_all(Path::new("/dir")).unwrap();
    for name in 0..20u8 {
        let path = format!("/dir/{name}");
        let file = fs
            .create(Path::new(&path), &CreateOptions::default())
            .unwrap();
        file.append(&vec![name; 5000 * name as usize]).unwrap();
        file.fsync().unwrap();
    }
    for name in (0..20).step_by(2) {
        fs.unlink(Path::new(&format!("/dir/{name}"))).unwrap();
    }
    fs.commit().unwrap();
    let free = fs.free_runs();
    let frag = fs.fragmentation();
    assert_eq!(
        frag.free_blocks(),
        free.iter().map(|run| run.1).sum::<u64>()
    );
    assert_eq!(frag.files(), 10);
    (device, free)
}

fn records(dump: &Dump) -> Vec<String> {
    let mut lines = Vec::new();
    for region in 0..2 {
        dump.for_each_record(region, |record| {
            assert!(record.is_whole);
            lines.push(record.to_string());
            Ok(())
        })
        .unwrap();
    }
    lines
}

#[test]
fn a_dump_shows_every_structure() {
    let (device, free) = sample();
    let dump = Dump::read(device).unwrap();
    assert_eq!(dump.problems, Vec::<String>::new());
    assert!(
        dump.copies
            .iter()
            .all(|copy| copy.state == CopyState::Current)
    );
    assert_eq!(dump.owner.as_ref().unwrap().pid, std::process::id());
    assert!(dump.owner_may_live);
    assert_eq!(dump.free_runs, free);
    let active = &dump.regions[dump.active_region.unwrap()];
    assert_eq!(active.checkpoint_is_whole, Some(true));
    assert!(active.records >= 21, "{active:?}");
    assert!(matches!(
        active.headers,
        [HeaderDump::Valid { .. }, HeaderDump::Valid { .. }]
    ));
    let paths: Vec<_> = dump.inodes.iter().filter_map(|i| i.path.clone()).collect();
    assert_eq!(paths.len(), 12);
    assert!(paths.contains(&"/dir/19".to_owned()));
    let nineteen = dump
        .inodes
        .iter()
        .find(|i| i.path.as_deref() == Some("/dir/19"))
        .unwrap();
    assert_eq!(nineteen.size, (95_000, 95_000));
    let lines = records(&dump);
    assert!(
        lines.iter().any(|line| line.contains("\"18\" is no more")),
        "{lines:?}"
    );
    let text = dump.to_string();
    for part in [
        "superblock: epoch 1",
        "journal region A",
        "active",
        "/dir/19",
        "free: blocks",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn whatever_is_damaged_the_rest_is_shown() {
    let (device, _) = sample();
    let dump = Dump::read(device.clone()).unwrap();
    let superblock = dump.superblock.unwrap();
    let active = dump.active_region.unwrap();
    let start = dump.regions[active].start;
    let checkpoint = start + 1;
    let copies = [0, 1, superblock.middle_block, superblock.total_blocks - 1];
    for block in copies {
        let rotten = device.duplicate();
        rotten.flip_bit(block * BLOCK_SIZE + 100, 0);
        let dump = Dump::read(Arc::new(rotten)).unwrap();
        let bad: Vec<_> = dump
            .copies
            .iter()
            .filter(|c| c.state == CopyState::Damaged)
            .collect();
        assert_eq!(bad.len(), 1);
        assert_eq!(dump.inodes.len(), 12);
    }
    let rotten = device.duplicate();
    for block in copies {
        rotten.flip_bit(block * BLOCK_SIZE + 100, 0);
    }
    let dump = Dump::read(Arc::new(rotten)).unwrap();
    assert!(dump.superblock.is_none() && dump.inodes.is_empty());
    assert!(
        dump.problems[0].contains("no copy is readable"),
        "{:?}",
        dump.problems
    );
    assert!(!dump.to_string().is_empty());

    let rotten = device.duplicate();
    rotten.flip_bit(checkpoint * BLOCK_SIZE, 0);
    let dump = Dump::read(Arc::new(rotten)).unwrap();
    assert_eq!(dump.regions[active].checkpoint_is_whole, Some(false));
    assert!(dump.problems[0].contains("hash"), "{:?}", dump.problems);
    assert!(records(&dump).len() >= 21);

    let rotten = device.duplicate();
    rotten.flip_bit(start * BLOCK_SIZE + 32, 0);
    let dump = Dump::read(Arc::new(rotten)).unwrap();
    assert_eq!(dump.regions[active].headers[0], HeaderDump::Damaged);
    assert!(matches!(
        dump.regions[active].headers[1],
        HeaderDump::Valid { .. }
    ));
    assert!(records(&dump).len() >= 21);
}

#[test]
fn any_flipped_bit_of_the_metadata_leaves_a_dump() {
    let (device, _) = sample();
    let end = 3 + 2 * Dump::read(device.clone()).unwrap().regions[0].blocks;
    let mut random = 0x2545_f491_4f6c_dd1du64;
    for round in 0..60 {
        let rotten = device.duplicate();
        for _ in 0..=round % 8 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let used = if random >> 63 == 0 { 6 } else { end };
            rotten.flip_bit(
                (random >> 20) % (used * BLOCK_SIZE),
                (random >> 8) as u8 % 8,
            );
        }
        let dump = Dump::read(Arc::new(rotten)).unwrap();
        let _ = (dump.to_string(), records(&dump));
    }
}

#[test]
fn a_device_without_lavafs_is_no_dump() {
    let device = Arc::new(SimDevice::new(8 * MIB, 512));
    assert!(matches!(Dump::read(device), Err(Error::NotLavaFs { .. })));
}
