//! Running totals behind [`DeviceCounters`], updated by any thread without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::DeviceCounters;

/// Counts what has been sent to a device or to kernel files. Each method counts one command.
#[derive(Debug, Default)]
pub(crate) struct AtomicCounters {
    write_bytes: AtomicU64,
    write_ios: AtomicU64,
    read_bytes: AtomicU64,
    read_ios: AtomicU64,
    flushes: AtomicU64,
    discard_bytes: AtomicU64,
}

impl AtomicCounters {
    /// One write command of `bytes`.
    pub(crate) fn wrote(&self, bytes: u64) {
        self.write_bytes.fetch_add(bytes, Relaxed);
        self.write_ios.fetch_add(1, Relaxed);
    }

    /// One read command of `bytes`.
    pub(crate) fn read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Relaxed);
        self.read_ios.fetch_add(1, Relaxed);
    }

    /// One flush, or one durable write (which is counted as a write besides).
    pub(crate) fn flushed(&self) {
        self.flushes.fetch_add(1, Relaxed);
    }

    /// One discard of `bytes`.
    pub(crate) fn discarded(&self, bytes: u64) {
        self.discard_bytes.fetch_add(bytes, Relaxed);
    }

    /// The totals now. Exact where no command is in flight.
    pub(crate) fn snapshot(&self) -> DeviceCounters {
        DeviceCounters {
            write_bytes: self.write_bytes.load(Relaxed),
            write_ios: self.write_ios.load(Relaxed),
            read_bytes: self.read_bytes.load(Relaxed),
            read_ios: self.read_ios.load(Relaxed),
            flushes: self.flushes.load(Relaxed),
            discard_bytes: self.discard_bytes.load(Relaxed),
        }
    }
}
