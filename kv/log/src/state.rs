//! What the engine knows of one log, and the rules that follow from it: which LSN it takes,
//! which record is alive, what a read of an LSN that is not there means.
//!
//! Locks: [`LogState::core`] guards everything that changes. It is taken after the locks of the
//! datalog and metalog and before that of the file table, and never held across device I/O.
//!
//! Invariants:
//! - the floor only rises;
//! - the epoch rises by one with each truncation, and each record carries the epoch in which it
//!   was appended: a record of epoch e is dead if a truncation to an epoch above e began at or
//!   below its LSN;
//! - `truncations` is a staircase: both fields rise. A later truncation that begins lower
//!   says everything that an earlier one did.

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::index::{Entry, Index};
use crate::options::{Duplicates, Mode};

#[derive(Debug)]
pub(crate) struct LogState {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) core: Mutex<Core>,
}

#[derive(Debug, Default)]
pub(crate) struct Core {
    pub(crate) floor: u64,
    pub(crate) epoch: u32,
    pub(crate) truncations: Vec<Truncation>,
    pub(crate) deleted: bool,
    pub(crate) index: Index,
}

/// Everything at or above `from` of an epoch below `epoch` is dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Truncation {
    pub(crate) epoch: u32,
    pub(crate) from: u64,
}

/// What an append that is allowed does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Admission {
    Store,
    /// The LSN is there already and stays as it is.
    Duplicate,
}

/// What the group being built holds of a log, beside the index.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Staged {
    /// The LSN in question is staged.
    pub(crate) same: bool,
    /// The last LSN staged.
    pub(crate) last: Option<u64>,
}

impl LogState {
    /// Decides on an append of `lsn`.
    pub(crate) fn admit(&self, core: &Core, lsn: u64, staged: Staged) -> Result<Admission> {
        core.check_alive(&self.name)?;
        if lsn < core.floor {
            return Err(Error::Trimmed {
                lsn,
                floor: core.floor,
            });
        }
        match self.mode {
            Mode::Dense => {
                let last = staged.last.or(core.index.last());
                let next = last.map(|last| last.saturating_add(1));
                match next.or_else(|| core.next_dense()) {
                    // After u64::MAX there is no next.
                    Some(expected) if expected != lsn || last == Some(lsn) => {
                        Err(Error::OutOfOrder { lsn, expected })
                    }
                    _ => Ok(Admission::Store),
                }
            }
            Mode::Sparse { duplicates } => {
                if !staged.same && core.index.get(lsn).is_none() {
                    return Ok(Admission::Store);
                }
                match duplicates {
                    Duplicates::KeepFirst => Ok(Admission::Duplicate),
                    Duplicates::Reject => Err(Error::Duplicate { lsn }),
                    Duplicates::LastWins => Ok(Admission::Store),
                }
            }
        }
    }

    /// True where of two records of one LSN the one with the higher operation number counts.
    pub(crate) fn later_wins(&self) -> bool {
        match self.mode {
            Mode::Dense => true,
            Mode::Sparse { duplicates } => duplicates == Duplicates::LastWins,
        }
    }
}

impl Core {
    pub(crate) fn check_alive(&self, name: &str) -> Result<()> {
        if self.deleted {
            return Err(Error::Deleted { name: name.into() });
        }
        Ok(())
    }

    /// The LSN that a dense log takes next; `None` for any.
    pub(crate) fn next_dense(&self) -> Option<u64> {
        if let Some(last) = self.index.last() {
            // After u64::MAX there is no next; saturating makes that a plain OutOfOrder.
            return Some(last.saturating_add(1));
        }
        let truncated = self.truncations.last().map_or(0, |t| t.from);
        let base = self.floor.max(truncated);
        (base > 0).then_some(base)
    }

    /// The entry of `lsn`, or why there is none.
    pub(crate) fn lookup(&self, name: &str, lsn: u64) -> Result<Entry> {
        self.check_alive(name)?;
        if lsn < self.floor {
            return Err(Error::Trimmed {
                lsn,
                floor: self.floor,
            });
        }
        let last = self.index.last();
        self.index.get(lsn).ok_or(match last {
            Some(last) if lsn < last => Error::Missing { lsn },
            _ => Error::Beyond { lsn, last },
        })
    }

    /// True where a record of this epoch and LSN is not trimmed or truncated.
    pub(crate) fn is_live(&self, epoch: u32, lsn: u64) -> bool {
        let later = self.truncations.iter().find(|t| t.epoch > epoch);
        lsn >= self.floor && later.is_none_or(|t| lsn < t.from)
    }

    pub(crate) fn add_truncation(&mut self, truncation: Truncation) {
        self.epoch = truncation.epoch;
        self.truncations.retain(|t| t.from < truncation.from);
        self.truncations.push(truncation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_staircase_of_truncations_kills_what_each_of_them_killed() {
        let all = [
            (1, 50),
            (2, 80),
            (3, 60),
            (4, 90),
            (5, 90),
            (6, 10),
            (7, 20),
        ];
        for count in 0..=all.len() {
            let mut core = Core::default();
            for &(epoch, from) in &all[..count] {
                core.add_truncation(Truncation { epoch, from });
            }
            for epoch in 0..8 {
                for lsn in 0..100 {
                    let dead = all[..count]
                        .iter()
                        .any(|&(e, from)| e > epoch && lsn >= from);
                    assert_eq!(core.is_live(epoch, lsn), !dead, "{count} {epoch} {lsn}");
                }
            }
        }
    }
}
