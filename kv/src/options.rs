//! Options: what a caller chooses, with RocksDB's names and defaults, and how they are stored.
//!
//! [`Options`] belong to a database, [`ReadOptions`] and [`WriteOptions`] to one call. The stored
//! form is a text file `OPTIONS-NNNNNN` beside the data, one `name=value` a line after a first line
//! that names the format; lines with an unknown name are ignored, so that an older program
//! reads what a newer one wrote. The file informs and is a starting point ([`Options::load`]); what
//! a database needs to be correct is in its manifest.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lavafs::FileSystemRef;

use crate::batch::CfId;
use crate::blob::BlobFileOptions;
use crate::cache::BlockCache;
use crate::compaction::{PickerOptions, filter_plan};
use crate::compaction_options::{CompactionOptions, CompactionStyle, STYLE_NAMES};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::file_names::{self, FileName};
use crate::listener::EventListener;
use crate::snapshot::Snapshot;
use crate::sstable::{Compression, TableOptions};
use crate::version::Version;

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
    /// Runs in level 0 at which writers stop. Default 36.
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
    /// Background jobs of this database at a time, at least 1; flushes get a quarter of them and
    /// at least one. Default 2.
    pub max_background_jobs: usize,
    /// Threads that one compaction may be split over, 1 to 64. Default 1.
    pub max_subcompactions: usize,
    /// Bytes waiting for compaction from which writers are slowed. Default 64 GiB.
    pub soft_pending_compaction_bytes_limit: u64,
    /// Bytes waiting for compaction at which writers stop. Default 256 GiB.
    pub hard_pending_compaction_bytes_limit: u64,
    /// Bytes per second that slowed writers begin with, at least 1 KiB. Default 16 MiB.
    pub delayed_write_rate: u64,
    /// Bytes a second of obsolete tables and blob files that are removed at most, so that freeing space
    /// does not delay reads and writes; 0: they go at once, as they do where an eighth of the
    /// filesystem or less is free. Default 0.
    pub delete_rate: u64,
    /// Bytes of all write-ahead logs from which the column families that hold the oldest one are
    /// flushed. 0: four times the write buffers. Default 0.
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
    /// Compression by level, from level 0 on; the last one is for all deeper levels too. Empty:
    /// `compression` for all. Default empty.
    pub compression_per_level: Vec<Compression>,
    /// Collects the garbage of blob files in the background, more the fuller the disk is. Default
    /// true.
    pub enable_blob_garbage_collection: bool,
    /// Collections at a time, at most; reached at 90% disk usage. At least 1, default 2.
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
    /// Bytes of the block cache made when `block_cache` names none. Default 32 MiB.
    pub block_cache_size: usize,
    /// Keep index and filter blocks in the block cache, where they can be evicted, instead of with
    /// their open tables, where they are only charged to it (and take at most three quarters of it
    /// from data blocks). Default false.
    pub cache_index_and_filter_blocks: bool,
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteOptions {
    /// Return when the write is durable. Default false.
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
    /// Keep blocks that an iterator read in the block cache. Default true. Point reads do so always.
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

const OPTIONS_HEADER: &str = "lavakv-options 1";

/// What the first line of every version of the format begins with.
const OPTIONS_NAME: &str = "lavakv-options ";

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
        let checks: [(bool, &str); 20] = [
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
                self.hard_pending_compaction_bytes_limit
                    >= self.soft_pending_compaction_bytes_limit,
                "hard_pending_compaction_bytes_limit >= soft_pending_compaction_bytes_limit",
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

    /// Bytes of all logs from which old memtables are flushed.
    pub(crate) fn wal_size_limit(&self) -> u64 {
        if self.max_total_wal_size > 0 {
            return self.max_total_wal_size;
        }
        4 * (self.write_buffer_size * self.max_write_buffer_number) as u64
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
            ..BlobFileOptions::default()
        }
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

    /// The options stored most recently in the database at `dir`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without an options file, [`Error::Unsupported`] for one of a newer
    /// format, [`Error::Corrupt`] where a known option has a
    /// value that does not parse.
    pub fn load(fs: &FileSystemRef, dir: &Path) -> Result<Options> {
        let none = || Error::invalid_argument(format!("no options file in {}", dir.display()));
        Options::find(fs, dir)?.ok_or_else(none)
    }

    /// The options stored most recently, if there are any.
    pub(crate) fn find(fs: &FileSystemRef, dir: &Path) -> Result<Option<Options>> {
        let Some((path, text)) = newest_text(fs, dir)? else {
            return Ok(None);
        };
        let first = text.lines().next().unwrap_or_default();
        if first != OPTIONS_HEADER && first.starts_with(OPTIONS_NAME) {
            return Err(Error::Unsupported {
                what: format!("{} has the format {first:?}", path.display()),
            });
        }
        Options::parse(&text)
            .map(Some)
            .map_err(|detail| Error::corrupt(path.display().to_string(), 0_u64, detail))
    }

    /// The stored form.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{OPTIONS_HEADER}\n");
        for (name, value) in self.fields() {
            writeln!(text, "{name}={value}").expect("a string takes any text");
        }
        for (cf, options) in &self.cf_options {
            let cf = escaped(cf);
            for (name, value) in options.fields() {
                writeln!(text, "cf/{cf}/{name}={value}").expect("a string takes any text");
            }
        }
        text
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let mut copy = self.clone();
        let mut fields = Vec::new();
        for (name, field) in copy.stored() {
            fields.push((name, field.text()));
        }
        fields
    }

    pub(crate) fn parse(text: &str) -> Result<Options, String> {
        let mut lines = text.lines();
        if lines.next() != Some(OPTIONS_HEADER) {
            return Err(format!("first line is not \"{OPTIONS_HEADER}\""));
        }
        let mut options = Options::default();
        for line in lines {
            let Some((name, value)) = line.split_once('=') else {
                continue;
            };
            let (target, name) = match name.strip_prefix("cf/").map(|rest| rest.split_once('/')) {
                Some(Some((cf, name))) => {
                    let cf = unescaped(cf).ok_or("a column family's name does not parse")?;
                    (options.cf_options.entry(cf).or_default(), name)
                }
                _ => (&mut options, name),
            };
            let mut stored = target.stored();
            if let Some((_, field)) = stored.iter_mut().find(|(known, _)| *known == name)
                && !field.set(value)
            {
                return Err(format!("{name} has the value {value:?}"));
            }
        }
        Ok(options)
    }

    /// Every stored option by name: the one list that writing and reading share.
    fn stored(&mut self) -> Vec<(&'static str, Field<'_>)> {
        let policy = &mut self.compaction;
        vec![
            (
                "write_buffer_size",
                Field::Usize(&mut self.write_buffer_size),
            ),
            (
                "max_write_buffer_number",
                Field::Usize(&mut self.max_write_buffer_number),
            ),
            (
                "level0_file_num_compaction_trigger",
                Field::Usize(&mut self.level0_file_num_compaction_trigger),
            ),
            (
                "level0_slowdown_writes_trigger",
                Field::Usize(&mut self.level0_slowdown_writes_trigger),
            ),
            (
                "level0_stop_writes_trigger",
                Field::Usize(&mut self.level0_stop_writes_trigger),
            ),
            (
                "target_file_size_base",
                Field::U64(&mut self.target_file_size_base),
            ),
            (
                "max_bytes_for_level_base",
                Field::U64(&mut self.max_bytes_for_level_base),
            ),
            (
                "max_bytes_for_level_multiplier",
                Field::F64(&mut self.max_bytes_for_level_multiplier),
            ),
            ("num_levels", Field::Usize(&mut self.num_levels)),
            (
                "level_compaction_dynamic_level_bytes",
                Field::Bool(&mut self.level_compaction_dynamic_level_bytes),
            ),
            ("compaction_style", Field::Style(&mut policy.style)),
            ("fluid_runs", Field::Usize(&mut policy.fluid_runs)),
            ("fluid_last_runs", Field::Usize(&mut policy.fluid_last_runs)),
            ("bush_growth", Field::F64(&mut policy.bush_growth)),
            ("bush_last_ratio", Field::F64(&mut policy.bush_last_ratio)),
            (
                "universal_size_ratio",
                Field::U64(&mut policy.universal_size_ratio),
            ),
            (
                "universal_min_merge_width",
                Field::Usize(&mut policy.universal_min_merge_width),
            ),
            (
                "universal_max_merge_width",
                Field::Usize(&mut policy.universal_max_merge_width),
            ),
            (
                "universal_max_size_amplification_percent",
                Field::U64(&mut policy.universal_max_size_amplification_percent),
            ),
            (
                "fifo_max_table_files_size",
                Field::U64(&mut policy.fifo_max_table_files_size),
            ),
            ("fifo_ttl", Field::U64(&mut policy.fifo_ttl)),
            ("tombstone_ratio", Field::F64(&mut policy.tombstone_ratio)),
            (
                "disable_auto_compactions",
                Field::Bool(&mut self.disable_auto_compactions),
            ),
            (
                "max_background_jobs",
                Field::Usize(&mut self.max_background_jobs),
            ),
            (
                "soft_pending_compaction_bytes_limit",
                Field::U64(&mut self.soft_pending_compaction_bytes_limit),
            ),
            (
                "hard_pending_compaction_bytes_limit",
                Field::U64(&mut self.hard_pending_compaction_bytes_limit),
            ),
            (
                "delayed_write_rate",
                Field::U64(&mut self.delayed_write_rate),
            ),
            ("delete_rate", Field::U64(&mut self.delete_rate)),
            (
                "max_total_wal_size",
                Field::U64(&mut self.max_total_wal_size),
            ),
            (
                "max_manifest_file_size",
                Field::U64(&mut self.max_manifest_file_size),
            ),
            (
                "wal_recovery_mode",
                Field::WalRecovery(&mut self.wal_recovery_mode),
            ),
            (
                "max_subcompactions",
                Field::Usize(&mut self.max_subcompactions),
            ),
            (
                "compression_per_level",
                Field::Compressions(&mut self.compression_per_level),
            ),
            ("compression", Field::Compression(&mut self.compression)),
            ("zstd_dict_bytes", Field::Usize(&mut self.zstd_dict_bytes)),
            ("min_blob_size", Field::Usize(&mut self.min_blob_size)),
            ("blob_file_size", Field::U64(&mut self.blob_file_size)),
            (
                "blob_compression",
                Field::Compression(&mut self.blob_compression),
            ),
            (
                "enable_blob_garbage_collection",
                Field::Bool(&mut self.enable_blob_garbage_collection),
            ),
            (
                "max_blob_collections",
                Field::Usize(&mut self.max_blob_collections),
            ),
            (
                "blob_correlated_compaction_bytes",
                Field::U64(&mut self.blob_correlated_compaction_bytes),
            ),
            (
                "blob_collection_idle_millis",
                Field::U64(&mut self.blob_collection_idle_millis),
            ),
            ("block_size", Field::Usize(&mut self.block_size)),
            (
                "index_partition_threshold",
                Field::Usize(&mut self.index_partition_threshold),
            ),
            (
                "index_partition_size",
                Field::Usize(&mut self.index_partition_size),
            ),
            (
                "bloom_bits_per_key",
                Field::F64(&mut self.bloom_bits_per_key),
            ),
            ("filters_by_level", Field::Bool(&mut self.filters_by_level)),
            ("block_cache_size", Field::Usize(&mut self.block_cache_size)),
            (
                "cache_index_and_filter_blocks",
                Field::Bool(&mut self.cache_index_and_filter_blocks),
            ),
            (
                "protection_bytes_per_key",
                Field::Usize(&mut self.protection_bytes_per_key),
            ),
            (
                "allow_concurrent_memtable_write",
                Field::Bool(&mut self.allow_concurrent_memtable_write),
            ),
            ("histograms", Field::Bool(&mut self.histograms)),
        ]
    }
}

