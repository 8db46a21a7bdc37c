//! The small append-shaped `FileSystem` that engines are written against.
//!
//! Two implementations: [`crate::LavaFs`] on a raw device or an image, and [`crate::HostFs`] on a
//! directory of a kernel filesystem. It is one of the project's two seams; the other is
//! [`crate::device::BlockDevice`].
//!
//! Paths are absolute within the filesystem (`/db/000001.wal`); a missing leading slash is
//! accepted. Namespace changes are atomic and happen in order; they are durable after
//! [`FileSystem::sync_dir`], or after a later `fsync` of a file they name. A file's creation is
//! durable after its first `fdatasync` too.

use std::any::Any;
use std::fmt;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::device::DeviceCounters;
use crate::error::Result;
use crate::types::{FileSize, Generation};

/// A shared handle on a filesystem.
pub type FileSystemRef = Arc<dyn FileSystem>;

/// A shared handle on an open file. The file is closed when the last handle is dropped.
pub type FileRef = Arc<dyn File>;

/// A filesystem whose files only grow. All methods may be called from any thread.
pub trait FileSystem: Send + Sync + fmt::Debug {
    /// Creates a file that must not exist and opens it for appending and reading.
    fn create(&self, path: &Path, options: &CreateOptions) -> Result<FileRef>;

    /// Opens an existing file for reading and appending. Handles on one file share its state.
    fn open(&self, path: &Path) -> Result<FileRef>;

    /// What is known of the object at `path`.
    fn metadata(&self, path: &Path) -> Result<Metadata>;

    /// The entries of a directory, in byte order of their names.
    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>>;

