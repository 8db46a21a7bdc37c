//! Appending and syncing: bytes go into a tail buffer, and from there to the file's extents in
//! whole logical blocks.
//!
//! What reaches the device, and when:
//! - a full buffer is written out volatile; large aligned appends go straight from the caller's
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

use parking_lot::MutexGuard;

use crate::alloc::Run;
use crate::background::Work;
use crate::device::{AlignedBuf, DeviceWrite, Durability};
use crate::disk::WriteTicket;
use crate::error::{Error, Result};
use crate::file::handle::OpenFile;
use crate::format::op::Op;
use crate::meta::journal::DataState;
use crate::types::{BLOCK_SIZE, FileSize, align_down, align_up};
use crate::vfs::TailPolicy;

/// Largest tail buffer in bytes.
const BUFFER_LEN_MAX: usize = 256 << 10;
const BUFFER_LEN_MIN: usize = 4 << 10;

/// Appends of at least this many aligned bytes skip the buffer.
const DIRECT_LEN_MIN: usize = 64 << 10;

/// Most bytes that one size record covers by checksum. Bounds what recovery reads.
const CHECKED_LEN_MAX: u64 = 64 << 10;

/// Extents grow by doubling between these bounds, in blocks: 1 MiB to 64 MiB.
const GROWTH_BLOCKS_MIN: u64 = 256;
const GROWTH_BLOCKS_MAX: u64 = 16384;

/// First extent in blocks of a file that is synced while it is small: 64 KiB.
const GROWTH_BLOCKS_FIRST: u64 = 16;

/// Blocks reserved at a time for buffered bytes.
const RESERVE_BLOCKS: u64 = 64;

/// Appending state of one open file.
#[derive(Debug)]
pub(crate) struct Appender {
    /// Bytes of the tail, from its start, that are on the device already.
    synced_end: u64,
    /// The last volatile write.
    last_write: WriteTicket,
    /// Journal ticket without which nothing of this file survives: its creation.
    created_ticket: u64,
    /// Journal ticket of the last cut; see [`OpenFile::write_runs`].
    cut_ticket: u64,
    /// Journal tickets of extents, as (file block where the extent begins, ticket).
    extent_tickets: Vec<(u64, u64)>,
    /// Bytes appended since then are covered by `check_crc`, unless they became too many.
    check_from: u64,
    check_crc: u32,
    reserved_blocks: u64,
    expected_blocks: u64,
    /// The file changed since it was opened, so that closing has work to do.
    dirty: bool,
    /// The last handle was closed: allocate what is needed and no more.
    closed: bool,
}

/// How a size record is kept from being believed without its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cover {
    /// By a checksum of the data, if it is short: for a sync, which then needs one flush.
    Checksum,
    /// By a flush before the record: for a close, whose record may be written much later.
    Flush,
}

/// The end of the file, in memory.
#[derive(Debug)]
pub(crate) struct Tail {
    /// File offset of the buffer's first byte. All bytes below are on the device.
    pub(crate) start: u64,
    pub(crate) len: usize,
    buf: AlignedBuf,
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
            expected_blocks: expected_size.div_ceil(BLOCK_SIZE),
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

    fn extend_check(&mut self, at: u64, data: &[u8]) {
        if at + data.len() as u64 - self.check_from <= CHECKED_LEN_MAX {
            self.check_crc = crc32c::crc32c_append(self.check_crc, data);
        }
    }

    fn restart_check(&mut self, size: u64) {
        self.check_from = size;
        self.check_crc = 0;
    }
}

impl Tail {
    pub(super) fn empty_at(start: u64) -> Self {
        Tail {
            start,
            len: 0,
            buf: AlignedBuf::zeroed(0),
        }
    }

