//! What a database tells of itself: sizes, counts and counters.

use std::fmt;
use std::sync::Arc;

use crate::blob::garbage::BlobStats;
use crate::cache::{BlockKind, CacheStats};
use crate::compaction::{PickerOptions, score};
use crate::db::engine::Engine;
use crate::stats::metrics::TickerValues;
use crate::write::stall::Stall;

/// Files and bytes of one level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LevelStats {
    /// Runs: sorted sequences of tables.
    pub runs: usize,
    /// Tables.
    pub files: usize,
    /// Bytes of the tables.
    pub bytes: u64,
}

/// Sizes and counters of a database at one moment, all column families together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// By level.
    pub levels: Vec<LevelStats>,
    /// Entries in tables, deletions and hidden versions included.
    pub table_entries: u64,
    /// Deletions in tables.
    pub table_deletions: u64,
    /// Bytes of memory in memtables.
    pub memtable_bytes: u64,
    /// Memtables that wait for their flush.
    pub immutable_memtables: u64,
    /// Versions of keys in memtables.
    pub memtable_entries: u64,
    /// Bytes that compaction has to rewrite until every level is within its target, estimated.
    pub pending_compaction_bytes: u64,
    /// Compactions running.
    pub running_compactions: u64,
    /// Sequence number of the last write.
    pub last_sequence: u64,
    /// Snapshots held.
    pub snapshots: u64,
    /// True where writers wait for compaction.
    pub writes_stopped: bool,
    /// Bytes per second that writers are slowed to; 0 at full speed.
    pub delayed_write_rate: u64,
    /// Bytes of obsolete files that iterators, reads and jobs still hold: space that returns when
    /// they let go.
    pub held_obsolete_bytes: u64,
    /// Blob files and their garbage.
    pub blobs: BlobStats,
    /// The filesystem: all of its bytes, and those that are free.
    pub disk_total_bytes: u64,
    /// See `disk_total_bytes`.
    pub disk_free_bytes: u64,
    /// The block cache: where reads went, by kind of block. Shared caches count for all databases.
    pub cache: CacheStats,
    /// The counters.
    pub tickers: TickerValues,
}

impl Stats {
    /// Every figure of the moment with its name and what it is.
    pub(crate) fn gauges(&self) -> [(&'static str, &'static str, u64); 15] {
        [
            ("table_entries", "Entries in tables.", self.table_entries),
            (
                "table_deletions",
                "Deletions in tables.",
                self.table_deletions,
            ),
            ("memtable_bytes", "Bytes of memtables.", self.memtable_bytes),
            (
                "memtable_entries",
                "Entries in memtables.",
                self.memtable_entries,
            ),
            (
                "immutable_memtables",
                "Memtables that wait for their flush.",
                self.immutable_memtables,
            ),
            (
                "pending_compaction_bytes",
                "Bytes that compaction has to rewrite, estimated.",
                self.pending_compaction_bytes,
            ),
            (
                "running_compactions",
                "Compactions running.",
                self.running_compactions,
            ),
            (
                "last_sequence",
                "Sequence number of the last write.",
                self.last_sequence,
            ),
            ("snapshots", "Snapshots held.", self.snapshots),
            (
                "writes_stopped",
                "1 where writers wait for compaction.",
                u64::from(self.writes_stopped),
            ),
            (
                "delayed_write_rate",
                "Bytes per second that writers are slowed to; 0 at full speed.",
                self.delayed_write_rate,
            ),
            ("blob_files", "Blob files.", self.blobs.files),
            (
                "blob_file_bytes",
                "Bytes of blob files.",
                self.blobs.file_bytes,
            ),
            (
                "blob_value_bytes",
                "Bytes of all values in blob files, before compression.",
                self.blobs.value_bytes,
            ),
            (
                "blob_garbage_bytes",
                "Bytes of the values in blob files that no table refers to, before compression.",
                self.blobs.garbage_bytes,
            ),
        ]
    }
}

