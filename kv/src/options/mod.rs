//! Options: what a caller chooses, with RocksDB's names and defaults, and how they are stored.
//!
//! [`Options`] belong to a database, [`ReadOptions`] and [`WriteOptions`] to one call; the merge
//! policy is in `compaction`, the stored form in `stored`.

use std::collections::BTreeMap;
use std::sync::Arc;

mod compaction;
mod stored;

pub use compaction::{CompactionOptions, CompactionStyle};
pub(crate) use stored::{OPTIONS_NAME, family_line, stored_families};

use crate::blob::BlobFileOptions;
use crate::cache::BlockCache;
use crate::compaction::{PickerOptions, filter_plan};
use crate::db::snapshot::Snapshot;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::sstable::samples::Samples;
use crate::sstable::{Compression, TableOptions};
use crate::stats::listener::EventListener;
use crate::version::Version;

/// Most background jobs of one database: each takes a thread.
const JOBS_MAX: usize = 1024;

/// How a write-ahead log that does not end cleanly is treated when a database is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WalRecoveryMode {
    /// A torn end of the last log, as a crash leaves it, is dropped; anything else that disagrees
    /// is an error.
    #[default]
    PointInTime,
    /// Replay ends at the first group that disagrees, in whichever log, and what follows is
    /// dropped with a warning: for salvaging a damaged database.
    TolerateCorruptedTail,
    /// A torn end is an error too.
    Absolute,
}

/// What of the tables that are written goes into the block cache at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PrepopulateBlockCache {
    /// Blocks that a compaction writes in the place of cached ones, and those of a flush that mostly
    /// refer to blob files: they are small beside what they lead to.
    #[default]
    Disable,
    /// The blocks of a flush too: for readers who ask for what was just written.
    FlushOnly,
}

