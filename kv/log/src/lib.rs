//! LavaLog: many logical logs in two shared physical logs.
//!
//! Thousands of logs share one *datalog*, so that appends of all of them become one device write
//! and one flush per group; what happens to logs as a whole is in a small *metalog*. It runs on
//! any [`lavafs::FileSystem`].
//!
//! ```
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! use lavalog::{LogConfig, LogEngine, LogOptions, ScanItem};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! let fs = Arc::new(lavafs::HostFs::open(dir)?);
//! let engine = LogEngine::open(fs, Path::new("/logs"), &LogOptions::default())?;
//! let log = engine.create("orders", LogConfig::default())?;
//! log.append(1, b"first", false)?;
//! log.append(2, b"second", true)?; // both are durable now
//! log.trim_before(2)?;
//! let items: Vec<ScanItem> = log.scan(2..).collect::<Result<_, _>>()?;
//! assert_eq!(items, [ScanItem::Entry { lsn: 2, data: b"second".to_vec() }]);
//! engine.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! Every on-disk format of this crate is owned by `FORMAT.md` beside `Cargo.toml`. LavaKV takes
//! the framing of its write-ahead log ([`group`]) and its group commit ([`commit`]) from here.

mod append;
pub mod commit;
mod data;
mod engine;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod group;
mod index;
mod meta;
mod options;
mod read_only;
mod record;
mod recovery;
mod scan;
mod state;
mod stats;
mod sync;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod look_tests;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "crashes and faults are the tests'")
)]
mod mem_fs;
#[cfg(test)]
mod tests;

pub use commit::{Crew, GroupCommit, Task};
pub use engine::{Appended, LOG_NAME_LEN_MAX, Log, LogEngine, LogId, ReadLevel};
pub use error::{Error, Result};
pub use group::{FILE_MAGIC as GROUP_FILE_MAGIC, Group, GroupReader, GroupWriter, Position, Tail};
pub use options::{Duplicates, LogConfig, LogOptions, Mode};
pub use scan::{GapKind, Scan, ScanItem};
pub use stats::{FileStats, LogStats};
