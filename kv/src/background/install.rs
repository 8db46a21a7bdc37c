//! Installing a change of the structure: manifest first, memory second, deletions last.
//!
//! A crash before the manifest record is durable leaves the old structure and orphan files; after
//! it, the new structure and obsolete files. Both kinds of files are removed at the next open.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::compaction::{PickerOptions, score};
use crate::db::engine::{ColumnFamily, Engine, State, View};
use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::options::CompactionStyle;
use crate::options::Options;
use crate::version::{COMPARATOR, CfEdit, Share, Version, VersionEdit, VersionSet};
use crate::write::batch::CfId;
use crate::write::stall::Stall;

/// A change of the structure that failed: memory is as it was before.
#[derive(Debug)]
pub(crate) struct ChangeFailed {
    pub(crate) error: Error,
    /// After a crash the change may be found. The files that were made for it stay until the next open knows.
    pub(crate) may_be_recorded: bool,
}

impl From<Error> for ChangeFailed {
    fn from(error: Error) -> Self {
        ChangeFailed {
            error,
            may_be_recorded: false,
        }
    }
}

impl From<ChangeFailed> for Error {
    fn from(failed: ChangeFailed) -> Self {
        failed.error
    }
}

impl Engine {
    /// Records a change of one column family and installs its new version. `edit` is asked for
    /// the change under the structure's lock; `update` then changes the rest of the view.
    pub(crate) fn change_cf(
        self: &Arc<Self>,
        id: CfId,
        edit: impl FnOnce(&State, &ColumnFamily) -> CfEdit,
        update: impl FnOnce(&mut View),
    ) -> Result<(), ChangeFailed> {
        self.change_cf_sharing(id, &[], edit, update)
    }

    /// The same with shares of tables (shares.rs) that were told before.
    pub(crate) fn change_cf_sharing(
        self: &Arc<Self>,
        id: CfId,
        prepared: &[Share],
        edit: impl FnOnce(&State, &ColumnFamily) -> CfEdit,
        update: impl FnOnce(&mut View),
    ) -> Result<(), ChangeFailed> {
        // While it is held, versions stay as they are.
        let mut versions = self.versions.lock();
        let (cf, mut change) = {
            let state = self.state.lock();
            let cf = state.cf(id)?;
            let change = edit(&state, &cf);
            (cf, change)
        };
        // All that grows with the number of files is done without the state's lock: writers need it.
        let before = Arc::clone(&cf.view().version);
        self.share_out(&before, &mut change, prepared)?;
        change.scattered = self.take_scattered(&before);
        let version = Arc::new(before.apply(&change, &self.remover)?);
        let mut record = VersionEdit::of_cf(id, change);
        self.advance_idle_logs(&self.state.lock(), &mut record);
        record.next_file_number = Some(self.next_file.load(Ordering::Relaxed));
        record.last_sequence = Some(self.last_sequence());
        self.record(&mut versions, &record)?;
        mark_removed(&before, &version);
        let (old, stall) = {
            let mut state = self.state.lock();
            let before = state.stall;
            for (other, change) in &record.cfs {
                if let (Some(other), Some(number)) = (state.cfs.get(other), change.log_number) {
                    other.log_number.fetch_max(number, Ordering::AcqRel);
                }
            }
            let mut view = (*cf.view()).clone();
            view.version = version;
            update(&mut view);
            let old = cf.set_view(view, &state);
            self.recompute_stall(&mut state);
            (old, (before, state.stall))
        };
        self.changed.notify_all();
        drop((old, before));
        drop(versions);
        self.remove_obsolete_logs();
        if stall.0 != stall.1 {
            self.tell(|listener| listener.on_stall_changed(stall.0, stall.1));
        }
        Ok(())
    }

    /// Blob files of `version` that scans found scattered and that no edit has told yet. The mark is a hint: it may
    /// be lost in a crash before the next edit.
    fn take_scattered(&self, version: &Version) -> Vec<FileNumber> {
        let mut new = self.newly_scattered.lock();
        let here = |number: &FileNumber| version.blobs.files().contains_key(number);
        let told = new.iter().copied().filter(here).collect();
        new.retain(|number| !here(number));
        told
    }

