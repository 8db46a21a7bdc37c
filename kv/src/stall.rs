//! How fast writers may go: full speed, a rate, or not at all. A pure function of the backlog.
//!
//! Writers are slowed in proportion to how far the backlog is between the slowdown and the stop
//! limits, from `delayed_write_rate` down to a sixteenth of it, so that they meet the speed of
//! compaction before they meet the stop.

use crate::options::Options;

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
        let bytes = progress(
            pending_bytes,
            options.soft_pending_compaction_bytes_limit,
            options.hard_pending_compaction_bytes_limit,
        );
        let Some(progress) = runs.into_iter().chain(bytes).reduce(f64::max) else {
            return Stall::None;
        };
        if progress >= 1.0 {
            return Stall::Stopped;
        }
        let rate = options.delayed_write_rate as f64 * (1.0 - progress).max(1.0 / 16.0);
        Stall::Delayed(rate as u64)
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
        assert!(matches!(
            Stall::of(&options, 0, 100 << 30),
            Stall::Delayed(_)
        ));
    }

    #[test]
    fn the_stricter_stall_wins() {
        let (slow, slower) = (Stall::Delayed(2), Stall::Delayed(1));
        assert_eq!(slow.stricter(slower), slower);
        assert_eq!(Stall::None.stricter(slow), slow);
        assert_eq!(slow.stricter(Stall::Stopped), Stall::Stopped);
    }
}
