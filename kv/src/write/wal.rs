//! The write-ahead log: write batches in the log crate's group framing.
//!
//! A group's payload is a sequence of batches, each preceded by its length as a `u32`; a
//! group is what one leader committed. Each log file is tagged with its number.
//!
//! Invariants: logs are replayed in the order of their numbers. A log is closed, and so durable to its
//! last byte, before the next one is made: a torn end is a crash's only in the last log
//! that holds a group; in an earlier one it is corruption. A synced write is one group append and one sync.
//!
//! After a failed append a log is not used again: [`WalWriter::cut_back`] cuts it back to
//! its last good group, and the memtable moves on to a new one.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use lavafs::FileSystemRef;
use lavalog::{GroupReader, GroupWriter, Tail};

use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::options::WalRecoveryMode;
use crate::write::batch::{BatchReader, WriteBatch};
use lavafs::codec::Decoder;

/// Largest payload of a group that a leader collects; a single batch may be larger.
pub(crate) const WAL_GROUP_BYTES: usize = 1 << 20;

impl From<lavalog::Error> for Error {
    fn from(error: lavalog::Error) -> Self {
        match error {
            lavalog::Error::Fs(source) => Error::Fs(source),
            lavalog::Error::Corrupt {
                file,
                offset,
                detail,
            } => Error::corrupt(file.display().to_string(), offset, detail),
            other => Error::invalid_argument(other.to_string()),
        }
    }
}

/// Appends groups of batches to one log file. Owned by the leader of the writers.
#[derive(Debug)]
pub(crate) struct WalWriter {
    writer: GroupWriter,
    number: FileNumber,
    failed: bool,
    /// What was acknowledged is durable although an append has failed.
    settled: bool,
}

impl WalWriter {
    /// Makes log `number` with space for `expected_size` bytes; its name is durable on return.
    pub(crate) fn create(
        fs: &FileSystemRef,
        dir: &Path,
        number: FileNumber,
        expected_size: u64,
    ) -> Result<WalWriter> {
        let path = dir.join(FileName::Wal(number).to_string());
        let created = GroupWriter::create_tagged(fs, &path, expected_size, number)
            .map_err(Error::from)
            .and_then(|writer| fs.sync_dir(dir).map(|()| writer).map_err(Error::from));
        let writer = match created {
            Ok(writer) => writer,
            Err(error) => {
                // On a full device every later write tries again: nothing may be left behind.
                if let Err(unlink) = fs.unlink(&path)
                    && !unlink.is_not_found()
                {
                    tracing::warn!(path = %path.display(), error = %unlink, "log not removed");
                }
                return Err(error);
            }
        };
        Ok(WalWriter {
            writer,
            number,
            failed: false,
            settled: false,
        })
    }

    pub(crate) fn number(&self) -> FileNumber {
        self.number
    }

    /// Bytes written.
    pub(crate) fn size(&self) -> u64 {
        self.writer.len()
    }

    /// True after a failed append or sync.
    pub(crate) fn failed(&self) -> bool {
        self.failed
    }

    /// True for a log that was given up after every group it acknowledged was made durable.
    pub(crate) fn settled(&self) -> bool {
        self.settled
    }

    /// Appends one group.
    pub(crate) fn append(&mut self, batches: &[&WriteBatch]) -> Result<()> {
        let lengths: Vec<[u8; 4]> = batches
            .iter()
            .map(|batch| {
                let len = u32::try_from(batch.data().len());
                len.expect("the write path refuses larger batches")
                    .to_le_bytes()
            })
            .collect();
        let mut parts = Vec::with_capacity(2 * batches.len());
        for (length, batch) in lengths.iter().zip(batches) {
            parts.push(IoSlice::new(length));
            parts.push(IoSlice::new(batch.data()));
        }
        let outcome = self.writer.append(&parts);
        self.failed |= outcome.is_err();
        outcome?;
        Ok(())
    }

    /// Makes every appended group durable.
    pub(crate) fn sync(&mut self) -> Result<()> {
        let outcome = self.writer.sync();
        self.failed |= outcome.is_err();
        Ok(outcome?)
    }

