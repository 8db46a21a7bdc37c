//! Dump: what is on the device, structure by structure, as far as it can be read.
//!
//! For people who look at a filesystem that may be damaged, so every structure is read and shown
//! for itself: a damaged one is a sentence in the dump, and only a failing device or a device without any
//! trace of LavaFS is an error. Nothing is written. Fields are plain numbers and strings, for a
//! caller that prints them in a form of its own; `Display` gives text.
//!
//! Journal records are given one by one and not kept, since a journal may be large.

mod print;
mod read;

use std::sync::Arc;

use crate::codec::Decoder;
use crate::device::BlockDevice;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::op::Op;
use crate::format::owner::Owner;
use crate::format::region::RegionHeader;
use crate::format::superblock::Superblock;
use crate::fragmentation::Fragmentation;
use crate::meta::recovery::for_each_record;

/// What is on a device.
#[derive(Debug)]
pub struct Dump {
    disk: Arc<Disk>,
    headers: [Option<RegionHeader>; 2],
    /// The device's name.
    pub device: String,
    /// Its size in bytes.
    pub device_size: u64,
    /// Its logical block in bytes.
    pub logical_block: u64,
    /// The superblock that counts, if any is readable.
    pub superblock: Option<Superblock>,
    /// Each place where a superblock copy is or may be.
    pub copies: Vec<CopyDump>,
    /// The process that has or had the filesystem mounted for writing.
    pub owner: Option<Owner>,
    /// That process may still run, so that all this is a moving view.
    pub owner_may_live: bool,
    /// The journal regions A and B; none without a superblock.
    pub regions: Vec<RegionDump>,
    /// Index of the region that counts.
    pub active_region: Option<usize>,
    /// What is wrong, as sentences.
    pub problems: Vec<String>,
    /// Every file, directory and symbolic link, by inode number; none where the metadata is
    /// unreadable.
    pub inodes: Vec<InodeDump>,
    /// What the extents leave free, ascending, as (start block, blocks).
    pub free_runs: Vec<(u64, u64)>,
    /// In which pieces free space and files lie.
    pub fragmentation: Fragmentation,
}

/// A place for a superblock copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyDump {
    /// Block of 4 KiB.
    pub block: u64,
    /// What is there.
    pub state: CopyState,
}

/// What is in the place of a superblock copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CopyState {
    /// The superblock that counts.
    Current,
    /// A good copy of another epoch.
    Other {
        /// Its epoch.
        epoch: u64,
    },
    /// Unreadable, or no superblock.
    Damaged,
    /// A superblock of a newer format.
    Unsupported,
}

/// A journal region.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionDump {
    /// First block.
    pub start: u64,
    /// Length in blocks.
    pub blocks: u64,
    /// The two header copies.
    pub headers: [HeaderDump; 2],
    /// The checkpoint's hash is right; `None` where no header is readable.
    pub checkpoint_is_whole: Option<bool>,
    /// Number of readable records.
    pub records: u64,
    /// Byte offset on the device behind the last of them.
    pub records_end: u64,
    /// A record behind them was not completed.
    pub is_torn: bool,
    /// Why the records cannot end there, as a sentence.
    pub damage: Option<String>,
}

/// A copy of a journal region's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderDump {
    /// A good one.
    Valid {
        /// Of the region; the higher one counts.
        epoch: u64,
        /// Sequence number of the first record.
        first_seq: u64,
        /// Bytes of the checkpoint.
        checkpoint_len: u64,
        /// xxh3-64 of the checkpoint.
        checkpoint_hash: u64,
        /// Bound of the inode numbers and generations given out.
        next_id: u64,
        /// Records that were durable before the header.
        carried: u64,
    },
    /// Zeros.
    Blank,
    /// Anything else.
    Damaged,
}

/// One journal record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordDump {
    /// Sequence number.
    pub seq: u64,
    /// Byte offset on the device.
    pub offset: u64,
    /// Bytes of operations.
    pub len: u64,
    /// Bound of the inode numbers and generations given out.
    pub next_id: u64,
    /// The operations, one sentence each.
    pub operations: Vec<String>,
    /// All of the record could be decoded.
    pub is_whole: bool,
}

/// A file, directory or symbolic link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InodeDump {
    /// Inode number.
    pub ino: u64,
    /// One of its paths; `None` where no name leads to it.
    pub path: Option<String>,
    /// "file", "directory" or "symlink".
    pub kind: &'static str,
    /// Number of names.
    pub links: u32,
    /// Generation of its bytes.
    pub generation: u64,
    /// Bounds of its size in bytes; equal where it is exact.
    pub size: (u64, u64),
    /// Its extents in file order, as (start block, blocks).
    pub extents: Vec<(u64, u64)>,
}

impl Dump {
    /// Reads all but the journal records.
    ///
    /// # Errors
    /// `Io`; `NotLavaFs` for a device without a trace of LavaFS; `Unsupported` for a newer format.
    pub fn read(device: Arc<dyn BlockDevice>) -> Result<Dump> {
        read::read(Arc::new(Disk::new(device)))
    }

    /// Gives the readable records of region 0 (A) or 1 (B) to `visit`, in order. Ends with the
    /// first error of it.
    ///
    /// # Errors
    /// `Io`, and what `visit` returns. None for a region without a readable header.
    pub fn for_each_record(
        &self,
        region: usize,
        mut visit: impl FnMut(&RecordDump) -> Result<()>,
    ) -> Result<()> {
        let (Some(superblock), Some(header)) = (&self.superblock, &self.headers[region]) else {
            return Ok(());
        };
        for_each_record(
            &self.disk,
            superblock,
            region,
            header,
            &mut |offset, record, body| {
                let (operations, is_whole) = operations(body);
                visit(&RecordDump {
                    seq: record.seq,
                    offset,
                    len: body.len() as u64,
                    next_id: record.next_id,
                    operations,
                    is_whole,
                })
            },
        )?;
        Ok(())
    }
}

/// The operations in `body` as sentences, and whether all could be decoded.
fn operations(body: &[u8]) -> (Vec<String>, bool) {
    let mut decoder = Decoder::new(body);
    let mut sentences = Vec::new();
    while !decoder.is_empty() {
        match Op::decode(&mut decoder) {
            Some(op) => sentences.push(print::operation(&op)),
            None => return (sentences, false),
        }
    }
    (sentences, true)
}

/// True for an error that is about the bytes on the device and not about the device.
fn is_about_bytes(error: &Error) -> bool {
    !matches!(error, Error::Io { .. })
}
