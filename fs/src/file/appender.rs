//! Appending and syncing: bytes go into a tail buffer, and from there to the file's extents in
//! whole logical blocks.
//!
//! What reaches the device, and when:
//! - a full buffer is written behind, volatile (`behind.rs`); large aligned appends go straight from the caller's
//!   memory;
//! - `fdatasync` writes the rest of the tail. If that is one write and all earlier ones are
//!   flushed, it is one durable (FUA) write and nothing else; otherwise a volatile one and a
//!   flush. No metadata, unless an extent it needs is not journaled yet, or the journal says that
//!   the size is exact (LavaStore paper, section 3.3.3);
//! - `fsync` writes the tail volatile and enqueues the size with a checksum of the bytes since
//!   the last sync, so that one flush makes both durable; with more than [`CHECKED_LEN_MAX`] such
//!   bytes it flushes first.
//!
//! A last, partial logical block is padded with zeros. Policy *pack* keeps it in the buffer and
//! writes it again when it has grown: the bytes that were durable are the same in both, so that a
//! torn rewrite loses nothing. Policy *seal* makes the padding part of the file.
//!
//! Invariants: `tail.start` is a multiple of the logical block once anything was appended, and all
//! bytes below it are on the device; reservations cover every block of the tail that has no extent.

use std::io::IoSlice;
use std::sync::atomic::Ordering;

use crate::device::{AlignedBuf, DeviceWrite, Durability};
use crate::disk::WriteTicket;
use crate::error::{Error, Result};
use crate::file::behind::Behind;
use crate::file::handle::OpenFile;
use crate::file::tail::{BUFFER_LEN_MAX, Tail};
use crate::format::op::CHECKED_LEN_MAX;
use crate::types::{BLOCK_SIZE, align_down, align_up};
use crate::vfs::TailPolicy;

/// Appends of at least this many aligned bytes skip the buffer.
const DIRECT_LEN_MIN: usize = 64 << 10;

/// Appending state of one open file.
#[derive(Debug)]
pub(crate) struct Appender {
    /// Bytes of the tail, from its start, that are on the device already.
    pub(super) synced_end: u64,
    /// The last volatile write.
    pub(super) last_write: WriteTicket,
    /// Journal ticket without which nothing that is appended now survives: of the file's creation, its last
    /// cut, or the last exact size, which ends the file for recovery.
    pub(super) created_ticket: u64,
    /// Journal ticket of the last cut; see [`OpenFile::write_runs`].
    pub(super) cut_ticket: u64,
    /// Journal tickets of extents, as (file block where the extent begins, ticket).
    pub(super) extent_tickets: Vec<(u64, u64)>,
    /// Bytes appended since then are covered by `check_crc`, unless they became too many.
    pub(super) check_from: u64,
    pub(super) check_crc: u32,
    pub(super) reserved_blocks: u64,
    /// Bytes of journal promised for the extents of what is reserved.
    pub(super) promised: u64,
    pub(super) expected_blocks: u64,
    /// Full buffers that the device is writing.
    pub(super) behind: Behind,
    /// The file changed since it was opened, so that closing has work to do.
    pub(super) dirty: bool,
    /// The last handle was closed: allocate what is needed and no more.
    pub(super) closed: bool,
}

impl Appender {
    pub(super) fn new(size: u64, expected_size: u64, created_ticket: u64) -> Self {
        Appender {
            synced_end: size,
            last_write: WriteTicket::default(),
            created_ticket,
            // Before it was opened the file may have been cut in its last block.
            cut_ticket: if size.is_multiple_of(BLOCK_SIZE) {
                0
            } else {
                created_ticket
            },
            extent_tickets: Vec::new(),
            check_from: size,
            check_crc: 0,
            reserved_blocks: 0,
            promised: 0,
            expected_blocks: expected_size.div_ceil(BLOCK_SIZE),
            behind: Behind::default(),
            dirty: false,
            closed: false,
        }
    }

    /// The ticket that must be durable before bytes below `size` count as durable.
    pub(super) fn ticket_for(&self, size: u64) -> u64 {
        let blocks = size.div_ceil(BLOCK_SIZE);
        let needed = self
            .extent_tickets
            .iter()
            .filter(|(first, _)| *first < blocks);
        needed
            .map(|&(_, ticket)| ticket)
            .max()
            .unwrap_or(0)
            .max(self.created_ticket)
    }

    pub(super) fn extend_check(&mut self, at: u64, data: &[u8]) {
        if at + data.len() as u64 - self.check_from <= CHECKED_LEN_MAX {
            self.check_crc = crc32c::crc32c_append(self.check_crc, data);
        }
    }

