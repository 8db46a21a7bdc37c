//! `Engine`: the shared state of one open database, and the rules for its locks.
//!
//! Lock order, outermost first:
//! 1. `closed`: held by whoever closes the database, until it is closed;
//! 2. leadership of the writers' queue (held across log I/O; that is its purpose);
//! 3. `log`: the write-ahead log in use; taken by the leader, and by nobody during its I/O;
//! 4. the locks of the succession of logs (write/succession.rs): held across the I/O that makes or closes a log;
//! 5. `versions`: one change of the structure at a time; held across manifest I/O;
//! 6. `state`: short; never held across I/O.
//!
//! Readers take only a view, without a lock: it is swapped as a whole, and a point read borrows it
//! without touching its reference count, which all threads would write. A view is replaced under `state`, so whoever holds `state` sees no
//! view change. Sequence numbers are published after the memtables hold their writes; a reader
//! takes its view first and the sequence number second, so that nothing visible to it can have
//! been dropped from the view by a merge.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, Guard};
use lavafs::{FileLock, FileSystemRef};
use lavalog::GroupCommit;
use parking_lot::{Condvar, Mutex};

use crate::background::scheduler;
use crate::blob::gc::Collections;
use crate::cache::BlockCache;
use crate::compaction::InFlight;
use crate::db::snapshot::SnapshotList;
use crate::env::Env;
use crate::env::ledger::{Charge, MemoryLedger};
use crate::error::{Error, Result, Severity};
use crate::file_names::{FileName, FileNumber};
use crate::key::SeqNo;
use crate::memtable::MemTable;
use crate::options::Options;
use crate::sstable::{OpenOptions, Table, TableOptions};
use crate::stats::histogram::Histograms;
use crate::stats::listener::{Event, FileEvent, FileKind, Untold};
use crate::stats::metrics::Tickers;
use crate::version::{ObsoleteFiles, SstMeta, TableOpener, Version, VersionSet};
use crate::write::WriteItem;
use crate::write::batch::CfId;
use crate::write::stall::{Pacer, Stall};
use crate::write::succession::{NextLog, Succession};
use crate::write::wal::WalWriter;

/// Transient failures in a row, other than for want of space, after which one is taken for hard.
const RETRIES_MAX: u32 = 20;

/// A memtable and what recovery must know of it.
#[derive(Debug)]
pub(crate) struct Mem {
    pub(crate) table: Arc<MemTable>,
    /// Its entries are in logs of this number and above.
    log_number: AtomicU64,
    /// It holds entries that no log has.
    unlogged: AtomicBool,
}

impl Mem {
    pub(crate) fn new(
        id: u64,
        log_number: FileNumber,
        ledger: Option<Arc<MemoryLedger>>,
        protected: bool,
    ) -> Arc<Mem> {
        Arc::new(Mem {
            table: MemTable::with(id, ledger, protected),
            log_number: AtomicU64::new(log_number),
            unlogged: AtomicBool::new(false),
        })
    }

    pub(crate) fn log_number(&self) -> FileNumber {
        self.log_number.load(Ordering::Acquire)
    }

    /// For an empty memtable: nothing of it is in logs below `number`.
    pub(crate) fn advance_log_number(&self, number: FileNumber) {
        self.log_number.store(number, Ordering::Release);
    }

    pub(crate) fn is_unlogged(&self) -> bool {
        self.unlogged.load(Ordering::Acquire)
    }

    pub(crate) fn set_unlogged(&self) {
        self.unlogged.store(true, Ordering::Release);
    }
}

/// What a reader sees of a column family: immutable but for inserts into `mem`.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) mem: Arc<Mem>,
    /// Memtables being flushed, newest first.
    pub(crate) imms: Vec<Arc<Mem>>,
    pub(crate) version: Arc<Version>,
}

/// An open column family.
#[derive(Debug)]
pub(crate) struct ColumnFamily {
    pub(crate) id: CfId,
    pub(crate) name: String,
    /// Of these only what concerns a family.
    pub(crate) options: Arc<Options>,
    view: ArcSwap<View>,
    /// As recorded in the manifest: logs below hold nothing unflushed of it.
    pub(crate) log_number: AtomicU64,
    pub(crate) dropped: AtomicBool,
}

