//! What the loading process tells its parent: one line an event, on its standard output.
//!
//! Each line is a JSON object with one field, the event's name. A file is named by its number in
//! the list that the parent hands over on standard input, so that a directory that changes
//! meanwhile cannot shift the numbers. The list is a u64 count, then for each file the u32 length
//! of its key, the key, and its size as u64, all little-endian.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cli::{Failure, Outcome};
use crate::source::SourceFile;

/// One event.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    /// A file is durable in the log and in the database.
    Stored(Stored),
    /// A file had vanished or was no regular file any more.
    Gone(String),
    /// A file could not be read; the text names it and the reason.
    Unreadable(String),
    /// Everything is stored.
    Done(LoadFigures),
}

/// A file that is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Stored {
    /// Its number in the list of files.
    pub(super) index: usize,
    /// Bytes of its contents as they were stored.
    pub(super) len: u64,
    /// xxh3 of its contents as they were stored.
    pub(super) hash: u64,
}

/// What the load cost.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct LoadFigures {
    /// Seconds from the first file to the last acknowledgement.
    pub(super) elapsed_s: f64,
    /// Bytes of keys and contents.
    pub(super) user_bytes: u64,
    /// The log's share.
    pub(super) log: EngineFigures,
    /// The database's share.
    pub(super) kv: EngineFigures,
    /// Bytes written to the device.
    pub(super) device_bytes: u64,
    /// Writes to the device.
    pub(super) device_writes: u64,
    /// Flushes of the device.
    pub(super) flushes: u64,
}

/// What one engine asked of the filesystem, and how long its synced batches took.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct EngineFigures {
    /// Synced batches.
    pub(super) batches: u64,
    /// Bytes appended to its files.
    pub(super) bytes: u64,
    /// Appends.
    pub(super) appends: u64,
    /// Syncs.
    pub(super) syncs: u64,
    /// Latency of a batch, microseconds: median.
    pub(super) p50_us: f64,
    /// 99th percentile.
    pub(super) p99_us: f64,
    /// 99.9th percentile.
    pub(super) p999_us: f64,
    /// Longest.
    pub(super) max_us: f64,
}

impl Event {
    /// The event of a line.
    pub(super) fn parse(line: &str) -> Outcome<Event> {
        serde_json::from_str(line)
            .map_err(|error| Failure::new(format!("the load's report is unreadable: {error}")))
    }
}

/// Hands a list of files over.
pub(super) fn write_files(out: &mut impl Write, files: &[SourceFile]) -> io::Result<()> {
    out.write_all(&(files.len() as u64).to_le_bytes())?;
    for file in files {
        out.write_all(&(file.key.len() as u32).to_le_bytes())?;
        out.write_all(&file.key)?;
        out.write_all(&file.size.to_le_bytes())?;
    }
    out.flush()
}

/// The list of files below `data` that [`write_files`] wrote.
pub(super) fn read_files(input: &mut impl Read, data: &Path) -> io::Result<Vec<SourceFile>> {
    let mut number = [0; 8];
    input.read_exact(&mut number)?;
    let mut files = Vec::new();
    for _ in 0..u64::from_le_bytes(number) {
        let mut len = [0; 4];
        input.read_exact(&mut len)?;
        let mut key = vec![0; u32::from_le_bytes(len) as usize];
        input.read_exact(&mut key)?;
        input.read_exact(&mut number)?;
        files.push(SourceFile {
            path: data.join(OsStr::from_bytes(&key)),
            key,
            size: u64::from_le_bytes(number),
        });
    }
    Ok(files)
}

/// The log record of one change: the key's length as four bytes, little-endian, the key, the
/// contents.
pub(super) fn encode_change(key: &[u8], contents: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(4 + key.len() + contents.len());
    record.extend((key.len() as u32).to_le_bytes());
    record.extend(key);
    record.extend(contents);
    record
}

/// Key and contents of a log record; none where it is malformed.
pub(super) fn decode_change(record: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = record.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_files_reads_back() {
        let files = [("a", 1), ("b/\u{fc}", 0)].map(|(key, size)| SourceFile {
            path: Path::new("/data").join(key),
            key: key.as_bytes().to_vec(),
            size,
        });
        let mut list = Vec::new();
        write_files(&mut list, &files).unwrap();
        let read = read_files(&mut &list[..], Path::new("/data")).unwrap();
        for (read, file) in read.iter().zip(&files) {
            assert_eq!(
                (&read.path, &read.key, read.size),
                (&file.path, &file.key, file.size)
            );
        }
        assert_eq!(read.len(), files.len());
        assert!(read_files(&mut &list[..list.len() - 1], Path::new("/data")).is_err());
    }

    #[test]
    fn changes_and_events_read_back() {
        let record = encode_change(b"key", b"contents");
        assert_eq!(
            decode_change(&record),
            Some((&b"key"[..], &b"contents"[..]))
        );
        assert_eq!(decode_change(&record[..5]), None);
        assert_eq!(decode_change(b"\x01"), None);
        let event = Event::Stored(Stored {
            index: 7,
            len: 3,
            hash: u64::MAX,
        });
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(Event::parse(&line).unwrap(), event);
        assert!(Event::parse("nonsense").is_err());
    }
}
