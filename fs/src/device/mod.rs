//! `BlockDevice`: everything the filesystem asks of a disk, on one screen.
//!
//! Implementations: [`UringDevice`] (io_uring, O_DIRECT), [`FileDevice`] (pread/pwrite and
//! fdatasync), [`SimDevice`] (memory, with a volatile and a durable image and faults). It is the
//! seam where faults are injected.
//!
//! Rules that hold for every implementation:
//! - offsets, lengths and the addresses of buffers are multiples of [`Geometry::logical_block`]
//!   (parts of an [`AlignedBuf`] will do); anything else is a programmer's error (panic);
//! - a call returns when the device has completed it: I/O is submitted and reaped on the calling
//!   thread, there is no hand-off to another one; only [`BlockDevice::read_ahead`] and
//!   [`BlockDevice::write_behind`] return earlier where the device can;
//! - a completed [`Durability::Volatile`] write may be lost or torn by a crash until a later
//!   [`BlockDevice::flush`] that *began after the write completed* has returned; a
//!   [`Durability::Durable`] write is durable on return but says nothing about other writes;
//! - logical blocks are written atomically, larger writes may be torn between them;
//! - a short transfer is continued until it is whole or fails; an interrupted call is repeated.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

mod buf;
pub(crate) mod counters;
mod fault;
mod file;
mod holder;
mod open;
mod pending;
mod raw;
mod ring;
mod sim;
pub(crate) mod sys;
#[cfg(test)]
mod tests;
mod uring;

pub use buf::{AlignedBuf, BUFFER_ALIGN};
pub use fault::{Fault, FaultOn, FaultPlan, FaultWhen};
pub use file::FileDevice;
pub use open::{OpenMode, create_image, open};
pub use pending::{DevicePart, PendingRead, PendingWrite};
pub use sim::{Recording, SimDevice, SimOp, SimWrite};
pub use uring::UringDevice;

/// A disk, partition or image.
pub trait BlockDevice: Send + Sync + fmt::Debug {
    /// The name to use in messages: a path, or "sim".
    fn name(&self) -> &str;

    /// Size and units.
    fn geometry(&self) -> Geometry;

    /// Reads `buf.len()` bytes at `offset`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Performs all reads, with at most `queue_depth` in flight at a time, and sets each one's
    /// result and time. Order is unspecified.
    fn read_batch(&self, reads: &mut [DeviceRead<'_>], queue_depth: usize);

    /// Begins to read `parts` into `buf`, one behind the other from its beginning. Failures come out
    /// of [`PendingRead::wait`]. This default reads before it returns.
    ///
    /// # Panics
    /// Where the parts are longer than `buf`.
    fn read_ahead(&self, parts: &[DevicePart], mut buf: AlignedBuf) -> PendingRead {
        let mut at = 0;
        let mut result = Ok(());
        for part in parts {
            if result.is_ok() {
                result = self.read(part.offset, &mut buf[at..at + part.len]);
            }
            at += part.len;
        }
        PendingRead::done(buf, result)
    }

    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> io::Result<()>;

    /// Performs all writes, together in flight, and returns when all have completed. Which of them
    /// reached the device when an error is returned is unknown.
    fn write_batch(&self, writes: &[DeviceWrite<'_>], durability: Durability) -> io::Result<()>;

    /// Begins to write the beginning of `buf` to `parts`, one behind the other, volatile. Failures come out
    /// of [`PendingWrite::wait`]; until that has returned the write is not complete, and no other I/O
    /// may touch its range. This default writes before it returns.
    ///
    /// # Panics
    /// Where the parts are longer than `buf`.
    fn write_behind(&self, parts: &[DevicePart], buf: Arc<AlignedBuf>) -> PendingWrite {
        PendingWrite::done(write_parts(self, parts, &buf))
    }

    /// Makes every write that completed before the call durable.
    fn flush(&self) -> io::Result<()>;

    /// Tells the device that the range holds nothing of value. Contents are then unspecified.
    /// A device without discard does nothing.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// What was sent to the device since it was opened.
    fn counters(&self) -> DeviceCounters;
}

/// Size and units of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Size in bytes, a multiple of `logical_block`.
    pub size: u64,
    /// Smallest unit of I/O in bytes: a power of two, 512 to 4096.
    pub logical_block: u64,
    /// True where the device may lose completed writes in a power cut (a volatile cache).
    pub volatile_cache: bool,
}

/// When a write is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// After a later flush.
    Volatile,
    /// On return: a FUA write, or a write and a flush.
    Durable,
}

/// One read of a batch.
#[derive(Debug)]
pub struct DeviceRead<'a> {
    /// Byte offset on the device.
    pub offset: u64,
    /// Where to put the bytes.
    pub buf: &'a mut [u8],
    /// Set by the call.
    pub result: io::Result<()>,
    /// Set by the call: from the read's submission until it was seen to be complete.
    pub elapsed: Duration,
}

impl<'a> DeviceRead<'a> {
    /// A read that is to be performed.
    pub fn new(offset: u64, buf: &'a mut [u8]) -> DeviceRead<'a> {
        DeviceRead {
            offset,
            buf,
            result: Ok(()),
            elapsed: Duration::ZERO,
        }
    }
}

/// One write of a batch.
#[derive(Clone, Copy, Debug)]
pub struct DeviceWrite<'a> {
    /// Byte offset on the device.
    pub offset: u64,
    /// The bytes.
    pub data: &'a [u8],
}

/// What was sent to a device. Exact; see each field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceCounters {
    /// Bytes written.
    pub write_bytes: u64,
    /// Write commands.
    pub write_ios: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Read commands.
    pub read_ios: u64,
    /// Flush commands plus durable (FUA) writes.
    pub flushes: u64,
    /// Bytes discarded.
    pub discard_bytes: u64,
}

