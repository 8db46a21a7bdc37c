//! The pickers: from a version to the compaction that helps most. Pure functions.
//!
//! Each policy has its file: `leveled` takes a table at a time, `tree` whole levels (tiered,
//! lazy leveled, fluid, bush: they differ in the shape alone), `universal` neighbouring runs, `fifo`
//! drops tables; `stale` and `hidden` are of all that merge. All take any version: a database written under another policy is a valid start.
//!
//! A change of the policy rewrites nothing by itself. Surplus runs are merged one table at a time
//! and one compaction at a time, only when nothing else is due, and only as many bytes as
//! have been flushed since: [`PickerOptions::migration_credit`]. What new data is merged with
//! takes on the new shape anyway.

mod fifo;
mod hidden;
mod leveled;
mod stale;
mod tree;
mod universal;

use std::sync::Arc;

use crate::key::SeqNo;
use crate::options::Options;
use crate::options::{CompactionOptions, CompactionStyle};
use crate::version::{Level, Run, SstFile, Version};

use super::choice::{Action, Choice, InFlight, Input, into_newest_run, into_run};
use super::shape::Shape;

/// What the pickers need of the options, and of the moment.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct PickerOptions {
    pub(crate) policy: CompactionOptions,
    pub(crate) l0_trigger: usize,
    pub(crate) base_bytes: u64,
    pub(crate) multiplier: f64,
    pub(crate) dynamic: bool,
    pub(crate) target_file_size: u64,
    /// Bytes that a change of policy may rewrite now; at or below 0 it waits.
    pub(crate) migration_credit: i64,
    /// Seconds since 1970.
    pub(crate) now: u64,
    /// Entries up to this sequence number are seen by every reader.
    pub(crate) oldest_snapshot: SeqNo,
    /// The newest run of level 0 that a manual compaction takes: it would not end while new ones come.
    pub(crate) newest_run: u64,
}

impl PickerOptions {
    /// Without credit, time and snapshots: enough for scores and shapes.
    pub(crate) fn of(options: &Options) -> Self {
        PickerOptions {
            policy: options.compaction.clone(),
            l0_trigger: options.level0_file_num_compaction_trigger,
            base_bytes: options.max_bytes_for_level_base,
            multiplier: options.max_bytes_for_level_multiplier,
            dynamic: options.level_compaction_dynamic_level_bytes,
            target_file_size: options.target_file_size_base,
            migration_credit: 0,
            now: 0,
            oldest_snapshot: 0,
            newest_run: u64::MAX,
        }
    }
}

/// Needs of a version.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Score {
    pub(crate) shape: Shape,
    /// How far each level is beyond its target; from 1 a compaction is due.
    pub(crate) scores: Vec<f64>,
    /// Estimate of the bytes to be rewritten until every level is within its target.
    pub(crate) pending_bytes: u64,
}

/// Needs of `version`. For policies without levels they are those of level 0 alone.
pub(crate) fn score(version: &Version, options: &PickerOptions) -> Score {
    let sizes: Vec<u64> = version.levels.iter().map(Level::size).collect();
    let shape = Shape::of(version, options);
    let mut scores = vec![0.0; sizes.len()];
    if options.policy.style.is_by_runs() {
        return Score {
            shape,
            scores,
            pending_bytes: 0,
        };
    }
    scores[0] = version.levels[0].runs.len() as f64 / options.l0_trigger as f64;
    for level in 1..sizes.len() - 1 {
        if sizes[level] > 0 {
            // A level above the base level should be empty: any byte is too much.
            scores[level] = if level < shape.base_level {
                f64::MAX
            } else {
                sizes[level] as f64 / shape.levels[level].capacity as f64
            };
        }
    }
    let pending_bytes = pending_bytes(&sizes, &shape, scores[0] >= 1.0);
    Score {
        shape,
        scores,
        pending_bytes,
    }
}

