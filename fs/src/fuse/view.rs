//! Following an owner that goes on writing, in this process or another.
//!
//! An owner in this process shares its memory with the mount: nothing is to be done but to make the
//! kernel ask. An owner in another process is followed through the journal ([`LavaFs::refresh`]), when
//! somebody looks and at most every [`INTERVAL`]; a mount that nobody uses reads nothing.
//!
//! A view is marked: in the table of mounts its type is `fuse.lavafs-view`, and its root has the
//! extended attribute [`VIEW_ATTRIBUTE`], which says who the owner is.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fs::LavaFs;

/// Extended attribute of the root directory of a live mount: a sentence about the owner. It cannot be
/// changed.
pub const VIEW_ATTRIBUTE: &str = "user.lavafs.view";

/// Least time between two looks into the journal.
const INTERVAL: Duration = Duration::from_millis(50);

/// When the journal was last looked into. The lock is held across the look: whoever comes
/// meanwhile does not wait for it.
#[derive(Debug, Default)]
pub(super) struct Follower {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    failing: bool,
}

impl Follower {
    /// Moves the view on, if that was not done just now. A failure is logged once, until it ends; the
    /// view then stays where it is.
    pub(super) fn follow(&self, fs: &LavaFs) {
        if fs.core.view.is_none() {
            return;
        }
        let Some(mut state) = self.state.try_lock() else {
            return;
        };
        if state.last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return;
        }
        match fs.refresh() {
            Ok(_) => state.failing = false,
            Err(error) => {
                if !state.failing {
                    tracing::error!(%error, "the view stands still");
                }
                state.failing = true;
            }
        }
        state.last = Some(Instant::now());
    }
}

/// What the attribute says.
pub(super) fn sentence(fs: &LavaFs) -> String {
    match fs.owner() {
        Ok(Some(owner)) => format!("a moving view; owner: {owner}"),
        Ok(None) => "a moving view; nobody owns the device now".to_owned(),
        Err(error) => format!("a moving view; owner unknown: {error}"),
    }
}

/// True for the attribute that marks a view.
pub(super) fn is_mark(name: &OsStr) -> bool {
    name == OsStr::new(VIEW_ATTRIBUTE)
}
