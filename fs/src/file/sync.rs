//! Syncing: what makes appended bytes and the size durable. What each call costs is told at the
//! head of `appender.rs`.

use std::sync::atomic::Ordering;

use crate::device::Durability;
use crate::error::Result;
use crate::file::appender::Appender;
use crate::file::handle::OpenFile;
use crate::format::op::{CHECKED_LEN_MAX, Op};
use crate::meta::journal::DataState;

/// How a size record is kept from being believed without its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cover {
    /// By a checksum of the data, if it is short: for a sync, which then needs one flush.
    Checksum,
    /// By a flush before the record: for a close, whose record may be written much later.
    Flush,
}

impl OpenFile {
    /// See [`crate::File::fdatasync`].
    pub(super) fn fdatasync(&self) -> Result<()> {
        let mut appender = self.lock_appender()?;
        self.core.disk.check_writable()?;
        self.pad_if_sealed(&mut appender)?;
        let flushed = self.core.disk.is_flushed(appender.last_write);
        let durability = if flushed {
            Durability::Durable
        } else {
            Durability::Volatile
        };
        self.write_out(&mut appender, durability)?;
        self.core.disk.flush_through(appender.last_write)?;
        let size = self.tail.read().end();
        let ticket = self.note_inexact(size).max(appender.ticket_for(size));
        self.core.commit(ticket)?;
        appender
            .extent_tickets
            .retain(|&(_, ticket)| ticket > self.core.durable_ticket());
        appender.restart_check(size);
        let mut state = self.inode.state.write();
        state.size = size;
        state.durable_size = state.durable_size.max(size);
        drop(state);
        self.ask_for_extent(size);
        Ok(())
    }

    /// Where the journal says that the file is exactly as long as before the last appends, enqueues
    /// that it may be longer; after a crash the bytes synced since would not be looked for.
    pub(super) fn note_inexact(&self, size: u64) -> u64 {
        let needed = |exact: bool, durable: u64| exact && durable < size;
        {
            let state = self.inode.state.read();
            if !needed(state.exact, state.durable_size) {
                return 0;
            }
        }
        let mut state = self.inode.state.write();
        state.exact = false;
        let op = Op::SetSize {
            ino: self.inode.ino,
            exact: false,
            size: state.durable_size,
            modified_ns: state.modified_ns,
            check_from: state.durable_size,
            check_crc: 0,
        };
        self.core.enqueue_unchecked(&op)
    }

    /// See [`crate::File::fsync`].
    pub(super) fn fsync(&self) -> Result<()> {
        let mut appender = self.lock_appender()?;
        self.core.disk.check_writable()?;
        if self.uncertain.load(Ordering::Acquire) {
            self.core.commit_all()?;
            return self.core.disk.flush_through(appender.last_write);
        }
        self.pad_if_sealed(&mut appender)?;
        self.write_out(&mut appender, Durability::Volatile)?;
        let size = self.tail.read().end();
        let ticket = self.enqueue_size(&mut appender, size, Cover::Checksum);
        self.core.commit(ticket)?;
        appender
            .extent_tickets
            .retain(|&(_, ticket)| ticket > self.core.durable_ticket());
        self.ask_for_extent(size);
        Ok(())
    }

    /// Enqueues that the file is exactly `size` long, all bytes of it being on the device. Returns
    /// the ticket of that, or of all that is queued where the journal knows the size already.
    pub(super) fn enqueue_size(&self, appender: &mut Appender, size: u64, cover: Cover) -> u64 {
        let mut state = self.inode.state.write();
        state.size = size;
        if state.exact && state.durable_size == size && !appender.dirty {
            return self.core.last_ticket();
        }
        if appender.dirty {
            state.modified_ns = self.modified_ns.load(Ordering::Acquire);
            state.changed_ns = state
                .changed_ns
                .max(self.changed_ns.load(Ordering::Acquire));
        }
        let unflushed = !self.core.disk.is_flushed(appender.last_write);
        let checked =
            unflushed && cover == Cover::Checksum && size - appender.check_from <= CHECKED_LEN_MAX;
        let op = Op::SetSize {
            ino: self.inode.ino,
            exact: true,
            size,
            modified_ns: state.modified_ns,
            check_from: if checked { appender.check_from } else { size },
            check_crc: if checked { appender.check_crc } else { 0 },
        };
        let data = match (unflushed, checked) {
            (false, _) => DataState::Durable,
            (true, true) => DataState::Checked,
            (true, false) => DataState::FlushBefore(appender.last_write),
        };
        state.exact = true;
        state.durable_size = size;
        appender.dirty = false;
        appender.restart_check(size);
        appender.created_ticket = self.core.enqueue(&op, data);
        appender.created_ticket
    }
}