    /// The size of the file.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.len as u64
    }

    /// The buffered bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buf[..self.len]
    }

    /// Copies as much of `data` as the buffer will ever hold, and returns how much that was.
    fn fill(&mut self, data: &[u8]) -> usize {
        let wanted = (self.len + data.len()).min(BUFFER_LEN_MAX);
        if wanted > self.buf.len() {
            let grown = wanted
                .next_power_of_two()
                .clamp(BUFFER_LEN_MIN, BUFFER_LEN_MAX);
            let mut buf = AlignedBuf::zeroed(grown);
            buf[..self.len].copy_from_slice(&self.buf[..self.len]);
            self.buf = buf;
        }
        let part = data.len().min(self.buf.len() - self.len);
        self.buf[self.len..self.len + part].copy_from_slice(&data[..part]);
        self.len += part;
        part
    }

    /// Drops what lies below file offset `start` from the buffer.
    fn advance(&mut self, start: u64) {
        let gone = (start - self.start) as usize;
        self.buf.copy_within(gone..self.len, 0);
        self.len -= gone;
        self.start = start;
    }
}

impl OpenFile {
    /// Appends `parts`; see [`crate::File::append_vectored`]. Without the space for all of it,
    /// nothing is appended.
    pub(super) fn append(&self, parts: &[IoSlice<'_>]) -> Result<u64> {
        let mut appender = self.lock_appender();
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
        for part in parts {
            self.append_part(&mut appender, part)?;
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
                let (whole, rest) = data.split_at(align_down(data.len() as u64, unit) as usize);
                appender.extend_check(end, whole);
                self.write_runs(appender, end, whole, Durability::Volatile)?;
                self.tail.write().start = end + whole.len() as u64;
                appender.synced_end = end + whole.len() as u64;
                data = rest;
                continue;
            }
            let taken = self.tail.write().fill(data);
            appender.extend_check(end, &data[..taken]);
            data = &data[taken..];
            if buffered + taken == BUFFER_LEN_MAX {
                self.write_out(appender, Durability::Volatile)?;
            }
        }
        Ok(())
    }

