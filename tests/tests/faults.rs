//! Devices that fail and lie, and images with bytes changed: an error or the right answer, never
//! a panic, never wrong metadata in silence.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use lavafs::device::{
    AlignedBuf, BlockDevice, Durability, Fault, FaultOn, FaultPlan, FaultWhen, SimDevice,
};
use lavafs::{
    BLOCK_SIZE, CheckMode, CreateOptions, Error, FileSystem, LavaFs, MkfsOptions, MountOptions,
    check, mkfs,
};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use xxhash_rust::xxh3::xxh3_64;

const DEVICE_SIZE: u64 = 4 << 20;
const FILES: usize = 30;

/// Where the journal's two regions are, in blocks.
const JOURNAL_START: u64 = 3;
const REGION_BLOCKS: u64 = 64;

fn device() -> SimDevice {
    let device = SimDevice::new(DEVICE_SIZE, 512);
    let options = MkfsOptions {
        journal_size: Some(REGION_BLOCKS * BLOCK_SIZE),
        ..MkfsOptions::default()
    };
    mkfs(&device, &options).unwrap();
    device
}

fn mount_as(device: &Arc<SimDevice>, read_only: bool) -> lavafs::Result<LavaFs> {
    let options = MountOptions {
        background: false,
        read_only,
        ..MountOptions::default()
    };
    LavaFs::mount(device.clone(), &options)
}

fn bytes_of(index: usize) -> Vec<u8> {
    vec![index as u8 + 1; 700 * (index + 1)]
}

fn path_of(index: usize) -> String {
    format!("/f{index:02}")
}

/// Makes file after file, each durable before the next, with checkpoints between. Returns how many
/// were acknowledged, and the first error.
fn make_files(fs: &LavaFs) -> (usize, Option<Error>) {
    for index in 0..FILES {
        let make = || -> lavafs::Result<()> {
            let path = path_of(index);
            let file = fs.create(Path::new(&path), &CreateOptions::default())?;
            file.append(&bytes_of(index)[..500])?;
            file.fdatasync()?;
            file.append(&bytes_of(index)[500..])?;
            file.fsync()?;
            if index % 7 == 6 {
                fs.checkpoint()?;
            }
            Ok(())
        };
        if let Err(error) = make() {
            return (index, Some(error));
        }
    }
    (FILES, None)
}

fn assert_file(fs: &LavaFs, index: usize) {
    let file = fs.open(Path::new(&path_of(index))).unwrap();
    let mut bytes = vec![0; bytes_of(index).len() + 1];
    let read = file.read_at(0, &mut bytes).unwrap();
    assert!(bytes[..read] == bytes_of(index), "file {index}");
}

/// The files listed are the first so many.
fn count_files(fs: &LavaFs) -> usize {
    let names = fs.list(Path::new("/")).unwrap();
    for (index, entry) in names.iter().enumerate() {
        assert_eq!(format!("/{}", entry.name.display()), path_of(index));
    }
    names.len()
}

#[test]
fn a_failed_write_or_flush_is_final_and_loses_nothing_acknowledged() {
    let mut failures = 0;
    for on in [FaultOn::Write, FaultOn::Flush] {
        for nth in 0..120 {
            let device = Arc::new(device());
            let fs = mount_as(&device, false).unwrap();
            let plan = FaultPlan::new(nth).rule(on, FaultWhen::Nth(nth), Fault::Eio);
            device.set_faults(Some(plan));
            let (acked, error) = make_files(&fs);
            let Some(first) = error else {
                assert_eq!(acked, FILES);
                continue;
            };
            failures += 1;
            assert!(matches!(first, Error::Io { .. }), "{first}");
            let refused = [
                fs.create(Path::new("/x"), &CreateOptions::default()).err(),
                fs.unlink(Path::new("/f00")).err(),
                fs.create_dir_all(Path::new("/d")).err(),
                fs.commit().err(),
                fs.checkpoint().err(),
            ];
            for error in refused {
                let error = error.unwrap();
                assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
                assert!(error.to_string().contains(&first.to_string()), "{error}");
            }
            (0..acked).for_each(|index| assert_file(&fs, index));
            drop(fs);
            for seed in 0..4 {
                let crashed = Arc::new(device.crash(seed));
                let report = check(crashed.clone(), CheckMode::ReadOnly).unwrap();
                assert!(report.is_clean(), "{on:?} {nth}: {report:?}");
                let fs = mount_as(&crashed, false).unwrap();
                assert!(count_files(&fs) >= acked);
                (0..acked).for_each(|index| assert_file(&fs, index));
            }
        }
    }
    assert!(failures > 100, "only {failures} faults took effect");
}

