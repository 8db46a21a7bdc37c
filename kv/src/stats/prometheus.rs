//! The metrics text: a database's counters, sizes and histograms as Prometheus scrapes them (text
//! exposition format, version 0.0.4). Counters end in `_total`, times are in seconds.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::cache::BlockKind;
use crate::db::engine::Engine;
use crate::stats::properties;

/// Text under construction.
struct Text {
    out: String,
    db: String,
}

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', " ");
        let written = write!(
            self.out,
            "# HELP lavakv_{name} {help}\n# TYPE lavakv_{name} {kind}\n"
        );
        written.expect("a string takes any text");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let db = &self.db;
        let written = writeln!(self.out, "lavakv_{name}{{db=\"{db}\"{labels}}} {value}");
        written.expect("a string takes any text");
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        self.sample(name, "", value as f64);
    }
}

/// The whole text.
pub(crate) fn text(engine: &Arc<Engine>) -> String {
    let stats = properties::stats(engine);
    let mut text = Text {
        out: String::with_capacity(8 << 10),
        db: label(&engine.dir.display().to_string()),
    };
    for (name, help, value) in stats.tickers.described() {
        let name = format!("{name}_total");
        text.head(&name, "counter", help);
        text.sample(&name, "", value as f64);
    }
    type OfLevel = fn(&properties::LevelStats) -> u64;
    let by_level: [(&str, &str, OfLevel); 3] = [
        ("level_runs", "Runs of a level.", |level| level.runs as u64),
        ("level_files", "Tables of a level.", |level| {
            level.files as u64
        }),
        ("level_bytes", "Bytes of a level's tables.", |level| {
            level.bytes
        }),
    ];
    for (name, help, value) in by_level {
        text.head(name, "gauge", help);
        for (number, level) in stats.levels.iter().enumerate() {
            let labels = format!(",level=\"{number}\"");
            text.sample(name, &labels, value(level) as f64);
        }
    }
    for (name, help, value) in stats.gauges() {
        text.gauge(name, help, value);
    }
    let cache = engine.cache.stats();
    text.gauge(
        "cache_bytes",
        "Bytes of the block cache in use.",
        cache.charged as u64,
    );
    let name = "cache_part_bytes";
    text.head(name, "gauge", "Bytes of the parts of the cache.");
    for (part, value) in cache.sizes() {
        text.sample(name, &format!(",part=\"{part}\""), value as f64);
    }
    for (name, help, counts) in [
        ("cache_hits_total", "Lookups that hit.", cache.hits),
        ("cache_misses_total", "Lookups that missed.", cache.misses),
        (
            "cache_read_bytes_total",
            "Bytes read for what was not in the cache.",
            cache.read_bytes,
        ),
    ] {
        text.head(name, "counter", help);
        for (kind, count) in BlockKind::NAMES.iter().map(|(_, name)| name).zip(counts) {
            text.sample(name, &format!(",kind=\"{kind}\""), count as f64);
        }
    }
    let histograms = engine.histograms.values();
    if !histograms.is_empty() {
        let name = "operation_seconds";
        text.head(name, "summary", "How long operations took.");
        for (operation, values) in histograms {
            for (quantile, micros) in [
                ("0.5", values.p50),
                ("0.99", values.p99),
                ("0.999", values.p999),
            ] {
                let labels = format!(",operation=\"{operation}\",quantile=\"{quantile}\"");
                text.sample(name, &labels, micros / 1e6);
            }
            let labels = format!(",operation=\"{operation}\"");
            let sum = values.mean * values.count as f64 / 1e6;
            text.sample("operation_seconds_sum", &labels, sum);
            text.sample("operation_seconds_count", &labels, values.count as f64);
        }
    }
    text.out
}

/// A label's value, escaped.
fn label(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        assert_eq!(label("/a\"b\\c\n"), "/a\\\"b\\\\c\\n");
    }
}
