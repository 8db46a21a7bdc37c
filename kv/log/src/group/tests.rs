//! Groups of one physical log file: round trips, torn tails and corruption.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use lavafs::{FileSystem, FileSystemRef};

use super::*;
use crate::mem_fs::MemFs;
use crate::{Error, Result};

const PATH: &str = "/wal";

fn path() -> &'static Path {
    Path::new(PATH)
}

fn writer(fs: &Arc<MemFs>) -> GroupWriter {
    let fs: FileSystemRef = fs.clone();
    GroupWriter::create_tagged(&fs, path(), 1 << 20, 77).unwrap()
}

fn put(writer: &mut GroupWriter, payload: &[u8]) -> Position {
    writer.append(&[IoSlice::new(payload)]).unwrap()
}

fn reader(fs: &Arc<MemFs>) -> Result<GroupReader> {
    GroupReader::open(fs.open(path())?, path())
}

/// Payloads, how the file ends, and whether it was closed.
fn read_all(fs: &Arc<MemFs>) -> Result<(Vec<Vec<u8>>, Tail, bool)> {
    let mut reader = reader(fs)?;
    let mut payloads = Vec::new();
    while let Some(group) = reader.next_group()? {
        assert_eq!(group.sequence, payloads.len() as u64);
        payloads.push(group.payload.to_vec());
    }
    Ok((payloads, reader.tail(), reader.is_closed()))
}

fn payload(i: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + i * 31) as u8).collect()
}

#[test]
fn groups_come_back_with_their_positions_synced_or_not() {
    for unit in [512, 4096] {
        let fs = MemFs::new(unit);
        let mut writer = writer(&fs);
        let mut expected = Vec::new();
        for (i, len) in [0, 1, 100, 471, 472, 473, 4096, 3 << 20, 5]
            .into_iter()
            .enumerate()
        {
            let bytes = payload(i, len);
            let (a, b) = bytes.split_at(len / 3);
            let position = writer.append(&[IoSlice::new(a), IoSlice::new(b)]).unwrap();
            let mut back = vec![0; len];
            assert_eq!(
                writer.file().read_at(position.offset, &mut back).unwrap(),
                len
            );
            assert_eq!(back, bytes);
            if i % 3 != 1 {
                writer.sync().unwrap();
            }
            expected.push(bytes);
        }
        let (payloads, tail, closed) = read_all(&fs).unwrap();
        assert!(payloads == expected && tail == Tail::Clean && !closed);
        writer.close_with(b"footer").unwrap();
        let (payloads, tail, closed) = read_all(&fs).unwrap();
        assert!(payloads == expected && tail == Tail::Clean && closed);
        let closing = GroupReader::read_closing(&fs.open(path()).unwrap(), path());
        let closing = closing.unwrap().unwrap();
        assert_eq!(
            (closing.footer.as_slice(), closing.tag),
            (&b"footer"[..], 77)
        );
    }
}

#[test]
fn a_synced_4_kib_record_costs_nine_sectors_and_one_flush() {
    let fs = MemFs::new(512);
    let mut writer = writer(&fs);
    writer.sync().unwrap();
    let before = fs.counters();
    for i in 0..50 {
        put(&mut writer, &payload(i, 4096 + 32));
        writer.sync().unwrap();
        writer.sync().unwrap();
    }
    let cost = fs.counters() - before;
    assert_eq!((cost.write_bytes, cost.flushes), (50 * 9 * 512, 50));
}

#[test]
fn every_torn_prefix_of_an_unsynced_group_is_a_torn_tail() {
    let fs = MemFs::new(512);
    let mut writer = writer(&fs);
    put(&mut writer, &payload(0, 700));
    writer.sync().unwrap();
    put(&mut writer, &payload(1, 300));
    put(&mut writer, &payload(2, 300));
    let whole = writer.len() as usize;
    let synced = 1024;
    for len in synced..=whole {
        let after = fs.crash(|_, bytes, durable| {
            assert_eq!(durable, synced);
            bytes.truncate(len);
        });
        let (payloads, tail, closed) = read_all(&after).unwrap();
        let groups = 1 + (len - synced) / 340;
        assert_eq!(payloads.len(), groups, "cut to {len}");
        let start = synced + (groups - 1) * 340;
        assert_eq!(tail == Tail::Clean, len == start, "cut to {len}");
        assert!(!closed);
    }
}

