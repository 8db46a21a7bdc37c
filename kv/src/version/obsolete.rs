//! Removes tables and blob files that nothing needs any more, in the background.
//!
//! Without a rate a task of the `Env` removes what is queued at once. With one, a thread of its own
//! removes a file, waits as long as its bytes take at the rate, and goes on: a device that discards
//! freed space, or a kernel filesystem that frees the extents of a large file, would delay reads and
//! writes by seconds if many went at once. Nothing waits where space is short (an eighth of the
//! filesystem is free, or less) and where the database is closing.
//!
//! A crash leaves what was still queued, and what iterators hold when the database is closed stays: the directory
//! may be another database's by the time they let go, with files of the same names. The next open removes what no
//! version names.
//!
//! Locks: `removing` is held while files are removed, so that the end waits for what is under way;
//! `queue`, taken after it, for queue operations and the pauses only.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use lavafs::FileSystemRef;
use parking_lot::{Condvar, Mutex};

use crate::background::scheduler::guarded;
use crate::db::engine::Engine;
use crate::env::{Env, Priority};
use crate::file_names::FileName;
use crate::stats::listener::{FileEvent, FileKind};

/// How often free space is looked at during a pause.
const LOOK: Duration = Duration::from_millis(200);

/// See the module's words.
#[derive(Debug)]
pub(crate) struct ObsoleteFiles {
    fs: FileSystemRef,
    dir: PathBuf,
    env: Arc<Env>,
    /// Bytes a second; 0: no limit.
    rate: u64,
    queue: Mutex<Queue>,
    /// Signalled when the queue changes its state.
    changed: Condvar,
    removing: Mutex<()>,
    /// Whose listeners are told.
    engine: OnceLock<Weak<Engine>>,
    /// Bytes of obsolete files that readers still hold.
    held_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    /// Files and their bytes.
    files: VecDeque<(FileName, u64)>,
    /// A thread removes them at the rate.
    pacing: bool,
    /// No pauses any more, and no more files.
    closing: bool,
}

impl ObsoleteFiles {
    /// Removes files of `dir` at `rate` bytes a second at most, 0 for no limit.
    pub(crate) fn new(fs: FileSystemRef, dir: PathBuf, env: Arc<Env>, rate: u64) -> Arc<Self> {
        Arc::new(ObsoleteFiles {
            fs,
            dir,
            env,
            rate,
            queue: Mutex::default(),
            changed: Condvar::new(),
            removing: Mutex::new(()),
            engine: OnceLock::new(),
            held_bytes: AtomicU64::new(0),
        })
    }

    /// Whom to tell of removed files; the first call counts.
    pub(crate) fn set_engine(&self, engine: &Arc<Engine>) {
        let _ = self.engine.set(Arc::downgrade(engine));
    }

    /// Bytes of files that no version of the database needs, but that iterators, reads or jobs keep.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// A file of so many bytes is obsolete, and goes when its last holder lets go.
    pub(super) fn hold(&self, bytes: u64) {
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// An obsolete file of so many bytes is held no more: it is removed soon, unless the database is closing.
    pub(super) fn let_go(self: &Arc<Self>, name: FileName, bytes: u64) {
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.push(name, bytes);
    }

    fn push(self: &Arc<Self>, name: FileName, bytes: u64) {
        let mut queue = self.queue.lock();
        if queue.closing {
            return;
        }
        queue.files.push_back((name, bytes));
        let this = Arc::clone(self);
        if self.rate == 0 {
            if queue.files.len() == 1 {
                drop(queue);
                self.env.schedule(Priority::Low, move || this.purge());
            }
            return;
        }
        if !std::mem::replace(&mut queue.pacing, true) {
            drop(queue);
            let spawned = std::thread::Builder::new()
                .name("lavakv-remove".to_owned())
                .spawn(move || this.remove_at_rate());
            if let Err(error) = spawned {
                tracing::warn!(%error, "no thread to pace the removal of files");
                self.queue.lock().pacing = false;
                self.purge();
            }
        }
    }

    /// Removes what is queued now. A file that cannot be removed is left for the next open,
    /// which removes what no version names.
    fn purge(&self) {
        let _removing = self.removing.lock();
        let files = std::mem::take(&mut self.queue.lock().files);
        for (name, _) in files {
            self.remove(name);
        }
    }

    /// Removes all that is queued, without pauses; on return no thread is at it any more.
    pub(crate) fn finish(&self) {
        self.queue.lock().closing = true;
        self.changed.notify_all();
        self.purge();
        let mut queue = self.queue.lock();
        while queue.pacing {
            self.changed.wait(&mut queue);
        }
    }

    fn remove_at_rate(&self) {
        loop {
            let next = {
                let _removing = self.removing.lock();
                let next = self.queue.lock().files.pop_front();
                if let Some((name, _)) = next {
                    self.remove(name);
                }
                next
            };
            let Some((_, bytes)) = next else {
                let mut queue = self.queue.lock();
                if queue.files.is_empty() {
                    queue.pacing = false;
                    self.changed.notify_all();
                    return;
                }
                continue;
            };
            self.pause(Duration::from_secs_f64(bytes as f64 / self.rate as f64));
        }
    }

    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while !self.queue.lock().closing {
            let left = until.saturating_duration_since(Instant::now());
            let space = self.fs.space();
            if left.is_zero() || space.free <= space.total / 8 {
                return;
            }
            let mut queue = self.queue.lock();
            if !queue.closing {
                self.changed.wait_for(&mut queue, left.min(LOOK));
            }
        }
    }

    fn remove(&self, name: FileName) {
        let path = self.dir.join(name.to_string());
        match self.fs.unlink(&path) {
            Err(error) if !error.is_not_found() => {
                tracing::warn!(path = %path.display(), %error, "obsolete file not removed");
            }
            Ok(()) => {
                let event = FileEvent {
                    kind: match name {
                        FileName::Blob(_) => FileKind::Blob,
                        _ => FileKind::Table,
                    },
                    path,
                    bytes: None,
                };
                let Some(engine) = self.engine.get().and_then(Weak::upgrade) else {
                    return;
                };
                // Whoever removes files goes on: the end waits for it.
                let told = guarded(|| {
                    engine.tell(|listener| listener.on_file_deleted(&event));
                    Ok(())
                });
                if let Err(panicked) = told {
                    engine.fail(panicked);
                }
            }
            Err(_) => {}
        }
    }
}
