//! A Bloom filter in which each key has all its bits in one cache line.
//!
//! ```text
//! filter block
//!     off  len  field
//!       0  64n  lines of 512 bits; bit b of a line is bit b % 8 of its byte b / 8
//!     64n    1  kind      1
//!   64n+1    1  probes    bits set per key, 1..=MAX_PROBES
//!   64n+2    6  reserved  zero
//! ```
//!
//! A key is hashed once per lookup, for the filters of all tables ([`filter_hash`]). Of the hash
//! the upper half picks the line (hash_hi * lines >> 32); the lower half, multiplied by an odd
//! constant before each probe, gives a bit with its top nine bits.
//!
//! Keys fall on lines by chance, so lines are loaded unevenly and the false-positive rate is the
//! mean over a Poisson distribution of loads (Putze, Sanders, Singler, "Cache-, Hash- and
//! Space-Efficient Bloom Filters", section 3): about 0.0096 at 10 bits per key, where a filter of
//! one piece has 0.0082.

use std::sync::OnceLock;

/// Bits of a line.
const LINE_BITS: f64 = 512.0;
/// Bytes of a line.
pub(super) const LINE: usize = 64;
/// Bytes after the lines.
const TAIL: usize = 8;
/// The number of this filter's layout.
const KIND_BLOCKED_BLOOM: u8 = 1;
/// Most bits per key.
const MAX_PROBES: u32 = 16;
/// 2^32 divided by the golden ratio.
const GOLDEN: u32 = 0x9e37_79b9;

/// The hash of a user key that filters and in-block hash indexes take: computed once per lookup.
#[inline]
pub fn filter_hash(user_key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(user_key)
}

#[inline]
fn line_of(hash: u64, lines: u64) -> usize {
    (((hash >> 32) * lines) >> 32) as usize
}

/// The false-positive rate to be expected at `bits_per_key` with `probes` bits set per key.
pub fn expected_fpr(bits_per_key: f64, probes: u32) -> f64 {
    let mean = LINE_BITS / bits_per_key;
    let keep = 1.0 - 1.0 / LINE_BITS;
    // Poisson probabilities from the middle out in logarithms, as e^-mean may underflow.
    let mut rate = 0.0;
    let mut log_factorial = 0.0;
    let loads = (mean + 12.0 * mean.sqrt() + 12.0) as u32;
    for load in 0..loads {
        if load > 0 {
            log_factorial += f64::from(load).ln();
        }
        let probability = (f64::from(load) * mean.ln() - mean - log_factorial).exp();
        let clear = keep.powi((load * probes) as i32);
        rate += probability * (1.0 - clear).powi(probes as i32);
    }
    rate
}

/// The number of probes that gives the lowest rate.
pub fn best_probes(bits_per_key: f64) -> u32 {
    let rate = |probes: &u32| expected_fpr(bits_per_key, *probes);
    (1..=MAX_PROBES)
        .min_by(|a, b| rate(a).total_cmp(&rate(b)))
        .expect("the range is not empty")
}

/// Fewest bits per key of a filter. With less, a line has keys enough to set all its bits, and rules nothing
/// out; the rate of what is not made is 1.
pub(super) const MIN_BITS_PER_KEY: f64 = 0.1;

/// Bits per key that rates are tabulated for; what asks for more is given the most.
const MAX_BITS_PER_KEY: f64 = 32.0;
/// Steps of the table for each bit.
const STEPS_PER_BIT: usize = 2;

/// Logarithm of the rate at 0, 1/2, 1, .. bits per key: falling, as it must be to be inverted.
fn log_rates() -> &'static [f64] {
    static TABLE: OnceLock<Vec<f64>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let steps = MAX_BITS_PER_KEY as usize * STEPS_PER_BIT;
        let rates = (1..=steps).map(|step| {
            let bits = step as f64 / STEPS_PER_BIT as f64;
            expected_fpr(bits, best_probes(bits)).ln()
        });
        std::iter::once(0.0).chain(rates).collect()
    })
}

/// The bits per key at which a filter has the false-positive rate `rate`: the inverse of
/// [`expected_fpr`] at the best number of probes. 0, no filter, for a rate of 1; at most 32.
pub fn bits_for_rate(rate: f64) -> f64 {
    if rate >= 1.0 {
        return 0.0;
    }
    let (table, wanted) = (log_rates(), rate.ln());
    let at = table.partition_point(|&log| log > wanted);
    if at == table.len() {
        return MAX_BITS_PER_KEY;
    }
    let (above, below) = (table[at - 1], table[at]);
    let step = (at - 1) as f64 + (above - wanted) / (above - below);
    step / STEPS_PER_BIT as f64
}

