//! The end of an open file in memory: bytes that are not on the device yet, and the partial logical
//! block that is written again when it has grown.
//!
//! Guarded by the lock `tail` of the open file; changed only by whoever holds its appender.

use crate::device::AlignedBuf;

/// Largest tail buffer in bytes.
pub(super) const BUFFER_LEN_MAX: usize = 256 << 10;
const BUFFER_LEN_MIN: usize = 4 << 10;

/// The end of the file, in memory.
#[derive(Debug)]
pub(crate) struct Tail {
    /// File offset of the buffer's first byte. All bytes below are on the device.
    pub(crate) start: u64,
    pub(crate) len: usize,
    pub(super) buf: AlignedBuf,
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
    pub(super) fn fill(&mut self, data: &[u8]) -> usize {
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
    pub(super) fn advance(&mut self, start: u64) {
        let gone = (start - self.start) as usize;
        self.buf.copy_within(gone..self.len, 0);
        self.len -= gone;
        self.start = start;
    }
}
