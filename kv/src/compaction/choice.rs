//! What a picker chooses: runs and tables to merge, and the run that the result goes to.
//!
//! Invariants of a choice. Its inputs are neighbours in age: no table outside of it that shares a key
//! with it is newer than one of its inputs and older than another. Of the output run it has all
//! tables that overlap the others, so the result fits between those that stay. What stays is
//! either newer than the output run or older than every input.

use std::collections::HashSet;
use std::sync::Arc;

use crate::file_names::FileNumber;
use crate::version::{Run, SstFile, Version};

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
    pub(crate) run: u64,
    pub(crate) files: Vec<Arc<SstFile>>,
}

impl Input {
    /// All tables of a run.
    pub(crate) fn whole(level: usize, run: &Run) -> Input {
        Input {
            level,
            run: run.id,
            files: run.files.to_vec(),
        }
    }

    /// One table of the run `run`.
    pub(crate) fn table(level: usize, run: u64, file: &Arc<SstFile>) -> Input {
        Input {
            level,
            run,
            files: vec![Arc::clone(file)],
        }
    }
}

/// What is done with the inputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Merge them, or move them where that comes to the same.
    Merge,
    /// Forget them: a FIFO's oldest tables.
    Drop,
    /// Move surplus runs together after the policy has changed; charged to the migration's budget.
    Migrate,
}

/// A compaction to do.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) action: Action,
    /// From new to old.
    pub(crate) inputs: Vec<Input>,
    pub(crate) output_level: usize,
    pub(crate) output_run: u64,
}

impl Choice {
    /// Writes a table of run `run` anew, in its place.
    pub(crate) fn anew(level: usize, run: u64, file: &Arc<SstFile>) -> Choice {
        Choice {
            action: Action::Merge,
            inputs: vec![Input::table(level, run, file)],
            output_level: level,
            output_run: run,
        }
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = (usize, &Arc<SstFile>)> {
        self.inputs
            .iter()
            .flat_map(|input| input.files.iter().map(|file| (input.level, file)))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.files().map(|(_, file)| file.meta.file_size).sum()
    }

    pub(crate) fn entries(&self) -> u64 {
        self.files().map(|(_, file)| file.meta.entries).sum()
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

    /// True where tables can change their place without being read: no two inputs share a key, and
    /// not all are in place.
    pub(crate) fn is_trivial_move(&self) -> bool {
        let place = (self.output_level, self.output_run);
        if self
            .inputs
            .iter()
            .all(|input| (input.level, input.run) == place)
        {
            return false;
        }
        let mut ranges: Vec<(&[u8], &[u8])> = self
            .files()
            .map(|(_, file)| (file.meta.smallest_user_key(), file.meta.largest_user_key()))
            .collect();
        ranges.sort_unstable();
        ranges.windows(2).all(|pair| pair[0].1 < pair[1].0)
    }

    /// The runs with versions of keys older than all inputs, output run excluded.
    pub(crate) fn older_runs<'a>(&self, version: &'a Version) -> Vec<&'a Run> {
        let beside = version.levels[self.output_level].runs.iter().filter(|run| {
            let is_input = |input: &Input| (input.level, input.run) == (self.output_level, run.id);
            run.id < self.output_run && !self.inputs.iter().any(is_input)
        });
        let below = version.levels[self.output_level + 1..]
            .iter()
            .flat_map(|level| &level.runs);
        beside.chain(below).collect()
    }

    /// Entries that the output run will have, at most.
    pub(crate) fn run_entries(&self, version: &Version) -> u64 {
        let taken = self.in_flight().inputs;
        let stays = version.levels[self.output_level]
            .runs
            .iter()
            .filter(|run| run.id == self.output_run)
            .flat_map(|run| run.files.iter())
            .filter(|file| !taken.contains(&file.meta.number));
        self.entries() + stays.map(|file| file.meta.entries).sum::<u64>()
    }

    pub(crate) fn conflicts(&self, busy: &[InFlight]) -> bool {
        let (smallest, largest) = self.range();
        busy.iter().any(|other| {
            self.files()
                .any(|(_, file)| other.inputs.contains(&file.meta.number))
                || (other.output_level == self.output_level
                    && other.smallest.as_slice() <= largest
                    && other.largest.as_slice() >= smallest)
        })
    }

    /// Itself, unless something of it is busy.
    pub(crate) fn unless_busy(self, busy: &[InFlight]) -> Option<Choice> {
        (!self.conflicts(busy)).then_some(self)
    }
}

/// A merge of `inputs` into the newest run of `output_level`, or a first one there, with what that
/// run has in their range. `None` where something is busy.
pub(crate) fn into_newest_run(
    version: &Version,
    inputs: Vec<Input>,
    output_level: usize,
    busy: &[InFlight],
) -> Option<Choice> {
    let run = version.levels[output_level].runs.first();
    into_run(inputs, output_level, run, busy)
}

/// See [`into_newest_run`]; `run` is the output run, `None` for a first one in its level.
pub(crate) fn into_run(
    mut inputs: Vec<Input>,
    output_level: usize,
    run: Option<&Run>,
    busy: &[InFlight],
) -> Option<Choice> {
    let (smallest, largest) = range_of(inputs.iter().flat_map(|input| &input.files))?;
    let files = run.map(|run| run.overlapping(Some(smallest), Some(largest)).to_vec());
    let output_run = run.map_or(0, |run| run.id);
    if let Some(files) = files.filter(|files| !files.is_empty()) {
        inputs.push(Input {
            level: output_level,
            run: output_run,
            files,
        });
    }
    let choice = Choice {
        action: Action::Merge,
        inputs,
        output_level,
        output_run,
    };
    choice.unless_busy(busy)
}

/// The id of a run that is newer than all of its level.
pub(crate) fn new_run_id(version: &Version, level: usize) -> u64 {
    let newest = version.levels[level].runs.first();
    newest.map_or(0, |run| run.id + 1)
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
