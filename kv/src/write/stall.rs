//! How fast writers may go: full speed, a rate, or not at all. A pure function of the backlog.
//!
//! Writers are slowed in proportion to how far the backlog is between the slowdown and the stop
//! limits, from `delayed_write_rate` down to a sixteenth of it, so that they meet the speed of
//! compaction before they meet the stop.
//!
//! A [`Pacer`] turns a rate into sleeps. A sleep of a few microseconds takes the system about sixty: were each
//! write to sleep for its own bytes, small writes would be slower than the rate, and all of them slow.
//! Writes therefore run up a debt, and one in many sleeps it off.

use std::time::{Duration, Instant};

use crate::options::Options;

/// Debt from which a writer sleeps, and so about the shortest sleep.
const DEBT_MIN: Duration = Duration::from_millis(2);

/// Longest sleep at a time.
const DEBT_MAX: Duration = Duration::from_millis(100);

/// What writers owe to the rate. Belongs to whoever leads them.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    /// When the bytes so far were due to be through; `None` before the first.
    due: Option<Instant>,
}

impl Pacer {
    /// How long to sleep at `now` before `bytes` more are written at `rate` bytes per second.
    /// Time that passed without writes is not saved up.
    pub(crate) fn delay(&mut self, now: Instant, bytes: usize, rate: u64) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let from = self.due.map_or(now, |due| due.max(now));
        let debt = from.saturating_duration_since(now).saturating_add(cost);
        let debt = debt.min(DEBT_MAX);
        self.due = Some(now + debt);
        match debt >= DEBT_MIN {
            true => debt,
            false => Duration::ZERO,
        }
    }
}

/// How fast writers may go.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub enum Stall {
    /// At full speed.
    #[default]
    None,
    /// At this many bytes per second.
    Delayed(u64),
    /// Not until compaction has caught up.
    Stopped,
}

impl Stall {
    /// The stall for a column family with this backlog.
    pub(crate) fn of(options: &Options, l0_runs: usize, pending_bytes: u64) -> Stall {
        if options.disable_auto_compactions {
            return Stall::None;
        }
        let runs = progress(
            l0_runs as u64,
            options.level0_slowdown_writes_trigger as u64,
            options.level0_stop_writes_trigger as u64,
        );
        let unlimited = |limit: u64| if limit == 0 { u64::MAX } else { limit };
        let hard = unlimited(options.hard_pending_compaction_bytes_limit);
        let soft = unlimited(options.soft_pending_compaction_bytes_limit).min(hard);
        let bytes = progress(pending_bytes, soft, hard);
        let Some(progress) = runs.into_iter().chain(bytes).reduce(f64::max) else {
            return Stall::None;
        };
        if progress >= 1.0 {
            return Stall::Stopped;
        }
        let rate = options.delayed_write_rate as f64 * (1.0 - progress).max(1.0 / 16.0);
        Stall::Delayed(rate as u64)
    }

    /// The stall for a disk that is nearly full. Without garbage there is nothing to wait for, and
    /// writers run into the end of the space at full speed.
    pub(crate) fn of_space(options: &Options, space: SpaceLeft) -> Stall {
        let enough = space.reserve.saturating_mul(2);
        if space.free >= enough || space.reclaimable == 0 {
            return Stall::None;
        }
        let progress = (enough - space.free) as f64 / space.reserve.max(1) as f64;
        if progress >= 1.0 && space.is_reclaiming {
            return Stall::Stopped;
        }
        let rate = options.delayed_write_rate as f64 * (1.0 - progress).max(1.0 / 16.0);
        Stall::Delayed((rate as u64).max(1))
    }

    /// The stricter of two.
    pub(crate) fn stricter(self, other: Stall) -> Stall {
        match (self, other) {
            (Stall::Stopped, _) | (_, Stall::Stopped) => Stall::Stopped,
            (Stall::Delayed(a), Stall::Delayed(b)) => Stall::Delayed(a.min(b)),
            (Stall::None, stall) | (stall, Stall::None) => stall,
        }
    }
}

/// The disk, as writers need to know it. Bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SpaceLeft {
    pub(crate) free: u64,
    /// What background work must have to go on: flushes of what is in memory, and what collections write,
    /// one at least.
    pub(crate) reserve: u64,
    /// What collections would give back.
    pub(crate) reclaimable: u64,
    /// Work that gives space back is queued or running, so that waiting for it ends.
    pub(crate) is_reclaiming: bool,
}

