//! Checkpoint: all metadata as one stream of operations in the idle journal region.
//!
//! Taken piece by piece while operations go on: each piece is read under the tables' lock for a
//! moment only. Whatever changes meanwhile is in the journal's queue or in records that the
//! switch carries over, and operations are absolute, so replaying them over the pieces gives the
//! state at the switch. Inodes come first, then names.
//!
//! Written in volatile writes of a part each, at a pace that leaves synced appends their share of the
//! device (`pace.rs`), flushed, read back and compared (ceph#45246: a checkpoint
//! that was never read back); only then may the journal switch to it.

use parking_lot::RwLock;
use xxhash_rust::xxh3::Xxh3;

use crate::device::{AlignedBuf, DeviceWrite, Durability};
use crate::disk::{Disk, WriteTicket};
use crate::error::{Error, Result};
use crate::format::op::Op;
use crate::meta::pace::{PART_LEN, Pace};
use crate::meta::tables::{ROOT, Tables};
use crate::types::{BLOCK_SIZE, Ino, align_up};

/// Inodes or names encoded under one hold of the tables' lock.
const PIECE: usize = 512;

/// A checkpoint that is durable and verified.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) len: u64,
    pub(crate) hash: u64,
}

/// Writes a checkpoint of `tables` at byte `offset`, in at most `len_max` bytes.
///
/// # Errors
/// `NoSpace` where it does not fit; `Corrupt` where the device does not return what was written.
pub(crate) fn write(
    disk: &Disk,
    tables: &RwLock<Tables>,
    offset: u64,
    len_max: u64,
    pace: &mut Pace<'_>,
) -> Result<Written> {
    let mut out = Stream::new(disk, offset, len_max, pace);
    for_each_piece(tables, |bytes| out.push(bytes))?;
    let written = out.finish()?;
    verify(disk, offset, &written, pace)?;
    Ok(written)
}

/// Gives every piece of the encoded tables to `sink`.
pub(crate) fn for_each_piece(
    tables: &RwLock<Tables>,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut piece = Vec::new();
    let mut next = Some(ROOT);
    while let Some(from) = next.take() {
        piece.clear();
        let locked = tables.read();
        for (count, (&ino, inode)) in locked.inodes.range(from..).enumerate() {
            if count == PIECE {
                next = Some(ino);
                break;
            }
            inode.state.read().encode(ino, &mut piece);
        }
        drop(locked);
        sink(&piece)?;
    }
    let directories = tables.read().directories();
    for dir in directories {
        let mut after: Option<Vec<u8>> = None;
        while encode_entries(&tables.read(), dir, &mut after, &mut piece) {
            sink(&piece)?;
        }
    }
    Ok(())
}

/// Encodes the next entries of `dir` into `piece`; false where there are none left.
fn encode_entries(
    tables: &Tables,
    dir: Ino,
    after: &mut Option<Vec<u8>>,
    piece: &mut Vec<u8>,
) -> bool {
    piece.clear();
    let mut last = None;
    for (name, ino) in tables.entries(dir, after.as_deref()).take(PIECE) {
        Op::Link { dir, name, ino }.encode(piece);
        last = Some(name.to_vec());
    }
    let some = last.is_some();
    if some {
        *after = last;
    }
    some
}

/// Reads a checkpoint back and compares its hash.
fn verify(disk: &Disk, offset: u64, written: &Written, pace: &mut Pace<'_>) -> Result<()> {
    let mut hash = Xxh3::new();
    let mut buf = AlignedBuf::zeroed(PART_LEN);
    let mut at = 0;
    while at < written.len {
        let part = (written.len - at).min(PART_LEN as u64);
        let aligned = align_up(part, BLOCK_SIZE) as usize;
        pace.part(|| disk.read(offset + at, &mut buf[..aligned]))?;
        hash.update(&buf[..part as usize]);
        at += part;
    }
    if hash.digest() != written.hash {
        let error = Error::corrupt("checkpoint", offset, "read back other than it was written");
        disk.refuse_changes(&error.to_string());
        return Err(error);
    }
    Ok(())
}

/// Buffers a stream of bytes into writes of a part each and hashes it.
struct Stream<'a, 'b> {
    disk: &'a Disk,
    offset: u64,
    len: u64,
    len_max: u64,
    hash: Xxh3,
    buf: AlignedBuf,
    buffered: usize,
    last: WriteTicket,
    pace: &'a mut Pace<'b>,
}

impl<'a, 'b> Stream<'a, 'b> {
    fn new(disk: &'a Disk, offset: u64, len_max: u64, pace: &'a mut Pace<'b>) -> Self {
        Stream {
            disk,
            offset,
            len: 0,
            len_max,
            hash: Xxh3::new(),
            buf: AlignedBuf::zeroed(PART_LEN),
            buffered: 0,
            last: WriteTicket::default(),
            pace,
        }
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        if self.len > self.len_max {
            return Err(Error::NoSpace {
                needed: self.len,
                free: self.len_max,
            });
        }
        while !bytes.is_empty() {
            let part = bytes.len().min(PART_LEN - self.buffered);
            self.buf[self.buffered..self.buffered + part].copy_from_slice(&bytes[..part]);
            self.buffered += part;
            bytes = &bytes[part..];
            if self.buffered == PART_LEN {
                self.write_out(PART_LEN)?;
            }
        }
        Ok(())
    }

    fn write_out(&mut self, len: usize) -> Result<()> {
        let write = DeviceWrite {
            offset: self.offset,
            data: &self.buf[..len],
        };
        let disk = self.disk;
        self.last = self
            .pace
            .part(|| disk.write(&[write], Durability::Volatile))?;
        self.offset += len as u64;
        self.buffered = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<Written> {
        let padded = align_up(self.buffered as u64, BLOCK_SIZE) as usize;
        let buffered = self.buffered;
        self.buf[buffered..padded].fill(0);
        if padded > 0 {
            self.write_out(padded)?;
        }
        self.disk.flush_through(self.last)?;
        Ok(Written {
            len: self.len,
            hash: self.hash.digest(),
        })
    }
}
