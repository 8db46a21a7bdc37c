//! Opening a database: from the files of a crash, or of none, to a running engine.
//!
//! 1. lock the directory; read `CURRENT` and its manifest;
//! 2. replay the logs, in order of their numbers, from the lowest that a column family needs;
//!    memtables that fill up are written to tables at once;
//! 3. write what is left in memtables to tables, and make a new log;
//! 4. write a new manifest that has those tables in level 0 and needs no log before the new one,
//!    and make it the one in force: the single switch;
//! 5. store the options; remove every file that the new manifest does not need.
//!
//! A crash before 4 leaves the old manifest and its logs untouched, and files that it does not name: the next
//! open does the same again. A crash after 4 leaves obsolete files, which the next open removes.
//! A new database begins at 3. An open that is refused in 1 to 3 leaves the directory as it was: no lock file
//! where there was none, no table of what was replayed before the damage.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use lavafs::{FileLock, FileSystemRef};
use lavalog::GroupCommit;
use parking_lot::{Condvar, Mutex};

use crate::background::scheduler;
use crate::cache::BlockCache;
use crate::db::engine::{ColumnFamily, Engine, State, View};
use crate::db::foreign;
use crate::db::snapshot::SnapshotList;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::file_names::{self, FileName, FileNumber, LOCK};
use crate::key::{LookupKey, MAX_SEQ, SeqNo};
use crate::options::{self, Options, WalRecoveryMode};
use crate::stats::histogram::Histograms;
use crate::stats::listener::Untold;
use crate::stats::metrics::Tickers;
use crate::version::{
    CfEdit, ManifestWriter, ObsoleteFiles, Recovered, SstMeta, Version, VersionSet,
};
use crate::write::batch::{BatchEntry, BatchReader, CfId};
use crate::write::succession::Succession;
use crate::write::wal::{self, ApplyError, Chain, WalWriter};

/// Opens the database at `dir`.
pub(crate) fn open(fs: FileSystemRef, dir: &Path, options: Options) -> Result<Arc<Engine>> {
    options.validate()?;
    let (lock, recovered) = find(&fs, dir, &options)?;
    let replay = Replay::of(&options);
    let engine = open_recovered(fs, dir, options, lock, recovered, replay)?;
    if let Some(ledger) = engine.env.ledger() {
        // Not before: what is being replayed must not be flushed for the sake of others, in the midst of a log.
        ledger.join(&engine);
    }
    let mut state = engine.state.lock();
    engine.recompute_stall(&mut state);
    scheduler::schedule(&engine, &mut state);
    drop(state);
    Ok(engine)
}

/// How logs are replayed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replay {
    pub(crate) mode: WalRecoveryMode,
    /// The structure says which logs its tables have. Where it does not, entries that tables have are left out: a blob
    /// file must not be referred to twice for one of them, nor a single deletion end the put of the log alone.
    pub(crate) knows_logs: bool,
}

impl Replay {
    pub(crate) fn of(options: &Options) -> Replay {
        Replay {
            mode: options.wal_recovery_mode,
            knows_logs: true,
        }
    }
}

/// Steps 2 to 5, with the structure that step 1 found or a repair has made. Nothing is scheduled.
pub(crate) fn open_recovered(
    fs: FileSystemRef,
    dir: &Path,
    options: Options,
    lock: FileLock,
    recovered: Option<Recovered>,
    replay: Replay,
) -> Result<Arc<Engine>> {
    let is_new = recovered.is_none();
    let recovered = recovered.unwrap_or_default();
    let engine = engine_for(fs, dir, options, Some(lock), &recovered)?;
    engine.install_recovered(&recovered, is_new)?;
    let first_made = engine.next_file.load(Ordering::Relaxed);
    let written = engine.replay_logs(&recovered, replay);
    let made = written
        .and_then(|()| engine.write_all_recovered())
        .and_then(|()| engine.make_first_log())
        .and_then(|()| engine.make_first_manifest());
    let manifest = made.inspect_err(|_| engine.remove_made(first_made))?;
    // From here on the recovered state is the database's.
    engine.versions.lock().put_in_force(manifest)?;
    engine.store_options()?;
    engine.remove_orphans()?;
    Ok(engine)
}