    /// Records `edit`, in a new manifest if one is due. Whether it reached a manifest that fails is not known, so
    /// that one is replaced at once by one without it.
    fn record(&self, versions: &mut VersionSet, edit: &VersionEdit) -> Result<(), ChangeFailed> {
        if versions.needs_new_manifest() {
            self.begin_manifest(versions)?;
        }
        let number = versions.manifest_number().expect("a manifest is in force");
        versions.record(edit).map_err(|error| {
            let replaced = self.begin_manifest(versions);
            if replaced.is_ok() {
                self.remove_file(FileName::Manifest(number));
            }
            ChangeFailed {
                error,
                may_be_recorded: replaced.is_err(),
            }
        })
    }

    /// Puts a new manifest with the structure as it is in memory in force.
    fn begin_manifest(&self, versions: &mut VersionSet) -> Result<()> {
        let number = self.new_file_number();
        let snapshot = self.structure();
        let manifest = versions.create(number, &snapshot)?;
        if let Some(before) = versions.put_in_force(manifest)? {
            self.remove_file(FileName::Manifest(before));
        }
        Ok(())
    }

    /// The whole structure, as the first record of a manifest.
    /// Takes the state's lock for a moment; the caller has that of the structure.
    pub(crate) fn structure(&self) -> VersionEdit {
        let (cfs, next_cf) = {
            let state = self.state.lock();
            let cfs: Vec<_> = state.cfs.values().cloned().collect();
            (cfs, state.next_cf)
        };
        let mut edit = VersionEdit {
            comparator: Some(COMPARATOR.to_owned()),
            next_file_number: Some(self.next_file.load(Ordering::Relaxed)),
            last_sequence: Some(self.last_sequence()),
            next_cf: Some(next_cf),
            ..VersionEdit::default()
        };
        for cf in cfs {
            let view = cf.view();
            let added = view
                .version
                .files()
                .map(|(level, run, file)| (level as u32, run, file.meta.clone()));
            let blobs = &view.version.blobs;
            let change = CfEdit {
                created: Some(cf.name.clone()),
                log_number: Some(cf.log_number.load(Ordering::Acquire)),
                added: added.collect(),
                blobs: blobs
                    .files()
                    .values()
                    .map(|live| live.file.meta.clone())
                    .collect(),
                heirs: blobs.ancestors(),
                splits: blobs.splits(),
                shares: blobs.shares(),
                scattered: blobs
                    .files()
                    .values()
                    .filter(|live| live.file.is_scattered())
                    .map(|live| live.file.meta.number)
                    .collect(),
                ..CfEdit::default()
            };
            edit.cfs.insert(cf.id, change);
        }
        edit
    }

    /// Column families with nothing in memory must not hold back the removal of logs.
    fn advance_idle_logs(&self, state: &State, record: &mut VersionEdit) {
        for cf in state.cfs.values() {
            let view = cf.view();
            let number = view.mem.log_number();
            let idle = view.imms.is_empty() && view.mem.table.is_empty();
            if idle && number > cf.log_number.load(Ordering::Acquire) {
                let change = record.cfs.entry(cf.id).or_default();
                change.log_number = change.log_number.max(Some(number));
            }
        }
    }

    /// Removes the logs that no column family needs. The one in use is always needed, and the one that is being
    /// closed until it is.
    pub(crate) fn remove_obsolete_logs(&self) {
        let obsolete: Vec<FileNumber> = {
            let mut state = self.state.lock();
            if state.cfs.is_empty() {
                // Closed meanwhile. Which families need a log is not known any more; the next open tells.
                return;
            }
            let needed = state
                .cfs
                .values()
                .map(|cf| cf.log_number.load(Ordering::Acquire))
                .chain(state.logs.keys().next_back().copied())
                .chain(state.ending_log)
                .min()
                .unwrap_or(0);
            let keep = state.logs.split_off(&needed);
            std::mem::replace(&mut state.logs, keep)
                .into_keys()
                .collect()
        };
        for number in obsolete {
            self.remove_file(FileName::Wal(number));
        }
    }

    /// Sets how fast writers may go from the backlog of all column families.
    pub(crate) fn recompute_stall(&self, state: &mut State) {
        let stall = state.cfs.values().fold(Stall::None, |stall, cf| {
            let version = &cf.view().version;
            let pending = score(version, &PickerOptions::of(&cf.options)).pending_bytes;
            stall.stricter(Stall::of(
                &cf.options,
                match cf.options.compaction.style {
                    // A FIFO's runs are its data, not a backlog.
                    CompactionStyle::Fifo => 0,
                    _ => version.levels[0].runs.len(),
                },
                pending,
            ))
        });
        state.backlog_stall = stall;
        self.recompute_space_stall(state);
    }

