//! The leveled picker: from a version to the compaction that helps most. Pure functions.
//!
//! Level 0 merges all its runs into the base level when their number reaches the trigger; any
//! other level whose size exceeds its target merges one table into the next level, the one with the
//! least overlap there per byte (RocksDB's kMinOverlappingRatio). With dynamic level sizes the
//! targets are computed upwards from the size of the last level, so that the levels above hold a fixed share of it
//! and space amplification stays near 1 + 1/T (Dong et al., CIDR 2017); levels above the base
//! level stay empty.
//!
//! Invariants of a choice: no input is in a compaction already; its output range overlaps no
//! output range in flight at the same level; its inputs in the output level are all the tables
//! there that overlap the others; for level 0 every run is an input, so nothing older stays above the output.

use std::collections::HashSet;
use std::sync::Arc;

use crate::file_names::FileNumber;
use crate::options::Options;
use crate::version::{Level, SstFile, Version};

/// What the picker needs of the options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PickerOptions {
    pub(crate) l0_trigger: usize,
    pub(crate) base_bytes: u64,
    pub(crate) multiplier: f64,
    pub(crate) dynamic: bool,
    pub(crate) target_file_size: u64,
}

impl PickerOptions {
    pub(crate) fn of(options: &Options) -> Self {
        PickerOptions {
            l0_trigger: options.level0_file_num_compaction_trigger,
            base_bytes: options.max_bytes_for_level_base,
            multiplier: options.max_bytes_for_level_multiplier,
            dynamic: options.level_compaction_dynamic_level_bytes,
            target_file_size: options.target_file_size_base,
        }
    }
}

/// A compaction that is running.
#[derive(Clone, Debug)]
pub(crate) struct InFlight {
    pub(crate) inputs: HashSet<FileNumber>,
    pub(crate) output_level: usize,
    /// Range of user keys, both ends included.
    pub(crate) smallest: Vec<u8>,
    pub(crate) largest: Vec<u8>,
}

/// Tables of one run that a compaction reads.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) level: usize,
    pub(crate) files: Vec<Arc<SstFile>>,
}

/// A compaction to do.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    /// From new to old.
    pub(crate) inputs: Vec<Input>,
    pub(crate) output_level: usize,
}

impl Choice {
    pub(crate) fn files(&self) -> impl Iterator<Item = (usize, &Arc<SstFile>)> {
        self.inputs
            .iter()
            .flat_map(|input| input.files.iter().map(|file| (input.level, file)))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.files().map(|(_, file)| file.meta.file_size).sum()
    }

    /// Range of user keys of the inputs.
    pub(crate) fn range(&self) -> (&[u8], &[u8]) {
        range_of(self.files().map(|(_, file)| file)).expect("a choice has inputs")
    }

    /// What others must know while it runs.
    pub(crate) fn in_flight(&self) -> InFlight {
        let (smallest, largest) = self.range();
        InFlight {
            inputs: self.files().map(|(_, file)| file.meta.number).collect(),
            output_level: self.output_level,
            smallest: smallest.to_vec(),
            largest: largest.to_vec(),
        }
    }

    /// True where the one run of inputs can change its level without being read.
    pub(crate) fn is_trivial_move(&self) -> bool {
        self.inputs.len() == 1 && self.inputs[0].level != self.output_level
    }

    fn conflicts(&self, busy: &[InFlight]) -> bool {
        let (smallest, largest) = self.range();
        busy.iter().any(|other| {
            self.files()
                .any(|(_, file)| other.inputs.contains(&file.meta.number))
                || (other.output_level == self.output_level
                    && other.smallest.as_slice() <= largest
                    && other.largest.as_slice() >= smallest)
        })
    }
}

/// Targets and needs of a version.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Score {
    /// The level that level 0 is merged into.
    pub(crate) base_level: usize,
    /// Target bytes of each level; `u64::MAX` for levels that should be empty.
    pub(crate) targets: Vec<u64>,
    /// How far each level is beyond its target; from 1 a compaction is due.
    pub(crate) scores: Vec<f64>,
    /// Estimate of the bytes to be rewritten until every level is within its target.
    pub(crate) pending_bytes: u64,
}

