//! The metalog: what happened to logs as a whole, in group files `meta-NNNNNNNN.log`.
//!
//! Payload of a group: operations back to back, each one kind (1 byte), varint body length, body
//! of varints:
//!
//!  kind  operation     body
//!   1    create        log, op, mode (0..=2 sparse keep-first, reject, last-wins; 3 dense),
//!                      floor, epoch, name (length, bytes), count, count * (epoch, from)
//!   2    delete        log, op
//!   3    trim          log, op, floor
//!   4    truncate      log, op, epoch, from
//!   5    snapshot end  next log, next op, number of logs
//!  128.. ignored by a program that does not know them
//!
//! A file begins with a snapshot: a create for each log, then a snapshot end. It counts from when
//! that end is there; the files before it are then removed. After a crash between the two, the
//! highest file with a whole snapshot holds.
//!
//! Invariants: an id is never used for a second log; nothing is written to the datalog that
//! depends on an operation which is not durable here (create, delete and truncate are made
//! durable before they take effect; a trim, which only allows space to be reused, is made durable
//! before space is).

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use lavafs::FileSystemRef;

use crate::data::remove_unused;
use crate::error::{Error, Result};
use crate::group::{GroupReader, GroupWriter};
use crate::options::{Duplicates, Mode};
use crate::state::Truncation;
use lavafs::codec::{Decoder, put_varint};

const SNAPSHOT_GROUP_LEN: usize = 1 << 20;
const FIRST_IGNORABLE_KIND: u8 = 128;

/// An operation on a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum MetaOp {
    Create {
        log: u64,
        op: u64,
        mode: Mode,
        floor: u64,
        epoch: u32,
        name: String,
        truncations: Vec<Truncation>,
    },
    Delete {
        log: u64,
        op: u64,
    },
    Trim {
        log: u64,
        op: u64,
        floor: u64,
    },
    Truncate {
        log: u64,
        op: u64,
        to: Truncation,
    },
    SnapshotEnd {
        next_log: u64,
        next_op: u64,
        logs: u64,
    },
}

impl MetaOp {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        let mut put = |values: &[u64]| values.iter().for_each(|v| put_varint(&mut body, *v));
        let kind = match self {
            MetaOp::Create {
                log,
                op,
                mode,
                floor,
                epoch,
                name,
                truncations,
            } => {
                put(&[*log, *op, mode_code(*mode), *floor, u64::from(*epoch)]);
                put(&[name.len() as u64]);
                body.extend_from_slice(name.as_bytes());
                put_varint(&mut body, truncations.len() as u64);
                for t in truncations {
                    put_varint(&mut body, u64::from(t.epoch));
                    put_varint(&mut body, t.from);
                }
                1
            }
            MetaOp::Delete { log, op } => {
                put(&[*log, *op]);
                2
            }
            MetaOp::Trim { log, op, floor } => {
                put(&[*log, *op, *floor]);
                3
            }
            MetaOp::Truncate { log, op, to } => {
                put(&[*log, *op, u64::from(to.epoch), to.from]);
                4
            }
            MetaOp::SnapshotEnd {
                next_log,
                next_op,
                logs,
            } => {
                put(&[*next_log, *next_op, *logs]);
                5
            }
        };
        out.push(kind);
        put_varint(out, body.len() as u64);
        out.extend_from_slice(&body);
    }

    /// The next operation; `Ok(None)` for one to be ignored.
    pub(crate) fn decode(cursor: &mut Decoder<'_>) -> Result<Option<MetaOp>, &'static str> {
        let kind = cursor.u8().ok_or("an operation is cut off")?;
        let body = cursor.bytes().ok_or("an operation is cut off")?;
        if kind >= FIRST_IGNORABLE_KIND {
            return Ok(None);
        }
        let mut body = Decoder::new(body);
        let op = MetaOp::decode_body(kind, &mut body).ok_or("an operation is malformed")?;
        if body.is_empty() {
            Ok(Some(op))
        } else {
            Err("an operation is too long")
        }
    }

    fn decode_body(kind: u8, body: &mut Decoder<'_>) -> Option<MetaOp> {
        if kind == 5 {
            return Some(MetaOp::SnapshotEnd {
                next_log: body.varint()?,
                next_op: body.varint()?,
                logs: body.varint()?,
            });
        }
        let (log, op) = (body.varint()?, body.varint()?);
        match kind {
            1 => {
                let mode = mode_from(body.varint()?)?;
                let (floor, epoch) = (body.varint()?, body.varint_u32()?);
                let name = std::str::from_utf8(body.bytes()?).ok()?.to_owned();
                let mut truncations = Vec::new();
                for _ in 0..body.varint()? {
                    truncations.push(take_truncation(body)?);
                }
                Some(MetaOp::Create {
                    log,
                    op,
                    mode,
                    floor,
                    epoch,
                    name,
                    truncations,
                })
            }
            2 => Some(MetaOp::Delete { log, op }),
            3 => Some(MetaOp::Trim {
                log,
                op,
                floor: body.varint()?,
            }),
            4 => Some(MetaOp::Truncate {
                log,
                op,
                to: take_truncation(body)?,
            }),
            _ => None,
        }
    }
}