fn pending_bytes(sizes: &[u64], shape: &Shape, l0_due: bool) -> u64 {
    let base_level = shape.level_0_target;
    let mut pending = 0_u64;
    let mut incoming = 0_u64;
    if l0_due {
        pending += sizes[0];
        if shape.levels[base_level].max_runs == 1 {
            pending += sizes[base_level];
        }
        incoming = sizes[0];
    }
    for level in base_level..sizes.len() - 1 {
        let size = sizes[level] + incoming;
        incoming = size.saturating_sub(shape.levels[level].capacity);
        if incoming > 0 {
            let ratio = match shape.levels[level + 1].max_runs {
                1 => sizes[level + 1] as f64 / size as f64,
                _ => 0.0,
            };
            pending += (incoming as f64 * (ratio + 1.0)) as u64;
        }
    }
    pending
}

/// The compaction that helps most, if one is due and possible beside those in flight.
pub(crate) fn pick(
    version: &Version,
    options: &PickerOptions,
    busy: &[InFlight],
) -> Option<Choice> {
    let choice = match options.policy.style {
        CompactionStyle::Fifo => return fifo::pick(version, options, busy),
        CompactionStyle::Universal => universal::pick(version, options, busy)
            .or_else(|| universal::migrate(version, options, busy)),
        CompactionStyle::Level => leveled::pick(version, options, busy)
            .or_else(|| migrate(version, options, busy))
            .or_else(|| leveled::pick_tombstones(version, options, busy)),
        _ => tree::pick(version, options, busy).or_else(|| migrate(version, options, busy)),
    };
    choice
        .or_else(|| hidden::pick(version, options.oldest_snapshot, busy))
        .or_else(|| stale::pick(version, busy))
}

/// The sequence number that the oldest snapshot must reach for something to be picked that is kept for snapshots
/// while `oldest` is the oldest one; `None` where nothing is.
pub(crate) fn awaited(
    version: &Version,
    policy: &CompactionOptions,
    oldest: SeqNo,
) -> Option<SeqNo> {
    let deletions = match policy.style {
        CompactionStyle::Fifo => return None,
        CompactionStyle::Level => leveled::awaited(version, policy.tombstone_ratio, oldest),
        _ => None,
    };
    let hidden = hidden::awaited(version, oldest);
    deletions.into_iter().chain(hidden).min()
}

/// Levels that are due, the most urgent first.
fn due_levels(score: &Score) -> Vec<usize> {
    let mut levels: Vec<usize> = (0..score.scores.len() - 1)
        .filter(|&level| score.scores[level] >= 1.0)
        .collect();
    levels.sort_by(|&a, &b| score.scores[b].total_cmp(&score.scores[a]));
    levels
}

/// All of level 0, from new to old.
fn level_0(version: &Version) -> Vec<Input> {
    let runs = version.levels[0].runs.iter();
    runs.map(|run| Input::whole(0, run)).collect()
}

/// A step of the way from more runs than the policy has to as many: a table of the second-oldest
/// run of a level and what it overlaps in the oldest one, the one that drags the least. From the
/// last level upwards, as that is where runs cost the most space.
fn migrate(version: &Version, options: &PickerOptions, busy: &[InFlight]) -> Option<Choice> {
    if options.migration_credit <= 0 || !busy.is_empty() {
        return None;
    }
    let shape = Shape::of(version, options);
    let mut surplus = (1..version.levels.len())
        .rev()
        .filter(|&level| version.levels[level].runs.len() > shape.levels[level].max_runs);
    let level = surplus.next()?;
    let [.., source, target] = version.levels[level].runs.as_slice() else {
        return None;
    };
    migrate_table((level, source), (level, target), busy)
}

