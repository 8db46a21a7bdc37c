//! `lava bench`: workloads with latency percentiles and device counters.

mod fs;
mod report;

pub use fs::FsBench;
pub use report::{Latency, Report};

use clap::Subcommand;

use crate::cli::Outcome;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Appends and reads of a filesystem, as fio would do them
    Fs(FsBench),
}

impl Bench {
    /// Runs the bench and prints its figures.
    pub fn run(&self) -> Outcome {
        match self {
            Bench::Fs(bench) => bench.run(),
        }
    }
}
