//! Reading: from the tail buffer what is not on the device yet, the rest from the extents.
//!
//! Readers of one file share its `gate` across device I/O; readers of different files share no
//! lock. Bytes that are wanted whole, at a multiple of the logical block and into an aligned buffer go
//! there without a copy; others go through a buffer of the thread's.

use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::device::{AlignedBuf, DeviceRead};
use crate::error::{Error, Result};
use crate::file::handle::{LavaFile, OpenFile};
use crate::types::{BLOCK_SIZE, align_down, align_up};
use crate::vfs::ReadRequest;

/// Longest bounce buffer that a thread keeps, in bytes.
const BOUNCE_LEN_MAX: usize = 1 << 20;

/// Reads of one request that are in flight at a time.
const QUEUE_DEPTH: usize = 32;

thread_local! {
    static BOUNCE: RefCell<AlignedBuf> = RefCell::new(AlignedBuf::zeroed(0));
}

impl OpenFile {
    /// See [`crate::File::read_at`] and [`crate::File::read_unverified`].
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8], unverified: bool) -> Result<usize> {
        let _gate = self.gate.read();
        let (from_device, len) = self.copy_tail(offset, buf, unverified);
        if from_device > 0 {
            self.read_stream(offset, &mut buf[..from_device], len, unverified)?;
        }
        Ok(len)
    }

    /// Copies what of `offset..offset + buf.len()` is in the tail buffer. Returns how many bytes
    /// before that must come from the device, and how many there are in all.
    fn copy_tail(&self, offset: u64, buf: &mut [u8], unverified: bool) -> (usize, usize) {
        let wanted_end = offset.saturating_add(buf.len() as u64);
        if unverified && self.uncertain.load(Ordering::Acquire) {
            let end = wanted_end.min(self.inode.state.read().allocated());
            let len = end.saturating_sub(offset) as usize;
            return (len, len);
        }
        let tail = self.tail.read();
        let end = wanted_end.min(tail.end());
        if offset >= end {
            return (0, 0);
        }
        if end > tail.start {
            let first = offset.max(tail.start);
            let bytes = &tail.bytes()[(first - tail.start) as usize..(end - tail.start) as usize];
            buf[(first - offset) as usize..(end - offset) as usize].copy_from_slice(bytes);
        }
        let below = end.min(tail.start).saturating_sub(offset) as usize;
        drop(tail);
        (
            self.pipeline.copy(offset, &mut buf[..below]),
            (end - offset) as usize,
        )
    }

    /// Fills `buf` with bytes at `offset` that are on the device.
    pub(super) fn read_device(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _gate = self.gate.read();
        self.read_device_locked(offset, buf)
    }

    /// As [`OpenFile::read_device`], for a caller that shares the gate.
    pub(super) fn read_device_locked(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let unit = self.core.disk.unit();
        let start = align_down(offset, unit);
        let end = align_up(offset + buf.len() as u64, unit);
        if start == offset && end == offset + buf.len() as u64 && AlignedBuf::is_aligned(buf) {
            return self.read_aligned(start, buf);
        }
        with_bounce((end - start) as usize, |bounce| {
            self.read_aligned(start, bounce)?;
            let skip = (offset - start) as usize;
            buf.copy_from_slice(&bounce[skip..skip + buf.len()]);
            Ok(())
        })
    }

    fn read_aligned(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut reads = Vec::with_capacity(1);
        self.plan(offset, buf, &mut reads)?;
        match &mut reads[..] {
            [one] => self.core.disk.read(one.offset, one.buf),
            many => self.core.disk.read_batch(many, QUEUE_DEPTH),
        }
    }

    /// Adds the device reads for whole logical blocks at `offset`.
    fn plan<'a>(
        &self,
        offset: u64,
        mut buf: &'a mut [u8],
        reads: &mut Vec<DeviceRead<'a>>,
    ) -> Result<()> {
        self.runs(offset, buf.len() as u64, |offset, len| {
            let (part, rest) = std::mem::take(&mut buf).split_at_mut(len as usize);
            reads.push(DeviceRead::new(offset, part));
            buf = rest;
        })
    }

    /// Calls `visit` with device offset and length of each part of the whole logical blocks
    /// `offset..offset + len`.
    pub(super) fn runs(
        &self,
        offset: u64,
        len: u64,
        mut visit: impl FnMut(u64, u64),
    ) -> Result<()> {
        let state = self.inode.state.read();
        let mut at = offset;
        while at < offset + len {
            let block = align_down(at, BLOCK_SIZE);
            let run = state.extents.find(block / BLOCK_SIZE).ok_or_else(|| {
                Error::corrupt(
                    "extent list",
                    at,
                    format!("inode {} has no block there", self.ino()),
                )
            })?;
            let part = (block + run.blocks * BLOCK_SIZE - at).min(offset + len - at);
            visit(run.start * BLOCK_SIZE + (at - block), part);
            at += part;
        }
        Ok(())
    }
}

