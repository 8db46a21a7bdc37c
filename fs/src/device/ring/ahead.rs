//! Reads ahead of need: begun by one thread, taken in by the same or another one.
//!
//! The calling thread's ring cannot serve here, since a call of [`super::run`] owns it whole and it ends
//! with its thread. A read ahead borrows a ring of the device's pool instead and gives it back when
//! everything in it has completed. The pool's lock is held to take or return a ring, across no
//! system call but the making of one; a device makes at most [`RINGS_MAX`] of them.
//!
//! Invariant: the buffer lives until the last completion, whatever becomes of the [`Ahead`]: it owns
//! the buffer, and neither waiting nor dropping ends before nothing is in flight.
//!
//! A thread that ends takes what it has in flight with it: the kernel cancels it (ECANCELED), which is a
//! failure like any other; who needs the bytes reads them anew.

use std::io;
use std::sync::Arc;

use io_uring::IoUring;
use parking_lot::Mutex;

use super::{Flight, Transfer};
use crate::device::raw::Raw;
use crate::device::{AlignedBuf, ReadPart};

/// Entries of a ring, and with it the most parts of one read ahead.
pub(in crate::device) const PARTS_MAX: usize = 32;

/// Most rings of one device, and with it the most reads ahead in flight.
const RINGS_MAX: usize = 64;

/// The rings of one device.
#[derive(Default)]
pub(in crate::device) struct Pool {
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    idle: Vec<IoUring>,
    made: usize,
    /// Making one failed; it is not tried again.
    refused: bool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} rings)", self.state.lock().made)
    }
}

impl Pool {
    fn take(&self) -> Option<IoUring> {
        let mut state = self.state.lock();
        if let Some(ring) = state.idle.pop() {
            return Some(ring);
        }
        if state.refused || state.made == RINGS_MAX {
            return None;
        }
        // Without the modes for a single thread: completions must reach whoever waits.
        match IoUring::builder().dontfork().build(PARTS_MAX as u32) {
            Ok(ring) => {
                state.made += 1;
                Some(ring)
            }
            Err(error) => {
                tracing::debug!(%error, "no io_uring for reading ahead");
                state.refused = true;
                None
            }
        }
    }

    fn give_back(&self, ring: IoUring) {
        self.state.lock().idle.push(ring);
    }
}

/// A read in flight on a ring of its own.
pub(in crate::device) struct Ahead {
    /// Pointers into `buf`.
    transfers: Vec<Transfer<'static>>,
    in_flight: usize,
    /// `None` once the ring was given back.
    ring: Option<IoUring>,
    buf: AlignedBuf,
    pool: Arc<Pool>,
    /// Keeps the file open and the counters alive.
    raw: Arc<Raw>,
}

// SAFETY: the transfers' pointers lead into `buf`, which the same value owns and nobody else can reach.
unsafe impl Send for Ahead {}

impl Ahead {
    /// Begins to read `parts` into `buf`, one behind the other.
    ///
    /// # Errors
    /// Gives the buffer back where no ring is to be had or there are too many parts.
    pub(in crate::device) fn start(
        pool: &Arc<Pool>,
        raw: &Arc<Raw>,
        parts: &[ReadPart],
        mut buf: AlignedBuf,
    ) -> Result<Ahead, AlignedBuf> {
        let total: usize = parts.iter().map(|part| part.len).sum();
        assert!(total <= buf.len(), "the buffer holds all parts");
        if parts.len() > PARTS_MAX {
            return Err(buf);
        }
        let Some(ring) = pool.take() else {
            return Err(buf);
        };
        let mut rest: &mut [u8] = &mut buf;
        let mut transfers = Vec::with_capacity(parts.len());
        for part in parts {
            let (data, after) = rest.split_at_mut(part.len);
            raw.check_read(part.offset, data);
            transfers.push(Transfer::read_raw(&raw.file, part.offset, data));
            rest = after;
        }
        let mut ahead = Ahead {
            transfers,
            in_flight: 0,
            ring: Some(ring),
            buf,
            pool: pool.clone(),
            raw: raw.clone(),
        };
        ahead.submit();
        Ok(ahead)
    }

