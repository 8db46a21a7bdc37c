//! Space for a file that grows: reservations for buffered bytes, extents for written ones, and the
//! next extent before it is needed.

use std::sync::atomic::Ordering;

use crate::alloc::Run;
use crate::background::Work;
use crate::core::EXTENT_OP_LEN_MAX;
use crate::error::Result;
use crate::file::appender::Appender;
use crate::file::handle::OpenFile;
use crate::types::BLOCK_SIZE;

/// Extents grow by doubling between these bounds, in blocks: 1 MiB to 64 MiB.
const GROWTH_BLOCKS_MIN: u64 = 256;
const GROWTH_BLOCKS_MAX: u64 = 16384;

/// First extent in blocks of a file that is synced while it is small: 64 KiB.
const GROWTH_BLOCKS_FIRST: u64 = 16;

impl OpenFile {
    /// Sets space aside for a file of `end` bytes: what it needs and no more. Many open files with some
    /// blocks each in store would keep a small device's last space from those who append.
    pub(super) fn reserve(&self, appender: &mut Appender, end: u64) -> Result<()> {
        let allocated = self.inode.state.read().extents.blocks();
        let covered = allocated + appender.reserved_blocks;
        let needed = end.div_ceil(BLOCK_SIZE).saturating_sub(covered);
        if needed == 0 {
            return Ok(());
        }
        self.reserve_journal(appender)?;
        self.core.reserve_or_reclaim(needed)?;
        appender.reserved_blocks += needed;
        Ok(())
    }

    /// Keeps room in the journal for an extent of the file. A close that writes buffered bytes out has nobody to
    /// tell that there is none.
    fn reserve_journal(&self, appender: &mut Appender) -> Result<()> {
        if appender.promised > 0 {
            return self.core.admit_extent();
        }
        self.core.journal()?.promise(EXTENT_OP_LEN_MAX)?;
        appender.promised = EXTENT_OP_LEN_MAX;
        Ok(())
    }

    /// Gives back what is reserved for the file, on the device and in the journal.
    pub(super) fn unreserve(&self, appender: &mut Appender) {
        self.core
            .unreserve(std::mem::take(&mut appender.reserved_blocks));
        let promised = std::mem::take(&mut appender.promised);
        if let Some(journal) = &self.core.journal {
            journal.take_back(promised);
        }
    }

    /// Allocates for a file that is expected to reach `size` bytes.
    pub(crate) fn allocate_expected(&self, size: u64) -> Result<()> {
        let mut appender = self.appender.lock();
        self.reserve(&mut appender, size)?;
        self.allocate_to(&mut appender, size)
    }

    /// Makes sure that extents cover the file to `end` bytes.
    pub(super) fn allocate_to(&self, appender: &mut Appender, end: u64) -> Result<()> {
        let needed = end.div_ceil(BLOCK_SIZE);
        loop {
            let (blocks, last) = {
                let state = self.inode.state.read();
                (state.extents.blocks(), state.extents.last())
            };
            if blocks >= needed {
                return Ok(());
            }
            let missing = needed - blocks;
            let wanted = missing.max(self.growth(appender, blocks, needed));
            let reserved = &mut appender.reserved_blocks;
            let ticket = self
                .core
                .allocate(&self.inode, missing, wanted, last, reserved)?;
            appender.extent_tickets.push((blocks, ticket));
        }
    }

    /// How many blocks the next extent of a file of `blocks` blocks should have.
    fn growth(&self, appender: &Appender, blocks: u64, needed: u64) -> u64 {
        if appender.closed {
            return 0;
        }
        if appender.expected_blocks > blocks {
            return appender.expected_blocks - blocks;
        }
        if blocks == 0 && needed < GROWTH_BLOCKS_FIRST {
            return GROWTH_BLOCKS_FIRST;
        }
        let least = if blocks < GROWTH_BLOCKS_FIRST {
            GROWTH_BLOCKS_FIRST
        } else {
            blocks
        };
        let least = if needed >= GROWTH_BLOCKS_MIN / 4 {
            least.max(GROWTH_BLOCKS_MIN)
        } else {
            least
        };
        least.min(GROWTH_BLOCKS_MAX)
    }

    /// Allocates the next extent before it is needed, and makes it durable, so that no sync has to
    /// wait for the journal. For the background thread.
    pub(crate) fn allocate_ahead(&self) -> Result<()> {
        self.ahead_asked.store(false, Ordering::Release);
        self.core.admit_extent()?;
        let mut appender = self.appender.lock();
        if appender.closed || !self.wants_extent(self.tail.read().end()) {
            return Ok(());
        }
        let (blocks, last) = {
            let state = self.inode.state.read();
            (state.extents.blocks(), state.extents.last())
        };
        let wanted = blocks.clamp(GROWTH_BLOCKS_FIRST, GROWTH_BLOCKS_MAX);
        let Some(ticket) = self.core.allocate_ahead(&self.inode, wanted, last) else {
            return Ok(());
        };
        appender.extent_tickets.push((blocks, ticket));
        drop(appender);
        self.core.commit(ticket)
    }

    /// Asks the background thread for the next extent, if the last one fills up.
    pub(super) fn ask_for_extent(&self, size: u64) {
        if self.wants_extent(size) && !self.ahead_asked.swap(true, Ordering::AcqRel) {
            self.core.ask(Work::Extent(self.inode.ino));
        }
    }

    /// True where less than half of the last extent is left behind `size`.
    fn wants_extent(&self, size: u64) -> bool {
        let state = self.inode.state.read();
        let Some(Run { blocks, .. }) = state.extents.last() else {
            return false;
        };
        let left = (state.extents.blocks() * BLOCK_SIZE).saturating_sub(size);
        left < blocks.min(GROWTH_BLOCKS_MAX) * BLOCK_SIZE / 2
    }
}
