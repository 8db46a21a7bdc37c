//! The errors of the engine: few kinds, each one something a caller can act on.
//!
//! Cheap to clone, because one failed write is reported to every operation that waited for it.
//! A key that does not exist is not an error: reads return an `Option`.

use std::sync::Arc;

use thiserror::Error;

/// Result of an engine operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, told so that a caller can choose what to do.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The filesystem below failed.
    #[error(transparent)]
    Fs(#[from] lavafs::Error),
    /// Bytes of a file disagree with its format. Never a caller's mistake, and never served.
    #[error("{file} is corrupt at byte {offset}: {detail}")]
    Corrupt {
        /// The file.
        file: String,
        /// Byte offset in the file.
        offset: u64,
        /// What disagreed.
        detail: String,
    },
    /// An argument or option is out of range.
    #[error("invalid argument: {what}")]
    InvalidArgument {
        /// Which, and its range.
        what: String,
    },
    /// The database accepts no writes: opened so, or a hard error came before.
    #[error("database is read-only: {reason}")]
    ReadOnly {
        /// Why, with the first failure if there was one.
        reason: Arc<str>,
    },
    /// A background thread panicked; the state in memory cannot be trusted any more.
    #[error("database is poisoned: {reason}")]
    Poisoned {
        /// The panic.
        reason: Arc<str>,
    },
    /// Another owner or operation holds what was asked for.
    #[error("busy: {what}")]
    Busy {
        /// What is held, and by whom as far as is known.
        what: String,
    },
    /// A file needs a feature that this program does not know.
    #[error("not supported: {what}")]
    Unsupported {
        /// What was asked or found.
        what: String,
    },
}

impl Error {
    /// A disagreement between the bytes of `file` at `offset` and its format.
    pub fn corrupt(
        file: impl Into<String>,
        offset: impl Into<u64>,
        detail: impl Into<String>,
    ) -> Self {
        Error::Corrupt {
            file: file.into(),
            offset: offset.into(),
            detail: detail.into(),
        }
    }

    /// An argument or option that is out of range.
    pub fn invalid_argument(what: impl Into<String>) -> Self {
        Error::InvalidArgument { what: what.into() }
    }

    /// True for bytes that disagree with their format, here or in the filesystem.
    pub fn is_corrupt(&self) -> bool {
        match self {
            Error::Corrupt { .. } => true,
            Error::Fs(source) => source.is_corrupt(),
            _ => false,
        }
    }
}
