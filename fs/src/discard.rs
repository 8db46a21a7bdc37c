//! Discards: telling the device, in the background and at a limited rate, that freed runs hold
//! nothing of value.
//!
//! A run comes here when the operation that freed it is durable, and is free for files from that
//! moment on: nobody waits for discards (ceph#61455). The backlog only names places that may be
//! worth a discard; when its turn comes, what is free of it *then* is taken out of the free space, a
//! piece at a time, discarded, and given back. So a piece is never discarded under a file that took
//! it meanwhile, and a run that was reused needs no discard.
//!
//! The one piece in flight is the only space that a discard keeps from files. An allocation
//! that would fail otherwise waits for that one command ([`Discards::hold`]).
//!
//! The backlog is bounded in bytes; what exceeds it is not discarded until it is freed again. After a
//! crash, or with unmount's patience at its end, the rest is forgotten in the same way.
//!
//! Locks: `in_flight` is held across the discard of a piece, and `alloc` is taken inside for a
//! moment; `state` is a leaf.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::alloc::Run;
use crate::core::Core;
use crate::types::BLOCK_SIZE;

/// Most bytes discarded by one command.
const PIECE_LEN_MAX: u64 = 4 << 20;

/// How long an unmount goes on discarding.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(2);

/// The runs to discard, and the thread that does.
#[derive(Debug)]
pub(crate) struct Discards {
    queue: Arc<Queue>,
    /// Held while a piece is out of the free space.
    in_flight: Mutex<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    wake: Condvar,
    rate: u64,
    blocks_max: u64,
}

#[derive(Debug, Default)]
struct State {
    runs: VecDeque<Run>,
    blocks: u64,
    /// Blocks that did not fit.
    forgotten_blocks: u64,
    stop: bool,
}

impl Discards {
    /// At most `rate` bytes a second, from a backlog of at most `backlog` bytes.
    pub(crate) fn new(rate: u64, backlog: u64) -> Discards {
        Discards {
            queue: Arc::new(Queue {
                state: Mutex::default(),
                wake: Condvar::new(),
                rate,
                blocks_max: backlog / BLOCK_SIZE,
            }),
            in_flight: Mutex::new(()),
            thread: Mutex::new(None),
        }
    }

    /// Starts the thread. Without it, [`Core::discard_all`] does the work.
    pub(crate) fn start(&self, core: &Arc<Core>) -> std::io::Result<()> {
        let (core, queue) = (Arc::downgrade(core), self.queue.clone());
        let thread = std::thread::Builder::new()
            .name("lavafs-discard".to_owned())
            .spawn(move || run(&core, &queue))?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    pub(crate) fn has_thread(&self) -> bool {
        self.thread.lock().is_some()
    }

    /// Notes runs that have become free.
    pub(crate) fn add(&self, runs: &[Run]) {
        let mut state = self.queue.state.lock();
        for &run in runs {
            if state.blocks + run.blocks <= self.queue.blocks_max {
                state.blocks += run.blocks;
                state.runs.push_back(run);
            } else {
                state.forgotten_blocks += run.blocks;
            }
        }
        drop(state);
        self.queue.wake.notify_one();
    }

    /// Bytes that wait for a discard, and bytes that will not get one.
    pub(crate) fn backlog(&self) -> (u64, u64) {
        let state = self.queue.state.lock();
        (
            state.blocks * BLOCK_SIZE,
            state.forgotten_blocks * BLOCK_SIZE,
        )
    }

    /// Waits for the piece in flight, if there is one, and lets none be taken while held.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.in_flight.lock()
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        self.queue.state.lock().stop = true;
        self.queue.wake.notify_one();
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        // The thread itself may drop the filesystem's last reference.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("the filesystem's discarding thread panicked");
        }
    }
}

impl Drop for Discards {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Queue {
    /// The next piece of the backlog.
    fn next(&self) -> Option<Run> {
        let mut state = self.state.lock();
        let run = state.runs.pop_front()?;
        let blocks = run.blocks.min(PIECE_LEN_MAX / BLOCK_SIZE);
        if blocks < run.blocks {
            state.runs.push_front(Run {
                start: run.start + blocks,
                blocks: run.blocks - blocks,
            });
        }
        state.blocks -= blocks;
        Some(Run { blocks, ..run })
    }
}

/// The thread: a piece, then a pause as long as the rate asks for.
fn run(core: &Weak<Core>, queue: &Queue) {
    let mut due = Instant::now();
    loop {
        {
            let mut state = queue.state.lock();
            while !state.stop && (state.runs.is_empty() || Instant::now() < due) {
                if state.runs.is_empty() {
                    queue.wake.wait(&mut state);
                } else {
                    queue.wake.wait_until(&mut state, due);
                }
            }
            if state.stop {
                return;
            }
        }
        let Some(core) = core.upgrade() else { return };
        if let Some(piece) = queue.next() {
            let discarded = core.discard_piece(piece);
            let pause = Duration::from_secs_f64(discarded as f64 / queue.rate as f64);
            due = due.max(Instant::now()) + pause;
        }
    }
}

impl Core {
    /// Discards what is free of `piece`, and returns how many bytes that was.
    fn discard_piece(&self, piece: Run) -> u64 {
        let mut discarded = 0;
        let mut at = piece.start;
        let end = piece.start + piece.blocks;
        while at < end {
            let _in_flight = self.discards.hold();
            let Some(part) = self.alloc.lock().take_for_discard(at, end) else {
                break;
            };
            let (offset, len) = (part.start * BLOCK_SIZE, part.blocks * BLOCK_SIZE);
            self.disk.discard(offset, len);
            self.alloc.lock().return_discarded(part);
            discarded += len;
            at = part.start + part.blocks;
        }
        discarded
    }

    /// Discards the whole backlog, without regard to the rate, until `patience` is over.
    pub(crate) fn discard_all(&self, patience: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < patience
            && let Some(piece) = self.discards.queue.next()
        {
            self.discard_piece(piece);
        }
    }

    /// Ends discarding at an unmount: what is left is done at once, within limits.
    pub(crate) fn finish_discards(&self) {
        self.discards.stop();
        self.discard_all(UNMOUNT_PATIENCE);
        let (left, forgotten) = self.discards.backlog();
        if left + forgotten > 0 {
            tracing::info!(left, forgotten, "freed bytes were not discarded");
        }
    }
}
