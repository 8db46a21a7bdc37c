//! The calling thread's io_uring: transfers are submitted and reaped by the thread that asks.
//!
//! One ring for each thread, made at its first use, shared by all devices and dropped when the
//! thread ends. A call of [`run`] owns the ring until everything it submitted has completed, so
//! every completion belongs to the current call.
//!
//! Invariant: no buffer is given back while the kernel may still touch it. Between the first
//! submission and the last completion there is no way out of [`run`]: a guard waits for what is in
//! flight even if a panic passes by, and where waiting is impossible the process is aborted.
#![expect(
    unsafe_code,
    reason = "the kernel is given pointers to callers' buffers"
)]

use std::cell::RefCell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};

use super::counters::AtomicCounters;

pub(super) mod begun;

/// Entries of the submission queue, and with it the most transfers in flight of one thread.
const ENTRIES: u32 = 256;

/// Largest transfer of one entry: its length is a u32, and the kernel stops short of 2 GiB.
const TRANSFER_MAX: usize = 1 << 30;

thread_local! {
    static RING: RefCell<Slot> = const { RefCell::new(Slot::Untried) };
}

/// This thread's ring.
enum Slot {
    Untried,
    Open(Box<IoUring>),
    /// Setting it up failed with this error; it is not tried again.
    Refused(i32),
}

/// What is to be done to a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Read,
    Write { dsync: bool },
}

/// One read or write of a file, and how far it has come.
#[derive(Debug)]
pub(super) struct Transfer<'a> {
    fd: RawFd,
    direction: Direction,
    ptr: *mut u8,
    len: usize,
    offset: u64,
    /// Bytes transferred.
    done: usize,
    result: io::Result<()>,
    submitted: Option<Instant>,
    /// From submission until the call saw it complete.
    elapsed: Duration,
    buffer: PhantomData<&'a mut [u8]>,
}

impl<'a> Transfer<'a> {
    fn new(
        fd: &impl AsRawFd,
        direction: Direction,
        offset: u64,
        ptr: *mut u8,
        len: usize,
    ) -> Transfer<'a> {
        Transfer {
            fd: fd.as_raw_fd(),
            direction,
            ptr,
            len,
            offset,
            done: 0,
            result: Ok(()),
            submitted: None,
            elapsed: Duration::ZERO,
            buffer: PhantomData,
        }
    }

    pub(super) fn read(fd: &'a impl AsRawFd, offset: u64, buf: &'a mut [u8]) -> Transfer<'a> {
        Transfer::new(fd, Direction::Read, offset, buf.as_mut_ptr(), buf.len())
    }

    /// `dsync` makes the write durable on completion: one FUA write on a block device.
    pub(super) fn write(
        fd: &'a impl AsRawFd,
        offset: u64,
        data: &'a [u8],
        dsync: bool,
    ) -> Transfer<'a> {
        let ptr = data.as_ptr().cast_mut();
        Transfer::new(fd, Direction::Write { dsync }, offset, ptr, data.len())
    }

    /// A read whose buffer nothing but the caller keeps alive until its completion.
    fn read_raw(fd: &impl AsRawFd, offset: u64, buf: &mut [u8]) -> Transfer<'static> {
        Transfer::new(fd, Direction::Read, offset, buf.as_mut_ptr(), buf.len())
    }

    /// A volatile write whose buffer nothing but the caller keeps alive until its completion.
    fn write_raw(fd: &impl AsRawFd, offset: u64, data: &[u8]) -> Transfer<'static> {
        let direction = Direction::Write { dsync: false };
        let ptr = data.as_ptr().cast_mut();
        Transfer::new(fd, direction, offset, ptr, data.len())
    }

    pub(super) fn into_result(self) -> io::Result<()> {
        self.result
    }

    /// Whether it worked, and how long it took.
    pub(super) fn into_outcome(self) -> (io::Result<()>, Duration) {
        (self.result, self.elapsed)
    }

    /// The submission for what is left to do.
    fn entry(&self, index: usize) -> squeue::Entry {
        let fd = types::Fd(self.fd);
        let offset = self.offset + self.done as u64;
        let len = (self.len - self.done).min(TRANSFER_MAX) as u32;
        // SAFETY: `done` never exceeds `len`, so the pointer stays within the buffer.
        let ptr = unsafe { self.ptr.add(self.done) };
        let entry = match self.direction {
            Direction::Read => opcode::Read::new(fd, ptr, len).offset(offset).build(),
            Direction::Write { dsync } => opcode::Write::new(fd, ptr, len)
                .offset(offset)
                .rw_flags(if dsync { libc::RWF_DSYNC } else { 0 })
                .build(),
        };
        entry.user_data(index as u64)
    }

    /// Takes in a completion; true where the transfer has ended.
    fn complete(&mut self, result: i32, counters: &AtomicCounters) -> bool {
        match (result, self.direction) {
            (errno, _) if errno == -libc::EINTR || errno == -libc::EAGAIN => return false,
            (..0, _) => self.result = Err(io::Error::from_raw_os_error(-result)),
            (0, Direction::Read) => self.result = Err(io::ErrorKind::UnexpectedEof.into()),
            (0, Direction::Write { .. }) => self.result = Err(io::ErrorKind::WriteZero.into()),
            (1.., direction) => {
                let bytes = result.unsigned_abs();
                self.done += bytes as usize;
                match direction {
                    Direction::Read => counters.read(bytes.into()),
                    Direction::Write { dsync } => {
                        counters.wrote(bytes.into());
                        if dsync {
                            counters.flushed();
                        }
                    }
                }
                return self.done >= self.len;
            }
        }
        true
    }
}

