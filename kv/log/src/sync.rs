//! The locks of the commit queue: parking_lot's, or loom's when interleavings are explored.
//!
//! With `--cfg lava_loom` the same code runs under loom, which tries every order of its steps that the
//! bound on preemptions allows:
//!
//! ```text
//! RUSTFLAGS="--cfg lava_loom" CARGO_TARGET_DIR=target/loom cargo test --release -p lavalog --lib commit::loom
//! ```
//!
//! Everything else of the crate does not run in such a build.

#[cfg(not(lava_loom))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};

#[cfg(lava_loom)]
pub(crate) use self::explored::{Condvar, Mutex, MutexGuard};

/// loom's locks in parking_lot's terms: no poisoning, waits that borrow their guard.
#[cfg(lava_loom)]
mod explored {
    use std::ops::{Deref, DerefMut};

    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard {
                mutex: self,
                held: Some(self.0.lock().expect("no model panics")),
            }
        }
    }

    pub(crate) struct MutexGuard<'a, T> {
        mutex: &'a Mutex<T>,
        /// `None` only within a method.
        held: Option<loom::sync::MutexGuard<'a, T>>,
    }

    impl<T> MutexGuard<'_, T> {
        pub(crate) fn unlocked<R>(guard: &mut Self, work: impl FnOnce() -> R) -> R {
            guard.held = None;
            let result = work();
            guard.held = Some(guard.mutex.0.lock().expect("no model panics"));
            result
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.held.as_ref().expect("held between methods")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.held.as_mut().expect("held between methods")
        }
    }

    #[derive(Debug)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Condvar(loom::sync::Condvar::new())
        }

        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let held = guard.held.take().expect("held between methods");
            guard.held = Some(self.0.wait(held).expect("no model panics"));
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }
    }
}
