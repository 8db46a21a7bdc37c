//! `Env`: the background threads, the rate limiter and the memory ledger, shared by any number of
//! databases in a process.
//!
//! Two priorities with a queue each: flushes (`High`), because writers wait for them, and
//! compactions (`Low`). A thread of the high pool runs high tasks only, so a long compaction
//! never delays a flush; a low thread takes a high task first when one waits that no high thread is
//! free for. A third queue with one thread is for the ends and beginnings of logs ([`Queue::Log`]), which
//! are short and must not wait behind a flush.
//!
//! All of them are batch threads to the system's scheduler, and low ones nicer too (sched.rs): where
//! compactions and collections want all processors, writers and flushes come first. Low ones still get the
//! share that keeps them from starving, and writers that outrun them are slowed by the stall. A flush
//! therefore is a low thread's only while all high ones have one.
//!
//! Threads start on demand, up to each pool's limit, and end when the `Env` is dropped. A task that
//! panics does not end its thread; the task's owner catches the panic and poisons its database.
//! The queue's lock is held for queue operations only.

pub(crate) mod ledger;
pub(crate) mod rate_limiter;
mod sched;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;

use parking_lot::{Condvar, Mutex};

use crate::env::ledger::MemoryLedger;
use crate::env::rate_limiter::RateLimiter;

/// Which queue a task waits in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Priority {
    /// Flushes: writers wait for them.
    High,
    /// Compactions and deletion of files.
    Low,
}

/// The queues of an [`Env`], each with threads of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Queue {
    /// See [`Priority::High`].
    High,
    /// See [`Priority::Low`].
    Low,
    /// Ends of logs and the logs that come next.
    Log,
}

impl From<Priority> for Queue {
    fn from(priority: Priority) -> Queue {
        match priority {
            Priority::High => Queue::High,
            Priority::Low => Queue::Low,
        }
    }
}

impl Queue {
    fn thread_name(self) -> &'static str {
        match self {
            Queue::High => "lavakv-flush",
            Queue::Low => "lavakv-compact",
            Queue::Log => "lavakv-log",
        }
    }
}

type Task = Box<dyn FnOnce() + Send>;

/// Threads, bandwidth and memory that databases share.
#[derive(Debug)]
pub struct Env {
    shared: Arc<Shared>,
    limiter: RateLimiter,
    ledger: Option<Arc<MemoryLedger>>,
}

/// What an [`Env`] is made of.
#[derive(Clone, Copy, Debug)]
pub struct EnvOptions {
    /// Threads for flushes at most, at least 1. Default 1.
    pub flush_threads: usize,
    /// Threads for compactions at most, at least 1. Default 1.
    pub compaction_threads: usize,
    /// Bytes a second that flushes and compactions write at most; 0: no limit. Default 0.
    pub rate_bytes_per_s: u64,
    /// Bytes of memory for memtables, cached blocks, pinned indexes and filters, and buffers
    /// of background work together; at least 1 MiB, or 0 for no common limit. An eighth of it is left to
    /// what is not counted. Default 0.
    pub memory_limit: usize,
    /// Has the process's allocator give back to the system what it keeps of freed memory. Called from
    /// a thread of its own, seldom, after cached blocks have gone for the sake of something
    /// else; not without a `memory_limit`. With glibc's allocator: `malloc_trim(0)`. Default none.
    pub trim_allocator: Option<fn()>,
}

impl Default for EnvOptions {
    fn default() -> Self {
        EnvOptions {
            flush_threads: 1,
            compaction_threads: 1,
            rate_bytes_per_s: 0,
            memory_limit: 0,
            trim_allocator: None,
        }
    }
}

struct Shared {
    queues: Mutex<Queues>,
    /// Signalled when a task arrives and when the `Env` is dropped.
    wake: Condvar,
}

/// One queue and its threads.
#[derive(Default)]
struct Pool {
    tasks: VecDeque<Task>,
    threads: usize,
    /// Of these: waiting for a task, or just started for one.
    idle: usize,
    limit: usize,
}

impl Pool {
    fn with_limit(limit: usize) -> Pool {
        Pool {
            limit,
            ..Pool::default()
        }
    }

