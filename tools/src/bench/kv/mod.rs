//! `lava bench kv`: RocksDB's db_bench, as far as its names, meanings and result lines go.
//!
//! Each benchmark of the list runs `--threads` threads, and every thread does the full number of
//! operations, as in db_bench. A fill benchmark begins with an empty database unless
//! `--use_existing_db` is set. Of a flag that is given more than once the last one counts, as scripts add
//! theirs at the end. An option that the engine does not have does not exist here.

mod allocator;
mod habits;
mod intervals;
mod keys;
mod pace;
mod policy;
mod run;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use lavakv::{
    Compression, Env, EnvOptions, MAX_KEY_LEN, MAX_VALUE_LEN, Options, PrepopulateBlockCache,
};

use self::habits::HabitFlags;
use self::intervals::IntervalFlags;
use self::policy::PolicyFlags;
use crate::cli::{Failure, Outcome, Target, parse_flag, parse_size};

/// Seconds of `--duration` at most: what the clock can be asked for, and more than anybody waits.
const DURATION_MAX: u64 = 1_000_000_000;

/// `lava bench kv`. Flags are db_bench's.
#[derive(Debug, Args)]
#[command(rename_all = "snake_case", args_override_self = true)]
pub struct KvBench {
    /// Block device, image file or host:DIR
    #[arg(long, value_name = "TARGET")]
    pub(super) fs: Target,
    /// Directory of the database in the filesystem
    #[arg(long, value_name = "PATH")]
    pub(super) db: PathBuf,
    /// What to run, in this order: fillseq, fillrandom, filluniquerandom, fillbatch, fillsync, fill100K,
    /// overwrite, updaterandom, readrandomwriterandom, compact, readrandom, readhot, readseq, readreverse,
    /// readmissing, multireadrandom, readwhilewriting, newiterator, seekrandom, fwdrangewhilewriting,
    /// deleteseq, deleterandom, flush, waitforcompaction, verify, stats, levelstats
    #[arg(long, default_value = "fillseq,fillrandom,overwrite,readrandom")]
    benchmarks: String,
    /// Keys are drawn from 0 to num - 1; also the operations of each thread
    #[arg(long, default_value_t = 1_000_000)]
    num: u64,
    /// Reads of each thread; negative: num. Where each operation reads, writes or does both, the larger of
    /// --reads and --writes counts
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    reads: i64,
    /// Writes of each thread; 0 or negative: num
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    writes: i64,
    /// Deletes of each thread; negative: num
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    deletes: i64,
    /// Bytes of a key
    #[arg(long, default_value_t = 16)]
    key_size: usize,
    /// Bytes of a value
    #[arg(long, default_value_t = 100)]
    value_size: usize,
    /// none or zstd
    #[arg(long, default_value = "zstd")]
    compression_type: String,
    /// Compressed size of the generated values relative to their size
    #[arg(long, default_value_t = 0.5)]
    compression_ratio: f64,
    /// Bytes of the block cache
    #[arg(long, default_value = "32M", value_parser = parse_size)]
    cache_size: u64,
    /// 1: blocks are cached as they are flushed; 0: they are not
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    prepopulate_block_cache: u8,
    /// Bytes of memory for memtables, blocks, indexes, filters, background buffers and the program's code
    /// together; the block cache is then what the others leave. 0: no common limit
    #[arg(long, default_value = "0", value_parser = parse_size)]
    memory_limit: u64,
    /// Bytes of a memtable
    #[arg(long, default_value = "64M", value_parser = parse_size)]
    write_buffer_size: u64,
    /// Memtables held at most
    #[arg(long, default_value_t = 2)]
    max_write_buffer_number: usize,
    /// Bytes of an SST made by compaction
    #[arg(long, default_value = "64M", value_parser = parse_size)]
    target_file_size_base: u64,
    /// Bytes of the first level below level 0
    #[arg(long, default_value = "256M", value_parser = parse_size)]
    max_bytes_for_level_base: u64,
    /// Bits of Bloom filter for each key; 0: no filter
    #[arg(long, default_value_t = 10.0)]
    bloom_bits: f64,
    /// Bytes of a data block before compression
    #[arg(long, default_value = "4K", value_parser = parse_size)]
    block_size: u64,
    /// Bytes of a value from which it goes to a blob file; 0: none does
    #[arg(long, default_value = "512", value_parser = parse_size)]
    min_blob_size: u64,
    /// Bytes of a blob file
    #[arg(long, default_value = "64M", value_parser = parse_size)]
    blob_file_size: u64,
    /// Compression of values in blob files: none or zstd; as --compression_type if not given
    #[arg(long)]
    blob_compression_type: Option<String>,
    /// Level of zstd for values in blob files, 1 to 22; negative levels are faster still
    #[arg(long, default_value_t = 1, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-100..=22))]
    blob_compression_level: i32,
    /// Bytes of a dictionary that each blob file gets for zstd, at most; 0: none
    #[arg(long, default_value = "0", value_parser = parse_size)]
    blob_compression_max_dict_bytes: u64,
    #[command(flatten)]
    policy: PolicyFlags,
    #[command(flatten)]
    habits: HabitFlags,
    /// Threads for flushes and compactions
    #[arg(long, default_value_t = 2)]
    max_background_jobs: usize,
    /// No compaction but those asked for
    #[arg(long, value_parser = parse_flag, default_value_t = false, num_args = 0..=1,
          default_missing_value = "1", action = clap::ArgAction::Set)]
    disable_auto_compactions: bool,
    /// Threads of each benchmark
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Seconds that a random workload runs instead of a number of operations; 0: no limit
    #[arg(long, default_value_t = 0)]
    duration: u64,
    /// Make each write durable
    #[arg(long, value_parser = parse_flag, default_value_t = false, num_args = 0..=1,
          default_missing_value = "1", action = clap::ArgAction::Set)]
    sync: bool,
    /// Write no log
    #[arg(long = "disable_wal", visible_alias = "disableWAL", value_parser = parse_flag,
          default_value_t = false, num_args = 0..=1, default_missing_value = "1",
          action = clap::ArgAction::Set)]
    disable_wal: bool,
    /// Keep the database that is there
    #[arg(long, value_parser = parse_flag, default_value_t = false, num_args = 0..=1,
          default_missing_value = "1", action = clap::ArgAction::Set)]
    use_existing_db: bool,
    /// Seed of keys and values; 0: from the time
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steps after each seek
    #[arg(long, default_value_t = 0)]
    seek_nexts: u64,
    /// Step backward after a seek
    #[arg(long, value_parser = parse_flag, default_value_t = false, num_args = 0..=1,
          default_missing_value = "1", action = clap::ArgAction::Set)]
    reverse_iterator: bool,
    /// Percent of the operations of readrandomwriterandom that are reads
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u8).range(0..=100))]
    readwritepercent: u8,
    /// Keys of one multi-get, or pairs of one write batch
    #[arg(long, default_value_t = 1)]
    batch_size: usize,
    /// Bytes a second that all threads together write at most; latency then counts from when a
    /// write was due, and from when it was asked for in `service_lat_us`. 0: no limit
    #[arg(long, default_value = "0", value_parser = parse_size)]
    benchmark_write_rate_limit: u64,
    #[command(flatten)]
    intervals: IntervalFlags,
    /// Print the latencies' percentiles after each benchmark's line
    #[arg(long, value_parser = parse_flag, default_value_t = false, num_args = 0..=1,
          default_missing_value = "1", action = clap::ArgAction::Set)]
    histogram: bool,
    /// Print one JSON object for each benchmark
    #[arg(long, value_parser = parse_flag, default_value_t = false, num_args = 0..=1,
          default_missing_value = "1", action = clap::ArgAction::Set)]
    json: bool,
}

