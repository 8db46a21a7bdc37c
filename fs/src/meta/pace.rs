//! Pace: how a checkpoint that nobody waits for keeps out of the way of synced appends.
//!
//! A device works on one thing at a time: an append that comes while a part of the checkpoint is
//! transferred waits for the rest of that part. So the parts are short, and as long as others make
//! anything durable, each is followed by a pause of [`PAUSE_PER_PART`] times its own duration: the
//! device then has a known share of its time for them, whatever its speed. A filesystem that nobody
//! syncs gets its checkpoint at full speed, and so does one where somebody waits for the checkpoint
//! ([`Hurry`]), since a full journal stops more than a busy device does.
//!
//! Nothing here touches the device or takes a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::disk::Disk;

/// Bytes of one part of a checkpoint, written or read back.
pub(crate) const PART_LEN: usize = 64 << 10;

/// Pause after a part, by its duration.
const PAUSE_PER_PART: u32 = 3;

/// Longest pause: one slow part must not put a checkpoint off for long.
const PAUSE_MAX: Duration = Duration::from_millis(10);

/// How many threads wait for a checkpoint to end.
#[derive(Debug, Default)]
pub(crate) struct Hurry(AtomicU64);

impl Hurry {
    /// Runs `body`, which waits for a checkpoint or makes one that it needs; there are no pauses
    /// meanwhile.
    pub(crate) fn during<R>(&self, body: impl FnOnce() -> R) -> R {
        self.0.fetch_add(1, Ordering::Relaxed);
        let outcome = body();
        self.0.fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// The pace of one checkpoint. Belongs to the thread that makes it.
#[derive(Debug)]
pub(crate) struct Pace<'a> {
    disk: &'a Disk,
    hurry: &'a Hurry,
    /// What others had made durable when the last part ended.
    syncs: u64,
}

impl<'a> Pace<'a> {
    pub(crate) fn new(disk: &'a Disk, hurry: &'a Hurry) -> Self {
        Pace {
            disk,
            hurry,
            syncs: disk.syncs(),
        }
    }

    /// Transfers one part, and waits behind it if others need the device.
    pub(crate) fn part<R>(&mut self, transfer: impl FnOnce() -> R) -> R {
        let begun = Instant::now();
        let outcome = transfer();
        let pause = self.pause_after(begun.elapsed());
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        outcome
    }

    fn pause_after(&mut self, took: Duration) -> Duration {
        let syncs = self.disk.syncs();
        let idle = syncs == std::mem::replace(&mut self.syncs, syncs);
        if idle || self.hurry.is_on() {
            Duration::ZERO
        } else {
            (took * PAUSE_PER_PART).min(PAUSE_MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::device::{AlignedBuf, DeviceWrite, Durability, SimDevice};

    const TOOK: Duration = Duration::from_micros(100);

    fn sync(disk: &Disk) {
        let data = AlignedBuf::zeroed(4096);
        let write = DeviceWrite {
            offset: 0,
            data: &data,
        };
        disk.write(&[write], Durability::Durable)
            .expect("the device works");
    }

    #[test]
    fn a_checkpoint_pauses_only_beside_syncs_and_never_in_a_hurry() {
        let disk = Disk::new(Arc::new(SimDevice::new(1 << 20, 512)));
        let hurry = Hurry::default();
        let mut pace = Pace::new(&disk, &hurry);
        assert_eq!(pace.pause_after(TOOK), Duration::ZERO, "nobody syncs");
        sync(&disk);
        assert_eq!(pace.pause_after(TOOK), TOOK * PAUSE_PER_PART);
        assert_eq!(pace.pause_after(TOOK), Duration::ZERO, "nobody did since");
        sync(&disk);
        assert_eq!(pace.pause_after(Duration::from_secs(1)), PAUSE_MAX);
        sync(&disk);
        hurry.during(|| assert_eq!(pace.pause_after(TOOK), Duration::ZERO));
        sync(&disk);
        assert_eq!(pace.pause_after(TOOK), TOOK * PAUSE_PER_PART);
    }
}
