//! Namespace changes that are not durable yet.
//!
//! The kernel makes a name durable when its directory is synced. The trait promises more: a sync
//! of a file makes the names it was given before durable too. So each file sync first syncs the
//! directories that changed. In steady state there are none and it costs one lock.

use std::collections::HashMap;
use std::fs::File as KernelFile;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::file::FileKey;
use super::io::{KernelIo, path_error};
use crate::error::{Error, Result};

/// The directories with changes that are not durable.
#[derive(Debug)]
pub(super) struct Names {
    root: PathBuf,
    /// Serialises directory syncs, renames and removals of one certain file; held across them. Taken before `dirty`.
    syncing: Mutex<()>,
    /// Changes so far, and for each directory the number of its last one. An entry leaves only
    /// after its sync, so that a caller who finds none may rely on it. Not held across I/O.
    dirty: Mutex<Dirty>,
    /// First failed directory sync: the kernel forgets such failures, so it is final.
    failed: OnceLock<Error>,
}

#[derive(Debug, Default)]
struct Dirty {
    changes: u64,
    last_change: HashMap<PathBuf, u64>,
}

impl Names {
    pub(super) fn new(root: PathBuf) -> Names {
        Names {
            root,
            syncing: Mutex::default(),
            dirty: Mutex::default(),
            failed: OnceLock::new(),
        }
    }

    /// Notes that the name `host`, inside the root, was made, changed or removed.
    pub(super) fn changed(&self, host: &Path) {
        let dir = host.parent().expect("a name has a directory");
        let mut dirty = self.dirty.lock();
        dirty.changes += 1;
        let change = dirty.changes;
        dirty.last_change.insert(dir.to_path_buf(), change);
    }

    /// Renames. Changes in a directory move with it, and no sync comes in between: it would find the
    /// directory at neither place and count its names as gone.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _syncing = self.syncing.lock();
        std::fs::rename(from, to)?;
        {
            let mut dirty = self.dirty.lock();
            let last_change = std::mem::take(&mut dirty.last_change);
            dirty.last_change = last_change
                .into_iter()
                .map(|(dir, change)| match dir.strip_prefix(from) {
                    Ok(below) => (to.join(below), change),
                    Err(_) => (dir, change),
                })
                .collect();
        }
        self.changed(from);
        self.changed(to);
        Ok(())
    }

    /// Removes the name `host`, if it still is that of `file`: no rename comes in between.
    pub(super) fn remove(&self, host: &Path, file: Option<FileKey>) -> io::Result<()> {
        let _syncing = self.syncing.lock();
        let named = std::fs::symlink_metadata(host).map(|stat| FileKey::of(&stat));
        match named.ok() {
            Some(named) if file == Some(named) => std::fs::remove_file(host),
            _ => Ok(()),
        }
    }

    /// Makes every change so far durable.
    pub(super) fn sync_all(&self, io: &KernelIo) -> Result<()> {
        if self.dirty.lock().last_change.is_empty() {
            return self.check();
        }
        let _syncing = self.syncing.lock();
        self.check()?;
        let changed: Vec<(PathBuf, u64)> = {
            let dirty = self.dirty.lock();
            dirty
                .last_change
                .iter()
                .map(|(dir, &change)| (dir.clone(), change))
                .collect()
        };
        for (dir, change) in changed {
            match self.sync_kernel(&dir, io) {
                // The directory was removed or replaced, and its names with it.
                Err(Error::Path { .. }) => {}
                result => result?,
            }
            self.clean(&dir, change);
        }
        Ok(())
    }

    /// Makes the changes in one directory durable, whether this process made them or not.
    pub(super) fn sync_one(&self, path: &Path, host: &Path, io: &KernelIo) -> Result<()> {
        let _syncing = self.syncing.lock();
        self.check()?;
        let change = self.dirty.lock().changes;
        match self.sync_kernel(host, io) {
            Err(Error::Path { kind, .. }) => return Err(Error::path(path, kind)),
            result => result?,
        }
        self.clean(host, change);
        Ok(())
    }

    /// Forgets the changes in `dir` up to number `change`.
    fn clean(&self, dir: &Path, change: u64) {
        let mut dirty = self.dirty.lock();
        if dirty
            .last_change
            .get(dir)
            .is_some_and(|&last| last <= change)
        {
            dirty.last_change.remove(dir);
        }
    }

    fn sync_kernel(&self, dir: &Path, io: &KernelIo) -> Result<()> {
        let file = KernelFile::open(dir).map_err(|error| path_error("open", dir, error))?;
        let stat = file
            .metadata()
            .map_err(|error| path_error("stat", dir, error))?;
        if !stat.is_dir() {
            return Err(Error::path(dir, crate::PathError::NotADirectory));
        }
        file.sync_all().map_err(|error| {
            let error = Error::io("sync directory", &dir.to_string_lossy(), 0, error);
            tracing::error!(root = %self.root.display(), %error, "names can no longer be synced");
            self.failed.get_or_init(|| error).clone()
        })?;
        io.counters.flushed();
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::host_fs::HostFs;
    use crate::vfs::{CreateOptions, FileSystem};

    use super::*;

    /// A sync that came between a directory's rename and the note of it found the directory nowhere and
    /// forgot that names in it were not durable, for this sync and all later ones.
    #[test]
    fn a_directory_is_not_renamed_in_the_middle_of_a_sync() {
        let root = tempfile::tempdir().unwrap();
        let fs = HostFs::open(root.path()).unwrap();
        fs.create_dir_all(Path::new("/from/below")).unwrap();
        std::thread::scope(|scope| {
            let syncing = fs.names.syncing.lock();
            let renamed = scope.spawn(|| fs.rename(Path::new("/from"), Path::new("/to")));
            std::thread::sleep(Duration::from_millis(50));
            assert!(fs.root.join("from").exists());
            drop(syncing);
            renamed.join().unwrap().unwrap();
        });
        let dirty = fs.names.dirty.lock();
        assert!(dirty.last_change.contains_key(&fs.root.join("to")));
    }

    /// A create that failed removed its file by the name alone; meanwhile that had been given to another file.
    #[test]
    fn a_create_that_fails_takes_no_name_that_was_given_to_another_file() {
        let root = tempfile::tempdir().unwrap();
        let fs = HostFs::open(root.path()).unwrap();
        let (wanted, other) = (fs.root.join("wanted"), fs.root.join("other"));
        std::fs::write(&other, b"kept").unwrap();
        let options = CreateOptions {
            expected_size: u64::MAX,
            ..CreateOptions::default()
        };
        std::thread::scope(|scope| {
            let dirty = fs.names.dirty.lock();
            let created = scope.spawn(|| fs.create(Path::new("/wanted"), &options));
            while !wanted.exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::fs::rename(&other, &wanted).unwrap();
            drop(dirty);
            created.join().unwrap().unwrap_err();
        });
        assert_eq!(std::fs::read(&wanted).unwrap(), b"kept");
        fs.create(Path::new("/another"), &options).unwrap_err();
        assert!(!fs.root.join("another").exists());
    }
}
