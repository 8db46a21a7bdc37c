//! Requests about the bytes of files, with the meaning that foreign programs expect.
//!
//! - A write that begins at the end of the file appends; one that begins beyond it appends zeros up to
//!   there first (`extend`). Any other would overwrite and is EOPNOTSUPP, before anything is changed.
//! - With O_APPEND a write that begins beyond the end goes to the end: the kernel remembered a size
//!   that is no more.
//! - Where bytes that were answered early have been lost, the file takes no write beyond its end until
//!   it is truncated or closed: the gap would be what was lost, and no zeros.
//! - `fsync` and `fdatasync` both make bytes and size durable. With `sizefree`, `fdatasync` is
//!   LavaFS's own: bytes only, and after a crash the size is shown as its durable lower bound.
//! - A size that is uncertain since a crash is settled at its lower bound when the file is opened
//!   for writing.
//!
//! It needs no kernel: the tests here run it on a simulated device.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use crate::device::AlignedBuf;
use crate::{BLOCK_SIZE, Error, FileRef, FileSize, FileSystem, Ino, LavaFs, align_up};
use fuser::Errno;

use super::behind::Writers;
use super::errno::{Answer, answer, errno};
use super::handles::{Files, Listings, OpenFile};
use super::names::Removed;
use super::view::Follower;

/// Writes of at least this many bytes are copied into an aligned buffer, from which LavaFS writes to
/// the device in one piece.
const ALIGNED_LEN_MIN: usize = 64 << 10;

/// Writes of at least this many bytes are answered before they have reached the device.
const BEHIND_LEN_MIN: usize = 64 << 10;

/// Free space in bytes without which no write is answered early.
const ROOM_LEN_MIN: u64 = 64 << 20;

/// Longest request, in bytes; what the session agrees on with the kernel.
pub(super) const REQUEST_LEN_MAX: usize = 1 << 20;

thread_local! {
    /// Each thread of the session serves one request at a time.
    static BUFFER: RefCell<AlignedBuf> = RefCell::new(AlignedBuf::zeroed(0));
}

/// A mounted filesystem as the kernel's partner. Any thread may serve any request.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) fs: LavaFs,
    pub(super) files: Files,
    pub(super) listings: Listings,
    pub(super) removed: Removed,
    size_free: bool,
    /// Changes are refused.
    read_only: bool,
    /// The filesystem changes otherwise than through this mount too.
    pub(super) live: bool,
    pub(super) follower: Follower,
    /// Set where large appends are answered early.
    writers: OnceLock<Writers>,
}

/// A handle that lasts for one request.
pub(super) struct TemporaryFile<'a> {
    mount: &'a Mount,
    handle: u64,
    file: Arc<OpenFile>,
}

impl TemporaryFile<'_> {
    pub(super) fn file(&self) -> &OpenFile {
        &self.file
    }
}

impl Drop for TemporaryFile<'_> {
    fn drop(&mut self) {
        self.mount.files.close(self.handle);
    }
}

impl Mount {
    pub(super) fn new(fs: LavaFs, size_free: bool) -> Self {
        Mount {
            fs,
            files: Files::default(),
            listings: Listings::default(),
            removed: Removed::default(),
            size_free,
            read_only: false,
            live: false,
            follower: Follower::default(),
            writers: OnceLock::new(),
        }
    }

    pub(super) fn read_only(self, read_only: bool) -> Self {
        Mount { read_only, ..self }
    }

    pub(super) fn live(self, live: bool) -> Self {
        Mount { live, ..self }
    }

    /// Answers large appends early from here on.
    pub(super) fn start_writers(&self) -> io::Result<()> {
        if !self.read_only {
            let writers = Writers::start()?;
            self.writers.get_or_init(|| writers);
        }
        Ok(())
    }

    /// Refuses a change where the mount accepts none.
    pub(super) fn writable(&self) -> Answer<()> {
        if self.read_only {
            return Err(Errno::EROFS);
        }
        Ok(())
    }

    /// Waits until all that was answered of `file` has been appended.
    pub(super) fn drain(&self, file: &OpenFile) {
        if let Some(writers) = self.writers.get() {
            writers.drain(file);
        }
    }

    /// As [`Mount::drain`], for a file that may not be open.
    pub(super) fn drain_ino(&self, ino: Ino) {
        if let Some(writers) = self.writers.get()
            && let Some(file) = self.files.find(ino)
        {
            writers.drain(&file);
        }
    }

    /// Moves a view on, if the filesystem is one.
    pub(super) fn follow(&self) {
        if self.live {
            self.follower.follow(&self.fs);
        }
    }

