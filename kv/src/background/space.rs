//! Space pressure: on a nearly full disk writers wait for garbage to be collected instead of running into
//! the end of the space.
//!
//! The leader of the writers looks at the disk every so many bytes, because logs grow between two changes
//! of the structure; every change of the structure looks too.
//!
//! Levels are sized by their tables, which are small beside the values that they refer to: newer
//! writes may hide many values of the last level before a compaction is due for the tables' sake, and what is
//! hidden is garbage only after it. [`compaction_for_space`] therefore merges upper levels down where
//! the disk is filling and hidden values weigh more than all tables.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::blob::garbage::{garbage_bytes, shadowed_bytes};
use crate::compaction::{Choice, InFlight, PickerOptions, pick_range};
use crate::db::engine::{ColumnFamily, Engine, State};
use crate::options::CompactionStyle;
use crate::version::Version;
use crate::write::stall::{SpaceLeft, Stall};

/// Bytes written between two looks.
const LOOK_BYTES: u64 = 64 << 10;

/// Part of the disk that is kept for one collection, at most.
const COLLECTION_PART: u64 = 16;

/// Disk usage from which hidden values are merged away, and their share of all values then.
const FILLING: f64 = 0.75;
const HIDDEN_SHARE: f64 = 0.10;

/// Their share under pressure.
const HIDDEN_SHARE_PRESSED: f64 = 0.02;

/// A compaction that turns hidden values into garbage, if the disk calls for one: of the first level
/// that has something below it.
pub(crate) fn compaction_for_space(
    engine: &Engine,
    state: &State,
    version: &Version,
    options: &PickerOptions,
    busy: &[InFlight],
) -> Option<Choice> {
    let no_merges = options.policy.style == CompactionStyle::Fifo;
    if version.blobs.files().is_empty() || no_merges {
        return None;
    }
    let space = engine.fs.space();
    let usage = 1.0 - space.free as f64 / (space.total as f64).max(1.0);
    let share = match state.space_stall {
        Stall::None if usage < FILLING => return None,
        Stall::None => HIDDEN_SHARE,
        _ => HIDDEN_SHARE_PRESSED,
    };
    let hidden = shadowed_bytes(version);
    let values = version.blobs.files().values();
    let value_bytes: u64 = values.map(|live| live.file.meta.value_bytes).sum();
    let table_bytes: u64 = version.levels.iter().map(|level| level.size()).sum();
    if hidden <= table_bytes || (hidden as f64) < share * value_bytes as f64 {
        return None;
    }
    let filled = |level: &usize| version.levels[*level].file_count() > 0;
    let first = (0..version.levels.len()).find(filled)?;
    pick_range(version, first, (None, None), options, busy)?.ok()
}

/// True while work that may give space back is queued or running.
pub(crate) fn is_reclaiming(state: &State) -> bool {
    state.collections.in_progress() || state.compaction_tasks > 0 || !state.flushing.is_empty()
}

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
        self.recompute_space_stall(state);
        if was_free && state.space_stall != Stall::None {
            // More is due under pressure than without.
            crate::background::scheduler::schedule(self, state);
            self.recompute_space_stall(state);
        }
    }

    /// How fast writers may go for the space that is left.
    pub(crate) fn space_stall(&self, state: &State) -> Stall {
        let options = &self.options;
        let collected = |cf: &Arc<ColumnFamily>| {
            cf.options.enable_blob_garbage_collection && !cf.view().version.blobs.files().is_empty()
        };
        let views: Vec<_> = state.cfs.values().map(|cf| cf.view()).collect();
        if !state.cfs.values().any(collected) {
            return Stall::None;
        }
        let space = self.fs.space();
        let in_memory: u64 = views
            .iter()
            .flat_map(|view| std::iter::once(&view.mem).chain(&view.imms))
            .map(|mem| mem.table.approximate_memory() as u64)
            .sum();
        let collection = options.blob_file_size.min(space.total / COLLECTION_PART);
        let collections = state.collections.bytes_to_come().max(collection);
        let reserve = in_memory.saturating_add(collections);
        if space.free >= reserve.saturating_mul(2) {
            return Stall::None;
        }
        // What is kept for snapshots is not to be waited for.
        let reclaimed = state.cfs.values().filter(|cf| collected(cf));
        let reclaimable = reclaimed.map(|cf| {
            let version = &cf.view().version;
            garbage_bytes(version).saturating_add(shadowed_bytes(version))
        });
        let left = SpaceLeft {
            free: space.free,
            reserve,
            reclaimable: reclaimable.fold(0, u64::saturating_add),
            is_reclaiming: is_reclaiming(state),
        };
        Stall::of_space(options, left)
    }
}