impl KvBench {
    /// Runs the benchmarks in turn.
    pub fn run(&self) -> Outcome {
        self.validate()?;
        let names: Vec<Benchmark> = self
            .benchmarks
            .split(',')
            // As db_bench, which says nothing of `a,,b`.
            .filter(|name| !name.is_empty())
            .map(Benchmark::parse)
            .collect::<Outcome<_>>()?;
        if self.disable_wal && names.contains(&Benchmark::FillSync) {
            return Err(Failure::usage(
                "fillsync needs the log that --disable_wal switches off",
            ));
        }
        if self.memory_limit > 0 {
            allocator::prepare();
        }
        run::run(self, &names)?;
        Ok(ExitCode::SUCCESS)
    }

    fn validate(&self) -> Outcome<()> {
        let refuse = |what: &str| Err(Failure::usage(what));
        if !(1..=1 << 62).contains(&self.num) {
            return refuse("--num must be 1 to 4611686018427387904");
        }
        if self.duration > DURATION_MAX {
            return refuse("--duration must be at most 1000000000");
        }
        if !(1..=MAX_KEY_LEN).contains(&self.key_size) {
            return refuse("--key_size must be 1 to 65535");
        }
        if self.key_size < 8 && self.num > 1 << (8 * self.key_size) {
            return refuse("--key_size is too small for --num different keys");
        }
        if self.value_size > MAX_VALUE_LEN {
            return refuse("--value_size must be at most 512M");
        }
        if !(0.01..=1.0).contains(&self.compression_ratio) {
            return refuse("--compression_ratio must be 0.01 to 1");
        }
        if !(1..=1024).contains(&self.threads) {
            return refuse("--threads must be 1 to 1024");
        }
        if !(1..=1 << 20).contains(&self.batch_size) {
            return refuse("--batch_size must be 1 to 1048576");
        }
        if self.sync && self.disable_wal {
            return refuse("--sync needs the log that --disable_wal switches off");
        }
        self.habits.validate()?;
        let options = self.options(true)?;
        let checked = options.validate();
        checked.map_err(|error| Failure::usage(error.to_string()))
    }

