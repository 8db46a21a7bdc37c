//! The commit queue itself under loom: every order in which its callers can take their steps, with up to
//! three preemptions, and every result of each.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as Plain};

use super::*;

/// Runs `callers` at a time in all interleavings.
fn explore(callers: usize, caller: impl Fn(usize, &Shared) + Send + Sync + Copy + 'static) {
    let mut builder = ::loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let shared = Arc::new(Shared::default());
        let threads: Vec<_> = (1..callers)
            .map(|number| {
                let shared = shared.clone();
                ::loom::thread::spawn(move || caller(number, &shared))
            })
            .collect();
        caller(0, &shared);
        for thread in threads {
            thread.join().expect("no caller panics");
        }
        let queue = shared.commit.queue.lock();
        assert!(!queue.leading, "somebody still leads");
        assert!(queue.waiting.is_empty(), "somebody was forgotten");
    });
}

/// What is no part of the queue is not explored: plain locks and atomics.
#[derive(Default)]
struct Shared {
    commit: GroupCommit<usize, usize, &'static str>,
    leading: AtomicBool,
    done: AtomicUsize,
    /// Items in the order in which they were led.
    led: Plain<Vec<usize>>,
}

impl Shared {
    fn lead(&self, items: &[usize]) {
        assert!(!self.leading.swap(true, Ordering::SeqCst), "two leaders");
        // Others may come while a group is led.
        ::loom::thread::yield_now();
        self.led
            .lock()
            .expect("no caller panics")
            .extend_from_slice(items);
        self.leading.store(false, Ordering::SeqCst);
    }
}

#[test]
fn every_caller_is_led_once_and_gets_his_own_result() {
    explore(3, |number, shared| {
        let result = shared.commit.submit(number, |items| {
            shared.lead(&items);
            Ok(items.iter().map(|item| item + 10).collect())
        });
        assert_eq!(result, Ok(number + 10));
        let led = shared.led.lock().expect("no caller panics");
        assert_eq!(led.iter().filter(|&&item| item == number).count(), 1);
    });
}

#[test]
fn a_caller_that_comes_again_is_led_after_his_first_item() {
    explore(2, |number, shared| {
        for round in 0..2 {
            let item = 10 * number + round;
            let result = shared.commit.submit(item, |items| {
                shared.lead(&items);
                Ok(items)
            });
            assert_eq!(result, Ok(item));
        }
        let led = shared.led.lock().expect("no caller panics");
        let own: Vec<usize> = led
            .iter()
            .copied()
            .filter(|item| item / 10 == number)
            .collect();
        assert_eq!(own, [10 * number, 10 * number + 1]);
    });
}

#[test]
fn work_that_is_shared_is_done_when_the_leader_goes_on() {
    explore(3, |number, shared| {
        let result = shared.commit.submit_with(number, |items, crew| {
            let before = shared.done.load(Ordering::SeqCst);
            let counts: Vec<Arc<AtomicUsize>> = items.iter().map(|_| Arc::default()).collect();
            let task = |count: &Arc<AtomicUsize>| -> Task {
                let count = count.clone();
                Box::new(move || {
                    count.fetch_add(1, Ordering::SeqCst);
                })
            };
            crew.share(counts.iter().map(task).collect());
            let done: usize = counts
                .iter()
                .map(|count| count.load(Ordering::SeqCst))
                .sum();
            assert_eq!(done, items.len(), "a part is not done");
            shared.done.store(before + done, Ordering::SeqCst);
            Ok(items)
        });
        assert_eq!(result, Ok(number));
    });
}

#[test]
fn an_error_reaches_everybody_and_nobody_waits() {
    explore(3, |number, shared| {
        let result = shared.commit.submit(number, |items| {
            shared.lead(&items);
            match items.contains(&1) {
                true => Err("disk failed"),
                false => Ok(items),
            }
        });
        // The item that fails and whatever comes with or after it.
        match number {
            1 => assert_eq!(result, Err("disk failed")),
            _ => assert!(result == Ok(number) || result == Err("disk failed")),
        }
    });
}
