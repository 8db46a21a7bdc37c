//! The names of a database's files, and how small files are read and replaced.
//!
//! `NNNNNN.wal` write-ahead log, `NNNNNN.sst` table, `NNNNNN.blob` blob file, `MANIFEST-NNNNNN` history of versions,
//! `OPTIONS-NNNNNN` stored options, `CURRENT` the name of the manifest in force, `LOCK` the
//! advisory lock, `NAME.tmp` a file that was not yet renamed into place. One counter numbers all files and no number
//! is given twice.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

use lavafs::{CreateOptions, FileSystemRef};

use crate::error::{Error, Result};

/// Number of a file, given once within a database.
pub(crate) type FileNumber = u64;

/// Name of the file that names the manifest in force.
pub(crate) const CURRENT: &str = "CURRENT";
/// Name of the lock file.
pub(crate) const LOCK: &str = "LOCK";

/// A parsed file name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum FileName {
    Wal(FileNumber),
    Table(FileNumber),
    Blob(FileNumber),
    Manifest(FileNumber),
    Options(FileNumber),
    Current,
    Lock,
    /// A file that was to be renamed into place.
    Temporary,
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileName::Wal(number) => write!(f, "{number:06}.wal"),
            FileName::Table(number) => write!(f, "{number:06}.sst"),
            FileName::Blob(number) => write!(f, "{number:06}.blob"),
            FileName::Manifest(number) => write!(f, "MANIFEST-{number:06}"),
            FileName::Options(number) => write!(f, "OPTIONS-{number:06}"),
            FileName::Current => f.write_str(CURRENT),
            FileName::Lock => f.write_str(LOCK),
            FileName::Temporary => f.write_str("CURRENT.tmp"),
        }
    }
}

impl FileName {
    /// What `name` is; `None` for a file that is not a database's.
    pub(crate) fn parse(name: &OsStr) -> Option<FileName> {
        let name = name.to_str()?;
        match name {
            CURRENT => return Some(FileName::Current),
            LOCK => return Some(FileName::Lock),
            "CURRENT.tmp" => return Some(FileName::Temporary),
            _ => {}
        }
        let number = |digits: &str| -> Option<FileNumber> {
            let plain = digits.len() >= 6 && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten()
        };
        if let Some(digits) = name.strip_prefix("MANIFEST-") {
            return number(digits).map(FileName::Manifest);
        }
        if let Some(digits) = name.strip_prefix("OPTIONS-") {
            return number(digits).map(FileName::Options);
        }
        let (digits, kind) = name.split_once('.')?;
        match kind {
            "wal" => number(digits).map(FileName::Wal),
            "sst" => number(digits).map(FileName::Table),
            "blob" => number(digits).map(FileName::Blob),
            _ => None,
        }
    }

    /// The number in the name.
    pub(crate) fn number(self) -> Option<FileNumber> {
        match self {
            FileName::Wal(number)
            | FileName::Table(number)
            | FileName::Blob(number)
            | FileName::Manifest(number)
            | FileName::Options(number) => Some(number),
            _ => None,
        }
    }
}

/// Reads a whole file of at most `max` bytes.
pub(crate) fn read_small_file(fs: &FileSystemRef, path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = fs.open(path)?;
    let size = file.size().lower();
    if size > max {
        let detail = format!("{size} bytes, at most {max} expected");
        return Err(Error::corrupt(path.display().to_string(), 0_u64, detail));
    }
    let mut data = vec![0; size as usize];
    let read = file.read_at(0, &mut data)?;
    data.truncate(read);
    Ok(data)
}

/// Makes `name` in `dir` hold `data`, atomically: a crash leaves the old file or the new one.
/// Durable on return.
pub(crate) fn replace_file(fs: &FileSystemRef, dir: &Path, name: &str, data: &[u8]) -> Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    match fs.unlink(&temporary) {
        Err(error) if !error.is_not_found() => return Err(error.into()),
        _ => {}
    }
    let file = fs.create(&temporary, &CreateOptions::default())?;
    file.append(data)?;
    file.fsync()?;
    drop(file);
    fs.rename(&temporary, &dir.join(name))?;
    fs.sync_dir(dir)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_foreign_ones_are_left_alone() {
        for name in [
            FileName::Wal(7),
            FileName::Table(12_345_678),
            FileName::Blob(8),
            FileName::Manifest(1),
            FileName::Options(2),
            FileName::Current,
            FileName::Lock,
            FileName::Temporary,
        ] {
            assert_eq!(FileName::parse(OsStr::new(&name.to_string())), Some(name));
        }
        for foreign in [
            "7.wal",
            "000007.txt",
            "notes",
            "MANIFEST-x",
            "+00007.sst",
            "",
        ] {
            assert_eq!(FileName::parse(OsStr::new(foreign)), None);
        }
    }
}
