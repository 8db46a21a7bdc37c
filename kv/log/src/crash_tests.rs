//! Crashes under LavaLog on LavaFS: every device operation of a short life, each file's seal included, is a crash
//! point. What is shown before anything is recovered is what recovery finds.

use std::sync::Arc;

use lavafs::device::{Recording, SimDevice};
use lavafs::{FileSystemRef, LavaFs, MkfsOptions, MountOptions, mkfs};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::look_tests::shown;
use crate::tests::{DENSE, data, dir, open};
use crate::*;

const LEN: usize = 2500;

/// What had to be durable from an operation of the device on.
#[derive(Clone, Copy, Default)]
struct Acked {
    at: usize,
    last: u64,
    floor: u64,
}

fn mount(device: &Arc<SimDevice>, read_only: bool) -> (LavaFs, FileSystemRef) {
    let options = MountOptions {
        read_only,
        background: false,
        ..MountOptions::default()
    };
    let lava = LavaFs::mount(device.clone(), &options).unwrap();
    (lava.clone(), Arc::new(lava))
}

/// A life of three files, closed or not. Returns what happened to the device and what was acknowledged.
fn live(device: SimDevice, rng: &mut StdRng) -> (Recording, Vec<Acked>) {
    let device = Arc::new(device);
    device.record();
    let mut acked = Vec::new();
    {
        let (_lava, fs) = mount(&device, false);
        let engine = open(&fs).unwrap();
        let log = match engine.open_log("a") {
            Ok(log) => log,
            Err(_) => engine.create("a", DENSE).unwrap(),
        };
        let begin = log.last().unwrap_or(0) + 1;
        let end = begin + 70;
        let mut floor = log.floor();
        if begin > 1 {
            acked.push(Acked {
                at: 0,
                last: begin - 1,
                floor,
            });
        }
        for lsn in begin..end {
            let sync = rng.random_range(0..3) == 0;
            log.append(lsn, &data(lsn, 0, LEN), sync).unwrap();
            if rng.random_range(0..30) == 0 {
                floor = floor.max(lsn.saturating_sub(rng.random_range(20..60)));
                log.trim_before(floor).unwrap();
                engine.sync().unwrap();
            } else if !sync {
                continue;
            }
            acked.push(Acked {
                at: device.recorded_ops(),
                last: lsn,
                floor,
            });
        }
        if rng.random_bool(0.7) {
            engine.close().unwrap();
            acked.push(Acked {
                at: device.recorded_ops(),
                last: end - 1,
                floor,
            });
        }
    }
    (device.take_recording(), acked)
}

fn verify(device: SimDevice, acked: &[Acked], at: usize) {
    let device = Arc::new(device);
    let looked = {
        let (_lava, fs) = mount(&device, true);
        // Before the engine's first open the directory need not be there.
        match LogEngine::open_read_only(fs, dir()) {
            Ok(engine) => shown(&engine),
            Err(Error::Fs(error)) if error.is_not_found() => Default::default(),
            Err(error) => panic!("a look: {error}"),
        }
    };
    let durable = acked.iter().rev().find(|acked| acked.at <= at);
    for round in 0..2 {
        let (_lava, fs) = mount(&device, false);
        let engine = open(&fs).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let found = shown(&engine);
        assert!(round > 0 || found == looked, "a look shows something else");
        let Some(durable) = durable else {
            continue;
        };
        let (floor, records) = &found["a"];
        let last = *records.keys().next_back().unwrap();
        assert!(*floor >= durable.floor && last >= durable.last + round);
        assert!(records.keys().copied().eq((*floor).max(1)..=last));
        for (lsn, bytes) in records {
            assert_eq!(*bytes, data(*lsn, 0, LEN));
        }
        let log = engine.open_log("a").unwrap();
        log.append(last + 1, &data(last + 1, 0, LEN), true).unwrap();
    }
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_any_operation() {
    let seed: u64 = std::env::var("LAVA_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("LAVA_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for logical_block in [512, 4096] {
        let mut device = SimDevice::new(32 << 20, logical_block);
        mkfs(&device, &MkfsOptions::default()).unwrap();
        for _ in 0..2 {
            let (recording, acked) = live(device, &mut rng);
            let ops = recording.ops().len();
            for at in 0..=ops {
                let crash_seed = rng.random();
                println!("block {logical_block}, operation {at} of {ops}, seed {crash_seed}");
                verify(recording.crash(at, crash_seed), &acked, at);
            }
            device = recording.crash(rng.random_range(0..=ops), rng.random());
        }
    }
}
