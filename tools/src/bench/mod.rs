//! `lava bench`: workloads with latency percentiles and device counters.

mod fs;
mod kv;
mod log;
mod report;

pub use fs::FsBench;
pub use kv::KvBench;
pub use log::LogBench;
pub use report::{Latency, Report};

use clap::Subcommand;

use crate::cli::Outcome;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Appends and reads of a filesystem, as fio would do them
    Fs(FsBench),
    /// Puts, reads and scans of a database, as RocksDB's db_bench does them
    Kv(Box<KvBench>),
    /// Appends to many logs by many writers
    Log(LogBench),
}

impl Bench {
    /// Runs the bench and prints its figures.
    pub fn run(&self) -> Outcome {
        match self {
            Bench::Fs(bench) => bench.run(),
            Bench::Kv(bench) => bench.run(),
            Bench::Log(bench) => bench.run(),
        }
    }
}