/// Choices for a database. `Options::default()` is RocksDB's, and every field says its range.
#[derive(Clone, Debug)]
pub struct Options {
    /// Make the database if it does not exist. Default false.
    pub create_if_missing: bool,
    /// Fail if the database exists. Default false.
    pub error_if_exists: bool,
    /// Bytes of a memtable at which it is flushed, at least 4 KiB. Default 64 MiB.
    pub write_buffer_size: usize,
    /// Memtables in memory, the active one included, before writers wait; at least 2. Default 2.
    pub max_write_buffer_number: usize,
    /// Runs in level 0 that start a compaction, at least 1. Default 4.
    pub level0_file_num_compaction_trigger: usize,
    /// Runs in level 0 from which writers are slowed. Default 20.
    pub level0_slowdown_writes_trigger: usize,
    /// Runs in level 0 at which writers stop; with universal compaction at least 2. Default 36.
    pub level0_stop_writes_trigger: usize,
    /// Bytes of an SST at which a compaction begins the next one, at least 4 KiB.
    /// Default 64 MiB.
    pub target_file_size_base: u64,
    /// Target bytes of the first level below level 0. Default 256 MiB.
    pub max_bytes_for_level_base: u64,
    /// Ratio of the targets of neighbouring levels, 2 to 100. Default 10.
    pub max_bytes_for_level_multiplier: f64,
    /// Number of levels, 2 to 16. Default 7.
    pub num_levels: usize,
    /// Targets follow the size of the last level, so that space amplification stays near
    /// 1 + 1/multiplier. Default true.
    pub level_compaction_dynamic_level_bytes: bool,
    /// The merge policy. It may be another one each time the database is opened: data takes on the new
    /// shape as it is written or merged, and what an idle database has stays as it is.
    pub compaction: CompactionOptions,
    /// No compaction starts by itself. Default false.
    pub disable_auto_compactions: bool,
    /// Background jobs of this database at a time, 1 to 1024; flushes get a quarter of them and
    /// at least one. Default 2.
    pub max_background_jobs: usize,
    /// Threads that one compaction may be split over, 1 to 64. Default 1.
    pub max_subcompactions: usize,
    /// Bytes waiting for compaction from which writers are slowed; 0: they are not. Default 64 GiB.
    pub soft_pending_compaction_bytes_limit: u64,
    /// Bytes waiting for compaction at which writers stop; 0: they do not. Default 256 GiB.
    pub hard_pending_compaction_bytes_limit: u64,
    /// Bytes per second that slowed writers begin with, at least 1 KiB. Default 16 MiB.
    pub delayed_write_rate: u64,
    /// Bytes a second of obsolete tables and blob files that are removed at most, so that freeing space
    /// does not delay reads and writes; 0: they go at once, as they do where an eighth of the
    /// filesystem or less is free. Default 0.
    pub delete_rate: u64,
    /// Bytes of all write-ahead logs from which the column families that hold the oldest one are
    /// flushed. 0: four times the write buffers of all families. Default 0.
    pub max_total_wal_size: u64,
    /// Bytes of a manifest from which a new one is begun. Default 64 MiB.
    pub max_manifest_file_size: u64,
    /// See [`WalRecoveryMode`].
    pub wal_recovery_mode: WalRecoveryMode,
    /// Compression of data blocks. Default zstd, level 3.
    pub compression: Compression,
    /// Bytes at most of a dictionary that each table gets for zstd, 0 to 1 MiB; 0: none. It is trained on
    /// the table's first blocks, a hundred times as many bytes, and pays where blocks are small and
    /// alike. Default 0.
    pub zstd_dict_bytes: usize,
    /// Bytes of a value from which it goes to a blob file when it is flushed or compacted; smaller
    /// ones stay in the tables. May change at any time: values that were separated stay so
    /// until their blob file is rewritten. 0: no value is separated. Default 512.
    pub min_blob_size: usize,
    /// Bytes of a blob file at which the next one is begun, at least 4 KiB. Default 64 MiB.
    pub blob_file_size: u64,
    /// Compression of separated values, each by itself. Default zstd, level 1.
    pub blob_compression: Compression,
    /// Bytes at most of a dictionary that each blob file gets for zstd, 0 to 1 MiB; 0: none. It is trained on
    /// the first values that are written to the file, a hundred times as many bytes and at most 4 MiB, which wait in
    /// memory for it. It pays where values are short and alike. Default 0.
    pub blob_zstd_dict_bytes: usize,
    /// Compression by level, from level 0 on; the last one is for all deeper levels too. Empty:
    /// `compression` for all. Default empty.
    pub compression_per_level: Vec<Compression>,
    /// Collects the garbage of blob files in the background, more the fuller the disk is. A column
    /// family's own. Default true.
    pub enable_blob_garbage_collection: bool,
    /// Collections at a time, at most; reached at 90% disk usage. 1 to 1024, default 2.
    pub max_blob_collections: usize,
    /// Bytes of values, as they are stored, that a compaction may take along from blob files with much garbage or
    /// that scans found scattered; 0: none. Default 64 MiB.
    pub blob_correlated_compaction_bytes: u64,
    /// Milliseconds without a write after which collections leave at most 5% of garbage, since copying then
    /// disturbs nobody. Default 10,000.
    pub blob_collection_idle_millis: u64,
    /// Bytes of a data block before compression, 512 B to 16 MiB. Default 4 KiB.
    pub block_size: usize,
    /// Bytes of a table's index from which it is cut into partitions, which take their place in the
    /// cache one by one; 0: never. Default 1 MiB.
    pub index_partition_threshold: usize,
    /// Bytes of a partition of an index, about; at least 256. Default 16 KiB.
    pub index_partition_size: usize,
    /// Bits of Bloom filter per key, on average over all tables; 0 for none. Default 10.
    pub bloom_bits_per_key: f64,
    /// Filters of small runs get more bits per key and those of large ones fewer, so that the same
    /// memory saves more reads (Monkey, SIGMOD 2017); otherwise all get the same. Default true.
    pub filters_by_level: bool,
    /// Bytes of the block cache made when `block_cache` names none. Indexes of blob files are within them: files that
    /// were not read for longest are closed where they do not fit. With 0 nothing is cached, and files stay open.
    /// Default 32 MiB.
    pub block_cache_size: usize,
    /// Keep index and filter blocks in the block cache, where they can be evicted, instead of with
    /// their open tables, where they are only charged to it (and take at most three quarters of it
    /// from data blocks). Default false.
    pub cache_index_and_filter_blocks: bool,
    /// Which blocks are cached as they are written, up to an eighth of the cache for each flush and half of
    /// it for each compaction. Default `Disable`.
    pub prepopulate_block_cache: PrepopulateBlockCache,
    /// Bytes of checksum that each entry has in memory, from the batch to the table that a flush
    /// writes: 0 or 8. A batch or memtable whose memory has changed is then found and not stored. Default 0.
    pub protection_bytes_per_key: usize,
    /// Writers that wait for a large group insert a part of it into the memtables. Default true.
    pub allow_concurrent_memtable_write: bool,
    /// Time operations; [`crate::Db::histograms`] tells. Default false.
    pub histograms: bool,
    /// A cache to share with other databases.
    pub block_cache: Option<Arc<BlockCache>>,
    /// Background threads to share; `None` is [`Env::shared`].
    pub env: Option<Arc<Env>>,
    /// Are told of background work. None by default.
    pub listeners: Vec<Arc<dyn EventListener>>,
    /// Options of column families by name; a family that is not here has these. Of a family's
    /// options only those on memtables, levels, tables and write stalls count. Empty by default.
    pub cf_options: BTreeMap<String, Options>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            create_if_missing: false,
            error_if_exists: false,
            write_buffer_size: 64 << 20,
            max_write_buffer_number: 2,
            level0_file_num_compaction_trigger: 4,
            level0_slowdown_writes_trigger: 20,
            level0_stop_writes_trigger: 36,
            target_file_size_base: 64 << 20,
            max_bytes_for_level_base: 256 << 20,
            max_bytes_for_level_multiplier: 10.0,
            num_levels: 7,
            level_compaction_dynamic_level_bytes: true,
            compaction: CompactionOptions::default(),
            disable_auto_compactions: false,
            max_background_jobs: 2,
            max_subcompactions: 1,
            soft_pending_compaction_bytes_limit: 64 << 30,
            hard_pending_compaction_bytes_limit: 256 << 30,
            delayed_write_rate: 16 << 20,
            delete_rate: 0,
            max_total_wal_size: 0,
            max_manifest_file_size: 64 << 20,
            wal_recovery_mode: WalRecoveryMode::PointInTime,
            compression: Compression::Zstd { level: 3 },
            zstd_dict_bytes: 0,
            min_blob_size: 512,
            blob_file_size: 64 << 20,
            blob_compression: Compression::Zstd { level: 1 },
            blob_zstd_dict_bytes: 0,
            compression_per_level: Vec::new(),
            enable_blob_garbage_collection: true,
            max_blob_collections: 2,
            blob_correlated_compaction_bytes: 64 << 20,
            blob_collection_idle_millis: 10_000,
            block_size: 4096,
            index_partition_threshold: 1 << 20,
            index_partition_size: 16 << 10,
            bloom_bits_per_key: 10.0,
            filters_by_level: true,
            block_cache_size: 32 << 20,
            cache_index_and_filter_blocks: false,
            prepopulate_block_cache: PrepopulateBlockCache::Disable,
            protection_bytes_per_key: 0,
            allow_concurrent_memtable_write: true,
            histograms: false,
            block_cache: None,
            env: None,
            listeners: Vec::new(),
            cf_options: BTreeMap::new(),
        }
    }
}

