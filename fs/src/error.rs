//! The errors of the filesystem layer: few kinds, each one something a caller can act on.
//!
//! Every error is cheap to clone, because one failed device write is reported to every operation
//! that waited for it and to every later one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

/// Result of a filesystem operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, told so that a caller can choose what to do.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// The device or kernel file failed. After a failed write or flush the filesystem is
    /// read-only.
    #[error("{op} of {target} failed at byte {offset}: {source}")]
    Io {
        /// The operation: "read", "write", "flush", ...
        op: &'static str,
        /// Device or file.
        target: Arc<str>,
        /// Byte offset on the device, or in the file for a host filesystem.
        offset: u64,
        /// The system's error.
        #[source]
        source: Arc<io::Error>,
    },
    /// Bytes on the device disagree with the format. Never a caller's mistake.
    #[error("{what} is corrupt at byte {offset}: {detail}")]
    Corrupt {
        /// The structure, such as "superblock" or "journal record".
        what: &'static str,
        /// Byte offset on the device or in the file.
        offset: u64,
        /// What disagreed.
        detail: String,
    },
    /// Not enough free space; deleting files helps.
    #[error("no space left: {needed} bytes needed, {free} free")]
    NoSpace {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A path or name cannot be used as asked.
    #[error("{}: {kind}", path.display())]
    Path {
        /// The path in question.
        path: PathBuf,
        /// Why.
        kind: PathError,
    },
    /// The filesystem accepts no change: opened so, or failed earlier.
    #[error("filesystem is read-only: {reason}")]
    ReadOnly {
        /// Why, with the first failure if there was one.
        reason: Arc<str>,
    },
    /// Another process owns the device or file.
    #[error("{target} is in use by {owner}")]
    InUse {
        /// Device or path.
        target: String,
        /// Who, as far as is known.
        owner: String,
    },
    /// The device holds no LavaFS.
    #[error("{target} is not a LavaFS filesystem: {detail}")]
    NotLavaFs {
        /// Device or image.
        target: String,
        /// What was found instead.
        detail: String,
    },
    /// The operation is outside what the filesystem does (overwrite in place), or a format
    /// feature is newer than this program.
    #[error("not supported: {what}")]
    Unsupported {
        /// What was asked.
        what: String,
    },
    /// An argument or option is out of range.
    #[error("invalid argument: {what}")]
    Invalid {
        /// Which, and its range.
        what: String,
    },
}

/// Why a path cannot be used as asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PathError {
    /// Nothing has this name.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("already exists")]
    AlreadyExists,
    /// A directory was needed.
    #[error("not a directory")]
    NotADirectory,
    /// A file was needed.
    #[error("is a directory")]
    IsADirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// Empty, `.` or `..`, or with a NUL or a slash.
    #[error("invalid name")]
    InvalidName,
    /// A name of over 255 bytes or a symlink target of over 4,095.
    #[error("name too long")]
    NameTooLong,
    /// The link count is at its limit.
    #[error("too many links")]
    TooManyLinks,
    /// Another holder has the advisory lock.
    #[error("is locked by another holder")]
    Locked,
    /// A directory cannot be moved below itself.
    #[error("cannot be moved into itself")]
    IntoItself,
}

impl Error {
    /// Wraps a system error.
    pub fn io(op: &'static str, target: &str, offset: u64, source: io::Error) -> Self {
        Error::Io {
            op,
            target: Arc::from(target),
            offset,
            source: Arc::new(source),
        }
    }

    /// A path error of `kind` at `path`.
    pub fn path(path: impl AsRef<Path>, kind: PathError) -> Self {
        Error::Path {
            path: path.as_ref().to_path_buf(),
            kind,
        }
    }

    /// A disagreement between bytes and format.
    pub fn corrupt(what: &'static str, offset: u64, detail: impl Into<String>) -> Self {
        Error::Corrupt {
            what,
            offset,
            detail: detail.into(),
        }
    }

    /// True where the error says that a name does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Error::Path {
                kind: PathError::NotFound,
                ..
            }
        )
    }

    /// True where the error says that a name exists already.
    pub fn is_already_exists(&self) -> bool {
        matches!(
            self,
            Error::Path {
                kind: PathError::AlreadyExists,
                ..
            }
        )
    }

    /// True for bytes that disagree with the format.
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Error::Corrupt { .. })
    }
}
