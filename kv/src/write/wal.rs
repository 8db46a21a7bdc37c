//! The write-ahead log: write batches in the log crate's group framing.
//!
//! A group's payload is a sequence of batches, each preceded by its length as a `u32`; a
//! group is what one leader committed. Each log file is tagged with its number.
//!
//! Invariants: logs are replayed in the order of their numbers. A log is closed, and so durable to its
//! last byte, before the next one takes a group (succession.rs): a torn end is a crash's only in the last log
//! that holds a group; in an earlier one it is corruption, but where the next log's first sequence number
//! follows the earlier one's last. A synced write is one group append and one sync.
//!
//! After a failed append a log is not used again: [`WalWriter::cut_back`] cuts it back to
//! its last good group, and the memtable moves on to a new one.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::path::{Path, PathBuf};

use lavafs::{FileRef, FileSystemRef};
use lavalog::{GroupReader, GroupWriter, Tail};

use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::key::{MAX_SEQ, SeqNo};
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
    before: Before,
    /// Payloads of groups that were committed and wait for the log before to be closed, in order.
    held: VecDeque<Vec<u8>>,
    held_bytes: usize,
    /// Of the last change that was appended or held.
    last_sequence: Option<SeqNo>,
}

/// What a log's first group has to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Before {
    /// Nothing.
    Closed,
    /// That the log before is closed.
    Open,
    /// The same, but for a group that goes on after this sequence number: all of the log before is durable.
    Synced(SeqNo),
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
        match created {
            Ok(writer) => Ok(WalWriter {
                writer,
                number,
                failed: false,
                settled: false,
                before: Before::Closed,
                held: VecDeque::new(),
                held_bytes: 0,
                last_sequence: None,
            }),
            Err(error) => {
                remove_unused(fs, &path);
                Err(error)
            }
        }
    }

    /// The same, with the space for its first groups and the file's header durable too: a group then needs
    /// nothing but its own bytes written.
    pub(crate) fn create_durable(
        fs: &FileSystemRef,
        dir: &Path,
        number: FileNumber,
        expected_size: u64,
    ) -> Result<WalWriter> {
        let mut wal = WalWriter::create(fs, dir, number, expected_size)?;
        if let Err(error) = wal.sync() {
            let path = wal.writer.path().to_path_buf();
            drop(wal);
            remove_unused(fs, &path);
            return Err(error);
        }
        Ok(wal)
    }

    pub(crate) fn number(&self) -> FileNumber {
        self.number
    }

    /// Bytes written or held.
    pub(crate) fn size(&self) -> u64 {
        self.writer.len() + self.held_bytes as u64
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
        let lengths: Vec<[u8; 4]> = batches.iter().map(|batch| length(batch)).collect();
        let mut parts = Vec::with_capacity(2 * batches.len());
        for (length, batch) in lengths.iter().zip(batches) {
            parts.push(IoSlice::new(length));
            parts.push(IoSlice::new(batch.data()));
        }
        assert!(
            self.held.is_empty() && !self.must_wait(),
            "groups go to the file in their order"
        );
        let outcome = self.writer.append(&parts);
        self.failed |= outcome.is_err();
        outcome?;
        let last = batches.last().map(|batch| last_sequence(batch));
        self.last_sequence = last.or(self.last_sequence);
        Ok(())
    }

    /// This log comes after `old`, which is closed later, or failed.
    pub(crate) fn follow(&mut self, old: &WalWriter) {
        assert!(self.writer.is_empty(), "nothing was logged yet");
        let all_durable = !old.failed && old.writer.durable_len() == old.writer.len();
        self.before = match old.last_sequence {
            Some(last) if all_durable => Before::Synced(last),
            _ => Before::Open,
        };
    }

    /// Takes over what a failed log still held.
    pub(crate) fn inherit_held(&mut self, failed: WalWriter) {
        assert!(self.held.is_empty(), "nothing was logged yet");
        self.held = failed.held;
        self.held_bytes = failed.held_bytes;
        self.last_sequence = failed.last_sequence;
    }

    /// True until the log before is known to be closed, where a group must wait for that.
    pub(crate) fn must_wait(&self) -> bool {
        self.before != Before::Closed
    }

    /// The same for a sync: not where all that was written is durable.
    pub(crate) fn must_wait_to_sync(&self) -> bool {
        !self.held.is_empty() || self.before == Before::Open
    }

    /// The log before is closed.
    pub(crate) fn go_on(&mut self) {
        self.before = Before::Closed;
    }

    /// Nothing is waited for where `batches` go on after a log before that is durable as a whole.
    pub(crate) fn skip_waiting_before(&mut self, batches: &[&WriteBatch]) {
        if let (Before::Synced(last), Some(first)) = (self.before, batches.first())
            && self.held.is_empty()
            && first.sequence() == last + 1
        {
            self.before = Before::Closed;
        }
    }

    /// Bytes of groups that wait.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Keeps a group until the log before is closed.
    pub(crate) fn hold(&mut self, batches: &[&WriteBatch]) {
        let bytes = batches.iter().map(|batch| 4 + batch.data().len()).sum();
        let mut payload = Vec::with_capacity(bytes);
        for batch in batches {
            payload.extend_from_slice(&length(batch));
            payload.extend_from_slice(batch.data());
        }
        self.held_bytes += payload.len();
        // They are in the file before anything asks for it.
        let last = batches.last().map(|batch| last_sequence(batch));
        self.last_sequence = last.or(self.last_sequence);
        self.held.push_back(payload);
    }

    /// Writes the groups that wait; those that fail wait on.
    pub(crate) fn write_held(&mut self) -> Result<()> {
        while let Some(payload) = self.held.front() {
            let outcome = self.writer.append(&[IoSlice::new(payload)]);
            self.failed |= outcome.is_err();
            outcome?;
            self.held_bytes -= payload.len();
            self.held.pop_front();
        }
        Ok(())
    }

    /// Makes every appended group durable.
    pub(crate) fn sync(&mut self) -> Result<()> {
        let outcome = self.writer.sync();
        self.failed |= outcome.is_err();
        Ok(outcome?)
    }

    /// Ends the log; it is durable to its last byte on return. Without space for the closing group it
    /// ends without one.
    pub(crate) fn close(mut self) -> Result<()> {
        assert!(self.held.is_empty(), "what is held belongs to the log");
        self.sync()?;
        let (file, len) = (self.writer.file().clone(), self.writer.len());
        match self.writer.close().map_err(Error::from) {
            Err(error) if error.is_no_space() => cut(&file, len),
            other => other,
        }
    }

    /// After a failed append: cuts what was half written, so that no later replay takes it for
    /// damage, and makes the rest durable.
    pub(crate) fn cut_back(&mut self) -> Result<()> {
        cut(self.writer.file(), self.writer.len())?;
        self.settled = true;
        Ok(())
    }
}

