//! Metadata operations: what journal records and checkpoints are made of.
//!
//! An operation is an absolute outcome ("entry `a` of directory 1 is inode 7"), never a
//! difference, so that replaying it over a state that already has it changes nothing. That is
//! what lets a checkpoint be taken piece by piece while operations go on: replaying every record
//! since its start repairs whatever it saw half-way.
//!
//! An operation is one kind byte and its fields in order; integers are varints, times fixed
//! 8 bytes, names and values length-prefixed bytes:
//!
//! | kind | operation | fields |
//! | --- | --- | --- |
//! | 1 | SetInode | ino, generation, mode, uid, gid, links, flags, size, modified_ns, changed_ns |
//! | 2 | RemoveInode | ino |
//! | 3 | SetExtent | ino, index, start block, blocks |
//! | 4 | KeepExtents | ino, count, blocks of the last one |
//! | 5 | SetSize | ino, exact, size, modified_ns, check_from, check_crc |
//! | 6 | Link | directory, name, ino |
//! | 7 | Unlink | directory, name |
//! | 8 | SetTarget | ino, target of a symbolic link |
//! | 9 | SetXattr | ino, name, value |
//! | 10 | RemoveXattr | ino, name |
//!
//! `SetSize` with `check_from < size` was written together with the data it covers, under one
//! flush: recovery applies it from the last record only if crc32c of bytes `check_from..size`
//! of the file is `check_crc`. Kind 0 is never written, so zeros hold no operation.

use crate::codec::{Decoder, put_bytes, put_varint};
use crate::types::Ino;

/// Inode flag: the size is exactly `size`, not merely at least.
pub(crate) const FLAG_EXACT: u64 = 1 << 0;
/// Inode flag: the file's tail policy is *seal*.
pub(crate) const FLAG_SEAL: u64 = 1 << 1;

/// Most bytes that one `SetSize` covers by checksum. Bounds what recovery reads for it.
pub(crate) const CHECKED_LEN_MAX: u64 = 64 << 10;

/// Bounds that no filesystem reaches, so that sums of what a device claims do not overflow and
/// its claims do not make memory run out: bytes of a file, blocks of a device, extents of a file.
const SIZE_MAX: u64 = 1 << 60;
const BLOCKS_MAX: u64 = 1 << 40;
const EXTENTS_MAX: u64 = 1 << 22;

/// An inode's attributes, as journaled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct InodeRecord {
    pub(crate) ino: Ino,
    pub(crate) generation: u64,
    /// File type and permission bits as in `st_mode`.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u32,
    pub(crate) flags: u64,
    pub(crate) size: u64,
    pub(crate) modified_ns: i64,
    pub(crate) changed_ns: i64,
}

/// One operation. Names borrow from the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op<'a> {
    SetInode(InodeRecord),
    RemoveInode {
        ino: Ino,
    },
    SetExtent {
        ino: Ino,
        index: u64,
        start: u64,
        blocks: u64,
    },
    KeepExtents {
        ino: Ino,
        count: u64,
        last_blocks: u64,
    },
    SetSize {
        ino: Ino,
        exact: bool,
        size: u64,
        modified_ns: i64,
        check_from: u64,
        check_crc: u32,
    },
    Link {
        dir: Ino,
        name: &'a [u8],
        ino: Ino,
    },
    Unlink {
        dir: Ino,
        name: &'a [u8],
    },
    SetTarget {
        ino: Ino,
        target: &'a [u8],
    },
    SetXattr {
        ino: Ino,
        name: &'a [u8],
        value: &'a [u8],
    },
    RemoveXattr {
        ino: Ino,
        name: &'a [u8],
    },
}

