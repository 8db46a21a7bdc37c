//! Writing behind: full tail buffers go to the device while the caller goes on.
//!
//! An append that fills the tail buffer hands it over and continues in a fresh one; the device writes
//! meanwhile, out of order with nothing, since no two buffers in flight touch the same block. What is in
//! flight is volatile, as a completed write without a flush is: it adds no way to lose bytes. Whoever needs the
//! file's state on the device (sync, close, truncate, an append that is durable by itself) takes the
//! appender through [`OpenFile::lock_appender`], which waits for all of it first and fails if any of it
//! failed. Readers find the bytes in the pipeline.
//!
//! Each file holds at most [`BUFFERS_MAX`] buffers in flight, all files of a mount together
//! [`crate::MountOptions::write_behind`] bytes, and one file no more than leaves some to others ([`SHARE`]). A file
//! that gets no share waits for its own oldest buffers, or writes before it returns where it has none.
//!
//! Invariants: buffers leave in the order of their offsets; what is in flight ends where the tail begins, so that
//! nothing is written otherwise beside it; the pipeline holds either these or durable
//! appends, never both; nothing is in flight when blocks of the file are freed, or blocks that have gone to
//! another file would be overwritten.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::MutexGuard;

use crate::device::{AlignedBuf, DevicePart, Durability, PendingWrite};
use crate::error::Result;
use crate::file::appender::Appender;
use crate::file::handle::OpenFile;
use crate::file::tail::BUFFER_LEN_MAX;

/// Most buffers of one file in flight.
const BUFFERS_MAX: usize = 8;

/// How many times what is free a file may have in flight (dynamic thresholds: Choudhury and Hahne, "Dynamic queue
/// length thresholds for shared-memory packet switches", 1998). While up to five files write all they can, something of
/// the default budget is left for one that comes now and then, as a log does beside compactions.
const SHARE: u64 = 2;

/// The memory that a mount's files together may have in flight.
#[derive(Debug)]
pub(crate) struct Budget {
    max: AtomicU64,
    taken: AtomicU64,
}

impl Budget {
    /// At most `bytes` in flight.
    pub(crate) fn new(bytes: u64) -> Budget {
        Budget {
            max: AtomicU64::new(bytes),
            taken: AtomicU64::new(0),
        }
    }

    /// Bytes in flight at most.
    pub(crate) fn memory_max(&self) -> u64 {
        self.max.load(Ordering::Acquire)
    }

    /// Lowers what may be in flight; what is beyond that now goes as its writes end.
    pub(crate) fn limit_memory(&self, bytes: u64) {
        self.max.fetch_min(bytes, Ordering::AcqRel);
    }

    /// Takes a share for a file that has `own` buffers in flight, unless that were more than
    /// [`SHARE`] times what is free.
    fn take(&self, own: usize) -> bool {
        let wanted = (own as u64 + 1) * BUFFER_LEN_MAX as u64;
        let more = |taken| {
            let free = self.memory_max().saturating_sub(taken);
            let fits = free >= BUFFER_LEN_MAX as u64 && wanted <= SHARE * free;
            fits.then_some(taken + BUFFER_LEN_MAX as u64)
        };
        let taken = &self.taken;
        taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .is_ok()
    }

    fn give_back(&self) {
        self.taken
            .fetch_sub(BUFFER_LEN_MAX as u64, Ordering::AcqRel);
    }
}

/// One file's buffers in flight, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Behind {
    queue: VecDeque<InFlight>,
    /// A buffer that came back.
    spare: Option<AlignedBuf>,
}

#[derive(Debug)]
struct InFlight {
    file_offset: u64,
    device_offset: u64,
    buf: Arc<AlignedBuf>,
    pending: PendingWrite,
}

impl Behind {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl OpenFile {
    /// Takes the appender's lock and waits for everything in flight.
    ///
    /// # Errors
    /// If a write of what was appended before failed. The filesystem is read-only then.
    pub(super) fn lock_appender(&self) -> Result<MutexGuard<'_, Appender>> {
        let (appender, finished) = self.lock_and_finish();
        finished.map(|()| appender)
    }

    /// As [`Self::lock_appender`], for those that go on after a failure.
    pub(super) fn lock_and_finish(&self) -> (MutexGuard<'_, Appender>, Result<()>) {
        let mut appender = self.appender.lock();
        let finished = self.finish_behind(&mut appender, 0);
        self.pipeline.drain();
        (appender, finished)
    }

