//! Group commit without a timer: whatever queued while the previous group was in flight is the
//! next group (prior art: LevelDB's writer queue).
//!
//! A caller that finds nobody at work leads at once, with no hand-off to another thread. The
//! others wait, each parked on a condition of its own. When a group is done its leader hands out
//! the results in the order in which the items came, and then wakes the first waiting caller
//! to lead everything that has queued by then.
//!
//! Lock order: the queue's lock before a waiter's; neither is held while a leader works.
//!
//! Invariants: at most one leader; groups are done in order of arrival and so are their
//! acknowledgements; after a leader's error nothing is led any more and everybody gets that
//! error. Not done here: limits on a group's size. A leader may split its group.
//!
//! The tests are small enough for Miri, which checks each run's order of memory accesses:
//! `MIRIFLAGS=-Zmiri-disable-isolation cargo +nightly miri test -p lavalog --lib commit`. loom tries all
//! interleavings of a few callers (sync.rs says how).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::sync::{Condvar, Mutex, MutexGuard};

/// A queue of items that are committed in groups. `T` is an item, `R` the result of one item,
/// `E` the error of a whole group, which is final.
///
/// All methods may be called from any thread.
#[derive(Debug)]
pub struct GroupCommit<T, R, E> {
    queue: Mutex<Queue<T, R, E>>,
}

#[derive(Debug)]
struct Queue<T, R, E> {
    waiting: VecDeque<(T, Arc<Waiter<R, E>>)>,
    leading: bool,
    poison: Option<Poison<E>>,
}

#[derive(Clone, Debug)]
enum Poison<E> {
    Failed(E),
    Panicked,
}

#[derive(Debug)]
struct Waiter<R, E> {
    turn: Mutex<Turn<R, E>>,
    changed: Condvar,
}

/// What a parked caller is told.
#[derive(Debug)]
enum Turn<R, E> {
    Wait,
    /// Lead everything that has queued, the caller's own item first.
    Lead,
    Done(R),
    Poisoned(Poison<E>),
    /// Do this for the leader and wait again.
    Work(Work),
}

/// A part of a group's work.
pub type Task = Box<dyn FnOnce() + Send>;

/// A task and where its end is told.
struct Work {
    task: Task,
    gate: Arc<Gate>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Work")
    }
}

/// Tasks that are not done yet, and whether one of them panicked.
#[derive(Debug)]
struct Gate {
    state: Mutex<(usize, bool)>,
    opened: Condvar,
}

impl Work {
    fn run(self) {
        let outcome = catch_unwind(AssertUnwindSafe(self.task));
        let mut state = self.gate.state.lock();
        state.0 -= 1;
        state.1 |= outcome.is_err();
        if state.0 == 0 {
            self.gate.opened.notify_one();
        }
    }
}

/// The callers of a group beside its leader. They wait for their results, and can do a part of the
/// group's work meanwhile.
#[derive(Debug)]
pub struct Crew<'a, R, E> {
    followers: &'a [Arc<Waiter<R, E>>],
}

impl<R, E> Crew<'_, R, E> {
    /// How many they are.
    pub fn len(&self) -> usize {
        self.followers.len()
    }

    /// True where the leader is alone.
    pub fn is_empty(&self) -> bool {
        self.followers.is_empty()
    }

    /// Runs all tasks, one on each follower as far as there are followers and the others on this
    /// thread, and returns when all have ended. What they did is visible to the caller.
    ///
    /// # Panics
    /// If a task panicked.
    pub fn share(&self, mut tasks: Vec<Task>) {
        let handed = tasks.len().saturating_sub(1).min(self.followers.len());
        let gate = Arc::new(Gate {
            state: Mutex::new((handed, false)),
            opened: Condvar::new(),
        });
        for (waiter, task) in self.followers.iter().zip(tasks.drain(..handed)) {
            let gate = gate.clone();
            waiter.tell(Turn::Work(Work { task, gate }));
        }
        let own = catch_unwind(AssertUnwindSafe(|| {
            tasks.into_iter().for_each(|task| task());
        }));
        let mut state = gate.state.lock();
        while state.0 > 0 {
            gate.opened.wait(&mut state);
        }
        let panicked = state.1 || own.is_err();
        drop(state);
        assert!(!panicked, "a part of a group's work panicked");
    }
}

