//! The errors of the log engine: few kinds, each one something a caller can act on.
//!
//! Cheap to clone, because the failure of one group is reported to every operation in it and to
//! every later one.

use std::path::PathBuf;

use thiserror::Error;

/// Result of a log operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The filesystem refused or failed. After a failed append or sync the engine accepts no
    /// change any more.
    #[error(transparent)]
    Fs(#[from] lavafs::Error),
    /// Bytes of a file disagree with the format. Never a caller's mistake.
    #[error("{} is corrupt at byte {offset}: {detail}", file.display())]
    Corrupt {
        /// The file, as named in the filesystem.
        file: PathBuf,
        /// Byte offset in the file.
        offset: u64,
        /// What disagreed.
        detail: String,
    },
    /// An argument is out of range.
    #[error("invalid argument: {what}")]
    Invalid {
        /// Which, and its range.
        what: String,
    },
}

impl Error {
    /// A disagreement between bytes and format.
    pub(crate) fn corrupt(
        file: impl Into<PathBuf>,
        offset: u64,
        detail: impl Into<String>,
    ) -> Self {
        Error::Corrupt {
            file: file.into(),
            offset,
            detail: detail.into(),
        }
    }

    /// True for bytes that disagree with the format, found by this crate or the filesystem.
    pub fn is_corrupt(&self) -> bool {
        match self {
            Error::Corrupt { .. } => true,
            Error::Fs(source) => source.is_corrupt(),
            _ => false,
        }
    }
}