pub(crate) fn stats(engine: &Arc<Engine>) -> Stats {
    let space = engine.fs.space();
    let state = engine.state.lock();
    let levels = state.cfs.values().map(|cf| cf.view().version.levels.len());
    let mut stats = Stats {
        levels: vec![LevelStats::default(); levels.max().unwrap_or(0)],
        running_compactions: state.compacting.len() as u64,
        last_sequence: engine.last_sequence(),
        snapshots: engine.snapshots.count() as u64,
        held_obsolete_bytes: engine.remover.held_bytes(),
        disk_total_bytes: space.total,
        disk_free_bytes: space.free,
        writes_stopped: state.stall == Stall::Stopped,
        delayed_write_rate: match state.stall {
            Stall::Delayed(rate) => rate,
            _ => 0,
        },
        cache: engine.cache.stats(),
        tickers: engine.tickers.values(),
        ..Stats::default()
    };
    for cf in state.cfs.values() {
        let view = cf.view();
        for (total, level) in stats.levels.iter_mut().zip(&view.version.levels) {
            total.runs += level.runs.len();
            total.files += level.file_count();
            total.bytes += level.size();
            for file in level.files() {
                stats.table_entries += file.meta.entries;
                stats.table_deletions += file.meta.deletions;
            }
        }
        stats.blobs.add(&view.version);
        for mem in std::iter::once(&view.mem).chain(&view.imms) {
            stats.memtable_bytes += mem.table.approximate_memory() as u64;
            stats.memtable_entries += mem.table.entries();
        }
        stats.immutable_memtables += view.imms.len() as u64;
        stats.pending_compaction_bytes +=
            score(&view.version, &PickerOptions::of(&cf.options)).pending_bytes;
    }
    stats
}

pub(crate) fn property(engine: &Arc<Engine>, name: &str) -> Option<String> {
    let name = name
        .strip_prefix("rocksdb.")
        .or_else(|| name.strip_prefix("lavakv."))?;
    let stats = stats(engine);
    if let Some(level) = name.strip_prefix("num-files-at-level") {
        let level: usize = level.parse().ok()?;
        return Some(stats.levels.get(level)?.files.to_string());
    }
    let number = match name {
        "stats" => return Some(stats.to_string()),
        "num-immutable-mem-table" => stats.immutable_memtables,
        "cur-size-all-mem-tables" => stats.memtable_bytes,
        "estimate-num-keys" => {
            (stats.table_entries + stats.memtable_entries).saturating_sub(2 * stats.table_deletions)
        }
        "estimate-pending-compaction-bytes" => stats.pending_compaction_bytes,
        "total-sst-files-size" => stats.levels.iter().map(|level| level.bytes).sum(),
        "num-blob-files" => stats.blobs.files,
        "total-blob-file-size" | "live-blob-file-size" => stats.blobs.file_bytes,
        "live-blob-file-garbage-size" => stats.blobs.garbage_bytes,
        "held-obsolete-bytes" => stats.held_obsolete_bytes,
        "num-running-compactions" => stats.running_compactions,
        "num-snapshots" => stats.snapshots,
        "actual-delayed-write-rate" => stats.delayed_write_rate,
        "is-write-stopped" => u64::from(stats.writes_stopped),
        "latest-sequence-number" => stats.last_sequence,
        _ => return None,
    };
    Some(number.to_string())
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "level    runs   files           bytes")?;
        for (number, level) in self.levels.iter().enumerate() {
            writeln!(
                f,
                "{number:>5} {:>7} {:>7} {:>15}",
                level.runs, level.files, level.bytes
            )?;
        }
        let figures = [
            ("table_entries", self.table_entries),
            ("table_deletions", self.table_deletions),
            ("memtable_bytes", self.memtable_bytes),
            ("immutable_memtables", self.immutable_memtables),
            ("memtable_entries", self.memtable_entries),
            ("pending_compaction_bytes", self.pending_compaction_bytes),
            ("last_sequence", self.last_sequence),
            ("held_obsolete_bytes", self.held_obsolete_bytes),
            ("blob_files", self.blobs.files),
            ("blob_file_bytes", self.blobs.file_bytes),
            ("blob_value_bytes", self.blobs.value_bytes),
            ("blob_garbage_bytes", self.blobs.garbage_bytes),
            ("blob_shadowed_bytes_estimate", self.blobs.shadowed_bytes),
            ("blob_ancestors", self.blobs.ancestors),
        ];
        for (kind, name) in BlockKind::NAMES {
            writeln!(f, "cache_{name}_hits {}", self.cache.hits[kind as usize])?;
            writeln!(
                f,
                "cache_{name}_misses {}",
                self.cache.misses[kind as usize]
            )?;
        }
        let used = self.disk_total_bytes.saturating_sub(self.disk_free_bytes);
        let usage = used as f64 / (self.disk_total_bytes as f64).max(1.0);
        writeln!(f, "disk_usage {usage:.3}")?;
        let garbage = self.blobs.garbage_ratio();
        writeln!(f, "blob_garbage_ratio {garbage:.3}")?;
        for (name, value) in self.cache.sizes() {
            writeln!(f, "cache_{name} {value}")?;
        }
        for (name, value) in figures.into_iter().chain(self.tickers.named()) {
            writeln!(f, "{name} {value}")?;
        }
        Ok(())
    }
}
