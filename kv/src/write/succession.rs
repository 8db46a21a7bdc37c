//! The succession of logs: the one that comes next, made ahead of time, and the one before, closed behind
//! the writers' back. A writer that fills a memtable so goes on in the next log without a write to
//! the device of its own.
//!
//! When a memtable is half full, the log thread of the [`Env`](crate::Env) makes the next log: the *spare*, empty,
//! its name and header durable. The switch takes it; where it is not ready, the leader makes a log
//! itself. There is one spare at most, no larger than a sixteenth of the free space, and none is made while
//! space is short. A failure to make one is no error of the database: it is tried again later.
//!
//! The log that was switched away from is given to the log thread to be closed. Until that is done the next
//! log's file takes no group ("a log is closed before the next one takes a group"): groups are *held* in memory,
//! few, and written in their order after it; a sync, or too many bytes, waits for the close, or does it. Held groups
//! are what any write without a sync is after a crash: lost, with all that came after them.
//! The exception: all of the log before is synced, and the next write follows its last one without a gap. Then a
//! torn closing group hides nothing, which recovery sees from the sequence numbers alike, and the
//! write, synced or not, goes to the file at once.
//!
//! What a sealed memtable holds is in logs before the one in use. A flush waits for the close of these, or does
//! it, before its table counts: a batch goes to several column families, and a crash must not leave the part of
//! one of them.
//!
//! Crashes. While the spare is made: a file without header, or nothing. After: an empty log with the highest
//! number of all logs; it holds no group, so it counts for nothing in recovery, repair and reading
//! alone, and the open after it removes it. After the switch, before the close: the log before may end torn and no later log
//! holds a group, or it is whole but for its closing group. After the close: as ever. A spare is never
//! in `State::logs`, so that nothing takes it for a log in use or for an obsolete one; its number is
//! higher than that of the log in use, because a leader makes a log only with the spare's lock held. Closing
//! the database removes it.
//!
//! Locks: `spare` and `ending` are held across I/O, by the log thread, the leader or a flush; of others only
//! `state` is taken with them, and never one with the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::background::scheduler;
use crate::db::engine::{Engine, State};
use crate::env::Queue;
use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::write::batch::WriteBatch;
use crate::write::stall::Stall;
use crate::write::wal::WalWriter;

/// After a failure to make the next log: how long until it is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// Held bytes at most, and the part of a write buffer that may be held below that.
const HELD_BYTES_MAX: usize = 4 << 20;
const HELD_PART: usize = 16;

/// See the module's words.
#[derive(Debug, Default)]
pub(crate) struct Succession {
    /// The log that comes next.
    spare: Mutex<Option<WalWriter>>,
    /// The log before.
    ending: Mutex<Ending>,
}

#[derive(Debug, Default)]
enum Ending {
    #[default]
    Ended,
    Due(WalWriter),
    Failed(Error),
}

/// How far the making of the next log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum NextLog {
    #[default]
    NotAskedFor,
    Queued,
    Ready,
    /// It failed.
    NotBefore(Instant),
}

impl Engine {
    /// Has the next log made, if a memtable is half full.
    pub(crate) fn prepare_next_log(self: &Arc<Self>, state: &mut State) {
        match state.next_log {
            NextLog::NotAskedFor => {}
            NextLog::NotBefore(then) if Instant::now() >= then => {}
            _ => return,
        }
        let is_due = state.cfs.values().any(|cf| {
            let memory = cf.borrow_view().mem.table.approximate_memory();
            memory >= cf.options.write_buffer_size / 2
        });
        let unwise = state.space_stall != Stall::None || state.error.is_some();
        if !is_due || unwise || state.closing {
            return;
        }
        state.next_log = NextLog::Queued;
        self.queue_log_task(state, Engine::make_spare);
    }

    /// Queues a task that `stop` waits for.
    fn queue_log_task(self: &Arc<Self>, state: &mut State, task: fn(&Arc<Engine>)) {
        state.tasks += 1;
        let engine = Arc::clone(self);
        self.env.queue(Queue::Log, move || {
            let outcome = scheduler::guarded(|| {
                task(&engine);
                Ok(())
            });
            if let Err(panicked) = outcome {
                engine.fail(panicked);
            }
            engine.state.lock().tasks -= 1;
            engine.changed.notify_all();
        });
    }

    fn make_spare(self: &Arc<Self>) {
        let mut spare = self.succession.spare.lock();
        if spare.is_none() {
            let number = self.new_file_number();
            let expected = self.log_size_expected();
            match WalWriter::create_durable(&self.fs, &self.dir, number, expected) {
                Ok(made) => *spare = Some(made),
                Err(error) => {
                    tracing::info!(%error, dir = %self.dir.display(), "no log ahead of time");
                    let then = Instant::now() + RETRY;
                    self.state.lock().next_log = NextLog::NotBefore(then);
                    return;
                }
            }
        }
        self.state.lock().next_log = NextLog::Ready;
    }

