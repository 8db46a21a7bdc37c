//! What snapshots have left behind: a table of the last level that kept versions for snapshots is written anew
//! without them when these are released. Nothing else would: what lies deeper than all else is the input of no
//! compaction until new writes come down to it.
//!
//! A table qualifies when no snapshot is older than its newest entry. All its versions look the same to every
//! reader then, so it is written with none hidden, and this comes to an end.

use std::sync::Arc;

use crate::key::SeqNo;
use crate::version::{SstFile, Version};

use super::super::choice::{Choice, InFlight};

/// A part of a table's entries, one in so many, from which it is written anew for the hidden ones.
const HIDDEN_PART: u64 = 32;

/// Tables of the last level with hidden entries, with their level and run.
fn tables(version: &Version) -> impl Iterator<Item = (usize, u64, &Arc<SstFile>)> {
    let filled = |level: &usize| version.levels[*level].file_count() > 0;
    let last = (1..version.levels.len()).rfind(filled);
    let runs = last.into_iter().flat_map(|level| {
        let runs = version.levels[level].runs.iter();
        runs.map(move |run| (level, run))
    });
    let files =
        runs.flat_map(|(level, run)| run.files.iter().map(move |file| (level, run.id, file)));
    files.filter(|(.., file)| file.meta.hidden.entries > 0)
}

fn is_worth_it(file: &SstFile) -> bool {
    file.meta.hidden.entries >= file.meta.entries / HIDDEN_PART
}

/// The table with the most hidden entries that nobody needs any more, if they are worth it.
pub(super) fn pick(version: &Version, oldest: SeqNo, busy: &[InFlight]) -> Option<Choice> {
    let mut ripe: Vec<_> = tables(version)
        .filter(|(.., file)| file.meta.largest_seq <= oldest && is_worth_it(file))
        .collect();
    ripe.sort_by_key(|(.., file)| {
        let hidden = file.meta.hidden;
        (std::cmp::Reverse(hidden.entries), file.meta.number)
    });
    let mut ripe = ripe.into_iter();
    ripe.find_map(|(level, run, file)| Choice::anew(level, run, file).unless_busy(busy))
}

/// The first table in a range of user keys with hidden entries that nobody needs any more, however few.
pub(super) fn pick_range(
    version: &Version,
    range: (Option<&[u8]>, Option<&[u8]>),
    oldest: SeqNo,
) -> Option<Choice> {
    let within = |file: &SstFile| {
        let begins_before_end = range
            .1
            .is_none_or(|end| file.meta.smallest_user_key() <= end);
        begins_before_end
            && range
                .0
                .is_none_or(|begin| file.meta.largest_user_key() >= begin)
    };
    let ripe =
        |(.., file): &(usize, u64, &Arc<SstFile>)| file.meta.largest_seq <= oldest && within(file);
    let (level, run, file) = tables(version).find(ripe)?;
    Some(Choice::anew(level, run, file))
}

/// The sequence number that the oldest snapshot must reach for a table to qualify, the least of all that do not
/// while `oldest` is the oldest snapshot.
pub(super) fn awaited(version: &Version, oldest: SeqNo) -> Option<SeqNo> {
    let waiting = tables(version).filter(|(.., file)| is_worth_it(file));
    let newest = waiting.map(|(.., file)| file.meta.largest_seq);
    newest.filter(|&newest| newest > oldest).min()
}
