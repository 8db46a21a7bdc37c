//! Space pressure: on a nearly full disk writers wait for garbage to be collected instead of running into
//! the end of the space.
//!
//! The leader of the writers looks at the disk every so many bytes, because logs grow between two changes
//! of the structure; every change of the structure looks too. While the pressure lasts, level 0 of families
//! with blob files is compacted at once: what newer writes hide in blob files becomes garbage only then.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::engine::{Engine, State};
use crate::stall::{SpaceLeft, Stall};

/// Bytes written between two looks.
const LOOK_BYTES: u64 = 64 << 10;

/// Part of the disk that is kept for one collection, at most.
const COLLECTION_PART: u64 = 16;

impl Engine {
    /// Looks at the disk if the bytes about to be written call for it; sets the stall in `state`.
    pub(crate) fn look_at_space(self: &Arc<Self>, state: &mut State, bytes: usize) {
        let before = self
            .written_unseen
            .fetch_add(bytes as u64, Ordering::Relaxed);
        if before + (bytes as u64) < LOOK_BYTES && state.space_stall == Stall::None {
            return;
        }
        self.written_unseen.store(0, Ordering::Relaxed);
        let was_free = state.space_stall == Stall::None;
        self.recompute_stall(state);
        if was_free && state.space_stall != Stall::None {
            // More is due under pressure than without.
            crate::scheduler::schedule(self, state);
            self.recompute_stall(state);
        }
    }

    /// How fast writers may go for the space that is left.
    pub(crate) fn space_stall(&self, state: &State) -> Stall {
        let options = &self.options;
        if !options.enable_blob_garbage_collection {
            return Stall::None;
        }
        let views: Vec<_> = state.cfs.values().map(|cf| cf.view()).collect();
        if views
            .iter()
            .all(|view| view.version.blobs.files().is_empty())
        {
            return Stall::None;
        }
        let space = self.fs.space();
        let in_memory: u64 = views
            .iter()
            .flat_map(|view| std::iter::once(&view.mem).chain(&view.imms))
            .map(|mem| mem.table.approximate_memory() as u64)
            .sum();
        let collection = options.blob_file_size.min(space.total / COLLECTION_PART);
        let reserve = in_memory.saturating_add(collection);
        if space.free >= reserve.saturating_mul(2) {
            return Stall::None;
        }
        let mut blobs = crate::garbage::BlobStats::default();
        views.iter().for_each(|view| blobs.add(&view.version));
        let left = SpaceLeft {
            free: space.free,
            reserve,
            reclaimable: blobs.garbage_bytes.saturating_add(blobs.shadowed_bytes),
            is_reclaiming: state.collections.in_progress()
                || state.compaction_tasks > 0
                || !state.flushing.is_empty(),
        };
        Stall::of_space(options, left)
    }
}