/// Whether this thread has, or can have, a ring.
pub(super) fn probe() -> io::Result<()> {
    RING.with_borrow_mut(|slot| slot.get().map(drop))
}

/// Performs all transfers with at most `depth` in flight.
///
/// # Errors
/// Where this thread can have no ring; nothing has been done then. Failures of transfers are in
/// their results.
pub(super) fn run(
    transfers: &mut [Transfer<'_>],
    depth: usize,
    counters: &AtomicCounters,
) -> io::Result<()> {
    RING.with_borrow_mut(|slot| {
        let ring = slot.get()?;
        let mut flight = Flight { ring, in_flight: 0 };
        flight.run(transfers, depth.clamp(1, ENTRIES as usize), counters);
        Ok(())
    })
}

impl Slot {
    fn get(&mut self) -> io::Result<&mut IoUring> {
        if let Slot::Untried = self {
            *self = match set_up() {
                Ok(ring) => Slot::Open(Box::new(ring)),
                Err(error) => Slot::Refused(error.raw_os_error().unwrap_or(libc::EIO)),
            };
        }
        match self {
            Slot::Open(ring) => Ok(ring),
            Slot::Refused(errno) => Err(io::Error::from_raw_os_error(*errno)),
            Slot::Untried => unreachable!("set above"),
        }
    }
}

/// Makes a ring with the best mode that the kernel has for one thread that waits for its own I/O.
fn set_up() -> io::Result<IoUring> {
    let refused = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    // Completions are then processed by the waiting thread and interrupt nobody.
    let deferred = IoUring::builder()
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(ENTRIES);
    match deferred {
        Err(error) if refused(&error) => {}
        result => return result,
    }
    let cooperative = IoUring::builder()
        .dontfork()
        .setup_coop_taskrun()
        .build(ENTRIES);
    match cooperative {
        Err(error) if refused(&error) => IoUring::builder().dontfork().build(ENTRIES),
        result => result,
    }
}

/// The ring while transfers are in flight on it.
struct Flight<'a> {
    ring: &'a mut IoUring,
    in_flight: usize,
}