impl ColumnFamily {
    pub(crate) fn new(
        id: CfId,
        name: String,
        view: View,
        log_number: FileNumber,
        options: Arc<Options>,
    ) -> Arc<Self> {
        Arc::new(ColumnFamily {
            id,
            name,
            options,
            view: ArcSwap::from_pointee(view),
            log_number: AtomicU64::new(log_number),
            dropped: AtomicBool::new(false),
        })
    }

    /// What a builder of its tables is told, with the family's name.
    pub(crate) fn named(&self, options: TableOptions) -> TableOptions {
        TableOptions {
            column_family: Some((self.id.0, self.name.clone())),
            ..options
        }
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// The view of this moment, borrowed: for a short read.
    #[inline]
    pub(crate) fn borrow_view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// Replaces the view. The old one is returned, to be dropped without a lock held.
    pub(crate) fn set_view(&self, view: View, _state: &State) -> Arc<View> {
        self.view.swap(Arc::new(view))
    }
}

/// Why the database takes no writes.
#[derive(Clone, Debug)]
pub(crate) struct BackgroundError {
    pub(crate) error: Error,
    /// Ends by itself when space returns.
    pub(crate) transient: bool,
    /// May be cleared by the caller: background work failed, and the log did not.
    pub(crate) resumable: bool,
}

/// What background work and writers share. See the module's lock order.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) cfs: BTreeMap<CfId, Arc<ColumnFamily>>,
    pub(crate) next_cf: u32,
    /// Logs on disk with their sizes; the last one is in use.
    pub(crate) logs: BTreeMap<FileNumber, u64>,
    /// The log before the one in use, while it is being closed.
    pub(crate) ending_log: Option<FileNumber>,
    /// How far the log is that comes next.
    pub(crate) next_log: NextLog,
    /// Column families with a flush queued or running.
    pub(crate) flushing: BTreeSet<CfId>,
    /// Compactions running, with their column family.
    pub(crate) compacting: Vec<(CfId, InFlight)>,
    /// Background tasks queued or running.
    pub(crate) tasks: usize,
    pub(crate) compaction_tasks: usize,
    pub(crate) manual_compactions: usize,
    /// Jobs that change files on threads of callers ([`crate::db::close::CallerJob`]).
    pub(crate) caller_jobs: usize,
    pub(crate) collections: Collections,
    pub(crate) error: Option<BackgroundError>,
    pub(crate) resuming: bool,
    /// A thread looks at the age of a FIFO's tables.
    pub(crate) watching_age: bool,
    /// Transient failures since background work last succeeded.
    pub(crate) retries: u32,
    pub(crate) closing: bool,
    /// Somebody closes the database: who waits for background work to write gives up.
    pub(crate) closing_soon: bool,
    pub(crate) stall: Stall,
    /// The part of `stall` that the backlog of compactions demands.
    pub(crate) backlog_stall: Stall,
    /// The part of `stall` that the disk demands.
    pub(crate) space_stall: Stall,
}

impl State {
    /// The column family, if it exists. None does once the database is closed.
    pub(crate) fn cf(&self, id: CfId) -> Result<Arc<ColumnFamily>> {
        match self.cfs.get(&id) {
            Some(cf) => Ok(Arc::clone(cf)),
            None if self.closing => Err(closing()),
            None => Err(no_such_cf(id)),
        }
    }
}

