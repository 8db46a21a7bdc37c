//! Where a file ends: settling an uncertain size, truncation, and what the last close leaves.
//!
//! All three enqueue their operations with the inode's state locked, so that the journal has them
//! in the order in which they took effect.

use std::sync::atomic::Ordering;

use crate::device::Durability;
use crate::error::{Error, Result};
use crate::file::appender::Appender;
use crate::file::handle::OpenFile;
use crate::file::sync::Cover;
use crate::file::tail::Tail;
use crate::format::op::Op;
use crate::meta::journal::DataState;
use crate::types::{BLOCK_SIZE, FileSize};

impl OpenFile {
    /// See [`crate::File::settle`].
    pub(super) fn settle(&self, size: u64) -> Result<()> {
        let mut appender = self.lock_appender()?;
        self.core.disk.check_writable()?;
        let known = self.size();
        match known {
            FileSize::Exact(present) if size == present => return Ok(()),
            FileSize::Exact(present) if size < present => {
                self.write_out(&mut appender, Durability::Volatile)?;
                let _gate = self.keep_readers_out();
                self.cut(&mut appender, size, None);
                return self.core.commit(appender.created_ticket);
            }
            FileSize::Between { lower, upper } if (lower..=upper).contains(&size) => {}
            _ => {
                let what = format!("cannot settle a size of {known:?} at {size}");
                return Err(Error::Invalid { what });
            }
        }
        let gate = self.keep_readers_out();
        *self.tail.write() = Tail::empty_at(size);
        self.unreserve(&mut appender);
        *appender = Appender::new(size, 0, appender.created_ticket);
        appender.dirty = true;
        self.note_change(self.core.now_ns());
        let ticket = self.enqueue_size(&mut appender, size, Cover::Checksum);
        self.uncertain.store(false, Ordering::Release);
        drop(gate);
        self.core.commit(ticket)
    }

    /// See [`crate::File::truncate`].
    pub(super) fn truncate(&self, size: u64) -> Result<()> {
        let mut appender = self.lock_appender()?;
        self.core.disk.check_writable()?;
        let present = self.size().lower();
        if size > present {
            let what = format!("cannot extend a file of {present} bytes to {size} by truncation");
            return Err(Error::Invalid { what });
        }
        if size == present && !self.uncertain.load(Ordering::Acquire) {
            return Ok(());
        }
        self.core.journal()?.drain()?;
        let generation = self.core.new_id()?;
        if size > self.tail.read().start {
            self.write_out(&mut appender, Durability::Volatile)?;
        }
        let _gate = self.keep_readers_out();
        self.cut(&mut appender, size, Some(generation));
        self.uncertain.store(false, Ordering::Release);
        Ok(())
    }

    /// Cuts the file to `size` in memory and enqueues it.
    fn cut(&self, appender: &mut Appender, size: u64, generation: Option<u64>) {
        let now_ns = self.core.now_ns();
        self.note_change(now_ns);
        let mut ops = Vec::new();
        let mut freed = Vec::new();
        let mut state = self.inode.state.write();
        if let Some(generation) = generation {
            state.generation = generation;
            Op::SetInode(state.record(self.inode.ino)).encode(&mut ops);
        }
        let (count, last_blocks) = state.extents.prefix(size.div_ceil(BLOCK_SIZE));
        let keep = Op::KeepExtents {
            ino: self.inode.ino,
            count: count as u64,
            last_blocks,
        };
        let set_size = Op::SetSize {
            ino: self.inode.ino,
            exact: true,
            size,
            modified_ns: now_ns,
            check_from: size,
            check_crc: 0,
        };
        for op in [keep, set_size] {
            state.apply(&op, &mut freed);
            op.encode(&mut ops);
        }
        state.size = size;
        state.changed_ns = now_ns;
        let ticket = self
            .core
            .enqueue_encoded(&ops, DataState::FlushBefore(appender.last_write));
        drop(state);
        self.core.quarantine(freed, ticket);
        let mut tail = self.tail.write();
        *tail = Tail::empty_at(size);
        self.unreserve(appender);
        appender.synced_end = size;
        appender.extent_tickets.clear();
        appender.created_ticket = ticket;
        appender.cut_ticket = ticket;
        appender.dirty = false;
        appender.restart_check(size);
    }

