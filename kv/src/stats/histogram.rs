//! Histograms of how long operations took, beside the tickers.
//!
//! Off unless [`crate::Options::histograms`] asks for them: two looks at the clock are a good part
//! of a cached read. A histogram is split by thread into a few parts, each under its own lock, so
//! that threads seldom meet; a part is made when its first value comes. Values are kept to within
//! one percent, up to an hour; longer ones count as an hour.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// Parts of a histogram.
const PARTS: usize = 4;

/// Largest value kept, in nanoseconds: an hour.
const NANOS_MAX: u64 = 3_600_000_000_000;

/// What is timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Timed {
    Get,
    MultiGet,
    Write,
    WalSync,
    Flush,
    Compaction,
}

/// Every [`Timed`] with its name.
const NAMES: [(Timed, &str); 6] = [
    (Timed::Get, "get"),
    (Timed::MultiGet, "multi_get"),
    (Timed::Write, "write"),
    (Timed::WalSync, "wal_sync"),
    (Timed::Flush, "flush"),
    (Timed::Compaction, "compaction"),
];

/// How long one kind of operation took, in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct HistogramValues {
    /// Operations.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Longest.
    pub max: f64,
}

type Part = Mutex<Option<Histogram<u64>>>;

/// The histograms of one database.
#[derive(Debug)]
pub(crate) struct Histograms {
    enabled: bool,
    parts: [[Part; PARTS]; NAMES.len()],
}

thread_local! {
    static PART: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The part that this thread adds to.
fn part_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    PART.with(|part| {
        if part.get() == usize::MAX {
            part.set(NEXT.fetch_add(1, Ordering::Relaxed) % PARTS);
        }
        part.get()
    })
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, NANOS_MAX, 2).expect("the bounds are valid")
}

impl Histograms {
    pub(crate) fn new(enabled: bool) -> Self {
        Histograms {
            enabled,
            parts: Default::default(),
        }
    }

    /// Runs `operation` and, if histograms are on, adds how long it took.
    #[inline]
    pub(crate) fn time<R>(&self, what: Timed, operation: impl FnOnce() -> R) -> R {
        if !self.enabled {
            return operation();
        }
        let begin = Instant::now();
        let result = operation();
        let nanos = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(NANOS_MAX);
        let mut part = self.parts[what as usize][part_of_thread()].lock();
        part.get_or_insert_with(empty).saturating_record(nanos);
        result
    }

    /// Every histogram that has values, with its name.
    pub(crate) fn values(&self) -> Vec<(&'static str, HistogramValues)> {
        let figures = NAMES.iter().map(|&(what, name)| {
            let mut sum = empty();
            for part in &self.parts[what as usize] {
                if let Some(part) = &*part.lock() {
                    sum.add(part).expect("parts have the same bounds");
                }
            }
            let micros = |quantile: f64| sum.value_at_quantile(quantile) as f64 / 1e3;
            let values = HistogramValues {
                count: sum.len(),
                mean: sum.mean() / 1e3,
                p50: micros(0.5),
                p99: micros(0.99),
                p999: micros(0.999),
                max: sum.max() as f64 / 1e3,
            };
            (name, values)
        });
        figures.filter(|(_, values)| values.count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_thread_is_counted_and_quantiles_are_within_a_percent() {
        let histograms = Histograms::new(true);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        histograms.time(Timed::Get, || {
                            std::thread::sleep(Duration::from_millis(2));
                        });
                    }
                });
            }
        });
        let values = histograms.values();
        assert_eq!(values.len(), 1, "nothing else was timed");
        let (name, get) = values[0];
        assert_eq!((name, get.count), ("get", 60));
        assert!(get.p50 >= 1980.0 && get.p50 <= get.p99, "{get:?}");
        assert!(get.p99 <= get.p999 && get.p999 <= get.max * 1.01);
    }

    #[test]
    fn histograms_that_are_off_keep_nothing() {
        let histograms = Histograms::new(false);
        assert_eq!(histograms.time(Timed::Write, || 7), 7);
        assert!(histograms.values().is_empty());
    }

    #[test]
    fn names_are_in_the_order_of_the_kinds() {
        for (at, (what, _)) in NAMES.iter().enumerate() {
            assert_eq!(*what as usize, at);
        }
    }
}
