//! How large the filter of each run is: Monkey's optimum under one memory budget.
//!
//! A lookup of a key that is not there reads a block of each run whose filter errs, so it costs the
//! sum of the runs' false-positive rates p. With a fixed number of filter bits that sum is least
//! where each run's rate is proportional to its number of entries (Dayan, Athanassoulis, Idreos, "Monkey",
//! SIGMOD 2017, section 4; for any number of runs a level: p = min(1, lambda n / r) with n entries in
//! r runs). A rate of 1 is no filter. `lambda` has no closed form for a general shape and is bisected:
//! memory falls as it grows.
//!
//! The shape is that of a tree whose levels are as full as their targets, not that of this very
//! moment: a last level is built when the levels above it are empty, and were it given the whole
//! budget then, what fills them later would exceed it.
//!
//! Pure: no clock, no file.

use crate::sstable::bits_for_rate;

/// Steps of the bisection: more than a double has bits in its logarithm's useful range.
const STEPS: usize = 80;

/// Runs of one size.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct RunGroup {
    pub(crate) runs: f64,
    /// Entries of all of them.
    pub(crate) entries: f64,
}

impl RunGroup {
    fn entries_per_run(&self) -> f64 {
        self.entries / self.runs
    }
}

/// The optimal rates of a shape, as the factor that turns a run's entries into its rate.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct FilterPlan {
    lambda: f64,
}

impl FilterPlan {
    /// The plan under which filters of all groups take `bits_per_key` bits per entry on average.
    /// `cost` tells the bits per key of a filter with a given rate; it must fall as the rate
    /// grows, to 0 at a rate of 1.
    pub(crate) fn solve(
        groups: &[RunGroup],
        bits_per_key: f64,
        cost: impl Fn(f64) -> f64,
    ) -> FilterPlan {
        let entries: f64 = groups.iter().map(|group| group.entries).sum();
        if bits_per_key <= 0.0 || entries <= 0.0 {
            return FilterPlan {
                lambda: f64::INFINITY,
            };
        }
        let budget = bits_per_key * entries;
        let memory = |lambda: f64| -> f64 {
            let bits = groups
                .iter()
                .filter(|group| group.entries > 0.0)
                .map(|group| {
                    let rate = (lambda * group.entries_per_run()).min(1.0);
                    group.entries * cost(rate)
                });
            bits.sum()
        };
        // Logarithms: at the low end even a single entry's filter is at its largest.
        let (mut low, mut high) = (1e-30_f64.ln(), 0.0_f64);
        for _ in 0..STEPS {
            let middle = f64::midpoint(low, high);
            if memory(middle.exp()) > budget {
                low = middle;
            } else {
                high = middle;
            }
        }
        FilterPlan { lambda: high.exp() }
    }

    /// The plan for this engine's filters.
    pub(crate) fn for_tables(groups: &[RunGroup], bits_per_key: f64) -> FilterPlan {
        FilterPlan::solve(groups, bits_per_key, bits_for_rate)
    }

    /// The rate that the filter of a run of `entries` should have.
    pub(crate) fn rate(&self, entries: f64) -> f64 {
        (self.lambda * entries.max(1.0)).min(1.0)
    }

