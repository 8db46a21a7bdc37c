//! `UringDevice`: a block device or image through io_uring, on the calling thread's ring.
//!
//! A durable write is one asynchronous write with `RWF_DSYNC`: on a block device a single FUA
//! write, where the synchronous call would send a flush besides. A single read or volatile write
//! goes through pread or pwrite, which cost one system call with less in it. A thread that can
//! have no ring (limits of memory or descriptors) uses plain calls throughout.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::raw::Raw;
use super::ring::begun::{Ahead, Behind, Pool};
use super::ring::{self, Transfer};
use super::{
    AlignedBuf, BlockDevice, DeviceCounters, DevicePart, DeviceRead, DeviceWrite, Durability,
    Geometry, PendingRead, PendingWrite, write_parts,
};

/// A device or image through io_uring. Made by [`super::open`].
#[derive(Debug)]
pub struct UringDevice {
    raw: Arc<Raw>,
    pool: Arc<Pool>,
}

impl UringDevice {
    /// # Errors
    /// Gives the file back where the calling thread can have no ring.
    pub(super) fn new(raw: Raw) -> Result<UringDevice, (Raw, io::Error)> {
        match ring::probe() {
            Ok(()) => Ok(UringDevice {
                raw: Arc::new(raw),
                pool: Arc::default(),
            }),
            Err(error) => Err((raw, error)),
        }
    }

    fn transfer<'a>(&'a self, write: &DeviceWrite<'a>, dsync: bool) -> Transfer<'a> {
        Transfer::write(&self.raw.file, write.offset, write.data, dsync)
    }
}

impl BlockDevice for UringDevice {
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
        for read in &*reads {
            self.raw.check_read(read.offset, read.buf);
        }
        let mut transfers: Vec<Transfer<'_>> = reads
            .iter_mut()
            .map(|read| Transfer::read(&self.raw.file, read.offset, read.buf))
            .collect();
        match ring::run(&mut transfers, queue_depth, &self.raw.counters) {
            Ok(()) => {
                let outcomes: Vec<_> = transfers.into_iter().map(Transfer::into_outcome).collect();
                for (read, (result, elapsed)) in reads.iter_mut().zip(outcomes) {
                    read.result = result;
                    read.elapsed = elapsed;
                }
            }
            Err(_) => {
                drop(transfers);
                for read in reads {
                    let submitted = Instant::now();
                    read.result = self.raw.pread(read.offset, read.buf);
                    read.elapsed = submitted.elapsed();
                }
            }
        }
    }

    fn read_ahead(&self, parts: &[DevicePart], buf: AlignedBuf) -> PendingRead {
        match Ahead::start(&self.pool, &self.raw, parts, buf) {
            Ok(ahead) => PendingRead::in_flight(ahead),
            Err(mut buf) => {
                let mut rest: &mut [u8] = &mut buf;
                let mut reads = Vec::with_capacity(parts.len());
                for part in parts {
                    let (data, after) = rest.split_at_mut(part.len);
                    reads.push(DeviceRead::new(part.offset, data));
                    rest = after;
                }
                self.read_batch(&mut reads, parts.len().max(1));
                let result = reads.into_iter().try_for_each(|read| read.result);
                PendingRead::done(buf, result)
            }
        }
    }

    fn write_behind(&self, parts: &[DevicePart], buf: Arc<AlignedBuf>) -> PendingWrite {
        match Behind::start(&self.pool, &self.raw, parts, buf.clone()) {
            Ok(Some(behind)) => PendingWrite::in_flight(behind),
            Ok(None) => PendingWrite::done(write_parts(self, parts, &buf)),
            Err(error) => PendingWrite::done(Err(error)),
        }
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> io::Result<()> {
        if durability == Durability::Durable {
            return self.write_batch(&[DeviceWrite { offset, data }], durability);
        }
        self.raw.check_write(offset, data)?;
        self.raw.pwrite(offset, data)
    }

    fn write_batch(&self, writes: &[DeviceWrite<'_>], durability: Durability) -> io::Result<()> {
        for write in writes {
            self.raw.check_write(write.offset, write.data)?;
        }
        let dsync = durability == Durability::Durable;
        let done = match writes {
            // The steady state of synced appends: no allocation.
            [write] => {
                let mut transfers = [self.transfer(write, dsync)];
                ring::run(&mut transfers, 1, &self.raw.counters)
                    .map(|()| transfers.into_iter().try_for_each(Transfer::into_result))
            }
            _ => {
                let mut transfers: Vec<_> = writes
                    .iter()
                    .map(|write| self.transfer(write, dsync))
                    .collect();
                ring::run(&mut transfers, writes.len().max(1), &self.raw.counters)
                    .map(|()| transfers.into_iter().try_for_each(Transfer::into_result))
            }
        };
        match done {
            Ok(result) => result,
            Err(_) => {
                for write in writes {
                    self.raw.pwrite(write.offset, write.data)?;
                }
                if dsync && !writes.is_empty() {
                    self.raw.flush()
                } else {
                    Ok(())
                }
            }
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