    /// The same where the disk alone may have changed.
    pub(crate) fn recompute_space_stall(&self, state: &mut State) {
        state.space_stall = self.space_stall(state);
        state.stall = state.backlog_stall.stricter(state.space_stall);
    }

    /// Makes a column family. Durable on return.
    pub(crate) fn create_cf(self: &Arc<Self>, name: &str, options: Options) -> Result<CfId> {
        let _job = self.caller_job()?;
        options.validate()?;
        if name.is_empty() || name.len() > 255 {
            return Err(Error::invalid_argument(
                "a column family's name has 1 to 255 bytes",
            ));
        }
        let mut versions = self.versions.lock();
        let (id, log_number, record) = {
            let mut state = self.state.lock();
            crate::write::check_writable(&state)?;
            if state.cfs.values().any(|cf| cf.name == name) {
                let what = format!("column family {name:?} exists");
                return Err(Error::invalid_argument(what));
            }
            let id = CfId(state.next_cf);
            state.next_cf += 1;
            // Nothing older than the log in use can hold its writes.
            let log_number = state.logs.keys().next_back().copied().unwrap_or(0);
            let change = CfEdit {
                created: Some(name.to_owned()),
                log_number: Some(log_number),
                ..CfEdit::default()
            };
            let mut record = VersionEdit::of_cf(id, change);
            record.next_cf = Some(state.next_cf);
            (id, log_number, record)
        };
        self.record(&mut versions, &record)?;
        let view = View {
            mem: self.new_mem(log_number),
            imms: Vec::new(),
            version: Arc::new(Version::empty(options.num_levels)),
        };
        let cf = ColumnFamily::new(id, name.to_owned(), view, log_number, Arc::new(options));
        self.state.lock().cfs.insert(id, cf);
        // With the structure's lock held: a close waits for it, and has the families to store then. The family exists
        // whatever becomes of this; stored options only inform.
        if let Err(error) = self.store_options() {
            tracing::warn!(%error, name, "options of a new column family are not stored");
        }
        drop(versions);
        Ok(id)
    }

    /// Drops a column family. Durable on return; its files go when no reader needs them.
    pub(crate) fn drop_cf(self: &Arc<Self>, id: CfId) -> Result<()> {
        if id == CfId::DEFAULT {
            let what = "the default column family cannot be dropped";
            return Err(Error::invalid_argument(what));
        }
        let _job = self.caller_job()?;
        let mut versions = self.versions.lock();
        {
            let state = self.state.lock();
            crate::write::check_writable(&state)?;
            state.cf(id)?;
        }
        let change = CfEdit {
            dropped: true,
            ..CfEdit::default()
        };
        if let Err(failed) = self.record(&mut versions, &VersionEdit::of_cf(id, change)) {
            drop(versions);
            if failed.may_be_recorded {
                // A crash might take along what is written to the family from now on.
                self.harden(failed.error.clone());
            }
            return Err(failed.error);
        }
        let cf = {
            let mut state = self.state.lock();
            let cf = state
                .cfs
                .remove(&id)
                .expect("only this lock's holder drops");
            cf.dropped.store(true, Ordering::Release);
            mark_removed(&cf.view().version, &Version::empty(0));
            self.recompute_stall(&mut state);
            cf
        };
        self.changed.notify_all();
        drop(cf);
        drop(versions);
        self.remove_obsolete_logs();
        Ok(())
    }
}

/// Marks what `old` has and `new` has not.
fn mark_removed(old: &Version, new: &Version) {
    let kept: std::collections::HashSet<FileNumber> =
        new.files().map(|(_, _, file)| file.meta.number).collect();
    for (_, _, file) in old.files() {
        if !kept.contains(&file.meta.number) {
            file.mark_obsolete();
        }
    }
    if Arc::ptr_eq(&old.blobs, &new.blobs) {
        return;
    }
    for (number, live) in old.blobs.files().iter() {
        if !new.blobs.files().contains_key(number) {
            live.file.mark_obsolete();
        }
    }
}
