//! The device as the filesystem sees it: errors with their place, one verdict after a failure,
//! and shared flushes.
//!
//! A failed write or flush is final: the kernel may have dropped the data and reported it once
//! (fsyncgate), so nothing is retried, and every later change is refused with the first failure's
//! text. Reads go on.
//!
//! Every completed volatile write gets a ticket from a counter. A flush makes durable all tickets
//! given out before it began, so callers that need one wait for the same flush. Lock: `flushing`
//! is held across a device flush; nothing else is taken inside.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::device::{
    AlignedBuf, BlockDevice, DevicePart, DeviceRead, DeviceWrite, Durability, PendingWrite,
};
use crate::error::{Error, Result};

/// Stands for a completed volatile write; see [`Disk::flush_through`]. 0 needs no flush.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct WriteTicket(u64);

/// A device with its failure and flush state.
#[derive(Debug)]
pub(crate) struct Disk {
    device: Arc<dyn BlockDevice>,
    name: Arc<str>,
    refusal: OnceLock<Arc<str>>,
    writes: AtomicU64,
    flushed: AtomicU64,
    syncs: AtomicU64,
    flushing: Mutex<()>,
}

impl Disk {
    pub(crate) fn new(device: Arc<dyn BlockDevice>) -> Self {
        Disk {
            name: Arc::from(device.name()),
            device,
            refusal: OnceLock::new(),
            writes: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            flushing: Mutex::new(()),
        }
    }

    pub(crate) fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The device's logical block in bytes.
    pub(crate) fn unit(&self) -> u64 {
        self.device.geometry().logical_block
    }

    /// Refuses every later change with `reason`; the first reason stays.
    pub(crate) fn refuse_changes(&self, reason: &str) {
        let _ = self.refusal.set(Arc::from(reason));
    }

    /// Fails where changes are refused.
    pub(crate) fn check_writable(&self) -> Result<()> {
        match self.refusal.get() {
            None => Ok(()),
            Some(reason) => Err(Error::ReadOnly {
                reason: reason.clone(),
            }),
        }
    }

    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.device
            .read(offset, buf)
            .map_err(|e| Error::io("read", &self.name, offset, e))
    }

    /// Performs all reads; fails with the first failure.
    pub(crate) fn read_batch(
        &self,
        reads: &mut [DeviceRead<'_>],
        queue_depth: usize,
    ) -> Result<()> {
        self.device.read_batch(reads, queue_depth);
        for read in reads {
            if let Err(e) = std::mem::replace(&mut read.result, Ok(())) {
                return Err(Error::io("read", &self.name, read.offset, e));
            }
        }
        Ok(())
    }

    /// Writes all, together in flight. With [`Durability::Durable`] the ticket needs no flush.
    pub(crate) fn write(
        &self,
        writes: &[DeviceWrite<'_>],
        durability: Durability,
    ) -> Result<WriteTicket> {
        self.check_writable()?;
        let outcome = match writes {
            [] => return Ok(WriteTicket(0)),
            [one] => self.device.write(one.offset, one.data, durability),
            many => self.device.write_batch(many, durability),
        };
        outcome.map_err(|e| self.fail("write", writes[0].offset, e))?;
        Ok(match durability {
            Durability::Durable => {
                self.syncs.fetch_add(1, Ordering::Relaxed);
                WriteTicket(0)
            }
            Durability::Volatile => self.volatile_ticket(),
        })
    }

    /// Begins to write the beginning of `buf` to `parts`, volatile. It counts as written, and a failure is
    /// known, when [`Self::finish_write`] has returned.
    pub(crate) fn write_behind(
        &self,
        parts: &[DevicePart],
        buf: Arc<AlignedBuf>,
    ) -> Result<PendingWrite> {
        self.check_writable()?;
        Ok(self.device.write_behind(parts, buf))
    }

    /// Waits for a write that was begun at `offset`.
    pub(crate) fn finish_write(&self, offset: u64, pending: PendingWrite) -> Result<WriteTicket> {
        pending.wait().map_err(|e| self.fail("write", offset, e))?;
        Ok(self.volatile_ticket())
    }

    fn volatile_ticket(&self) -> WriteTicket {
        WriteTicket(self.writes.fetch_add(1, Ordering::AcqRel) + 1)
    }

    /// Makes the writes up to `ticket` durable, by a flush of its own or one shared with others.
    pub(crate) fn flush_through(&self, ticket: WriteTicket) -> Result<()> {
        if self.is_flushed(ticket) {
            return Ok(());
        }
        let _flushing = self.flushing.lock();
        if self.is_flushed(ticket) {
            return Ok(());
        }
        self.check_writable()?;
        let covered = self.writes.load(Ordering::Acquire);
        self.device.flush().map_err(|e| self.fail("flush", 0, e))?;
        self.flushed.store(covered, Ordering::Release);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Durable writes and flushes so far.
    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// True where the writes up to `ticket` are durable.
    pub(crate) fn is_flushed(&self, ticket: WriteTicket) -> bool {
        self.flushed.load(Ordering::Acquire) >= ticket.0
    }

    /// Tells the device that a range is of no value. A failure loses nothing and is only logged.
    pub(crate) fn discard(&self, offset: u64, len: u64) {
        if let Err(error) = self.device.discard(offset, len) {
            tracing::warn!(%error, offset, len, "discard failed");
        }
    }

    fn fail(&self, op: &'static str, offset: u64, source: std::io::Error) -> Error {
        let error = Error::io(op, &self.name, offset, source);
        tracing::error!(%error, "the filesystem is read-only from here on");
        self.refuse_changes(&error.to_string());
        error
    }
}
