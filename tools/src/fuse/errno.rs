//! Errors of the filesystem as the numbers that the kernel hands to programs.

use fuser::Errno;
use lavafs::{Error, PathError};

/// The number for `error`.
pub(super) fn errno(error: &Error) -> Errno {
    match error {
        Error::Io { .. } | Error::Corrupt { .. } => Errno::EIO,
        Error::NoSpace { .. } => Errno::ENOSPC,
        Error::Path { kind, .. } => path_errno(*kind),
        Error::ReadOnly { .. } => Errno::EROFS,
        Error::InUse { .. } => Errno::EBUSY,
        Error::Unsupported { .. } => Errno::EOPNOTSUPP,
        Error::Invalid { .. } | Error::NotLavaFs { .. } => Errno::EINVAL,
    }
}

fn path_errno(kind: PathError) -> Errno {
    match kind {
        PathError::NotFound => Errno::ENOENT,
        PathError::AlreadyExists => Errno::EEXIST,
        PathError::NotADirectory => Errno::ENOTDIR,
        PathError::IsADirectory => Errno::EISDIR,
        PathError::NotEmpty => Errno::ENOTEMPTY,
        PathError::InvalidName | PathError::IntoItself => Errno::EINVAL,
        PathError::NameTooLong => Errno::ENAMETOOLONG,
        PathError::TooManyLinks => Errno::EMLINK,
        PathError::Locked => Errno::EAGAIN,
    }
}