    pub(super) fn restart_check(&mut self, size: u64) {
        self.check_from = size;
        self.check_crc = 0;
    }
}

impl OpenFile {
    /// Appends `parts`; see [`crate::File::append_vectored`]. Without the space for all of it, or the room in the
    /// journal, nothing is appended.
    pub(super) fn append(&self, parts: &[IoSlice<'_>]) -> Result<u64> {
        let mut appender = self.lock_to_append();
        self.core.disk.check_writable()?;
        if self.uncertain.load(Ordering::Acquire) {
            let what = "the file's size is uncertain since a crash; settle it before appending";
            return Err(Error::Invalid {
                what: what.to_owned(),
            });
        }
        appender.closed = false;
        self.align_tail(&mut appender)?;
        let offset = self.tail.read().end();
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        self.reserve(&mut appender, offset + len)?;
        let check = (appender.check_from, appender.check_crc);
        for part in parts {
            if let Err(error) = self.append_part(&mut appender, part) {
                self.take_back(&mut appender, offset);
                (appender.check_from, appender.check_crc) = check;
                return Err(error);
            }
        }
        if len > 0 {
            appender.dirty = true;
            self.note_change(self.core.now_ns());
        }
        Ok(offset)
    }

    fn append_part(&self, appender: &mut Appender, mut data: &[u8]) -> Result<()> {
        let unit = self.core.disk.unit();
        while !data.is_empty() {
            let (end, buffered) = {
                let tail = self.tail.read();
                (tail.end(), tail.len)
            };
            if buffered == 0 && data.len() >= DIRECT_LEN_MIN && AlignedBuf::is_aligned(data) {
                // A reader takes all behind the first byte in flight from memory.
                self.finish_behind(appender, 0)?;
                let (whole, rest) = data.split_at(align_down(data.len() as u64, unit) as usize);
                self.write_runs(appender, end, whole, Durability::Volatile)?;
                appender.extend_check(end, whole);
                self.tail.write().start = end + whole.len() as u64;
                appender.synced_end = end + whole.len() as u64;
                data = rest;
                continue;
            }
            let taken = self.tail.write().fill(data);
            appender.extend_check(end, &data[..taken]);
            data = &data[taken..];
            if buffered + taken == BUFFER_LEN_MAX {
                self.hand_over(appender)?;
            }
        }
        Ok(())
    }

    /// Ends the file at `end` again, behind which an append failed in its middle. No size that was journaled is beyond.
    fn take_back(&self, appender: &mut Appender, end: u64) {
        // A failure of the device is final, and leaves nothing to go on with.
        if self.finish_behind(appender, 0).is_err() || self.core.disk.check_writable().is_err() {
            return;
        }
        let _gate = self.keep_readers_out();
        let mut tail = self.tail.write();
        if tail.start <= end {
            tail.len = (end - tail.start) as usize;
        } else {
            *tail = Tail::empty_at(end);
        }
        appender.synced_end = appender.synced_end.min(end);
    }

    /// True where all appended bytes are durable, or in flight to be.
    pub(super) fn is_all_on_device(&self, appender: &Appender) -> bool {
        let tail = self.tail.read();
        let aligned = tail.start.is_multiple_of(self.core.disk.unit());
        tail.len == 0
            && aligned
            && appender.behind.is_empty()
            && !self.uncertain.load(Ordering::Acquire)
            && self.core.disk.is_flushed(appender.last_write)
    }

    /// Counts bytes up to `end`, a multiple of the logical block, as appended; they are in flight.
    pub(super) fn advance_past(&self, appender: &mut Appender, end: u64) {
        self.tail.write().start = end;
        appender.synced_end = end;
        appender.closed = false;
        appender.dirty = true;
        self.note_change(self.core.now_ns());
        appender.restart_check(end);
    }

    /// Extends a sealed file with zeros to the next logical block.
    pub(super) fn pad_if_sealed(&self, appender: &mut Appender) -> Result<()> {
        if self.policy != TailPolicy::Seal || self.uncertain.load(Ordering::Acquire) {
            return Ok(());
        }
        let end = self.tail.read().end();
        let padding = align_up(end, self.core.disk.unit()) - end;
        if padding == 0 {
            return Ok(());
        }
        self.align_tail(appender)?;
        let zeros = [0; BLOCK_SIZE as usize];
        self.reserve(appender, end + padding)?;
        self.append_part(appender, &zeros[..padding as usize])
    }

    /// Loads the last partial block into the buffer, so that it can be written again as a whole.
    pub(super) fn align_tail(&self, appender: &mut Appender) -> Result<()> {
        let unit = self.core.disk.unit();
        let size = {
            let tail = self.tail.read();
            if tail.start.is_multiple_of(unit) {
                return Ok(());
            }
            tail.start
        };
        let start = align_down(size, unit);
        let mut block = AlignedBuf::zeroed(unit as usize);
        self.read_device(start, &mut block)?;
        let mut tail = self.tail.write();
        *tail = Tail::empty_at(start);
        tail.fill(&block[..(size - start) as usize]);
        appender.synced_end = size;
        Ok(())
    }

    /// Writes the buffered bytes that are not on the device; whole logical blocks then leave the
    /// buffer, a partial one stays.
    pub(super) fn write_out(&self, appender: &mut Appender, durability: Durability) -> Result<()> {
        let unit = self.core.disk.unit();
        let (start, end) = {
            let tail = self.tail.read();
            if tail.end() <= appender.synced_end {
                return Ok(());
            }
            (tail.start, tail.end())
        };
        let padded = (align_up(end, unit) - start) as usize;
        {
            let mut tail = self.tail.write();
            let len = tail.len;
            if padded > len {
                if padded > tail.buf.len() {
                    let zeros = vec![0; padded - len];
                    tail.fill(&zeros);
                    tail.len = len;
                }
                tail.buf[len..padded].fill(0);
            }
        }
        // Only the appender, whose lock is held, changes the buffer: readers may share it while the
        // device works.
        let tail = self.tail.read();
        self.write_runs(appender, start, &tail.buf[..padded], durability)?;
        drop(tail);
        self.tail.write().advance(align_down(end, unit));
        appender.synced_end = end;
        Ok(())
    }

    /// Writes whole logical blocks at file offset `offset`, allocating what is missing.
    ///
    /// After a cut, the block in which the file now ends is written a second time with other bytes.
    /// Were that done before the cut is durable, a crash would bring back the longer file, of the
    /// old generation, with the new bytes in it.
    fn write_runs(
        &self,
        appender: &mut Appender,
        offset: u64,
        data: &[u8],
        durability: Durability,
    ) -> Result<()> {
        let end = offset + data.len() as u64;
        self.core.commit(appender.cut_ticket)?;
        self.allocate_to(appender, end)?;
        let mut writes = Vec::with_capacity(1);
        {
            let state = self.inode.state.read();
            let mut at = offset;
            while at < end {
                let block = align_down(at, BLOCK_SIZE);
                let run = state
                    .extents
                    .find(block / BLOCK_SIZE)
                    .expect("allocated above");
                let part_end = end.min(block + run.blocks * BLOCK_SIZE);
                writes.push(DeviceWrite {
                    offset: run.start * BLOCK_SIZE + (at - block),
                    data: &data[(at - offset) as usize..(part_end - offset) as usize],
                });
                at = part_end;
            }
        }
        let durability = if writes.len() == 1 {
            durability
        } else {
            Durability::Volatile
        };
        let ticket = self.core.disk.write(&writes, durability)?;
        appender.last_write = appender.last_write.max(ticket);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use crate::device::{AlignedBuf, SimDevice};
    use crate::file::LavaFile;
    use crate::{CreateOptions, FileSystem, LavaFs, MkfsOptions, MountOptions, mkfs};

    #[test]
    fn what_was_taken_back_is_not_read_and_the_file_goes_on_where_it_ended() {
        let device = Arc::new(SimDevice::new(16 << 20, 512));
        mkfs(&*device, &MkfsOptions::default()).unwrap();
        let fs = LavaFs::mount(device, &MountOptions::default()).unwrap();
        for (before, failed) in [(0, 100), (1000, 3000), (1000, 300 << 10), (5000, 1 << 20)] {
            let path = format!("/{before}-{failed}");
            let file = fs
                .create(Path::new(&path), &CreateOptions::default())
                .unwrap();
            let open = &file.as_any().downcast_ref::<LavaFile>().unwrap().open;
            file.append(&vec![1; before]).unwrap();
            file.append(&vec![2; failed]).unwrap();
            let mut bytes = AlignedBuf::zeroed(4 << 20);
            for at in 0..4 {
                file.read_at(at << 16, &mut bytes[..64 << 10]).unwrap();
            }
            open.take_back(&mut open.appender.lock(), before as u64);
            file.append(&vec![3; 400 << 10]).unwrap();
            for _ in 0..2 {
                let len = file.read_at(0, &mut bytes).unwrap();
                assert_eq!(len, before + (400 << 10));
                assert!(bytes[..before].iter().all(|&byte| byte == 1));
                assert!(bytes[before..len].iter().all(|&byte| byte == 3));
                file.fdatasync().unwrap();
            }
        }
    }
}
