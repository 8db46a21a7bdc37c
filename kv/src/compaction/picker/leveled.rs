//! Leveled compaction: level 0 merges all its runs into the base level when their number reaches the
//! trigger; any other level whose size exceeds its target merges one table into the next level.
//!
//! A level may have several runs after a change of policy. Then the oldest run gives its tables
//! first, and the newest run of the level below takes them.

use crate::key::SeqNo;
use crate::version::{SstMeta, Version};

use super::super::choice::{Choice, InFlight, Input, into_newest_run};
use super::{PickerOptions, by_overlap, due_levels, level_0, overlap, score};

/// Entries below which a table is not compacted for its deletions alone.
const TOMBSTONES_MIN: u64 = 16;

pub(super) fn pick(
    version: &Version,
    options: &PickerOptions,
    busy: &[InFlight],
) -> Option<Choice> {
    let score = score(version, options);
    due_levels(&score)
        .into_iter()
        .find_map(|level| match level {
            0 => into_newest_run(version, level_0(version), score.shape.level_0_target, busy),
            _ => pick_from_level(version, level, busy),
        })
}

/// Of the level's tables the one that drags the least from the next level, per byte.
fn pick_from_level(version: &Version, level: usize, busy: &[InFlight]) -> Option<Choice> {
    let source = version.levels[level].runs.last()?;
    let target = version.levels[level + 1].runs.first();
    let ranked = by_overlap(&source.files, |low, high| {
        target.map_or(0, |run| overlap(run.overlapping(Some(low), Some(high))))
    });
    ranked.into_iter().find_map(|file| {
        let inputs = vec![Input::table(level, source.id, file)];
        into_newest_run(version, inputs, level + 1, busy)
    })
}

fn is_mostly_deletions(meta: &SstMeta, ratio: f64) -> bool {
    meta.deletions >= TOMBSTONES_MIN && meta.deletions as f64 >= ratio * meta.entries as f64
}

/// The sequence number that the oldest snapshot must reach for [`pick_tombstones`] to choose a table, the least of
/// all that it would not while `oldest` is the oldest snapshot.
pub(super) fn awaited(version: &Version, ratio: f64, oldest: SeqNo) -> Option<SeqNo> {
    let runs = version.levels[1..]
        .iter()
        .filter_map(|level| level.runs.last());
    let files = runs
        .filter(|_| ratio > 0.0)
        .flat_map(|run| run.files.iter());
    let waiting = files.filter(|file| is_mostly_deletions(&file.meta, ratio));
    let newest = waiting.map(|file| file.meta.largest_seq);
    newest.filter(|&newest| newest > oldest).min()
}

/// A table that is mostly deletions which every reader sees: it goes one level down, or is written
/// anew where nothing older is left, and its deletions with what they hide go away.
pub(super) fn pick_tombstones(
    version: &Version,
    options: &PickerOptions,
    busy: &[InFlight],
) -> Option<Choice> {
    let ratio = options.policy.tombstone_ratio;
    if ratio <= 0.0 {
        return None;
    }
    let deepest =
        (1..version.levels.len()).rfind(|&level| version.levels[level].file_count() > 0)?;
    for level in 1..=deepest {
        // Only the oldest run: a table of another one would pass by what it hides.
        let source = version.levels[level].runs.last();
        let files = source.iter().flat_map(|run| run.files.iter());
        let mut ripe: Vec<_> = files
            .filter(|file| file.meta.largest_seq <= options.oldest_snapshot)
            .filter(|file| is_mostly_deletions(&file.meta, ratio))
            .collect();
        ripe.sort_by_key(|file| (std::cmp::Reverse(file.meta.deletions), file.meta.number));
        let choice = ripe.into_iter().find_map(|file| {
            let run = source.expect("its table was found").id;
            if level < deepest {
                let inputs = vec![Input::table(level, run, file)];
                return into_newest_run(version, inputs, level + 1, busy);
            }
            Choice::anew(level, run, file).unless_busy(busy)
        });
        if choice.is_some() {
            return choice;
        }
    }
    None
}