fn cut(file: &FileRef, len: u64) -> Result<()> {
    if file.size().upper() > len {
        file.truncate(len)?;
    }
    file.fsync()?;
    Ok(())
}

/// Removes a log that could not be made. On a full device every later write tries again: nothing may be left behind.
fn remove_unused(fs: &FileSystemRef, path: &Path) {
    if let Err(error) = fs.unlink(path)
        && !error.is_not_found()
    {
        tracing::warn!(path = %path.display(), %error, "log not removed");
    }
}

/// A batch's length, as it stands before it.
fn length(batch: &WriteBatch) -> [u8; 4] {
    let len = u32::try_from(batch.data().len());
    len.expect("the write path refuses larger batches")
        .to_le_bytes()
}

/// The sequence number of a batch's last change; of the one before it, if it has none.
fn last_sequence(batch: &WriteBatch) -> SeqNo {
    (batch.sequence() + u64::from(batch.count())).saturating_sub(1)
}

/// Tells, of the batches of several logs, which hides nothing behind a torn end of the log before.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chain {
    last: SeqNo,
}

impl Chain {
    /// True where a batch goes on without a gap after what was added last.
    pub(crate) fn continues(&self, batch: &BatchReader<'_>) -> bool {
        self.last > 0 && batch.sequence() == self.last + 1
    }

    /// Adds a batch; false where its numbers are out of order.
    #[must_use]
    pub(crate) fn add(&mut self, batch: &BatchReader<'_>) -> bool {
        let (first, end) = (
            batch.sequence(),
            batch.sequence() + u64::from(batch.entry_count()),
        );
        let in_order = end <= MAX_SEQ && first > self.last;
        if in_order {
            self.last = end.saturating_sub(1);
        }
        in_order
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
