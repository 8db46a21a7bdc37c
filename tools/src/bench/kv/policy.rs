//! The flags of `lava bench kv` that say how the engine compacts: db_bench's, and those of the
//! policies that db_bench has not.

use clap::Args;
use lavakv::{CompactionOptions, CompactionStyle};

use crate::cli::{Failure, Outcome};

/// How the engine compacts.
#[derive(Debug, Args)]
#[command(rename_all = "snake_case")]
pub(super) struct PolicyFlags {
    /// 0 or level, 1 or universal, 2 or fifo, tiered, lazy_level, fluid, bush
    #[arg(long, default_value = "level")]
    compaction_style: String,
    /// Ratio of the sizes of neighbouring levels (T)
    #[arg(long, default_value_t = 10.0)]
    pub(super) max_bytes_for_level_multiplier: f64,
    /// Runs of level 0 that start a compaction
    #[arg(long, default_value_t = 4)]
    pub(super) level0_file_num_compaction_trigger: usize,
    /// Threads that one compaction may be split over
    #[arg(long, default_value_t = 1)]
    pub(super) subcompactions: usize,
    /// universal: percent by which a run may be larger than the newer ones it is merged with
    #[arg(long, default_value_t = 1)]
    universal_size_ratio: u64,
    /// universal: fewest runs merged for their size
    #[arg(long, default_value_t = 2)]
    universal_min_merge_width: usize,
    /// universal: most runs merged for their size; 0: no limit
    #[arg(long, default_value_t = 0)]
    universal_max_merge_width: usize,
    /// universal: percent of the oldest run's size that the others may have
    #[arg(long, default_value_t = 200)]
    universal_max_size_amplification_percent: u64,
    /// fifo: megabytes of tables with their values in blob files at most
    #[arg(long, default_value_t = 1024)]
    fifo_compaction_max_table_files_size_mb: u64,
    /// fifo: seconds after which a table goes; 0: never
    #[arg(long, default_value_t = 0)]
    fifo_compaction_ttl: u64,
    /// fluid: runs of each level but the last (K)
    #[arg(long, default_value_t = 4)]
    fluid_runs: usize,
    /// fluid: runs of the last level (Z)
    #[arg(long, default_value_t = 1)]
    fluid_last_runs: usize,
    /// bush: growth of the ratios towards the smaller levels (X)
    #[arg(long, default_value_t = 2.0)]
    bush_growth: f64,
    /// bush: size of the last level relative to the one above it (C)
    #[arg(long, default_value_t = 4.0)]
    bush_last_ratio: f64,
}

impl PolicyFlags {
    pub(super) fn options(&self) -> Outcome<CompactionOptions> {
        let style = CompactionStyle::parse(&self.compaction_style).ok_or_else(|| {
            Failure::usage(format!(
                "--compaction_style {} is none of 0, 1, 2, level, universal, fifo, tiered, \
                 lazy_level, fluid, bush",
                self.compaction_style
            ))
        })?;
        let options = CompactionOptions {
            style,
            fluid_runs: self.fluid_runs,
            fluid_last_runs: self.fluid_last_runs,
            bush_growth: self.bush_growth,
            bush_last_ratio: self.bush_last_ratio,
            universal_size_ratio: self.universal_size_ratio,
            universal_min_merge_width: self.universal_min_merge_width,
            universal_max_merge_width: self.universal_max_merge_width,
            universal_max_size_amplification_percent: self.universal_max_size_amplification_percent,
            fifo_max_table_files_size: self
                .fifo_compaction_max_table_files_size_mb
                .saturating_mul(1 << 20),
            fifo_ttl: self.fifo_compaction_ttl,
            ..CompactionOptions::default()
        };
        options
            .validate()
            .map_err(|error| Failure::usage(error.to_string()))?;
        Ok(options)
    }
}