/// Mounts and checks in all ways. Where read-write mounting is accepted, at most the last file may
/// be missing: nothing on the device can tell that the last record was ever written.
fn assert_right_or_refused(device: &SimDevice, what: &str) {
    let device = Arc::new(device.duplicate());
    let _ = check(device.clone(), CheckMode::ReadOnly);
    if let Ok(fs) = mount_as(&device, true) {
        count_files(&fs);
    }
    if let Ok(fs) = mount_as(&device, false) {
        let count = count_files(&fs);
        assert!(count + 1 >= FILES, "{what}: {count} files in silence");
    }
}

#[test]
fn lost_misdirected_and_rotten_writes_never_mislead_in_silence() {
    let mut rng = StdRng::seed_from_u64(1);
    for round in 0..600 {
        let device = Arc::new(device());
        let fs = mount_as(&device, false).unwrap();
        let fault = match round % 3 {
            0 => Fault::Lost,
            1 => Fault::BitFlip,
            _ => {
                let to = rng.random_range(0..DEVICE_SIZE / 512) * 512;
                Fault::Misdirect { to }
            }
        };
        let nth = rng.random_range(0..110);
        let plan = FaultPlan::new(round).rule(FaultOn::Write, FaultWhen::Nth(nth), fault);
        device.set_faults(Some(plan));
        let (acked, error) = make_files(&fs);
        device.set_faults(None);
        drop(fs);
        if error.is_none() {
            assert_eq!(acked, FILES);
            assert_right_or_refused(&device, &format!("round {round}, write {nth}, {fault:?}"));
        }
    }
}

fn with_files() -> SimDevice {
    let device = Arc::new(device());
    let fs = mount_as(&device, false).unwrap();
    assert_eq!(make_files(&fs).0, FILES);
    drop(fs);
    Arc::try_unwrap(device).unwrap()
}

#[test]
fn flipped_bits_in_metadata_are_errors_or_change_nothing() {
    let whole = with_files();
    let mut rng = StdRng::seed_from_u64(2);
    for round in 0..1500 {
        let device = whole.duplicate();
        let mut places = Vec::new();
        for _ in 0..rng.random_range(1..3) {
            let journal = 2 * REGION_BLOCKS + JOURNAL_START;
            let block = match rng.random_range(0..4) {
                0 => [
                    0,
                    1,
                    DEVICE_SIZE / BLOCK_SIZE / 2,
                    DEVICE_SIZE / BLOCK_SIZE - 1,
                ][rng.random_range(0..4)],
                1 => {
                    JOURNAL_START + REGION_BLOCKS * rng.random_range(0..2) + rng.random_range(0..4)
                }
                _ => rng.random_range(0..journal),
            };
            let at = block * BLOCK_SIZE + rng.random_range(0..600);
            places.push(at);
            device.flip_bit(at, rng.random_range(0..8));
        }
        assert_right_or_refused(&device, &format!("round {round}, bytes {places:?}"));
    }
}

#[test]
fn garbage_over_metadata_never_panics() {
    let whole = with_files();
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..600 {
        let device = whole.duplicate();
        let blocks = JOURNAL_START + 2 * REGION_BLOCKS;
        for _ in 0..rng.random_range(1..6) {
            let mut garbage = AlignedBuf::zeroed(512 * rng.random_range(1..9));
            if rng.random_range(0..3) > 0 {
                rng.fill_bytes(&mut garbage);
            }
            let at = rng.random_range(0..blocks * 8 - 9) * 512;
            device.write(at, &garbage, Durability::Durable).unwrap();
        }
        let device = Arc::new(device);
        for mode in [CheckMode::ReadOnly, CheckMode::Preen, CheckMode::Yes] {
            let _ = check(device.clone(), mode);
        }
        for read_only in [true, false] {
            if let Ok(fs) = mount_as(&device, read_only) {
                let _ = fs.list(Path::new("/"));
            }
        }
    }
}