    /// Closes everything, when the kernel has gone.
    pub(super) fn close_all(&self) {
        for file in self.files.all() {
            self.drain(&file);
        }
        self.files.close_all();
    }

    fn open_file(&self, ino: Ino) -> Answer<(u64, Arc<OpenFile>)> {
        let opened = self.files.open(ino, || self.fs.open_ino(ino));
        answer("open", ino.0, opened)
    }

    pub(super) fn temporary_file(&self, ino: Ino) -> Answer<TemporaryFile<'_>> {
        let (handle, file) = self.open_file(ino)?;
        Ok(TemporaryFile {
            mount: self,
            handle,
            file,
        })
    }

    /// Opens a file as open(2) with `flags`.
    pub(super) fn open(&self, ino: Ino, flags: i32) -> Answer<u64> {
        self.follow();
        if flags & (libc::O_ACCMODE | libc::O_TRUNC) != libc::O_RDONLY {
            self.writable()?;
        }
        let (handle, file) = self.open_file(ino)?;
        let prepared = if flags & libc::O_TRUNC != 0 {
            self.truncate(&file, 0)
        } else if flags & libc::O_ACCMODE != libc::O_RDONLY {
            let _writing = file.writing.lock();
            self.drain(&file);
            settle(&file)
        } else {
            Ok(())
        };
        if let Err(error) = prepared {
            self.files.close(handle);
            return Err(error);
        }
        Ok(handle)
    }

    /// Closes a handle; with the last one of a file its buffered bytes go to the device.
    pub(super) fn close(&self, handle: u64) {
        if let Ok(file) = self.files.get(handle) {
            self.drain(&file);
        }
        self.files.close(handle);
    }

    /// close(2) of one descriptor, which reports what has failed since.
    pub(super) fn flush(&self, handle: u64) -> Answer<()> {
        let file = self.files.get(handle)?;
        self.drain(&file);
        file.behind.check_whole()
    }

    /// Reads, and gives what was read to `reply`. Where a part cannot be read, `direct` readers get
    /// what lies before it; to the kernel's cache a short answer would be the end of the file, so it
    /// gets EIO, and asks again page by page. A failure is logged with the file's path and the
    /// offset of the first block that cannot be read, because the program only learns EIO.
    pub(super) fn read(
        &self,
        handle: u64,
        offset: u64,
        len: usize,
        direct: bool,
        reply: impl FnOnce(Answer<&[u8]>),
    ) {
        let file = match self.files.get(handle) {
            Ok(file) => file,
            Err(error) => return reply(Err(error)),
        };
        self.drain(&file);
        with_buffer(len, |buf| match file.file.read_at(offset, buf) {
            Ok(read) => reply(Ok(&buf[..read])),
            Err(error) => {
                let (good, error) = read_blocks(&file.file, offset, buf, error);
                let (path, at) = (self.path_of(file.ino), offset + good as u64);
                tracing::error!(path, offset = at, %error, "a read failed");
                if direct && good > 0 {
                    reply(Ok(&buf[..good]));
                } else {
                    reply(Err(errno(&error)));
                }
            }
        });
    }

    /// Appends `data`, if `offset` is not before the end of the file. `flags` are those of the open
    /// file.
    pub(super) fn write(&self, handle: u64, offset: u64, data: &[u8], flags: i32) -> Answer<u32> {
        self.writable()?;
        let file = self.files.get(handle)?;
        let written = u32::try_from(data.len()).map_err(|_| Errno::EINVAL)?;
        let writing = file.writing.lock();
        file.behind.failure()?;
        let coming = file.behind.end();
        let end = coming.map_or_else(|| file.file.size(), FileSize::Exact);
        let FileSize::Exact(end) = end else {
            return Err(Errno::EOPNOTSUPP);
        };
        let offset = if flags & libc::O_APPEND != 0 {
            offset.min(end)
        } else {
            offset
        };
        if offset < end {
            return Err(Errno::EOPNOTSUPP);
        }
        let gap = offset > end;
        let large = data.len() >= BEHIND_LEN_MIN || coming.is_some();
        if large
            && !gap
            && file.behind.check_whole().is_ok()
            && flags & libc::O_DSYNC == 0
            && let Some(writers) = self.writers.get()
            && self.has_room(writers.queued() + data.len() as u64)
        {
            writers.push(&file, offset, data);
            file.mark_unsynced();
            return Ok(written);
        }
        self.drain(&file);
        file.behind.failure()?;
        self.append_at(&file, offset, data)?;
        file.mark_unsynced();
        drop(writing);
        if flags & libc::O_SYNC == libc::O_SYNC {
            self.sync(&file, false)?;
        } else if flags & libc::O_DSYNC != 0 {
            self.sync(&file, true)?;
        }
        Ok(written)
    }

    /// Appends `data` at `offset`, the end of the file or beyond. The caller holds `writing`, and
    /// nothing is on its way.
    fn append_at(&self, file: &OpenFile, offset: u64, data: &[u8]) -> Answer<()> {
        let before = file.file.size().lower();
        if offset > before {
            file.behind.check_whole()?;
            self.extend(file, offset, data.len() as u64)?;
        }
        match append(&file.file, data) {
            Ok(at) => {
                assert_eq!(at, offset, "nobody else appends while `writing` is held");
                Ok(())
            }
            Err(error) => {
                if offset > before {
                    self.undo(file, before);
                }
                answer("write", file.ino.0, Err(error))
            }
        }
    }

    /// Bytes that were answered and are on their way to the device.
    pub(super) fn queued(&self) -> u64 {
        self.writers.get().map_or(0, Writers::queued)
    }

    /// True where `coming` bytes, and what other writers may take meanwhile, are free.
    fn has_room(&self, coming: u64) -> bool {
        self.fs.space().free >= coming + ROOM_LEN_MIN
    }

    /// fsync of a file, or with `data_only` fdatasync.
    pub(super) fn fsync(&self, handle: u64, data_only: bool) -> Answer<()> {
        let file = self.files.get(handle)?;
        self.sync(&file, data_only)
    }

    fn sync(&self, file: &OpenFile, data_only: bool) -> Answer<()> {
        let synced = answer("fsync", file.ino.0, self.sync_present(file, data_only));
        file.behind.check_whole().and(synced)
    }

    /// Syncs what is in a file, lost bytes or not. Where that fails it stays marked as unsynced.
    pub(super) fn sync_present(&self, file: &OpenFile, data_only: bool) -> crate::Result<()> {
        // First: what is answered from here on marks it again.
        file.unsynced.store(false, Ordering::Release);
        self.drain(file);
        let synced = if data_only && self.size_free {
            file.file.fdatasync()
        } else {
            file.file.fsync()
        };
        if synced.is_err() {
            file.mark_unsynced();
        }
        synced
    }

    /// A path of `ino` for messages: the first one found. Looks through the whole tree, so it is
    /// for failures only.
    fn path_of(&self, ino: Ino) -> String {
        let mut dirs = vec![(LavaFs::ROOT, String::new())];
        while let Some((dir, path)) = dirs.pop() {
            for (name, child, kind) in self.fs.entries(dir, None, usize::MAX).unwrap_or_default() {
                let path = format!("{path}/{}", name.to_string_lossy());
                if child == ino {
                    return path;
                }
                if kind == crate::FileKind::Directory {
                    dirs.push((child, path));
                }
            }
        }
        format!("unlinked inode {ino}")
    }
}