#[test]
fn unsynced_groups_lost_out_of_order_are_a_torn_tail() {
    let fs = MemFs::new(512);
    let mut writer = writer(&fs);
    put(&mut writer, &payload(0, 100));
    writer.sync().unwrap();
    for i in 1..4 {
        put(&mut writer, &payload(i, 600));
    }
    // The sectors of the first unsynced group are lost, those of the later ones are there.
    let after = fs.crash(|_, bytes, durable| bytes[durable..durable + 512].fill(0xEE));
    let (payloads, tail, _) = read_all(&after).unwrap();
    assert_eq!((payloads.len(), tail), (1, Tail::Torn { offset: 512 }));
}

#[test]
fn any_flipped_bit_before_the_last_group_is_corruption_and_never_a_torn_tail() {
    let fs = MemFs::new(512);
    let mut writer = writer(&fs);
    let mut last = 0;
    for i in 0..4 {
        last = put(&mut writer, &payload(i, 200)).offset as usize - GROUP_HEADER_LEN;
        writer.sync().unwrap();
    }
    for byte in 0..last {
        let after = fs.crash(|_, bytes, _| bytes[byte] ^= 1 << (byte % 8));
        let outcome = read_all(&after);
        if let Ok((payloads, tail, _)) = &outcome {
            // Padding carries nothing.
            assert_eq!((payloads.len(), *tail), (4, Tail::Clean), "byte {byte}");
            assert!(byte % 512 >= 240, "byte {byte}");
            continue;
        }
        let error = outcome.unwrap_err();
        let Error::Corrupt { file, offset, .. } = &error else {
            panic!("byte {byte}: {error}");
        };
        assert_eq!(file, path());
        assert!(*offset as usize <= byte && byte < *offset as usize + 512 + 64);
        assert!(error.to_string().starts_with("/wal is corrupt at byte"));
    }
    // The last group has no witness, until the file is closed.
    for byte in [last, last + 30, last + 100] {
        let after = fs.crash(|_, bytes, _| bytes[byte] ^= 4);
        let (payloads, tail, _) = read_all(&after).unwrap();
        let offset = last as u64;
        assert_eq!((payloads.len(), tail), (3, Tail::Torn { offset }));
    }
    writer.close().unwrap();
    for byte in [last, last + 30, last + 100] {
        let after = fs.crash(|_, bytes, _| bytes[byte] ^= 4);
        assert!(read_all(&after).unwrap_err().is_corrupt(), "byte {byte}");
    }
}

#[test]
fn a_header_that_the_payload_copied_from_an_earlier_group_proves_nothing() {
    let fs = MemFs::new(512);
    let mut writer = writer(&fs);
    put(&mut writer, &payload(0, 400));
    writer.sync().unwrap();
    put(&mut writer, &payload(1, 400));
    writer.sync().unwrap();
    let mut copy = vec![0; 1024];
    writer.file().read_at(0, &mut copy).unwrap();
    put(&mut writer, &copy);
    let after = fs.crash(|_, bytes, durable| bytes[durable + 20] ^= 1);
    let (payloads, tail, _) = read_all(&after).unwrap();
    assert_eq!((payloads.len(), tail), (2, Tail::Torn { offset: 1024 }));
}