/// Builds the filter of `hashes`, with `bits_per_key` (not necessarily whole) bits for each.
pub(super) fn build(hashes: &[u64], bits_per_key: f64) -> Vec<u8> {
    let probes = best_probes(bits_per_key);
    let lines = (hashes.len() as f64 * bits_per_key / LINE_BITS)
        // Not up: small tables would take more than their share of the memory.
        .round()
        .max(1.0) as usize;
    assert!(lines < 1 << 32, "a filter has less than 2^32 lines");
    let mut filter = vec![0; lines * LINE + TAIL];
    for &hash in hashes {
        let start = line_of(hash, lines as u64) * LINE;
        let line: &mut [u8; LINE] = (&mut filter[start..start + LINE])
            .try_into()
            .expect("a line's length");
        let mut bits = hash as u32;
        for _ in 0..probes {
            bits = bits.wrapping_mul(GOLDEN);
            let bit = (bits >> 23) as usize;
            line[bit / 8] |= 1 << (bit % 8);
        }
    }
    filter[lines * LINE] = KIND_BLOCKED_BLOOM;
    filter[lines * LINE + 1] = probes as u8;
    filter
}

/// A filter read from a table: where its lines are in a block's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Filter {
    lines: u64,
    probes: u32,
}

impl Filter {
    /// Reads the filter's tail; says what is wrong with it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let Some((lines, tail)) = bytes.split_last_chunk::<TAIL>() else {
            return Err("filter shorter than its tail");
        };
        let [kind, probes, reserved @ ..] = tail;
        if lines.is_empty() || lines.len() % LINE != 0 || lines.len() / LINE >= 1 << 32 {
            return Err("filter that is not whole lines");
        }
        if *kind != KIND_BLOCKED_BLOOM || *reserved != [0; 6] {
            return Err("filter of an unknown kind");
        }
        if *probes == 0 || u32::from(*probes) > MAX_PROBES {
            return Err("filter with an impossible number of probes");
        }
        Ok(Filter {
            lines: (lines.len() / LINE) as u64,
            probes: u32::from(*probes),
        })
    }

    /// False where no key with this hash was added. `bytes` are those given to `parse`.
    #[inline]
    pub(super) fn may_contain(self, bytes: &[u8], hash: u64) -> bool {
        let start = line_of(hash, self.lines) * LINE;
        let line: &[u8; LINE] = bytes[start..start + LINE]
            .try_into()
            .expect("a line's length");
        let mut bits = hash as u32;
        for _ in 0..self.probes {
            bits = bits.wrapping_mul(GOLDEN);
            let bit = (bits >> 23) as usize;
            if line[bit / 8] & 1 << (bit % 8) == 0 {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(range: std::ops::Range<u64>) -> Vec<u64> {
        range.map(|i| filter_hash(&i.to_be_bytes())).collect()
    }

    #[test]
    fn every_added_key_is_found() {
        for count in [0, 1, 2, 50, 51, 52, 10_000] {
            let hashes = hashes(0..count);
            let bytes = build(&hashes, 3.7);
            let filter = Filter::parse(&bytes).unwrap();
            assert!(hashes.iter().all(|&hash| filter.may_contain(&bytes, hash)));
        }
    }

    #[test]
    fn false_positives_are_within_15_percent_of_theory() {
        let keys = 200_000;
        for bits_per_key in [2.0, 5.5, 10.0, 14.0] {
            let bytes = build(&hashes(0..keys), bits_per_key);
            let filter = Filter::parse(&bytes).unwrap();
            assert!((bytes.len() as f64 * 8.0 / keys as f64 - bits_per_key).abs() < 0.01);
            let probes = 2_000_000;
            let hits = hashes(keys..keys + probes)
                .into_iter()
                .filter(|&hash| filter.may_contain(&bytes, hash))
                .count();
            let rate = hits as f64 / probes as f64;
            let expected = expected_fpr(bits_per_key, best_probes(bits_per_key));
            assert!(
                (rate / expected - 1.0).abs() < 0.15,
                "{bits_per_key} bits: {rate} measured, {expected} expected"
            );
        }
        assert!(expected_fpr(10.0, best_probes(10.0)) < 0.0105);
    }

    #[test]
    fn bits_for_a_rate_are_the_inverse_of_the_rate() {
        assert!(log_rates().windows(2).all(|pair| pair[0] > pair[1]));
        for bits in [0.7, 2.0, 5.25, 10.0, 13.3, 24.0] {
            let found = bits_for_rate(expected_fpr(bits, best_probes(bits)));
            assert!((found - bits).abs() < 0.05, "{bits} came back as {found}");
        }
        assert_eq!(bits_for_rate(1.0), 0.0);
        assert_eq!(bits_for_rate(1e-30), MAX_BITS_PER_KEY);
    }

    #[test]
    fn damaged_tails_are_refused() {
        let good = build(&hashes(0..10), 10.0);
        assert!(Filter::parse(&good).is_ok());
        for (at, value) in [(64, 2), (65, 0), (65, 17), (66, 1), (71, 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Filter::parse(&bad).is_err(), "byte {at}");
        }
        assert!(Filter::parse(&good[1..]).is_err());
        assert!(Filter::parse(&good[64..]).is_err());
        assert!(Filter::parse(&[]).is_err());
    }
}