    /// Ends the log; it is durable to its last byte on return.
    pub(crate) fn close(self) -> Result<()> {
        Ok(self.writer.close()?)
    }

    /// After a failed append: cuts what was half written, so that no later replay takes it for
    /// damage, and makes the rest durable.
    pub(crate) fn cut_back(&mut self) -> Result<()> {
        let file = self.writer.file();
        if file.size().upper() > self.writer.len() {
            file.truncate(self.writer.len())?;
        }
        file.fsync()?;
        self.settled = true;
        Ok(())
    }
}

/// How a replayed log ended.
#[derive(Clone, Debug)]
pub(crate) struct ReplayEnd {
    pub(crate) path: PathBuf,
    /// Groups that held.
    pub(crate) groups: u64,
    /// Offset of a torn group, if the log does not end cleanly.
    pub(crate) torn_at: Option<u64>,
    /// Corruption that the mode tolerated: nothing behind it may be replayed.
    pub(crate) damaged: bool,
}

/// Calls `apply` with every batch of log `number`, in order, and the offset of its group.
pub(crate) fn replay(
    fs: &FileSystemRef,
    dir: &Path,
    number: FileNumber,
    mode: WalRecoveryMode,
    mut apply: impl FnMut(BatchReader<'_>) -> Result<(), ApplyError>,
) -> Result<ReplayEnd> {
    let path = dir.join(FileName::Wal(number).to_string());
    let file = fs.open(&path)?;
    let mut end = ReplayEnd {
        path: path.clone(),
        groups: 0,
        torn_at: None,
        damaged: false,
    };
    let outcome = replay_groups(GroupReader::open(file, &path), number, &mut end, &mut apply);
    match outcome {
        Err(error) if error.is_corrupt() && mode == WalRecoveryMode::TolerateCorruptedTail => {
            tracing::warn!(%error, "replay of the write-ahead logs ends here");
            end.damaged = true;
        }
        other => other?,
    }
    match end.torn_at {
        Some(offset) if mode == WalRecoveryMode::Absolute => Err(Error::corrupt(
            path.display().to_string(),
            offset,
            "torn group",
        )),
        _ => Ok(end),
    }
}

/// Why a batch cannot be applied.
pub(crate) enum ApplyError {
    /// Its bytes disagree.
    Bad(&'static str),
    /// Something else failed.
    Other(Error),
}

impl From<&'static str> for ApplyError {
    fn from(detail: &'static str) -> Self {
        ApplyError::Bad(detail)
    }
}

impl From<Error> for ApplyError {
    fn from(error: Error) -> Self {
        ApplyError::Other(error)
    }
}

fn replay_groups(
    reader: lavalog::Result<GroupReader>,
    number: FileNumber,
    end: &mut ReplayEnd,
    apply: &mut impl FnMut(BatchReader<'_>) -> Result<(), ApplyError>,
) -> Result<()> {
    let mut reader = reader?;
    let name = end.path.display().to_string();
    if reader.tag().is_some_and(|tag| tag != number) {
        return Err(Error::corrupt(
            name,
            0_u64,
            "is another log under this name",
        ));
    }
    while let Some(group) = reader.next_group()? {
        let offset = group.position.offset;
        let mut decoder = Decoder::new(group.payload);
        while !decoder.is_empty() {
            let batch = decoder
                .u32()
                .and_then(|len| decoder.take(len as usize))
                .ok_or_else(|| {
                    Error::corrupt(name.clone(), offset, "batch longer than its group")
                })?;
            let applied = BatchReader::new(batch)
                .map_err(ApplyError::Bad)
                .and_then(&mut *apply);
            match applied {
                Ok(()) => {}
                Err(ApplyError::Bad(detail)) => {
                    return Err(Error::corrupt(name, offset, detail));
                }
                Err(ApplyError::Other(error)) => return Err(error),
            }
        }
        end.groups += 1;
    }
    if let Tail::Torn { offset, .. } = reader.tail() {
        end.torn_at = Some(offset);
    }
    Ok(())
}
