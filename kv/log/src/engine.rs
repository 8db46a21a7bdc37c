//! The engine: the namespace of logs, and what can be done to one.
//!
//! Lock order: datalog (`data`), metalog (`meta`), `names`, a log's core, the file table. The
//! first two are held across device I/O, the others never. Appends go through `commit`, whose
//! leader takes `data`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use lavafs::{FileLock, FileSystemRef};
use parking_lot::{Mutex, RwLock};

use crate::append::{Outcome, Pending, PendingAppend};
use crate::commit::GroupCommit;
use crate::data::{DataLog, FileTable, place, unframe};
use crate::error::{Error, Result};
use crate::meta::{MetaLog, MetaOp};
use crate::options::{LogConfig, LogOptions, Mode};
use crate::scan::Scan;
use crate::state::{Core, LogState, Truncation};

/// Longest name of a log in bytes.
pub const LOG_NAME_LEN_MAX: usize = 255;

/// A log's number, never used for another log of the same engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LogId(pub u64);

/// What an append did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Appended {
    /// The record is in the log.
    Stored,
    /// The log had the LSN already and keeps what it has.
    Duplicate,
}

/// Which records a read may return.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReadLevel {
    /// Every appended one: a crash may still lose it.
    #[default]
    Visible,
    /// Only those that no crash can lose.
    Durable,
}

/// Many logs in two shared logs, in one directory of a filesystem.
///
/// Cheap to clone; all methods may be called from any thread. Dropping the last handle without
/// [`LogEngine::close`] is a crash: what was appended without sync may be lost.
#[derive(Clone)]
pub struct LogEngine {
    pub(crate) inner: Arc<Inner>,
}

/// One log. Cheap to clone; keeps the engine open.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
    state: Arc<LogState>,
}

pub(crate) struct Inner {
    pub(crate) fs: FileSystemRef,
    pub(crate) dir: PathBuf,
    pub(crate) options: LogOptions,
    pub(crate) commit: GroupCommit<Pending, Outcome, Error>,
    pub(crate) data: Mutex<DataLog>,
    /// `None` once closed.
    pub(crate) meta: Mutex<Option<MetaLog>>,
    pub(crate) names: RwLock<Names>,
    pub(crate) files: FileTable,
    pub(crate) next_op: AtomicU64,
    /// The place in the datalog before which every record is durable.
    pub(crate) durable: AtomicU64,
    /// How the close ended, if there was one. Set with the datalog's lock held.
    pub(crate) closed: OnceLock<Result<()>>,
    /// `None` for an engine that was opened for reading alone; it counts as closed.
    pub(crate) lock: Option<FileLock>,
}

#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) by_name: BTreeMap<String, Arc<LogState>>,
    pub(crate) by_id: HashMap<u64, Arc<LogState>>,
}

impl Names {
    pub(crate) fn add(&mut self, state: Arc<LogState>) {
        self.by_name.insert(state.name.clone(), state.clone());
        self.by_id.insert(state.id, state);
    }
}

impl LogEngine {
    /// Opens the engine in `dir` of `fs`, which is made if missing, and recovers what it holds.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with file and offset if bytes that were durable are damaged; nothing
    /// is changed then. A path error of kind `Locked` if another engine has the directory.
    pub fn open(fs: FileSystemRef, dir: &Path, options: &LogOptions) -> Result<LogEngine> {
        options.validate()?;
        let inner = Arc::new(crate::recovery::recover(fs, dir, options)?);
        inner.remove_dead_files()?;
        Ok(LogEngine { inner })
    }

    /// Makes a log; durable on return.
    ///
    /// # Errors
    /// [`Error::LogExists`]; [`Error::Invalid`] for a name that is empty or over
    /// [`LOG_NAME_LEN_MAX`] bytes.
    pub fn create(&self, name: &str, config: LogConfig) -> Result<Log> {
        if name.is_empty() || name.len() > LOG_NAME_LEN_MAX {
            return Err(Error::Invalid {
                what: format!(
                    "a log name of {} bytes; 1 to {LOG_NAME_LEN_MAX}",
                    name.len()
                ),
            });
        }
        let mut meta = self.inner.meta.lock();
        let meta = self.inner.writable(&mut meta)?;
        if self.inner.names.read().by_name.contains_key(name) {
            return Err(Error::LogExists { name: name.into() });
        }
        let state = Arc::new(LogState {
            id: meta.next_log,
            name: name.to_owned(),
            mode: config.mode,
            core: Mutex::default(),
        });
        let op = create_op(&state, &Core::default(), self.inner.take_op());
        meta.append(&op)?;
        meta.sync()?;
        meta.next_log += 1;
        self.inner.names.write().add(state.clone());
        Ok(self.handle(state))
    }

