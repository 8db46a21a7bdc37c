//! What all parts of a mounted filesystem share: device, tables, allocator, journal, open files.
//!
//! Lock order: the discard in flight (held across it), `open` (which files are open), `tables`, an
//! inode's state (several at once only with the tables locked alone), then one of the leaves
//! `alloc` and the journal's queue. Only the first is held
//! across device I/O (and what a refresh of a read-only mount says, `view.rs`). A commit is called
//! with none of them held.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};

use crate::alloc::{Allocator, Run};
use crate::background::{Background, Work};
use crate::discard::Discards;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::file::{LavaFile, OpenFile, ReadaheadBudget, WriteBehindBudget};
use crate::format::op::Op;
use crate::format::superblock::{COMPAT_DISCARD, Superblock};
use crate::meta::inode::Inode;
use crate::meta::journal::{DataState, Journal};
use crate::meta::tables::Tables;
use crate::types::{BLOCK_SIZE, Ino};
use crate::vfs::Space;
use crate::view::View;

/// Encoded length that no extent operation exceeds.
pub(crate) const EXTENT_OP_LEN_MAX: u64 = 48;

/// The shared state of a mounted filesystem.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) disk: Arc<Disk>,
    pub(crate) superblock: RwLock<Superblock>,
    pub(crate) tables: Arc<RwLock<Tables>>,
    pub(crate) alloc: Mutex<Allocator>,
    pub(crate) open: Mutex<HashMap<Ino, Opened>>,
    pub(crate) locks: Arc<Mutex<HashSet<Ino>>>,
    /// `None` where the filesystem is mounted read-only.
    pub(crate) journal: Option<Journal>,
    pub(crate) background: Mutex<Option<Background>>,
    pub(crate) discards: Discards,
    pub(crate) readahead: Arc<ReadaheadBudget>,
    pub(crate) write_behind: WriteBehindBudget,
    /// How far a read-only mount has followed the journal; `None` where it is mounted for writing.
    pub(crate) view: Option<View>,
}

/// A file that has handles, or had and is still being written out.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: Arc<OpenFile>,
    handles: usize,
    /// Closes under way. The file stays open for all of them: were it opened anew beside one, that
    /// one would journal a size of long ago.
    closing: usize,
}

impl Core {
    /// The journal, for changing the filesystem.
    pub(crate) fn journal(&self) -> Result<&Journal> {
        self.disk.check_writable()?;
        self.journal.as_ref().ok_or_else(|| Error::ReadOnly {
            reason: "it is mounted so".into(),
        })
    }

    /// The time, nanoseconds since 1970 UTC.
    pub(crate) fn now_ns(&self) -> i64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    pub(crate) fn new_id(&self) -> Result<u64> {
        self.journal()?.new_id()
    }

    /// Enqueues an operation that was applied just now, under the lock that is still held.
    pub(crate) fn enqueue(&self, op: &Op<'_>, data: DataState) -> u64 {
        let mut ops = Vec::with_capacity(64);
        op.encode(&mut ops);
        self.enqueue_encoded(&ops, data)
    }

    /// Like [`Core::enqueue`] for an operation that depends on no data.
    pub(crate) fn enqueue_unchecked(&self, op: &Op<'_>) -> u64 {
        self.enqueue(op, DataState::Durable)
    }

    pub(crate) fn enqueue_encoded(&self, ops: &[u8], data: DataState) -> u64 {
        let journal = self
            .journal
            .as_ref()
            .expect("only a writable filesystem is changed");
        journal.enqueue(ops, data)
    }

