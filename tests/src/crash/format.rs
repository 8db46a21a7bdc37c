//! Crashes while a filesystem is made: afterwards there is none, or a whole one.
//!
//! The device held zeros, garbage, or an older filesystem with a file in it. A mount of what a crash leaves may fail,
//! never panic; where it succeeds, the filesystem checks clean and is the new one, empty, or, before
//! anything of it was destroyed, the older one with its file.

use std::path::Path;
use std::sync::Arc;

use lavafs::device::{AlignedBuf, BlockDevice, Durability, SimDevice};
use lavafs::{CreateOptions, FileSystem, MkfsOptions, mkfs};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::verify::{assert_clean, mount};
use super::{MIB, Violation, guard};

const CONTENTS: [u8; 5000] = [7; 5000];

/// Explores crashes of one mkfs and returns the number of states that were checked.
///
/// # Errors
/// The first violation.
pub fn explore_mkfs(seed: u64, crashes: u64) -> Result<u64, Box<Violation>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let options = |uuid: u128| MkfsOptions {
        uuid: Some(uuid::Uuid::from_u128(uuid)),
        force: true,
        ..MkfsOptions::default()
    };
    let device = SimDevice::new(rng.random_range(2..=8) * MIB, 512);
    let device = Arc::new(device);
    let violation = |at, crash_seed, what| {
        Box::new(Violation {
            seed,
            life: 0,
            at,
            crash_seed,
            what,
        })
    };
    let before = guard(|| prepare(&device, &mut rng, &options(1)))
        .map_err(|what| violation(usize::MAX, 0, what))?;
    device.record();
    let made = mkfs(&*device, &options(2)).map_err(|error| format!("mkfs: {error}"));
    let recording = device.take_recording();
    made.map_err(|what| violation(usize::MAX, 0, what))?;
    let mut states = 0;
    for at in 0..=recording.ops().len() {
        for crash_seed in 0..crashes {
            let crashed = Arc::new(recording.crash(at, crash_seed));
            let whole = at == recording.ops().len();
            guard(|| verify(&crashed, before, whole))
                .map_err(|what| violation(at, crash_seed, what))?;
            states += 1;
        }
    }
    Ok(states)
}

/// Fills the device with what is there before; true for an older filesystem.
fn prepare(device: &Arc<SimDevice>, rng: &mut StdRng, old: &MkfsOptions) -> Result<bool, String> {
    let say = |error: lavafs::Error| format!("the older filesystem: {error}");
    match rng.random_range(0..3) {
        0 => Ok(false),
        1 => {
            let mut bytes = AlignedBuf::zeroed(MIB as usize);
            for offset in (0..device.geometry().size).step_by(MIB as usize) {
                rng.fill_bytes(&mut bytes);
                let written = device.write(offset, &bytes, Durability::Durable);
                written.map_err(|error| error.to_string())?;
            }
            Ok(false)
        }
        _ => {
            // Of the same geometry, or with a journal of another length.
            let journal_size = [None, Some(256 << 10)][rng.random_range(0..2)];
            let old = MkfsOptions {
                journal_size,
                ..old.clone()
            };
            mkfs(&**device, &old).map_err(say)?;
            let fs = mount(device).map_err(say)?;
            let file = fs.create(Path::new("/old"), &CreateOptions::default());
            file.and_then(|file| file.append(&CONTENTS)).map_err(say)?;
            fs.unmount().map_err(say)?;
            Ok(true)
        }
    }
}

fn verify(device: &Arc<SimDevice>, before: bool, whole: bool) -> Result<(), String> {
    let fs = match mount(device) {
        Ok(fs) => fs,
        Err(error) if whole => return Err(format!("after a whole mkfs: {error}")),
        Err(_) => return Ok(()),
    };
    let is_new = fs.superblock().uuid == uuid::Uuid::from_u128(2);
    let names = fs.list(Path::new("/")).map_err(|e| format!("list: {e}"))?;
    match (is_new, names.len()) {
        (true, 0) => {}
        (false, 1) if before && !whole => {
            let file = fs.open(Path::new("/old")).map_err(|e| e.to_string())?;
            let mut bytes = [0; CONTENTS.len()];
            let read = file.read_at(0, &mut bytes).map_err(|e| e.to_string())?;
            if read != CONTENTS.len() || bytes != CONTENTS {
                return Err("the older filesystem's file is damaged".to_owned());
            }
        }
        found => return Err(format!("a mount finds (new, names) = {found:?}")),
    }
    fs.unmount().map_err(|error| format!("unmount: {error}"))?;
    assert_clean(device, "after a crash of mkfs")
}
