//! `HostFs`: the [`FileSystem`] trait over a directory of a kernel filesystem.
//!
//! Engines run on it where there is no device to give to LavaFS, and benchmarks compare with it.
//! It uses direct I/O where the filesystem allows it, and buffered I/O otherwise (one warning);
//! never both on one file.
//!
//! What differs from LavaFS:
//! - Sizes are always [`FileSize::Exact`](crate::FileSize): the kernel keeps them. In direct mode a crash
//!   between the padded write of a last, partial block and the `ftruncate` that follows it leaves
//!   less than one write unit of zeros at the end.
//! - [`File::settle`](crate::File::settle) therefore also accepts a size below the exact one: it cuts the file and
//!   keeps its generation, so an engine can drop a torn tail and go on behind valid records.
//! - A file's generation and tail policy live in its extended attribute `user.lavafs` (16 bytes,
//!   little-endian: u64 generation, u8 tail policy, 0 pack or 1 seal, 7 bytes zero). Generations
//!   are 64 random bits, because neither an inode number nor a birth time is unique: both repeat
//!   when a file is replaced within one tick of the clock. A file without the attribute (made by
//!   another program, or left by a crash before anything of it was synced) is given one when
//!   opened. Truncating cuts first and renews the generation then: a crash in between leaves
//!   the old prefix under the old generation. Where the filesystem refuses user attributes, the
//!   generation is a hash of inode number, inode version and birth time, and truncating does not
//!   change it; a kernel filesystem shows no byte of an older file anyway.
//! - Paths cannot leave the directory by `..`; symbolic links below it are not followed as the
//!   last component but are not otherwise checked: the directory is trusted.
//! - A failed write, cut or sync is final for its file, and a failed sync of a directory for
//!   every later sync; other files can still be changed, since a kernel tells such a failure of one
//!   file. On LavaFS the whole filesystem turns read-only.
//! - Unused preallocated space returns at close, or earlier at a sync that has to cut padding.
//!
//! Lock order: `Files::open` and `Names` are leaves; a file's locks are told in `file`.

mod file;
mod io;
mod names;
mod tail;

use std::ffi::CStr;
use std::fs::{File as KernelFile, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::sys::statvfs::statvfs;

use self::file::{Begin, FileKey, Files, HostFile};
use self::io::{KernelIo, path_error};
use self::names::Names;
use crate::device::DeviceCounters;
use crate::device::sys::{get_xattr, inode_version, set_xattr};
use crate::error::{Error, PathError, Result};
use crate::types::Generation;
use crate::vfs::{
    CreateOptions, DirEntry, FileKind, FileLock, FileRef, FileSystem, Metadata, ReadRequest, Space,
    TailPolicy,
};

/// Extended attribute of each file; see the module's words.
const ATTRIBUTE: &CStr = c"user.lavafs";
const ATTRIBUTE_LEN: usize = 16;

/// A directory of a kernel filesystem as a [`FileSystem`].
#[derive(Debug)]
pub struct HostFs {
    root: PathBuf,
    io: Arc<KernelIo>,
    files: Arc<Files>,
    names: Arc<Names>,
}

impl HostFs {
    /// Opens the directory `dir`, making it and its parents where they are missing.
    ///
    /// # Errors
    /// [`Error::Path`] where `dir` is not a directory, [`Error::Io`] where it cannot be used.
    pub fn open(dir: &Path) -> Result<HostFs> {
        std::fs::create_dir_all(dir).map_err(|error| path_error("create directory", dir, error))?;
        let root = dir
            .canonicalize()
            .map_err(|error| path_error("open directory", dir, error))?;
        let io = KernelIo::probe(&root)?;
        Ok(HostFs {
            io: Arc::new(io),
            files: Arc::default(),
            names: Arc::new(Names::new(root.clone())),
            root,
        })
    }

    /// True where files are read and written with O_DIRECT.
    pub fn is_direct(&self) -> bool {
        self.io.is_direct()
    }

    /// The host path of `path`, which must stay inside the root.
    fn host_path(&self, path: &Path) -> Result<PathBuf> {
        let mut host = self.root.clone();
        for component in path.components() {
            match component {
                Component::RootDir => {}
                Component::Normal(name) => host.push(name),
                _ => return Err(Error::path(path, PathError::InvalidName)),
            }
        }
        Ok(host)
    }

    /// As `host_path`, for an object that must have a name.
    fn named_path(&self, path: &Path) -> Result<PathBuf> {
        let host = self.host_path(path)?;
        if host == self.root {
            return Err(Error::path(path, PathError::InvalidName));
        }
        Ok(host)
    }

    fn open_options(&self) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let direct = if self.io.is_direct() {
            libc::O_DIRECT
        } else {
            0
        };
        options.custom_flags(direct | libc::O_NOFOLLOW);
        options
    }

    /// The shared handle of an open kernel file.
    fn handle(&self, path: &Path, kernel: KernelFile, begin: Begin) -> Result<FileRef> {
        let stat = kernel
            .metadata()
            .map_err(|error| path_error("stat", path, error))?;
        if stat.is_dir() {
            return Err(Error::path(path, PathError::IsADirectory));
        }
        let key = FileKey::of(&stat);
        let handle = self.files.get_or_insert(key, || {
            let attribute = read_attribute(&kernel, path)?;
            Ok(HostFile::new(
                path,
                kernel,
                &stat,
                begin,
                attribute,
                &self.io,
                &self.files,
                &self.names,
            ))
        })?;
        Ok(handle)
    }
}

