//! An open file, and the handles on it.
//!
//! [`OpenFile`] is the state that all handles on one file share; [`LavaFile`] is one handle.
//! When the last handle goes, buffered bytes are written out, surplus space returns and the size
//! is enqueued for the journal; nothing of that is durable until a later sync of anything.
//!
//! Locks of an open file, in order: `appender` (one append, sync or truncate at a time; held across
//! device I/O), `gate` (readers share it across device I/O, truncate takes it alone, so that no
//! reader sees blocks that have gone to another file), `tail` (the buffer of bytes not on the
//! device yet; shared during device I/O, exclusive only to copy bytes), then the inode's state.

use std::any::Any;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::core::Core;
use crate::error::Result;
use crate::file::appender::Appender;
use crate::file::pipeline::Pipeline;
use crate::file::readahead::Streams;
use crate::file::tail::Tail;
use crate::meta::inode::Inode;
use crate::types::{FileSize, Generation, Ino};
use crate::vfs::{File, TailPolicy};

/// State shared by all handles on one file.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) core: Arc<Core>,
    pub(crate) inode: Arc<Inode>,
    pub(super) appender: Mutex<Appender>,
    pub(super) gate: RwLock<()>,
    pub(super) tail: RwLock<Tail>,
    pub(super) pipeline: Pipeline,
    /// Its sequential readers and what was read ahead for them.
    pub(super) streams: Arc<Streams>,
    pub(super) policy: TailPolicy,
    /// The size is only known between bounds, since a crash.
    pub(super) uncertain: AtomicBool,
    /// Time of the last change of contents, of the appends that no record tells of yet too.
    pub(crate) modified_ns: AtomicI64,
    /// The same for the time of the last change of anything, which nobody can set.
    pub(crate) changed_ns: AtomicI64,
    /// The background thread was asked for the next extent.
    pub(super) ahead_asked: AtomicBool,
}

impl OpenFile {
    pub(crate) fn new(core: Arc<Core>, inode: Arc<Inode>, expected_size: u64) -> Self {
        let (size, policy, journaled, modified_ns, changed_ns) = {
            let state = inode.state.read();
            let journaled = state.journaled_size();
            (
                state.size,
                state.tail,
                journaled,
                state.modified_ns,
                state.changed_ns,
            )
        };
        let uncertain = matches!(journaled, FileSize::Between { .. }) && journaled.lower() == size;
        let last_ticket = core.last_ticket();
        OpenFile {
            streams: Streams::new(&core.readahead),
            core,
            inode,
            appender: Mutex::new(Appender::new(size, expected_size, last_ticket)),
            gate: RwLock::new(()),
            tail: RwLock::new(Tail::empty_at(size)),
            pipeline: Pipeline::default(),
            policy,
            uncertain: AtomicBool::new(uncertain),
            modified_ns: AtomicI64::new(modified_ns),
            changed_ns: AtomicI64::new(changed_ns),
            ahead_asked: AtomicBool::new(false),
        }
    }

    pub(crate) fn ino(&self) -> Ino {
        self.inode.ino
    }

    /// The size is only known between bounds, since a crash.
    pub(super) fn is_uncertain(&self) -> bool {
        self.uncertain.load(Ordering::Acquire)
    }

    /// Notes that the contents changed at `now_ns`.
    pub(super) fn note_change(&self, now_ns: i64) {
        self.modified_ns.store(now_ns, Ordering::Release);
        self.changed_ns.store(now_ns, Ordering::Release);
    }

    /// What is known of the size, buffered bytes included.
    pub(crate) fn size(&self) -> FileSize {
        if self.uncertain.load(Ordering::Acquire) {
            self.inode.state.read().journaled_size()
        } else {
            FileSize::Exact(self.tail.read().end())
        }
    }
}

/// A handle on an open file.
#[derive(Debug)]
pub(crate) struct LavaFile {
    pub(crate) open: Arc<OpenFile>,
}

impl Drop for LavaFile {
    fn drop(&mut self) {
        self.open.core.clone().close_handle(&self.open);
    }
}

impl File for LavaFile {
    fn append_vectored(&self, parts: &[IoSlice<'_>]) -> Result<u64> {
        self.open.append(parts)
    }

    fn append_durable(&self, parts: &[IoSlice<'_>]) -> Result<u64> {
        self.open.append_durable(parts)
    }

    fn fdatasync(&self) -> Result<()> {
        self.open.fdatasync()
    }

    fn fsync(&self) -> Result<()> {
        self.open.fsync()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.open.read(offset, buf, false)
    }

    fn read_unverified(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.open.read(offset, buf, true)
    }

    fn size(&self) -> FileSize {
        self.open.size()
    }

    fn settle(&self, size: u64) -> Result<()> {
        self.open.settle(size)
    }

    fn truncate(&self, size: u64) -> Result<()> {
        self.open.truncate(size)
    }

    fn generation(&self) -> Generation {
        Generation(self.open.inode.state.read().generation)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
