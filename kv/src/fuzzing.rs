//! The decoders of this crate as fuzz targets, as `lavafs::fuzzing` describes. Behind the feature
//! `fuzzing`; not part of the API.

use std::any::Any;
use std::io::IoSlice;
use std::sync::Arc;

pub use lavafs::fuzzing::Target;
use lavafs::{File, FileRef, FileSize, Generation};
use parking_lot::Mutex;

use crate::blob::{BlobFileBuilder, BlobFileOptions, BlobFileReader};
use crate::cache::BlockCache;
use crate::iter::InternalIterator;
use crate::key::{InternalKey, LookupKey, MAX_SEQ, ValueKind};
use crate::options::Options;
use crate::sstable::compression::Compression;
use crate::sstable::{self, OpenOptions, Table, TableBuilder, TableOptions, TableReadOptions};
use crate::version::{BlobUse, CfEdit, Piece, Pieces, Share, VersionEdit};
use crate::write::batch::{BatchReader, CfId, WriteBatch};

/// Every decoder of bytes from a database's files, beside those of the log crate.
pub const TARGETS: [Target; 6] = [
    Target {
        name: "write_batch",
        run: write_batch,
        seed: write_batch_seed,
    },
    Target {
        name: "version_edit",
        run: version_edit,
        seed: version_edit_seed,
    },
    Target {
        name: "options_file",
        run: options_file,
        seed: options_file_seed,
    },
    Target {
        name: "table_parts",
        run: sstable::fuzz_parts,
        seed: table_seed,
    },
    Target {
        name: "table_file",
        run: table_file,
        seed: table_seed,
    },
    Target {
        name: "blob_file",
        run: blob_file,
        seed: blob_file_seed,
    },
];

/// A file in memory.
#[derive(Debug, Default)]
struct MemFile(Mutex<Vec<u8>>);