/// Generation and tail policy of a file; `persisted` is false where the filesystem keeps neither.
#[derive(Clone, Copy, Debug)]
struct Attribute {
    generation: Generation,
    tail: TailPolicy,
    persisted: bool,
}

impl Attribute {
    /// A fresh generation: 64 bits of a random UUID, its two halves folded so that the bits that
    /// are fixed in a UUID are random too.
    fn fresh(tail: TailPolicy) -> Attribute {
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        Attribute {
            generation: Generation(high ^ low),
            tail,
            persisted: true,
        }
    }

    fn write(&self, kernel: &KernelFile) -> std::io::Result<()> {
        let mut value = [0; ATTRIBUTE_LEN];
        value[..8].copy_from_slice(&self.generation.0.to_le_bytes());
        value[8] = u8::from(self.tail == TailPolicy::Seal);
        set_xattr(kernel, ATTRIBUTE, &value)
    }
}

/// Reads a file's attribute, or gives it one.
fn read_attribute(kernel: &KernelFile, path: &Path) -> Result<Attribute> {
    let mut value = [0; ATTRIBUTE_LEN];
    match get_xattr(kernel, ATTRIBUTE, &mut value) {
        Ok(ATTRIBUTE_LEN) => {
            let (generation, rest) = value.split_first_chunk().expect("16 bytes hold 8");
            let tail = match rest[0] {
                0 => TailPolicy::Pack,
                1 => TailPolicy::Seal,
                other => return Err(bad_attribute(path, format!("tail policy {other}"))),
            };
            Ok(Attribute {
                generation: Generation(u64::from_le_bytes(*generation)),
                tail,
                persisted: true,
            })
        }
        Ok(len) => Err(bad_attribute(path, format!("{len} bytes long"))),
        Err(error) if error.raw_os_error() == Some(libc::ERANGE) => Err(bad_attribute(
            path,
            format!("over {ATTRIBUTE_LEN} bytes long"),
        )),
        Err(error) if error.raw_os_error() == Some(libc::ENODATA) => {
            give_attribute(kernel, path, TailPolicy::Pack)
        }
        Err(error) if no_attributes(&error) => inode_attribute(kernel, path, TailPolicy::Pack),
        Err(error) => Err(path_error("read attribute", path, error)),
    }
}

/// Writes a fresh attribute to a file that has none.
fn give_attribute(kernel: &KernelFile, path: &Path, tail: TailPolicy) -> Result<Attribute> {
    let attribute = Attribute::fresh(tail);
    match attribute.write(kernel) {
        Ok(()) => Ok(attribute),
        Err(error) if no_attributes(&error) => inode_attribute(kernel, path, tail),
        Err(error) => Err(path_error("set attribute", path, error)),
    }
}