/// Changes bytes of the active checkpoint and makes hash and checksums right again, as a broken
/// program or an enemy would.
fn reseal_changed(device: &SimDevice, rng: &mut StdRng) {
    let read = |block: u64, blocks: u64| {
        let mut buf = AlignedBuf::zeroed((blocks * BLOCK_SIZE) as usize);
        device.read(block * BLOCK_SIZE, &mut buf).unwrap();
        buf
    };
    let field = |buf: &[u8], at: usize| u64::from_le_bytes(buf[at..at + 8].try_into().unwrap());
    let starts = [JOURNAL_START, JOURNAL_START + REGION_BLOCKS];
    let start = *starts
        .iter()
        .max_by_key(|&&start| field(&read(start, 1), 32))
        .unwrap();
    let mut header = read(start, 1);
    let len = field(&header, 48) as usize;
    let mut checkpoint = read(start + 1, (len as u64).div_ceil(BLOCK_SIZE));
    for _ in 0..rng.random_range(1..8) {
        let at = rng.random_range(0..len);
        checkpoint[at] = match rng.random_range(0..3) {
            0 => 0xff,
            1 => checkpoint[at] ^ (1 << rng.random_range(0..8)),
            _ => rng.random(),
        };
        if rng.random_range(0..3) == 0 {
            // The longest varint, wherever it may fall.
            let end = (at + 9).min(len);
            checkpoint[at..end].fill(0xff);
            if end < len {
                checkpoint[end] = 1;
            }
        }
    }
    device
        .write((start + 1) * BLOCK_SIZE, &checkpoint, Durability::Durable)
        .unwrap();
    header[56..64].copy_from_slice(&xxh3_64(&checkpoint[..len]).to_le_bytes());
    let crc = crc32c::crc32c(&header[12..512]);
    header[8..12].copy_from_slice(&crc.to_le_bytes());
    for block in [start, start + REGION_BLOCKS - 1] {
        device
            .write(block * BLOCK_SIZE, &header, Durability::Durable)
            .unwrap();
    }
}

#[test]
fn well_sealed_nonsense_never_panics() {
    let whole = with_files();
    // A fresh checkpoint holds everything. The device is left without an owner: a read-only mount
    // of a damaged one that a living process owns, which this process is, reads it again and
    // again for a while.
    let whole = Arc::new(whole);
    mount_as(&whole, false).unwrap().unmount().unwrap();
    for seed in 0..4000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let device = whole.duplicate();
        reseal_changed(&device, &mut rng);
        let device = Arc::new(device);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = check(device.clone(), CheckMode::ReadOnly);
            for read_only in [true, false] {
                if let Ok(fs) = mount_as(&device, read_only) {
                    for entry in fs.list(Path::new("/")).unwrap_or_default() {
                        let path = Path::new("/").join(&entry.name);
                        if let Ok(file) = fs.open(&path) {
                            let mut bytes = [0; 100];
                            let _ = file.read_at(0, &mut bytes);
                            let _ = file.read_unverified(5000, &mut bytes);
                        }
                    }
                }
            }
            let _ = check(device.clone(), CheckMode::Yes);
        }));
        assert!(outcome.is_ok(), "seed {seed}");
    }
}

/// Every write unit of the journal began what could have been a later record, each with a body up
/// to the journal's end. Recovery read and summed up each body by itself: half a
/// million megabytes for a journal of the largest size.
#[test]
fn a_journal_full_of_claims_is_read_once() {
    const BLOCKS: u64 = 1024;
    let device = SimDevice::new(32 << 20, 512);
    let options = MkfsOptions {
        journal_size: Some(BLOCKS * BLOCK_SIZE),
        ..MkfsOptions::default()
    };
    mkfs(&device, &options).unwrap();
    let device = Arc::new(device);
    drop(mount_as(&device, false).unwrap());
    let region = |index: u64| (JOURNAL_START + index * BLOCKS) * BLOCK_SIZE;
    let epoch_of = |start: u64| {
        let mut block = AlignedBuf::zeroed(BLOCK_SIZE as usize);
        device.read(start, &mut block).unwrap();
        u64::from_le_bytes(block[32..40].try_into().unwrap())
    };
    let start = [region(0), region(1)]
        .into_iter()
        .max_by_key(|&at| epoch_of(at));
    let start = start.unwrap();
    let end = start + (BLOCKS - 1) * BLOCK_SIZE;
    let mut claim = AlignedBuf::zeroed(512);
    for at in (start + 2 * BLOCK_SIZE..end).step_by(512) {
        claim[0..4].copy_from_slice(b"LVJR");
        claim[8..16].copy_from_slice(&epoch_of(start).to_le_bytes());
        claim[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        claim[28..32].copy_from_slice(&((end - at - 48) as u32).to_le_bytes());
        device.write(at, &claim, Durability::Durable).unwrap();
    }
    let before = device.counters();
    let report = check(device.clone(), CheckMode::ReadOnly).unwrap();
    let spent = device.counters() - before;
    assert!(report.is_clean(), "{report:?}");
    assert!(
        spent.read_bytes < 3 * BLOCKS * BLOCK_SIZE,
        "{} bytes read of a region of {}",
        spent.read_bytes,
        BLOCKS * BLOCK_SIZE
    );
}