    /// The bits per key that give it; 0: no filter.
    pub(crate) fn bits_per_key(&self, entries: f64) -> f64 {
        bits_for_rate(self.rate(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::LN_2;

    /// Bits per key of a textbook Bloom filter, which the papers reckon with.
    fn textbook(rate: f64) -> f64 {
        -rate.ln() / (LN_2 * LN_2)
    }

    /// Levels 1..=n with sizes T^i and `runs(level)` runs each.
    fn tree(ratio: f64, levels: i32, runs: impl Fn(i32) -> f64) -> Vec<RunGroup> {
        (1..=levels)
            .map(|level| RunGroup {
                runs: runs(level),
                entries: 1e4 * ratio.powi(level - 1),
            })
            .collect()
    }

    /// Expected reads of a lookup of a missing key.
    fn cost_of(plan: &FilterPlan, groups: &[RunGroup]) -> f64 {
        let rates = groups
            .iter()
            .map(|group| group.runs * plan.rate(group.entries_per_run()));
        rates.sum()
    }

    #[test]
    fn leveling_at_ten_bits_costs_what_monkey_says() {
        let groups = tree(10.0, 8, |_| 1.0);
        let plan = FilterPlan::solve(&groups, 10.0, textbook);
        let cost = cost_of(&plan, &groups);
        assert!((cost / 0.0118 - 1.0).abs() < 0.01, "{cost}");
        let uniform = 8.0 * (-10.0 * LN_2 * LN_2).exp();
        assert!((uniform / 0.0655 - 1.0).abs() < 0.01, "{uniform}");
    }

    #[test]
    fn rates_follow_monkeys_closed_form_with_unfiltered_levels_too() {
        for (ratio, levels, bits) in [(10.0, 5, 10.0), (4.0, 6, 1.5), (3.0, 7, 0.4), (2.0, 9, 0.2)]
        {
            let groups = tree(ratio, levels, |_| 1.0);
            let plan = FilterPlan::solve(&groups, bits, textbook);
            let cost = cost_of(&plan, &groups);
            // Monkey, section 4.1: p_i = (R - Lu)(T-1)T^(i-1) / (T^Lf - 1), 1 for i > Lf.
            let unfiltered = (cost - 1.0).floor().max(0.0) as i32;
            let filtered = levels - unfiltered;
            for (level, group) in (1..).zip(&groups) {
                let rate = plan.rate(group.entries_per_run());
                let closed = (cost - f64::from(unfiltered)) * (ratio - 1.0) * ratio.powi(level - 1)
                    / (ratio.powi(filtered) - 1.0);
                let wanted = if level > filtered { 1.0 } else { closed };
                assert!(
                    (rate / wanted - 1.0).abs() < 0.01,
                    "T={ratio} bits={bits} level {level}: {rate}, not {wanted}"
                );
            }
        }
    }

    #[test]
    fn tiering_follows_monkeys_closed_form() {
        let (ratio, levels, bits) = (5.0, 5, 6.0);
        let groups = tree(ratio, levels, |_| ratio - 1.0);
        let plan = FilterPlan::solve(&groups, bits, textbook);
        let cost = cost_of(&plan, &groups);
        for (level, group) in (1..).zip(&groups) {
            let closed = cost * ratio.powi(level - 1) / (ratio.powi(levels) - 1.0);
            let rate = plan.rate(group.entries_per_run());
            assert!((rate / closed - 1.0).abs() < 0.01, "level {level}");
        }
    }

    #[test]
    fn a_fluid_tree_costs_what_dostoevsky_says() {
        // R = e^(-b ln(2)^2) Z^((T-1)/T) K^(1/T) T^(T/(T-1)) / (T-1); many levels, all filtered.
        for (ratio, k, z) in [
            (4.0_f64, 3.0_f64, 1.0_f64),
            (6.0, 5.0, 1.0),
            (5.0, 2.0, 3.0),
            (3.0, 2.0, 2.0),
        ] {
            let levels = 12;
            let groups = tree(ratio, levels, |level| if level == levels { z } else { k });
            let plan = FilterPlan::solve(&groups, 10.0, textbook);
            let closed = (-10.0 * LN_2 * LN_2).exp()
                * z.powf((ratio - 1.0) / ratio)
                * k.powf(1.0 / ratio)
                * ratio.powf(ratio / (ratio - 1.0))
                / (ratio - 1.0);
            let cost = cost_of(&plan, &groups);
            assert!(
                (cost / closed - 1.0).abs() < 0.01,
                "T={ratio} K={k} Z={z}: {cost}, {closed}"
            );
            let last = plan.rate(groups[levels as usize - 1].entries_per_run());
            let wanted = cost / z * (ratio - 1.0) / ratio;
            assert!((last / wanted - 1.0).abs() < 0.01, "rate of the last level");
        }
    }

    #[test]
    fn the_budget_is_met_with_this_engines_filters() {
        let groups = tree(10.0, 5, |_| 1.0);
        let total: f64 = groups.iter().map(|group| group.entries).sum();
        for bits in [0.5, 2.0, 5.0, 10.0, 16.0] {
            let plan = FilterPlan::for_tables(&groups, bits);
            let used: f64 = groups
                .iter()
                .map(|group| group.entries * plan.bits_per_key(group.entries_per_run()))
                .sum();
            assert!(
                used <= bits * total * 1.0001 && used > bits * total * 0.98,
                "{bits}: {}",
                used / total
            );
        }
        let none = FilterPlan::for_tables(&groups, 0.0);
        assert_eq!(none.bits_per_key(1.0), 0.0);
    }
}
