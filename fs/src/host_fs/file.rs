//! An open file of [`super::HostFs`], and the table through which handles on one file share it.
//!
//! Locks, in the order in which they are taken: `appender` (held across writes, serialises
//! changes), `tail` (readers copy from it; the appender holds it shared while it writes from it,
//! so reads are never blocked by I/O), `durable` (held across the sync). None is held when a
//! directory is synced. `Files::open` is taken with none of them held, but by a file's drop.
//!
//! Failure: the kernel reports a failed write-back once and then forgets it, so the first failed
//! write, cut or sync is kept and every later change or sync of the file fails with it. A write
//! that finds no space is not such a failure: its bytes are still held here, and it can be tried
//! again after a deletion.

use std::any::Any;
use std::collections::HashMap;
use std::fs::{File as KernelFile, Metadata};
use std::io::{self, IoSlice};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Condvar, Mutex, RwLock, RwLockWriteGuard};

use super::Attribute;
use super::io::KernelIo;
use super::names::Names;
use super::tail::Tail;
use crate::error::{Error, Result};
use crate::types::{FileSize, Generation, align_down};
use crate::vfs::{File, TailPolicy};

/// Appends of at least this many bytes go to the kernel without a copy where alignment allows.
const ZERO_COPY_MIN: usize = 64 << 10;

/// Names a file as long as it is open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct FileKey {
    dev: u64,
    ino: u64,
}

impl FileKey {
    pub(super) fn of(stat: &Metadata) -> FileKey {
        FileKey {
            dev: stat.dev(),
            ino: stat.ino(),
        }
    }
}

/// The open files of one `HostFs`.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// An entry leaves when its file has been closed, after the last bytes were written.
    open: Mutex<HashMap<FileKey, Weak<HostFile>>>,
    closed: Condvar,
}

impl Files {
    /// The open file of this name, or the one that `make` makes. Waits for one being closed, whose
    /// last bytes may be on their way.
    pub(super) fn get_or_insert(
        &self,
        key: FileKey,
        make: impl FnOnce() -> Result<HostFile>,
    ) -> Result<Arc<HostFile>> {
        let mut open = self.open.lock();
        while let Some(entry) = open.get(&key) {
            if let Some(file) = entry.upgrade() {
                return Ok(file);
            }
            self.closed.wait(&mut open);
        }
        let file = Arc::new(make()?);
        open.insert(key, Arc::downgrade(&file));
        Ok(file)
    }

    pub(super) fn get(&self, key: FileKey) -> Option<Arc<HostFile>> {
        self.open.lock().get(&key).and_then(Weak::upgrade)
    }

    fn remove(&self, key: FileKey) {
        self.open.lock().remove(&key);
        self.closed.notify_all();
    }
}

/// State shared by all handles on one file.
pub(super) struct HostFile {
    key: FileKey,
    /// Path at the time of opening, for messages.
    name: Arc<str>,
    kernel: KernelFile,
    io: Arc<KernelIo>,
    files: Arc<Files>,
    names: Arc<Names>,
    tail_policy: TailPolicy,
    /// The generation is kept in an attribute and renewed by truncating.
    persisted: bool,
    generation: AtomicU64,
    /// Space beyond the end was taken in advance.
    preallocated: bool,
    appender: Mutex<Appender>,
    tail: RwLock<Tail>,
    /// Number of the last completed change of the kernel's file.
    changes: AtomicU64,
    /// Number of the last change known to be durable.
    durable: Mutex<u64>,
    failed: OnceLock<Error>,
}

/// What a file begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begin {
    pub(super) tail: TailPolicy,
    pub(super) preallocated: bool,
}

/// What the appender knows of the kernel's file.
#[derive(Debug)]
struct Appender {
    /// Bytes of the file that the kernel's file holds.
    written: u64,
    /// The kernel's size, or more where a write failed half way.
    kernel_size: u64,
}

