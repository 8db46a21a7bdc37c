//! The flags of `lava bench kv` that scripts for db_bench give beside the common ones.
//!
//! Each changes an option of the engine, or says what the engine does anyway: then only the value that
//! is true of it is taken, and the other one is refused, so that nobody measures what was not done.

use clap::Args;
use lavakv::{Compression, Options};

use crate::cli::{Failure, Outcome, parse_flag, parse_size};

/// Flags of db_bench's scripts. What is not given is as the engine has it by default.
#[derive(Debug, Args)]
#[command(rename_all = "snake_case")]
pub(super) struct HabitFlags {
    /// Level of zstd in tables, 1 to 22; 3 if not given
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=22))]
    compression_level: Option<i32>,
    /// Bytes at most of a table's dictionary for zstd; 0: none
    #[arg(long, alias = "zstd_max_dict_bytes", value_parser = parse_size)]
    compression_max_dict_bytes: Option<u64>,
    /// Only a hundred times --compression_max_dict_bytes: so many bytes at most a dictionary is trained on
    #[arg(long, alias = "zstd_max_train_bytes", value_parser = parse_size)]
    compression_zstd_max_train_bytes: Option<u64>,
    /// Only 1: dictionaries are always trained
    #[arg(long, value_parser = parse_flag, num_args = 0..=1, default_missing_value = "1")]
    compression_use_zstd_dict_trainer: Option<bool>,
    /// First level that is compressed; negative: all are
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    min_level_to_compress: i64,
    /// 1: values from --min_blob_size bytes go to blob files, where 0 means all; 0: none does
    #[arg(long, value_parser = parse_flag, num_args = 0..=1, default_missing_value = "1")]
    enable_blob_files: Option<bool>,
    /// Collect the garbage of blob files in the background
    #[arg(long, value_parser = parse_flag, num_args = 0..=1, default_missing_value = "1")]
    enable_blob_garbage_collection: Option<bool>,
    /// Levels of the tree
    #[arg(long)]
    num_levels: Option<usize>,
    /// Sizes of levels follow from the size of the last one
    #[arg(long, value_parser = parse_flag, num_args = 0..=1, default_missing_value = "1")]
    level_compaction_dynamic_level_bytes: Option<bool>,
    /// Runs of level 0 that slow writers down
    #[arg(long)]
    level0_slowdown_writes_trigger: Option<usize>,
    /// Runs of level 0 that stop writers
    #[arg(long)]
    level0_stop_writes_trigger: Option<usize>,
    /// Bytes of logs that make the oldest memtable be flushed; 0: no limit
    #[arg(long, value_parser = parse_size)]
    max_total_wal_size: Option<u64>,
    /// Index and filter blocks take their place in the block cache
    #[arg(long, value_parser = parse_flag, num_args = 0..=1, default_missing_value = "1")]
    cache_index_and_filter_blocks: Option<bool>,
    /// Print counters and latencies of the engine when a database is closed
    #[arg(long, value_parser = parse_flag, default_value_t = false, num_args = 0..=1,
          default_missing_value = "1", action = clap::ArgAction::Set)]
    pub(super) statistics: bool,
    /// Only 1: the keys of a multi-get are always read in batches
    #[arg(long, value_parser = parse_flag, num_args = 0..=1, default_missing_value = "1")]
    multiread_batched: Option<bool>,
    /// Only 1: reads never go through the kernel's cache, but where its filesystem has no direct I/O
    #[arg(long, value_parser = parse_flag, num_args = 0..=1, default_missing_value = "1")]
    use_direct_reads: Option<bool>,
    /// Only 1: as --use_direct_reads, for what background work reads and writes
    #[arg(long, value_parser = parse_flag, num_args = 0..=1, default_missing_value = "1")]
    use_direct_io_for_flush_and_compaction: Option<bool>,
    /// Only 1: every block that is read is checked
    #[arg(long, value_parser = parse_flag, num_args = 0..=1, default_missing_value = "1")]
    verify_checksum: Option<bool>,
}

/// Bytes that a dictionary is trained on, for each of its own ([`Options::zstd_dict_bytes`]).
const TRAINED_ON: u64 = 100;

/// Puts a flag that was given in the place of a default.
fn set<T>(option: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *option = value;
    }
}

impl HabitFlags {
    /// Refuses what the engine would not do.
    pub(super) fn validate(&self) -> Outcome<()> {
        for (flag, given) in [
            ("multiread_batched", self.multiread_batched),
            ("use_direct_reads", self.use_direct_reads),
            (
                "use_direct_io_for_flush_and_compaction",
                self.use_direct_io_for_flush_and_compaction,
            ),
            ("verify_checksum", self.verify_checksum),
            (
                "compression_use_zstd_dict_trainer",
                self.compression_use_zstd_dict_trainer,
            ),
        ] {
            if given == Some(false) {
                return Err(Failure::usage(format!(
                    "--{flag} cannot be switched off: leave it out or give 1"
                )));
            }
        }
        let dictionary = self.compression_max_dict_bytes.unwrap_or(0);
        let trained_on = dictionary.saturating_mul(TRAINED_ON);
        match self.compression_zstd_max_train_bytes {
            Some(given) if given != trained_on => Err(Failure::usage(format!(
                "--compression_zstd_max_train_bytes is always {TRAINED_ON} times \
                 --compression_max_dict_bytes: leave it out or give {trained_on}"
            ))),
            _ => Ok(()),
        }
    }

    /// `options` as these flags change them.
    pub(super) fn apply(&self, mut options: Options) -> Options {
        if let (Compression::Zstd { level }, Some(given)) =
            (&mut options.compression, self.compression_level)
        {
            *level = given;
        }
        let dictionary = self.compression_max_dict_bytes.map(|bytes| bytes as usize);
        set(&mut options.zstd_dict_bytes, dictionary);
        if let Ok(plain @ 1..) = usize::try_from(self.min_level_to_compress) {
            // No tree has so many levels.
            let mut levels = vec![Compression::None; plain.min(64)];
            levels.push(options.compression);
            options.compression_per_level = levels;
        }
        options.min_blob_size = match self.enable_blob_files {
            Some(false) => 0,
            Some(true) => options.min_blob_size.max(1),
            None => options.min_blob_size,
        };
        let collects = &mut options.enable_blob_garbage_collection;
        set(collects, self.enable_blob_garbage_collection);
        set(&mut options.num_levels, self.num_levels);
        let dynamic = &mut options.level_compaction_dynamic_level_bytes;
        set(dynamic, self.level_compaction_dynamic_level_bytes);
        let slowdown = &mut options.level0_slowdown_writes_trigger;
        set(slowdown, self.level0_slowdown_writes_trigger);
        let stop = &mut options.level0_stop_writes_trigger;
        set(stop, self.level0_stop_writes_trigger);
        set(&mut options.max_total_wal_size, self.max_total_wal_size);
        let cached = &mut options.cache_index_and_filter_blocks;
        set(cached, self.cache_index_and_filter_blocks);
        options.histograms |= self.statistics;
        options
    }
}
