//! Garbage collection of blob files, apart from compaction (LavaStore paper, section 3.2.1).
//!
//! The picker (picker.rs) chooses files of a committed version by their garbage and the disk's usage; the
//! rewrite (rewrite.rs) writes their live values, sorted by key, into one new file, their heir; the tables tell
//! which those are (liveness.rs).
//!
//! A number has one heir, so that a reference is resolved with one look at a table: a job
//! therefore writes one file, and the picker bounds what goes into it.

mod job;
mod liveness;
mod picker;
mod rewrite;
mod schedule;

#[cfg(test)]
mod tests;

pub(crate) use self::schedule::{Collections, schedule};
use picker::{Candidate, Effort, GcPick, Limits, Standing, pick};
use rewrite::{LiveCount, Liveness, Rewritten, rewrite};