impl HostFile {
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, by the filesystem that owns all of it"
    )]
    pub(super) fn new(
        path: &Path,
        kernel: KernelFile,
        stat: &Metadata,
        begin: Begin,
        attribute: Attribute,
        io: &Arc<KernelIo>,
        files: &Arc<Files>,
        names: &Arc<Names>,
    ) -> HostFile {
        let size = stat.len();
        HostFile {
            key: FileKey::of(stat),
            name: path.to_string_lossy().into(),
            kernel,
            io: Arc::clone(io),
            files: Arc::clone(files),
            names: Arc::clone(names),
            tail_policy: if attribute.persisted {
                attribute.tail
            } else {
                begin.tail
            },
            persisted: attribute.persisted,
            generation: AtomicU64::new(attribute.generation.0),
            preallocated: begin.preallocated,
            appender: Mutex::new(Appender {
                written: size,
                kernel_size: size,
            }),
            tail: RwLock::new(Tail::at(size)),
            changes: AtomicU64::new(1),
            durable: Mutex::new(0),
            failed: OnceLock::new(),
        }
    }

    pub(super) fn current_size(&self) -> u64 {
        self.tail.read().size
    }

    fn check(&self) -> Result<()> {
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Keeps the first failure, and returns it.
    fn fail(&self, op: &'static str, offset: u64, error: io::Error) -> Error {
        let error = Error::io(op, &self.name, offset, error);
        tracing::error!(%error, "the file accepts no more changes");
        self.failed.get_or_init(|| error).clone()
    }

    /// Writes whole units to the kernel's file.
    fn write(&self, appender: &mut Appender, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset + data.len() as u64;
        appender.kernel_size = appender.kernel_size.max(end);
        match self.io.write(&self.kernel, offset, data) {
            Ok(()) => {
                self.changes.fetch_add(1, Ordering::AcqRel);
                Ok(())
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                Err(Error::NoSpace {
                    needed: data.len() as u64,
                    free: 0,
                })
            }
            Err(error) => Err(self.fail("write", offset, error)),
        }
    }

    /// Sets the kernel's size.
    fn set_kernel_size(&self, appender: &mut Appender, size: u64) -> Result<()> {
        self.kernel
            .set_len(size)
            .map_err(|error| self.fail("truncate", size, error))?;
        appender.kernel_size = size;
        self.changes.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Brings the partial last block of an opened or cut file into memory.
    fn load_tail(&self) -> Result<()> {
        let end = self.tail.read().base;
        let base = align_down(end, self.io.unit);
        if base == end {
            return Ok(());
        }
        let mut head = vec![0; (end - base) as usize];
        let read = self.io.read(&self.kernel, base, &mut head);
        match read {
            Ok(read) if read == head.len() => self.tail.write().load(base, &head),
            Ok(_) => return Err(self.fail("read", base, io::ErrorKind::UnexpectedEof.into())),
            Err(error) => return Err(Error::io("read", &self.name, base, error)),
        }
        Ok(())
    }

    /// Takes `data` in behind the tail, without publishing a new size.
    fn push(&self, appender: &mut Appender, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let held = self.tail.read().len();
            let whole = align_down(data.len() as u64, self.io.unit) as usize;
            let zero_copy = data.len() >= ZERO_COPY_MIN
                && (held as u64).is_multiple_of(self.io.unit)
                && self.io.is_memory_aligned(data);
            if zero_copy && held == 0 {
                let base = self.tail.read().base;
                self.write(appender, base, &data[..whole])?;
                self.tail.write().skip(whole as u64);
                appender.written = base + whole as u64;
                data = &data[whole..];
            } else if zero_copy || self.tail.read().is_full() {
                self.write_whole(appender)?;
            } else {
                let took = self.tail.write().fill(data);
                data = &data[took..];
            }
        }
        Ok(())
    }

    /// Writes a tail of whole units and forgets it.
    fn write_whole(&self, appender: &mut Appender) -> Result<()> {
        let tail = self.tail.read();
        self.write(appender, tail.base, tail.padded(self.io.unit))?;
        appender.written = tail.base + tail.len() as u64;
        drop(tail);
        self.tail.write().drop_whole(self.io.unit);
        Ok(())
    }

    /// Brings the kernel's file up to date: on return it holds exactly the file's bytes.
    fn write_tail(&self, appender: &mut Appender) -> Result<()> {
        let unit = self.io.unit;
        let mut tail = self.tail.write();
        let size = tail.size;
        if appender.written < size {
            tail.pad(unit);
            let tail = RwLockWriteGuard::downgrade(tail);
            self.write(appender, tail.base, tail.padded(unit))?;
            drop(tail);
            self.tail.write().drop_whole(unit);
        } else {
            drop(tail);
        }
        if appender.kernel_size > size {
            self.set_kernel_size(appender, size)?;
        }
        appender.written = size;
        Ok(())
    }

    /// Pads a sealed file with zeros to the write unit.
    fn seal(&self, appender: &mut Appender) -> Result<()> {
        let size = self.current_size();
        let padding = size.next_multiple_of(self.io.write_unit) - size;
        if self.tail_policy == TailPolicy::Seal && padding > 0 {
            self.append_locked(appender, &[IoSlice::new(&vec![0; padding as usize])])?;
        }
        Ok(())
    }

    fn append_locked(&self, appender: &mut Appender, parts: &[IoSlice<'_>]) -> Result<u64> {
        self.load_tail()?;
        let start = self.current_size();
        for part in parts {
            if let Err(error) = self.push(appender, part) {
                // Part of it may be in the kernel's file already; the next sync cuts it off.
                self.tail.write().cut(start);
                appender.written = appender.written.min(start);
                return Err(error);
            }
        }
        let total: u64 = parts.iter().map(|part| part.len() as u64).sum();
        self.tail.write().size = start + total;
        Ok(start)
    }

    fn sync(&self, sync: fn(&KernelFile) -> io::Result<()>) -> Result<()> {
        let change = {
            let mut appender = self.appender.lock();
            self.check()?;
            self.seal(&mut appender)?;
            self.write_tail(&mut appender)?;
            self.changes.load(Ordering::Acquire)
        };
        self.names.sync_all(&self.io)?;
        let mut durable = self.durable.lock();
        self.check()?;
        // Whoever waited for another's sync that began after this change has nothing left to do.
        if *durable < change {
            let covered = self.changes.load(Ordering::Acquire);
            sync(&self.kernel).map_err(|error| self.fail("sync", 0, error))?;
            self.io.counters.flushed();
            *durable = covered;
        }
        Ok(())
    }

    /// Cuts the file to `size`, which is not above the present one.
    fn cut(&self, appender: &mut Appender, size: u64) -> Result<()> {
        if appender.kernel_size > size {
            self.set_kernel_size(appender, size)?;
        }
        appender.written = appender.written.min(size);
        self.tail.write().cut(size);
        Ok(())
    }
}

impl File for HostFile {
    fn append_vectored(&self, parts: &[IoSlice<'_>]) -> Result<u64> {
        let mut appender = self.appender.lock();
        self.check()?;
        self.append_locked(&mut appender, parts)
    }

    fn fdatasync(&self) -> Result<()> {
        self.sync(KernelFile::sync_data)
    }

    fn fsync(&self) -> Result<()> {
        self.sync(KernelFile::sync_all)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (split, total) = {
            let tail = self.tail.read();
            let end = offset.saturating_add(buf.len() as u64).min(tail.size);
            if offset >= end {
                return Ok(0);
            }
            let split = tail.base.clamp(offset, end);
            if split < end {
                tail.copy_to(
                    split,
                    &mut buf[(split - offset) as usize..(end - offset) as usize],
                );
            }
            ((split - offset) as usize, (end - offset) as usize)
        };
        if split > 0 {
            let read = self
                .io
                .read(&self.kernel, offset, &mut buf[..split])
                .map_err(|error| Error::io("read", &self.name, offset, error))?;
            if read < split {
                // The file was cut meanwhile.
                return Ok(read);
            }
        }
        Ok(total)
    }

    fn read_unverified(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read_at(offset, buf)
    }

    fn size(&self) -> FileSize {
        FileSize::Exact(self.current_size())
    }

    fn settle(&self, size: u64) -> Result<()> {
        {
            let mut appender = self.appender.lock();
            self.check()?;
            let present = self.current_size();
            if size == present {
                return Ok(());
            }
            if size > present {
                return Err(beyond("settle", size, present));
            }
            self.cut(&mut appender, size)?;
        }
        self.fsync()
    }

    fn truncate(&self, size: u64) -> Result<()> {
        let mut appender = self.appender.lock();
        self.check()?;
        let present = self.current_size();
        if size == present {
            return Ok(());
        }
        if size > present {
            return Err(beyond("truncate", size, present));
        }
        self.cut(&mut appender, size)?;
        if self.persisted {
            let attribute = Attribute::fresh(self.tail_policy);
            attribute
                .write(&self.kernel)
                .map_err(|error| self.fail("renew the generation", 0, error))?;
            self.generation
                .store(attribute.generation.0, Ordering::Release);
        }
        Ok(())
    }

    fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        if self.failed.get().is_none() {
            let mut appender = self.appender.lock();
            let closed = self.write_tail(&mut appender).and_then(|()| {
                if self.preallocated {
                    let size = appender.written;
                    self.set_kernel_size(&mut appender, size)?;
                }
                Ok(())
            });
            if let Err(error) = closed {
                tracing::warn!(file = %self.name, %error, "unsynced bytes are lost at close");
            }
        }
        // The kernel's file is still open here, so its inode number cannot be in use anew.
        self.files.remove(self.key);
    }
}

impl std::fmt::Debug for HostFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostFile")
            .field("name", &self.name)
            .field("size", &self.current_size())
            .finish_non_exhaustive()
    }
}

fn beyond(op: &str, size: u64, present: u64) -> Error {
    Error::Invalid {
        what: format!("{op} to {size} bytes, beyond the file's {present}"),
    }
}
