//! Compaction: which tables to merge (`picker`, pure) and merging them (`job`).

mod job;
mod merge;
mod picker;
mod separation;

pub(crate) use job::{CompactionContext, TableOutputs, run};
pub(crate) use merge::{Retention, VersionFilter};
pub(crate) use picker::{Choice, InFlight, PickerOptions, pick, pick_range, score};
pub(crate) use separation::{Separation, no_such_file};