/// Targets and needs of `version`.
pub(crate) fn score(version: &Version, options: &PickerOptions) -> Score {
    let sizes: Vec<u64> = version.levels.iter().map(Level::size).collect();
    let (base_level, targets) = if options.dynamic {
        dynamic_targets(&sizes, options)
    } else {
        (1, static_targets(sizes.len(), options))
    };
    let mut scores = vec![0.0; sizes.len()];
    scores[0] = version.levels[0].runs.len() as f64 / options.l0_trigger as f64;
    for level in 1..sizes.len() - 1 {
        if sizes[level] > 0 {
            // A level above the base level should be empty: any byte is too much.
            scores[level] = if level < base_level {
                f64::MAX
            } else {
                sizes[level] as f64 / targets[level] as f64
            };
        }
    }
    let pending_bytes = pending_bytes(&sizes, &targets, base_level, scores[0] >= 1.0);
    Score {
        base_level,
        targets,
        scores,
        pending_bytes,
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

fn pending_bytes(sizes: &[u64], targets: &[u64], base_level: usize, l0_due: bool) -> u64 {
    let mut pending = 0_u64;
    let mut incoming = 0_u64;
    if l0_due {
        pending += sizes[0] + sizes[base_level];
        incoming = sizes[0];
    }
    for level in base_level..sizes.len() - 1 {
        let size = sizes[level] + incoming;
        incoming = size.saturating_sub(targets[level]);
        if incoming > 0 {
            let ratio = sizes[level + 1] as f64 / size as f64;
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
    let score = score(version, options);
    let mut levels: Vec<usize> = (0..version.levels.len() - 1)
        .filter(|&level| score.scores[level] >= 1.0)
        .collect();
    levels.sort_by(|&a, &b| score.scores[b].total_cmp(&score.scores[a]));
    levels.into_iter().find_map(|level| match level {
        0 => pick_level0(version, score.base_level, busy),
        _ => pick_from_level(version, level, busy),
    })
}

fn pick_level0(version: &Version, base_level: usize, busy: &[InFlight]) -> Option<Choice> {
    let runs = &version.levels[0].runs;
    let inputs: Vec<Input> = runs
        .iter()
        .map(|run| Input {
            level: 0,
            files: run.files.clone(),
        })
        .collect();
    complete(version, inputs, base_level, busy)
}

/// Of the level's tables the one that drags the least from the next level, per byte.
fn pick_from_level(version: &Version, level: usize, busy: &[InFlight]) -> Option<Choice> {
    let next = &version.levels[level + 1];
    // The oldest run of a level moves first, or it would end up above older data.
    let run = version.levels[level].runs.last()?;
    let mut ranked: Vec<(u64, &Arc<SstFile>)> = run
        .files
        .iter()
        .map(|file| {
            let meta = &file.meta;
            let range = (
                Some(meta.smallest_user_key()),
                Some(meta.largest_user_key()),
            );
            let overlap: u64 = next
                .runs
                .iter()
                .flat_map(|run| run.overlapping(range.0, range.1))
                .map(|file| file.meta.file_size)
                .sum();
            (overlap * 1024 / meta.file_size.max(1), file)
        })
        .collect();
    ranked.sort_by_key(|(ratio, file)| (*ratio, file.meta.number));
    ranked.into_iter().find_map(|(_, file)| {
        let files = vec![Arc::clone(file)];
        complete(version, vec![Input { level, files }], level + 1, busy)
    })
}

/// A manual compaction of what `level` has in the range, towards deeper levels. Takes a part of
/// a level below 0 at a time, so that space needed stays bounded: repeat until `None`.
/// `Some(Err(()))` says that a compaction in flight is in the way.
pub(crate) fn pick_range(
    version: &Version,
    level: usize,
    range: (Option<&[u8]>, Option<&[u8]>),
    options: &PickerOptions,
    busy: &[InFlight],
) -> Option<Result<Choice, ()>> {
    let output_level = match level {
        0 => score(version, options).base_level,
        _ => level + 1,
    };
    let runs = &version.levels[level].runs;
    let overlaps = runs
        .iter()
        .any(|run| !run.overlapping(range.0, range.1).is_empty());
    if !overlaps {
        return None;
    }
    let mut inputs = Vec::new();
    if level == 0 {
        inputs.extend(runs.iter().map(|run| Input {
            level,
            files: run.files.clone(),
        }));
    } else {
        let run = runs.last()?;
        let mut bytes = 0;
        let files: Vec<_> = run
            .overlapping(range.0, range.1)
            .iter()
            .take_while(|file| {
                let first = bytes == 0;
                bytes += file.meta.file_size;
                first || bytes <= options.target_file_size.saturating_mul(25)
            })
            .cloned()
            .collect();
        inputs.push(Input { level, files });
    }
    Some(complete(version, inputs, output_level, busy).ok_or(()))
}

/// Adds what the output level has in the inputs' range; `None` where something is busy.
fn complete(
    version: &Version,
    mut inputs: Vec<Input>,
    output_level: usize,
    busy: &[InFlight],
) -> Option<Choice> {
    let (smallest, largest) = range_of(inputs.iter().flat_map(|input| &input.files))?;
    let mut below = Vec::new();
    for run in &version.levels[output_level].runs {
        let files = run.overlapping(Some(smallest), Some(largest)).to_vec();
        if !files.is_empty() {
            below.push(Input {
                level: output_level,
                files,
            });
        }
    }
    inputs.extend(below);
    let choice = Choice {
        inputs,
        output_level,
    };
    (!choice.conflicts(busy)).then_some(choice)
}

fn range_of<'a>(files: impl Iterator<Item = &'a Arc<SstFile>>) -> Option<(&'a [u8], &'a [u8])> {
    files.fold(None, |range, file| {
        let (low, high) = (file.meta.smallest_user_key(), file.meta.largest_user_key());
        Some(
            range.map_or((low, high), |(smallest, largest): (&[u8], &[u8])| {
                (smallest.min(low), largest.max(high))
            }),
        )
    })
}

#[cfg(test)]
mod tests;
