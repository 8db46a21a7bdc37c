//! What the kernel has open: files by handle and by inode, and directory listings.
//!
//! All handles on one file share one [`OpenFile`], and with it the lock that makes "is this the
//! end? then append" one step. A handle's number is never reused within a mount.
//!
//! A [`Listing`] is what makes offsets into a directory stable while names come and go: an offset is
//! the position in the names handed out so far through this handle. Further names are fetched in
//! byte order after the last one, so that an entry that stays is returned exactly once.
//!
//! Locks: a table's lock is held for look-ups only, never across I/O; [`OpenFile::writing`] is
//! held across the file's I/O, and no table is locked under it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{FileKind, FileRef, Ino, LavaFs};
use fuser::Errno;
use parking_lot::Mutex;

use super::behind::Behind;
use super::errno::{Answer, answer};

/// Names fetched at a time.
const BATCH: usize = 1024;

/// A file that has handles.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) ino: Ino,
    pub(super) file: FileRef,
    /// Held while the size is looked at and changed.
    pub(super) writing: Mutex<()>,
    /// Written since the last sync.
    pub(super) unsynced: AtomicBool,
    /// What was answered already.
    pub(super) behind: Behind,
}

impl OpenFile {
    /// Notes a change that was made: noted before, the mark could go with a sync that does not see it.
    pub(super) fn mark_unsynced(&self) {
        self.unsynced.store(true, Ordering::Release);
    }
}

/// All open files.
#[derive(Debug, Default)]
pub(super) struct Files {
    table: Mutex<FileTable>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct FileTable {
    by_handle: HashMap<u64, Arc<OpenFile>>,
    /// With the number of handles.
    by_ino: HashMap<Ino, (Arc<OpenFile>, usize)>,
}

impl Files {
    /// A new handle on the file `ino`, which `open` opens if it has none yet.
    pub(super) fn open(
        &self,
        ino: Ino,
        open: impl FnOnce() -> crate::Result<FileRef>,
    ) -> crate::Result<(u64, Arc<OpenFile>)> {
        let handle = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut table = self.table.lock();
        let file = match table.by_ino.get_mut(&ino) {
            Some((file, handles)) => {
                *handles += 1;
                file.clone()
            }
            None => {
                let file = Arc::new(OpenFile {
                    ino,
                    file: open()?,
                    writing: Mutex::new(()),
                    unsynced: AtomicBool::new(false),
                    behind: Behind::default(),
                });
                table.by_ino.insert(ino, (file.clone(), 1));
                file
            }
        };
        table.by_handle.insert(handle, file.clone());
        Ok((handle, file))
    }

    /// The file of a handle.
    pub(super) fn get(&self, handle: u64) -> Answer<Arc<OpenFile>> {
        let table = self.table.lock();
        table.by_handle.get(&handle).cloned().ok_or(Errno::EBADF)
    }

    /// The file `ino`, if it has handles.
    pub(super) fn find(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        let table = self.table.lock();
        table.by_ino.get(&ino).map(|(file, _)| file.clone())
    }

    /// All files that have handles.
    pub(super) fn all(&self) -> Vec<Arc<OpenFile>> {
        let table = self.table.lock();
        table
            .by_ino
            .values()
            .map(|(file, _)| file.clone())
            .collect()
    }

    /// Forgets a handle. The file is closed by dropping what is returned, which may do I/O.
    pub(super) fn close(&self, handle: u64) -> Option<Arc<OpenFile>> {
        let mut table = self.table.lock();
        let file = table.by_handle.remove(&handle)?;
        if let Some((_, handles)) = table.by_ino.get_mut(&file.ino) {
            *handles -= 1;
            if *handles == 0 {
                table.by_ino.remove(&file.ino);
            }
        }
        Some(file)
    }

    /// The files that were written since their last sync.
    pub(super) fn unsynced(&self) -> Vec<Arc<OpenFile>> {
        let table = self.table.lock();
        let files = table.by_ino.values().map(|(file, _)| file);
        files
            .filter(|file| file.unsynced.load(Ordering::Acquire))
            .cloned()
            .collect()
    }

    /// Forgets all handles, when the kernel has gone.
    pub(super) fn close_all(&self) {
        let table = std::mem::take(&mut *self.table.lock());
        drop(table);
    }
}

/// One entry of a listing.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) ino: Ino,
    pub(super) kind: FileKind,
}

/// What was handed out of a directory through one handle.
#[derive(Debug)]
pub(super) struct Listing {
    dir: Ino,
    entries: Vec<Entry>,
}

impl Listing {
    /// Starts again: the names are read anew.
    pub(super) fn rewind(&mut self) {
        self.entries.clear();
    }

    /// The entry at `position`, with `.` and `..` first; `None` at the end.
    pub(super) fn entry(&mut self, fs: &LavaFs, position: u64) -> Answer<Option<Entry>> {
        let dot = |name: &str, ino| {
            Some(Entry {
                name: name.into(),
                ino,
                kind: FileKind::Directory,
            })
        };
        let index = match position {
            0 => return Ok(dot(".", self.dir)),
            1 => return Ok(dot("..", fs.parent(self.dir).unwrap_or(self.dir))),
            position => usize::try_from(position - 2).map_err(|_| Errno::EINVAL)?,
        };
        while index >= self.entries.len() && self.fetch(fs)? {}
        Ok(self.entries.get(index).cloned())
    }

    /// Fetches further entries; false where there are none.
    fn fetch(&mut self, fs: &LavaFs) -> Answer<bool> {
        let after = self.entries.last().map(|entry| entry.name.as_os_str());
        match fs.entries(self.dir, after, BATCH) {
            Ok(batch) => {
                let more = !batch.is_empty();
                let entries = batch.into_iter();
                self.entries
                    .extend(entries.map(|(name, ino, kind)| Entry { name, ino, kind }));
                Ok(more)
            }
            // A directory that was removed while open has no entries.
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => answer("readdir", self.dir.0, Err(error)),
        }
    }
}

/// All open directories.
#[derive(Debug, Default)]
pub(super) struct Listings {
    table: Mutex<HashMap<u64, Arc<Mutex<Listing>>>>,
    next: AtomicU64,
}

impl Listings {
    /// A new handle on the directory `dir`.
    pub(super) fn open(&self, dir: Ino) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let listing = Listing {
            dir,
            entries: Vec::new(),
        };
        self.table
            .lock()
            .insert(handle, Arc::new(Mutex::new(listing)));
        handle
    }

    /// The listing of a handle.
    pub(super) fn get(&self, handle: u64) -> Answer<Arc<Mutex<Listing>>> {
        self.table.lock().get(&handle).cloned().ok_or(Errno::EBADF)
    }

    /// Forgets a handle.
    pub(super) fn close(&self, handle: u64) {
        self.table.lock().remove(&handle);
    }
}
