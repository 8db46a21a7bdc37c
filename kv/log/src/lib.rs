//! LavaLog: many logical logs in two shared physical logs.
//!
//! Every on-disk format of this crate is owned by `FORMAT.md` beside `Cargo.toml`.
//!
//! - [`group`]: the framing of one physical log file, also the write-ahead log of LavaKV;
//! - [`commit`]: group commit without a timer.

pub mod commit;
mod error;
pub mod group;

pub use commit::GroupCommit;
pub use error::{Error, Result};
pub use group::{Group, GroupReader, GroupWriter, Position, Tail};

#[cfg(test)]
mod mem_fs;
