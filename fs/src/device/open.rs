//! Opening devices and images: who may, how large they are, and how they are driven.
//!
//! The engine is io_uring where the kernel permits it, else plain calls. For tests and debugging
//! the environment variable `LAVAFS_IO` forces one: `uring` or `pread`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counters::AtomicCounters;
use super::file::FileDevice;
use super::holder;
use super::raw::{Raw, RawKind};
use super::sys::{block_device_size, direct_alignment, try_lock_exclusive};
use super::uring::UringDevice;
use super::{BUFFER_ALIGN, BlockDevice, Geometry};
use crate::error::{Error, PathError, Result};
use crate::types::{BLOCK_SIZE, align_down};

/// Environment variable that forces an engine.
const ENGINE_VARIABLE: &str = "LAVAFS_IO";

/// How long a claim is tried again while nobody can be seen to hold the device.
const GONE_HOLDER_GRACE: Duration = Duration::from_secs(2);

/// What a device is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Exclusively, for reading and writing.
    ReadWrite,
    /// For reading, beside whoever owns it. Nothing is claimed.
    ReadOnly,
}

/// How I/O is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Engine {
    /// io_uring where it is permitted.
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Plain system calls.
    Pread,
}

/// Opens the block device or image at `path`.
///
/// An image's size is its file's, rounded down to 4096 bytes. I/O is direct; an image on a
/// filesystem that refuses direct I/O is used buffered throughout, with a warning.
///
/// # Errors
/// [`Error::Path`] where it is missing or a directory, [`Error::InUse`] where another process (or
/// this one) owns it, [`Error::Unsupported`] where it is neither device nor regular file or its
/// blocks are larger than 4096 bytes, [`Error::Invalid`] for an unknown engine in `LAVAFS_IO`,
/// [`Error::Io`] for the rest.
pub fn open(path: &Path, mode: OpenMode) -> Result<Arc<dyn BlockDevice>> {
    open_with(path, mode, forced_engine()?)
}

/// As [`open`], with the engine given.
pub(super) fn open_with(
    path: &Path,
    mode: OpenMode,
    engine: Engine,
) -> Result<Arc<dyn BlockDevice>> {
    drive(claim(path, mode)?, engine)
}

/// Creates an image of `size` bytes, rounded down to 4096, without taking the space, and opens it
/// exclusively. With `overwrite` an existing image is emptied first.
///
/// # Errors
/// As [`open`]; [`Error::Path`] where the file exists and `overwrite` is not set.
pub fn create_image(path: &Path, size: u64, overwrite: bool) -> Result<Arc<dyn BlockDevice>> {
    let engine = forced_engine()?;
    let created = OpenOptions::new().write(true).create_new(true).open(path);
    match created {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && overwrite => {}
        Err(error) => return Err(open_error(path, error)),
    }
    let mut raw = claim(path, OpenMode::ReadWrite)?;
    if raw.kind == RawKind::Block {
        return Err(Error::Invalid {
            what: format!("a size for {}: it is a device and has one", raw.name),
        });
    }
    let size = align_down(size, BLOCK_SIZE);
    raw.file
        .set_len(0)
        .and_then(|()| raw.file.set_len(size))
        .map_err(|error| Error::io("resize", &raw.name, size, error))?;
    raw.geometry.size = size;
    drive(raw, engine)
}

fn forced_engine() -> Result<Engine> {
    engine_named(std::env::var(ENGINE_VARIABLE).unwrap_or_default().as_str())
}

pub(super) fn engine_named(name: &str) -> Result<Engine> {
    match name {
        "" => Ok(Engine::Auto),
        "uring" => Ok(Engine::Uring),
        "pread" => Ok(Engine::Pread),
        other => Err(Error::Invalid {
            what: format!("{ENGINE_VARIABLE}={other}: it is uring or pread"),
        }),
    }
}

/// Gives the opened file to an engine.
fn drive(raw: Raw, engine: Engine) -> Result<Arc<dyn BlockDevice>> {
    if engine == Engine::Pread {
        return Ok(Arc::new(FileDevice::new(raw)));
    }
    match UringDevice::new(raw) {
        Ok(device) => Ok(Arc::new(device)),
        Err((raw, error)) if engine == Engine::Uring => {
            Err(Error::io("set up io_uring for", &raw.name, 0, error))
        }
        Err((raw, error)) => {
            tracing::info!(device = %raw.name, %error, "no io_uring: using plain system calls");
            Ok(Arc::new(FileDevice::new(raw)))
        }
    }
}

