//! The errors of the engine: few kinds, each one something a caller can act on.
//!
//! Cheap to clone, because one failed write is reported to every operation that waited for it.
//! A key that does not exist is not an error: reads return an `Option`.

use std::io;
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

/// How bad an error is: what a caller, and the engine itself, can do about it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Ends by itself: background work is tried again when space returns or after a pause.
    Transient,
    /// The database takes no writes until it is resumed or opened again; reads go on.
    Hard,
    /// Bytes disagree with their format: named with file and offset, and never served.
    Corruption,
    /// The state in memory cannot be trusted: nothing is served until the database is opened again.
    Fatal,
}

impl Error {
    /// True where a device is full.
    pub(crate) fn is_no_space(&self) -> bool {
        matches!(self, Error::Fs(lavafs::Error::NoSpace { .. }))
    }

    /// How bad this is.
    pub fn severity(&self) -> Severity {
        match self {
            Error::Poisoned { .. } => Severity::Fatal,
            _ if self.is_corrupt() => Severity::Corruption,
            Error::Fs(lavafs::Error::NoSpace { .. }) => Severity::Transient,
            Error::Fs(lavafs::Error::Io { source, .. }) if passes(source.kind()) => {
                Severity::Transient
            }
            _ => Severity::Hard,
        }
    }

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

/// True for failures of the system that another attempt may not meet.
fn passes(kind: io::ErrorKind) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        kind,
        Kind::Interrupted
            | Kind::WouldBlock
            | Kind::TimedOut
            | Kind::OutOfMemory
            | Kind::ResourceBusy
            | Kind::StorageFull
            | Kind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_error_has_its_severity() {
        let io = |code| {
            let source = io::Error::from_raw_os_error(code);
            Error::Fs(lavafs::Error::io("write", "the disk", 0, source)).severity()
        };
        assert_eq!(io(libc::EAGAIN), Severity::Transient);
        assert_eq!(io(libc::ENOSPC), Severity::Transient);
        assert_eq!(io(libc::EIO), Severity::Hard);
        assert_eq!(
            Error::corrupt("a", 1_u64, "b").severity(),
            Severity::Corruption
        );
        let reason = Arc::from("a bug");
        assert_eq!(Error::Poisoned { reason }.severity(), Severity::Fatal);
        assert!(Severity::Transient < Severity::Hard);
    }
}