fn take_truncation(body: &mut Decoder<'_>) -> Option<Truncation> {
    Some(Truncation {
        epoch: body.varint_u32()?,
        from: body.varint()?,
    })
}

fn mode_code(mode: Mode) -> u64 {
    match mode {
        Mode::Sparse { duplicates } => match duplicates {
            Duplicates::KeepFirst => 0,
            Duplicates::Reject => 1,
            Duplicates::LastWins => 2,
        },
        Mode::Dense => 3,
    }
}

fn mode_from(code: u64) -> Option<Mode> {
    let duplicates = match code {
        0 => Duplicates::KeepFirst,
        1 => Duplicates::Reject,
        2 => Duplicates::LastWins,
        3 => return Some(Mode::Dense),
        _ => return None,
    };
    Some(Mode::Sparse { duplicates })
}

/// The file that operations are appended to. Guarded by the engine.
#[derive(Debug)]
pub(crate) struct MetaLog {
    dir: PathBuf,
    writer: GroupWriter,
    number: u32,
    snapshot_len: u64,
    pub(crate) next_log: u64,
}

impl MetaLog {
    /// Begins file `number` with a durable snapshot. Where there is no space for it, nothing is left of it.
    pub(crate) fn begin(
        fs: &FileSystemRef,
        dir: &Path,
        number: u32,
        next_log: u64,
        snapshot: &[MetaOp],
    ) -> Result<MetaLog> {
        let begun = MetaLog::write_snapshot(fs, dir, number, next_log, snapshot);
        if begun.as_ref().is_err_and(Error::is_no_space) {
            // It must not come back: with a whole snapshot it would count.
            remove_unused(fs, &meta_path(dir, number))?;
            fs.sync_dir(dir)?;
        }
        begun
    }

    fn write_snapshot(
        fs: &FileSystemRef,
        dir: &Path,
        number: u32,
        next_log: u64,
        snapshot: &[MetaOp],
    ) -> Result<MetaLog> {
        let path = meta_path(dir, number);
        let mut writer = GroupWriter::create_tagged(fs, &path, 0, u64::from(number))?;
        let mut payload = Vec::new();
        for (i, op) in snapshot.iter().enumerate() {
            op.encode(&mut payload);
            if payload.len() >= SNAPSHOT_GROUP_LEN || i + 1 == snapshot.len() {
                writer.append(&[IoSlice::new(&payload)])?;
                payload.clear();
            }
        }
        writer.sync()?;
        Ok(MetaLog {
            dir: dir.to_path_buf(),
            snapshot_len: writer.len(),
            writer,
            number,
            next_log,
        })
    }

