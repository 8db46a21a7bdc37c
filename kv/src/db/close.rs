//! Waiting for background work, and ending it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::db::engine::{Engine, Mem, State, View, closing};
use crate::error::Result;
use crate::version::Version;
use crate::write::WriteItem;
use crate::write::batch::CfId;
use crate::write::wal::WalWriter;

/// A job on a thread of a caller that changes files: a compaction or collection that was asked for, a change of the
/// column families. Whoever closes the database waits until this is dropped, as for background work; it is to end soon
/// where [`Engine::keep_going`] fails.
pub(crate) struct CallerJob<'a>(&'a Engine);

impl Drop for CallerJob<'_> {
    fn drop(&mut self) {
        self.0.state.lock().caller_jobs -= 1;
        self.0.changed.notify_all();
    }
}

impl Engine {
    /// Begins a job on the caller's thread. The state's lock must not be held when it is dropped.
    pub(crate) fn caller_job(&self) -> Result<CallerJob<'_>> {
        let mut state = self.state.lock();
        if state.closing {
            return Err(closing());
        }
        state.caller_jobs += 1;
        Ok(CallerJob(self))
    }

    /// Seals every memtable and waits until what was in memory is in tables.
    pub(crate) fn flush_all(self: &Arc<Self>) -> Result<()> {
        let cfs: Vec<CfId> = self.state.lock().cfs.keys().copied().collect();
        let mut last = None;
        for cf in cfs {
            match self.submit(WriteItem::Seal(cf)) {
                // Dropped meanwhile: nothing to flush.
                Err(_) if self.cf(cf).is_err() => {}
                other => other?,
            }
            if let Ok(cf) = self.cf(cf) {
                last = last.max(cf.view().imms.first().map(|mem| mem.table.id()));
            }
        }
        let Some(last) = last else {
            return Ok(());
        };
        self.wait_until(|state| {
            state.cfs.values().all(|cf| {
                let view = cf.view();
                view.imms.iter().all(|mem| mem.table.id() > last)
            })
        })
    }

    /// Waits until nothing is due.
    pub(crate) fn wait_idle(self: &Arc<Self>) -> Result<()> {
        self.wait_until(|state| {
            state.tasks == 0 && state.cfs.values().all(|cf| cf.view().imms.is_empty())
        })
    }

    fn wait_until(&self, done: impl Fn(&State) -> bool) -> Result<()> {
        let mut state = self.state.lock();
        while !done(&state) {
            if let Some(background) = &state.error {
                return Err(background.error.clone());
            }
            if state.closing {
                return Err(closing());
            }
            self.changed.wait(&mut state);
        }
        Ok(())
    }

    /// Makes everything durable, then stops.
    pub(crate) fn close(self: &Arc<Self>) -> Result<()> {
        if self.state.lock().closing {
            return Ok(());
        }
        if self.read_only {
            self.stop();
            return Ok(());
        }
        let unlogged = {
            let state = self.state.lock();
            state.cfs.values().any(|cf| {
                let view = cf.view();
                view.mem.is_unlogged() || view.imms.iter().any(|mem| mem.is_unlogged())
            })
        };
        let flushed = match unlogged {
            true => self.flush_all(),
            false => Ok(()),
        };
        let synced = self.submit(WriteItem::SyncLog);
        self.stop();
        flushed.and(synced)
    }

    /// Ends background work, closes the log without a sync and unlocks the directory.
    pub(crate) fn stop(self: &Arc<Self>) {
        self.unreadable.store(true, Ordering::Release);
        let mut state = self.state.lock();
        state.closing = true;
        self.changed.notify_all();
        let at_work = |state: &State| {
            let watched = state.resuming || state.collections.watching || state.watching_age;
            state.tasks > 0 || state.caller_jobs > 0 || watched
        };
        while at_work(&state) {
            self.changed.wait(&mut state);
        }
        drop(state);
        // A change of the structure on a caller's thread is no task. It ends first: else its new manifest would
        // be of a database without families.
        let mut versions = self.versions.lock();
        let mut state = self.state.lock();
        let cfs = std::mem::take(&mut state.cfs);
        // The thread that ran the last task may hold the engine a moment longer than the task
        // counts. It must hold no files: whoever closes a database may unmount next.
        let views: Vec<_> = cfs
            .values()
            .map(|cf| {
                let nothing = View {
                    mem: Mem::new(0, 0, None, false),
                    imms: Vec::new(),
                    version: Arc::new(Version::empty(self.options.num_levels)),
                };
                cf.set_view(nothing, &state)
            })
            .collect();
        drop(state);
        drop(views);
        versions.close();
        drop(versions);
        // A leader may still be at work on another thread; it ends with the error of a closing
        // database, or has begun before.
        let log: Option<WalWriter> = self.log.lock().take();
        self.end_logs(log);
        drop(cfs);
        self.remover.finish();
        drop(self.lock.lock().take());
    }
}