    fn submit(&mut self) {
        let ring = self.ring.as_mut().expect("a read that begins has a ring");
        for (index, transfer) in self.transfers.iter().enumerate() {
            if transfer.len == 0 {
                continue;
            }
            // SAFETY: the transfer's pointer leads into `buf`, which lives in `self` until `reap`
            // has seen every completion.
            let pushed = unsafe { ring.submission().push(&transfer.entry(index)) };
            pushed.expect("a ring has an entry for each part");
            self.in_flight += 1;
        }
        // What this leaves in the queue, `reap` submits.
        if let Err(error) = ring.submit() {
            tracing::debug!(%error, "a read ahead is submitted when it is waited for");
        }
    }

    /// Waits until nothing is in flight and gives the ring back.
    fn reap(&mut self) {
        let Some(mut ring) = self.ring.take() else {
            return;
        };
        let mut flight = Flight {
            ring: &mut ring,
            in_flight: self.in_flight,
        };
        let mut again = Vec::new();
        while flight.in_flight > 0 {
            flight.enter_if_empty();
            for completion in flight.ring.completion() {
                flight.in_flight -= 1;
                let index = completion.user_data() as usize;
                if !self.transfers[index].complete(completion.result(), &self.raw.counters) {
                    again.push(index);
                }
            }
            for index in again.drain(..) {
                flight.push(&self.transfers[index].entry(index));
            }
        }
        drop(flight);
        self.in_flight = 0;
        self.pool.give_back(ring);
    }

    /// Waits for the device.
    pub(in crate::device) fn wait(mut self) -> (AlignedBuf, io::Result<()>) {
        self.reap();
        let transfers = std::mem::take(&mut self.transfers);
        let result = transfers.into_iter().try_for_each(Transfer::into_result);
        let buf = std::mem::replace(&mut self.buf, AlignedBuf::zeroed(0));
        (buf, result)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.reap();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use crate::device::{AlignedBuf, BlockDevice, OpenMode, ReadPart, open};

    fn device() -> (tempfile::NamedTempFile, std::sync::Arc<dyn BlockDevice>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at >> 12) as u8).collect();
        file.as_file().write_all_at(&bytes, 0).unwrap();
        let device = open(file.path(), OpenMode::ReadOnly).unwrap();
        (file, device)
    }

    const PARTS: [ReadPart; 3] = [
        ReadPart {
            offset: 8192,
            len: 4096,
        },
        ReadPart { offset: 0, len: 0 },
        ReadPart {
            offset: 65536,
            len: 8192,
        },
    ];

    #[test]
    fn parts_arrive_in_order_whichever_thread_waits() {
        let (_file, device) = device();
        let pending = device.read_ahead(&PARTS, AlignedBuf::zeroed(16384));
        let other = std::thread::spawn(move || pending.wait()).join();
        let (buf, result) = other.unwrap();
        result.unwrap();
        assert_eq!((buf[0], buf[4095], buf[4096], buf[8192]), (2, 2, 16, 17));
        assert_eq!(device.counters().read_bytes, 12288);
        assert_eq!(device.counters().read_ios, 2);
    }

    #[test]
    fn a_read_ahead_outlives_the_thread_that_began_it_or_fails() {
        let (_file, device) = device();
        for _ in 0..100 {
            let begun = device.clone();
            let pending =
                std::thread::spawn(move || begun.read_ahead(&PARTS, AlignedBuf::zeroed(16384)));
            let (buf, result) = pending.join().unwrap().wait();
            assert!(result.is_err() || (buf[0], buf[4096]) == (2, 16));
        }
    }

    #[test]
    fn more_reads_ahead_than_rings_are_all_served() {
        let (_file, device) = device();
        let pending: Vec<_> = (0..super::RINGS_MAX * 2)
            .map(|_| device.read_ahead(&PARTS, AlignedBuf::zeroed(16384)))
            .collect();
        for (at, pending) in pending.into_iter().enumerate() {
            // Every other one is only dropped.
            if at % 2 == 0 {
                let (buf, result) = pending.wait();
                result.unwrap();
                assert_eq!((buf[0], buf[4096]), (2, 16));
            }
        }
        let (_, result) = device.read_ahead(&PARTS, AlignedBuf::zeroed(16384)).wait();
        result.unwrap();
    }
}