/// The attribute of a file on a filesystem that keeps none.
fn inode_attribute(kernel: &KernelFile, path: &Path, tail: TailPolicy) -> Result<Attribute> {
    let stat = kernel
        .metadata()
        .map_err(|error| path_error("stat", path, error))?;
    let born = stat
        .created()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_nanos());
    let mut identity = [0; 28];
    identity[..8].copy_from_slice(&stat.ino().to_le_bytes());
    identity[8..12].copy_from_slice(&inode_version(kernel).to_le_bytes());
    identity[12..].copy_from_slice(&born.to_le_bytes());
    Ok(Attribute {
        generation: Generation(xxhash_rust::xxh3::xxh3_64(&identity)),
        tail,
        persisted: false,
    })
}

fn no_attributes(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EPERM | libc::ENOSYS)
    )
}

fn bad_attribute(path: &Path, detail: String) -> Error {
    let detail = format!(
        "{} of {}: {detail}",
        ATTRIBUTE.to_string_lossy(),
        path.display()
    );
    Error::corrupt("file attribute", 0, detail)
}

impl FileSystem for HostFs {
    fn create(&self, path: &Path, options: &CreateOptions) -> Result<FileRef> {
        let host = self.named_path(path)?;
        let kernel = self
            .open_options()
            .create_new(true)
            .open(&host)
            .map_err(|error| path_error("create", path, error))?;
        self.names.changed(&host);
        let key = kernel.metadata().map(|stat| FileKey::of(&stat)).ok();
        let made = give_attribute(&kernel, path, options.tail).and_then(|_| {
            if options.expected_size > 0 {
                preallocate(&kernel, path, options.expected_size)?;
            }
            let begin = Begin {
                tail: options.tail,
                preallocated: options.expected_size > 0,
            };
            self.handle(path, kernel, begin)
        });
        if made.is_err()
            && let Err(error) = self.names.remove(&host, key)
        {
            tracing::warn!(path = %host.display(), %error, "a file that could not be made stays");
        }
        made
    }

    fn open(&self, path: &Path) -> Result<FileRef> {
        let host = self.named_path(path)?;
        let kernel = self
            .open_options()
            .open(&host)
            .map_err(|error| path_error("open", path, error))?;
        let begin = Begin {
            tail: TailPolicy::Pack,
            preallocated: false,
        };
        self.handle(path, kernel, begin)
    }

