//! How the budget is split between data blocks and separated values, and how the split moves.
//!
//! Both pools remember what they evicted ([`super::ghost`]). When an entry of a pool comes back that a
//! little more of budget would have kept, a step of the budget goes to that pool, as in ARC (Megiddo
//! and Modha, FAST 2003). A step is weighed by what the hit would have saved: a read, and its bytes in
//! terms of [`READ_BYTES`]. Where both pools gain as much from a byte, the split stands still.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes whose transfer costs a device as much as that there is a read at all.
const READ_BYTES: u64 = 16 << 10;

/// A step for a hit of small size, as a part of the budget, and its bounds in bytes.
const STEPS: usize = 1024;
const STEP_MIN: usize = 4 << 10;
const STEP_MAX: usize = 64 << 10;

/// The whole budget, as a share.
const ONE: u64 = 1 << 32;
/// What values have at first: a sixteenth.
const FIRST: u64 = ONE / 16;
/// Neither pool gets more than this; values may have nothing.
const MOST: u64 = ONE / 8 * 7;

/// The share of values in what blocks of data and values have together. One for all shards.
pub(super) struct Split {
    values: AtomicU64,
}

impl Split {
    pub(super) fn new() -> Self {
        Split {
            values: AtomicU64::new(FIRST),
        }
    }

    /// Bytes of `room` that are for values.
    pub(super) fn values_of(&self, room: usize) -> usize {
        let share = self.values.load(Ordering::Relaxed);
        (room as u128 * u128::from(share) / u128::from(ONE)) as usize
    }

    /// Moves a step of a budget of `room` bytes towards values or away from them, for a hit that would
    /// have saved a read of `cost` bytes.
    pub(super) fn step(&self, to_values: bool, cost: usize, room: usize) {
        let bytes = (room / STEPS).clamp(STEP_MIN, STEP_MAX) as u64;
        let weighed = bytes + bytes * (cost as u64).min(4 * READ_BYTES) / READ_BYTES;
        let step = u128::from(weighed) * u128::from(ONE) / room.max(1) as u128;
        let step = step.min(u128::from(ONE / 16)) as u64;
        let moved = |share: u64| match to_values {
            true => Some((share + step).min(MOST)),
            false => Some(share.saturating_sub(step)),
        };
        let _always = self
            .values
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_move_the_split_within_its_bounds() {
        let split = Split::new();
        let room = 8 << 20;
        assert_eq!(split.values_of(room), room / 16);
        for _ in 0..10_000 {
            split.step(true, 16_000, room);
        }
        assert_eq!(split.values_of(room), room / 8 * 7);
        split.step(false, 4096, room);
        let one = room / 8 * 7 - split.values_of(room);
        assert!((8 << 10..12 << 10).contains(&one), "{one}");
        for _ in 0..10_000 {
            split.step(false, 4096, room);
        }
        assert_eq!(split.values_of(room), 0);
    }
}
