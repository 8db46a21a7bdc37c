//! Reading a region's records: the device is read in large pieces, the records are looked at one by one.

use crate::device::AlignedBuf;
use crate::disk::Disk;
use crate::error::Result;
use crate::types::{BLOCK_SIZE, align_down, align_up};

/// A window on a region's bytes that moves forward.
pub(super) struct Window<'a> {
    disk: &'a Disk,
    base: u64,
    /// Bytes of the region that may hold records.
    area: u64,
    start: u64,
    buf: AlignedBuf,
}

impl<'a> Window<'a> {
    const LEN: u64 = 1 << 20;

    pub(super) fn new(disk: &'a Disk, base: u64, area: u64) -> Self {
        Window {
            disk,
            base,
            area,
            start: 0,
            buf: AlignedBuf::zeroed(0),
        }
    }

    /// The `len` bytes at `position`; `None` where they would leave the record area.
    pub(super) fn at(&mut self, position: u64, len: usize) -> Result<Option<&[u8]>> {
        let end = position + len as u64;
        if end > self.area {
            return Ok(None);
        }
        if position < self.start || end > self.start + self.buf.len() as u64 {
            let start = align_down(position, BLOCK_SIZE);
            let want = (align_up(end, BLOCK_SIZE) - start)
                .max(Self::LEN)
                .min(self.area - start);
            if self.buf.len() as u64 != want {
                self.buf = AlignedBuf::zeroed(want as usize);
            }
            self.disk.read(self.base + start, &mut self.buf)?;
            self.start = start;
        }
        let from = (position - self.start) as usize;
        Ok(Some(&self.buf[from..from + len]))
    }
}