/// Choices for one write.
///
/// What a write without `sync` survives is less than in RocksDB on a kernel's filesystem: part of the log is in
/// this process's memory. When the process is killed, or the machine stops, the latest such writes are lost, of
/// all families alike, and never one that is older than one that stays. Of a killed process that is what LavaFS
/// buffers (up to 256 KiB, and [`write_behind`](lavafs::MountOptions::write_behind) bytes that are on
/// their way) and what waits while one log follows another (up to 1/16 of
/// [`write_buffer_size`](Options::write_buffer_size), 4 MiB at most). [`crate::Db::sync_wal`] makes all
/// writes until then durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteOptions {
    /// Return when the write, and with it every earlier one that is logged, is durable. Default false.
    pub sync: bool,
    /// Do not log the write: it is durable when a flush has stored it. Default false.
    pub disable_wal: bool,
}

impl WriteOptions {
    /// A durable write.
    pub fn synced() -> Self {
        WriteOptions {
            sync: true,
            disable_wal: false,
        }
    }
}

/// Choices for one read or iterator.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Read as of this snapshot; `None` is now.
    pub snapshot: Option<Snapshot>,
    /// Iterators see no key below this one.
    pub lower_bound: Option<Vec<u8>>,
    /// Iterators see no key at or above this one.
    pub upper_bound: Option<Vec<u8>>,
    /// Iterators see only keys that begin so, within the bounds.
    pub prefix: Option<Vec<u8>>,
    /// Keep blocks and single values that an iterator read (the first after a seek, and lazy ones), and values that a
    /// multi-get read, in the cache. Default true. Single lookups do so always; values that an iterator reads ahead are
    /// not kept.
    pub fill_cache: bool,
    /// Iterators read the values that are in blob files only when
    /// [`crate::DbIterator::load_value`] asks: for walks over keys. Default false.
    pub lazy_values: bool,
    /// Bytes an iterator reads at once in each table; 0: chosen as the walk goes. Default 0.
    pub readahead: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            snapshot: None,
            lower_bound: None,
            upper_bound: None,
            prefix: None,
            fill_cache: true,
            lazy_values: false,
            readahead: 0,
        }
    }
}