/// One stored option, to be written or set.
enum Field<'a> {
    Bool(&'a mut bool),
    Usize(&'a mut usize),
    U64(&'a mut u64),
    F64(&'a mut f64),
    Style(&'a mut CompactionStyle),
    WalRecovery(&'a mut WalRecoveryMode),
    Compression(&'a mut Compression),
    Compressions(&'a mut Vec<Compression>),
}

/// Path and text of the newest options file, if there is one.
fn newest_text(fs: &FileSystemRef, dir: &Path) -> Result<Option<(PathBuf, String)>> {
    let newest = fs
        .list(dir)?
        .iter()
        .filter_map(|entry| match FileName::parse(&entry.name) {
            Some(FileName::Options(number)) => Some(number),
            _ => None,
        })
        .max();
    let Some(number) = newest else {
        return Ok(None);
    };
    let path = dir.join(FileName::Options(number).to_string());
    let data = file_names::read_small_file(fs, &path, 1 << 20)?;
    let text = String::from_utf8_lossy(&data).into_owned();
    Ok(Some((path, text)))
}

/// The line that tells the name of a column family: for a repair without manifest.
pub(crate) fn family_line(id: CfId, name: &str) -> String {
    format!("family/{}={}\n", id.0, escaped(name))
}

/// The column families that the newest options file names; none where it does not read back.
pub(crate) fn stored_families(fs: &FileSystemRef, dir: &Path) -> Vec<(CfId, String)> {
    let Ok(Some((_, text))) = newest_text(fs, dir) else {
        return Vec::new();
    };
    let family = |line: &str| {
        let (id, name) = line.strip_prefix("family/")?.split_once('=')?;
        Some((CfId(id.parse().ok()?), unescaped(name)?))
    };
    text.lines().filter_map(family).collect()
}

/// A column family's name as a part of an option's: bytes that are no letters, digits, `_`, `-`
/// or `.` are `%` and two hexadecimal digits.
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => {
                text.push(char::from(byte));
            }
            other => write!(text, "%{other:02x}").expect("a string takes any text"),
        }
    }
    text
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

const WAL_RECOVERY_NAMES: [(&str, WalRecoveryMode); 3] = [
    ("point_in_time", WalRecoveryMode::PointInTime),
    (
        "tolerate_corrupted_tail",
        WalRecoveryMode::TolerateCorruptedTail,
    ),
    ("absolute", WalRecoveryMode::Absolute),
];

fn compression_text(value: Compression) -> String {
    match value {
        Compression::None => "none".to_owned(),
        Compression::Zstd { level } => format!("zstd:{level}"),
    }
}

fn parse_compression(text: &str) -> Option<Compression> {
    match text.split_once(':') {
        None if text == "none" => Some(Compression::None),
        Some(("zstd", level)) => Some(Compression::Zstd {
            level: level.parse().ok()?,
        }),
        _ => None,
    }
}

impl Field<'_> {
    fn text(&self) -> String {
        match self {
            Field::Bool(value) => value.to_string(),
            Field::Usize(value) => value.to_string(),
            Field::U64(value) => value.to_string(),
            Field::F64(value) => value.to_string(),
            Field::Style(value) => name_of(&STYLE_NAMES, **value),
            Field::WalRecovery(value) => name_of(&WAL_RECOVERY_NAMES, **value),
            Field::Compression(value) => compression_text(**value),
            Field::Compressions(values) => {
                let texts: Vec<String> = values.iter().copied().map(compression_text).collect();
                texts.join(",")
            }
        }
    }

    /// False where `text` does not parse.
    fn set(&mut self, text: &str) -> bool {
        match self {
            Field::Bool(value) => assign(*value, text.parse().ok()),
            Field::Usize(value) => assign(*value, text.parse().ok()),
            Field::U64(value) => assign(*value, text.parse().ok()),
            Field::F64(value) => assign(*value, text.parse().ok()),
            Field::Style(value) => assign(*value, CompactionStyle::parse(text)),
            Field::WalRecovery(value) => assign(*value, value_of(&WAL_RECOVERY_NAMES, text)),
            Field::Compression(value) => assign(*value, parse_compression(text)),
            Field::Compressions(values) => {
                let texts = text.split(',').filter(|text| !text.is_empty());
                assign(*values, texts.map(parse_compression).collect())
            }
        }
    }
}

fn assign<T>(target: &mut T, value: Option<T>) -> bool {
    value.map(|value| *target = value).is_some()
}

fn name_of<T: PartialEq + Copy>(names: &[(&str, T)], value: T) -> String {
    let found = names.iter().find(|(_, known)| *known == value);
    found.expect("every value has a name").0.to_owned()
}

fn value_of<T: Copy>(names: &[(&str, T)], text: &str) -> Option<T> {
    names
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_options_read_back_and_unknown_ones_are_ignored() {
        let options = Options {
            write_buffer_size: 12_345,
            max_bytes_for_level_multiplier: 7.5,
            compression: Compression::None,
            compression_per_level: vec![Compression::None, Compression::Zstd { level: 9 }],
            wal_recovery_mode: WalRecoveryMode::Absolute,
            level_compaction_dynamic_level_bytes: false,
            compaction: CompactionOptions {
                style: CompactionStyle::Bush,
                bush_growth: 1.5,
                ..CompactionOptions::default()
            },
            cf_options: BTreeMap::from([(
                "a/b=c\nd%".to_owned(),
                Options {
                    block_size: 777,
                    ..Options::default()
                },
            )]),
            ..Options::default()
        };
        let text = options.to_text() + "an_option_of_the_future=[1, 2]\n\n# remark\n";
        let read = Options::parse(&text).unwrap();
        assert_eq!(read.to_text(), options.to_text());
        assert!(Options::parse("lavakv-options 1\nnum_levels=many\n").is_err());
        assert_eq!(read.for_cf("a/b=c\nd%").block_size, 777);
        assert_eq!(read.for_cf("other").write_buffer_size, 12_345);
        assert!(Options::parse("").is_err());
        assert!(Options::parse("lavakv-options 2\n").is_err());
    }

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