impl<T, R, E: Clone> Default for GroupCommit<T, R, E> {
    fn default() -> Self {
        GroupCommit::new()
    }
}

impl<T, R, E: Clone> GroupCommit<T, R, E> {
    /// An empty queue.
    pub fn new() -> Self {
        GroupCommit {
            queue: Mutex::new(Queue {
                waiting: VecDeque::new(),
                leading: false,
                poison: None,
            }),
        }
    }

    /// Adds `item` and returns its result when its group is done. One caller of each group has
    /// its `lead` called, on its own thread, with all items of the group in order of arrival; it
    /// returns one result per item, in the same order. No two `lead`s run at a time.
    ///
    /// # Errors
    /// What this group's `lead` failed with, or an earlier one: an error is final.
    ///
    /// # Panics
    /// If `lead` returns another number of results than it was given items, or a `lead` panicked.
    pub fn submit<F>(&self, item: T, lead: F) -> Result<R, E>
    where
        F: FnOnce(Vec<T>) -> Result<Vec<R>, E>,
    {
        self.submit_with(item, |items, _| lead(items))
    }

    /// As [`GroupCommit::submit`], with a `lead` that can share its work with the group's other
    /// callers.
    ///
    /// # Errors
    /// As [`GroupCommit::submit`].
    ///
    /// # Panics
    /// As [`GroupCommit::submit`].
    pub fn submit_with<F>(&self, item: T, lead: F) -> Result<R, E>
    where
        F: FnOnce(Vec<T>, &Crew<'_, R, E>) -> Result<Vec<R>, E>,
    {
        let (items, followers) = {
            let mut queue = self.queue.lock();
            if let Some(poison) = queue.poison.clone() {
                return poison.into_error();
            }
            if queue.leading {
                let waiter = Arc::new(Waiter {
                    turn: Mutex::new(Turn::Wait),
                    changed: Condvar::new(),
                });
                queue.waiting.push_back((item, waiter.clone()));
                drop(queue);
                match waiter.park() {
                    Turn::Done(result) => return Ok(result),
                    Turn::Poisoned(poison) => return poison.into_error(),
                    Turn::Lead => self.take_group(),
                    Turn::Wait | Turn::Work(_) => {
                        unreachable!("park returns when there is nothing to do or wait for")
                    }
                }
            } else {
                debug_assert!(queue.waiting.is_empty(), "a waiter without a leader");
                queue.leading = true;
                (vec![item], Vec::new())
            }
        };
        self.lead_group(items, followers, lead)
    }

    /// The error that ended the queue, if one did.
    pub fn error(&self) -> Option<E> {
        match &self.queue.lock().poison {
            Some(Poison::Failed(error)) => Some(error.clone()),
            _ => None,
        }
    }

    /// Everything that has queued, and the waiters of all but the first item, who is the caller.
    fn take_group(&self) -> (Vec<T>, Vec<Arc<Waiter<R, E>>>) {
        let mut queue = self.queue.lock();
        debug_assert!(queue.leading, "the turn to lead is handed over, not free");
        let (items, mut waiters): (Vec<_>, Vec<_>) = queue.waiting.drain(..).unzip();
        waiters.remove(0);
        (items, waiters)
    }

    fn lead_group<F>(
        &self,
        items: Vec<T>,
        followers: Vec<Arc<Waiter<R, E>>>,
        lead: F,
    ) -> Result<R, E>
    where
        F: FnOnce(Vec<T>, &Crew<'_, R, E>) -> Result<Vec<R>, E>,
    {
        let count = items.len();
        debug_assert_eq!(count, followers.len() + 1);
        let mut guard = PanicGuard {
            commit: self,
            followers: &followers,
            armed: true,
        };
        let crew = Crew {
            followers: &followers,
        };
        let outcome = lead(items, &crew);
        if let Ok(results) = &outcome {
            assert_eq!(results.len(), count, "one result for each item of a group");
        }
        guard.armed = false;
        match outcome {
            Ok(results) => {
                let mut results = results.into_iter();
                let own = results.next().expect("a group has at least one item");
                for (waiter, result) in followers.iter().zip(results) {
                    waiter.tell(Turn::Done(result));
                }
                self.hand_over();
                Ok(own)
            }
            Err(error) => {
                self.poison(&followers, &Poison::Failed(error.clone()));
                Err(error)
            }
        }
    }

    /// Gives the lead to the first who waits, or to nobody.
    fn hand_over(&self) {
        let mut queue = self.queue.lock();
        match queue.waiting.front() {
            Some((_, next)) => next.tell(Turn::Lead),
            None => queue.leading = false,
        }
    }

    fn poison(&self, followers: &[Arc<Waiter<R, E>>], poison: &Poison<E>) {
        let mut queue = self.queue.lock();
        queue.poison = Some(poison.clone());
        queue.leading = false;
        for waiter in followers {
            waiter.tell(Turn::Poisoned(poison.clone()));
        }
        for (_, waiter) in queue.waiting.drain(..) {
            waiter.tell(Turn::Poisoned(poison.clone()));
        }
    }
}

/// Tells everybody when a leader panics; else they would wait for ever.
struct PanicGuard<'a, T, R, E: Clone> {
    commit: &'a GroupCommit<T, R, E>,
    followers: &'a [Arc<Waiter<R, E>>],
    armed: bool,
}

impl<T, R, E: Clone> Drop for PanicGuard<'_, T, R, E> {
    fn drop(&mut self) {
        if self.armed {
            self.commit.poison(self.followers, &Poison::Panicked);
        }
    }
}

