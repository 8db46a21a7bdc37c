//! The decoders of this crate as fuzz targets: each takes arbitrary bytes and panics only where a
//! decoder breaks its promise. Behind the feature `fuzzing`; not part of the API.
//!
//! A fuzzer cannot guess checksums, so each target makes them right before it decodes: what is
//! tried is everything that lies behind them. The promises: no panic, no endless loop, nothing
//! allocated beyond a small multiple of the input, and what was accepted is written back with the
//! same meaning.
//!
//! Targets with a [`Target::seed`] of valid bytes are found faster; `tests/fuzz` runs them under
//! libFuzzer, `tests/tests/fuzz.rs` for a moment in every test run.

use uuid::Uuid;

use crate::codec::Decoder;
use crate::format::op::{FLAG_EXACT, InodeRecord, Op};
use crate::format::owner::Owner;
use crate::format::record;
use crate::format::region::{HeaderCopy, RegionHeader};
use crate::format::superblock::{Superblock, SuperblockCopy};
use crate::meta::inode::MODE_DIRECTORY;
use crate::meta::tables::{ROOT, Tables};
use crate::types::{BLOCK_SIZE, Ino};

/// One decoder.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, as of the binary below `tests/fuzz`.
    pub name: &'static str,
    /// Decodes bytes.
    pub run: fn(&[u8]),
    /// Bytes that decode well.
    pub seed: fn() -> Vec<u8>,
}

/// Every decoder of bytes from a device.
pub const TARGETS: [Target; 5] = [
    Target {
        name: "superblock",
        run: superblock,
        seed: superblock_seed,
    },
    Target {
        name: "region_header",
        run: region_header,
        seed: region_header_seed,
    },
    Target {
        name: "owner",
        run: owner,
        seed: || Owner::this_process(1).encode(),
    },
    Target {
        name: "record",
        run: journal_record,
        seed: journal_record_seed,
    },
    Target {
        name: "checkpoint",
        run: checkpoint,
        seed: checkpoint_seed,
    },
];

const UUID: Uuid = Uuid::from_u128(0x6c61_7661);
const REGION_BLOCKS: u64 = 64;

/// One block of `bytes` with `magic` and a right crc over its first 512 bytes.
fn sealed_block(bytes: &[u8], magic: &[u8; 8]) -> Vec<u8> {
    let mut block = bytes.to_vec();
    block.resize(BLOCK_SIZE as usize, 0);
    block[..8].copy_from_slice(magic);
    let crc = crc32c::crc32c(&block[12..512]);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
    block
}

fn superblock(bytes: &[u8]) {
    drop(Superblock::decode(bytes));
    let Ok(SuperblockCopy::Valid(found)) = Superblock::decode(&sealed_block(bytes, b"LAVAFS\r\n"))
    else {
        return;
    };
    let end = found.total_blocks;
    assert!(found.copies().iter().all(|&copy| copy < end));
    let runs = found.data_runs();
    assert!(runs.iter().all(|&(start, blocks)| start + blocks <= end));
    assert!(found.region_start(1) + found.journal_blocks == found.journal_end());
    let again = Superblock::decode(&found.encode()).expect("own bytes");
    assert_eq!(again, SuperblockCopy::Valid(found));
}

fn superblock_seed() -> Vec<u8> {
    let superblock = Superblock {
        epoch: 1,
        uuid: UUID,
        label: "seed".to_owned(),
        total_blocks: 1024,
        middle_block: 512,
        journal_start: 3,
        journal_blocks: REGION_BLOCKS,
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        created_ns: 1,
    };
    superblock.encode()
}

fn region_header(bytes: &[u8]) {
    let _ = RegionHeader::decode_any(bytes);
    let mut block = sealed_block(bytes, b"LAVAJRNL");
    block[16..32].copy_from_slice(UUID.as_bytes());
    let block = sealed_block(&block, b"LAVAJRNL");
    if let HeaderCopy::Valid(found) = RegionHeader::decode(&block, UUID, REGION_BLOCKS) {
        assert!(found.records_offset() <= REGION_BLOCKS * BLOCK_SIZE);
        let again = RegionHeader::decode(&found.encode(), UUID, REGION_BLOCKS);
        assert_eq!(again, HeaderCopy::Valid(found));
    }
}