/// Reads what failed as a whole block by block, up to the first that fails by itself. Returns how many
/// bytes are good, and that block's error.
fn read_blocks(file: &FileRef, offset: u64, buf: &mut [u8], whole: Error) -> (usize, Error) {
    let mut good = 0;
    while good < buf.len() {
        let at = offset + good as u64;
        let part = (align_up(at + 1, BLOCK_SIZE) - at).min((buf.len() - good) as u64) as usize;
        match file.read_at(at, &mut buf[good..good + part]) {
            Ok(read) => good += read,
            Err(error) => return (good, error),
        }
        if file.size().lower() <= offset + good as u64 {
            break;
        }
    }
    (good, whole)
}

/// Ends an uncertain size. The caller holds `writing`.
pub(super) fn settle(file: &OpenFile) -> Answer<()> {
    match file.file.size() {
        FileSize::Exact(_) => Ok(()),
        FileSize::Between { lower, .. } => answer("open", file.ino.0, file.file.settle(lower)),
    }
}

fn append(file: &FileRef, data: &[u8]) -> crate::Result<u64> {
    if data.len() < ALIGNED_LEN_MIN {
        return file.append(data);
    }
    with_buffer(data.len(), |buf| {
        buf.copy_from_slice(data);
        file.append(buf)
    })
}

/// Runs `body` with the thread's aligned buffer.
fn with_buffer<R>(len: usize, body: impl FnOnce(&mut [u8]) -> R) -> R {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            let grown = len.next_power_of_two().max(BLOCK_SIZE as usize);
            *buffer = AlignedBuf::zeroed(grown);
        }
        body(&mut buffer[..len])
    })
}