    /// The log of this name.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`].
    pub fn open_log(&self, name: &str) -> Result<Log> {
        let state = self.inner.names.read().by_name.get(name).cloned();
        match state {
            Some(state) => Ok(self.handle(state)),
            None => Err(Error::NoSuchLog { name: name.into() }),
        }
    }

    /// The names of all logs, in byte order.
    pub fn list(&self) -> Vec<String> {
        self.inner.names.read().by_name.keys().cloned().collect()
    }

    /// Deletes a log with its records; durable on return. Handles on it report
    /// [`Error::Deleted`]; a later log of the same name is another log.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`].
    pub fn delete(&self, name: &str) -> Result<()> {
        let dead = {
            let mut meta = self.inner.meta.lock();
            let meta = self.inner.writable(&mut meta)?;
            let state = self.inner.names.read().by_name.get(name).cloned();
            let state = state.ok_or_else(|| Error::NoSuchLog { name: name.into() })?;
            meta.append(&MetaOp::Delete {
                log: state.id,
                op: self.inner.take_op(),
            })?;
            meta.sync()?;
            let mut names = self.inner.names.write();
            names.by_name.remove(name);
            names.by_id.remove(&state.id);
            drop(names);
            let mut core = state.core.lock();
            core.deleted = true;
            self.inner.forget(|gone| core.index.truncate_from(0, gone))
        };
        if dead {
            self.inner.remove_dead_files()?;
        }
        Ok(())
    }

    /// Appends to several logs, all or nothing, also across a crash. With `sync`, durable on
    /// return. One result for each append, in order.
    ///
    /// # Errors
    /// As [`Log::append`], for the first append that is refused: then nothing was appended.
    pub fn append_batch(&self, batch: &[(LogId, u64, &[u8])], sync: bool) -> Result<Vec<Appended>> {
        let names = self.inner.names.read();
        let mut appends = Vec::with_capacity(batch.len());
        for (id, lsn, data) in batch {
            let log = names.by_id.get(&id.0).ok_or_else(|| Error::Deleted {
                name: format!("with id {}", id.0),
            })?;
            appends.push(PendingAppend {
                log: log.clone(),
                lsn: *lsn,
                data: data.to_vec(),
            });
        }
        drop(names);
        self.inner.submit(Pending { appends, sync })
    }

    /// Makes every append and trim that has returned durable.
    pub fn sync(&self) -> Result<()> {
        let pending = Pending {
            appends: Vec::new(),
            sync: true,
        };
        self.inner.submit(pending)?;
        match &mut *self.inner.meta.lock() {
            Some(meta) => meta.sync(),
            None => Err(self.inner.ended()),
        }
    }

    /// Seals the files, so that the next open reads no payload, and makes everything durable.
    /// Every later change fails with [`Error::Closed`]; reads still work.
    ///
    /// # Errors
    /// A failure of the filesystem. Every further close fails so too.
    pub fn close(&self) -> Result<()> {
        let mut data = self.inner.data.lock();
        let outcome = self.inner.closed.get_or_init(|| self.inner.end(&mut data));
        outcome.clone()
    }

    /// Number of physical files of the datalog.
    pub fn data_files(&self) -> usize {
        self.inner.files.len()
    }

    fn handle(&self, state: Arc<LogState>) -> Log {
        Log {
            inner: self.inner.clone(),
            state,
        }
    }
}

impl Log {
    /// The log's number, for [`LogEngine::append_batch`].
    pub fn id(&self) -> LogId {
        LogId(self.state.id)
    }

    /// The log's name.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// How it was made.
    pub fn config(&self) -> LogConfig {
        LogConfig {
            mode: self.state.mode,
        }
    }

    /// Appends a record. Visible on return and, with `sync`, durable, with everything that any
    /// thread appended before.
    ///
    /// # Errors
    /// [`Error::Trimmed`] below the floor; [`Error::Duplicate`] or [`Error::OutOfOrder`] as the
    /// mode says; [`Error::Deleted`]; [`Error::Invalid`] for data of about 1 GiB or more. An
    /// error of the filesystem is final: no append succeeds after it. Want of space is not, and
    /// ends with what a trim gives back; the record may be there all the same.
    pub fn append(&self, lsn: u64, data: &[u8], sync: bool) -> Result<Appended> {
        let append = PendingAppend {
            log: self.state.clone(),
            lsn,
            data: data.to_vec(),
        };
        let appends = vec![append];
        let appended = self.inner.submit(Pending { appends, sync })?;
        Ok(appended[0])
    }

