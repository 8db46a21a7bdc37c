//! What the kernel has open: files and directory listings, by handle number.
//!
//! Numbers are never reused within one mount. The table's lock is held for look-ups only, never
//! across I/O.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::{Errno, FileHandle};
use lavafs::{FileKind, FileRef, Ino};
use parking_lot::{Mutex, MutexGuard, RwLock};

/// Locks for writes; a file's is chosen by its inode number.
const WRITE_LOCKS: usize = 64;

/// One entry of a directory listing.
pub(super) type Entry = (OsString, Ino, FileKind);

/// Something open.
#[derive(Clone, Debug)]
pub(super) enum Handle {
    /// A file.
    File(FileRef),
    /// A directory's entries when it was opened, `.` and `..` first. A listing is a
    /// snapshot, so that an entry is neither skipped nor repeated while others come and go.
    Directory(Arc<Vec<Entry>>),
}

/// All handles of a mount.
#[derive(Debug)]
pub(super) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Handle>>,
    /// Taken around "is this the end? append" and truncation. No other lock of this module is
    /// taken under it; the file's I/O happens under it.
    write_locks: [Mutex<()>; WRITE_LOCKS],
}

impl Handles {
    pub(super) fn new() -> Self {
        Handles {
            next: AtomicU64::new(1),
            open: RwLock::new(HashMap::new()),
            write_locks: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    /// Keeps `handle` and returns its number.
    pub(super) fn insert(&self, handle: Handle) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(number, handle);
        FileHandle(number)
    }

    /// The file with this number.
    pub(super) fn file(&self, number: FileHandle) -> Result<FileRef, Errno> {
        match self.open.read().get(&number.0) {
            Some(Handle::File(file)) => Ok(Arc::clone(file)),
            _ => Err(Errno::EBADF),
        }
    }

    /// The listing with this number.
    pub(super) fn directory(&self, number: FileHandle) -> Result<Arc<Vec<Entry>>, Errno> {
        match self.open.read().get(&number.0) {
            Some(Handle::Directory(entries)) => Ok(Arc::clone(entries)),
            _ => Err(Errno::EBADF),
        }
    }

    /// Forgets a handle; a file is closed when its last handle goes.
    pub(super) fn remove(&self, number: FileHandle) {
        let handle = self.open.write().remove(&number.0);
        // Closing may write, so not under the table's lock.
        drop(handle);
    }

    /// Keeps other writes of the file `ino` out.
    pub(super) fn lock_writes(&self, ino: Ino) -> MutexGuard<'_, ()> {
        self.write_locks[ino.0 as usize % WRITE_LOCKS].lock()
    }
}