/// The shared state of one open database.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) fs: FileSystemRef,
    pub(crate) dir: PathBuf,
    pub(crate) options: Options,
    pub(crate) env: Arc<Env>,
    pub(crate) cache: Arc<BlockCache>,
    /// The number under which the cache has this database's values.
    pub(crate) value_space: u64,
    pub(crate) remover: Arc<ObsoleteFiles>,
    pub(crate) next_file: AtomicU64,
    pub(crate) next_mem: AtomicU64,
    /// The newest sequence number that readers see.
    pub(crate) published: AtomicU64,
    pub(crate) snapshots: Arc<SnapshotList>,
    /// Bytes written since the disk's space was looked at.
    pub(crate) written_unseen: AtomicU64,
    pub(crate) tickers: Tickers,
    pub(crate) histograms: Histograms,
    pub(crate) writers: GroupCommit<WriteItem, Result<()>, Error>,
    /// What their leader has to tell.
    pub(crate) untold: Untold,
    pub(crate) log: Mutex<Option<WalWriter>>,
    pub(crate) succession: Succession,
    pub(crate) versions: Mutex<VersionSet>,
    pub(crate) state: Mutex<State>,
    /// Signalled with every change of `state` that somebody may wait for.
    pub(crate) changed: Condvar,
    pub(crate) lock: Mutex<Option<FileLock>>,
    /// Whether the database is closed.
    pub(crate) closed: Mutex<bool>,
    /// The default column family, which is never dropped.
    pub(crate) default_cf: OnceLock<Arc<ColumnFamily>>,
    /// Reads are refused too: the database is poisoned or closed.
    pub(crate) unreadable: AtomicBool,
    /// Blob files that scans found scattered and that no edit has told yet. No other lock is taken with it.
    pub(crate) newly_scattered: Mutex<BTreeSet<FileNumber>>,
    /// Number of the newest options file. Held while one is written; only `state` is taken then.
    pub(crate) options_file: Mutex<Option<FileNumber>>,
    /// Opened for reading alone.
    pub(crate) read_only: bool,
    /// What the filesystem may read ahead into, where memory is limited.
    pub(crate) _filesystem_memory: Option<Arc<Charge>>,
    /// What a slowed writer has to wait for; the leader's.
    pub(crate) pacer: Mutex<Pacer>,
}

impl Engine {
    /// A number that no file has.
    pub(crate) fn new_file_number(&self) -> FileNumber {
        self.next_file.fetch_add(1, Ordering::Relaxed)
    }

    /// The newest sequence number that readers see.
    pub(crate) fn last_sequence(&self) -> SeqNo {
        self.published.load(Ordering::Acquire)
    }

    /// An empty memtable whose entries will be in logs of `log_number` and above.
    pub(crate) fn new_mem(&self, log_number: FileNumber) -> Arc<Mem> {
        let id = self.next_mem.fetch_add(1, Ordering::Relaxed);
        let protected = self.options.protection_bytes_per_key > 0;
        Mem::new(id, log_number, self.env.ledger().cloned(), protected)
    }

    /// The column family with the largest active memtable, and its bytes; none without entries.
    pub(crate) fn largest_memtable(&self) -> Option<(usize, CfId)> {
        let state = self.state.lock();
        let of = |cf: &Arc<ColumnFamily>| {
            let table = &cf.view().mem.table;
            (!table.is_empty()).then(|| (table.approximate_memory(), cf.id))
        };
        state
            .cfs
            .values()
            .filter_map(of)
            .max_by_key(|(bytes, _)| *bytes)
    }

    /// Bytes of a new log. On a small device a part of the free space: a log that is taken at
    /// once must leave room for the tables.
    pub(crate) fn log_size_expected(&self) -> u64 {
        let buffer = self.options.write_buffer_size as u64;
        (buffer + buffer / 8).min(self.fs.space().free / 16)
    }

    /// The column family, if it exists. The default one takes no lock once it was asked for.
    pub(crate) fn cf(&self, id: CfId) -> Result<Arc<ColumnFamily>> {
        if id == CfId::DEFAULT
            && let Some(cf) = self.default_cf.get()
        {
            return Ok(Arc::clone(cf));
        }
        let cf = self.find_cf(id)?;
        if id == CfId::DEFAULT {
            return Ok(Arc::clone(self.default_cf.get_or_init(|| cf)));
        }
        Ok(cf)
    }

    /// The column family's view of this moment.
    #[inline]
    pub(crate) fn borrow_view(&self, id: CfId) -> Result<Guard<Arc<View>>> {
        if id == CfId::DEFAULT
            && let Some(cf) = self.default_cf.get()
        {
            return Ok(cf.borrow_view());
        }
        let cf = self.cf(id)?;
        if cf.dropped.load(Ordering::Acquire) {
            return Err(no_such_cf(id));
        }
        Ok(cf.borrow_view())
    }

    fn find_cf(&self, id: CfId) -> Result<Arc<ColumnFamily>> {
        self.state.lock().cf(id)
    }

    /// Fails where background work must not go on.
    pub(crate) fn keep_going(&self) -> Result<()> {
        let state = self.state.lock();
        if state.closing {
            return Err(closing());
        }
        match &state.error {
            Some(background) if !background.transient => Err(read_only(&background.error)),
            _ => Ok(()),
        }
    }

