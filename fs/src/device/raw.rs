//! An open device or image and the plain system calls on it, shared by both kinds of device.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};

use super::counters::AtomicCounters;
use super::sys::{block_device_discard, unlock};
use super::{Geometry, check_aligned, check_range};

/// What an open file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RawKind {
    /// A block device.
    Block,
    /// An image in a kernel filesystem.
    Image,
}

/// An open block device or image. Dropping it releases its exclusive claim or lock.
///
/// An image's lock is given up by name and not by the close: the close may not be the last one. A
/// child between fork and exec has the same open file, and so has a request of io_uring that a
/// worker of the kernel carried out, until the ring's thread next enters its ring. A block
/// device's claim has no other end than the last close.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) file: File,
    pub(super) name: String,
    pub(super) kind: RawKind,
    pub(super) geometry: Geometry,
    pub(super) writable: bool,
    pub(super) counters: AtomicCounters,
}

impl Drop for Raw {
    fn drop(&mut self) {
        if self.kind == RawKind::Image
            && self.writable
            && let Err(error) = unlock(&self.file)
        {
            tracing::warn!(image = %self.name, %error, "its lock ends with its last close");
        }
    }
}

impl Raw {
    /// Asserts that a read may be asked for.
    pub(super) fn check_read(&self, offset: u64, buf: &[u8]) {
        check_aligned(self.geometry, buf);
        check_range(self.geometry, offset, buf.len() as u64);
    }

    /// As `check_read` for a write; fails on a device opened for reading.
    pub(super) fn check_write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_aligned(self.geometry, data);
        check_range(self.geometry, offset, data.len() as u64);
        self.check_writable()
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.writable {
            Ok(())
        } else {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }
    }

    /// Reads all of `buf` by pread.
    pub(super) fn pread(&self, mut offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut rest = buf;
        while !rest.is_empty() {
            match self.file.read_at(rest, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.counters.read(read as u64);
                    offset += read as u64;
                    rest = &mut rest[read..];
                }
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes all of `data` by pwrite.
    pub(super) fn pwrite(&self, mut offset: u64, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        while !rest.is_empty() {
            match self.file.write_at(rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.counters.wrote(written as u64);
                    offset += written as u64;
                    rest = &rest[written..];
                }
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes completed writes durable.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.check_writable()?;
        self.file.sync_data()?;
        self.counters.flushed();
        Ok(())
    }

    /// Discards a range; no error where the device cannot.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.geometry, offset, len);
        self.check_writable()?;
        if len == 0 {
            return Ok(());
        }
        let done = match self.kind {
            RawKind::Block => block_device_discard(&self.file, offset, len),
            RawKind::Image => {
                let flags =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(&self.file, flags, offset.cast_signed(), len.cast_signed())
                    .map_err(io::Error::from)
            }
        };
        match done {
            Ok(()) => {
                self.counters.discarded(len);
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// True for an error after which the same call is simply made again.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use super::super::sys::try_lock_exclusive;
    use super::*;

    /// Once in some thousand times a worker of io_uring still had the image when its device was
    /// dropped, and kept it until the thread that had written went to its ring again: the same
    /// process found its own image in use for as long as that thread slept.
    #[test]
    fn a_dropped_image_is_free_although_its_open_file_lives_on() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let file = image.reopen().unwrap();
        assert!(try_lock_exclusive(&file).unwrap());
        let held_elsewhere = file.try_clone().unwrap();
        let raw = Raw {
            file,
            name: image.path().display().to_string(),
            kind: RawKind::Image,
            geometry: Geometry {
                size: 0,
                logical_block: 512,
                volatile_cache: true,
            },
            writable: true,
            counters: AtomicCounters::default(),
        };
        let next = image.reopen().unwrap();
        assert!(!try_lock_exclusive(&next).unwrap());
        drop(raw);
        assert!(try_lock_exclusive(&next).unwrap());
        drop(held_elsewhere);
    }
}
