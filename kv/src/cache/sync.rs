//! The atomics of a shard's table: std's, or loom's when interleavings are explored.
//!
//! With `--cfg lava_loom` the same code runs under loom, which tries every order of its steps that the
//! bound on preemptions allows, and every value that a load may see in it:
//!
//! ```text
//! RUSTFLAGS="--cfg lava_loom" CARGO_TARGET_DIR=target/loom cargo test --release -p lavakv --lib slot::loom
//! ```
//!
//! Everything else of the crate does not run in such a build.

#[cfg(not(lava_loom))]
pub(super) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, fence};

#[cfg(lava_loom)]
pub(super) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, fence};

/// Part of what several threads read until one frees it. Under loom it tells a model's author of a read that is
/// not ordered before the free or after the making, and of what nobody frees; else it is nothing.
#[cfg(not(lava_loom))]
pub(super) struct Watch;

#[cfg(not(lava_loom))]
impl Watch {
    pub(super) fn new() -> Self {
        Watch
    }

    /// What this is part of is being read.
    #[inline(always)]
    pub(super) fn read(&self) {}
}

#[cfg(lava_loom)]
pub(super) use self::explored::{AtomicU64, Watch};

#[cfg(lava_loom)]
mod explored {
    use loom::alloc::Track;
    use loom::cell::UnsafeCell;
    use loom::sync::atomic::Ordering;

    /// loom's, but that a store reads too. loom has no order between a plain store and another thread's
    /// read-modify-write of the word before it, and lets the latter's result come back after the store; the
    /// language does not, as nothing comes between what a read-modify-write reads and what it writes.
    pub(in super::super) struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        pub(in super::super) fn new(value: u64) -> Self {
            AtomicU64(loom::sync::atomic::AtomicU64::new(value))
        }

        pub(in super::super) fn load(&self, order: Ordering) -> u64 {
            self.0.load(order)
        }

        pub(in super::super) fn store(&self, value: u64, order: Ordering) {
            self.0.swap(value, order);
        }

        pub(in super::super) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_add(value, order)
        }

        pub(in super::super) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_sub(value, order)
        }

        pub(in super::super) fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_and(value, order)
        }

        pub(in super::super) fn compare_exchange(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.0.compare_exchange(current, new, success, failure)
        }
    }

    pub(in super::super) struct Watch {
        accesses: UnsafeCell<()>,
        _freed: Track<()>,
    }

    impl Watch {
        pub(in super::super) fn new() -> Self {
            Watch {
                accesses: UnsafeCell::new(()),
                _freed: Track::new(()),
            }
        }

        pub(in super::super) fn read(&self) {
            self.accesses.with(|_| ());
        }
    }

    impl Drop for Watch {
        fn drop(&mut self) {
            // Fails where a read is not over, as the order of the atomics goes.
            self.accesses.with_mut(|_| ());
        }
    }
}
