//! Inode: what is known of one file, directory or symbolic link, in memory.
//!
//! Owned by [`super::tables::Tables`] and shared with open files. `state` is the only lock; it guards attributes, extents
//! and sizes, is never held across device I/O, and may be taken with the tables locked but not the
//! other way round. Whoever changes `state` enqueues the operation that says so before letting
//! go of the lock, so that a checkpoint that sees a change finds its operation in the journal's
//! queue or already written.

use std::collections::BTreeMap;

use parking_lot::RwLock;

use crate::alloc::Run;
use crate::codec::Decoder;
use crate::format::op::{FLAG_EXACT, FLAG_SEAL, InodeRecord, Op};
use crate::meta::extents::ExtentList;
use crate::types::{BLOCK_SIZE, FileSize, Ino};
use crate::vfs::{FileKind, TailPolicy};

pub(crate) const MODE_TYPE: u32 = 0o170_000;
pub(crate) const MODE_FILE: u32 = 0o100_000;
pub(crate) const MODE_DIRECTORY: u32 = 0o040_000;
pub(crate) const MODE_SYMLINK: u32 = 0o120_000;

/// One inode.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) ino: Ino,
    pub(crate) state: RwLock<InodeState>,
}

/// The changing part of an inode.
#[derive(Debug)]
pub(crate) struct InodeState {
    pub(crate) generation: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u32,
    pub(crate) tail: TailPolicy,
    /// True where the journal says that the file is exactly `durable_size` long.
    pub(crate) exact: bool,
    /// Size that readers see. At least `durable_size`; equal to it after recovery.
    pub(crate) size: u64,
    /// Size known to be durable. Moves forward only when the writes below it have completed and
    /// are flushed, or are enqueued in the journal behind such a flush.
    pub(crate) durable_size: u64,
    pub(crate) modified_ns: i64,
    pub(crate) changed_ns: i64,
    pub(crate) extents: ExtentList,
    pub(crate) extra: Option<Box<Extra>>,
}

/// What few inodes have.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// Target of a symbolic link.
    pub(crate) target: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Inode {
    pub(crate) fn new(record: &InodeRecord) -> Self {
        Inode {
            ino: record.ino,
            state: RwLock::new(InodeState::new(record)),
        }
    }
}

impl InodeState {
    fn new(record: &InodeRecord) -> Self {
        let mut state = InodeState {
            generation: 0,
            mode: 0,
            uid: 0,
            gid: 0,
            links: 0,
            tail: TailPolicy::Pack,
            exact: false,
            size: 0,
            durable_size: 0,
            modified_ns: 0,
            changed_ns: 0,
            extents: ExtentList::default(),
            extra: None,
        };
        state.set_attributes(record);
        state.exact = record.flags & FLAG_EXACT != 0;
        state.durable_size = record.size;
        state.size = record.size;
        state
    }

    /// Takes over what a SetInode operation says, apart from the size: of an inode that exists
    /// only SetSize changes that. A SetInode enqueued behind a SetSize whose data is not flushed
    /// yet repeats its size, and recovery, which drops the one where the data is not there, would
    /// have believed the other.
    fn set_attributes(&mut self, record: &InodeRecord) {
        self.generation = record.generation;
        self.mode = record.mode;
        self.uid = record.uid;
        self.gid = record.gid;
        self.links = record.links;
        self.tail = if record.flags & FLAG_SEAL != 0 {
            TailPolicy::Seal
        } else {
            TailPolicy::Pack
        };
        self.modified_ns = record.modified_ns;
        self.changed_ns = record.changed_ns;
    }

    /// The SetInode operation that says what is known durably of this inode.
    pub(crate) fn record(&self, ino: Ino) -> InodeRecord {
        let exact = if self.exact { FLAG_EXACT } else { 0 };
        let seal = if self.tail == TailPolicy::Seal {
            FLAG_SEAL
        } else {
            0
        };
        InodeRecord {
            ino,
            generation: self.generation,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            links: self.links,
            flags: exact | seal,
            size: self.durable_size,
            modified_ns: self.modified_ns,
            changed_ns: self.changed_ns,
        }
    }