impl Flight<'_> {
    fn run(&mut self, transfers: &mut [Transfer<'_>], depth: usize, counters: &AtomicCounters) {
        // Waiting for one at a time keeps the queue full on a slow device; on a fast one several
        // have arrived by then, and a call of the system takes all of them in.
        let group = (depth / 64).max(1);
        let mut next = 0;
        let mut again: Vec<usize> = Vec::new();
        let mut finished = 0;
        let total = transfers.len();
        while finished < total {
            // One look at the clock for all that are submitted, or reaped, together.
            let mut now = None;
            while self.in_flight < depth {
                let index = match again.pop() {
                    Some(index) => index,
                    None if next < total => {
                        next += 1;
                        next - 1
                    }
                    None => break,
                };
                if transfers[index].len == 0 {
                    finished += 1;
                    continue;
                }
                let submitted = &mut transfers[index].submitted;
                submitted.get_or_insert_with(|| *now.get_or_insert_with(Instant::now));
                self.push(&transfers[index].entry(index));
            }
            if self.in_flight == 0 {
                continue;
            }
            self.enter(group.min(self.in_flight));
            let seen = Instant::now();
            let mut completions = self.ring.completion();
            for completion in &mut completions {
                self.in_flight -= 1;
                let index = completion.user_data() as usize;
                let transfer = &mut transfers[index];
                if transfer.complete(completion.result(), counters) {
                    transfer.elapsed = transfer.submitted.map_or(Duration::ZERO, |at| seen - at);
                    finished += 1;
                } else {
                    again.push(index);
                }
            }
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the buffer is borrowed by its transfer, which outlives this flight, and the
        // flight does not end before the completion.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("no more are in flight than the queue has entries");
        self.in_flight += 1;
    }

    /// Waits for a completion where none has arrived, and submits what is queued.
    fn enter_if_empty(&mut self) {
        let queued = !self.ring.submission().is_empty();
        if queued || self.ring.completion().is_empty() {
            self.enter(1);
        }
    }

    /// Submits what is queued and waits for `want` completions, or fewer if interrupted.
    fn enter(&self, want: usize) {
        match self.ring.submit_and_wait(want) {
            Ok(_) => {}
            // EBUSY asks to reap first, which the caller does next.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) => {}
            Err(error) => {
                // The kernel holds pointers to buffers that nobody can wait for any more.
                tracing::error!(%error, "io_uring cannot be waited for: aborting");
                std::process::abort();
            }
        }
    }
}

impl Drop for Flight<'_> {
    /// Only a panic leaves transfers in flight; their buffers are freed when this returns.
    fn drop(&mut self) {
        while self.in_flight > 0 {
            self.enter(1);
            self.in_flight -= self.ring.completion().count();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn ring_or_skip() -> bool {
        let permitted = probe();
        if let Err(error) = &permitted {
            eprintln!("skipped: no io_uring here: {error}");
        }
        permitted.is_ok()
    }

    #[test]
    fn transfers_beyond_the_queue_complete_and_count() {
        if !ring_or_skip() {
            return;
        }
        let file = tempfile::tempfile().unwrap();
        let counters = AtomicCounters::default();
        let data: Vec<Vec<u8>> = (0..1000u32).map(|i| i.to_le_bytes().repeat(16)).collect();
        let mut writes: Vec<_> = data
            .iter()
            .zip(0..)
            .map(|(data, i)| Transfer::write(&file, i * 64, data, false))
            .collect();
        run(&mut writes, 10_000, &counters).unwrap();
        assert!(writes.into_iter().all(|write| write.into_result().is_ok()));
        let mut back = vec![0; 64_000];
        file.read_exact_at(&mut back, 0).unwrap();
        assert!(back == data.concat());
        let counters = counters.snapshot();
        assert_eq!((counters.write_bytes, counters.write_ios), (64_000, 1000));
    }

    #[test]
    fn a_short_read_is_continued_and_then_fails_at_the_end() {
        if !ring_or_skip() {
            return;
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 100], 0).unwrap();
        let (mut within, mut beyond, mut none) = ([0; 60], [0; 60], [0; 0]);
        let mut reads = [
            Transfer::read(&file, 0, &mut within),
            Transfer::read(&file, 60, &mut beyond),
            Transfer::read(&file, 0, &mut none),
        ];
        run(&mut reads, 2, &AtomicCounters::default()).unwrap();
        let results = reads.map(Transfer::into_result);
        assert!(results[0].is_ok() && results[2].is_ok());
        let error = results[1].as_ref().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(
            (within, beyond[..40].iter().all(|&byte| byte == 7)),
            ([7; 60], true)
        );
    }

    #[test]
    fn a_panic_waits_for_what_is_in_flight() {
        if !ring_or_skip() {
            return;
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 4096], 0).unwrap();
        let mut buf = vec![0; 4096];
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            RING.with_borrow_mut(|slot| {
                let transfer = Transfer::read(&file, 0, &mut buf);
                let ring = slot.get().unwrap();
                let mut flight = Flight { ring, in_flight: 0 };
                flight.push(&transfer.entry(0));
                panic!("between submission and completion");
            });
        }));
        assert!(panicked.is_err());
        assert_eq!(
            buf, [7; 4096],
            "the read completed before the buffer was given back"
        );
        // The ring is in order for the next call.
        let mut reads = [Transfer::read(&file, 0, &mut buf)];
        run(&mut reads, 1, &AtomicCounters::default()).unwrap();
    }
}