    /// The spare, or a log made now. While it is made, the lock keeps a spare of a lower number from
    /// being made.
    fn next_log(&self) -> Result<WalWriter> {
        let mut spare = self.succession.spare.lock();
        if let Some(ready) = spare.take() {
            self.state.lock().next_log = NextLog::NotAskedFor;
            self.tickers.spare_logs.add(1);
            return Ok(ready);
        }
        let number = self.new_file_number();
        WalWriter::create(&self.fs, &self.dir, number, self.log_size_expected())
    }

    /// Puts the next log in the place of the one in use, which is then closed in the background. An error leaves it in use.
    pub(crate) fn succeed_log(self: &Arc<Self>, log: &mut Option<WalWriter>) -> Result<FileNumber> {
        if let Some(wal) = log.as_mut().filter(|wal| !wal.failed())
            && let Err(error) = self.end_previous().and_then(|()| wal.write_held())
        {
            return Err(self.log_failed(log, error));
        }
        let mut next = self.next_log()?;
        let number = next.number();
        if let Some(old) = log.take() {
            let (old_number, size) = (old.number(), old.size());
            next.follow(&old);
            let mut ending = self.succession.ending.lock();
            let mut state = self.state.lock();
            state.logs.insert(old_number, size);
            if old.failed() {
                // It was cut back to its last good group, and that is durable. What it held goes on.
                next.inherit_held(old);
            } else {
                *ending = Ending::Due(old);
                state.ending_log = Some(old_number);
                if !state.closing {
                    self.queue_log_task(&mut state, Engine::end_log);
                }
            }
        }
        *log = Some(next);
        Ok(number)
    }

    fn end_log(self: &Arc<Self>) {
        // A failure has made the database read-only; it is told to whoever writes next.
        if self.end_previous().is_ok() {
            self.remove_obsolete_logs();
        }
    }

    /// Returns when the log before the one in use is closed, durable to its last byte.
    pub(crate) fn end_previous(self: &Arc<Self>) -> Result<()> {
        let mut ending = self.succession.ending.lock();
        match &*ending {
            Ending::Ended => return Ok(()),
            Ending::Failed(error) => return Err(error.clone()),
            Ending::Due(_) => {}
        }
        // This is what whoever waits finds where closing panics: the log is not closed then.
        let reason = Arc::from("closing a log panicked");
        let panicked = Ending::Failed(Error::Poisoned { reason });
        let Ending::Due(wal) = std::mem::replace(&mut *ending, panicked) else {
            unreachable!("it is due")
        };
        if let Err(error) = wal.close() {
            *ending = Ending::Failed(error.clone());
            drop(ending);
            self.harden(error.clone());
            return Err(error);
        }
        *ending = Ending::Ended;
        self.state.lock().ending_log = None;
        Ok(())
    }

    /// Writes what `wal` holds, if the log before is closed; with `wait`, when it is. False where
    /// groups must still be held.
    pub(crate) fn catch_up(self: &Arc<Self>, wal: &mut WalWriter, wait: bool) -> Result<bool> {
        if wal.must_wait() {
            let ended = || {
                let ending = self.succession.ending.try_lock();
                ending.is_some_and(|ending| matches!(*ending, Ending::Ended))
            };
            if wait {
                self.end_previous()?;
            } else if !ended() {
                return Ok(false);
            }
            wal.go_on();
        }
        wal.write_held()?;
        Ok(true)
    }

    /// Appends a group to the log, or holds it. One that is `synced` next is never held: what is held was
    /// acknowledged, and were it kept where the sync fails, a group that its writers were told has failed would go
    /// to a log after all, and the next one with the same sequence numbers after it.
    pub(crate) fn append_group(
        self: &Arc<Self>,
        wal: &mut WalWriter,
        batches: &[&WriteBatch],
        synced: bool,
    ) -> Result<()> {
        wal.skip_waiting_before(batches);
        if wal.must_wait() || wal.held_bytes() > 0 {
            let bytes: usize = batches.iter().map(|batch| batch.data_size()).sum();
            let most = (self.options.write_buffer_size / HELD_PART).min(HELD_BYTES_MAX);
            let is_much = wal.held_bytes() + bytes > most;
            if !self.catch_up(wal, synced || is_much)? {
                wal.hold(batches);
                return Ok(());
            }
        }
        wal.append(batches)
    }

    /// At the end: closes the log before, writes what is held, and removes the spare. What fails is
    /// what a crash would lose, or the next open removes.
    pub(crate) fn end_logs(self: &Arc<Self>, log: Option<WalWriter>) {
        if let Some(mut wal) = log
            && let Err(error) = self.catch_up(&mut wal, true)
        {
            tracing::warn!(%error, dir = %self.dir.display(), "the log in use ends early");
        }
        let _ = self.end_previous();
        if let Some(spare) = self.succession.spare.lock().take() {
            let path = self.dir.join(FileName::Wal(spare.number()).to_string());
            drop(spare);
            if let Err(error) = self.fs.unlink(&path) {
                tracing::debug!(path = %path.display(), %error, "spare log not removed");
            }
        }
    }
}