    /// A task that no thread of the pool is free for.
    fn pop_surplus(&mut self) -> Option<Task> {
        (self.tasks.len() > self.idle).then(|| self.tasks.pop_front())?
    }
}

#[derive(Default)]
struct Queues {
    pools: [Pool; 3],
    closing: bool,
}

impl Queues {
    fn pool(&mut self, queue: Queue) -> &mut Pool {
        &mut self.pools[queue as usize]
    }

    /// The next task for a thread of `queue`.
    fn next(&mut self, queue: Queue) -> Option<Task> {
        let foreign = match queue {
            Queue::Low => self.pool(Queue::High).pop_surplus(),
            Queue::High | Queue::Log => None,
        };
        foreign.or_else(|| self.pool(queue).tasks.pop_front())
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut queues = self.queues.lock();
        let threads: usize = queues.pools.iter().map(|pool| pool.threads).sum();
        f.debug_struct("Env")
            .field("high_queued", &queues.pool(Queue::High).tasks.len())
            .field("low_queued", &queues.pool(Queue::Low).tasks.len())
            .field("threads", &threads)
            .finish_non_exhaustive()
    }
}

impl Env {
    /// An environment with at most `high` flush and `low` compaction threads, each at least 1.
    pub fn new(high: usize, low: usize) -> Arc<Env> {
        Env::with_options(EnvOptions {
            flush_threads: high,
            compaction_threads: low,
            ..EnvOptions::default()
        })
    }

    /// An environment with these limits. With a memory limit its databases share one block cache,
    /// that of the ledger.
    pub fn with_options(options: EnvOptions) -> Arc<Env> {
        let limit = options.memory_limit;
        Arc::new(Env {
            shared: Arc::new(Shared {
                queues: Mutex::new(Queues {
                    pools: [
                        Pool::with_limit(options.flush_threads.max(1)),
                        Pool::with_limit(options.compaction_threads.max(1)),
                        Pool::with_limit(1),
                    ],
                    closing: false,
                }),
                wake: Condvar::new(),
            }),
            limiter: RateLimiter::new(options.rate_bytes_per_s),
            ledger: (limit > 0).then(|| {
                let limit = limit.max(1 << 20);
                MemoryLedger::new(limit, options.trim_allocator)
            }),
        })
    }

    /// The limit of what background work writes.
    pub fn rate_limiter(&self) -> &RateLimiter {
        &self.limiter
    }

    /// The memory ledger, if there is a common limit.
    pub fn ledger(&self) -> Option<&Arc<MemoryLedger>> {
        self.ledger.as_ref()
    }

    /// The process's own environment, used by databases whose options name none: one flush
    /// thread and one compaction thread; a database raises the limits to what its
    /// `max_background_jobs` needs.
    pub fn shared() -> Arc<Env> {
        static SHARED: OnceLock<Arc<Env>> = OnceLock::new();
        Arc::clone(SHARED.get_or_init(|| Env::new(1, 1)))
    }

    /// Raises the limits to at least `high` and `low` threads.
    pub fn raise_limits(&self, high: usize, low: usize) {
        let mut queues = self.shared.queues.lock();
        for (queue, limit) in [(Queue::High, high), (Queue::Low, low)] {
            let pool = queues.pool(queue);
            pool.limit = pool.limit.max(limit);
        }
    }

    /// Queues `task`. It runs once, on a thread of its priority.
    pub fn schedule(&self, priority: Priority, task: impl FnOnce() + Send + 'static) {
        self.queue(priority.into(), task);
    }

    /// The same by queue.
    pub(crate) fn queue(&self, queue: Queue, task: impl FnOnce() + Send + 'static) {
        let mut queues = self.shared.queues.lock();
        let pool = queues.pool(queue);
        pool.tasks.push_back(Box::new(task));
        if pool.tasks.len() > pool.idle && pool.threads < pool.limit {
            pool.threads += 1;
            pool.idle += 1;
            drop(queues);
            self.spawn(queue);
        } else {
            drop(queues);
            self.shared.wake.notify_all();
        }
    }