    /// Applies an operation on this inode; the runs that it frees are added to `freed`. Returns
    /// false for an operation that is not about an inode's state.
    pub(crate) fn apply(&mut self, op: &Op<'_>, freed: &mut Vec<Run>) -> bool {
        match *op {
            Op::SetInode(ref record) => self.set_attributes(record),
            Op::SetExtent {
                index,
                start,
                blocks,
                ..
            } => {
                self.extents.set(index as usize, Run { start, blocks });
            }
            Op::KeepExtents {
                count, last_blocks, ..
            } => {
                freed.extend(self.extents.keep(count as usize, last_blocks));
            }
            Op::SetSize {
                exact,
                size,
                modified_ns,
                ..
            } => {
                self.exact = exact;
                self.durable_size = size;
                self.modified_ns = modified_ns;
            }
            Op::SetTarget { target, .. } => self.extra_mut().target = target.to_vec(),
            Op::SetXattr { name, value, .. } => {
                self.extra_mut()
                    .xattrs
                    .insert(name.to_vec(), value.to_vec());
            }
            Op::RemoveXattr { name, .. } => {
                self.extra_mut().xattrs.remove(name);
            }
            Op::RemoveInode { .. } | Op::Link { .. } | Op::Unlink { .. } => return false,
        }
        true
    }

    /// Applies encoded operations on this inode. `None` where they are malformed.
    pub(crate) fn apply_all(&mut self, bytes: &[u8], freed: &mut Vec<Run>) -> Option<()> {
        let mut decoder = Decoder::new(bytes);
        while !decoder.is_empty() {
            self.apply(&Op::decode(&mut decoder)?, freed);
        }
        Some(())
    }

    /// Encodes the operations that make this inode anew.
    pub(crate) fn encode(&self, ino: Ino, out: &mut Vec<u8>) {
        Op::SetInode(self.record(ino)).encode(out);
        for (index, run) in self.extents.runs().enumerate() {
            let index = index as u64;
            Op::SetExtent {
                ino,
                index,
                start: run.start,
                blocks: run.blocks,
            }
            .encode(out);
        }
        if let Some(extra) = &self.extra {
            if !extra.target.is_empty() {
                Op::SetTarget {
                    ino,
                    target: &extra.target,
                }
                .encode(out);
            }
            for (name, value) in &extra.xattrs {
                Op::SetXattr { ino, name, value }.encode(out);
            }
        }
    }

    pub(crate) fn kind(&self) -> FileKind {
        match self.mode & MODE_TYPE {
            MODE_DIRECTORY => FileKind::Directory,
            MODE_SYMLINK => FileKind::Symlink,
            _ => FileKind::File,
        }
    }

    /// Bytes allocated.
    pub(crate) fn allocated(&self) -> u64 {
        self.extents.blocks().saturating_mul(BLOCK_SIZE)
    }

    /// What the journal alone says of the size: what a reader after a crash may believe.
    pub(crate) fn journaled_size(&self) -> FileSize {
        let upper = self.allocated();
        if self.exact || upper <= self.durable_size {
            FileSize::Exact(self.durable_size)
        } else {
            FileSize::Between {
                lower: self.durable_size,
                upper,
            }
        }
    }

    pub(crate) fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One thread's fsync had enqueued a size with the checksum of its data, and another's chmod
    /// the attributes, size included. One record held both, a crash lost the data, recovery
    /// dropped the size, and the attributes brought it back.
    #[test]
    fn attributes_do_not_bring_a_dropped_size_back() {
        let mut record = InodeRecord {
            ino: Ino(7),
            generation: 7,
            mode: MODE_FILE | 0o644,
            uid: 0,
            gid: 0,
            links: 1,
            flags: 0,
            size: 100,
            modified_ns: 0,
            changed_ns: 0,
        };
        let inode = Inode::new(&record);
        record.size = 5000;
        record.flags = FLAG_EXACT;
        record.mode = MODE_FILE | 0o600;
        let mut state = inode.state.write();
        state.apply(&Op::SetInode(record), &mut Vec::new());
        assert_eq!((state.durable_size, state.exact), (100, false));
        assert_eq!(state.mode, record.mode);
    }
}
