//! Real files as input: the regular files below a directory, each a key and its contents.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::cli::{Context, Failure, Outcome};

/// A regular file found below a directory.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its path relative to the directory, as bytes.
    pub key: Vec<u8>,
    /// Its size when it was found, in bytes.
    pub size: u64,
}

impl SourceFile {
    /// The file's contents.
    ///
    /// # Errors
    /// It cannot be read, or is no regular file any more.
    pub fn read(&self) -> Outcome<Vec<u8>> {
        let metadata = fs::symlink_metadata(&self.path).context(|| self.path.display())?;
        if !metadata.is_file() {
            return Err(Failure::new(format!(
                "{}: is no regular file any more",
                self.path.display()
            )));
        }
        fs::read(&self.path).context(|| self.path.display())
    }
}

/// What a directory holds.
#[derive(Debug, Default)]
pub struct Found {
    /// Regular files, sorted by path.
    pub files: Vec<SourceFile>,
    /// What could not be looked at, each with the reason.
    pub unreadable: Vec<String>,
}

impl Found {
    /// The sizes of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Finds all regular files below `dir`. Symbolic links are not followed; `dir` itself may be one.
/// Other filesystems mounted below are left out, so that `/usr` never leads into `/proc`.
///
/// # Errors
/// `dir` itself cannot be read.
pub fn walk(dir: &Path) -> Outcome<Found> {
    fs::read_dir(dir).context(|| dir.display())?;
    let mut found = Found::default();
    let entries = WalkDir::new(dir)
        .same_file_system(true)
        .sort_by_file_name()
        .follow_root_links(true);
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                found.unreadable.push(error.to_string());
                continue;
            }
        };
        if !entry.file_type().is_file() {
            continue;
        }
        let size = match entry.metadata() {
            Ok(metadata) => metadata.len(),
            Err(error) => {
                found.unreadable.push(error.to_string());
                continue;
            }
        };
        let relative = entry
            .path()
            .strip_prefix(dir)
            .expect("a walk yields paths below its root");
        found.files.push(SourceFile {
            key: relative.as_os_str().as_bytes().to_vec(),
            path: entry.into_path(),
            size,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_files_alone_are_found_and_keys_are_relative() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/b"), "bb").unwrap();
        fs::write(dir.path().join("a"), "a").unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        let found = walk(dir.path()).unwrap();
        let keys: Vec<&[u8]> = found.files.iter().map(|file| &file.key[..]).collect();
        assert_eq!(keys, [&b"a"[..], b"sub/b"]);
        assert_eq!(found.bytes(), 3);
        assert_eq!(found.files[1].read().unwrap(), b"bb");
        fs::remove_file(dir.path().join("a")).unwrap();
        assert!(found.files[0].read().is_err());
        assert!(walk(&dir.path().join("missing")).is_err());
    }
}
