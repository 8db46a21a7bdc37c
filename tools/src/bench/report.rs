//! What a workload measured, and printing it as a JSON object or as text.
//!
//! The JSON form is a contract: `bench`, `workload`, `ops`, `user_bytes`, `elapsed_s`,
//! `ops_per_s`, `lat_us` and `device` are always there, numbers are JSON numbers; each bench adds
//! fields of its own after them.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use lavafs::device::DeviceCounters;
use serde_json::{Map, Value, json};

use crate::cli::{Outcome, human_bytes, human_count, json_line, line};

/// A latency histogram: 1 ns to 1 hour at three significant digits. One per thread, merged.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        let hour_ns = 3_600_000_000_000;
        Latency(Histogram::new_with_bounds(1, hour_ns, 3).expect("the bounds are valid"))
    }
}

impl Latency {
    /// Records one operation.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_nanos() as u64);
    }

    /// Records `count` operations of the same latency.
    pub fn record_many(&mut self, latency: Duration, count: u64) {
        self.0.saturating_record_n(latency.as_nanos() as u64, count);
    }

    /// Adds the operations of another histogram.
    pub fn merge(&mut self, other: &Latency) {
        self.0
            .add(&other.0)
            .expect("all histograms have the same bounds");
    }

    /// Operations recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The mean in microseconds.
    pub fn mean_us(&self) -> f64 {
        self.0.mean() / 1e3
    }

    /// The latency in microseconds that `quantile` (0 to 1) of the operations did not exceed.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        if self.0.is_empty() {
            return 0.0;
        }
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    /// The longest latency in microseconds.
    pub fn max_us(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }

    /// The lines that db_bench prints with `--histogram`, of operations of this kind.
    pub fn histogram_text(&self, kind: &str) -> String {
        let at = |quantile| self.quantile_us(quantile);
        format!(
            "Microseconds per {kind}:\nCount: {} Average: {:.4}  StdDev: {:.2}\n\
             Min: {:.4}  Median: {:.4}  Max: {:.4}\n\
             Percentiles: P50: {:.2} P75: {:.2} P99: {:.2} P99.9: {:.2} P99.99: {:.2}",
            self.count(),
            self.mean_us(),
            self.0.stdev() / 1e3,
            self.0.min() as f64 / 1e3,
            at(0.5),
            self.max_us(),
            at(0.5),
            at(0.75),
            at(0.99),
            at(0.999),
            at(0.9999),
        )
    }

    /// The object of `lat_us`: mean, percentiles and longest, in microseconds.
    pub fn json(&self) -> Value {
        json!({
            "avg": rounded(self.mean_us(), 3),
            "p50": rounded(self.quantile_us(0.5), 3),
            "p99": rounded(self.quantile_us(0.99), 3),
            "p999": rounded(self.quantile_us(0.999), 3),
            "p9999": rounded(self.quantile_us(0.9999), 3),
            "max": rounded(self.max_us(), 3),
        })
    }
}

/// From the first thread's beginning to the last one's end. Measured by the threads themselves:
/// the thread that waits for them may be scheduled long after they have begun.
#[derive(Debug, Default)]
pub(super) struct Span(Option<(Instant, Instant)>);

impl Span {
    /// Adds a thread's time.
    pub(super) fn cover(&mut self, started: Instant, ended: Instant) {
        let (first, last) = self.0.get_or_insert((started, ended));
        *first = started.min(*first);
        *last = ended.max(*last);
    }

    /// The time covered.
    pub(super) fn elapsed(&self) -> Duration {
        self.0.map_or(Duration::ZERO, |(first, last)| last - first)
    }
}