    /// The ticket of the last operation enqueued; 0 where the filesystem is read-only.
    pub(crate) fn last_ticket(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::last_ticket)
    }

    pub(crate) fn durable_ticket(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::durable_ticket)
    }

    /// Makes the operations up to `ticket` durable, and lets go of the space that they freed.
    pub(crate) fn commit(&self, ticket: u64) -> Result<()> {
        let journal = self.journal()?;
        if journal.durable_ticket() >= ticket {
            return Ok(());
        }
        let half_full = journal.commit(ticket)?;
        self.release_quarantine()?;
        if half_full
            && !self.ask(Work::Checkpoint)
            && let Err(error) = self.checkpoint()
        {
            tracing::warn!(%error, "a checkpoint failed, behind a commit that did not");
        }
        Ok(())
    }

    /// Makes everything enqueued so far durable.
    pub(crate) fn commit_all(&self) -> Result<()> {
        self.commit(self.last_ticket())
    }

    pub(crate) fn checkpoint(&self) -> Result<()> {
        self.journal()?.checkpoint()?;
        self.release_quarantine()
    }

    /// Makes a checkpoint where the record area is half full.
    pub(crate) fn checkpoint_if_due(&self) -> Result<()> {
        if self.journal()?.is_due() {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Asks the background thread; false where there is none.
    pub(crate) fn ask(&self, work: Work) -> bool {
        let background = self.background.lock();
        if let Some(thread) = &*background {
            thread.ask(work);
        }
        background.is_some()
    }

    // Space.

    pub(crate) fn space(&self) -> Space {
        let alloc = self.alloc.lock();
        Space {
            total: alloc.total_blocks() * BLOCK_SIZE,
            free: (alloc.free_blocks() + alloc.quarantined_blocks() + alloc.discarding_blocks())
                * BLOCK_SIZE,
        }
    }

    fn reserve(&self, blocks: u64) -> bool {
        self.alloc.lock().reserve(blocks)
    }

    /// Reserves, after a commit that frees what is in quarantine if it takes that.
    pub(crate) fn reserve_or_reclaim(&self, blocks: u64) -> Result<()> {
        if self.reserve(blocks) {
            return Ok(());
        }
        self.commit_all()?;
        self.release_quarantine()?;
        let _no_discard = self.discards.hold();
        if self.reserve(blocks) {
            Ok(())
        } else {
            Err(self.no_space(blocks))
        }
    }

    pub(crate) fn unreserve(&self, blocks: u64) {
        if blocks > 0 {
            self.alloc.lock().unreserve(blocks);
        }
    }

    fn no_space(&self, blocks: u64) -> Error {
        let free = self.alloc.lock().free_blocks() * BLOCK_SIZE;
        Error::NoSpace {
            needed: blocks * BLOCK_SIZE,
            free,
        }
    }

    /// Keeps freed runs back until the operation with `ticket` is durable.
    pub(crate) fn quarantine(&self, freed: Vec<Run>, ticket: u64) {
        let mut alloc = self.alloc.lock();
        for run in freed {
            alloc.quarantine(run, ticket);
        }
    }

    /// Frees what waited for operations that are durable now.
    pub(crate) fn release_quarantine(&self) -> Result<()> {
        let runs = self.alloc.lock().leave_quarantine(self.durable_ticket());
        if runs.is_empty() {
            return Ok(());
        }
        if self.superblock.read().compat & COMPAT_DISCARD != 0 {
            self.discards.add(&runs);
            if !self.discards.has_thread() {
                self.discard_all(Duration::MAX);
            }
        }
        Ok(())
    }

    /// Gives a file a further extent of up to `wanted` blocks, at least one. The first `missing`
    /// of them may come out of the caller's reservation `reserved`, which has the journal's promise
    /// too; the rest only from what nobody has reserved. Returns the journal ticket.
    pub(crate) fn allocate(
        &self,
        inode: &Inode,
        missing: u64,
        wanted: u64,
        last: Option<Run>,
        reserved: &mut u64,
    ) -> Result<u64> {
        if *reserved > 0 {
            self.journal()?.admit_promised(EXTENT_OP_LEN_MAX)?;
        } else {
            self.admit_extent()?;
        }
        let after = last.map(|run| run.start + run.blocks);
        let mut no_discard = None;
        loop {
            {
                let mut alloc = self.alloc.lock();
                let own = (*reserved).min(missing);
                let possible = wanted.min(own + alloc.free_blocks());
                if possible > 0 {
                    let run = alloc.allocate(possible, after).expect("so much is free");
                    let used = own.min(run.blocks);
                    alloc.unreserve(used);
                    *reserved -= used;
                    drop(alloc);
                    return Ok(self.add_extent(inode, run));
                }
            }
            if no_discard.is_some() {
                return Err(self.no_space(missing));
            }
            self.commit_all()?;
            self.release_quarantine()?;
            no_discard = Some(self.discards.hold());
        }
    }

    /// Gives a file a further extent of up to `wanted` blocks if there is space that nobody has
    /// reserved.
    pub(crate) fn allocate_ahead(
        &self,
        inode: &Inode,
        wanted: u64,
        last: Option<Run>,
    ) -> Option<u64> {
        let after = last.map(|run| run.start + run.blocks);
        let run = self.alloc.lock().allocate_ahead(wanted, after)?;
        Some(self.add_extent(inode, run))
    }

    /// Refuses where the journal could not hold another extent.
    pub(crate) fn admit_extent(&self) -> Result<()> {
        self.journal()?.admit(EXTENT_OP_LEN_MAX)
    }

    /// Adds `run` to the file's extents, growing the last one if it follows it.
    fn add_extent(&self, inode: &Inode, run: Run) -> u64 {
        let mut state = inode.state.write();
        let count = state.extents.len() as u64;
        let (index, run) = match state.extents.last() {
            Some(last) if last.start + last.blocks == run.start => (
                count - 1,
                Run {
                    start: last.start,
                    blocks: last.blocks + run.blocks,
                },
            ),
            _ => (count, run),
        };
        let op = Op::SetExtent {
            ino: inode.ino,
            index,
            start: run.start,
            blocks: run.blocks,
        };
        state.apply(&op, &mut Vec::new());
        self.enqueue_unchecked(&op)
    }

    // Open files.

    /// The state of the file `ino`, if it has handles.
    pub(crate) fn opened(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.open.lock().get(&ino).map(|opened| opened.file.clone())
    }

    /// A further handle on `inode`. The caller has looked it up under `open`, so that it was not
    /// removed meanwhile.
    pub(crate) fn open_handle(
        self: &Arc<Self>,
        open: &mut HashMap<Ino, Opened>,
        inode: &Arc<Inode>,
        expected_size: u64,
    ) -> LavaFile {
        let opened = open.entry(inode.ino).or_insert_with(|| Opened {
            file: Arc::new(OpenFile::new(self.clone(), inode.clone(), expected_size)),
            handles: 0,
            closing: 0,
        });
        opened.handles += 1;
        LavaFile {
            open: opened.file.clone(),
        }
    }

    /// Called by a handle that goes. With the last one the file's tail is written out, and a file
    /// without names is removed.
    pub(crate) fn close_handle(&self, file: &Arc<OpenFile>) {
        const STAYS: &str = "a file stays open until its handles and closes have ended";
        {
            let mut open = self.open.lock();
            let opened = open.get_mut(&file.ino()).expect(STAYS);
            opened.handles -= 1;
            if opened.handles > 0 {
                return;
            }
            opened.closing += 1;
        }
        let removed = file.inode.state.read().links == 0;
        if removed {
            // Not below, where it would hold up all who create, open or remove.
            file.await_writes();
        } else if self.journal().is_ok()
            && let Err(error) = file.write_back()
        {
            tracing::error!(%error, ino = file.ino().0, "what was appended could not be written out at close");
        }
        let mut open = self.open.lock();
        let opened = open.get_mut(&file.ino()).expect(STAYS);
        opened.closing -= 1;
        if opened.handles > 0 || opened.closing > 0 {
            return;
        }
        open.remove(&file.ino());
        if self.journal().is_ok() && file.inode.state.read().links == 0 {
            file.discard_tail();
            self.remove_inode(file.ino());
        }
    }

    /// Removes an inode that has neither names nor handles.
    pub(crate) fn remove_inode(&self, ino: Ino) {
        let mut freed = Vec::new();
        let mut tables = self.tables.write();
        let op = Op::RemoveInode { ino };
        tables.apply(&op, &mut freed);
        let ticket = self.enqueue_unchecked(&op);
        drop(tables);
        self.quarantine(freed, ticket);
    }
}
