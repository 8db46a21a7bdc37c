//! Fault plans: what goes wrong on a [`super::SimDevice`], scripted or by chance of a seed.

/// A small generator of random numbers (SplitMix64), so that a seed alone replays a run.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0. The bias of at most `bound / 2^64` does not matter.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The calls of a device that can fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOn {
    /// A read; each one of a batch.
    Read,
    /// A write, volatile or durable; each one of a batch.
    Write,
    /// A flush.
    Flush,
}

/// When a rule takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultWhen {
    /// Once: on the n-th such call since the plan was set, counted from 0.
    Nth(u64),
    /// On each such call that touches a byte of `offset..offset + len`. Never for flushes.
    Within {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// On each such call with this chance in a million.
    PerMillion(u32),
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The call fails with EIO. What a failed write left behind is any part of it; after a failed
    /// flush, any part of the unflushed writes is durable and the rest never will be, though
    /// reads still show it.
    Eio,
    /// One bit is wrong: in what a read returns, or in what a write leaves. Nothing for flushes.
    BitFlip,
    /// The call is acknowledged and nothing is done: a write changes nothing, a flush makes
    /// nothing durable. Nothing for reads.
    Lost,
    /// A write lands at this byte offset instead, if it fits there. Nothing for other calls.
    Misdirect {
        /// Where it lands, a multiple of the logical block.
        to: u64,
    },
}

/// Rules, of which the first that takes effect on a call decides it.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    rules: Vec<(FaultOn, FaultWhen, Fault)>,
    random: Random,
    /// Calls seen, by kind.
    seen: [u64; 3],
}

impl FaultPlan {
    /// No faults; `seed` decides chances, flipped bits and what failed calls leave behind.
    pub fn new(seed: u64) -> FaultPlan {
        FaultPlan {
            rules: Vec::new(),
            random: Random::new(seed),
            seen: [0; 3],
        }
    }

    /// Adds a rule.
    #[must_use]
    pub fn rule(mut self, on: FaultOn, when: FaultWhen, fault: Fault) -> FaultPlan {
        self.rules.push((on, when, fault));
        self
    }

    /// Random bits of the plan's seed.
    pub(super) fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// What happens to the next call of this kind. Flushes have no range: `len` is 0.
    pub(super) fn decide(&mut self, on: FaultOn, offset: u64, len: u64) -> Option<Fault> {
        let nth = self.seen[on as usize];
        self.seen[on as usize] += 1;
        for &(rule_on, when, fault) in &self.rules {
            let applies = rule_on == on
                && match when {
                    FaultWhen::Nth(n) => n == nth,
                    FaultWhen::Within {
                        offset: from,
                        len: bytes,
                    } => offset < from.saturating_add(bytes) && from < offset + len,
                    FaultWhen::PerMillion(chance) => self.random.below(1_000_000) < chance.into(),
                };
            if applies {
                return Some(fault);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_apply_when_they_say() {
        let mut plan = FaultPlan::new(1)
            .rule(FaultOn::Write, FaultWhen::Nth(1), Fault::Lost)
            .rule(
                FaultOn::Read,
                FaultWhen::Within { offset: 10, len: 5 },
                Fault::Eio,
            );
        assert_eq!(plan.decide(FaultOn::Write, 0, 8), None);
        assert_eq!(plan.decide(FaultOn::Read, 2, 8), None);
        assert_eq!(plan.decide(FaultOn::Read, 3, 8), Some(Fault::Eio));
        assert_eq!(plan.decide(FaultOn::Read, 15, 1), None);
        assert_eq!(plan.decide(FaultOn::Write, 0, 8), Some(Fault::Lost));
        assert_eq!(plan.decide(FaultOn::Write, 0, 8), None);
    }

    #[test]
    fn chances_follow_the_seed() {
        let decisions = |seed| {
            let mut plan = FaultPlan::new(seed).rule(
                FaultOn::Flush,
                FaultWhen::PerMillion(500_000),
                Fault::Eio,
            );
            (0..64)
                .map(|_| plan.decide(FaultOn::Flush, 0, 0).is_some())
                .collect::<Vec<_>>()
        };
        assert_eq!(decisions(1), decisions(1));
        assert_ne!(decisions(1), decisions(2));
        let hits = decisions(3).into_iter().filter(|&hit| hit).count();
        assert!((16..48).contains(&hits), "{hits} of 64");
    }
}
