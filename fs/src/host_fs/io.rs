//! Reads and writes of kernel files in the unit they ask for, counted.

use std::cell::RefCell;
use std::fs::{File as KernelFile, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::device::counters::AtomicCounters;
use crate::device::sys::{DirectAlignment, direct_alignment};
use crate::device::{AlignedBuf, BUFFER_ALIGN};
use crate::error::{Error, PathError, Result};
use crate::types::{align_down, align_up};

/// Bytes of the per-thread buffer through which unaligned direct reads go.
const BOUNCE_LEN: usize = 256 << 10;

/// Write unit where the kernel does not say, and in buffered mode: what every disk can do.
const DEFAULT_UNIT: u64 = 4096;

thread_local! {
    static BOUNCE: RefCell<AlignedBuf> = RefCell::new(AlignedBuf::zeroed(0));
}

/// How the files below one directory are read and written.
#[derive(Debug)]
pub(super) struct KernelIo {
    /// Alignment of offsets and lengths: the device's block in direct mode, 1 in buffered mode.
    pub(super) unit: u64,
    /// Alignment of memory, 1 in buffered mode.
    memory: u64,
    /// Unit that sealed tails are padded to.
    pub(super) write_unit: u64,
    /// Everything sent to the kernel's files.
    pub(super) counters: AtomicCounters,
}

impl KernelIo {
    /// Finds out whether files in `root` accept direct I/O, and in which unit.
    pub(super) fn probe(root: &Path) -> Result<KernelIo> {
        let direct = probe_direct(root).map_err(|error| path_error("probe", root, error))?;
        let counters = AtomicCounters::default();
        Ok(match direct {
            Some(alignment) => KernelIo {
                unit: alignment.offset,
                memory: alignment.memory,
                write_unit: alignment.offset,
                counters,
            },
            None => {
                tracing::warn!(
                    directory = %root.display(),
                    "the filesystem refuses direct I/O: its files are buffered by the kernel"
                );
                KernelIo {
                    unit: 1,
                    memory: 1,
                    write_unit: DEFAULT_UNIT,
                    counters,
                }
            }
        })
    }

    pub(super) fn is_direct(&self) -> bool {
        self.unit > 1
    }

    /// True where `data` can be given to the kernel without a copy.
    pub(super) fn is_memory_aligned(&self, data: &[u8]) -> bool {
        (data.as_ptr().addr() as u64).is_multiple_of(self.memory)
    }

    /// Writes all of `data`, a whole number of units, at `offset`.
    pub(super) fn write(&self, file: &KernelFile, mut offset: u64, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        while !rest.is_empty() {
            match file.write_at(rest, offset) {
                Ok(written) => {
                    self.counters.wrote(written as u64);
                    let whole = align_down(written as u64, self.unit);
                    if whole == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    offset += whole;
                    rest = &rest[whole as usize..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads up to `buf.len()` bytes at any offset; fewer only at the end of the kernel's file.
    pub(super) fn read(&self, file: &KernelFile, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        if offset.is_multiple_of(self.unit) && self.is_memory_aligned(buf) {
            let whole = align_down(buf.len() as u64, self.unit) as usize;
            done = self.read_aligned(file, offset, &mut buf[..whole])?;
            if done < whole {
                return Ok(done);
            }
        }
        if done < buf.len() {
            done += self.read_bounced(file, offset + done as u64, &mut buf[done..])?;
        }
        Ok(done)
    }

    /// Reads into a buffer that meets the alignment.
    fn read_aligned(&self, file: &KernelFile, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => {
                    self.counters.read(read as u64);
                    done += read;
                    // A direct read ends between units only at the end of the file.
                    if !(read as u64).is_multiple_of(self.unit) {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Reads through this thread's aligned buffer.
    fn read_bounced(&self, file: &KernelFile, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        BOUNCE.with_borrow_mut(|bounce| {
            if bounce.is_empty() {
                *bounce = AlignedBuf::zeroed(BOUNCE_LEN);
            }
            let mut done = 0;
            while done < buf.len() {
                let at = offset + done as u64;
                let begin = align_down(at, self.unit);
                let skip = (at - begin) as usize;
                let end = align_up(at + (buf.len() - done) as u64, self.unit);
                let len = usize::try_from(end - begin)
                    .unwrap_or(usize::MAX)
                    .min(BOUNCE_LEN);
                let read = self.read_aligned(file, begin, &mut bounce[..len])?;
                let useful = read.saturating_sub(skip).min(buf.len() - done);
                buf[done..done + useful].copy_from_slice(&bounce[skip..skip + useful]);
                done += useful;
                if read < len {
                    break;
                }
            }
            Ok(done)
        })
    }
}

/// The alignment of direct I/O on files in `root`; `None` where there is no direct I/O.
fn probe_direct(root: &Path) -> io::Result<Option<DirectAlignment>> {
    let open = |flags| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(flags);
        options
    };
    let file = match open(libc::O_TMPFILE | libc::O_DIRECT).open(root) {
        Ok(file) => file,
        // No direct I/O, or no unnamed files: a named one tells which.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)
            ) =>
        {
            let path = root.join(format!(".lavafs-probe-{}", std::process::id()));
            let named = open(libc::O_DIRECT).create(true).truncate(true).open(&path);
            let removed = std::fs::remove_file(&path);
            match named {
                Ok(file) => {
                    removed?;
                    file
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    let alignment = direct_alignment(&file)?.unwrap_or(DirectAlignment {
        memory: BUFFER_ALIGN as u64,
        offset: DEFAULT_UNIT,
    });
    let alignment = DirectAlignment {
        offset: alignment.offset.max(512),
        ..alignment
    };
    if alignment.offset > BUFFER_ALIGN as u64 || alignment.memory > BUFFER_ALIGN as u64 {
        return Ok(None);
    }
    // Some filesystems accept the flag and refuse the I/O.
    let probe = AlignedBuf::zeroed(alignment.offset as usize);
    match file.write_at(&probe, 0) {
        Ok(_) => Ok(Some(alignment)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The error of a call that names `path`.
pub(super) fn path_error(op: &'static str, path: &Path, error: io::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::ENOENT) => PathError::NotFound,
        Some(libc::EEXIST) => PathError::AlreadyExists,
        Some(libc::ENOTDIR) => PathError::NotADirectory,
        Some(libc::EISDIR) => PathError::IsADirectory,
        Some(libc::ENOTEMPTY) => PathError::NotEmpty,
        Some(libc::ENAMETOOLONG) => PathError::NameTooLong,
        Some(libc::EMLINK) => PathError::TooManyLinks,
        Some(libc::ENOSPC | libc::EDQUOT) => return Error::NoSpace { needed: 0, free: 0 },
        Some(libc::EROFS) => {
            return Error::ReadOnly {
                reason: "the host filesystem is mounted read-only".into(),
            };
        }
        // A path with a NUL never reaches the kernel.
        None if error.kind() == io::ErrorKind::InvalidInput => PathError::InvalidName,
        _ => return Error::io(op, &path.to_string_lossy(), 0, error),
    };
    Error::path(path, kind)
}