/// Locks the directory and reads its manifest, or decides that a new database is to be made.
fn find(
    fs: &FileSystemRef,
    dir: &Path,
    options: &Options,
) -> Result<(FileLock, Option<Recovered>)> {
    let exists = match fs.metadata(&dir.join(file_names::CURRENT)) {
        Ok(_) => true,
        Err(error) if error.is_not_found() => false,
        Err(error) => return Err(error.into()),
    };
    if !exists && !options.create_if_missing {
        return Err(Error::invalid_argument(format!(
            "no database at {}, and create_if_missing is off",
            dir.display()
        )));
    }
    if exists && options.error_if_exists {
        return Err(Error::invalid_argument(format!(
            "a database exists at {}, and error_if_exists is on",
            dir.display()
        )));
    }
    if !exists {
        fs.create_dir_all(dir)?;
    }
    if fs.metadata(&dir.join(LOCK)).is_err() {
        // Nobody owns it, and a refusal is not to leave a lock file in a foreign directory.
        read(fs, dir, exists)?;
    }
    let lock = lock_dir(fs, dir)?;
    Ok((lock, read(fs, dir, exists)?))
}

/// Reads the manifest of a database whose `CURRENT` exists.
fn read(fs: &FileSystemRef, dir: &Path, exists: bool) -> Result<Option<Recovered>> {
    if exists {
        refuse_newer(fs, dir)?;
    } else {
        foreign::refuse_damaged(fs, dir)?;
    }
    Recovered::read(fs, dir)
}

/// Takes the database's lock.
pub(crate) fn lock_dir(fs: &FileSystemRef, dir: &Path) -> Result<FileLock> {
    fs.lock(&dir.join(LOCK)).map_err(|error| match error {
        lavafs::Error::Path {
            kind: lavafs::PathError::Locked,
            ..
        }
        | lavafs::Error::InUse { .. } => Error::Busy {
            what: format!(
                "the database at {} is open elsewhere ({error})",
                dir.display()
            ),
        },
        other => other.into(),
    })
}

