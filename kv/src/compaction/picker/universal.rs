//! Universal compaction, as RocksDB's: all runs are one sequence from new to old, and neighbours in it
//! are merged.
//!
//! Once there are as many runs as the trigger says, the first rule that applies decides: too much
//! space taken by what is not the oldest run merges everything; runs of similar size at some place
//! of the sequence are merged; else so many of the newest that fewer than the trigger are left. The
//! result takes the place of its inputs; a merge of everything goes to the last level.

use crate::version::{Run, Version};

use super::super::choice::{Choice, InFlight, Input};
use super::{PickerOptions, tree};

pub(super) fn pick(
    version: &Version,
    options: &PickerOptions,
    busy: &[InFlight],
) -> Option<Choice> {
    let levels = version.levels.iter().enumerate();
    let runs: Vec<(usize, &Run)> = levels
        .flat_map(|(level, runs)| runs.runs.iter().map(move |run| (level, run)))
        .collect();
    // Without a flush since the last merge there is nothing to do, whatever another policy left.
    if version.levels[0].runs.is_empty() || runs.len() < options.l0_trigger.max(2) {
        return None;
    }
    let sizes: Vec<u64> = runs.iter().map(|(_, run)| run.size()).collect();
    let (begin, end) = for_space(&sizes, options)
        .or_else(|| for_similarity(&sizes, options))
        .unwrap_or_else(|| for_number(&sizes, options));
    let inputs: Vec<Input> = runs[begin..end]
        .iter()
        .map(|&(level, run)| Input::whole(level, run))
        .collect();
    let mut choice = tree::merge_in_place(inputs);
    if end == runs.len() && choice.output_level == 0 {
        choice.output_level = version.levels.len() - 1;
        choice.output_run = 0;
    }
    choice.unless_busy(busy)
}

/// Everything, where the runs but the oldest take too much space relative to it.
fn for_space(sizes: &[u64], options: &PickerOptions) -> Option<(usize, usize)> {
    let (oldest, newer) = sizes.split_last()?;
    let newer: u64 = newer.iter().sum();
    let limit = options.policy.universal_max_size_amplification_percent;
    (newer.saturating_mul(100) >= oldest.saturating_mul(limit)).then_some((0, sizes.len()))
}

/// The newest sequence of runs each of which is at most slightly larger than those before it.
fn for_similarity(sizes: &[u64], options: &PickerOptions) -> Option<(usize, usize)> {
    let policy = &options.policy;
    let most = match policy.universal_max_merge_width {
        0 => usize::MAX,
        width => width,
    };
    (0..sizes.len()).find_map(|begin| {
        let mut bytes = sizes[begin];
        let mut end = begin + 1;
        while end < sizes.len()
            && end - begin < most
            && sizes[end].saturating_mul(100)
                <= bytes.saturating_mul(100 + policy.universal_size_ratio)
        {
            bytes += sizes[end];
            end += 1;
        }
        (end - begin >= policy.universal_min_merge_width).then_some((begin, end))
    })
}

/// The newest runs, so many that the trigger is not reached any more.
fn for_number(sizes: &[u64], options: &PickerOptions) -> (usize, usize) {
    let surplus = sizes.len() + 1 - options.l0_trigger.max(2);
    (0, (surplus + 1).min(sizes.len()))
}
