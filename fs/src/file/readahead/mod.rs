//! Reading ahead of sequential readers: the device works while the caller copies.
//!
//! There is no page cache below LavaFS, so a reader that asks for a few KiB at a time would wait for
//! the device each time. A file's open state remembers where its last reads ended ([`streams`]); a
//! read that goes on where an earlier one ended, twice in a row (once at the file's beginning), makes
//! a *stream*. A stream has up to two *windows* behind the reader's place: the one that is being
//! copied from and the next one, which the device fills meanwhile. Each further window is twice as
//! long, from 64 KiB to the mount's option `readahead`.
//!
//! Invariants:
//! - a window holds only bytes that were on the device when it was begun and cannot change as long as
//!   the file is not cut: below the tail buffer and below what is in flight to the device;
//! - windows are made and used by readers, who share the file's gate. Whoever takes the gate alone
//!   (truncation, settling, a moved view) drops all windows, so that no later read sees older
//!   bytes. Windows belong to an open file, never to a place on the device: an extent's next owner
//!   begins without;
//! - a failed read ahead is forgotten; the read that needs the bytes asks the device again and gets
//!   its own error;
//! - a reader whose places are random costs no device read: without a stream nothing is begun;
//! - memory is bounded: two windows a stream, four streams a file, and [`budget`] for the whole
//!   mount.
//!
//! What it does not do: share windows between streams (a second reader of the same place at the same
//! time reads from the device), read backwards ahead, or serve `read_batch`.

mod budget;
mod streams;
mod window;

pub(crate) use budget::Budget;
pub(crate) use streams::Streams;

use crate::device::DevicePart;
use crate::error::Result;
use crate::file::handle::OpenFile;
use crate::types::align_down;
use window::Stream;

/// Most runs that one window lies in.
const PARTS_MAX: usize = 32;

impl OpenFile {
    /// Fills `buf` with bytes at `offset` that are on the device, out of what was read ahead as far as
    /// possible. `len` is how long the read was that the caller asked for. The caller shares the gate.
    pub(super) fn read_stream(
        &self,
        offset: u64,
        buf: &mut [u8],
        len: usize,
        unverified: bool,
    ) -> Result<()> {
        let budget = &self.core.readahead;
        // Beyond a size's lower bound the owner of a device changes what a view of it sees.
        let moving = unverified && self.core.view.is_some();
        if moving || buf.len() as u64 > budget.window_max() / 2 {
            return self.read_device_locked(offset, buf);
        }
        let Some(mut stream) = self.streams.take(offset, len as u64) else {
            return self.read_device_locked(offset, buf);
        };
        stream.forget_before(offset);
        self.begin_window(&mut stream, offset + buf.len() as u64, unverified);
        let copied = stream.copy(offset, buf);
        let outcome = match &mut buf[copied..] {
            [] => Ok(()),
            rest => self.read_device_locked(offset + copied as u64, rest),
        };
        if outcome.is_ok() {
            self.streams.put_back(stream, budget);
        }
        outcome
    }

    /// Begins the window behind those that the stream has, or behind `end` where it has none.
    fn begin_window(&self, stream: &mut Stream, end: u64, unverified: bool) {
        let Some(behind) = stream.next_window(end) else {
            return;
        };
        let unit = self.core.disk.unit();
        let limit = self.unchanging_end(unverified);
        let start = align_down(behind, unit);
        if behind >= limit {
            return;
        }
        let budget = &self.core.readahead;
        let Some(mut buffer) = stream.buffer(budget, limit - start) else {
            return;
        };
        let mut parts = Vec::with_capacity(1);
        let wanted = buffer.len().min(limit - start);
        let whole = self.runs(start, wanted.next_multiple_of(unit), |offset, len| {
            parts.push(DevicePart {
                offset,
                len: len as usize,
            });
        });
        // The read that comes here will say what is wrong with the extents.
        if whole.is_err() {
            return;
        }
        parts.truncate(PARTS_MAX);
        let len: u64 = parts.iter().map(|part| part.len as u64).sum();
        let pending = self.core.disk.device().read_ahead(&parts, buffer.take());
        stream.add(start, (start + len).min(limit), pending, buffer);
    }

    /// The file offset below which all bytes are on the device and stay as they are while the gate is
    /// shared.
    fn unchanging_end(&self, unverified: bool) -> u64 {
        if unverified && self.is_uncertain() {
            // Nothing can be appended before the size is settled, which needs the gate alone.
            return self.inode.state.read().allocated();
        }
        // In this order: an append enters the pipeline before the tail moves on.
        let start = self.tail.read().start;
        start.min(self.pipeline.first().unwrap_or(start))
    }
}
