//! All fuzz targets: the decoders of each crate and whole images whose checksums are right.
//!
//! `tests/fuzz` makes a libFuzzer binary of each; `tests/tests/fuzz.rs` runs each for a moment.

use std::path::Path;
use std::sync::Arc;

use lavafs::device::{AlignedBuf, BlockDevice, Durability, SimDevice};
pub use lavafs::fuzzing::Target;
use lavafs::{
    BLOCK_SIZE, CheckMode, FileSystem, LavaFs, MkfsOptions, MountOptions, Superblock, check, mkfs,
};
use xxhash_rust::xxh3::xxh3_64;

/// Targets by crate.
pub const TARGETS: [&[Target]; 4] = [
    &lavafs::fuzzing::TARGETS,
    &[IMAGE],
    &lavalog::fuzzing::TARGETS,
    &lavakv::fuzzing::TARGETS,
];

/// Runs the target named `name` on `bytes`.
///
/// # Panics
/// Where there is no such target, and where it found a broken promise.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS
        .iter()
        .flat_map(|targets| targets.iter())
        .find(|target| target.name == name)
        .expect("a target of this name");
    (target.run)(bytes);
}

const IMAGE: Target = Target {
    name: "image",
    run: image,
    seed: lavafs::fuzzing::checkpoint_seed,
};

const DEVICE_SIZE: u64 = 4 << 20;
const REGION_BLOCKS: u64 = 64;

/// A device whose active checkpoint is `bytes`, with hash and checksums that are right: it mounts
/// and is checked, or is refused; repairing it leaves something that mounts or is refused.
fn image(bytes: &[u8]) {
    let Some(device) = device_with_checkpoint(bytes) else {
        return;
    };
    let _ = check(device.clone(), CheckMode::ReadOnly);
    for read_only in [true, false] {
        read_everything(&device, read_only);
    }
    let repaired = check(device.clone(), CheckMode::Yes);
    if repaired.is_ok_and(|report| !report.has_uncorrected()) {
        let again = check(device, CheckMode::ReadOnly).expect("a repaired device is readable");
        assert!(again.is_clean(), "a repair that does not last: {again:?}");
    }
}

/// A device whose active checkpoint is `bytes`; `None` where it does not fit.
pub fn device_with_checkpoint(bytes: &[u8]) -> Option<Arc<SimDevice>> {
    let len = bytes.len() as u64;
    if len > (REGION_BLOCKS - 3) * BLOCK_SIZE {
        return None;
    }
    let device = SimDevice::new(DEVICE_SIZE, 512);
    let options = MkfsOptions {
        journal_size: Some(REGION_BLOCKS * BLOCK_SIZE),
        ..MkfsOptions::default()
    };
    let superblock: Superblock = mkfs(&device, &options).expect("a fresh device");
    let start = superblock.journal_start;
    let mut header = AlignedBuf::zeroed(BLOCK_SIZE as usize);
    device.read(start * BLOCK_SIZE, &mut header).ok()?;
    header[48..56].copy_from_slice(&len.to_le_bytes());
    header[56..64].copy_from_slice(&xxh3_64(bytes).to_le_bytes());
    let crc = crc32c::crc32c(&header[12..512]);
    header[8..12].copy_from_slice(&crc.to_le_bytes());
    let mut checkpoint = AlignedBuf::zeroed((len.div_ceil(BLOCK_SIZE) * BLOCK_SIZE) as usize);
    checkpoint[..bytes.len()].copy_from_slice(bytes);
    if !bytes.is_empty() {
        device
            .write((start + 1) * BLOCK_SIZE, &checkpoint, Durability::Durable)
            .ok()?;
    }
    for block in [start, start + REGION_BLOCKS - 1] {
        device
            .write(block * BLOCK_SIZE, &header, Durability::Durable)
            .ok()?;
    }
    Some(Arc::new(device))
}

fn read_everything(device: &Arc<SimDevice>, read_only: bool) {
    let options = MountOptions {
        background: false,
        read_only,
        ..MountOptions::default()
    };
    let Ok(fs) = LavaFs::mount(device.clone(), &options) else {
        return;
    };
    for entry in fs.list(Path::new("/")).unwrap_or_default() {
        let path = Path::new("/").join(&entry.name);
        let _ = fs.list(&path);
        if let Ok(file) = fs.open(&path) {
            let mut buf = [0; 100];
            let _ = file.read_at(0, &mut buf);
            let _ = file.read_unverified(5000, &mut buf);
        }
    }
}