    /// As [`Self::lock_appender`], for an append: its bytes go beside what is written behind.
    pub(super) fn lock_to_append(&self) -> MutexGuard<'_, Appender> {
        let appender = self.appender.lock();
        if appender.behind.is_empty() {
            self.pipeline.drain();
        }
        appender
    }

    /// Empties the full tail buffer: hands it to the device, or writes it where too much is in flight.
    pub(super) fn hand_over(&self, appender: &mut Appender) -> Result<()> {
        let budget = &self.core.write_behind;
        let mut own = appender.behind.queue.len();
        while own == BUFFERS_MAX || !budget.take(own) {
            if own == 0 {
                return self.write_out(appender, Durability::Volatile);
            }
            own -= 1;
            self.finish_behind(appender, own)?;
        }
        match self.begin_behind(appender) {
            // A device that writes at once tells of a failure at once.
            Ok(true) => self.finish_behind(appender, 0),
            Ok(false) => Ok(()),
            Err(error) => {
                budget.give_back();
                Err(error)
            }
        }
    }

    /// Begins to write the full tail buffer; true if the device is done with it already.
    fn begin_behind(&self, appender: &mut Appender) -> Result<bool> {
        let start = self.tail.read().start;
        let end = start + BUFFER_LEN_MAX as u64;
        self.core.commit(appender.cut_ticket)?;
        self.allocate_to(appender, end)?;
        let mut parts = Vec::with_capacity(1);
        self.runs(start, BUFFER_LEN_MAX as u64, |offset, len| {
            parts.push(DevicePart {
                offset,
                len: len as usize,
            });
        })?;
        let fresh = appender.behind.spare.take();
        let fresh = fresh.unwrap_or_else(|| AlignedBuf::zeroed(0));
        let buf = {
            let mut tail = self.tail.write();
            let buf = Arc::new(std::mem::replace(&mut tail.buf, fresh));
            // In this order: a reader that no longer finds the bytes in the tail looks here.
            self.pipeline.push(start, buf.clone());
            tail.start = end;
            tail.len = 0;
            buf
        };
        appender.synced_end = end;
        match self.core.disk.write_behind(&parts, buf.clone()) {
            Ok(pending) => {
                let done = pending.is_done();
                appender.behind.queue.push_back(InFlight {
                    file_offset: start,
                    device_offset: parts[0].offset,
                    buf,
                    pending,
                });
                Ok(done)
            }
            // Of a filesystem that has turned read-only; nothing reads these bytes as durable.
            Err(error) => {
                self.pipeline.finish(start, true, |_| {});
                Err(error)
            }
        }
    }

    /// Waits until at most `keep` buffers are in flight, for all of them even if one fails.
    pub(super) fn finish_behind(&self, appender: &mut Appender, keep: usize) -> Result<()> {
        let mut outcome = Ok(());
        while appender.behind.queue.len() > keep {
            let oldest = appender.behind.queue.pop_front().expect("more than none");
            let finished = self
                .core
                .disk
                .finish_write(oldest.device_offset, oldest.pending);
            let failed = finished.is_err();
            self.pipeline.finish(oldest.file_offset, failed, |_| {});
            self.core.write_behind.give_back();
            appender.behind.spare = Arc::try_unwrap(oldest.buf).ok();
            match finished {
                Ok(ticket) => appender.last_write = appender.last_write.max(ticket),
                Err(error) if outcome.is_ok() => outcome = Err(error),
                Err(_) => {}
            }
        }
        if keep == 0 {
            appender.behind.spare = None;
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_write_all_they_can_leave_something_for_one_that_comes_now_and_then() {
        let buffers = 16;
        for greedy in 1..=5 {
            let budget = Budget::new(buffers * BUFFER_LEN_MAX as u64);
            let mut own = vec![0; greedy];
            let mut more = true;
            while more {
                more = false;
                for own in own.iter_mut().filter(|own| **own < BUFFERS_MAX) {
                    if budget.take(*own) {
                        *own += 1;
                        more = true;
                    }
                }
            }
            let taken: usize = own.iter().sum();
            assert!(taken as u64 >= buffers / 2, "{own:?}");
            assert!(budget.take(0), "{own:?}");
        }
    }

    #[test]
    fn one_file_has_most_of_a_small_budget() {
        let budget = Budget::new(4 * BUFFER_LEN_MAX as u64);
        let own = (0..).take_while(|&own| budget.take(own)).count();
        assert_eq!(own, 3);
    }
}
