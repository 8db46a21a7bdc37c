//! `EventListener`: what a database tells of its background work while it happens.
//!
//! Methods are called on the thread that does the work, without any lock of the database held: they may
//! read and write, but must not wait for background work, which waits for them, and should be
//! quick. A listener that panics on a background thread poisons the database.

use std::path::PathBuf;
use std::time::Duration;

use crate::batch::CfId;
use crate::engine::Engine;
use crate::error::{Error, Severity};
use crate::stall::Stall;

/// A flush or compaction.
#[derive(Clone, Debug)]
pub struct JobEvent {
    /// Column family.
    pub cf: CfId,
    /// Bytes of memtables or tables that go in.
    pub input_bytes: u64,
    /// Tables written; at the begin 0.
    pub output_files: u64,
    /// Bytes of the tables written; at the begin 0.
    pub output_bytes: u64,
    /// Level of the output.
    pub output_level: usize,
    /// Time from begin to end; at the begin 0.
    pub elapsed: Duration,
    /// What it failed with.
    pub error: Option<Error>,
}

/// What a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A write-ahead log.
    Wal,
    /// A table.
    Table,
    /// A blob file.
    Blob,
}

/// A file that appeared, whole and durable (a log: empty), or was removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileEvent {
    /// What it is.
    pub kind: FileKind,
    /// Where it is.
    pub path: PathBuf,
    /// Its size, where that is known.
    pub bytes: Option<u64>,
}

/// Is told what happens; every method does nothing unless it is overridden.
#[expect(unused_variables, reason = "a default method has no use for them")]
pub trait EventListener: Send + Sync + std::fmt::Debug {
    /// A flush begins.
    fn on_flush_begin(&self, job: &JobEvent) {}
    /// A flush has ended, and its table can be read unless it failed.
    fn on_flush_end(&self, job: &JobEvent) {}
    /// A compaction begins to merge. Tables that only change their level are not told.
    fn on_compaction_begin(&self, job: &JobEvent) {}
    /// A compaction has ended.
    fn on_compaction_end(&self, job: &JobEvent) {}
    /// Writers are slowed, stopped or set free.
    fn on_stall_changed(&self, from: Stall, to: Stall) {}
    /// Background work or the log failed.
    fn on_background_error(&self, error: &Error, severity: Severity) {}
    /// Background work goes on after an error.
    fn on_resumed(&self) {}
    /// A file was made.
    fn on_file_created(&self, file: &FileEvent) {}
    /// A file was removed.
    fn on_file_deleted(&self, file: &FileEvent) {}
}

impl Engine {
    /// Tells every listener. No lock may be held.
    pub(crate) fn tell(&self, event: impl Fn(&dyn EventListener)) {
        for listener in &self.options.listeners {
            event(&**listener);
        }
    }
}
