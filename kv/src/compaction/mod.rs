//! Compaction: the shape that a policy wants (`shape`), which tables to merge (`picker`, pure), merging
//! them (`job`), and how large their filters are (`filters`).

mod choice;
mod correlated;
mod filters;
mod job;
mod merge;
mod picker;
mod separation;
mod shape;
mod split;

pub(crate) use choice::{Action, Choice, InFlight};
pub(crate) use correlated::{Along, take_along};
pub(crate) use job::{CompactionContext, TableOutputs, Warm, run};
pub(crate) use merge::{Retention, VersionFilter};
pub(crate) use picker::{PickerOptions, pick, pick_range, score};
pub(crate) use separation::{Separation, no_such_file};
pub(crate) use shape::filter_plan;
pub(crate) use split::{Part, split};