impl<E> Poison<E> {
    fn into_error<R>(self) -> Result<R, E> {
        match self {
            Poison::Failed(error) => Err(error),
            Poison::Panicked => panic!("the leader of a commit group panicked"),
        }
    }
}

impl<R, E> Waiter<R, E> {
    fn park(&self) -> Turn<R, E> {
        let mut turn = self.turn.lock();
        loop {
            match std::mem::replace(&mut *turn, Turn::Wait) {
                Turn::Wait => self.changed.wait(&mut turn),
                Turn::Work(work) => MutexGuard::unlocked(&mut turn, || work.run()),
                told => return told,
            }
        }
    }

    fn tell(&self, told: Turn<R, E>) {
        *self.turn.lock() = told;
        self.changed.notify_one();
    }
}

#[cfg(all(test, lava_loom))]
#[path = "commit_loom.rs"]
mod loom;

#[cfg(all(test, not(lava_loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_lone_caller_leads_itself_with_its_item_alone() {
        let commit = GroupCommit::<u32, u32, ()>::new();
        for item in 0..100 {
            let mut led = Vec::new();
            let result = commit.submit(item, |items| {
                led = items.clone();
                Ok(items.iter().map(|i| i * 2).collect())
            });
            assert_eq!(result, Ok(item * 2));
            assert_eq!(led, [item]);
        }
    }

    #[test]
    fn what_queues_during_a_group_is_the_next_group_in_order() {
        let commit = GroupCommit::<usize, usize, ()>::new();
        let groups = Mutex::new(Vec::new());
        let lead = |items: Vec<usize>| {
            groups.lock().push(items.clone());
            Ok(items)
        };
        std::thread::scope(|scope| {
            let first = commit.submit(0, |items| {
                // Queue the others one by one while this group is in flight.
                for item in 1..=5 {
                    let (commit, lead) = (&commit, &lead);
                    scope.spawn(move || assert_eq!(commit.submit(item, lead), Ok(item)));
                    wait_until(|| commit.queue.lock().waiting.len() == item);
                }
                lead(items)
            });
            assert_eq!(first, Ok(0));
        });
        assert_eq!(groups.into_inner(), [vec![0], vec![1, 2, 3, 4, 5]]);
    }

    #[test]
    fn groups_never_overlap_and_everyone_gets_his_own_result() {
        let commit = GroupCommit::<usize, usize, ()>::new();
        let busy = AtomicBool::new(false);
        let groups = AtomicUsize::new(0);
        let rounds = if cfg!(miri) { 12 } else { 2000 };
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (commit, busy, groups) = (&commit, &busy, &groups);
                scope.spawn(move || {
                    for i in 0..rounds {
                        let item = thread * 10_000 + i;
                        let result = commit.submit(item, |items| {
                            assert!(!busy.swap(true, Ordering::SeqCst), "two leaders");
                            groups.fetch_add(1, Ordering::Relaxed);
                            std::thread::yield_now();
                            busy.store(false, Ordering::SeqCst);
                            Ok(items.iter().map(|i| i + 7).collect())
                        });
                        assert_eq!(result, Ok(item + 7));
                    }
                });
            }
        });
        assert!(groups.into_inner() <= 16_000);
        let queue = commit.queue.lock();
        assert!(!queue.leading && queue.waiting.is_empty());
    }

    #[test]
    fn a_group_shares_its_work_and_everybody_gets_his_result_once_it_is_done() {
        let commit = GroupCommit::<usize, usize, ()>::new();
        let threads = Arc::new(Mutex::new(std::collections::HashSet::new()));
        let done = Arc::new(AtomicUsize::new(0));
        let lead = |items: Vec<usize>, crew: &Crew<'_, usize, ()>| {
            assert_eq!(crew.len() + 1, items.len());
            let task = |_| -> Task {
                let (threads, done) = (threads.clone(), done.clone());
                Box::new(move || {
                    threads.lock().insert(std::thread::current().id());
                    std::thread::sleep(Duration::from_millis(5));
                    done.fetch_add(1, Ordering::SeqCst);
                })
            };
            crew.share((0..10).map(task).collect());
            assert_eq!(done.load(Ordering::SeqCst), 10, "all is done on return");
            Ok(items)
        };
        std::thread::scope(|scope| {
            let first = commit.submit(0, |items| {
                for item in 1..=5 {
                    let (commit, lead) = (&commit, &lead);
                    scope.spawn(move || assert_eq!(commit.submit_with(item, lead), Ok(item)));
                    wait_until(|| commit.queue.lock().waiting.len() == item);
                }
                Ok(items)
            });
            assert_eq!(first, Ok(0));
        });
        assert_eq!(
            threads.lock().len(),
            5,
            "each caller of the group had a part"
        );
    }

    #[test]
    fn an_error_reaches_the_group_the_queue_and_every_later_caller() {
        let commit = GroupCommit::<usize, (), &str>::new();
        let attempts = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let first = commit.submit(0, |items| {
                for item in 1..=4 {
                    let (commit, attempts) = (&commit, &attempts);
                    scope.spawn(move || {
                        let result = commit.submit(item, |_| {
                            attempts.fetch_add(1, Ordering::Relaxed);
                            Err("disk failed")
                        });
                        assert_eq!(result, Err("disk failed"));
                    });
                    wait_until(|| commit.queue.lock().waiting.len() == item);
                }
                Ok(items.iter().map(|_| ()).collect())
            });
            assert_eq!(first, Ok(()));
        });
        assert_eq!(
            attempts.into_inner(),
            1,
            "a failed group is not tried again"
        );
        assert_eq!(commit.submit(9, |_| Ok(vec![()])), Err("disk failed"));
        assert_eq!(commit.error(), Some("disk failed"));
    }

    #[test]
    fn a_panicking_leader_leaves_nobody_waiting() {
        let commit = GroupCommit::<usize, (), ()>::new();
        let follower = std::thread::scope(|scope| {
            let handle = Mutex::new(None);
            let leader = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _ = commit.submit(0, |_| {
                    let commit = &commit;
                    *handle.lock() =
                        Some(scope.spawn(move || commit.submit(1, |_| Ok(vec![()])).is_ok()));
                    wait_until(|| commit.queue.lock().waiting.len() == 1);
                    panic!("a bug in the leader");
                });
            }));
            assert!(leader.is_err());
            let follower = handle.lock().take().expect("spawned above");
            follower.join()
        });
        assert!(follower.is_err(), "the follower panics too");
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < Duration::from_secs(60), "waited too long");
            std::thread::yield_now();
        }
    }
}