    /// Writes buffered bytes out, gives surplus space back and enqueues the size.
    pub(crate) fn write_back(&self) -> Result<()> {
        let (mut appender, finished) = self.lock_and_finish();
        if self.uncertain.load(Ordering::Acquire) {
            return finished;
        }
        appender.closed = true;
        let written = finished.and_then(|()| self.write_back_tail(&mut appender));
        self.unreserve(&mut appender);
        written
    }

    fn write_back_tail(&self, appender: &mut Appender) -> Result<()> {
        self.core.journal()?.drain()?;
        self.write_out(appender, Durability::Volatile)?;
        let size = self.tail.read().end();
        let inexact = {
            let state = self.inode.state.read();
            !(state.exact && state.durable_size == size)
        };
        if appender.dirty || inexact {
            self.enqueue_size(appender, size, Cover::Flush);
        }
        self.trim(size);
        let mut tail = self.tail.write();
        *tail = Tail::empty_at(tail.end());
        appender.synced_end = size;
        Ok(())
    }

    /// Waits for what the device is still writing.
    pub(crate) fn await_writes(&self) {
        let _lost = self.lock_and_finish();
    }

    /// Forgets buffered bytes of a file that is about to be removed, of which nothing is being written any more: the
    /// blocks go to other files next.
    pub(crate) fn discard_tail(&self) {
        let (mut appender, _lost) = self.lock_and_finish();
        appender.closed = true;
        self.unreserve(&mut appender);
    }

    /// Gives back the extents beyond `size`.
    fn trim(&self, size: u64) {
        let blocks = size.div_ceil(BLOCK_SIZE);
        let mut state = self.inode.state.write();
        if state.extents.blocks() <= blocks {
            return;
        }
        let (count, last_blocks) = state.extents.prefix(blocks);
        let op = Op::KeepExtents {
            ino: self.inode.ino,
            count: count as u64,
            last_blocks,
        };
        let mut freed = Vec::new();
        state.apply(&op, &mut freed);
        let ticket = self.core.enqueue_unchecked(&op);
        drop(state);
        self.core.quarantine(freed, ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use crate::device::{AlignedBuf, SimDevice};
    use crate::file::LavaFile;
    use crate::{CreateOptions, FileSystem, LavaFs, MkfsOptions, MountOptions, mkfs};

    /// The last close of a removed file waited for the device while it held the table of open files.
    #[test]
    fn a_removed_file_that_is_still_being_written_holds_nobody_up() {
        let device = Arc::new(SimDevice::new(8 << 20, 512));
        mkfs(&*device, &MkfsOptions::default()).unwrap();
        let fs = LavaFs::mount(device, &MountOptions::default()).unwrap();
        let create = |path| fs.create(Path::new(path), &CreateOptions::default());
        let file = create("/removed").unwrap();
        let open = file
            .as_any()
            .downcast_ref::<LavaFile>()
            .unwrap()
            .open
            .clone();
        fs.unlink(Path::new("/removed")).unwrap();
        open.pipeline.push(0, Arc::new(AlignedBuf::zeroed(0)));
        let (sender, created) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || drop(file));
            std::thread::sleep(Duration::from_millis(100));
            scope.spawn(move || sender.send(create("/other").map(drop)));
            let created = created.recv_timeout(Duration::from_secs(120));
            open.pipeline.finish(0, false, |_| {});
            created.expect("nobody waits").unwrap();
        });
        assert!(fs.core.opened(open.ino()).is_none());
        fs.unmount().unwrap();
    }
}