/// Options are not needed to open, but their format tells of a newer database before any file of it
/// is touched. A damaged options file is no reason to refuse: it only informs.
pub(crate) fn refuse_newer(fs: &FileSystemRef, dir: &Path) -> Result<()> {
    match Options::find(fs, dir) {
        Err(error @ Error::Unsupported { .. }) => Err(error),
        Err(error) if !error.is_corrupt() => Err(error),
        Err(error) => {
            tracing::warn!(%error, "the stored options do not read back");
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}

/// An engine without column families. Without a lock it is one for reading alone.
pub(crate) fn engine_for(
    fs: FileSystemRef,
    dir: &Path,
    options: Options,
    lock: Option<FileLock>,
    recovered: &Recovered,
) -> Result<Arc<Engine>> {
    let env = options.env.clone().unwrap_or_else(Env::shared);
    let low = options.max_compactions() + options.max_blob_collections;
    env.raise_limits(options.max_flushes(), low);
    let cache = match (&options.block_cache, env.ledger()) {
        (None, None) => BlockCache::new(options.block_cache_size),
        (Some(cache), None) => Arc::clone(cache),
        (None, Some(ledger)) => Arc::clone(ledger.cache()),
        (Some(_), Some(_)) => {
            let what = "options need no block_cache where env has a memory limit";
            return Err(Error::invalid_argument(what));
        }
    };
    let (at, rate) = (dir.to_path_buf(), options.delete_rate);
    let remover = ObsoleteFiles::new(fs.clone(), at, Arc::clone(&env), rate);
    // Files that no manifest names have numbers too.
    let on_disk = fs
        .list(dir)?
        .iter()
        .filter_map(|entry| FileName::parse(&entry.name)?.number())
        .max()
        .unwrap_or(0);
    let histograms = Histograms::new(options.histograms);
    let next_file = recovered.next_file_number.max(on_disk + 1);
    let versions = VersionSet::new(
        fs.clone(),
        dir.to_path_buf(),
        options.max_manifest_file_size,
    );
    let filesystem_memory = env.ledger().map(|ledger| ledger.charge_filesystem(&fs));
    let engine = Arc::new(Engine {
        _filesystem_memory: filesystem_memory,
        pacer: Mutex::default(),
        fs,
        dir: dir.to_path_buf(),
        options,
        env,
        value_space: cache.new_id(),
        cache,
        remover,
        next_file: AtomicU64::new(next_file),
        next_mem: AtomicU64::new(1),
        published: AtomicU64::new(recovered.last_sequence),
        snapshots: Arc::new(SnapshotList::default()),
        written_unseen: AtomicU64::new(0),
        tickers: Tickers::default(),
        histograms,
        writers: GroupCommit::new(),
        untold: Untold::default(),
        log: Mutex::new(None),
        succession: Succession::default(),
        versions: Mutex::new(versions),
        state: Mutex::new(State::default()),
        changed: Condvar::new(),
        read_only: lock.is_none(),
        lock: Mutex::new(lock),
        closed: Mutex::new(false),
        default_cf: OnceLock::new(),
        unreadable: AtomicBool::new(false),
        newly_scattered: Mutex::default(),
        options_file: Mutex::new(None),
    });
    engine.snapshots.set_engine(&engine);
    engine.remover.set_engine(&engine);
    Ok(engine)
}

impl Engine {
    /// Makes the column families that the manifest describes; the default one if there is none.
    pub(crate) fn install_recovered(&self, recovered: &Recovered, is_new: bool) -> Result<()> {
        let mut cfs = BTreeMap::new();
        for (&id, cf) in &recovered.cfs {
            let version = cf.version(self.options.for_cf(&cf.name).num_levels, &self.remover)?;
            cfs.insert(
                id,
                self.make_cf(id, cf.name.clone(), version, cf.log_number),
            );
        }
        if is_new {
            let id = CfId::DEFAULT;
            let version = Version::empty(self.options.for_cf("default").num_levels);
            cfs.insert(id, self.make_cf(id, "default".to_owned(), version, 0));
        }
        let mut state = self.state.lock();
        state.cfs = cfs;
        state.next_cf = recovered.next_cf.max(1);
        Ok(())
    }

    fn make_cf(
        &self,
        id: CfId,
        name: String,
        version: Version,
        log_number: FileNumber,
    ) -> Arc<ColumnFamily> {
        let view = View {
            mem: self.new_mem(log_number),
            imms: Vec::new(),
            version: Arc::new(version),
        };
        let options = Arc::new(self.options.for_cf(&name).clone());
        ColumnFamily::new(id, name, view, log_number, options)
    }

    fn logs_on_disk(&self) -> Result<Vec<FileNumber>> {
        let entries = self.fs.list(&self.dir)?;
        let mut numbers: Vec<FileNumber> = entries
            .iter()
            .filter_map(|entry| match FileName::parse(&entry.name) {
                Some(FileName::Wal(number)) => Some(number),
                _ => None,
            })
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Replays what the column families need into memtables, and those that fill up into tables.
    pub(crate) fn replay_logs(
        self: &Arc<Self>,
        recovered: &Recovered,
        replay: Replay,
    ) -> Result<()> {
        let needed = recovered.cfs.values().map(|cf| cf.log_number).min();
        let Some(needed) = needed else {
            return Ok(());
        };
        let Replay { mode, knows_logs } = replay;
        let mut torn: Option<(String, u64)> = None;
        let mut chain = Chain::default();
        let logs = self.logs_on_disk()?;
        if self.read_only && !logs.contains(&needed) {
            self.refuse_flushed_logs(needed)?;
        }
        for number in logs.into_iter().filter(|&log| log >= needed) {
            let mut too_late = false;
            let end = wal::replay(&self.fs, &self.dir, number, mode, |batch| {
                if torn.is_some() && !chain.continues(&batch) {
                    too_late = true;
                    return Ok(());
                }
                // What is torn, if anything, is the end of a log that was synced, and was being closed.
                torn = None;
                self.replay_batch(number, batch, recovered.next_cf, &mut chain, knows_logs)
            })?;
            if too_late {
                let (file, offset) = torn.expect("set above");
                if mode != WalRecoveryMode::TolerateCorruptedTail {
                    let detail = "torn group, but a later log holds groups";
                    return Err(Error::corrupt(file, offset, detail));
                }
                tracing::warn!(file, offset, "later write-ahead logs are dropped");
                break;
            }
            if let Some(offset) = end.torn_at {
                tracing::info!(log = %end.path.display(), offset, groups = end.groups, "torn tail dropped");
                torn = Some((end.path.display().to_string(), offset));
            }
            if end.damaged {
                break;
            }
        }
        Ok(())
    }

    fn replay_batch(
        &self,
        log: FileNumber,
        batch: BatchReader<'_>,
        next_cf: u32,
        chain: &mut Chain,
        knows_logs: bool,
    ) -> Result<(), ApplyError> {
        let sequence = batch.sequence();
        let last = sequence + u64::from(batch.entry_count());
        if !chain.add(&batch) {
            return Err("sequence number out of order".into());
        }
        let cfs = self.state.lock().cfs.clone();
        for (sequence, entry) in (sequence..).zip(batch) {
            let entry = entry?;
            match cfs.get(&entry.cf) {
                Some(cf) if cf.log_number.load(Ordering::Relaxed) <= log => {
                    if !knows_logs && self.is_in_tables(cf, sequence, &entry)? {
                        continue;
                    }
                    let mem = &cf.view().mem.table;
                    mem.insert(sequence, entry.kind, entry.key, entry.value);
                }
                // Its tables hold this already.
                Some(_) => {}
                // Dropped since.
                None if entry.cf.0 < next_cf => {}
                None => return Err("entry of an unknown column family".into()),
            }
        }
        self.published
            .fetch_max(last.saturating_sub(1), Ordering::AcqRel);
        for cf in cfs.values() {
            if cf.view().mem.table.approximate_memory() >= cf.options.write_buffer_size {
                if self.read_only {
                    self.keep_in_memory(cf);
                    continue;
                }
                self.write_recovered(cf)?;
            }
        }
        Ok(())
    }

    /// True where tables have an entry of a log, or a newer one of its key. A deletion in the place of a value is
    /// that of a repair which did not find it.
    fn is_in_tables(
        &self,
        cf: &ColumnFamily,
        sequence: SeqNo,
        entry: &BatchEntry<'_>,
    ) -> Result<bool> {
        let lookup = LookupKey::new(entry.key, MAX_SEQ);
        let newest = self.newest_in(&cf.view().version, &lookup)?;
        Ok(newest.is_some_and(|(found, kind, _)| {
            let same = kind.is_delete() == entry.kind.is_delete();
            found > sequence || (found == sequence && same)
        }))
    }

    /// Writes the memtable of `cf` into a table of level 0, known to memory only.
    fn write_recovered(&self, cf: &Arc<ColumnFamily>) -> Result<()> {
        let view = cf.view();
        if view.mem.table.is_empty() {
            return Ok(());
        }
        let outputs = self.write_mems(cf, std::slice::from_ref(&view.mem), &view.version, 0)?;
        let add = |meta: SstMeta| (0, meta.number, meta);
        let edit = CfEdit {
            added: outputs.tables.into_iter().map(add).collect(),
            blobs: outputs.blobs,
            ..CfEdit::default()
        };
        let version = view.version.apply(&edit, &self.remover)?;
        let next = View {
            mem: self.new_mem(0),
            imms: Vec::new(),
            version: Arc::new(version),
        };
        let state = self.state.lock();
        cf.set_view(next, &state);
        Ok(())
    }

    /// The first half of step 3.
    fn write_all_recovered(&self) -> Result<()> {
        let cfs = self.state.lock().cfs.clone();
        cfs.values().try_for_each(|cf| self.write_recovered(cf))
    }

    /// Removes the files from number `first` on: what an opening that failed had written, and no
    /// manifest names. Were they left, each try on a full disk would fill it further.
    fn remove_made(&self, first: FileNumber) {
        for entry in self.fs.list(&self.dir).unwrap_or_default() {
            let number = FileName::parse(&entry.name).and_then(|name| name.number());
            if number.is_some_and(|number| number >= first) {
                let _ = self.fs.unlink(&self.dir.join(&entry.name));
            }
        }
    }

    /// The rest of step 3.
    fn make_first_log(&self) -> Result<()> {
        let number = self.new_file_number();
        let expected = self.log_size_expected();
        *self.log.lock() = Some(WalWriter::create(&self.fs, &self.dir, number, expected)?);
        let cfs = self.state.lock().cfs.clone();
        for cf in cfs.values() {
            cf.log_number.store(number, Ordering::Release);
            cf.view().mem.advance_log_number(number);
        }
        self.state.lock().logs.insert(number, 0);
        Ok(())
    }

    /// The first half of step 4.
    fn make_first_manifest(&self) -> Result<ManifestWriter> {
        let number = self.new_file_number();
        self.versions.lock().create(number, &self.structure())
    }

    /// Stores the options in force, those of each column family included, in a new file. Durable
    /// on return. The file before is removed.
    pub(crate) fn store_options(&self) -> Result<()> {
        let mut stored = self.options_file.lock();
        let number = self.new_file_number();
        let mut options = self.options.clone();
        let common = options.family_text();
        for cf in self.state.lock().cfs.values() {
            // A family that has the database's options goes on having them when these are changed.
            match cf.options.family_text() == common {
                true => options.cf_options.remove(&cf.name),
                false => {
                    let own = (*cf.options).clone();
                    options.cf_options.insert(cf.name.clone(), own)
                }
            };
        }
        let name = FileName::Options(number).to_string();
        let mut text = options.to_text();
        for cf in self.state.lock().cfs.values() {
            text.push_str(&options::family_line(cf.id, &cf.name));
        }
        file_names::replace_file(&self.fs, &self.dir, &name, text.as_bytes())?;
        if let Some(before) = stored.replace(number) {
            self.remove_file(FileName::Options(before));
        }
        Ok(())
    }

    /// Removes the database's files that nothing needs. Foreign files are left alone.
    fn remove_orphans(&self) -> Result<()> {
        let manifest = self.versions.lock().manifest_number();
        let state = self.state.lock();
        let mut live: std::collections::HashSet<FileName> = state
            .cfs
            .values()
            .flat_map(|cf| {
                let view = cf.view();
                let tables = view.version.files();
                let tables = tables.map(|(_, _, file)| FileName::Table(file.meta.number));
                let blobs = view.version.blobs.files().keys();
                let names: Vec<_> = tables.chain(blobs.map(|&n| FileName::Blob(n))).collect();
                names
            })
            .collect();
        live.extend(state.logs.keys().map(|&number| FileName::Wal(number)));
        drop(state);
        live.extend(manifest.map(FileName::Manifest));
        let entries = self.fs.list(&self.dir)?;
        let found = || {
            entries
                .iter()
                .filter_map(|entry| FileName::parse(&entry.name))
        };
        let newest_options = found().filter_map(|name| match name {
            FileName::Options(number) => Some(number),
            _ => None,
        });
        live.extend(newest_options.max().map(FileName::Options));
        live.extend([FileName::Current, FileName::Lock]);
        for name in found().filter(|name| !live.contains(name)) {
            self.remove_file(name);
        }
        for entry in &entries {
            let name = entry.name.to_string_lossy();
            if name.starts_with("OPTIONS-") && name.ends_with(".tmp") {
                let _ = self.fs.unlink(&self.dir.join(&entry.name));
            }
        }
        Ok(())
    }
}