/// One workload's figures.
#[derive(Debug)]
pub struct Report {
    /// "fs", "kv" or "log".
    pub bench: &'static str,
    /// The workload's name.
    pub workload: String,
    /// Operations completed.
    pub ops: u64,
    /// Bytes that the caller wrote or read.
    pub user_bytes: u64,
    /// Time of the measured part.
    pub elapsed: Duration,
    /// Latency of each operation.
    pub latency: Latency,
    /// What was sent to the device in the measured part.
    pub device: DeviceCounters,
    /// Fields of this bench alone.
    pub extra: Map<String, Value>,
}

impl Report {
    /// Operations a second.
    pub fn ops_per_s(&self) -> f64 {
        self.ops as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The contract's object.
    pub fn json(&self) -> Value {
        let mut object = json!({
            "bench": self.bench,
            "workload": self.workload,
            "ops": self.ops,
            "user_bytes": self.user_bytes,
            "elapsed_s": rounded(self.elapsed.as_secs_f64(), 6),
            "ops_per_s": rounded(self.ops_per_s(), 3),
            "lat_us": self.latency.json(),
            "device": device_json(&self.device),
        });
        let fields = object.as_object_mut().expect("json! made an object");
        fields.extend(self.extra.clone());
        object
    }

    /// Prints the object, or a few lines of text.
    pub fn print(&self, json: bool) -> Outcome<()> {
        if json {
            return json_line(&self.json());
        }
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        line(format_args!(
            "{}: {} ops, {} in {seconds:.3} s: {} ops/s, {}/s",
            self.workload,
            human_count(self.ops),
            human_bytes(self.user_bytes),
            human_count(self.ops_per_s() as u64),
            human_bytes((self.user_bytes as f64 / seconds) as u64),
        ))?;
        line(format_args!(
            "  latency us: avg {:.1}  p50 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
            self.latency.mean_us(),
            self.latency.quantile_us(0.5),
            self.latency.quantile_us(0.99),
            self.latency.quantile_us(0.999),
            self.latency.max_us(),
        ))?;
        line(format_args!("  device: {}", device_text(&self.device)))
    }
}

/// Device counters as the contract's JSON object.
pub(crate) fn device_json(device: &DeviceCounters) -> Value {
    json!({
        "write_bytes": device.write_bytes,
        "write_ios": device.write_ios,
        "read_bytes": device.read_bytes,
        "read_ios": device.read_ios,
        "flushes": device.flushes,
    })
}

/// Device counters as text.
pub(crate) fn device_text(device: &DeviceCounters) -> String {
    format!(
        "{} written in {} writes, {} read in {} reads, {} flushes",
        human_bytes(device.write_bytes),
        human_count(device.write_ios),
        human_bytes(device.read_bytes),
        human_count(device.read_ios),
        human_count(device.flushes),
    )
}

/// `value` rounded to `digits` decimals; JSON has no need for noise.
fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_object_has_the_contract_fields_as_numbers() {
        let mut latency = Latency::default();
        latency.record(Duration::from_micros(100));
        latency.record_many(Duration::from_micros(300), 3);
        let report = Report {
            bench: "fs",
            workload: "append".into(),
            ops: 4,
            user_bytes: 16384,
            elapsed: Duration::from_millis(2),
            latency,
            device: DeviceCounters {
                write_bytes: 16384,
                write_ios: 4,
                flushes: 4,
                ..DeviceCounters::default()
            },
            extra: Map::from_iter([("threads".to_string(), json!(1))]),
        };
        let json = report.json();
        for field in ["ops", "user_bytes", "elapsed_s", "ops_per_s", "threads"] {
            assert!(json[field].is_number(), "{field}");
        }
        for field in ["avg", "p50", "p99", "p999", "max"] {
            assert!(json["lat_us"][field].is_number(), "{field}");
        }
        for field in [
            "write_bytes",
            "write_ios",
            "read_bytes",
            "read_ios",
            "flushes",
        ] {
            assert!(json["device"][field].is_u64(), "{field}");
        }
        assert_eq!(json["ops_per_s"], 2000.0);
        assert!((json["lat_us"]["avg"].as_f64().unwrap() - 250.0).abs() < 1.0);
    }
}
