//! Open files of a read-only mount whose owner goes on writing: how they take over what a refresh
//! brought.

use std::sync::atomic::Ordering;

use parking_lot::RwLockWriteGuard;

use crate::file::handle::OpenFile;
use crate::file::tail::Tail;
use crate::types::FileSize;

impl OpenFile {
    /// Waits for the readers of this file, keeps further ones out, and drops what was read ahead for
    /// them: the gate is taken alone by whoever changes bytes that a reader may have seen.
    pub(crate) fn keep_readers_out(&self) -> RwLockWriteGuard<'_, ()> {
        let alone = self.gate.write();
        self.streams.forget();
        alone
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
