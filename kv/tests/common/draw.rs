//! Options drawn at random, all of them small, so that every feature meets every other.

use std::sync::Arc;

use lavakv::{
    CompactionOptions, CompactionStyle, Compression, Env, EnvOptions, Options,
    PrepopulateBlockCache, WalRecoveryMode,
};

use super::{Rng, tiny};

/// `options` with another threshold of separation.
pub(crate) fn separating(options: &Options, rng: &mut Rng) -> Options {
    Options {
        min_blob_size: [0, 1, 30, 100, 512][rng.below(5) as usize],
        blob_file_size: 4096 << rng.below(4),
        ..options.clone()
    }
}

/// Draws a merge policy.
pub(crate) fn draw_policy(options: &mut Options, rng: &mut Rng) {
    let styles = [
        CompactionStyle::Level,
        CompactionStyle::Universal,
        CompactionStyle::Fifo,
        CompactionStyle::Tiered,
        CompactionStyle::LazyLevel,
        CompactionStyle::Fluid,
        CompactionStyle::Bush,
    ];
    options.compaction = CompactionOptions {
        style: styles[rng.below(styles.len() as u64) as usize],
        fluid_runs: 1 + rng.below(5) as usize,
        fluid_last_runs: 1 + rng.below(3) as usize,
        bush_growth: 1.0 + rng.below(3) as f64 / 2.0,
        bush_last_ratio: 1.0 + rng.below(5) as f64,
        universal_size_ratio: rng.below(100),
        universal_max_size_amplification_percent: 50 + rng.below(200),
        universal_min_merge_width: 2 + rng.below(3) as usize,
        universal_max_merge_width: [0, 10][rng.below(2) as usize],
        // Nothing may be dropped, or the model would not know.
        fifo_max_table_files_size: u64::MAX,
        tombstone_ratio: rng.below(3) as f64 / 4.0,
        ..CompactionOptions::default()
    };
    options.max_subcompactions = 1 + rng.below(4) as usize;
    options.compression_per_level = vec![Compression::None; rng.below(2) as usize];
    options.level0_file_num_compaction_trigger = 1 + rng.below(4) as usize;
    println!("{:?}", options.compaction);
}

/// Threads, pace of writing and memory, drawn at random; often the process's own.
fn random_env(rng: &mut Rng) -> Option<Arc<Env>> {
    (rng.below(3) > 0).then(|| {
        Env::with_options(EnvOptions {
            flush_threads: 1 + rng.below(2) as usize,
            compaction_threads: 1 + rng.below(3) as usize,
            rate_bytes_per_s: rng.below(2) * (32 << 20),
            memory_limit: (rng.below(2) << 20) as usize,
            ..EnvOptions::default()
        })
    })
}

/// Options drawn at random, all of them small.
pub(crate) fn random_options(rng: &mut Rng) -> Options {
    let slowdown = 4 + rng.below(20) as usize;
    let coin = |rng: &mut Rng| rng.below(2) == 0;
    let mut options = Options {
        filters_by_level: coin(rng),
        soft_pending_compaction_bytes_limit: (64 << 10) << rng.below(20),
        wal_recovery_mode: match coin(rng) {
            true => WalRecoveryMode::PointInTime,
            false => WalRecoveryMode::TolerateCorruptedTail,
        },
        blob_compression: match coin(rng) {
            true => Compression::None,
            false => Compression::Zstd { level: 1 },
        },
        enable_blob_garbage_collection: coin(rng),
        max_blob_collections: 1 + rng.below(3) as usize,
        blob_correlated_compaction_bytes: [0, 16 << 10, 64 << 20][rng.below(3) as usize],
        blob_collection_idle_millis: [10, 10_000][rng.below(2) as usize],
        zstd_dict_bytes: [0, 256, 1024][rng.below(3) as usize],
        blob_zstd_dict_bytes: [0, 256, 1024][rng.below(3) as usize],
        index_partition_threshold: [0, 1, 600][rng.below(3) as usize],
        index_partition_size: 256 << rng.below(3),
        delete_rate: [0, 64 << 10, 8 << 20][rng.below(3) as usize],
        disable_auto_compactions: rng.below(8) == 0,
        env: random_env(rng),
        write_buffer_size: 4096 << rng.below(6),
        max_write_buffer_number: 2 + rng.below(4) as usize,
        level0_file_num_compaction_trigger: 1 + rng.below(4) as usize,
        level0_slowdown_writes_trigger: slowdown,
        level0_stop_writes_trigger: slowdown + rng.below(10) as usize,
        target_file_size_base: 4096 << rng.below(5),
        max_bytes_for_level_base: 8192 << rng.below(6),
        max_bytes_for_level_multiplier: 2.0 + rng.below(9) as f64,
        num_levels: 2 + rng.below(7) as usize,
        level_compaction_dynamic_level_bytes: coin(rng),
        max_background_jobs: 1 + rng.below(6) as usize,
        delayed_write_rate: 4 << (20 + rng.below(3)),
        max_total_wal_size: rng.below(2) * (64 << 10),
        max_manifest_file_size: 1000 << rng.below(8),
        compression: match rng.below(3) {
            0 => Compression::None,
            level => Compression::Zstd {
                level: level as i32,
            },
        },
        block_size: 512 << rng.below(5),
        bloom_bits_per_key: rng.below(16) as f64,
        block_cache_size: (rng.below(3) << 16) as usize,
        cache_index_and_filter_blocks: coin(rng),
        prepopulate_block_cache: match rng.below(2) {
            0 => PrepopulateBlockCache::Disable,
            _ => PrepopulateBlockCache::FlushOnly,
        },
        protection_bytes_per_key: 8 * rng.below(2) as usize,
        allow_concurrent_memtable_write: coin(rng),
        histograms: coin(rng),
        ..separating(&tiny(), rng)
    };
    draw_policy(&mut options, rng);
    if options.disable_auto_compactions {
        // Nothing would ever lift a stall.
        options.level0_slowdown_writes_trigger = 100_000;
        options.level0_stop_writes_trigger = 100_000;
    }
    options
}
