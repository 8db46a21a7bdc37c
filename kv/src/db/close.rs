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
        self.flush_cfs(&cfs)
    }

    /// The same of some column families.
    pub(crate) fn flush_cfs(self: &Arc<Self>, cfs: &[CfId]) -> Result<()> {
        let mut sealed = Vec::new();
        for &id in cfs {
            match self.submit(WriteItem::Seal(id)) {
                // Dropped meanwhile: nothing to flush.
                Err(_) if self.cf(id).is_err() => continue,
                other => other?,
            }
            if let Ok(cf) = self.cf(id)
                && let Some(newest) = cf.view().imms.first()
            {
                sealed.push((id, newest.table.id()));
            }
        }
        self.wait_until(|state| {
            sealed.iter().all(|(id, newest)| match state.cfs.get(id) {
                Some(cf) => cf.view().imms.iter().all(|mem| mem.table.id() > *newest),
                None => !state.closing,
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
        let mut closed = self.closed.lock();
        if *closed {
            return Ok(());
        }
        if self.read_only {
            self.stop(&mut closed);
            return Ok(());
        }
        let unlogged = {
            let mut state = self.state.lock();
            state.closing_soon = true;
            self.changed.notify_all();
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
        self.stop(&mut closed);
        flushed.and(synced)
    }

    /// Stops without making anything durable, unless that was done before.
    pub(crate) fn abandon(self: &Arc<Self>) {
        let mut closed = self.closed.lock();
        if !*closed {
            self.stop(&mut closed);
        }
    }

    /// Ends background work, closes the log without a sync and unlocks the directory.
    fn stop(self: &Arc<Self>, closed: &mut bool) {
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
        // Nothing that changes the structure runs any more, and nothing of it begins.
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
        self.versions.lock().close();
        // A leader may still be at work on another thread; it ends with the error of a closing
        // database, or has begun before.
        let log: Option<WalWriter> = self.log.lock().take();
        self.end_logs(log);
        drop(cfs);
        self.remover.finish();
        drop(self.lock.lock().take());
        *closed = true;
    }
}