    fn compression(&self) -> Outcome<Compression> {
        match self.compression_type.as_str() {
            "none" => Ok(Compression::None),
            "zstd" => Ok(Compression::Zstd { level: 3 }),
            other => Err(Failure::usage(format!(
                "--compression_type {other} is not supported: use none or zstd"
            ))),
        }
    }

    fn blob_compression(&self) -> Outcome<Compression> {
        let given = self.blob_compression_type.as_ref();
        match given.unwrap_or(&self.compression_type).as_str() {
            "none" => Ok(Compression::None),
            "zstd" => Ok(Compression::Zstd {
                level: self.blob_compression_level,
            }),
            other => Err(Failure::usage(format!(
                "--blob_compression_type {other} is not supported: use none or zstd"
            ))),
        }
    }

    /// The engine's options.
    fn options(&self, create: bool) -> Outcome<Options> {
        Ok(self.habits.apply(Options {
            create_if_missing: create,
            compression: self.compression()?,
            block_cache_size: self.cache_size as usize,
            prepopulate_block_cache: match self.prepopulate_block_cache {
                0 => PrepopulateBlockCache::Disable,
                _ => PrepopulateBlockCache::FlushOnly,
            },
            write_buffer_size: self.write_buffer_size as usize,
            max_write_buffer_number: self.max_write_buffer_number,
            target_file_size_base: self.target_file_size_base,
            max_bytes_for_level_base: self.max_bytes_for_level_base,
            bloom_bits_per_key: self.bloom_bits,
            block_size: self.block_size as usize,
            min_blob_size: self.min_blob_size as usize,
            blob_file_size: self.blob_file_size,
            blob_compression: self.blob_compression()?,
            blob_zstd_dict_bytes: self.blob_compression_max_dict_bytes as usize,
            max_background_jobs: self.max_background_jobs,
            disable_auto_compactions: self.disable_auto_compactions,
            max_subcompactions: self.policy.subcompactions,
            compaction: self.policy.options()?,
            max_bytes_for_level_multiplier: self.policy.max_bytes_for_level_multiplier,
            level0_file_num_compaction_trigger: self.policy.level0_file_num_compaction_trigger,
            env: (self.memory_limit > 0).then(|| {
                Env::with_options(EnvOptions {
                    memory_limit: allocator::left_beside_code(self.memory_limit),
                    trim_allocator: Some(allocator::trim),
                    ..EnvOptions::default()
                })
            }),
            ..Options::default()
        }))
    }

    /// Operations of benchmarks that both read and write.
    fn read_writes(&self) -> u64 {
        self.count(self.reads.max(self.writes))
    }

    /// A count given as a flag: negative means `num`.
    fn count(&self, flag: i64) -> u64 {
        u64::try_from(flag).unwrap_or(self.num)
    }
}

/// One benchmark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Benchmark {
    FillSeq,
    FillRandom,
    FillUniqueRandom,
    FillBatch,
    FillSync,
    Fill100K,
    Overwrite,
    UpdateRandom,
    ReadRandomWriteRandom,
    Compact,
    ReadRandom,
    ReadHot,
    ReadSeq,
    ReadReverse,
    ReadMissing,
    MultiReadRandom,
    ReadWhileWriting,
    NewIterator,
    SeekRandom,
    SeekWhileWriting,
    DeleteSeq,
    DeleteRandom,
    Flush,
    WaitForCompaction,
    Verify,
    Stats,
    LevelStats,
}