    /// The record at `lsn`.
    ///
    /// # Errors
    /// [`Error::Trimmed`], [`Error::Missing`], [`Error::Beyond`], [`Error::Deleted`];
    /// [`Error::Corrupt`] if its bytes are damaged.
    pub fn read(&self, lsn: u64) -> Result<Vec<u8>> {
        self.read_with(lsn, ReadLevel::Visible)
    }

    /// Like [`Log::read`], at a level. A record that is not durable yet is [`Error::Beyond`] at
    /// level durable.
    pub fn read_with(&self, lsn: u64, level: ReadLevel) -> Result<Vec<u8>> {
        let (entry, file) = {
            let core = self.state.core.lock();
            let entry = core.lookup(&self.state.name, lsn)?;
            (entry, self.inner.files.of(entry))
        };
        let end = u64::from(entry.offset) + u64::from(entry.len);
        let durable = self.inner.durable.load(Ordering::Acquire);
        if level == ReadLevel::Durable && place(entry.file, end) > durable {
            return Err(Error::Beyond { lsn, last: None });
        }
        let mut bytes = vec![0; entry.len as usize];
        let read = file.file.read_at(u64::from(entry.offset), &mut bytes)?;
        let read = file.read_rest(entry, &mut bytes, read)?;
        unframe(&bytes[..read], self.state.id, entry, &file)
    }

    /// The records and gaps of a range of LSNs, in order, up to the last record that is there
    /// when the scan comes to it.
    pub fn scan(&self, range: impl std::ops::RangeBounds<u64>) -> Scan {
        Scan::new(self.inner.clone(), self.state.clone(), &range)
    }

    /// Gives up everything below `lsn`: such records are gone on return. After a crash they may
    /// be back, unless [`LogEngine::sync`] came between. Below the floor: does nothing.
    pub fn trim_before(&self, lsn: u64) -> Result<()> {
        let dead = {
            // A dense log that is trimmed past its end takes `lsn` next. That append depends on
            // the trim, which must therefore be durable first.
            let _data = (self.state.mode == Mode::Dense).then(|| self.inner.data.lock());
            let mut meta = self.inner.meta.lock();
            let meta = self.inner.writable(&mut meta)?;
            let past_end = {
                let core = self.state.core.lock();
                core.check_alive(&self.state.name)?;
                if lsn <= core.floor {
                    return Ok(());
                }
                core.next_dense().is_none_or(|next| next < lsn)
            };
            meta.append(&MetaOp::Trim {
                log: self.state.id,
                op: self.inner.take_op(),
                floor: lsn,
            })?;
            if past_end && self.state.mode == Mode::Dense {
                meta.sync()?;
            }
            let mut core = self.state.core.lock();
            core.floor = lsn;
            self.inner.forget(|gone| core.index.trim_before(lsn, gone))
        };
        if dead {
            self.inner.remove_dead_files()?;
        }
        Ok(())
    }

    /// Removes everything at or above `lsn`; durable on return. Above the last LSN: does nothing.
    pub fn truncate_from(&self, lsn: u64) -> Result<()> {
        let dead = {
            // No record of the new epoch may be written before the truncation is durable.
            let _data = self.inner.data.lock();
            let mut meta = self.inner.meta.lock();
            let meta = self.inner.writable(&mut meta)?;
            let to = {
                let core = self.state.core.lock();
                core.check_alive(&self.state.name)?;
                if core.index.last().is_none_or(|last| last < lsn) {
                    return Ok(());
                }
                let epoch = core.epoch.checked_add(1).ok_or_else(|| Error::Invalid {
                    what: "a truncation: the log has been truncated 2^32 - 1 times".into(),
                })?;
                Truncation {
                    epoch,
                    from: lsn.max(core.floor),
                }
            };
            meta.append(&MetaOp::Truncate {
                log: self.state.id,
                op: self.inner.take_op(),
                to,
            })?;
            meta.sync()?;
            let mut core = self.state.core.lock();
            core.add_truncation(to);
            self.inner
                .forget(|gone| core.index.truncate_from(to.from, gone))
        };
        if dead {
            self.inner.remove_dead_files()?;
        }
        Ok(())
    }

