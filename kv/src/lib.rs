//! LavaKV: an LSM key-value engine with key-value separation.

pub mod cache;
mod compression;
pub mod error;
pub mod iter;
pub mod key;
pub mod memtable;
pub mod sstable;

pub use error::{Error, Result};
