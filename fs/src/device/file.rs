//! `FileDevice`: a block device or image through pread, pwrite and fdatasync.
//!
//! Used where io_uring is not permitted. A durable write is a write and a flush: two commands,
//! as `RWF_DSYNC` on a synchronous write of a block device is too (a FUA write and then a flush,
//! measured), but a batch of durable writes shares one flush.

use std::io;
use std::time::Instant;

use super::raw::Raw;
use super::{BlockDevice, DeviceCounters, DeviceRead, DeviceWrite, Durability, Geometry};

/// A device or image through plain system calls. Made by [`super::open`].
#[derive(Debug)]
pub struct FileDevice {
    raw: Raw,
}

impl FileDevice {
    pub(super) fn new(raw: Raw) -> FileDevice {
        FileDevice { raw }
    }
}

impl BlockDevice for FileDevice {
    fn name(&self) -> &str {
        &self.raw.name
    }

    fn geometry(&self) -> Geometry {
        self.raw.geometry
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.raw.check_read(offset, buf);
        self.raw.pread(offset, buf)
    }

    fn read_batch(&self, reads: &mut [DeviceRead<'_>], queue_depth: usize) {
        assert!(queue_depth > 0, "a batch needs a queue");
        for read in reads {
            let submitted = Instant::now();
            read.result = self.read(read.offset, read.buf);
            read.elapsed = submitted.elapsed();
        }
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> io::Result<()> {
        self.write_batch(&[DeviceWrite { offset, data }], durability)
    }

    fn write_batch(&self, writes: &[DeviceWrite<'_>], durability: Durability) -> io::Result<()> {
        for write in writes {
            self.raw.check_write(write.offset, write.data)?;
        }
        for write in writes {
            self.raw.pwrite(write.offset, write.data)?;
        }
        match durability {
            Durability::Durable if !writes.is_empty() => self.raw.flush(),
            _ => Ok(()),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.raw.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.raw.discard(offset, len)
    }

    fn counters(&self) -> DeviceCounters {
        self.raw.counters.snapshot()
    }
}
