//! The merge policy and its parameters: which shape compaction gives the tree.
//!
//! A shape says how much larger each level is than the one above it and how many runs a level
//! may have (Dayan and Idreos, "Dostoevsky", SIGMOD 2018; "The Log-Structured Merge-Bush", SIGMOD
//! 2019). With size ratio T:
//!
//! | style | ratio of levels | runs of a level | runs of the last level |
//! | --- | --- | --- | --- |
//! | level | T | 1 | 1 |
//! | tiered | T | T - 1 | T - 1 |
//! | lazy_level | T | T - 1 | 1 |
//! | fluid | T | K | Z |
//! | bush | T^(X^(d-1)) at d levels above the last, C at the last | the ratio | 1 |
//!
//! `universal` and `fifo` are RocksDB's, and reckon with runs alone. The policy of a database may be
//! another at each open: see [`crate::Options::compaction`].

use crate::error::{Error, Result};

/// Most runs that any level may be given.
const MAX_RUNS: usize = 256;

/// A merge policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CompactionStyle {
    /// One run a level; a compaction takes a table at a time. The least space and the fastest
    /// scans.
    #[default]
    Level,
    /// RocksDB's universal compaction: neighbouring runs of similar size are merged.
    Universal,
    /// Nothing is merged; the oldest tables go when the size or their age reaches a limit.
    Fifo,
    /// T - 1 runs at every level: the least writing, the most space.
    Tiered,
    /// T - 1 runs at every level but the last, which has one.
    LazyLevel,
    /// K runs at every level but the last, which has Z.
    Fluid,
    /// Ratios that grow towards the smaller levels, and one run at the last level.
    Bush,
}

/// The merge policy and its parameters. Those of other policies are ignored.
#[derive(Clone, PartialEq, Debug)]
pub struct CompactionOptions {
    /// Default `Level`.
    pub style: CompactionStyle,
    /// `Fluid`: K, runs of each level but the last, 1 to 256. Default 4.
    pub fluid_runs: usize,
    /// `Fluid`: Z, runs of the last level, 1 to 256. Default 1.
    pub fluid_last_runs: usize,
    /// `Bush`: X, 1 to 3; at 1 the ratio is T everywhere. Default 2.
    pub bush_growth: f64,
    /// `Bush`: C, the last level's size relative to the one above it, at least 1. Default 4.
    pub bush_last_ratio: f64,
    /// `Universal`: a run is merged with the newer ones if it is at most this many percent larger
    /// than all of them. Default 1.
    pub universal_size_ratio: u64,
    /// `Universal`: fewest runs merged for their size, at least 2. Default 2.
    pub universal_min_merge_width: usize,
    /// `Universal`: most runs merged for their size; 0: no limit. Default 0.
    pub universal_max_merge_width: usize,
    /// `Universal`: all runs are merged when those but the oldest have this many percent of its
    /// size. Default 200.
    pub universal_max_size_amplification_percent: u64,
    /// `Fifo`: bytes of all tables, with their values in blob files, from which the oldest go. Default 1 GiB.
    pub fifo_max_table_files_size: u64,
    /// `Fifo`: seconds after which a table goes, looked at when background work ends; 0: never.
    /// Tables of before this option was known have no age and stay. Default 0.
    pub fifo_ttl: u64,
    /// A table of which at least this part of the entries are deletions is compacted though its
    /// level is within its target, 0 to 1; 0: never. `Level` only. Default 0.5.
    pub tombstone_ratio: f64,
}

impl Default for CompactionOptions {
    fn default() -> Self {
        CompactionOptions {
            style: CompactionStyle::Level,
            fluid_runs: 4,
            fluid_last_runs: 1,
            bush_growth: 2.0,
            bush_last_ratio: 4.0,
            universal_size_ratio: 1,
            universal_min_merge_width: 2,
            universal_max_merge_width: 0,
            universal_max_size_amplification_percent: 200,
            fifo_max_table_files_size: 1 << 30,
            fifo_ttl: 0,
            tombstone_ratio: 0.5,
        }
    }
}

/// Names in the options file and on the command line.
pub(crate) const STYLE_NAMES: [(&str, CompactionStyle); 7] = [
    ("level", CompactionStyle::Level),
    ("universal", CompactionStyle::Universal),
    ("fifo", CompactionStyle::Fifo),
    ("tiered", CompactionStyle::Tiered),
    ("lazy_level", CompactionStyle::LazyLevel),
    ("fluid", CompactionStyle::Fluid),
    ("bush", CompactionStyle::Bush),
];

impl CompactionStyle {
    /// True for the policies that see one sequence of runs and no levels.
    pub(crate) fn is_by_runs(self) -> bool {
        matches!(self, CompactionStyle::Universal | CompactionStyle::Fifo)
    }

