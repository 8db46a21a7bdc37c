//! `EventListener`: what a database tells of its background work while it happens.
//!
//! Methods are called on the thread that does the work, without any lock of the database held: they may
//! read and write, but must not wait for background work, which waits for them, nor close the database, and should be
//! quick. A listener that panics on a background thread poisons the database.

use std::path::PathBuf;
use std::time::Duration;

use crate::db::engine::Engine;
use crate::error::{Error, Severity};
use crate::file_names::{FileName, FileNumber};
use crate::write::batch::CfId;
use crate::write::stall::Stall;

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

/// A collection of blob files' garbage.
#[derive(Clone, Debug)]
pub struct CollectionEvent {
    /// Column family.
    pub cf: CfId,
    /// Blob files that go in.
    pub input_files: u64,
    /// Their bytes.
    pub input_bytes: u64,
    /// Bytes of the blob file written; 0 at the begin, and where nothing was live or wanted.
    pub output_bytes: u64,
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
    /// A collection of blob files' garbage begins.
    fn on_collection_begin(&self, collection: &CollectionEvent) {}
    /// A collection has ended.
    fn on_collection_end(&self, collection: &CollectionEvent) {}
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
    /// Tells that a blob file is whole, durable and part of the database.
    pub(crate) fn tell_blob_file(&self, number: FileNumber, bytes: u64) {
        let file = FileEvent {
            kind: FileKind::Blob,
            path: self.dir.join(FileName::Blob(number).to_string()),
            bytes: Some(bytes),
        };
        self.tell(|listener| listener.on_file_created(&file));
    }

    /// Tells every listener. No lock may be held.
    pub(crate) fn tell(&self, event: impl Fn(&dyn EventListener)) {
        for listener in &self.options.listeners {
            event(&**listener);
        }
    }
}