impl<'a> Op<'a> {
    /// Appends the encoded operation.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Op::SetInode(inode) => encode_inode(&inode, out),
            Op::RemoveInode { ino } => put_fields(out, 2, &[ino.0]),
            Op::SetExtent {
                ino,
                index,
                start,
                blocks,
            } => {
                put_fields(out, 3, &[ino.0, index, start, blocks]);
            }
            Op::KeepExtents {
                ino,
                count,
                last_blocks,
            } => {
                put_fields(out, 4, &[ino.0, count, last_blocks]);
            }
            Op::SetSize {
                ino,
                exact,
                size,
                modified_ns,
                check_from,
                check_crc,
            } => {
                put_fields(out, 5, &[ino.0, u64::from(exact), size]);
                out.extend_from_slice(&modified_ns.to_le_bytes());
                put_varint(out, check_from);
                out.extend_from_slice(&check_crc.to_le_bytes());
            }
            Op::Link { dir, name, ino } => {
                put_fields(out, 6, &[dir.0]);
                put_bytes(out, name);
                put_varint(out, ino.0);
            }
            Op::Unlink { dir, name } => {
                put_fields(out, 7, &[dir.0]);
                put_bytes(out, name);
            }
            Op::SetTarget { ino, target } => {
                put_fields(out, 8, &[ino.0]);
                put_bytes(out, target);
            }
            Op::SetXattr { ino, name, value } => {
                put_fields(out, 9, &[ino.0]);
                put_bytes(out, name);
                put_bytes(out, value);
            }
            Op::RemoveXattr { ino, name } => {
                put_fields(out, 10, &[ino.0]);
                put_bytes(out, name);
            }
        }
    }

    /// Decodes the next operation; `None` where the bytes are malformed.
    pub(crate) fn decode(d: &mut Decoder<'a>) -> Option<Op<'a>> {
        let kind = d.u8()?;
        if kind == 0 {
            return None;
        }
        let ino = Ino(d.varint()?);
        let op = match kind {
            1 => Op::SetInode(decode_inode(ino, d)?),
            2 => Op::RemoveInode { ino },
            3 => Op::SetExtent {
                ino,
                index: d.varint()?,
                start: d.varint()?,
                blocks: d.varint()?,
            },
            4 => Op::KeepExtents {
                ino,
                count: d.varint()?,
                last_blocks: d.varint()?,
            },
            5 => Op::SetSize {
                ino,
                exact: d.varint()? != 0,
                size: d.varint()?,
                modified_ns: d.i64()?,
                check_from: d.varint()?,
                check_crc: d.u32()?,
            },
            6 => Op::Link {
                dir: ino,
                name: d.bytes()?,
                ino: Ino(d.varint()?),
            },
            7 => Op::Unlink {
                dir: ino,
                name: d.bytes()?,
            },
            8 => Op::SetTarget {
                ino,
                target: d.bytes()?,
            },
            9 => Op::SetXattr {
                ino,
                name: d.bytes()?,
                value: d.bytes()?,
            },
            10 => Op::RemoveXattr {
                ino,
                name: d.bytes()?,
            },
            _ => return None,
        };
        op.is_within_bounds().then_some(op)
    }

    fn is_within_bounds(&self) -> bool {
        match *self {
            Op::SetInode(inode) => inode.size <= SIZE_MAX,
            Op::SetSize {
                size, check_from, ..
            } => size <= SIZE_MAX && size.saturating_sub(check_from) <= CHECKED_LEN_MAX,
            Op::SetExtent {
                index,
                start,
                blocks,
                ..
            } => index < EXTENTS_MAX && start <= BLOCKS_MAX && blocks <= BLOCKS_MAX,
            _ => true,
        }
    }
}

fn put_fields(out: &mut Vec<u8>, kind: u8, fields: &[u64]) {
    out.push(kind);
    for &field in fields {
        put_varint(out, field);
    }
}

fn encode_inode(inode: &InodeRecord, out: &mut Vec<u8>) {
    put_fields(
        out,
        1,
        &[
            inode.ino.0,
            inode.generation,
            u64::from(inode.mode),
            u64::from(inode.uid),
            u64::from(inode.gid),
            u64::from(inode.links),
            inode.flags,
            inode.size,
        ],
    );
    out.extend_from_slice(&inode.modified_ns.to_le_bytes());
    out.extend_from_slice(&inode.changed_ns.to_le_bytes());
}

fn decode_inode(ino: Ino, d: &mut Decoder<'_>) -> Option<InodeRecord> {
    Some(InodeRecord {
        ino,
        generation: d.varint()?,
        mode: d.varint_u32()?,
        uid: d.varint_u32()?,
        gid: d.varint_u32()?,
        links: d.varint_u32()?,
        flags: d.varint()?,
        size: d.varint()?,
        modified_ns: d.i64()?,
        changed_ns: d.i64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_operation_comes_back_as_it_went_in() {
        let ino = Ino(300);
        let ops = [
            Op::SetInode(InodeRecord {
                ino,
                generation: 9,
                mode: 0o100644,
                uid: 1000,
                gid: 100,
                links: 2,
                flags: FLAG_EXACT | FLAG_SEAL,
                size: 1 << 40,
                modified_ns: -5,
                changed_ns: i64::MAX,
            }),
            Op::RemoveInode { ino },
            Op::SetExtent {
                ino,
                index: 3,
                start: 1 << 33,
                blocks: 256,
            },
            Op::KeepExtents {
                ino,
                count: 0,
                last_blocks: 0,
            },
            Op::SetSize {
                ino,
                exact: true,
                size: 4096,
                modified_ns: 77,
                check_from: 512,
                check_crc: 0xdead_beef,
            },
            Op::Link {
                dir: Ino(1),
                name: b"a",
                ino,
            },
            Op::Unlink {
                dir: Ino(1),
                name: b"\xff",
            },
            Op::SetTarget {
                ino,
                target: b"../b",
            },
            Op::SetXattr {
                ino,
                name: b"user.x",
                value: b"",
            },
            Op::RemoveXattr {
                ino,
                name: b"user.x",
            },
        ];
        let mut bytes = Vec::new();
        for op in &ops {
            op.encode(&mut bytes);
        }
        let mut decoder = Decoder::new(&bytes);
        for op in ops {
            assert_eq!(Op::decode(&mut decoder), Some(op));
        }
        assert!(decoder.is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let mut decoder = Decoder::new(&bytes);
            while Op::decode(&mut decoder).is_some() {}
        }
    }
}