    /// The lowest LSN that can be there: the highest trim.
    pub fn floor(&self) -> u64 {
        self.state.core.lock().floor
    }

    /// The first LSN that is there.
    pub fn first(&self) -> Option<u64> {
        self.state.core.lock().index.first()
    }

    /// The last LSN that is there.
    pub fn last(&self) -> Option<u64> {
        self.state.core.lock().index.last()
    }

    /// Number of records that are there.
    pub fn len(&self) -> u64 {
        self.state.core.lock().index.len()
    }

    /// True where no record is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The last LSN of the run without gaps that begins at [`Log::first`].
    pub fn contiguous_upto(&self) -> Option<u64> {
        self.state.core.lock().index.contiguous_upto()
    }
}

impl Inner {
    fn submit(&self, pending: Pending) -> Outcome {
        pending.check()?;
        self.commit.submit(pending, |items| self.commit(items))?
    }

    /// Ends both physical logs, each whatever comes of the other.
    fn end(&self, data: &mut DataLog) -> Result<()> {
        let sealed = data.seal(&self.files);
        if sealed.is_ok() {
            self.durable.store(u64::MAX, Ordering::Release);
        }
        let meta = self.meta.lock().take();
        let closed = meta.map_or(Ok(()), MetaLog::close);
        sealed.and(closed)
    }

    /// Why nothing can be changed any more.
    pub(crate) fn ended(&self) -> Error {
        match self.lock {
            Some(_) => Error::Closed,
            None => Error::ReadOnly,
        }
    }

    pub(crate) fn take_op(&self) -> u64 {
        self.next_op.fetch_add(1, Ordering::Relaxed)
    }

    /// The metalog, in a new file if the present one is full. The caller holds its lock.
    fn writable<'a>(&self, meta: &'a mut Option<MetaLog>) -> Result<&'a mut MetaLog> {
        let meta = meta.as_mut().ok_or_else(|| self.ended())?;
        if meta.is_full(self.options.meta_file_size) {
            let snapshot = self.snapshot(meta.next_log);
            meta.roll(&self.fs, &snapshot)?;
        }
        Ok(meta)
    }

    /// The state of every log. The caller holds the metalog's lock, so nothing changes meanwhile.
    pub(crate) fn snapshot(&self, next_log: u64) -> Vec<MetaOp> {
        let next_op = self.next_op.load(Ordering::Relaxed);
        snapshot_ops(&self.names.read(), next_log, next_op)
    }

    /// Runs `remove`, which takes entries out of an index, and counts them off their files; true
    /// if that left a file without live records.
    fn forget(&self, remove: impl FnOnce(&mut dyn FnMut(crate::index::Entry))) -> bool {
        let mut counts = BTreeMap::new();
        remove(&mut |entry| *counts.entry(entry.file).or_insert(0) += 1);
        self.files.remove_live(&counts)
    }

    /// Removes sealed files without live records, once what killed them is durable.
    pub(crate) fn remove_dead_files(&self) -> Result<()> {
        let mut data = self.data.lock();
        let mut meta = self.meta.lock();
        let Some(meta) = &mut *meta else {
            return Ok(());
        };
        if !self.files.has_dead() {
            return Ok(());
        }
        // Taken first: what dies from here on may have died of something not durable.
        let dead = self.files.take_dead();
        // A record may have been replaced by one that is not durable yet.
        let durable = data.sync()?;
        self.durable.fetch_max(durable, Ordering::Release);
        meta.sync()?;
        for file in dead {
            self.fs.unlink(&file.path)?;
        }
        Ok(())
    }
}

/// What a snapshot of these logs holds.
pub(crate) fn snapshot_ops(names: &Names, next_log: u64, next_op: u64) -> Vec<MetaOp> {
    let states = names.by_id.values();
    let mut ops: Vec<_> = states
        .map(|state| create_op(state, &state.core.lock(), 0))
        .collect();
    ops.push(MetaOp::SnapshotEnd {
        next_log,
        next_op,
        logs: names.by_id.len() as u64,
    });
    ops
}

fn create_op(state: &LogState, core: &Core, op: u64) -> MetaOp {
    MetaOp::Create {
        log: state.id,
        op,
        mode: state.mode,
        floor: core.floor,
        epoch: core.epoch,
        name: state.name.clone(),
        truncations: core.truncations.clone(),
    }
}

impl fmt::Debug for LogEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogEngine({})", self.inner.dir.display())
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log({} of {})", self.name(), self.inner.dir.display())
    }
}