impl ReadOptions {
    /// The bounds of an iterator: those given, within those of the prefix.
    pub(crate) fn bounds(&self) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let Some(prefix) = &self.prefix else {
            return (self.lower_bound.clone(), self.upper_bound.clone());
        };
        let lower = self.lower_bound.iter().chain([prefix]).max().cloned();
        let after = prefix_successor(prefix);
        let upper = self.upper_bound.iter().chain(&after).min().cloned();
        (lower, upper)
    }
}

/// The first key after all that begin with `prefix`; none where there is no such key.
fn prefix_successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte < u8::MAX)?;
    let mut key = prefix[..=last].to_vec();
    key[last] += 1;
    Some(key)
}

impl Options {
    /// Checks every range.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the first option that is out of range.
    pub fn validate(&self) -> Result<()> {
        for (name, options) in &self.cf_options {
            let nested = options.cf_options.is_empty();
            let sound = match nested {
                true => options.validate(),
                false => Err(Error::invalid_argument("options of a family have families")),
            };
            sound.map_err(|error| match error {
                Error::InvalidArgument { what } => {
                    Error::invalid_argument(format!("column family {name:?}: {what}"))
                }
                other => other,
            })?;
        }
        let multiplier = self.max_bytes_for_level_multiplier;
        // One run is what universal compaction comes down to.
        let universal = self.compaction.style == CompactionStyle::Universal;
        let checks: [(bool, &str); 23] = [
            (
                !universal || self.level0_stop_writes_trigger >= 2,
                "level0_stop_writes_trigger >= 2 with universal compaction",
            ),
            (
                self.max_background_jobs <= JOBS_MAX && self.max_blob_collections <= JOBS_MAX,
                "max_background_jobs and max_blob_collections <= 1024",
            ),
            (
                (1..=64).contains(&self.max_subcompactions),
                "max_subcompactions in 1..=64",
            ),
            (
                [0, 8].contains(&self.protection_bytes_per_key),
                "protection_bytes_per_key 0 or 8",
            ),
            (self.write_buffer_size >= 4096, "write_buffer_size >= 4096"),
            (
                self.write_buffer_size <= 64 << 30,
                "write_buffer_size <= 64 GiB",
            ),
            (
                self.max_write_buffer_number >= 2,
                "max_write_buffer_number >= 2",
            ),
            (
                self.level0_file_num_compaction_trigger >= 1,
                "level0_file_num_compaction_trigger >= 1",
            ),
            (
                self.level0_slowdown_writes_trigger >= self.level0_file_num_compaction_trigger,
                "level0_slowdown_writes_trigger >= level0_file_num_compaction_trigger",
            ),
            (
                self.level0_stop_writes_trigger >= self.level0_slowdown_writes_trigger,
                "level0_stop_writes_trigger >= level0_slowdown_writes_trigger",
            ),
            (
                self.target_file_size_base >= 4096,
                "target_file_size_base >= 4096",
            ),
            (
                self.max_bytes_for_level_base >= 4096,
                "max_bytes_for_level_base >= 4096",
            ),
            (
                (2.0..=100.0).contains(&multiplier),
                "max_bytes_for_level_multiplier in 2..=100",
            ),
            ((2..=16).contains(&self.num_levels), "num_levels in 2..=16"),
            (self.max_background_jobs >= 1, "max_background_jobs >= 1"),
            (
                self.hard_pending_compaction_bytes_limit == 0
                    || self.hard_pending_compaction_bytes_limit
                        >= self.soft_pending_compaction_bytes_limit,
                "hard_pending_compaction_bytes_limit 0 or >= soft_pending_compaction_bytes_limit",
            ),
            (
                self.delayed_write_rate >= 1024,
                "delayed_write_rate >= 1024",
            ),
            (
                self.zstd_dict_bytes <= 1 << 20,
                "zstd_dict_bytes in 0..=1048576",
            ),
            (
                self.blob_zstd_dict_bytes <= 1 << 20,
                "blob_zstd_dict_bytes in 0..=1048576",
            ),
            (
                self.index_partition_size >= 256,
                "index_partition_size >= 256",
            ),
            (self.blob_file_size >= 4096, "blob_file_size >= 4096"),
            (self.max_blob_collections >= 1, "max_blob_collections >= 1"),
            (
                (512..=16 << 20).contains(&self.block_size),
                "block_size in 512..=16777216",
            ),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(Error::invalid_argument(format!("options need {rule}"))),
            None if !(0.0..=100.0).contains(&self.bloom_bits_per_key) => Err(
                Error::invalid_argument("options need bloom_bits_per_key in 0..=100"),
            ),
            None => self.compaction.validate(),
        }
    }

