//! A stream: one sequential reader's place and what was read ahead of it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::budget::{Budget, Loan, WINDOW_MIN};
use crate::device::{AlignedBuf, PendingRead};

/// Windows of one stream.
const WINDOWS_MAX: usize = 2;

/// Bytes that a reader may step over, or back, and still be sequential.
const SKIP_MAX: u64 = 64 << 10;

/// A buffer and the memory it counts for.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: AlignedBuf,
    loan: Loan,
}

impl Buffer {
    pub(super) fn len(&self) -> u64 {
        self.loan.bytes()
    }

    /// The memory, to be given to the device.
    pub(super) fn take(&mut self) -> AlignedBuf {
        std::mem::replace(&mut self.bytes, AlignedBuf::zeroed(0))
    }
}

/// Bytes `start..end` of the file, read or being read.
#[derive(Debug)]
struct Window {
    start: u64,
    end: u64,
    pending: Option<PendingRead>,
    buffer: Buffer,
}

/// One sequential reader.
#[derive(Debug)]
pub(super) struct Stream {
    /// Where its next read is expected.
    pub(super) next: u64,
    /// When it was used last, by the file's count of reads.
    pub(super) used_at: u64,
    /// It was used since the budget last looked at it.
    pub(super) used: bool,
    window_len: u64,
    window_max: u64,
    /// In the file's order, each behind the other.
    windows: VecDeque<Window>,
    spare: Option<Buffer>,
}

impl Stream {
    /// A stream whose reader asks for `len` bytes at a time.
    pub(super) fn new(len: u64, window_max: u64) -> Stream {
        let window_len = (4 * len).next_power_of_two().max(WINDOW_MIN);
        Stream {
            next: 0,
            used_at: 0,
            used: true,
            window_len: window_len.min(window_max),
            window_max,
            windows: VecDeque::with_capacity(WINDOWS_MAX),
            spare: None,
        }
    }

    /// True for a read at `offset` that is this reader's: where the last one ended, or a little beside
    /// it and within what was read ahead.
    pub(super) fn continues_at(&self, offset: u64) -> bool {
        let is_near = || offset.abs_diff(self.next) <= SKIP_MAX;
        offset == self.next || is_near() && self.covers(offset)
    }

    fn covers(&self, offset: u64) -> bool {
        self.windows
            .iter()
            .any(|window| (window.start..window.end).contains(&offset))
    }

    pub(super) fn holds_memory(&self) -> bool {
        !self.windows.is_empty() || self.spare.is_some()
    }

    /// Gives all memory back, and waits for the device where it still fills some.
    pub(super) fn give_up(&mut self) {
        self.windows.clear();
        self.spare = None;
    }

    /// Drops the windows that the reader at `offset` has passed, or is not in any more.
    pub(super) fn forget_before(&mut self, offset: u64) {
        while let Some(first) = self.windows.front()
            && !(first.start..first.end).contains(&offset)
        {
            self.pop();
        }
    }

    /// Where the next window should begin, for a read that ends at `end`; `None` while there are enough.
    pub(super) fn next_window(&self, end: u64) -> Option<u64> {
        (self.windows.len() < WINDOWS_MAX)
            .then(|| self.windows.back().map_or(end, |window| window.end))
    }

    /// A buffer for the next window, at most about `useful` bytes long; doubles the one after it.
    pub(super) fn buffer(&mut self, budget: &Arc<Budget>, useful: u64) -> Option<Buffer> {
        let wanted = self
            .window_len
            .min(useful.next_multiple_of(WINDOW_MIN))
            .min(self.window_max);
        self.window_len = (2 * self.window_len).min(self.window_max);
        match self.spare.take() {
            Some(spare) if spare.len() >= wanted => return Some(spare),
            smaller => drop(smaller),
        }
        let loan = budget.lend(wanted)?;
        Some(Buffer {
            bytes: AlignedBuf::zeroed(loan.bytes() as usize),
            loan,
        })
    }

    /// Adds a window behind the others.
    pub(super) fn add(&mut self, start: u64, end: u64, pending: PendingRead, buffer: Buffer) {
        debug_assert!(self.windows.back().is_none_or(|last| last.end >= start));
        self.windows.push_back(Window {
            start,
            end,
            pending: Some(pending),
            buffer,
        });
    }

    /// Copies what the windows hold of `buf` at `offset`, waiting for the device where it must, and
    /// returns how many bytes that was. After a failure the stream begins anew.
    pub(super) fn copy(&mut self, offset: u64, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let Some(window) = self.windows.front_mut() else {
                break;
            };
            if !(window.start..window.end).contains(&at) {
                break;
            }
            if !window.arrive() {
                self.give_up();
                self.window_len = WINDOW_MIN.min(self.window_max);
                break;
            }
            let skip = (at - window.start) as usize;
            let len = ((window.end - at) as usize).min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&window.buffer.bytes[skip..skip + len]);
            done += len;
            if at + len as u64 == window.end {
                self.pop();
            }
        }
        done
    }

    /// Drops the first window and keeps its buffer for the next one.
    fn pop(&mut self) {
        if let Some(mut window) = self.windows.pop_front() {
            window.arrive();
            self.spare = Some(window.buffer);
        }
    }
}

impl Window {
    /// Waits for the device; false where the read failed.
    fn arrive(&mut self) -> bool {
        let Some(pending) = self.pending.take() else {
            return true;
        };
        let (bytes, outcome) = pending.wait();
        self.buffer.bytes = bytes;
        outcome.is_ok()
    }
}
