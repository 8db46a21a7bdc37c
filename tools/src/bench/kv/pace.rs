//! `--benchmark_write_rate_limit`: one rate for all writing threads of a benchmark together, as in db_bench.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Hands out the moments at which writes are due. Each write is due when the bytes of all writes
/// before it would have been written at the limit, whether or not they were: a database that
/// stalls does not slow down the load that it is asked to bear.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes a second; 0: no limit.
    limit: u64,
    /// When the first write was asked for.
    begin: OnceLock<Instant>,
    /// Bytes of all writes that were given a moment.
    granted: AtomicU64,
}

impl Pace {
    /// At most `limit` bytes a second; 0: no limit.
    pub(super) fn new(limit: u64) -> Self {
        Pace {
            limit,
            begin: OnceLock::new(),
            granted: AtomicU64::new(0),
        }
    }

    /// True if there is a limit.
    pub(super) fn limits(&self) -> bool {
        self.limit > 0
    }

    /// Waits until the next write, of `bytes`, is due, and returns when that was. Without a limit
    /// that is now. Where it is due after `ends`, waits until then and gives `None`.
    pub(super) fn wait(&self, bytes: u64, ends: Option<Instant>) -> Option<Instant> {
        let Some(due) = self.due(bytes) else {
            return Some(Instant::now());
        };
        let until = ends.map_or(due, |ends| ends.min(due));
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        (until == due).then_some(due)
    }

    /// Waits as [`Self::wait`] does, in short sleeps, and gives `None` once `stop` is set.
    pub(super) fn wait_unless(&self, stop: &AtomicBool, bytes: u64) -> Option<Instant> {
        let due = self.due(bytes).unwrap_or_else(Instant::now);
        loop {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(due);
            }
            std::thread::sleep(left.min(Duration::from_millis(10)));
        }
    }

    fn due(&self, bytes: u64) -> Option<Instant> {
        if !self.limits() {
            return None;
        }
        let begin = *self.begin.get_or_init(Instant::now);
        let before = self.granted.fetch_add(bytes, Ordering::Relaxed);
        Some(begin + Duration::from_secs_f64(before as f64 / self.limit as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_one_rate() {
        let pace = Pace::new(1_000);
        let first = pace.due(500).unwrap();
        assert_eq!(pace.due(250).unwrap() - first, Duration::from_millis(500));
        assert_eq!(pace.due(1).unwrap() - first, Duration::from_millis(750));
        assert!(Pace::new(0).due(500).is_none());
    }

    #[test]
    fn a_writer_that_is_told_to_stop_does_not_wait() {
        let pace = Pace::new(1);
        pace.due(1 << 40);
        assert_eq!(pace.wait_unless(&AtomicBool::new(true), 1), None);
    }
}
