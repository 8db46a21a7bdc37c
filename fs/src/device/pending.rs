//! A read that was begun ahead of need, and the buffer that it fills.

use std::fmt;
use std::io;

use super::AlignedBuf;
use super::ring::ahead::Ahead;

/// One contiguous part of a [`super::BlockDevice::read_ahead`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadPart {
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