    fn spawn(&self, queue: Queue) {
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new()
            .name(queue.thread_name().to_owned())
            .spawn(move || work(&shared, queue));
        if let Err(error) = spawned {
            // Without a thread of its own the task runs when an existing one is free; with none
            // at all nothing would ever run, which no caller could recover from.
            let mut queues = self.shared.queues.lock();
            let pool = queues.pool(queue);
            pool.idle -= 1;
            pool.threads -= 1;
            assert!(
                pool.threads > 0,
                "cannot start a background thread: {error}"
            );
            drop(queues);
            self.shared.wake.notify_all();
        }
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        self.shared.queues.lock().closing = true;
        self.shared.wake.notify_all();
    }
}

fn work(shared: &Shared, queue: Queue) {
    sched::enter_background(queue == Queue::Low);
    let mut queues = shared.queues.lock();
    // It was started as an idle one, so that nobody else takes what it was started for.
    queues.pool(queue).idle -= 1;
    loop {
        if let Some(task) = queues.next(queue) {
            drop(queues);
            if catch_unwind(AssertUnwindSafe(task)).is_err() {
                tracing::error!("a background task panicked");
            }
            queues = shared.queues.lock();
            continue;
        }
        if queues.closing {
            return;
        }
        queues.pool(queue).idle += 1;
        shared.wake.wait(&mut queues);
        queues.pool(queue).idle -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn every_task_runs_once_even_after_a_panic() {
        let env = Env::new(1, 2);
        let (done, results) = mpsc::channel();
        env.schedule(Priority::Low, || panic!("on purpose"));
        for task in 0..100 {
            let done = done.clone();
            let priority = if task % 3 == 0 {
                Priority::High
            } else {
                Priority::Low
            };
            env.schedule(priority, move || done.send(task).unwrap());
        }
        drop(done);
        let mut seen: Vec<i32> = results.iter().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_flush_runs_while_a_compaction_blocks() {
        let env = Env::new(1, 1);
        let (release, blocked) = mpsc::channel::<()>();
        let (done, flushed) = mpsc::channel();
        env.schedule(Priority::Low, move || blocked.recv().unwrap());
        env.schedule(Priority::High, move || done.send(()).unwrap());
        flushed.recv().unwrap();
        release.send(()).unwrap();
    }

    /// The names of the threads that ran `flushes` high tasks, each of which waits for the next.
    fn flushed_by(env: &Env, flushes: usize) -> Vec<String> {
        let all_run = Arc::new(std::sync::Barrier::new(flushes));
        let (done, names) = mpsc::channel();
        for _ in 0..flushes {
            let (done, all_run) = (done.clone(), Arc::clone(&all_run));
            env.schedule(Priority::High, move || {
                all_run.wait();
                done.send(thread::current().name().unwrap().to_owned())
                    .unwrap();
            });
        }
        drop(done);
        names.iter().collect()
    }

    #[test]
    fn a_low_thread_runs_a_flush_only_while_every_high_one_has_one() {
        let env = Env::new(1, 1);
        // Both threads run, and wait for work.
        let (done, ran) = mpsc::channel();
        env.schedule(Priority::Low, move || done.send(()).unwrap());
        ran.recv().unwrap();
        for _ in 0..500 {
            assert_eq!(flushed_by(&env, 1), ["lavakv-flush"]);
            // What it ran has ended, but it may not wait for the next one yet.
            while env.shared.queues.lock().pool(Queue::High).idle == 0 {
                thread::yield_now();
            }
        }
        let mut both = flushed_by(&env, 2);
        both.sort_unstable();
        assert_eq!(both, ["lavakv-compact", "lavakv-flush"]);
    }

    #[test]
    fn what_concerns_logs_waits_for_no_flush_and_no_compaction() {
        let env = Env::new(1, 1);
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        for priority in [Priority::High, Priority::High, Priority::Low] {
            let blocked = Arc::clone(&blocked);
            env.schedule(priority, move || blocked.lock().recv().unwrap());
        }
        let (done, ended) = mpsc::channel();
        env.queue(Queue::Log, move || done.send(()).unwrap());
        ended.recv().unwrap();
        (0..3).for_each(|_| release.send(()).unwrap());
    }
}
