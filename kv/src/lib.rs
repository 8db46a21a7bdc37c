//! LavaKV: an LSM key-value engine with key-value separation.

pub mod error;
pub mod iter;
pub mod key;
pub mod memtable;

pub use error::{Error, Result};
