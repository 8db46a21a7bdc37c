//! What can be chosen when an engine is opened and when a log is created.

use crate::error::{Error, Result};

/// How an engine is opened.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Bytes after which a physical file of the datalog is sealed and the next one begun.
    /// Default 256 MiB, 64 KiB to 1 GiB.
    pub data_file_size: u64,
    /// Bytes after which the metalog begins a new file with a snapshot of the namespace, once it
    /// is also twice as large as the last snapshot. Default 4 MiB, 4 KiB to 1 GiB.
    pub meta_file_size: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            data_file_size: 256 << 20,
            meta_file_size: 4 << 20,
        }
    }
}

impl LogOptions {
    /// Checks every range.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the option's name and range.
    pub fn validate(&self) -> Result<()> {
        in_range("data_file_size", self.data_file_size, 64 << 10)?;
        in_range("meta_file_size", self.meta_file_size, 4 << 10)
    }
}

fn in_range(name: &str, value: u64, min: u64) -> Result<()> {
    if (min..=1 << 30).contains(&value) {
        return Ok(());
    }
    Err(Error::Invalid {
        what: format!("{name} = {value}; {min} to {}", 1u64 << 30),
    })
}

/// How a log is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogConfig {
    /// Which LSNs it takes.
    pub mode: Mode,
}

/// Which LSNs a log takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Any LSN at or above the floor, in any order.
    Sparse {
        /// What a second append of one LSN does.
        duplicates: Duplicates,
    },
    /// The last LSN + 1 only (Raft). A log that is empty takes the LSN at which it was last
    /// trimmed or truncated, or any if it never was.
    Dense,
}

impl Default for Mode {
    fn default() -> Self {
        Mode::Sparse {
            duplicates: Duplicates::KeepFirst,
        }
    }
}

/// What a second append of one LSN does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Duplicates {
    /// Succeeds and changes nothing.
    #[default]
    KeepFirst,
    /// Fails.
    Reject,
    /// Replaces the first.
    LastWins,
}