#[test]
fn groups_of_an_older_file_in_the_same_extent_never_pass() {
    let fs = MemFs::new(512);
    let mut old = writer(&fs);
    for i in 0..8 {
        put(&mut old, &payload(i, 200));
        old.sync().unwrap();
    }
    let mut leftover = vec![0; 4096];
    old.file().read_at(0, &mut leftover).unwrap();
    fs.unlink(path()).unwrap();
    let mut new = writer(&fs);
    for i in 0..3 {
        put(&mut new, &payload(i, 200));
        new.sync().unwrap();
    }
    let after = fs.crash(|_, bytes, durable| bytes.extend_from_slice(&leftover[durable..]));
    let (payloads, tail, _) = read_all(&after).unwrap();
    assert_eq!((payloads.len(), tail), (3, Tail::Torn { offset: 1536 }));
    // A file that never got its own header durable shows nothing of the old one.
    fs.unlink(path()).unwrap();
    drop(writer(&fs));
    let after = fs.crash(|_, bytes, _| *bytes = leftover.clone());
    let (payloads, tail, _) = read_all(&after).unwrap();
    assert_eq!((payloads.len(), tail), (0, Tail::Torn { offset: 0 }));
}

#[test]
fn a_file_continues_after_a_crash_and_after_a_clean_stop() {
    let fs = MemFs::new(512);
    let mut first = writer(&fs);
    put(&mut first, &payload(0, 300));
    first.sync().unwrap();
    put(&mut first, &payload(1, 1300));
    for crash in [true, false] {
        let fs = if crash {
            fs.crash(|_, bytes, durable| bytes.truncate(durable + 700))
        } else {
            fs.clone()
        };
        let mut expected = vec![payload(0, 300)];
        if !crash {
            expected.push(payload(1, 1300));
        }
        let mut reader = reader(&fs).unwrap();
        assert!(
            GroupWriter::resume(&reader).is_err(),
            "the tail is not known yet"
        );
        while reader.next_group().unwrap().is_some() {}
        let mut writer = GroupWriter::resume(&reader).unwrap();
        put(&mut writer, &payload(2, 2000));
        writer.close().unwrap();
        expected.push(payload(2, 2000));
        let (payloads, _, closed) = read_all(&fs).unwrap();
        assert!(payloads == expected && closed);
    }
}

#[test]
fn a_failed_sync_is_final() {
    let fs = MemFs::new(512);
    let mut writer = writer(&fs);
    put(&mut writer, b"lost");
    fs.fail_syncs();
    assert!(writer.sync().is_err());
    assert!(writer.append(&[IoSlice::new(b"more")]).is_err());
    assert!(writer.sync().is_err());
    assert!(writer.close().is_err());
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let fs = MemFs::new(512);
    writer(&fs).close().unwrap();
    fs.tamper(path(), |bytes| {
        bytes[12] = 0x80;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    });
    let error = reader(&fs).unwrap_err().to_string();
    assert_eq!(error, "not supported: group file features 0x80 of /wal");
}

#[test]
fn random_bytes_neither_panic_nor_allocate_without_bound() {
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    let seed = std::env::var("LAVA_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("LAVA_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let fs = MemFs::new(512);
    let mut writer = writer(&fs);
    for i in 0..6 {
        put(&mut writer, &payload(i, 150 * i));
        writer.sync().unwrap();
    }
    for _ in 0..2000 {
        let after = fs.crash(|_, bytes, _| {
            for _ in 0..rng.random_range(1..40) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
        });
        if let Ok((payloads, _, _)) = read_all(&after) {
            for (i, read) in payloads.iter().enumerate() {
                assert_eq!(*read, payload(i, 150 * i));
            }
        }
    }
}

/// A sealed header of the last sequence number made the reader count past it.
#[test]
fn the_last_sequence_number_begins_no_group() {
    let header = GroupHeader {
        payload_len: 0,
        sequence: u64::MAX,
        durable_upto: 0,
        prev_crc: 0,
        kind: Kind::Data,
        payload_crc: 0,
        crc: 0,
    };
    let (bytes, _) = header.encode(1);
    assert_eq!(GroupHeader::decode(&bytes, 1), None);
}
