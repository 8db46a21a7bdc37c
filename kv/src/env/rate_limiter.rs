//! `RateLimiter`: how many bytes a second background work may write, all databases of an `Env` together.
//!
//! A bucket fills at the rate, up to a tenth of a second's worth. A request is granted when the bucket is
//! not empty, and may overdraw it; the next one waits until the debt is paid. A request of flushes goes
//! before all that wait for compactions: writers wait for flushes.
//!
//! The lock is held for arithmetic only.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::env::Priority;

/// Longest wait before a waiter looks again: the rate may have changed, or its work be in vain.
const SLICE: Duration = Duration::from_millis(50);

/// The bucket holds what the rate gives in this time.
const BURST: Duration = Duration::from_millis(100);

/// A limit in bytes a second. All methods may be called from any thread.
#[derive(Debug)]
pub struct RateLimiter {
    bucket: Mutex<Bucket>,
    /// Signalled when a request of high priority was granted.
    granted: Condvar,
}

#[derive(Debug)]
struct Bucket {
    /// 0: no limit.
    bytes_per_s: u64,
    /// Negative: debt.
    bytes: f64,
    filled: Instant,
    high_waiting: usize,
    passed: [u64; 2],
}

impl RateLimiter {
    /// A limit of `bytes_per_s`; 0: none.
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        RateLimiter {
            bucket: Mutex::new(Bucket {
                bytes_per_s,
                bytes: 0.0,
                filled: Instant::now(),
                high_waiting: 0,
                passed: [0; 2],
            }),
            granted: Condvar::new(),
        }
    }

    /// Sets another limit, from now on; 0: none.
    pub fn set_bytes_per_s(&self, bytes_per_s: u64) {
        let mut bucket = self.bucket.lock();
        bucket.fill();
        bucket.bytes_per_s = bytes_per_s;
        bucket.bytes = bucket.bytes.min(bucket.capacity());
        drop(bucket);
        self.granted.notify_all();
    }

    /// The limit; 0: none.
    pub fn bytes_per_s(&self) -> u64 {
        self.bucket.lock().bytes_per_s
    }

    /// Bytes let through so far at a priority.
    pub fn bytes_through(&self, priority: Priority) -> u64 {
        self.bucket.lock().passed[priority as usize]
    }

    /// Returns when `bytes` more may be written, or `go_on` fails with its error.
    pub(crate) fn request<E>(
        &self,
        bytes: u64,
        priority: Priority,
        go_on: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut bucket = self.bucket.lock();
        let high = priority == Priority::High;
        bucket.high_waiting += usize::from(high);
        let outcome = loop {
            bucket.fill();
            let first = high || bucket.high_waiting == 0;
            if bucket.bytes_per_s == 0 || (first && bucket.bytes > 0.0) {
                bucket.bytes -= bytes as f64;
                bucket.passed[priority as usize] += bytes;
                break Ok(());
            }
            let wait = bucket.until_positive().min(SLICE);
            self.granted.wait_for(&mut bucket, wait);
            if let Err(error) = parking_lot::MutexGuard::unlocked(&mut bucket, &go_on) {
                break Err(error);
            }
        };
        bucket.high_waiting -= usize::from(high);
        drop(bucket);
        if high {
            self.granted.notify_all();
        }
        outcome
    }
}

impl Bucket {
    fn capacity(&self) -> f64 {
        self.bytes_per_s as f64 * BURST.as_secs_f64()
    }

    fn fill(&mut self) {
        let now = Instant::now();
        if self.bytes_per_s == 0 {
            self.bytes = 0.0;
        } else {
            let earned = (now - self.filled).as_secs_f64() * self.bytes_per_s as f64;
            self.bytes = (self.bytes + earned).min(self.capacity());
        }
        self.filled = now;
    }

    fn until_positive(&self) -> Duration {
        let debt = (1.0 - self.bytes).max(1.0);
        Duration::from_secs_f64((debt / self.bytes_per_s.max(1) as f64).min(3600.0))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn always() -> Result<(), ()> {
        Ok(())
    }

    #[test]
    fn bytes_pass_at_the_rate_and_no_faster() {
        let limiter = RateLimiter::new(10 << 20);
        let begin = Instant::now();
        for _ in 0..64 {
            limiter.request(64 << 10, Priority::Low, always).unwrap();
        }
        // 4 MiB at 10 MiB/s, less a burst of 1 MiB and the last request.
        let took = begin.elapsed();
        assert!(took >= Duration::from_millis(280), "{took:?}");
        assert_eq!(limiter.bytes_through(Priority::Low), 4 << 20);
        limiter.set_bytes_per_s(0);
        let begin = Instant::now();
        limiter.request(1 << 40, Priority::Low, always).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_flush_goes_before_compactions_that_wait() {
        // Days pass before a byte does.
        let limiter = RateLimiter::new(1);
        limiter.request(300 << 10, Priority::Low, always).unwrap();
        let order = Mutex::new(Vec::new());
        let (waits, waiting) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let waits = waits.clone();
                let (limiter, order) = (&limiter, &order);
                scope.spawn(move || {
                    let wait_on = || waits.send(()).map_err(drop);
                    limiter.request(200 << 10, Priority::Low, wait_on).unwrap();
                    order.lock().push(Priority::Low);
                });
                waiting.recv().unwrap();
            }
            scope.spawn(|| {
                limiter.request(1 << 50, Priority::High, always).unwrap();
                order.lock().push(Priority::High);
                limiter.set_bytes_per_s(0);
            });
            while limiter.bucket.lock().high_waiting == 0 {
                std::thread::yield_now();
            }
            // A byte passes, and after the flush again none for a while.
            limiter.set_bytes_per_s(1 << 40);
        });
        assert_eq!(order.lock()[0], Priority::High);
    }

    #[test]
    fn work_in_vain_stops_waiting() {
        let limiter = RateLimiter::new(1);
        let enough = || limiter.request(1 << 20, Priority::Low, || Err::<(), _>("closing"));
        let outcomes = [enough(), enough()];
        assert!(outcomes.contains(&Err("closing")));
    }
}