    /// Bytes of all logs from which old memtables of these families are flushed.
    pub(crate) fn wal_size_limit<'a>(&self, families: impl Iterator<Item = &'a Options>) -> u64 {
        if self.max_total_wal_size > 0 {
            return self.max_total_wal_size;
        }
        let buffers = families.map(|own| {
            own.write_buffer_size
                .saturating_mul(own.max_write_buffer_number)
        });
        (buffers.fold(0, usize::saturating_add) as u64).saturating_mul(4)
    }

    /// Flushes at a time.
    pub(crate) fn max_flushes(&self) -> usize {
        (self.max_background_jobs / 4).max(1)
    }

    /// Compactions at a time.
    pub(crate) fn max_compactions(&self) -> usize {
        (self.max_background_jobs - self.max_background_jobs / 4)
            .saturating_sub(usize::from(self.max_background_jobs < 4))
            .max(1)
    }

    /// The options of the column family with this name.
    pub(crate) fn for_cf(&self, name: &str) -> &Options {
        self.cf_options.get(name).unwrap_or(self)
    }

    /// What a blob file builder is told.
    pub(crate) fn blob_file_options(&self) -> BlobFileOptions {
        BlobFileOptions {
            compression: self.blob_compression,
            zstd_dict_bytes: self.blob_zstd_dict_bytes,
            ..BlobFileOptions::default()
        }
    }

    /// Bytes of values that wait for the dictionary of a blob file that is being written, at most.
    pub(crate) fn blob_sample_bytes(&self) -> usize {
        Samples::wanted_bytes(self.blob_compression, self.blob_zstd_dict_bytes)
    }

    /// Bytes of blocks that wait for the dictionary of a table that is being written, at most.
    pub(crate) fn table_sample_bytes(&self) -> usize {
        let compressions = self.compression_per_level.iter().chain([&self.compression]);
        let samples = compressions.map(|&each| Samples::wanted_bytes(each, self.zstd_dict_bytes));
        samples.max().unwrap_or(0)
    }

    /// What the builder of a table of a run of `entries` entries in `level` is told, in a tree like
    /// `version` to which `flushed` entries are about to be added.
    pub(crate) fn table_options(
        &self,
        version: &Version,
        level: usize,
        entries: u64,
        flushed: u64,
    ) -> TableOptions {
        let bits = self.bloom_bits_per_key;
        let filter_bits_per_key = match self.filters_by_level {
            true => filter_plan(version, &PickerOptions::of(self), bits, flushed)
                .bits_per_key(entries as f64),
            false => bits,
        };
        TableOptions {
            compression: *self
                .compression_per_level
                .get(level)
                .or(self.compression_per_level.last())
                .unwrap_or(&self.compression),
            zstd_dict_bytes: self.zstd_dict_bytes,
            block_size: self.block_size,
            index_partition_threshold: self.index_partition_threshold,
            index_partition_size: self.index_partition_size,
            filter_bits_per_key,
            ..TableOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_out_of_range_is_named() {
        let bad = Options {
            num_levels: 1,
            ..Options::default()
        };
        assert!(
            bad.validate()
                .unwrap_err()
                .to_string()
                .contains("num_levels")
        );
        Options::default().validate().unwrap();
    }
}