/// Every benchmark with the names it has in db_bench and its scripts; the first is printed.
const NAMES: [(&str, Benchmark); 30] = [
    ("fillseq", Benchmark::FillSeq),
    ("fillrandom", Benchmark::FillRandom),
    ("filluniquerandom", Benchmark::FillUniqueRandom),
    ("fillbatch", Benchmark::FillBatch),
    ("fillsync", Benchmark::FillSync),
    ("fill100K", Benchmark::Fill100K),
    ("overwrite", Benchmark::Overwrite),
    ("updaterandom", Benchmark::UpdateRandom),
    ("readrandomwriterandom", Benchmark::ReadRandomWriteRandom),
    ("compact", Benchmark::Compact),
    ("compactall", Benchmark::Compact),
    ("readrandom", Benchmark::ReadRandom),
    ("readhot", Benchmark::ReadHot),
    ("readseq", Benchmark::ReadSeq),
    ("readreverse", Benchmark::ReadReverse),
    ("readmissing", Benchmark::ReadMissing),
    ("multireadrandom", Benchmark::MultiReadRandom),
    ("readwhilewriting", Benchmark::ReadWhileWriting),
    ("newiterator", Benchmark::NewIterator),
    ("seekrandom", Benchmark::SeekRandom),
    ("fwdrangewhilewriting", Benchmark::SeekWhileWriting),
    ("seekrandomwhilewriting", Benchmark::SeekWhileWriting),
    ("deleteseq", Benchmark::DeleteSeq),
    ("deleterandom", Benchmark::DeleteRandom),
    ("flush", Benchmark::Flush),
    ("waitforcompaction", Benchmark::WaitForCompaction),
    ("verify", Benchmark::Verify),
    ("verifychecksum", Benchmark::Verify),
    ("stats", Benchmark::Stats),
    ("levelstats", Benchmark::LevelStats),
];

impl Benchmark {
    fn parse(name: &str) -> Outcome<Benchmark> {
        let found = NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, benchmark)| *benchmark).ok_or_else(|| {
            let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).collect();
            Failure::usage(format!(
                "unknown benchmark '{name}'; there are {}",
                known.join(", ")
            ))
        })
    }

    fn name(self) -> &'static str {
        let found = NAMES.iter().find(|(_, benchmark)| *benchmark == self);
        found.expect("every benchmark is listed").0
    }

    /// True for those that begin with an empty database.
    fn is_fill(self) -> bool {
        matches!(
            self,
            Benchmark::FillSeq
                | Benchmark::FillRandom
                | Benchmark::FillUniqueRandom
                | Benchmark::FillBatch
                | Benchmark::FillSync
                | Benchmark::Fill100K
        )
    }

    /// What db_bench calls its operations.
    fn operation(self) -> &'static str {
        match self {
            Benchmark::FillSeq
            | Benchmark::FillRandom
            | Benchmark::FillUniqueRandom
            | Benchmark::FillBatch
            | Benchmark::FillSync
            | Benchmark::Fill100K
            | Benchmark::Overwrite => "write",
            Benchmark::UpdateRandom => "update",
            Benchmark::ReadRandomWriteRandom
            | Benchmark::NewIterator
            | Benchmark::Compact
            | Benchmark::Flush
            | Benchmark::WaitForCompaction
            | Benchmark::Verify
            | Benchmark::Stats
            | Benchmark::LevelStats => "op",
            Benchmark::ReadRandom
            | Benchmark::ReadHot
            | Benchmark::ReadSeq
            | Benchmark::ReadReverse
            | Benchmark::ReadMissing
            | Benchmark::MultiReadRandom
            | Benchmark::ReadWhileWriting => "read",
            Benchmark::SeekRandom | Benchmark::SeekWhileWriting => "seek",
            Benchmark::DeleteSeq | Benchmark::DeleteRandom => "delete",
        }
    }

    /// True for those that go through the keys once, whatever the duration.
    fn is_in_order(self) -> bool {
        matches!(
            self,
            Benchmark::FillSeq
                | Benchmark::FillBatch
                | Benchmark::FillUniqueRandom
                | Benchmark::ReadSeq
                | Benchmark::ReadReverse
                | Benchmark::DeleteSeq
        )
    }

    /// True for those beside which one more thread writes.
    fn has_writer(self) -> bool {
        matches!(
            self,
            Benchmark::ReadWhileWriting | Benchmark::SeekWhileWriting
        )
    }
}