    fn metadata(&self, path: &Path) -> Result<Metadata> {
        let host = self.host_path(path)?;
        let stat =
            std::fs::symlink_metadata(&host).map_err(|error| path_error("stat", path, error))?;
        let kind = file_kind(stat.file_type());
        let size = match self.files.get(FileKey::of(&stat)) {
            Some(file) => file.current_size(),
            None if kind == FileKind::Directory => 0,
            None => stat.len(),
        };
        Ok(Metadata {
            kind,
            size: crate::types::FileSize::Exact(size),
            allocated: stat.blocks() * 512,
            ino: stat.ino(),
            links: u32::try_from(stat.nlink()).unwrap_or(u32::MAX),
            modified_ns: stat.mtime().saturating_mul(1_000_000_000) + stat.mtime_nsec(),
        })
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        let failed = |error| path_error("list", dir, error);
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(self.host_path(dir)?).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A name that vanishes between the two calls is simply not listed.
            let kind = match entry.file_type() {
                Ok(file_type) => file_kind(file_type),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            entries.push(DirEntry {
                name: entry.file_name(),
                kind,
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        let host = self.host_path(dir)?;
        let inside = host
            .strip_prefix(&self.root)
            .expect("it begins with the root");
        let mut made = self.root.clone();
        for name in inside {
            made.push(name);
            match std::fs::create_dir(&made) {
                Ok(()) => self.names.changed(&made),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    let stat = std::fs::metadata(&made);
                    if !stat.is_ok_and(|stat| stat.is_dir()) {
                        return Err(Error::path(dir, PathError::NotADirectory));
                    }
                }
                Err(error) => return Err(path_error("create directory", dir, error)),
            }
        }
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> Result<()> {
        let host = self.named_path(dir)?;
        std::fs::remove_dir(&host).map_err(|error| path_error("remove directory", dir, error))?;
        self.names.changed(&host);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let (host_from, host_to) = (self.named_path(from)?, self.named_path(to)?);
        let renamed = self.names.rename(&host_from, &host_to);
        renamed.map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => Error::path(to, PathError::IntoItself),
            Some(libc::EISDIR | libc::ENOTEMPTY | libc::EEXIST) => path_error("rename", to, error),
            _ => path_error("rename", from, error),
        })
    }

    fn link(&self, existing: &Path, new: &Path) -> Result<()> {
        let (host, host_new) = (self.named_path(existing)?, self.named_path(new)?);
        std::fs::hard_link(&host, &host_new).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) if host.is_dir() => Error::path(existing, PathError::IsADirectory),
            Some(libc::EEXIST) => Error::path(new, PathError::AlreadyExists),
            _ => path_error("link", existing, error),
        })?;
        self.names.changed(&host_new);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> Result<()> {
        let host = self.named_path(path)?;
        std::fs::remove_file(&host).map_err(|error| path_error("unlink", path, error))?;
        self.names.changed(&host);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        let host = self.host_path(dir)?;
        self.names.sync_one(dir, &host, &self.io)
    }

    fn lock(&self, path: &Path) -> Result<FileLock> {
        let host = self.named_path(path)?;
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&host)
                .map_err(|error| path_error("lock", path, error))?;
            // flock belongs to the open file, so it excludes other holders of this process too.
            let lock =
                Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
                    if errno == nix::errno::Errno::EWOULDBLOCK {
                        Error::path(path, PathError::Locked)
                    } else {
                        path_error("lock", path, errno.into())
                    }
                })?;
            // The name may have been removed or replaced since it was opened: a lock on a file
            // that nobody else can find excludes nobody.
            let locked = lock
                .metadata()
                .map_err(|error| path_error("lock", path, error))?;
            let named = std::fs::symlink_metadata(&host);
            if named.is_ok_and(|named| FileKey::of(&named) == FileKey::of(&locked)) {
                return Ok(FileLock::new(lock));
            }
        }
    }

    /// One read after another: the kernel's readahead does the rest.
    fn read_batch(&self, requests: &mut [ReadRequest<'_>], _queue_depth: usize) -> Result<()> {
        for request in requests {
            assert!(
                request.file.as_any().is::<HostFile>(),
                "every file of a batch belongs to this filesystem"
            );
            request.read = request.file.read_at(request.offset, request.buf)?;
        }
        Ok(())
    }

    fn space(&self) -> Space {
        match statvfs(&self.root) {
            Ok(stat) => Space {
                total: stat.blocks() * stat.fragment_size(),
                free: stat.blocks_available() * stat.fragment_size(),
            },
            Err(error) => {
                tracing::warn!(root = %self.root.display(), %error, "the space left is unknown");
                Space { total: 0, free: 0 }
            }
        }
    }

    fn counters(&self) -> DeviceCounters {
        self.io.counters.snapshot()
    }

    fn write_unit(&self) -> u64 {
        self.io.write_unit
    }
}

/// Takes the space for a file that is expected to reach `size` bytes.
fn preallocate(kernel: &KernelFile, path: &Path, size: u64) -> Result<()> {
    let len = i64::try_from(size).map_err(|_| Error::Invalid {
        what: format!("expected size {size} of {}", path.display()),
    })?;
    match fallocate(kernel, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, len) {
        // Where space cannot be taken in advance it is taken as the file grows.
        Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(path_error("allocate", path, errno.into())),
    }
}

fn file_kind(file_type: std::fs::FileType) -> FileKind {
    if file_type.is_dir() {
        FileKind::Directory
    } else if file_type.is_symlink() {
        FileKind::Symlink
    } else {
        FileKind::File
    }
}