    /// The style with this name, or RocksDB's number for it: 0, 1, 2.
    pub fn parse(text: &str) -> Option<CompactionStyle> {
        let numbered = text.parse().ok().filter(|&number: &usize| number < 3);
        let named = || STYLE_NAMES.iter().position(|(name, _)| *name == text);
        numbered.or_else(named).map(|at| STYLE_NAMES[at].1)
    }
}

impl CompactionOptions {
    /// Checks every range.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the first option that is out of range.
    pub fn validate(&self) -> Result<()> {
        let runs = 1..=MAX_RUNS;
        let width = self.universal_max_merge_width;
        let checks = [
            (runs.contains(&self.fluid_runs), "fluid_runs in 1..=256"),
            (
                runs.contains(&self.fluid_last_runs),
                "fluid_last_runs in 1..=256",
            ),
            (
                (1.0..=3.0).contains(&self.bush_growth),
                "bush_growth in 1..=3",
            ),
            (
                (1.0..=1000.0).contains(&self.bush_last_ratio),
                "bush_last_ratio in 1..=1000",
            ),
            (
                self.universal_min_merge_width >= 2,
                "universal_min_merge_width >= 2",
            ),
            (
                width == 0 || width >= self.universal_min_merge_width,
                "universal_max_merge_width 0 or >= universal_min_merge_width",
            ),
            (
                (0.0..=1.0).contains(&self.tombstone_ratio),
                "tombstone_ratio in 0..=1",
            ),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(Error::invalid_argument(format!("options need {rule}"))),
            None => Ok(()),
        }
    }

    /// The ratio of a level to the one above it, `distance` levels above the last, at size
    /// ratio `base`.
    pub(crate) fn ratio(&self, base: f64, distance: usize) -> f64 {
        match (self.style, distance) {
            (CompactionStyle::Bush, 0) => self.bush_last_ratio,
            (CompactionStyle::Bush, _) => {
                let exponent = self.bush_growth.powi(distance as i32 - 1);
                base.powf(exponent).min(MAX_RUNS as f64)
            }
            _ => base,
        }
    }

    /// Runs that a level may have, `distance` levels above the last, at size ratio `base`.
    pub(crate) fn max_runs(&self, base: f64, distance: usize) -> usize {
        let tiered = (base.floor() as usize).saturating_sub(1).max(1);
        match (self.style, distance) {
            (CompactionStyle::Tiered, _) => tiered,
            (CompactionStyle::Fluid, 0) => self.fluid_last_runs,
            (CompactionStyle::Level | CompactionStyle::LazyLevel | CompactionStyle::Bush, 0) => 1,
            (CompactionStyle::LazyLevel, _) => tiered,
            (CompactionStyle::Fluid, _) => self.fluid_runs,
            (CompactionStyle::Bush, _) => self.ratio(base, distance).floor() as usize,
            (CompactionStyle::Level, _) => 1,
            (CompactionStyle::Universal | CompactionStyle::Fifo, _) => MAX_RUNS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_style_has_the_runs_of_its_paper() {
        let of = |style| CompactionOptions {
            style,
            fluid_runs: 3,
            fluid_last_runs: 2,
            ..CompactionOptions::default()
        };
        let runs = |style| {
            let options = of(style);
            [0, 1, 2, 3].map(|distance| options.max_runs(4.0, distance))
        };
        assert_eq!(runs(CompactionStyle::Level), [1, 1, 1, 1]);
        assert_eq!(runs(CompactionStyle::Tiered), [3, 3, 3, 3]);
        assert_eq!(runs(CompactionStyle::LazyLevel), [1, 3, 3, 3]);
        assert_eq!(runs(CompactionStyle::Fluid), [2, 3, 3, 3]);
        // T^(X^(L-i-1)): 4, 16, 256 runs towards the smaller levels.
        assert_eq!(runs(CompactionStyle::Bush), [1, 4, 16, 256]);
    }

    #[test]
    fn styles_have_rocksdbs_numbers_and_names_of_their_own() {
        assert_eq!(
            CompactionStyle::parse("1"),
            Some(CompactionStyle::Universal)
        );
        assert_eq!(CompactionStyle::parse("bush"), Some(CompactionStyle::Bush));
        assert_eq!(CompactionStyle::parse("3"), None);
        let bad = CompactionOptions {
            fluid_runs: 0,
            ..CompactionOptions::default()
        };
        assert!(
            bad.validate()
                .unwrap_err()
                .to_string()
                .contains("fluid_runs")
        );
        CompactionOptions::default().validate().unwrap();
    }
}