    /// Takes the appender's lock and waits for appends in flight.
    fn lock_appender(&self) -> MutexGuard<'_, Appender> {
        let appender = self.appender.lock();
        self.pipeline.drain();
        appender
    }

    /// True where all appended bytes are durable, or in flight to be.
    pub(super) fn is_all_on_device(&self, appender: &Appender) -> bool {
        let tail = self.tail.read();
        let aligned = tail.start.is_multiple_of(self.core.disk.unit());
        tail.len == 0
            && aligned
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

    /// See [`crate::File::fdatasync`].
    pub(super) fn fdatasync(&self) -> Result<()> {
        let mut appender = self.lock_appender();
        self.core.disk.check_writable()?;
        self.pad_if_sealed(&mut appender)?;
        let flushed = self.core.disk.is_flushed(appender.last_write);
        let durability = if flushed {
            Durability::Durable
        } else {
            Durability::Volatile
        };
        self.write_out(&mut appender, durability)?;
        self.core.disk.flush_through(appender.last_write)?;
        let size = self.tail.read().end();
        let ticket = self.note_inexact(size).max(appender.ticket_for(size));
        self.core.commit(ticket)?;
        appender
            .extent_tickets
            .retain(|&(_, ticket)| ticket > self.core.durable_ticket());
        appender.restart_check(size);
        let mut state = self.inode.state.write();
        state.size = size;
        state.durable_size = state.durable_size.max(size);
        drop(state);
        self.ask_for_extent(size);
        Ok(())
    }

    /// Where the journal says that the file is exactly as long as before the last appends, enqueues
    /// that it may be longer; after a crash the bytes synced since would not be looked for.
    pub(super) fn note_inexact(&self, size: u64) -> u64 {
        let needed = |exact: bool, durable: u64| exact && durable < size;
        {
            let state = self.inode.state.read();
            if !needed(state.exact, state.durable_size) {
                return 0;
            }
        }
        let mut state = self.inode.state.write();
        state.exact = false;
        let op = Op::SetSize {
            ino: self.inode.ino,
            exact: false,
            size: state.durable_size,
            modified_ns: state.modified_ns,
            check_from: state.durable_size,
            check_crc: 0,
        };
        self.core.enqueue_unchecked(&op)
    }

    /// See [`crate::File::fsync`].
    pub(super) fn fsync(&self) -> Result<()> {
        let mut appender = self.lock_appender();
        self.core.disk.check_writable()?;
        if self.uncertain.load(Ordering::Acquire) {
            self.core.commit_all()?;
            return self.core.disk.flush_through(appender.last_write);
        }
        self.pad_if_sealed(&mut appender)?;
        self.write_out(&mut appender, Durability::Volatile)?;
        let size = self.tail.read().end();
        let ticket = self.enqueue_size(&mut appender, size, Cover::Checksum);
        self.core.commit(ticket)?;
        appender
            .extent_tickets
            .retain(|&(_, ticket)| ticket > self.core.durable_ticket());
        self.ask_for_extent(size);
        Ok(())
    }

    /// Enqueues that the file is exactly `size` long, all bytes of it being on the device. Returns
    /// the ticket of that, or of all that is queued where the journal knows the size already.
    fn enqueue_size(&self, appender: &mut Appender, size: u64, cover: Cover) -> u64 {
        let mut state = self.inode.state.write();
        state.size = size;
        if state.exact && state.durable_size == size && !appender.dirty {
            return self.core.last_ticket();
        }
        if appender.dirty {
            state.modified_ns = self.modified_ns.load(Ordering::Acquire);
            state.changed_ns = state
                .changed_ns
                .max(self.changed_ns.load(Ordering::Acquire));
        }
        let unflushed = !self.core.disk.is_flushed(appender.last_write);
        let checked =
            unflushed && cover == Cover::Checksum && size - appender.check_from <= CHECKED_LEN_MAX;
        let op = Op::SetSize {
            ino: self.inode.ino,
            exact: true,
            size,
            modified_ns: state.modified_ns,
            check_from: if checked { appender.check_from } else { size },
            check_crc: if checked { appender.check_crc } else { 0 },
        };
        let data = match (unflushed, checked) {
            (false, _) => DataState::Durable,
            (true, true) => DataState::Checked,
            (true, false) => DataState::FlushBefore(appender.last_write),
        };
        state.exact = true;
        state.durable_size = size;
        appender.dirty = false;
        appender.restart_check(size);
        self.core.enqueue(&op, data)
    }

    /// See [`crate::File::settle`].
    pub(super) fn settle(&self, size: u64) -> Result<()> {
        let mut appender = self.lock_appender();
        self.core.disk.check_writable()?;
        let known = self.size();
        match known {
            FileSize::Exact(present) if size == present => return Ok(()),
            FileSize::Exact(present) if size < present => {
                self.write_out(&mut appender, Durability::Volatile)?;
                let _gate = self.gate.write();
                self.cut(&mut appender, size, None);
                return self.core.commit(appender.created_ticket);
            }
            FileSize::Between { lower, upper } if (lower..=upper).contains(&size) => {}
            _ => {
                let what = format!("cannot settle a size of {known:?} at {size}");
                return Err(Error::Invalid { what });
            }
        }
        *self.tail.write() = Tail::empty_at(size);
        *appender = Appender::new(size, 0, appender.created_ticket);
        appender.dirty = true;
        self.note_change(self.core.now_ns());
        let ticket = self.enqueue_size(&mut appender, size, Cover::Checksum);
        self.uncertain.store(false, Ordering::Release);
        self.core.commit(ticket)
    }

    /// See [`crate::File::truncate`].
    pub(super) fn truncate(&self, size: u64) -> Result<()> {
        let mut appender = self.lock_appender();
        self.core.disk.check_writable()?;
        let present = self.size().lower();
        if size > present {
            let what = format!("cannot extend a file of {present} bytes to {size} by truncation");
            return Err(Error::Invalid { what });
        }
        if size == present && !self.uncertain.load(Ordering::Acquire) {
            return Ok(());
        }
        let generation = self.core.new_id()?;
        if size > self.tail.read().start {
            self.write_out(&mut appender, Durability::Volatile)?;
        }
        let _gate = self.gate.write();
        self.cut(&mut appender, size, Some(generation));
        self.uncertain.store(false, Ordering::Release);
        Ok(())
    }

    /// Cuts the file to `size` in memory and enqueues it.
    fn cut(&self, appender: &mut Appender, size: u64, generation: Option<u64>) {
        let now_ns = self.core.now_ns();
        self.note_change(now_ns);
        let mut ops = Vec::new();
        let mut freed = Vec::new();
        let mut state = self.inode.state.write();
        if let Some(generation) = generation {
            state.generation = generation;
            Op::SetInode(state.record(self.inode.ino)).encode(&mut ops);
        }
        let (count, last_blocks) = state.extents.prefix(size.div_ceil(BLOCK_SIZE));
        let keep = Op::KeepExtents {
            ino: self.inode.ino,
            count: count as u64,
            last_blocks,
        };
        let set_size = Op::SetSize {
            ino: self.inode.ino,
            exact: true,
            size,
            modified_ns: now_ns,
            check_from: size,
            check_crc: 0,
        };
        for op in [keep, set_size] {
            state.apply(&op, &mut freed);
            op.encode(&mut ops);
        }
        state.size = size;
        state.changed_ns = now_ns;
        let ticket = self
            .core
            .enqueue_encoded(&ops, DataState::FlushBefore(appender.last_write));
        drop(state);
        self.core.quarantine(freed, ticket);
        let mut tail = self.tail.write();
        *tail = Tail::empty_at(size);
        self.core
            .unreserve(std::mem::take(&mut appender.reserved_blocks));
        appender.synced_end = size;
        appender.extent_tickets.clear();
        appender.created_ticket = ticket;
        appender.cut_ticket = ticket;
        appender.dirty = false;
        appender.restart_check(size);
    }

    /// Writes buffered bytes out, gives surplus space back and enqueues the size.
    pub(crate) fn write_back(&self) -> Result<()> {
        let mut appender = self.lock_appender();
        if self.uncertain.load(Ordering::Acquire) {
            return Ok(());
        }
        appender.closed = true;
        self.write_out(&mut appender, Durability::Volatile)?;
        let size = self.tail.read().end();
        let inexact = {
            let state = self.inode.state.read();
            !(state.exact && state.durable_size == size)
        };
        if appender.dirty || inexact {
            self.enqueue_size(&mut appender, size, Cover::Flush);
        }
        self.core
            .unreserve(std::mem::take(&mut appender.reserved_blocks));
        self.trim(size);
        let mut tail = self.tail.write();
        *tail = Tail::empty_at(tail.end());
        appender.synced_end = size;
        Ok(())
    }

    /// Forgets buffered bytes of a file that is about to be removed.
    pub(crate) fn discard_tail(&self) {
        let mut appender = self.appender.lock();
        appender.closed = true;
        self.core
            .unreserve(std::mem::take(&mut appender.reserved_blocks));
    }

    /// Gives back the extents beyond `size`.
    fn trim(&self, size: u64) {
        let blocks = size.div_ceil(BLOCK_SIZE);
        let mut state = self.inode.state.write();
        if state.extents.blocks() <= blocks {
            return;
        }
        let (count, last_blocks) = state.extents.prefix(blocks);
        let op = Op::KeepExtents {
            ino: self.inode.ino,
            count: count as u64,
            last_blocks,
        };
        let mut freed = Vec::new();
        state.apply(&op, &mut freed);
        let ticket = self.core.enqueue_unchecked(&op);
        drop(state);
        self.core.quarantine(freed, ticket);
    }

    /// Extends a sealed file with zeros to the next logical block.
    fn pad_if_sealed(&self, appender: &mut Appender) -> Result<()> {
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
    fn align_tail(&self, appender: &mut Appender) -> Result<()> {
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
    fn write_out(&self, appender: &mut Appender, durability: Durability) -> Result<()> {
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

    /// Sets space aside for a file of `end` bytes.
    pub(super) fn reserve(&self, appender: &mut Appender, end: u64) -> Result<()> {
        let allocated = self.inode.state.read().extents.blocks();
        let covered = allocated + appender.reserved_blocks;
        let needed = end.div_ceil(BLOCK_SIZE).saturating_sub(covered);
        if needed == 0 {
            return Ok(());
        }
        let generous = needed.max(RESERVE_BLOCKS);
        if self.core.reserve(generous) {
            appender.reserved_blocks += generous;
            return Ok(());
        }
        self.core.reserve_or_reclaim(needed)?;
        appender.reserved_blocks += needed;
        Ok(())
    }

    /// Allocates for a file that is expected to reach `size` bytes.
    pub(crate) fn allocate_expected(&self, size: u64) -> Result<()> {
        let mut appender = self.appender.lock();
        self.reserve(&mut appender, size)?;
        self.allocate_to(&mut appender, size)
    }

    /// Makes sure that extents cover the file to `end` bytes.
    pub(super) fn allocate_to(&self, appender: &mut Appender, end: u64) -> Result<()> {
        let needed = end.div_ceil(BLOCK_SIZE);
        loop {
            let (blocks, last) = {
                let state = self.inode.state.read();
                (state.extents.blocks(), state.extents.last())
            };
            if blocks >= needed {
                return Ok(());
            }
            let missing = needed - blocks;
            let wanted = missing.max(self.growth(appender, blocks, needed));
            let reserved = &mut appender.reserved_blocks;
            let ticket = self
                .core
                .allocate(&self.inode, missing, wanted, last, reserved)?;
            appender.extent_tickets.push((blocks, ticket));
        }
    }

    /// How many blocks the next extent of a file of `blocks` blocks should have.
    fn growth(&self, appender: &Appender, blocks: u64, needed: u64) -> u64 {
        if appender.closed {
            return 0;
        }
        if appender.expected_blocks > blocks {
            return appender.expected_blocks - blocks;
        }
        if blocks == 0 && needed < GROWTH_BLOCKS_FIRST {
            return GROWTH_BLOCKS_FIRST;
        }
        let least = if blocks < GROWTH_BLOCKS_FIRST {
            GROWTH_BLOCKS_FIRST
        } else {
            blocks
        };
        let least = if needed >= GROWTH_BLOCKS_MIN / 4 {
            least.max(GROWTH_BLOCKS_MIN)
        } else {
            least
        };
        least.min(GROWTH_BLOCKS_MAX)
    }

    /// Allocates the next extent before it is needed, and makes it durable, so that no sync has to
    /// wait for the journal. For the background thread.
    pub(crate) fn allocate_ahead(&self) -> Result<()> {
        self.ahead_asked.store(false, Ordering::Release);
        self.core.admit_extent()?;
        let mut appender = self.appender.lock();
        if appender.closed || !self.wants_extent(self.tail.read().end()) {
            return Ok(());
        }
        let (blocks, last) = {
            let state = self.inode.state.read();
            (state.extents.blocks(), state.extents.last())
        };
        let wanted = blocks.clamp(GROWTH_BLOCKS_FIRST, GROWTH_BLOCKS_MAX);
        let Some(ticket) = self.core.allocate_ahead(&self.inode, wanted, last) else {
            return Ok(());
        };
        appender.extent_tickets.push((blocks, ticket));
        drop(appender);
        self.core.commit(ticket)
    }

    /// Asks the background thread for the next extent, if the last one fills up.
    pub(super) fn ask_for_extent(&self, size: u64) {
        if self.wants_extent(size) && !self.ahead_asked.swap(true, Ordering::AcqRel) {
            self.core.ask(Work::Extent(self.inode.ino));
        }
    }

    /// True where less than half of the last extent is left behind `size`.
    fn wants_extent(&self, size: u64) -> bool {
        let state = self.inode.state.read();
        let Some(Run { blocks, .. }) = state.extents.last() else {
            return false;
        };
        let left = (state.extents.blocks() * BLOCK_SIZE).saturating_sub(size);
        left < blocks.min(GROWTH_BLOCKS_MAX) * BLOCK_SIZE / 2
    }
}
