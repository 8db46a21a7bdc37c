//! The decoders of this crate as fuzz targets, as `lavafs::fuzzing` describes. Behind the feature
//! `fuzzing`; not part of the API.

use std::path::{Path, PathBuf};

pub use lavafs::fuzzing::Target;
use lavafs::{CreateOptions, FileSystem};

use crate::group::{FILE_HEADER_LEN, GROUP_HEADER_LEN, GroupReader, GroupWriter};
use crate::mem_fs::MemFs;
use crate::meta::MetaOp;
use crate::record::{self, DirectoryBuilder, DirectoryEntry, RecordKey};
use lavafs::codec::Decoder;

/// Every decoder of bytes from a log's files.
pub const TARGETS: [Target; 4] = [
    Target {
        name: "log_record",
        run: log_record,
        seed: log_record_seed,
    },
    Target {
        name: "log_directory",
        run: log_directory,
        seed: log_directory_seed,
    },
    Target {
        name: "log_meta",
        run: log_meta,
        seed: log_meta_seed,
    },
    Target {
        name: "group_file",
        run: group_file,
        seed: group_file_seed,
    },
];

/// That of a fresh `MemFs`' first file.
const GENERATION: u64 = 1;

const KEY: RecordKey = RecordKey {
    log: 3,
    epoch: 1,
    lsn: 700,
    op: 99,
};

/// Records back to back; a single one has a right checksum.
fn log_record(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    if sealed.len() > 4 {
        let seed = crc32c::crc32c(&GENERATION.to_le_bytes());
        let crc = crc32c::crc32c_append(seed, &sealed[4..]);
        sealed[..4].copy_from_slice(&crc.to_le_bytes());
    }
    let mut cursor = Decoder::new(&sealed);
    while let Ok((key, data, framed)) = record::take_record(&mut cursor, GENERATION) {
        let mut again = Vec::new();
        record::put_record(&mut again, GENERATION, key, data);
        assert!(again.len() <= framed as usize, "the shortest form is ours");
    }
}

fn log_record_seed() -> Vec<u8> {
    let mut out = Vec::new();
    record::put_record(&mut out, GENERATION, KEY, b"some data");
    out
}

/// A count of entries (8 bytes), then a directory's payload.
fn log_directory(bytes: &[u8]) {
    let _ = record::parse_footer(bytes);
    let Some((count, payload)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let count = u64::from_le_bytes(*count);
    if let Some(entries) = record::parse_directory(payload, count) {
        assert_eq!(entries.len() as u64, count);
        let mut builder = DirectoryBuilder::default();
        entries.iter().for_each(|&entry| builder.add(entry));
        let again = record::parse_directory(builder.payload(), count);
        assert_eq!(again, Some(entries));
    }
}

fn log_directory_seed() -> Vec<u8> {
    let mut builder = DirectoryBuilder::default();
    for i in 0..3 {
        builder.add(DirectoryEntry {
            key: KEY,
            offset: 100 + i * 4200,
            len: 4100,
        });
    }
    let mut out = 3u64.to_le_bytes().to_vec();
    out.extend_from_slice(builder.payload());
    out
}

fn log_meta(bytes: &[u8]) {
    let mut cursor = Decoder::new(bytes);
    while !cursor.is_empty() {
        match MetaOp::decode(&mut cursor) {
            Ok(Some(op)) => {
                let mut again = Vec::new();
                op.encode(&mut again);
                let decoded = MetaOp::decode(&mut Decoder::new(&again));
                assert_eq!(decoded, Ok(Some(op)));
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
}

fn log_meta_seed() -> Vec<u8> {
    let mut out = Vec::new();
    for op in [
        MetaOp::Delete { log: 1, op: 2 },
        MetaOp::Trim {
            log: 3,
            op: 4,
            floor: 5,
        },
        MetaOp::SnapshotEnd {
            next_log: 6,
            next_op: 7,
            logs: 0,
        },
    ] {
        op.encode(&mut out);
    }
    out
}

const PATH: &str = "/logs/file";

/// A file of groups whose headers, chain and payloads have right checksums, read forward, from
/// the place of each group, and continued by a writer.
fn group_file(bytes: &[u8]) {
    let fs = MemFs::new(512);
    let path = Path::new(PATH);
    let (bytes, starts) = sealed_groups(bytes);
    let file = fs
        .create(path, &CreateOptions::default())
        .and_then(|file| file.append(&bytes).map(|_| file))
        .expect("memory does not fail");
    file.fsync().expect("memory does not fail");
    let _ = GroupReader::read_closing(&file, path);
    let Ok(mut reader) = GroupReader::open(file, path) else {
        return;
    };
    while let Ok(Some(group)) = reader.next_group() {
        assert!(group.position.end() <= bytes.len() as u64);
    }
    for start in starts {
        reader.seek(start as u64);
        let _ = reader.next_group().map(|group| group.is_some());
    }
}

/// `bytes` with right magics, lengths, checksums and chain, and where its groups begin.
fn sealed_groups(bytes: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = bytes.to_vec();
    let mut starts = Vec::new();
    if bytes.len() < FILE_HEADER_LEN {
        return (bytes, starts);
    }
    bytes[0..8].copy_from_slice(b"LAVAGRPS");
    bytes[24..32].copy_from_slice(&GENERATION.to_le_bytes());
    let mut prev_crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&prev_crc.to_le_bytes());
    let mut at = FILE_HEADER_LEN;
    while let Some(rest) = bytes
        .get_mut(at..)
        .filter(|rest| rest.len() > GROUP_HEADER_LEN)
    {
        let (header, payload) = rest.split_at_mut(GROUP_HEADER_LEN);
        let wanted = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let len = (wanted as usize).min(payload.len());
        header[0..4].copy_from_slice(&[0xB5, b'L', b'G', 0x1A]);
        header[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        header[24..28].copy_from_slice(&prev_crc.to_le_bytes());
        header[32..36].copy_from_slice(&crc32c::crc32c(&payload[..len]).to_le_bytes());
        let seed = crc32c::crc32c(&GENERATION.to_le_bytes());
        prev_crc = crc32c::crc32c_append(seed, &header[..36]);
        header[36..40].copy_from_slice(&prev_crc.to_le_bytes());
        starts.push(at);
        at += GROUP_HEADER_LEN + len;
    }
    (bytes, starts)
}

fn group_file_seed() -> Vec<u8> {
    let fs: lavafs::FileSystemRef = MemFs::new(512);
    let path = PathBuf::from(PATH);
    let written = GroupWriter::create_tagged(&fs, &path, 0, 7).and_then(|mut writer| {
        writer.append(&[std::io::IoSlice::new(b"first")])?;
        writer.sync()?;
        writer.append(&[std::io::IoSlice::new(b"second")])?;
        writer.close_with(b"footer")
    });
    written.expect("memory does not fail");
    let file = fs.open(&path).expect("just written");
    let len = usize::try_from(file.size().upper()).expect("a short file");
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes).expect("memory does not fail");
    assert!(bytes.len() > FILE_HEADER_LEN + 2 * GROUP_HEADER_LEN);
    bytes
}
