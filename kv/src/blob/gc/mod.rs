//! Garbage collection of blob files, apart from compaction (LavaStore paper, section 3.2.1).
//!
//! The picker (picker.rs) chooses files of a committed version by their garbage and the disk's usage; the
//! rewrite (rewrite.rs) writes their live values, sorted by key, into new files, their heirs; the tables tell
//! which those are (liveness.rs).
//!
//! Heirs of one job have ranges of user keys of their own. A number whose values came to lie in several of them
//! leads to each for its range, so that a reference is resolved with one look at a table and a search among few.

mod job;
mod liveness;
mod picker;
mod rewrite;
mod schedule;

#[cfg(test)]
mod tests;

pub(crate) use self::schedule::{Collections, schedule};
use picker::{Candidate, Effort, GcPick, Limits, Standing, pick};
use rewrite::{Liveness, Rewritten, rewrite};
