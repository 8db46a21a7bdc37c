//! Policies of whole runs: tiered, lazy leveled, fluid and bush (Dostoevsky, section 4; LSM-Bush).
//!
//! A level that is due gives all its runs at once to the next one, where the result becomes the
//! newest run. It is merged with the run that was the newest there if the two together are no
//! larger than a run of that level should be; with one run a level they always are, and that is
//! leveling. Where the next level has all the runs it may have, they are inputs too and the result
//! goes one level further down, which saves writing it twice. The last level takes everything
//! into one run once it is full.

use crate::version::{Level, Run, Version};

use super::super::choice::{Action, Choice, InFlight, Input, new_run_id};
use super::super::shape::Shape;
use super::{PickerOptions, due_levels, score};

pub(super) fn pick(
    version: &Version,
    options: &PickerOptions,
    busy: &[InFlight],
) -> Option<Choice> {
    let score = score(version, options);
    due_levels(&score)
        .into_iter()
        .find_map(|level| move_down(version, &score.shape, level).unless_busy(busy))
}

/// All runs of `level`, and what has to go with them.
fn move_down(version: &Version, shape: &Shape, level: usize) -> Choice {
    let last = version.levels.len() - 1;
    let mut inputs = whole(level, &version.levels[level]);
    let mut bytes = version.levels[level].size();
    let mut target = if level == 0 {
        shape.level_0_target
    } else {
        level + 1
    };
    loop {
        let runs = &version.levels[target].runs;
        let wanted = shape.levels[target];
        if let Some(newest) = runs.first().filter(|run| absorbs(run, bytes, wanted)) {
            inputs.push(Input::whole(target, newest));
            return merge(inputs, target, newest.id);
        }
        if runs.len() < wanted.max_runs {
            return merge(inputs, target, new_run_id(version, target));
        }
        if runs.len() > wanted.max_runs {
            // Another policy left them. They are merged at their own pace.
            inputs.push(Input::whole(target, &runs[0]));
            return merge(inputs, target, runs[0].id);
        }
        inputs.extend(whole(target, &version.levels[target]));
        bytes += version.levels[target].size();
        if target == last {
            return merge_in_place(inputs);
        }
        target += 1;
    }
}

/// True where `incoming` bytes are merged into `run` rather than put beside it.
fn absorbs(run: &Run, incoming: u64, wanted: super::super::shape::LevelTarget) -> bool {
    wanted.max_runs == 1
        || (run.size() + incoming).saturating_mul(wanted.max_runs as u64) <= wanted.capacity
}

fn whole(level: usize, runs: &Level) -> Vec<Input> {
    runs.runs
        .iter()
        .map(|run| Input::whole(level, run))
        .collect()
}

fn merge(inputs: Vec<Input>, output_level: usize, output_run: u64) -> Choice {
    Choice {
        action: Action::Merge,
        inputs,
        output_level,
        output_run,
    }
}

/// One run of whole runs, in the place of the newest one of the deepest level among them.
pub(super) fn merge_in_place(inputs: Vec<Input>) -> Choice {
    let level = inputs.last().expect("runs to merge").level;
    let newest = inputs.iter().find(|input| input.level == level);
    let run = newest.expect("the last one is of that level").run;
    merge(inputs, level, run)
}