    pub(crate) fn append(&mut self, op: &MetaOp) -> Result<()> {
        let mut payload = Vec::new();
        op.encode(&mut payload);
        let writer = self.writer.forgive_no_space();
        writer.append(&[IoSlice::new(&payload)])?;
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> Result<()> {
        self.writer.forgive_no_space().sync()
    }

    /// True where a new file with a snapshot would be much smaller.
    pub(crate) fn is_full(&self, file_size: u64) -> bool {
        self.writer.len() > file_size.max(2 * self.snapshot_len)
    }

    /// Goes on in a new file that begins with `snapshot`, and removes the present one. Where there is no
    /// space for it, the present one stays in use: trims and deletes are what gives space back.
    pub(crate) fn roll(&mut self, fs: &FileSystemRef, snapshot: &[MetaOp]) -> Result<()> {
        let number = self.number + 1;
        match MetaLog::begin(fs, &self.dir, number, self.next_log, snapshot) {
            Ok(next) => {
                let old = std::mem::replace(self, next);
                Ok(fs.unlink(&meta_path(&self.dir, old.number))?)
            }
            Err(error) if error.is_no_space() => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn close(self) -> Result<()> {
        self.writer.close()
    }
}

/// Where a file of the metalog ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MetaEnd {
    pub(crate) number: u32,
    pub(crate) len: u64,
    pub(crate) durable_len: u64,
    pub(crate) sealed: bool,
}

/// The operations of one file up to its tail and where that is; `None` if its snapshot is not whole.
pub(crate) fn read_meta_file(
    fs: &FileSystemRef,
    path: &Path,
    number: u32,
) -> Result<Option<(Vec<MetaOp>, MetaEnd)>> {
    let mut reader = GroupReader::open(fs.open(path)?, path)?;
    if reader.tag().is_some_and(|tag| tag != u64::from(number)) {
        return Err(Error::corrupt(path, 0, "the file has another file's name"));
    }
    let (mut ops, mut whole) = (Vec::new(), false);
    while let Some(group) = reader.next_group()? {
        let mut cursor = Decoder::new(group.payload);
        while !cursor.is_empty() {
            let offset = group.position.end() - cursor.remaining() as u64;
            let op = MetaOp::decode(&mut cursor);
            let op = op.map_err(|detail| Error::corrupt(path, offset, detail))?;
            whole |= matches!(op, Some(MetaOp::SnapshotEnd { .. }));
            ops.extend(op);
        }
    }
    let end = MetaEnd {
        number,
        len: reader.valid_len(),
        durable_len: reader.durable_len(),
        sealed: reader.is_closed(),
    };
    Ok(whole.then_some((ops, end)))
}

pub(crate) fn meta_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("meta-{number:08}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_come_back_and_unknown_ones_are_skipped_or_refused() {
        let truncations = vec![
            Truncation { epoch: 1, from: 9 },
            Truncation { epoch: 4, from: 12 },
        ];
        let mut ops = vec![
            MetaOp::Delete { log: 7, op: 8 },
            MetaOp::Trim {
                log: 1,
                op: 2,
                floor: u64::MAX,
            },
            MetaOp::Truncate {
                log: 3,
                op: 4,
                to: truncations[1],
            },
            MetaOp::SnapshotEnd {
                next_log: 5,
                next_op: 6,
                logs: 7,
            },
        ];
        for code in 0..4 {
            ops.push(MetaOp::Create {
                log: code,
                op: 1,
                mode: mode_from(code).unwrap(),
                floor: 10,
                epoch: 4,
                name: format!("log-{code}-é"),
                truncations: truncations.clone(),
            });
        }
        let mut bytes = Vec::new();
        for op in &ops {
            op.encode(&mut bytes);
            bytes.extend_from_slice(&[200, 2, 0xAA, 0xBB]);
        }
        let mut cursor = Decoder::new(&bytes);
        let mut back = Vec::new();
        while !cursor.is_empty() {
            back.extend(MetaOp::decode(&mut cursor).unwrap());
        }
        assert_eq!(back, ops);
        assert!(MetaOp::decode(&mut Decoder::new(&[99, 0])).is_err());
        for len in 1..20 {
            let mut cursor = Decoder::new(&bytes[..len]);
            while !cursor.is_empty() && MetaOp::decode(&mut cursor).is_ok() {}
        }
    }
}
