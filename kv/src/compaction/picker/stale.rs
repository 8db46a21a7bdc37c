//! Stale references: tables that keep the numbers of collected blob files in use are written anew when
//! these have become many, and refer to the present files then (LavaStore paper, section 3.2.1: the inheritance
//! tree is pruned periodically).
//!
//! What is stale follows from the version alone, so it is the same after a reopen. The bound is on all numbers
//! together, so that looking costs nothing while they are few; the table with the most goes first. A table that was
//! written anew has none, so this comes to an end.

use std::sync::Arc;

use crate::version::{SstFile, Version};

use super::super::choice::{Choice, InFlight};

/// Ancestors that are put up with, unless there are more files than that.
const ANCESTORS_MIN: usize = 64;

/// The table whose references lead through the most ancestors, if all together are too many.
pub(super) fn pick(version: &Version, busy: &[InFlight]) -> Option<Choice> {
    let blobs = &version.blobs;
    if blobs.ancestor_count() <= ANCESTORS_MIN.max(blobs.files().len()) {
        return None;
    }
    let ancestors = |file: &Arc<SstFile>| {
        let names = file.meta.blob_refs.iter().map(|(number, _)| number);
        names
            .filter(|number| !blobs.files().contains_key(number))
            .count()
    };
    let mut tables: Vec<_> = version
        .files()
        .map(|(level, run, file)| (ancestors(file), level, run, file))
        .filter(|(ancestors, ..)| *ancestors > 0)
        .collect();
    tables.sort_by_key(|(ancestors, .., file)| (std::cmp::Reverse(*ancestors), file.meta.number));
    tables
        .into_iter()
        .find_map(|(_, level, run, file)| Choice::anew(level, run, file).unless_busy(busy))
}