/// Where `value` lies between two limits, 0 to 1; `None` below the first.
fn progress(value: u64, slowdown: u64, stop: u64) -> Option<f64> {
    if value < slowdown {
        return None;
    }
    if value >= stop {
        return Some(1.0);
    }
    Some((value - slowdown) as f64 / (stop - slowdown) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_slow_down_steadily_before_they_stop() {
        let options = Options::default();
        assert_eq!(Stall::of(&options, 19, 0), Stall::None);
        let mut last = u64::MAX;
        for runs in 20..36 {
            let Stall::Delayed(rate) = Stall::of(&options, runs, 0) else {
                panic!("not delayed at {runs} runs");
            };
            assert!(rate <= last && rate >= options.delayed_write_rate / 16);
            last = rate;
        }
        assert_eq!(Stall::of(&options, 36, 0), Stall::Stopped);
        assert_eq!(Stall::of(&options, 0, 256 << 30), Stall::Stopped);
        let unlimited = Options {
            soft_pending_compaction_bytes_limit: 0,
            hard_pending_compaction_bytes_limit: 0,
            ..Options::default()
        };
        assert_eq!(Stall::of(&unlimited, 0, 0), Stall::None);
        assert_eq!(Stall::of(&unlimited, 0, 1 << 50), Stall::None);
        let hard_alone = Options {
            soft_pending_compaction_bytes_limit: 0,
            ..Options::default()
        };
        assert_eq!(Stall::of(&hard_alone, 0, 255 << 30), Stall::None);
        assert_eq!(Stall::of(&hard_alone, 0, 256 << 30), Stall::Stopped);
        assert!(matches!(
            Stall::of(&options, 0, 100 << 30),
            Stall::Delayed(_)
        ));
    }

    #[test]
    fn a_full_disk_slows_writers_while_there_is_garbage_and_stops_them_while_it_is_collected() {
        let options = Options::default();
        let at = |free, reclaimable, is_reclaiming| {
            let reserve = 100;
            let space = SpaceLeft {
                free,
                reserve,
                reclaimable,
                is_reclaiming,
            };
            Stall::of_space(&options, space)
        };
        assert_eq!(at(200, 50, true), Stall::None);
        assert_eq!(at(0, 0, false), Stall::None, "nothing to wait for");
        let mut last = options.delayed_write_rate;
        for free in (101..200).rev() {
            let Stall::Delayed(rate) = at(free, 50, true) else {
                panic!("not delayed with {free} bytes left");
            };
            assert!(rate <= last && rate >= options.delayed_write_rate / 16);
            last = rate;
        }
        assert_eq!(at(100, 50, true), Stall::Stopped);
        let slowest = Stall::Delayed(options.delayed_write_rate / 16);
        assert_eq!(
            at(0, 50, false),
            slowest,
            "waiting for nothing would not end"
        );
    }

    #[test]
    fn slowed_writers_keep_to_the_rate_and_one_in_many_sleeps() {
        let mut pacer = Pacer::default();
        let begin = Instant::now();
        let (mut now, mut slept) = (begin, 0);
        let (writes, bytes, rate) = (10_000_u32, 134, 16 << 20);
        for _ in 0..writes {
            let delay = pacer.delay(now, bytes, rate);
            assert!(delay.is_zero() || delay >= DEBT_MIN);
            slept += u32::from(!delay.is_zero());
            // A write takes a microsecond, and a sleep longer than was asked for.
            now += delay + Duration::from_micros(1);
            if !delay.is_zero() {
                now += Duration::from_micros(60);
            }
        }
        let ideal = Duration::from_secs_f64(f64::from(writes) * bytes as f64 / rate as f64);
        let took = now - begin;
        assert!(took >= ideal - DEBT_MIN, "{took:?} for {ideal:?}");
        assert!(took < ideal + ideal / 8, "{took:?} for {ideal:?}");
        assert!(slept * 200 < writes, "{slept} of {writes} slept");
        // An idle hour is not made up for.
        now += Duration::from_secs(3600);
        assert_eq!(pacer.delay(now, 1 << 30, rate), DEBT_MAX);
    }

    #[test]
    fn the_stricter_stall_wins() {
        let (slow, slower) = (Stall::Delayed(2), Stall::Delayed(1));
        assert_eq!(slow.stricter(slower), slower);
        assert_eq!(Stall::None.stricter(slow), slow);
        assert_eq!(slow.stricter(Stall::Stopped), Stall::Stopped);
    }
}
