//! LavaKV: an LSM key-value engine with key-value separation.
//!
//! [`Db`] is the handle; its vocabulary is RocksDB's. It runs on any [`lavafs::FileSystem`]. The formats on disk
//! are described in FORMAT.md beside this crate's manifest.

mod batch;
pub mod blob;
pub mod cache;
mod close;
mod codec;
mod compact;
mod compaction;
mod compaction_options;
mod compression;
mod db;
mod engine;
mod env;
pub mod error;
mod file_names;
mod flush;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod garbage;
mod histogram;
mod install;
pub mod iter;
pub mod key;
mod ledger;
mod listener;
pub mod memtable;
mod metrics;
mod multi_get;
mod options;
mod pinned;
mod prometheus;
mod properties;
mod protection;
mod rate_limiter;
mod read;
mod read_only;
mod recovery;
mod reference;
mod repair;
mod scheduler;
mod snapshot;
mod space;
pub mod sstable;
mod stall;
mod values;
mod verify;
mod version;
mod wal;
mod write;

pub use batch::{BatchEntry, CfId, MAX_KEY_LEN, MAX_VALUE_LEN, WriteBatch};
pub use cache::BlockCache;
pub use compaction_options::{CompactionOptions, CompactionStyle};
pub use db::Db;
pub use env::{Env, EnvOptions, Priority};
pub use error::{Error, Result, Severity};
pub use garbage::{BlobStats, GarbageReport};
pub use histogram::HistogramValues;
pub use iter::DbIterator;
pub use ledger::{MemoryLedger, MemoryUsage};
pub use listener::{CollectionEvent, EventListener, FileEvent, FileKind, JobEvent};
pub use metrics::TickerValues;
pub use options::{Options, ReadOptions, WalRecoveryMode, WriteOptions};
pub use pinned::PinnedSlice;
pub use properties::{LevelStats, Stats};
pub use rate_limiter::RateLimiter;
pub use repair::RepairReport;
pub use snapshot::Snapshot;
pub use sstable::Compression;
pub use stall::Stall;
pub use verify::VerifyReport;
pub use version::BlobUse;