impl std::ops::Sub for DeviceCounters {
    type Output = DeviceCounters;

    fn sub(self, earlier: DeviceCounters) -> DeviceCounters {
        DeviceCounters {
            write_bytes: self.write_bytes - earlier.write_bytes,
            write_ios: self.write_ios - earlier.write_ios,
            read_bytes: self.read_bytes - earlier.read_bytes,
            read_ios: self.read_ios - earlier.read_ios,
            flushes: self.flushes - earlier.flushes,
            discard_bytes: self.discard_bytes - earlier.discard_bytes,
        }
    }
}

/// Writes the beginning of `buf` to `parts`, one behind the other, and returns when all have completed.
fn write_parts(
    device: &(impl BlockDevice + ?Sized),
    parts: &[DevicePart],
    buf: &[u8],
) -> io::Result<()> {
    let mut rest = buf;
    let mut writes = Vec::with_capacity(parts.len());
    for part in parts {
        let (data, after) = rest.split_at(part.len);
        writes.push(DeviceWrite {
            offset: part.offset,
            data,
        });
        rest = after;
    }
    match &writes[..] {
        [one] => device.write(one.offset, one.data, Durability::Volatile),
        many => device.write_batch(many, Durability::Volatile),
    }
}

/// Asserts that I/O lies on the device, in whole logical blocks.
fn check_range(geometry: Geometry, offset: u64, len: u64) {
    let block = geometry.logical_block;
    assert!(
        offset.is_multiple_of(block),
        "offset {offset} is not aligned to {block}"
    );
    assert!(
        len.is_multiple_of(block),
        "length {len} is not aligned to {block}"
    );
    let end = offset.checked_add(len).expect("the end of an I/O is a u64");
    assert!(
        end <= geometry.size,
        "I/O to {end} is beyond the device's {}",
        geometry.size
    );
}

/// Asserts that a buffer can be given to a device.
fn check_aligned(geometry: Geometry, data: &[u8]) {
    let block = geometry.logical_block as usize;
    assert!(
        data.is_empty() || data.as_ptr().addr().is_multiple_of(block),
        "a buffer at {:p} is not aligned to {block}",
        data.as_ptr()
    );
}
