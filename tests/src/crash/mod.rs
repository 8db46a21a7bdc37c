//! Crash explorer: a random workload on LavaFS over the simulated device, every recorded device
//! operation a crash point.
//!
//! A *world* is a seed: a device of its own size, and several *lives*. A life is mounted on what a
//! crash of the one before left, so that recovery, its checkpoint and whatever comes after are
//! crashed too. After each crash the device is checked, mounted, compared with the model
//! (`model.rs`, `verify.rs`), used, and checked again: nothing acknowledged lost, nothing
//! invented, generations never repeated.
//!
//! A world repeats exactly: a [`Violation`] names all that leads to it again.
//!
//! Such a world has one thread. Worlds of several threads, with the background thread beside them,
//! do not repeat and have a model of their own (`threads.rs`); so do engines on top (`engine.rs`). Crashes of
//! mkfs are in `format.rs`.

mod engine;
mod format;
mod model;
mod threads;
mod verify;
mod workload;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lavafs::device::SimDevice;
use lavafs::{MkfsOptions, mkfs};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use self::engine::explore_engine;
pub use self::format::explore_mkfs;
pub use self::threads::explore_threads;
use self::workload::Life;

const MIB: u64 = 1 << 20;

/// How much of a world is explored.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Lives of a world.
    pub lives: usize,
    /// Operations of a life.
    pub steps: usize,
    /// Crashes at each device operation, each with its own fate of unflushed writes.
    pub crashes: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Effort {
            lives: 3,
            steps: 120,
            crashes: 4,
        }
    }
}

/// A state that must not be.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The world.
    pub seed: u64,
    /// The life in it, from 0.
    pub life: usize,
    /// Index of the device operation in flight at the crash.
    pub at: usize,
    /// Seed of the crash: which unflushed writes are kept.
    pub crash_seed: u64,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation {
            seed,
            life,
            at,
            crash_seed,
            what,
        } = self;
        write!(
            f,
            "world {seed}, life {life}, crash {crash_seed} at operation {at}: {what}"
        )
    }
}

/// Explores the world `seed` and returns the number of states that were checked.
///
/// # Errors
/// The first violation.
pub fn explore(seed: u64, effort: &Effort) -> Result<u64, Box<Violation>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut device = new_device(seed, &mut rng);
    let mut sealed = BTreeMap::new();
    let mut generations = Vec::new();
    let mut states = 0;
    for life in 0..effort.lives {
        let violation = |at, crash_seed, what| {
            Box::new(Violation {
                seed,
                life,
                at,
                crash_seed,
                what,
            })
        };
        let run_seed = rng.random();
        let lived = guard(|| {
            Ok(workload::run(
                device,
                run_seed,
                effort.steps,
                sealed,
                generations,
            ))
        });
        let lived = lived.map_err(|what| violation(usize::MAX, 0, what))?;
        states += crash_everywhere(&lived, effort.crashes)
            .map_err(|(at, crash_seed, what)| violation(at, crash_seed, what))?;
        if let Some(why) = lived.failure {
            return Err(violation(lived.recording.ops().len(), 0, why));
        }
        let at = rng.random_range(0..=lived.recording.ops().len());
        device = lived.recording.crash(at, rng.random());
        let given = lived.model.generations.iter().filter(|given| given.0 <= at);
        generations = given.map(|given| given.1).collect();
        sealed = lived.sealed;
    }
    Ok(states)
}

/// Checks the state after a crash at each operation of a life.
fn crash_everywhere(life: &Life, crashes: u64) -> Result<u64, (usize, u64, String)> {
    let mut states = 0;
    if life.model.events.is_empty() {
        return Ok(states);
    }
    for at in 0..=life.recording.ops().len() {
        for crash in 0..crashes {
            let crash_seed = at as u64 * crashes + crash;
            let device = life.recording.crash(at, crash_seed);
            guard(|| verify::verify(&life.model, device, at))
                .map_err(|what| (at, crash_seed, what + &life.model.story(at)))?;
            states += 1;
        }
    }
    Ok(states)
}

/// A panic is a violation like any other.
fn guard<T>(body: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// A device with an empty filesystem: small, so that it fills up, with the smallest journal, so
/// that checkpoints happen all the time.
fn new_device(seed: u64, rng: &mut StdRng) -> SimDevice {
    let size = rng.random_range(4..=16) * MIB;
    let device = if rng.random_range(0..4) == 0 {
        SimDevice::new(size, 4096).with_tear(4096)
    } else {
        SimDevice::new(size, 512)
    };
    let discard = rng.random_range(0..2) == 0;
    let options = MkfsOptions {
        uuid: Some(uuid::Uuid::from_u128(u128::from(seed) + 1)),
        journal_size: Some(256 << 10),
        features: if discard {
            vec!["discard".to_owned()]
        } else {
            Vec::new()
        },
        ..MkfsOptions::default()
    };
    mkfs(&device, &options).expect("a healthy device can be formatted");
    // Some filesystems do not fill their device yet, and the workload expands them.
    match rng.random_range(0..3) {
        0 => device.grown(size + rng.random_range(1..=8) * MIB),
        _ => device,
    }
}