fn region_header_seed() -> Vec<u8> {
    let header = RegionHeader {
        uuid: UUID,
        epoch: 2,
        first_seq: 3,
        checkpoint_len: 100,
        checkpoint_hash: 4,
        next_id: 5,
        carried: 0,
    };
    header.encode()
}

fn owner(bytes: &[u8]) {
    let _ = Owner::decode(bytes);
    // The magic is taken from the input: a wrong one is refused.
    let mut block = bytes.to_vec();
    block.resize(BLOCK_SIZE as usize, 0);
    let crc = crc32c::crc32c(&block[12..512]);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
    if let Some(found) = Owner::decode(&block) {
        let _ = (found.to_string(), found.encode());
    }
}

/// `bytes` as a record whose length and checksum are right.
fn journal_record(bytes: &[u8]) {
    let _ = record::peek(bytes).map(|header| record::verified_body(bytes, &header, UUID));
    let body = &bytes[..bytes.len().min(record::BODY_LEN_MAX)];
    let mut whole = vec![0; record::RECORD_HEADER_LEN];
    whole.extend_from_slice(body);
    record::seal(&mut whole, UUID, 1, 2, 3, 4);
    let header = record::peek(&whole).expect("just sealed");
    let found = record::verified_body(&whole, &header, UUID);
    assert_eq!(found, Some(body));
    operations(body);
}

fn journal_record_seed() -> Vec<u8> {
    checkpoint_seed()
}

/// Every operation that decodes is written back as the same operation.
fn operations(bytes: &[u8]) {
    let mut decoder = Decoder::new(bytes);
    let mut again = Vec::new();
    while let Some(op) = Op::decode(&mut decoder) {
        again.clear();
        op.encode(&mut again);
        let decoded = Op::decode(&mut Decoder::new(&again));
        assert_eq!(decoded, Some(op));
    }
}

/// `bytes` as a checkpoint whose hash is right: applied to empty tables, then checked as fsck does.
fn checkpoint(bytes: &[u8]) {
    let mut tables = Tables::default();
    let mut freed = Vec::new();
    let whole = tables.apply_all(bytes, &mut freed);
    let _ = (tables.problems(), tables.orphans(), tables.used_runs());
    for dir in tables.directories() {
        let _ = tables.entries(dir, None).count();
    }
    if whole.is_some() {
        // Replaying outcomes once more changes nothing (they are idempotent).
        let names = |tables: &Tables| {
            let mut dirs = tables.directories();
            dirs.sort_unstable();
            dirs.iter()
                .map(|&dir| tables.entries(dir, None).count())
                .collect::<Vec<_>>()
        };
        let before = (tables.inodes.len(), names(&tables));
        let _ = tables.apply_all(bytes, &mut freed);
        assert_eq!(before, (tables.inodes.len(), names(&tables)));
    }
}

/// A checkpoint of a directory and a file with an extent and an attribute.
pub fn checkpoint_seed() -> Vec<u8> {
    let mut out = Tables::initial(7);
    let file = Ino(2);
    let ops = [
        Op::SetInode(InodeRecord {
            ino: file,
            generation: 2,
            mode: 0o100_644,
            uid: 0,
            gid: 0,
            links: 1,
            flags: FLAG_EXACT,
            size: 5000,
            modified_ns: 8,
            changed_ns: 9,
        }),
        Op::SetExtent {
            ino: file,
            index: 0,
            start: 200,
            blocks: 2,
        },
        Op::SetInode(InodeRecord {
            ino: Ino(3),
            generation: 3,
            mode: MODE_DIRECTORY | 0o755,
            uid: 0,
            gid: 0,
            links: 1,
            flags: FLAG_EXACT,
            size: 0,
            modified_ns: 8,
            changed_ns: 9,
        }),
        Op::SetXattr {
            ino: file,
            name: b"user.key",
            value: b"value",
        },
        Op::Link {
            dir: ROOT,
            name: b"directory",
            ino: Ino(3),
        },
        Op::Link {
            dir: Ino(3),
            name: b"file",
            ino: file,
        },
        Op::SetSize {
            ino: file,
            exact: true,
            size: 6000,
            modified_ns: 10,
            check_from: 5000,
            check_crc: 1,
        },
    ];
    for op in &ops {
        op.encode(&mut out);
    }
    out
}