impl File for MemFile {
    fn append_vectored(&self, parts: &[IoSlice<'_>]) -> lavafs::Result<u64> {
        let mut bytes = self.0.lock();
        let at = bytes.len() as u64;
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        Ok(at)
    }

    fn fdatasync(&self) -> lavafs::Result<()> {
        Ok(())
    }

    fn fsync(&self) -> lavafs::Result<()> {
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> lavafs::Result<usize> {
        let bytes = self.0.lock();
        let from = (offset as usize).min(bytes.len());
        let len = buf.len().min(bytes.len() - from);
        buf[..len].copy_from_slice(&bytes[from..from + len]);
        Ok(len)
    }

    fn read_unverified(&self, offset: u64, buf: &mut [u8]) -> lavafs::Result<usize> {
        self.read_at(offset, buf)
    }

    fn size(&self) -> FileSize {
        FileSize::Exact(self.0.lock().len() as u64)
    }

    fn settle(&self, _: u64) -> lavafs::Result<()> {
        Ok(())
    }

    fn truncate(&self, size: u64) -> lavafs::Result<()> {
        self.0.lock().truncate(size as usize);
        Ok(())
    }

    fn generation(&self) -> Generation {
        Generation(1)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn write_batch(bytes: &[u8]) {
    let Ok(reader) = BatchReader::new(bytes) else {
        return;
    };
    let mut taken = 0;
    for entry in reader {
        let Ok(entry) = entry else { return };
        taken += entry.key.len() + entry.value.len();
        assert!(taken <= bytes.len(), "entries lie in the batch");
    }
}

fn write_batch_seed() -> Vec<u8> {
    let mut batch = WriteBatch::new();
    batch.put(b"key", b"value");
    batch.delete_cf(CfId(7), b"another");
    batch.single_delete(b"third");
    batch.data().to_vec()
}

/// What decodes is encoded and decoded to itself.
fn version_edit(bytes: &[u8]) {
    if let Ok(edit) = VersionEdit::decode(bytes) {
        let again = edit.encode();
        let decoded = VersionEdit::decode(&again).expect("as encoded");
        assert_eq!(decoded.encode(), again);
    }
}

fn version_edit_seed() -> Vec<u8> {
    let piece = |from: &[u8], file| Piece {
        from: from.to_vec(),
        file,
    };
    let pieces = Pieces::of(vec![piece(b"", 5), piece(b"key", 7)]);
    let share = Share {
        table: 9,
        number: 6,
        parts: vec![(
            5,
            BlobUse {
                references: 1,
                value_bytes: 900,
            },
        )],
    };
    let change = CfEdit {
        created: Some("default".to_owned()),
        log_number: Some(3),
        removed: vec![(1, 9)],
        heirs: vec![(4, 5)],
        splits: vec![(6, pieces)],
        shares: vec![share],
        ..CfEdit::default()
    };
    let mut edit = VersionEdit::of_cf(CfId(0), change);
    edit.next_file_number = Some(12);
    edit.last_sequence = Some(700);
    edit.encode()
}

/// What parses is written and parsed to itself, and is valid or refused.
fn options_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(options) = Options::parse(&text) {
        let again = options.to_text();
        let parsed = Options::parse(&again).expect("as written");
        assert_eq!(parsed.to_text(), again);
        let _ = options.validate();
    }
}

fn options_file_seed() -> Vec<u8> {
    Options::default().to_text().into_bytes()
}

/// A table whose blocks and footer have right checksums: opened, searched, walked and verified.
fn table_file(bytes: &[u8]) {
    let file = Arc::new(MemFile(Mutex::new(sstable::sealed(bytes))));
    let options = OpenOptions {
        pin_index_and_filter: bytes.len().is_multiple_of(2),
    };
    let opened = Table::open(file as FileRef, 1, BlockCache::new(1 << 20), options);
    let Ok(table) = opened else { return };
    for key in [&b""[..], b"key-0100", b"\xff\xff"] {
        let lookup = LookupKey::new(key, MAX_SEQ);
        let _ = table.get(&lookup, sstable::filter_hash(key));
        let _ = table.approximate_offset_of(lookup.internal());
        let mut iter = table.iter(TableReadOptions::default());
        iter.seek_for_prev(lookup.internal());
    }
    let mut iter = table.iter(TableReadOptions::default());
    let mut steps = 0;
    iter.seek_to_first();
    while iter.valid() && steps < 2000 {
        iter.next();
        steps += 1;
    }
    iter.seek_to_last();
    while iter.valid() && steps > 0 {
        iter.prev();
        steps -= 1;
    }
    let _ = table.verify();
}

fn key(number: usize) -> Vec<u8> {
    let key = format!("key-{number:04}");
    InternalKey::new(key.as_bytes(), number as u64, ValueKind::Value).into_bytes()
}

fn table_seed() -> Vec<u8> {
    let file = Arc::new(MemFile::default());
    let options = TableOptions {
        block_size: 128,
        compression: Compression::Zstd { level: 1 },
        zstd_dict_bytes: 256,
        index_partition_threshold: 1,
        index_partition_size: 64,
        ..TableOptions::default()
    };
    let mut builder = TableBuilder::new(Arc::clone(&file) as FileRef, options);
    for number in 0..200 {
        let value = vec![number as u8; number % 30];
        builder.add(&key(number), &value).expect("memory");
    }
    builder.finish().expect("memory");
    std::mem::take(&mut file.0.lock())
}

/// A blob file: opened, searched, walked.
fn blob_file(bytes: &[u8]) {
    let file = Arc::new(MemFile(Mutex::new(crate::blob::sealed(bytes))));
    let Ok(reader) = BlobFileReader::open(file as FileRef, 1) else {
        return;
    };
    let mut iter = reader.iter();
    let mut steps = 0;
    while let Ok(true) = iter.advance() {
        steps += 1;
        assert!(steps <= bytes.len(), "each record has bytes");
        let _ = iter.value();
    }
}

fn blob_file_seed() -> Vec<u8> {
    let file = Arc::new(MemFile::default());
    let at = Arc::clone(&file) as FileRef;
    let options = BlobFileOptions {
        compression: Compression::Zstd { level: 1 },
        zstd_dict_bytes: 256,
        ..BlobFileOptions::default()
    };
    let mut builder = BlobFileBuilder::create(at, 1, options).expect("memory");
    for number in 0..100 {
        let value = format!(
            "what all values have in common and number {}, ",
            number * 7919
        );
        let value = value.repeat(1 + number % 3).into_bytes();
        builder.add(&key(number), &value).expect("memory");
    }
    builder.finish().expect("memory");
    std::mem::take(&mut file.0.lock())
}
