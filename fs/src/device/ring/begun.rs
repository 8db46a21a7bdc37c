//! Reads ahead of need and writes behind: begun by one thread, taken in by the same or another one.
//!
//! The calling thread's ring cannot serve here, since a call of [`super::run`] owns it whole and it ends
//! with its thread. What is begun borrows a ring of the device's pool instead and gives it back when
//! everything in it has completed. The pool's lock is held to take or return a ring, across no
//! system call but the making of one; a device makes at most [`RINGS_MAX`] of them.
//!
//! Invariant: the buffer lives until the last completion, whatever becomes of the [`Ahead`] or [`Behind`]:
//! it holds the buffer, and neither waiting nor dropping ends before nothing is in flight.
//!
//! A thread that ends takes what it has in flight with it: the kernel cancels what has not begun (ECANCELED). A
//! cancelled read is a failure like any other; who needs the bytes reads them anew. A cancelled write
//! was not tried: whoever waits for it submits it again.

use std::io;
use std::sync::Arc;

use io_uring::IoUring;
use parking_lot::Mutex;

use super::{Direction, Flight, Transfer};
use crate::device::raw::Raw;
use crate::device::{AlignedBuf, DevicePart};

/// Entries of a ring, and with it the most parts of what is begun at once.
pub(in crate::device) const PARTS_MAX: usize = 32;

/// Most rings of one device, and with it the most reads ahead and writes behind in flight.
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
                tracing::debug!(%error, "no io_uring for reading ahead and writing behind");
                state.refused = true;
                None
            }
        }
    }

    fn begin(
        self: &Arc<Self>,
        ring: IoUring,
        raw: &Arc<Raw>,
        transfers: Vec<Transfer<'static>>,
    ) -> Begun {
        Begun {
            transfers,
            in_flight: 0,
            ring: Some(ring),
            pool: self.clone(),
            raw: raw.clone(),
        }
    }

    fn give_back(&self, ring: IoUring) {
        self.state.lock().idle.push(ring);
    }
}

/// Transfers in flight on a ring of their own.
///
/// Invariant of its two users: the buffer that the transfers' pointers lead into is dropped after this.
struct Begun {
    transfers: Vec<Transfer<'static>>,
    in_flight: usize,
    /// `None` once the ring was given back.
    ring: Option<IoUring>,
    pool: Arc<Pool>,
    /// Keeps the file open and the counters alive.
    raw: Arc<Raw>,
}

impl Begun {
    fn submit(&mut self) {
        let ring = self.ring.as_mut().expect("what begins has a ring");
        for (index, transfer) in self.transfers.iter().enumerate() {
            if transfer.len == 0 {
                continue;
            }
            // SAFETY: the transfer's pointer leads into a buffer that outlives `self`, and `self` does
            // not end before `reap` has seen every completion.
            let pushed = unsafe { ring.submission().push(&transfer.entry(index)) };
            pushed.expect("a ring has an entry for each part");
            self.in_flight += 1;
        }
        // What this leaves in the queue, `reap` submits.
        if let Err(error) = ring.submit() {
            tracing::debug!(%error, "what was begun is submitted when it is waited for");
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
                let transfer = &mut self.transfers[index];
                // A write that went with its thread never reached the device.
                let cancelled = completion.result() == -libc::ECANCELED
                    && transfer.direction != Direction::Read;
                if cancelled || !transfer.complete(completion.result(), &self.raw.counters) {
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
    fn wait(&mut self) -> io::Result<()> {
        self.reap();
        let transfers = std::mem::take(&mut self.transfers);
        transfers.into_iter().try_for_each(Transfer::into_result)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.reap();
    }
}

/// A read in flight.
pub(in crate::device) struct Ahead {
    // Dropped in this order: the device is done with the buffer before it goes.
    begun: Begun,
    buf: AlignedBuf,
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
        parts: &[DevicePart],
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
        let begun = pool.begin(ring, raw, transfers);
        let mut ahead = Ahead { begun, buf };
        ahead.begun.submit();
        Ok(ahead)
    }

    /// Waits for the device.
    pub(in crate::device) fn wait(mut self) -> (AlignedBuf, io::Result<()>) {
        let result = self.begun.wait();
        (self.buf, result)
    }
}

/// A write in flight. The device reads the buffer, and so may others.
pub(in crate::device) struct Behind {
    // Dropped in this order: the device is done with the buffer before it goes.
    begun: Begun,
    _buf: Arc<AlignedBuf>,
}

// SAFETY: the transfers' pointers lead into `_buf`, which nobody changes while it is shared.
unsafe impl Send for Behind {}

impl Behind {
    /// Begins to write the beginning of `buf` to `parts`, one behind the other.
    ///
    /// `None` where no ring is to be had or there are too many parts.
    ///
    /// # Errors
    /// Where the device is not open for writing.
    pub(in crate::device) fn start(
        pool: &Arc<Pool>,
        raw: &Arc<Raw>,
        parts: &[DevicePart],
        buf: Arc<AlignedBuf>,
    ) -> io::Result<Option<Behind>> {
        if parts.len() > PARTS_MAX {
            return Ok(None);
        }
        let mut rest: &[u8] = &buf;
        let mut transfers = Vec::with_capacity(parts.len());
        for part in parts {
            let (data, after) = rest.split_at(part.len);
            raw.check_write(part.offset, data)?;
            transfers.push(Transfer::write_raw(&raw.file, part.offset, data));
            rest = after;
        }
        let Some(ring) = pool.take() else {
            return Ok(None);
        };
        let begun = pool.begin(ring, raw, transfers);
        let mut behind = Behind { begun, _buf: buf };
        behind.begun.submit();
        Ok(Some(behind))
    }

    /// Waits for the device.
    pub(in crate::device) fn wait(mut self) -> io::Result<()> {
        self.begun.wait()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use crate::device::{AlignedBuf, BlockDevice, DevicePart, OpenMode, open};

    fn device() -> (tempfile::NamedTempFile, std::sync::Arc<dyn BlockDevice>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at >> 12) as u8).collect();
        file.as_file().write_all_at(&bytes, 0).unwrap();
        let device = open(file.path(), OpenMode::ReadOnly).unwrap();
        (file, device)
    }

    const PARTS: [DevicePart; 3] = [
        DevicePart {
            offset: 8192,
            len: 4096,
        },
        DevicePart { offset: 0, len: 0 },
        DevicePart {
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
