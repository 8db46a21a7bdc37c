//! The filesystem's background thread: extents ahead of need and checkpoints.
//!
//! It takes requests from a bounded channel; a request that does not fit is dropped, since whoever
//! asked does the work itself when it becomes urgent. A failure is logged; what it means for later
//! operations is decided where it happened (`disk.rs`). The thread holds the filesystem only while it
//! works, and ends when the channel is closed at unmount.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use crate::core::Core;
use crate::types::Ino;

/// A request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Allocate the file's next extent.
    Extent(Ino),
    /// Make a checkpoint, unless one was made since this was asked for.
    Checkpoint,
}

const QUEUE_LEN: usize = 64;

/// The thread and its channel. Dropping it ends the thread after what it was asked for.
#[derive(Debug)]
pub(crate) struct Background {
    sender: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts the thread for `core`.
    pub(crate) fn start(core: &Arc<Core>) -> std::io::Result<Background> {
        let (sender, receiver) = sync_channel(QUEUE_LEN);
        let core = Arc::downgrade(core);
        let thread = std::thread::Builder::new()
            .name("lavafs".to_owned())
            .spawn(move || run(&core, &receiver))?;
        Ok(Background {
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    /// Asks for `work`, unless much is asked for already.
    pub(crate) fn ask(&self, work: Work) {
        if let Some(sender) = &self.sender {
            let _ = sender.try_send(work);
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.sender = None;
        let Some(thread) = self.thread.take() else {
            return;
        };
        // The thread itself may drop the filesystem's last reference.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("the filesystem's background thread panicked");
        }
    }
}

fn run(core: &Weak<Core>, requests: &Receiver<Work>) {
    while let Ok(work) = requests.recv() {
        let Some(core) = core.upgrade() else { return };
        let outcome = match work {
            Work::Extent(ino) => core
                .opened(ino)
                .map_or(Ok(()), |file| file.allocate_ahead()),
            Work::Checkpoint => core.checkpoint_if_due(),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, ?work, "background work failed");
        }
    }
}