/// Merges the table of `source` that drags the least of `target` into it; both with their levels.
fn migrate_table(
    (level, source): (usize, &Run),
    (target_level, target): (usize, &Run),
    busy: &[InFlight],
) -> Option<Choice> {
    let ranked = by_overlap(&source.files, |low, high| {
        overlap(target.overlapping(Some(low), Some(high)))
    });
    ranked.into_iter().find_map(|file| {
        let inputs = vec![Input::table(level, source.id, file)];
        let choice = into_run(inputs, target_level, Some(target), busy)?;
        Some(Choice {
            action: Action::Migrate,
            ..choice
        })
    })
}

fn overlap(files: &[Arc<SstFile>]) -> u64 {
    files.iter().map(|file| file.meta.file_size).sum()
}

/// Tables by the bytes they drag along per byte of theirs, the least first (RocksDB's
/// kMinOverlappingRatio).
fn by_overlap(files: &[Arc<SstFile>], dragged: impl Fn(&[u8], &[u8]) -> u64) -> Vec<&Arc<SstFile>> {
    let mut ranked: Vec<(u64, &Arc<SstFile>)> = files
        .iter()
        .map(|file| {
            let meta = &file.meta;
            let bytes = dragged(meta.smallest_user_key(), meta.largest_user_key());
            (bytes * 1024 / meta.file_size.max(1), file)
        })
        .collect();
    ranked.sort_by_key(|(ratio, file)| (*ratio, file.meta.number));
    ranked.into_iter().map(|(_, file)| file).collect()
}

/// A manual compaction of what `level` has in the range, towards deeper levels, or where nothing is deeper within
/// the level, into one run and without what snapshots have left behind. Takes a part of a single run at a time, so that the
/// space needed stays bounded, but all of several runs: repeat until `None`. `Some(Err(()))` says
/// that a compaction in flight is in the way. A FIFO merges nothing, or its tables would be no longer
/// by age: only what is due to be dropped is chosen.
pub(crate) fn pick_range(
    version: &Version,
    level: usize,
    range: (Option<&[u8]>, Option<&[u8]>),
    options: &PickerOptions,
    busy: &[InFlight],
) -> Option<Result<Choice, ()>> {
    if options.policy.style == CompactionStyle::Fifo {
        return fifo::pick(version, options, busy).map(Ok);
    }
    let last = version.levels.len() - 1;
    let mut runs = version.levels[level].runs.as_slice();
    if level == 0 {
        runs = &runs[runs.partition_point(|run| run.id > options.newest_run)..];
    }
    let overlaps = runs
        .iter()
        .any(|run| !run.overlapping(range.0, range.1).is_empty());
    if !overlaps {
        return None;
    }
    let whole: Vec<Input> = runs.iter().map(|run| Input::whole(level, run)).collect();
    if level == 0 {
        let first = (1..=last).find(|&level| version.levels[level].file_count() > 0);
        let output_level = match options.policy.style.is_by_runs() {
            true => first.unwrap_or(last),
            false => Shape::of(version, options).level_0_target,
        };
        return Some(into_newest_run(version, whole, output_level, busy).ok_or(()));
    }
    let deeper = version.levels[level + 1..]
        .iter()
        .any(|level| level.file_count() > 0);
    let [run] = runs else {
        if deeper {
            return Some(into_newest_run(version, whole, level + 1, busy).ok_or(()));
        }
        return Some(tree::merge_in_place(whole).unless_busy(busy).ok_or(()));
    };
    if !deeper {
        let choice = hidden::pick_range(version, range, options.oldest_snapshot)?;
        return Some(choice.unless_busy(busy).ok_or(()));
    }
    let mut bytes = 0;
    let files = run
        .overlapping(range.0, range.1)
        .iter()
        .take_while(|file| {
            let first = bytes == 0;
            bytes += file.meta.file_size;
            first || bytes <= options.target_file_size.saturating_mul(25)
        })
        .cloned()
        .collect();
    let inputs = vec![Input {
        level,
        run: run.id,
        files,
    }];
    Some(into_newest_run(version, inputs, level + 1, busy).ok_or(()))
}

#[cfg(test)]
mod tests;