/// Opens `path` and claims it as `mode` says, waiting a moment for a holder that is no process
/// any more.
///
/// A process that used io_uring and was killed is gone, and waited for, before the kernel has
/// taken its rings down; until then the rings hold its files open and locked. So a claim that
/// fails although no process has the device open is tried again.
fn claim(path: &Path, mode: OpenMode) -> Result<Raw> {
    let started = Instant::now();
    loop {
        match claim_now(path, mode) {
            Err(Error::InUse { owner, .. })
                if owner == holder::UNKNOWN && started.elapsed() < GONE_HOLDER_GRACE =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

/// Opens `path`, claims it as `mode` says and finds out its geometry.
fn claim_now(path: &Path, mode: OpenMode) -> Result<Raw> {
    let stat = std::fs::metadata(path).map_err(|error| open_error(path, error))?;
    let file_type = stat.file_type();
    let kind = if file_type.is_block_device() {
        RawKind::Block
    } else if file_type.is_file() {
        RawKind::Image
    } else if file_type.is_dir() {
        return Err(Error::path(path, PathError::IsADirectory));
    } else {
        return Err(Error::Unsupported {
            what: format!("{}: neither a block device nor a file", path.display()),
        });
    };
    let (file, direct) = open_file(path, kind, mode)?;
    let name = path.display().to_string();
    if kind == RawKind::Image && mode == OpenMode::ReadWrite {
        match try_lock_exclusive(&file) {
            Ok(true) => {}
            Ok(false) => {
                // Closed first, or this process would be found as the holder.
                drop(file);
                return Err(in_use(path));
            }
            Err(error) => return Err(open_error(path, error)),
        }
    }
    let geometry = match kind {
        RawKind::Block => block_geometry(&file),
        RawKind::Image => image_geometry(&file, direct),
    };
    let geometry = geometry.map_err(|error| Error::io("open", &name, 0, error))?;
    if !geometry.logical_block.is_power_of_two() || geometry.logical_block > BUFFER_ALIGN as u64 {
        return Err(Error::Unsupported {
            what: format!("{name}: blocks of {} bytes", geometry.logical_block),
        });
    }
    Ok(Raw {
        file,
        name,
        kind,
        geometry,
        writable: mode == OpenMode::ReadWrite,
        counters: AtomicCounters::default(),
    })
}

/// Opens for direct I/O, or buffered where an image's filesystem refuses it.
fn open_file(path: &Path, kind: RawKind, mode: OpenMode) -> Result<(File, bool)> {
    let exclusive = match (kind, mode) {
        (RawKind::Block, OpenMode::ReadWrite) => libc::O_EXCL,
        _ => 0,
    };
    let open = |flags: i32| {
        OpenOptions::new()
            .read(true)
            .write(mode == OpenMode::ReadWrite)
            .custom_flags(flags | exclusive)
            .open(path)
    };
    match open(libc::O_DIRECT) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && kind == RawKind::Image => {
            let file = open(0).map_err(|error| open_error(path, error))?;
            tracing::warn!(
                image = %path.display(),
                "its filesystem refuses direct I/O: the image is buffered by the kernel"
            );
            Ok((file, false))
        }
        Err(error) => Err(open_error(path, error)),
    }
}

fn block_geometry(file: &File) -> io::Result<Geometry> {
    let (size, logical_block) = block_device_size(file)?;
    Ok(Geometry {
        size: size - size % logical_block.max(1),
        logical_block,
        volatile_cache: has_volatile_cache(file.metadata()?.rdev()),
    })
}

fn image_geometry(file: &File, direct: bool) -> io::Result<Geometry> {
    let alignment = if direct {
        direct_alignment(file)?
    } else {
        None
    };
    Ok(Geometry {
        size: align_down(file.metadata()?.len(), BLOCK_SIZE),
        logical_block: alignment.map_or(BLOCK_SIZE, |alignment| alignment.offset.max(512)),
        // The disk below is not known.
        volatile_cache: true,
    })
}

/// Whether completed writes may be lost in a power cut; true where the kernel does not say.
fn has_volatile_cache(rdev: u64) -> bool {
    let device = format!("/sys/dev/block/{}:{}", libc::major(rdev), libc::minor(rdev));
    // A partition's queue is that of its disk, one directory up.
    ["queue/write_cache", "../queue/write_cache"]
        .iter()
        .find_map(|queue| std::fs::read_to_string(format!("{device}/{queue}")).ok())
        .is_none_or(|cache| cache.trim() != "write through")
}

fn in_use(path: &Path) -> Error {
    Error::InUse {
        target: path.display().to_string(),
        owner: holder::find(path),
    }
}

fn open_error(path: &Path, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOENT) => Error::path(path, PathError::NotFound),
        Some(libc::EEXIST) => Error::path(path, PathError::AlreadyExists),
        Some(libc::EISDIR) => Error::path(path, PathError::IsADirectory),
        Some(libc::ENOTDIR) => Error::path(path, PathError::NotADirectory),
        Some(libc::EBUSY) => in_use(path),
        Some(libc::EROFS) => Error::ReadOnly {
            reason: format!("{} cannot be written", path.display()).into(),
        },
        _ => Error::io("open", &path.to_string_lossy(), 0, error),
    }
}
