//! Errors of the filesystem as the numbers that programs get: the one table.

use crate::{Error, PathError};
use fuser::Errno;

/// What an operation of the mount returns: the number goes to the program that asked.
pub(super) type Answer<T> = Result<T, Errno>;

/// The number for `error`.
///
/// A corrupt structure is EIO and not EUCLEAN, because that is what programs know. A device that
/// is full underneath (a sparse image) is EIO too: deleting files in the mount would not help.
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

/// The answer to a request about inode `ino`; what the program cannot know (the device failed,
/// the filesystem turned read-only, a structure is damaged) is logged besides.
pub(super) fn answer<T>(op: &'static str, ino: u64, result: crate::Result<T>) -> Answer<T> {
    result.map_err(|error| {
        if matches!(error, Error::Io { .. } | Error::Corrupt { .. }) {
            tracing::error!(op, ino, %error, "a request failed");
        }
        errno(&error)
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn every_path_error_has_the_number_that_programs_expect() {
        let table = [
            (PathError::NotFound, libc::ENOENT),
            (PathError::AlreadyExists, libc::EEXIST),
            (PathError::NotADirectory, libc::ENOTDIR),
            (PathError::IsADirectory, libc::EISDIR),
            (PathError::NotEmpty, libc::ENOTEMPTY),
            (PathError::InvalidName, libc::EINVAL),
            (PathError::NameTooLong, libc::ENAMETOOLONG),
            (PathError::TooManyLinks, libc::EMLINK),
            (PathError::Locked, libc::EAGAIN),
            (PathError::IntoItself, libc::EINVAL),
        ];
        for (kind, number) in table {
            assert_eq!(errno(&Error::path("x", kind)).code(), number, "{kind}");
        }
    }

    #[test]
    fn every_error_has_the_number_that_programs_expect() {
        let text = String::new;
        let table = [
            (
                Error::io("read", "d", 0, io::Error::from_raw_os_error(libc::ENOSPC)),
                libc::EIO,
            ),
            (Error::corrupt("extent list", 0, "x"), libc::EIO),
            (Error::NoSpace { needed: 1, free: 0 }, libc::ENOSPC),
            (Error::ReadOnly { reason: "x".into() }, libc::EROFS),
            (
                Error::InUse {
                    target: text(),
                    owner: text(),
                },
                libc::EBUSY,
            ),
            (
                Error::NotLavaFs {
                    target: text(),
                    detail: text(),
                },
                libc::EINVAL,
            ),
            (Error::Unsupported { what: text() }, libc::EOPNOTSUPP),
            (Error::Invalid { what: text() }, libc::EINVAL),
        ];
        for (error, number) in table {
            assert_eq!(errno(&error).code(), number, "{error}");
        }
    }
}
