//! Open files of a read-only mount whose owner goes on writing: how they take over what a refresh
//! brought.

use std::sync::atomic::Ordering;

use parking_lot::RwLockWriteGuard;

use crate::file::handle::OpenFile;
use crate::file::tail::Tail;
use crate::types::FileSize;

impl OpenFile {
    /// Waits for the readers of this file and keeps further ones out.
    pub(crate) fn keep_readers_out(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write()
    }

    /// Takes over the inode's state, which a refresh has changed; with readers kept out.
    pub(crate) fn follow_inode(&self) {
        let (size, journaled) = {
            let state = self.inode.state.read();
            (state.size, state.journaled_size())
        };
        let uncertain = matches!(journaled, FileSize::Between { .. });
        self.uncertain.store(uncertain, Ordering::Release);
        *self.tail.write() = Tail::empty_at(size);
    }
}
