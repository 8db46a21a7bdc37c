//! Several synced appends of one sealed file in flight.
//!
//! A sealed file never writes a block twice, so that an append which is to be durable needs
//! nothing of the one before it but its place. The place is taken under the appender's lock; the
//! device write happens without it, from a buffer of the append's own; acknowledgement is in
//! order: an append returns when it and all before it are durable, so that the durable part of a
//! file is always a prefix. After a crash later appends may be on the device without an earlier
//! one; nobody was told of either, and the engine's checksums end the file before the gap.
//!
//! An append that failed, and those behind it, stay in memory for readers: what the device holds in their place may
//! be another file's bytes. The filesystem is read-only then, so that no more come.
//!
//! Lock: `state` is a leaf, and held across no I/O. Whoever else changes the file (sync, truncate, close)
//! holds the appender's lock and waits for the pipeline to drain first.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::device::{AlignedBuf, DeviceWrite, Durability};
use crate::error::Result;
use crate::file::appender::Appender;
use crate::file::handle::OpenFile;
use crate::types::{BLOCK_SIZE, align_up};
use crate::vfs::TailPolicy;

/// The appends of one file that are in flight.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    state: Mutex<VecDeque<InFlight>>,
    moved: Condvar,
}

/// An append in flight, or done and waiting for an earlier one.
#[derive(Debug)]
struct InFlight {
    offset: u64,
    buf: Arc<AlignedBuf>,
    progress: Progress,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    Begun,
    Written,
    Failed,
}

impl InFlight {
    fn end(&self) -> u64 {
        self.offset + self.buf.len() as u64
    }
}

impl Pipeline {
    /// Copies what of `offset..offset + buf.len()` is in flight, from the end of that range
    /// backwards. Returns how many bytes before that are on the device.
    pub(super) fn copy(&self, offset: u64, buf: &mut [u8]) -> usize {
        let end = offset + buf.len() as u64;
        let queue = self.state.lock();
        let mut first = end;
        for entry in queue
            .iter()
            .filter(|entry| entry.offset < end && entry.end() > offset)
        {
            let from = entry.offset.max(offset);
            let to = entry.end().min(end);
            let bytes = &entry.buf[(from - entry.offset) as usize..(to - entry.offset) as usize];
            buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(bytes);
            first = first.min(from);
        }
        (first - offset) as usize
    }

    /// File offset of the first byte in flight.
    pub(super) fn first(&self) -> Option<u64> {
        self.state.lock().front().map(|entry| entry.offset)
    }

    /// Waits until nothing is in flight.
    pub(super) fn drain(&self) {
        let mut queue = self.state.lock();
        while has_begun(&queue, u64::MAX) {
            self.moved.wait(&mut queue);
        }
    }

    pub(super) fn push(&self, offset: u64, buf: Arc<AlignedBuf>) {
        let mut queue = self.state.lock();
        // Or `copy` would leave out what lies between.
        assert!(queue.back().is_none_or(|last| last.end() == offset));
        queue.push_back(InFlight {
            offset,
            buf,
            progress: Progress::Begun,
        });
    }

    /// Notes that the append at `offset` is written or has failed, and waits until all before it are or have.
    /// `acknowledge` is called, in order, with the end of each append that leaves.
    pub(super) fn finish(&self, offset: u64, failed: bool, mut acknowledge: impl FnMut(u64)) {
        let mut queue = self.state.lock();
        if let Some(entry) = queue.iter_mut().find(|entry| entry.offset == offset) {
            entry.progress = if failed {
                Progress::Failed
            } else {
                Progress::Written
            };
        }
        let is_written = |entry: &InFlight| entry.progress == Progress::Written;
        while queue.front().is_some_and(is_written) {
            let entry = queue.pop_front().expect("it was there just now");
            acknowledge(entry.end());
        }
        self.moved.notify_all();
        while has_begun(&queue, offset) {
            self.moved.wait(&mut queue);
        }
    }
}

/// True where an append at `offset` or before is in flight.
fn has_begun(queue: &VecDeque<InFlight>, offset: u64) -> bool {
    let mut up_to = queue.iter().take_while(|entry| entry.offset <= offset);
    up_to.any(|entry| entry.progress == Progress::Begun)
}

impl OpenFile {
    /// See [`crate::File::append_durable`].
    pub(super) fn append_durable(&self, parts: &[IoSlice<'_>]) -> Result<u64> {
        let mut appender = self.appender.lock();
        let Some(place) = self.place(&mut appender, parts)? else {
            drop(appender);
            let offset = self.append(parts)?;
            self.fdatasync()?;
            return Ok(offset);
        };
        drop(appender);
        let write = DeviceWrite {
            offset: place.device_offset,
            data: &place.buf,
        };
        let written = self.core.disk.write(&[write], Durability::Durable);
        // A failed write made the filesystem read-only: nothing after it is acknowledged either.
        self.pipeline.finish(place.offset, written.is_err(), |end| {
            if self.core.disk.check_writable().is_ok() {
                let mut state = self.inode.state.write();
                state.size = state.size.max(end);
                state.durable_size = state.durable_size.max(end);
            }
        });
        written?;
        self.core.disk.check_writable()?;
        self.ask_for_extent(place.offset + place.buf.len() as u64);
        Ok(place.offset)
    }

    /// Takes the place of an append that can be written by itself: in a sealed file whose earlier
    /// bytes are all durable or in flight, in one run of an extent that is journaled.
    fn place(&self, appender: &mut Appender, parts: &[IoSlice<'_>]) -> Result<Option<Place>> {
        self.core.disk.check_writable()?;
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if self.policy != TailPolicy::Seal || len == 0 || !self.is_all_on_device(appender) {
            return Ok(None);
        }
        let padded = align_up(len as u64, self.core.disk.unit());
        let offset = self.tail.read().end();
        let end = offset + padded;
        self.reserve(appender, end)?;
        self.allocate_to(appender, end)?;
        let ticket = self.note_inexact(end).max(appender.ticket_for(end));
        self.core.commit(ticket)?;
        let block = offset / BLOCK_SIZE;
        let Some(run) = self.inode.state.read().extents.find(block) else {
            return Ok(None);
        };
        let skipped = offset - block * BLOCK_SIZE;
        if skipped + padded > run.blocks * BLOCK_SIZE {
            return Ok(None);
        }
        let mut buf = AlignedBuf::zeroed(padded as usize);
        let mut at = 0;
        for part in parts {
            buf[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let buf = Arc::new(buf);
        self.pipeline.push(offset, buf.clone());
        self.advance_past(appender, end);
        Ok(Some(Place {
            offset,
            device_offset: run.start * BLOCK_SIZE + skipped,
            buf,
        }))
    }
}

/// Where an append goes.
struct Place {
    offset: u64,
    device_offset: u64,
    buf: Arc<AlignedBuf>,
}
