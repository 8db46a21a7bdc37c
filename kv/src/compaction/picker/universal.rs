//! Universal compaction, as RocksDB's: all runs are one sequence from new to old, and neighbours in it
//! are merged.
//!
//! Once there are as many runs as the trigger says, the first rule that applies decides: too much
//! space taken by what is not the oldest run merges everything; runs of similar size at some place
//! of the sequence are merged; else so many of the newest that fewer than the trigger are left. The
//! result takes the place of its inputs; a merge of everything goes to the last level.
//!
//! So below level 0 there is one run at most. More of them are what another policy left: they count as
//! one old run until what was written since justifies a merge of everything, and meanwhile become one
//! step by step ([`migrate`]), at the pace of every change of policy.

use crate::version::{Run, Version};

use super::super::choice::{Choice, InFlight, Input};
use super::{PickerOptions, migrate_table, tree};

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
    let newest = version.levels[0].runs.len();
    let mut sizes: Vec<u64> = runs.iter().map(|(_, run)| run.size()).collect();
    let foreign = runs.len() > newest + 1;
    if foreign {
        let left = sizes.drain(newest..).sum();
        sizes.push(left);
    }
    if newest == 0 || sizes.len() < options.l0_trigger.max(2) {
        return None;
    }
    let ours = if foreign { newest } else { sizes.len() };
    let (begin, end) = match for_space(&sizes, options) {
        Some(_) => (0, runs.len()),
        None => for_similarity(&sizes[..ours], options)
            .unwrap_or_else(|| for_number(sizes.len(), ours, options)),
    };
    if end - begin < 2 {
        return None;
    }
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
                <= bytes.saturating_mul(policy.universal_size_ratio.saturating_add(100))
        {
            bytes += sizes[end];
            end += 1;
        }
        (end - begin >= policy.universal_min_merge_width).then_some((begin, end))
    })
}

/// The newest of `ours`, so many that of all `runs` fewer than the trigger are left.
fn for_number(runs: usize, ours: usize, options: &PickerOptions) -> (usize, usize) {
    let surplus = runs + 1 - options.l0_trigger.max(2);
    (0, (surplus + 1).min(ours))
}

/// A table of the second-oldest run below level 0, the one that drags the least, into the oldest run.
pub(super) fn migrate(
    version: &Version,
    options: &PickerOptions,
    busy: &[InFlight],
) -> Option<Choice> {
    if options.migration_credit <= 0 || !busy.is_empty() {
        return None;
    }
    let levels = version.levels.iter().enumerate().skip(1).rev();
    let mut runs =
        levels.flat_map(|(level, runs)| runs.runs.iter().rev().map(move |run| (level, run)));
    let (target, source) = (runs.next()?, runs.next()?);
    migrate_table(source, target, busy)
}
