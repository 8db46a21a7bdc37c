//! Reads that were begun ahead of need and writes that nobody waits for yet, each with its buffer.

use std::fmt;
use std::io;

use super::AlignedBuf;
use super::ring::begun::{Ahead, Behind};

/// One contiguous part of a [`super::BlockDevice::read_ahead`] or [`super::BlockDevice::write_behind`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DevicePart {
    /// Byte offset on the device.
    pub offset: u64,
    /// Length in bytes.
    pub len: usize,
}

/// A read in flight, or done. It owns the buffer; dropping it waits for the device.
#[must_use = "a read is begun for its bytes"]
pub struct PendingRead(State);

enum State {
    Done(AlignedBuf, io::Result<()>),
    InFlight(Box<Ahead>),
}

impl PendingRead {
    /// A read that was performed before it was asked for.
    pub fn done(buf: AlignedBuf, result: io::Result<()>) -> PendingRead {
        PendingRead(State::Done(buf, result))
    }

    pub(super) fn in_flight(ahead: Ahead) -> PendingRead {
        PendingRead(State::InFlight(Box::new(ahead)))
    }

    /// Waits for the device. Any thread may do so, also one that did not begin the read. After a failure
    /// the buffer's contents are unspecified.
    pub fn wait(self) -> (AlignedBuf, io::Result<()>) {
        match self.0 {
            State::Done(buf, result) => (buf, result),
            State::InFlight(ahead) => ahead.wait(),
        }
    }
}

impl fmt::Debug for PendingRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            State::Done(..) => "PendingRead(done)",
            State::InFlight(_) => "PendingRead(in flight)",
        })
    }
}

/// A write in flight, or done. It shares the buffer with whoever reads it meanwhile; dropping it waits
/// for the device.
#[must_use = "a failure comes out of waiting"]
pub struct PendingWrite(Option<WriteState>);

enum WriteState {
    Done(io::Result<()>),
    InFlight(Box<Behind>),
    Deferred(Box<dyn FnOnce() -> io::Result<()> + Send>),
}

impl PendingWrite {
    /// A write that was performed before it was asked for.
    pub fn done(result: io::Result<()>) -> PendingWrite {
        PendingWrite(Some(WriteState::Done(result)))
    }

    /// A write that is performed as late as possible: when it is waited for or dropped.
    pub fn deferred(write: impl FnOnce() -> io::Result<()> + Send + 'static) -> PendingWrite {
        PendingWrite(Some(WriteState::Deferred(Box::new(write))))
    }

    pub(super) fn in_flight(behind: Behind) -> PendingWrite {
        PendingWrite(Some(WriteState::InFlight(Box::new(behind))))
    }

    /// True if it was performed before it was asked for.
    pub fn is_done(&self) -> bool {
        matches!(self.0, Some(WriteState::Done(_)))
    }

    /// Waits for the device. Any thread may do so, also one that did not begin the write.
    pub fn wait(mut self) -> io::Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> io::Result<()> {
        match self.0.take() {
            Some(WriteState::Done(result)) => result,
            Some(WriteState::InFlight(behind)) => behind.wait(),
            Some(WriteState::Deferred(write)) => write(),
            None => Ok(()),
        }
    }
}

impl Drop for PendingWrite {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::debug!(%error, "a write that nobody waited for failed");
        }
    }
}

impl fmt::Debug for PendingWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(WriteState::Done(_)) | None => "PendingWrite(done)",
            Some(_) => "PendingWrite(in flight)",
        })
    }
}