/// Runs `body` with an aligned buffer of `len` bytes, the thread's own where it is long enough.
fn with_bounce<R>(len: usize, body: impl FnOnce(&mut [u8]) -> R) -> R {
    if len > BOUNCE_LEN_MAX {
        return body(&mut AlignedBuf::zeroed(len));
    }
    BOUNCE.with_borrow_mut(|bounce| {
        if bounce.len() < len {
            *bounce = AlignedBuf::zeroed(len.next_power_of_two());
        }
        body(&mut bounce[..len])
    })
}

/// See [`crate::FileSystem::read_batch`] and [`crate::FileSystem::read_batch_timed`].
pub(crate) fn read_batch(
    requests: &mut [ReadRequest<'_>],
    queue_depth: usize,
    latencies: Option<&mut [Duration]>,
) -> Result<()> {
    let mut files = Vec::with_capacity(requests.len());
    for request in requests.iter() {
        let file = request
            .file
            .as_any()
            .downcast_ref::<LavaFile>()
            .ok_or_else(|| Error::Invalid {
                what: "a batch names a file of another filesystem".to_owned(),
            })?;
        files.push(file.open.clone());
    }
    let Some(first) = files.first() else {
        return Ok(());
    };
    let disk = first.core.disk.clone();
    // Shared gates nest without harm only if a thread takes each once: a waiting truncate blocks
    // new readers, also this one.
    let mut distinct: Vec<_> = files.iter().collect();
    distinct.sort_by_key(|file| file.ino());
    distinct.dedup_by_key(|file| file.ino());
    let _gates: Vec<_> = distinct.iter().map(|file| file.gate.read()).collect();

    let unit = disk.unit();
    let mut bounces: Vec<Bounce> = Vec::new();
    let mut reads = Vec::with_capacity(requests.len());
    // The request that each device read belongs to.
    let mut owners = Vec::with_capacity(requests.len());
    let mut indirect = Vec::new();
    for (index, (request, file)) in requests.iter_mut().zip(&files).enumerate() {
        let (from_device, len) = file.copy_tail(request.offset, request.buf, false);
        request.read = len;
        if from_device == 0 {
            continue;
        }
        let start = align_down(request.offset, unit);
        let end = align_up(request.offset + from_device as u64, unit);
        let direct = start == request.offset
            && end == request.offset + from_device as u64
            && AlignedBuf::is_aligned(request.buf);
        if direct {
            file.plan(start, &mut request.buf[..from_device], &mut reads)?;
            owners.resize(reads.len(), index);
        } else {
            indirect.push((index, start));
            bounces.push(Bounce {
                skip: (request.offset - start) as usize,
                len: from_device,
                buf: AlignedBuf::zeroed((end - start) as usize),
            });
        }
    }
    for (bounce, &(index, start)) in bounces.iter_mut().zip(&indirect) {
        files[index].plan(start, &mut bounce.buf, &mut reads)?;
        owners.resize(reads.len(), index);
    }
    disk.read_batch(&mut reads, queue_depth)?;
    if let Some(latencies) = latencies {
        latencies[..files.len()].fill(Duration::ZERO);
        for (read, &owner) in reads.iter().zip(&owners) {
            latencies[owner] = latencies[owner].max(read.elapsed);
        }
    }
    drop(reads);
    for (bounce, &(index, _)) in bounces.iter().zip(&indirect) {
        let bytes = &bounce.buf[bounce.skip..bounce.skip + bounce.len];
        requests[index].buf[..bounce.len].copy_from_slice(bytes);
    }
    Ok(())
}

/// Where a request's bytes go before they are copied to it.
struct Bounce {
    skip: usize,
    len: usize,
    buf: AlignedBuf,
}
