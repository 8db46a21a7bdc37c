//! LavaKV: an LSM key-value engine with key-value separation.
//!
//! [`Db`] is the handle; its vocabulary is RocksDB's. It runs on any [`lavafs::FileSystem`]. The formats on disk
//! are described in FORMAT.md beside this crate's manifest.

mod background;
pub mod blob;
pub mod cache;
mod compaction;
mod db;
mod env;
pub mod error;
mod file_names;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod iter;
pub mod key;
pub mod memtable;
mod options;
pub mod sstable;
mod stats;
mod version;
mod write;

pub use blob::garbage::{BlobStats, GarbageReport};
pub use cache::BlockCache;
pub use db::Db;
pub use db::pinned::PinnedSlice;
pub use db::repair::RepairReport;
pub use db::snapshot::Snapshot;
pub use db::verify::VerifyReport;
pub use env::ledger::{MemoryLedger, MemoryUsage};
pub use env::rate_limiter::RateLimiter;
pub use env::{Env, EnvOptions, Priority};
pub use error::{Error, Result, Severity};
pub use iter::DbIterator;
pub use options::{
    CompactionOptions, CompactionStyle, Options, PrepopulateBlockCache, ReadOptions,
    WalRecoveryMode, WriteOptions,
};
pub use sstable::Compression;
pub use stats::histogram::HistogramValues;
pub use stats::listener::{CollectionEvent, EventListener, FileEvent, FileKind, JobEvent};
pub use stats::metrics::TickerValues;
pub use stats::perf::PerfContext;
pub use stats::properties::{LevelStats, Stats};
pub use version::BlobUse;
pub use write::batch::{BatchEntry, CfId, MAX_KEY_LEN, MAX_VALUE_LEN, WriteBatch};
pub use write::stall::Stall;
