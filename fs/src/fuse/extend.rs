//! Requests that change a file's length without bytes of their own: truncate, the gap before a
//! write that begins beyond the end, and fallocate.
//!
//! LavaFS has no holes. A file grows by zeros that are appended, [`ZEROS_LEN`] at a time: that costs
//! the space and the time that it seems to, and reads back as POSIX says. Whether the space is there
//! is looked at first: what cannot fit is refused with ENOSPC before a byte is written. Where another
//! writer takes the space meanwhile, or the device fails, the zeros are cut off again.
//!
//! `fallocate` with KEEP_SIZE is a hint: it fails where the space is not free now, but reserves
//! nothing. Without, it would lengthen the file, and is EINVAL: whoever reserves a length means to write
//! over it, which cannot be, and had better be told now. Not EOPNOTSUPP, upon which glibc's
//! posix_fallocate would write the zeros itself. Programs go on without, and append. Other modes are
//! EOPNOTSUPP.
//!
//! A crash in the middle leaves a file that ends somewhere in the zeros.

use crate::device::AlignedBuf;
use crate::{BLOCK_SIZE, FileSystem, SetAttributes, align_up};
use fuser::{Errno, TimeOrNow};

use super::attr::from_kernel;
use super::errno::{Answer, answer};
use super::handles::OpenFile;
use super::ops::{Mount, settle};

/// Zeros appended at a time.
const ZEROS_LEN: usize = 256 << 10;

impl Mount {
    /// Gives the file the length `size`.
    pub(super) fn truncate(&self, file: &OpenFile, size: u64) -> Answer<()> {
        self.writable()?;
        let _writing = file.writing.lock();
        self.drain(file);
        settle(file)?;
        let present = file.file.size().lower();
        file.behind.forgive();
        if size == present {
            let touch = SetAttributes {
                modified_ns: Some(from_kernel(TimeOrNow::Now)),
                ..SetAttributes::default()
            };
            return answer(
                "truncate",
                file.ino.0,
                self.fs.set_attributes(file.ino, &touch),
            );
        }
        if size > present {
            return self.extend(file, size, 0);
        }
        let cut = file.file.truncate(size);
        file.mark_unsynced();
        answer("truncate", file.ino.0, cut)
    }

    /// Appends zeros up to `end`, which lies beyond the end of the file; `more` bytes are to follow.
    /// All or nothing. The caller holds `writing`, and nothing is on its way.
    pub(super) fn extend(&self, file: &OpenFile, end: u64, more: u64) -> Answer<()> {
        let present = file.file.size().lower();
        let needed_end = end.checked_add(more).ok_or(Errno::EFBIG)?;
        self.check_room(file, present, needed_end)?;
        let zeros = AlignedBuf::zeroed(ZEROS_LEN);
        let mut at = present;
        while at < end {
            // In step with the buffer's length, so that all but the first are whole blocks.
            let part = (ZEROS_LEN as u64 - at % ZEROS_LEN as u64).min(end - at);
            if let Err(error) = file.file.append(&zeros[..part as usize]) {
                self.undo(file, present);
                return answer("extend", file.ino.0, Err(error));
            }
            at += part;
        }
        file.mark_unsynced();
        Ok(())
    }

    /// Cuts off what was appended behind `size`, after a failure. Where that fails too, zeros stay.
    pub(super) fn undo(&self, file: &OpenFile, size: u64) {
        if let Err(error) = file.file.truncate(size) {
            tracing::error!(ino = file.ino.0, %error, "zeros stay behind");
        }
    }

    /// Refuses a file that would end at `end` and cannot.
    fn check_room(&self, file: &OpenFile, size: u64, end: u64) -> Answer<()> {
        let free = self.fs.space().free;
        let allocated = match self.fs.attributes(file.ino) {
            Ok(attributes) => attributes.allocated,
            // Unlinked and open: what it has ends with its last block.
            Err(error) if error.is_not_found() => align_up(size, BLOCK_SIZE),
            Err(error) => return answer("stat", file.ino.0, Err(error)),
        };
        // Not rounded up: a multiple of the block size is no further from u64's end than a block.
        let needed = end.saturating_sub(allocated);
        if needed > free.saturating_sub(self.queued()) {
            return Err(Errno::ENOSPC);
        }
        Ok(())
    }

    /// See fallocate(2).
    pub(super) fn fallocate(&self, handle: u64, offset: u64, len: u64, mode: i32) -> Answer<()> {
        self.writable()?;
        let file = self.files.get(handle)?;
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        let _writing = file.writing.lock();
        self.drain(&file);
        let size = file.file.size().lower();
        match mode {
            0 if end > size => Err(Errno::EINVAL),
            0 => Ok(()),
            libc::FALLOC_FL_KEEP_SIZE if end > size => self.check_room(&file, size, end),
            libc::FALLOC_FL_KEEP_SIZE => Ok(()),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }
}