    /// The same for work on `cf`, which ends where that was dropped.
    pub(crate) fn keep_going_on(&self, cf: &ColumnFamily) -> Result<()> {
        match cf.dropped.load(Ordering::Acquire) {
            true => Err(no_such_cf(cf.id)),
            false => self.keep_going(),
        }
    }

    /// Records a failure of background work or of the log. The first hard one stays, but for a panic after it.
    pub(crate) fn fail(self: &Arc<Self>, error: Error) {
        let severity = error.severity();
        let mut state = self.state.lock();
        let transient = severity == Severity::Transient && state.retries < RETRIES_MAX;
        let is_known = |known: &BackgroundError| {
            !known.transient && (severity < Severity::Fatal || known.error.severity() == severity)
        };
        if state.closing || state.error.as_ref().is_some_and(is_known) {
            return;
        }
        tracing::error!(%error, transient, dir = %self.dir.display(), "background failure");
        if matches!(error, Error::Poisoned { .. }) {
            self.unreadable.store(true, Ordering::Release);
        }
        state.retries += u32::from(transient);
        state.error = Some(BackgroundError {
            resumable: severity <= Severity::Hard && !matches!(error, Error::ReadOnly { .. }),
            error: error.clone(),
            transient,
        });
        let resume = transient && !state.resuming;
        state.resuming |= resume;
        drop(state);
        self.changed.notify_all();
        // A listener that panics here must not take those with it who have more to do than to tell.
        let told = scheduler::guarded(|| {
            self.tell_unless_leading(Event::Failed(error, severity));
            Ok(())
        });
        if let Err(panicked) = told {
            tracing::error!(%panicked, dir = %self.dir.display(), "a listener of failures");
        }
        if resume {
            scheduler::resume_later(self);
        }
    }

    /// Removes a file by name; a failure is told in the log and leaves an orphan for the next open.
    pub(crate) fn remove_file(&self, name: FileName) {
        let path = self.dir.join(name.to_string());
        if let Err(error) = self.fs.unlink(&path)
            && !error.is_not_found()
        {
            tracing::warn!(path = %path.display(), %error, "obsolete file not removed");
            return;
        }
        let kind = match name {
            FileName::Wal(_) => FileKind::Wal,
            FileName::Table(_) => FileKind::Table,
            _ => return,
        };
        let event = FileEvent {
            kind,
            path,
            bytes: None,
        };
        self.tell(|listener| listener.on_file_deleted(&event));
    }

    pub(crate) fn table_path(&self, number: FileNumber) -> PathBuf {
        table_path(&self.dir, number)
    }
}

impl TableOpener for Engine {
    fn open_table(&self, meta: &SstMeta) -> Result<Arc<Table>> {
        let path = self.table_path(meta.number);
        let file = self.fs.open(&path)?;
        let size = file.size().lower();
        if size != meta.file_size {
            let detail = format!("{size} bytes, but the manifest says {}", meta.file_size);
            return Err(Error::corrupt(path.display().to_string(), size, detail));
        }
        let options = OpenOptions {
            pin_index_and_filter: !self.options.cache_index_and_filter_blocks,
        };
        let table = Table::open(file, meta.number, Arc::clone(&self.cache), options)?;
        if self.env.ledger().is_some() && table.pinned_memory() > 0 {
            self.cache.make_room();
        }
        Ok(table)
    }
}

pub(crate) fn table_path(dir: &Path, number: FileNumber) -> PathBuf {
    dir.join(FileName::Table(number).to_string())
}

pub(crate) fn no_such_cf(id: CfId) -> Error {
    Error::invalid_argument(format!("no column family has the id {}", id.0))
}

pub(crate) fn closing() -> Error {
    Error::Busy {
        what: "the database is closing".to_owned(),
    }
}

/// What callers are told after a hard failure; corruption and poisoning keep their kind.
pub(crate) fn read_only(error: &Error) -> Error {
    match error {
        Error::Poisoned { .. } | Error::ReadOnly { .. } => error.clone(),
        other => Error::ReadOnly {
            reason: Arc::from(other.to_string()),
        },
    }
}