    /// Makes a directory and its missing parents; no error if it exists.
    fn create_dir_all(&self, dir: &Path) -> Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, dir: &Path) -> Result<()>;

    /// Renames, replacing a file at `to` atomically.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;

    /// Gives a file a second name.
    fn link(&self, existing: &Path, new: &Path) -> Result<()>;

    /// Removes a file's name; its space returns when it has no names and no handles.
    fn unlink(&self, path: &Path) -> Result<()>;

    /// Makes every namespace change in `dir` so far durable.
    fn sync_dir(&self, dir: &Path) -> Result<()>;

    /// Takes an exclusive advisory lock named by `path` (created if missing), held until the
    /// returned guard is dropped or the process ends. Fails at once where another holder has it.
    fn lock(&self, path: &Path) -> Result<FileLock>;

    /// Reads from several files in one submission, with up to `queue_depth` reads in flight at a
    /// time. Every request's `read` is set; a request that begins beyond the end reads 0 bytes.
    ///
    /// # Errors
    /// The first failure; the buffers' contents are then unspecified.
    fn read_batch(&self, requests: &mut [ReadRequest<'_>], queue_depth: usize) -> Result<()>;

    /// As [`FileSystem::read_batch`], and sets for each request how long it took from its submission to
    /// the device until it was seen to be complete; zero where it needed no device read. This default
    /// performs one request at a time.
    ///
    /// # Panics
    /// Where there are fewer `latencies` than requests.
    fn read_batch_timed(
        &self,
        requests: &mut [ReadRequest<'_>],
        _queue_depth: usize,
        latencies: &mut [Duration],
    ) -> Result<()> {
        assert!(latencies.len() >= requests.len(), "each request is timed");
        for (request, latency) in requests.iter_mut().zip(latencies) {
            let submitted = Instant::now();
            request.read = request.file.read_at(request.offset, request.buf)?;
            *latency = submitted.elapsed();
        }
        Ok(())
    }

    /// Space in bytes.
    fn space(&self) -> Space;

    /// What was sent to the device so far.
    fn counters(&self) -> DeviceCounters;

    /// The unit in bytes in which synced appends reach the device: the device's logical block.
    fn write_unit(&self) -> u64;

    /// Bytes of memory that reading ahead of readers and writing behind appends take at most. This
    /// default: none.
    fn buffer_memory(&self) -> u64 {
        0
    }

    /// Lowers [`FileSystem::buffer_memory`] to `bytes`, as far as it is not lower already: for an owner
    /// who keeps the memory of a process under a limit. What is held beyond that now goes as
    /// readers and writers go on. This default does nothing.
    fn limit_buffer_memory(&self, _bytes: u64) {}
}

/// An open file. Appends of several threads are serialised by the file; reads run beside them.
pub trait File: Send + Sync + fmt::Debug {
    /// Appends `data` and returns the offset at which it begins.
    ///
    /// Not durable until [`File::fdatasync`] or [`File::fsync`].
    fn append(&self, data: &[u8]) -> Result<u64> {
        self.append_vectored(&[IoSlice::new(data)])
    }

    /// Appends the concatenation of `parts` in one step and returns the offset of the first.
    fn append_vectored(&self, parts: &[IoSlice<'_>]) -> Result<u64>;

    /// Appends `parts` and makes them, and all bytes before them, durable: [`File::append`] and
    /// [`File::fdatasync`] in one. On a LavaFS file with [`TailPolicy::Seal`], calls of several threads are in
    /// flight at the same time, and are acknowledged in the order of their offsets.
    fn append_durable(&self, parts: &[IoSlice<'_>]) -> Result<u64> {
        let offset = self.append_vectored(parts)?;
        self.fdatasync()?;
        Ok(offset)
    }

    /// Makes all appended bytes durable, but not the size: after a crash the size may be
    /// [`FileSize::Between`]. In steady state one device write and one flush.
    ///
    /// A file with [`TailPolicy::Seal`] is padded with zeros to the write unit first, and the
    /// padding counts towards its size.
    fn fdatasync(&self) -> Result<()>;

    /// Makes all appended bytes and the exact size durable.
    fn fsync(&self) -> Result<()>;

    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file. Sees every
    /// completed append, synced or not. After a crash it stops at [`FileSize::lower`].
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize>;

    /// Reads like [`File::read_at`] but up to [`FileSize::upper`]: for an engine that looks for
    /// the end of its records after a crash. What lies beyond the lower bound is unverified; the
    /// caller's checksums, seeded with [`File::generation`], must tell.
    fn read_unverified(&self, offset: u64, buf: &mut [u8]) -> Result<usize>;

    /// What is known of the size. Exact in the process that appended.
    fn size(&self) -> FileSize;

    /// Ends an uncertain size: the file is `size` bytes long, within the bounds of
    /// [`File::size`], and the size is durable on return. Appends then continue there, and the
    /// generation stays. On an exact size it is a truncation that is durable on return: for an
    /// engine that drops a torn record.
    fn settle(&self, size: u64) -> Result<()>;

    /// Cuts the file to `size` bytes, at most its present size. Durable after `fsync`.
    fn truncate(&self, size: u64) -> Result<()>;

    /// The generation of the file's bytes. See [`Generation`].
    fn generation(&self) -> Generation;

    /// For implementations of [`FileSystem::read_batch`] to recognise their own files.
    fn as_any(&self) -> &dyn Any;
}

/// How a new file is made.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Bytes the file is expected to reach; space for them is taken at once, and what is not
    /// used returns at close. Default 0: unknown, extents double as the file grows.
    pub expected_size: u64,
    /// What a sync does with a last, partial block. Default [`TailPolicy::Pack`].
    pub tail: TailPolicy,
}

/// What a sync does with a last, partial logical block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TailPolicy {
    /// Write it, and write it again when it has grown: no space is lost.
    #[default]
    Pack,
    /// Pad it with zeros and never write it again: one write per block, and several synced
    /// appends may be in flight.
    Seal,
}

/// What is known of a file or directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Metadata {
    /// File, directory or symbolic link.
    pub kind: FileKind,
    /// Size in bytes; 0 for directories.
    pub size: FileSize,
    /// Bytes of the device allocated to it.
    pub allocated: u64,
    /// Inode number.
    pub ino: u64,
    /// Number of names.
    pub links: u32,
    /// Time of the last change of contents, nanoseconds since 1970-01-01 UTC.
    pub modified_ns: i64,
}

/// Kind of an object in the namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// The name, without a slash. Bytes that are not UTF-8 are kept.
    pub name: std::ffi::OsString,
    /// What it names.
    pub kind: FileKind,
}

/// Space of a filesystem in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// All bytes that files can use.
    pub total: u64,
    /// Bytes not used.
    pub free: u64,
}

/// One read of a batch.
#[derive(Debug)]
pub struct ReadRequest<'a> {
    /// The file, of the filesystem that the batch is given to.
    pub file: &'a FileRef,
    /// Where to read, in bytes.
    pub offset: u64,
    /// Where to put it; its length is the length to read.
    pub buf: &'a mut [u8],
    /// Bytes read; set by the call.
    pub read: usize,
}

/// An advisory lock, released on drop.
pub struct FileLock {
    _guard: Box<dyn Any + Send + Sync>,
}

impl FileLock {
    /// A lock that is held for as long as `guard` lives.
    pub fn new(guard: impl Any + Send + Sync) -> Self {
        FileLock {
            _guard: Box::new(guard),
        }
    }
}

impl fmt::Debug for FileLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileLock")
    }
}
