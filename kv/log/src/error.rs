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
    /// change any more, unless all that failed is that there was no space.
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
    /// The LSN lies below the floor of the log.
    #[error("LSN {lsn} was trimmed: the log begins at {floor}")]
    Trimmed {
        /// What was asked for.
        lsn: u64,
        /// The lowest LSN that can be there.
        floor: u64,
    },
    /// Nothing was appended at the LSN, though later ones are there.
    #[error("LSN {lsn} is missing")]
    Missing {
        /// What was asked for.
        lsn: u64,
    },
    /// The LSN lies behind the last one, or behind the last durable one where that was asked for.
    #[error("LSN {lsn} is beyond the end of the log")]
    Beyond {
        /// What was asked for.
        lsn: u64,
        /// The last LSN that is there; `None` for an empty log.
        last: Option<u64>,
    },
    /// The log was deleted.
    #[error("log {name} was deleted")]
    Deleted {
        /// Its name.
        name: String,
    },
    /// The LSN is taken, in a log that rejects duplicates.
    #[error("LSN {lsn} is there already")]
    Duplicate {
        /// What was appended.
        lsn: u64,
    },
    /// A dense log takes another LSN next.
    #[error("LSN {lsn} does not follow the last one: {expected} is next")]
    OutOfOrder {
        /// What was appended.
        lsn: u64,
        /// What the log takes next.
        expected: u64,
    },
    /// No log has this name.
    #[error("no log is named {name}")]
    NoSuchLog {
        /// The name.
        name: String,
    },
    /// A log has this name already.
    #[error("a log named {name} exists")]
    LogExists {
        /// The name.
        name: String,
    },
    /// The engine was closed.
    #[error("the log engine is closed")]
    Closed,
    /// The engine was opened for reading alone.
    #[error("the log engine was opened for reading alone")]
    ReadOnly,
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

    /// True where a device is full.
    pub(crate) fn is_no_space(&self) -> bool {
        matches!(self, Error::Fs(lavafs::Error::NoSpace { .. }))
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
