//! The options of `lava kv stress`: drawn anew each time that it opens its database, so that every feature
//! meets data that others wrote. Not drawn: the number of levels, which data binds, and what drops data.

use lavakv::{CompactionOptions, CompactionStyle, Compression, Options, WalRecoveryMode};
use rand::RngExt;
use rand::rngs::SmallRng;

const STYLES: [CompactionStyle; 7] = [
    CompactionStyle::Level,
    CompactionStyle::Universal,
    CompactionStyle::Fifo,
    CompactionStyle::Tiered,
    CompactionStyle::LazyLevel,
    CompactionStyle::Fluid,
    CompactionStyle::Bush,
];

fn one_of<T: Copy>(rng: &mut SmallRng, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}

fn compression(rng: &mut SmallRng) -> Compression {
    match rng.random_range(0..4) {
        0 => Compression::None,
        level => Compression::Zstd { level },
    }
}

/// Options for memtables of `write_buffer_size` bytes.
pub(super) fn drawn(rng: &mut SmallRng, write_buffer_size: usize) -> Options {
    let buffer = write_buffer_size as u64;
    let slowdown = rng.random_range(8..40);
    Options {
        create_if_missing: true,
        write_buffer_size,
        max_write_buffer_number: rng.random_range(2..5),
        level0_file_num_compaction_trigger: rng.random_range(1..5),
        level0_slowdown_writes_trigger: slowdown,
        level0_stop_writes_trigger: slowdown + rng.random_range(1..20),
        target_file_size_base: one_of(rng, &[buffer / 4, buffer, 2 * buffer]),
        max_bytes_for_level_base: one_of(rng, &[buffer, 4 * buffer]),
        max_bytes_for_level_multiplier: rng.random_range(2.0..10.0),
        level_compaction_dynamic_level_bytes: rng.random(),
        compaction: policy(rng),
        max_background_jobs: rng.random_range(1..5),
        max_subcompactions: rng.random_range(1..5),
        max_total_wal_size: one_of(rng, &[0, 4 * buffer]),
        max_manifest_file_size: one_of(rng, &[4 << 10, 64 << 10, 64 << 20]),
        wal_recovery_mode: one_of(
            rng,
            &[
                WalRecoveryMode::PointInTime,
                WalRecoveryMode::TolerateCorruptedTail,
            ],
        ),
        delete_rate: one_of(rng, &[0, 8 << 20]),
        compression: compression(rng),
        compression_per_level: vec![compression(rng); rng.random_range(0..3)],
        zstd_dict_bytes: one_of(rng, &[0, 1024, 16 << 10]),
        min_blob_size: one_of(rng, &[0, 64, 200, 512]),
        blob_file_size: one_of(rng, &[16 << 10, 256 << 10, 64 << 20]),
        blob_compression: compression(rng),
        blob_zstd_dict_bytes: one_of(rng, &[0, 1024, 16 << 10]),
        enable_blob_garbage_collection: rng.random(),
        max_blob_collections: rng.random_range(1..4),
        blob_correlated_compaction_bytes: one_of(rng, &[0, 64 << 10, 64 << 20]),
        blob_collection_idle_millis: one_of(rng, &[10, 10_000]),
        block_size: one_of(rng, &[512, 4096, 16 << 10]),
        index_partition_threshold: one_of(rng, &[0, 1, 1 << 20]),
        index_partition_size: one_of(rng, &[256, 16 << 10]),
        bloom_bits_per_key: rng.random_range(0.0..14.0),
        filters_by_level: rng.random(),
        block_cache_size: one_of(rng, &[0, 256 << 10, 32 << 20]),
        cache_index_and_filter_blocks: rng.random(),
        protection_bytes_per_key: one_of(rng, &[0, 8]),
        allow_concurrent_memtable_write: rng.random(),
        histograms: rng.random(),
        ..Options::default()
    }
}

fn policy(rng: &mut SmallRng) -> CompactionOptions {
    CompactionOptions {
        style: one_of(rng, &STYLES),
        fluid_runs: rng.random_range(1..6),
        fluid_last_runs: rng.random_range(1..4),
        bush_growth: rng.random_range(1.0..2.5),
        bush_last_ratio: rng.random_range(1.0..5.0),
        universal_size_ratio: rng.random_range(0..100),
        universal_min_merge_width: rng.random_range(2..5),
        universal_max_merge_width: one_of(rng, &[0, 10]),
        universal_max_size_amplification_percent: rng.random_range(50..250),
        // Nothing is dropped, or the check of reads would not know.
        fifo_max_table_files_size: u64::MAX,
        tombstone_ratio: one_of(rng, &[0.0, 0.25, 0.5]),
        ..CompactionOptions::default()
    }
}
