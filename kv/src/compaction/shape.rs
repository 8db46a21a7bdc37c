//! The shape that a policy wants a version to have: capacity and runs of each level.
//!
//! Levels are counted from the last one, which is always the deepest that the options allow, up
//! to the base level, which level 0 is merged into; levels between are empty. Capacities follow
//! from the size of the last level, so that space amplification stays what the policy promises
//! (RocksDB's dynamic level sizes; Dong et al., CIDR 2017). Only leveled compaction can be told to
//! count from level 1 downwards with fixed targets instead.

use crate::options::CompactionStyle;
use crate::version::{Level, Version};

use super::filters::{FilterPlan, RunGroup};
use super::picker::PickerOptions;

/// What a policy wants of a level.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct LevelTarget {
    /// Bytes; `u64::MAX` for levels that should be empty.
    pub(crate) capacity: u64,
    /// Runs at most.
    pub(crate) max_runs: usize,
}

/// The shape that a policy wants.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Shape {
    /// The first level below level 0 that should hold data.
    pub(crate) base_level: usize,
    /// The level that level 0 is merged into: the base level, or one above it that has data, which is
    /// newer than the base level's and cannot be passed by.
    pub(crate) level_0_target: usize,
    pub(crate) levels: Vec<LevelTarget>,
}

impl Shape {
    /// The shape wanted of `version`.
    pub(crate) fn of(version: &Version, options: &PickerOptions) -> Shape {
        let sizes: Vec<u64> = version.levels.iter().map(Level::size).collect();
        let (base_level, capacities) = match (options.policy.style, options.dynamic) {
            (CompactionStyle::Level, true) => dynamic_targets(&sizes, options),
            (CompactionStyle::Level, false) => (1, static_targets(sizes.len(), options)),
            _ => tree_capacities(version, &sizes, options),
        };
        let last = sizes.len() - 1;
        let levels = capacities.into_iter().enumerate().map(|(level, capacity)| {
            let max_runs = match level {
                0 => options.l0_trigger,
                _ => options.policy.max_runs(options.multiplier, last - level),
            };
            LevelTarget { capacity, max_runs }
        });
        let first = (1..=last).find(|&level| sizes[level] > 0);
        Shape {
            base_level,
            level_0_target: base_level.min(first.unwrap_or(last)),
            levels: levels.collect(),
        }
    }
}

fn static_targets(levels: usize, options: &PickerOptions) -> Vec<u64> {
    let mut targets = vec![u64::MAX; levels];
    let mut target = options.base_bytes as f64;
    for slot in targets.iter_mut().skip(1) {
        *slot = target as u64;
        target *= options.multiplier;
    }
    targets
}

/// Base level and targets that follow from the largest level (RocksDB's
/// `VersionStorageInfo::CalculateBaseBytes`).
fn dynamic_targets(sizes: &[u64], options: &PickerOptions) -> (usize, Vec<u64>) {
    let levels = sizes.len();
    let last = levels - 1;
    let mut targets = vec![u64::MAX; levels];
    let Some(first) = (1..levels).find(|&level| sizes[level] > 0) else {
        targets[last] = options.base_bytes;
        return (last, targets);
    };
    let largest = sizes[1..].iter().max().copied().unwrap_or(0);
    let base_max = options.base_bytes as f64;
    let base_min = base_max / options.multiplier;
    let mut size = largest as f64;
    for _ in first..last {
        size /= options.multiplier;
    }
    let mut base_level = first;
    if size <= base_min {
        size = base_min + 1.0;
    } else {
        while base_level > 1 && size > base_max {
            base_level -= 1;
            size /= options.multiplier;
        }
        size = size.min(base_max);
    }
    for target in targets.iter_mut().skip(base_level) {
        *target = size.max(base_max) as u64;
        size *= options.multiplier;
    }
    (base_level, targets)
}

/// Base level and capacities of a policy of whole runs. With more than one run allowed, a last
/// level that has only its first run is as far from full as one of Z runs can be, so its
/// capacity is reckoned from its oldest run.
fn tree_capacities(version: &Version, sizes: &[u64], options: &PickerOptions) -> (usize, Vec<u64>) {
    let last = sizes.len() - 1;
    let max_runs = options.policy.max_runs(options.multiplier, 0);
    let oldest = version.levels[last].runs.last();
    let mut capacity = match max_runs {
        1 => sizes[last] as f64,
        _ => oldest.map_or(0.0, |run| run.size() as f64 * max_runs as f64),
    };
    let mut capacities = vec![u64::MAX; sizes.len()];
    let mut base_level = last;
    for level in (1..=last).rev() {
        base_level = level;
        let floor = if level == last { options.base_bytes } else { 1 };
        capacities[level] = (capacity as u64).max(floor);
        let ratio = options.policy.ratio(options.multiplier, last - level);
        // In the middle, in logarithms, of where one more level pays: the base level's size is
        // within the square root of a ratio of what was asked for.
        if capacity <= options.base_bytes as f64 * ratio.sqrt() {
            break;
        }
        capacity /= ratio;
    }
    (base_level, capacities)
}

/// How filters share their memory once every level is full; `flushed` entries are about to become a
/// run of level 0, or none.
pub(crate) fn filter_plan(
    version: &Version,
    options: &PickerOptions,
    bits_per_key: f64,
    flushed: u64,
) -> FilterPlan {
    let mut groups = Vec::new();
    if options.policy.style.is_by_runs() {
        let runs = version.levels.iter().flat_map(|level| &level.runs);
        groups.extend(runs.map(|run| group(1, run_entries(run))));
        groups.push(group(1, flushed as f64));
        return FilterPlan::for_tables(&groups, bits_per_key);
    }
    let shape = Shape::of(version, options);
    let level_0 = &version.levels[0].runs;
    let known: f64 = level_0.iter().map(run_entries).sum::<f64>() + flushed as f64;
    let runs = level_0.len() + usize::from(flushed > 0);
    if runs > 0 {
        let full = runs.max(options.l0_trigger);
        groups.push(group(full, known / runs as f64 * full as f64));
    }
    let last = version.levels.len() - 1;
    let bottom = &version.levels[last];
    let bottom_entries: f64 = bottom.runs.iter().map(run_entries).sum();
    let density = bottom_entries / bottom.size().max(1) as f64;
    for level in shape.base_level..last {
        let actual: f64 = version.levels[level].runs.iter().map(run_entries).sum();
        let target = shape.levels[level];
        let full = match target.capacity {
            u64::MAX => 0.0,
            capacity => (capacity as f64 * density).min(bottom_entries),
        };
        let runs = target.max_runs.max(version.levels[level].runs.len());
        groups.push(group(runs, full.max(actual)));
    }
    groups.push(group(bottom.runs.len().max(1), bottom_entries));
    FilterPlan::for_tables(&groups, bits_per_key)
}

fn run_entries(run: &crate::version::Run) -> f64 {
    run.files.iter().map(|file| file.meta.entries as f64).sum()
}

fn group(runs: usize, entries: f64) -> RunGroup {
    RunGroup {
        runs: runs as f64,
        entries,
    }
}
