//! `EventListener`: what a database tells of its background work while it happens.
//!
//! Methods are called on the thread that does the work, without any lock of the database held (whoever leads the writers
//! tells what happened when he has handed over the lead): they may
//! read and write, but must not wait for background work, which waits for them, nor close the database, and should be
//! quick. A listener that panics on a background thread poisons the database.

use std::path::PathBuf;
use std::thread::{self, ThreadId};
use std::time::Duration;

use parking_lot::Mutex;

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

/// An event that the leader of the writers may have to tell.
#[derive(Debug)]
pub(crate) enum Event {
    FileCreated(FileEvent),
    Failed(Error, Severity),
}

/// What the leader of the writers has to tell when it has handed over the lead: a listener that writes waits for it.
#[derive(Debug, Default)]
pub(crate) struct Untold(Mutex<(Option<ThreadId>, Vec<Event>)>);

impl Untold {
    /// The calling thread leads.
    pub(crate) fn begin(&self) {
        self.0.lock().0 = Some(thread::current().id());
    }

    /// It does no longer, and has this to tell.
    pub(crate) fn end(&self) -> Vec<Event> {
        std::mem::take(&mut *self.0.lock()).1
    }
}

impl Engine {
    /// Tells `event`, later where the calling thread leads the writers.
    pub(crate) fn tell_unless_leading(&self, event: Event) {
        if self.options.listeners.is_empty() {
            return;
        }
        let mut untold = self.untold.0.lock();
        if untold.0 == Some(thread::current().id()) {
            untold.1.push(event);
            return;
        }
        drop(untold);
        self.tell_event(&event);
    }

    pub(crate) fn tell_event(&self, event: &Event) {
        self.tell(|listener| match event {
            Event::FileCreated(file) => listener.on_file_created(file),
            Event::Failed(error, severity) => listener.on_background_error(error, *severity),
        });
    }

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
