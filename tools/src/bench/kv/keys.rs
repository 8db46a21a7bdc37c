//! Keys and values as db_bench makes them.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Bytes of generated values that are held ready; values are slices of them.
const POOL_BYTES: usize = 1 << 20;

/// Bytes of one compressible fragment.
const FRAGMENT_BYTES: usize = 100;

/// Writes key number `number` to `key`: its low bytes, the most significant first, at most 8, and
/// then '0' to the key's size.
pub(super) fn set_key(key: &mut [u8], number: u64) {
    let prefix = key.len().min(8);
    let bytes = number.to_be_bytes();
    key[..prefix].copy_from_slice(&bytes[8 - prefix..]);
    key[prefix..].fill(b'0');
}

/// Every number from 0 to a limit once, in an order that looks random: a linear congruential generator
/// of full period (Hull and Dobell, 1962) over the next power of two, of which numbers beyond the limit are
/// left out.
#[derive(Clone, Debug)]
pub(super) struct Shuffled {
    limit: u64,
    mask: u64,
    factor: u64,
    state: u64,
}

impl Shuffled {
    /// The numbers below `limit`, which is not 0, in an order that follows from the seed.
    pub(super) fn new(seed: u64, limit: u64) -> Self {
        let mask = limit.next_power_of_two() - 1;
        let random = SmallRng::seed_from_u64(seed).random_range(0..=mask);
        Shuffled {
            limit,
            mask,
            // One more than a multiple of four, and the increment below is odd: the period is full.
            factor: (random << 2 | 0x5DEE_CE64).wrapping_add(1),
            state: random,
        }
    }

    /// The next number; after all of them it begins anew.
    pub(super) fn next(&mut self) -> u64 {
        loop {
            let next = self.state.wrapping_mul(self.factor).wrapping_add(11);
            self.state = next & self.mask;
            if self.state < self.limit {
                return self.state;
            }
        }
    }
}

/// Values that compress to about a given ratio.
#[derive(Debug)]
pub(super) struct Values {
    pool: Vec<u8>,
    next: usize,
}

impl Values {
    /// A generator for values of up to `value_size` bytes. Each fragment of 100 bytes begins with
    /// `ratio` times 100 random printable characters, which are then repeated.
    pub(super) fn new(seed: u64, ratio: f64, value_size: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let raw = ((FRAGMENT_BYTES as f64 * ratio) as usize).max(1);
        let mut pool = Vec::with_capacity(POOL_BYTES.max(value_size) + FRAGMENT_BYTES);
        while pool.len() < POOL_BYTES.max(value_size) {
            let fragment: Vec<u8> = (0..raw).map(|_| rng.random_range(b' '..=b'~')).collect();
            pool.extend(fragment.iter().cycle().take(FRAGMENT_BYTES));
        }
        Values { pool, next: 0 }
    }

    /// The next value.
    pub(super) fn next(&mut self, len: usize) -> &[u8] {
        if self.next + len > self.pool.len() {
            self.next = 0;
        }
        let value = &self.pool[self.next..self.next + len];
        self.next += len;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_their_numbers_and_fill_their_size() {
        let key = |number, len| {
            let mut key = vec![0; len];
            set_key(&mut key, number);
            key
        };
        assert_eq!(key(1, 16), b"\0\0\0\0\0\0\0\x0100000000");
        assert_eq!(key(258, 2), [1, 2]);
        assert!(key(255, 16) < key(256, 16));
    }

    #[test]
    fn shuffled_numbers_come_once_each() {
        for limit in [1, 2, 3, 7, 64, 1000, 4097] {
            for seed in 0..20 {
                let mut numbers = Shuffled::new(seed, limit);
                let seen: std::collections::BTreeSet<u64> =
                    (0..limit).map(|_| numbers.next()).collect();
                assert_eq!(seen.len() as u64, limit, "limit {limit}, seed {seed}");
            }
        }
    }

    #[test]
    fn values_compress_to_about_the_ratio() {
        for ratio in [0.25, 0.5, 1.0] {
            let mut values = Values::new(7, ratio, 10_000);
            let value = values.next(10_000).to_vec();
            assert_eq!(value.len(), 10_000);
            let distinct: usize = value
                .chunks(100)
                .map(|f| (100.0 * ratio) as usize * usize::from(f.len() == 100))
                .sum();
            assert_eq!(distinct, (10_000.0 * ratio) as usize);
            let fragment = &value[..100];
            let raw = (100.0 * ratio) as usize;
            assert_eq!(
                fragment[..100 - raw],
                fragment[raw..],
                "repeats with period {raw}"
            );
        }
        let mut large = Values::new(7, 0.5, 5 << 20);
        assert_eq!(large.next(5 << 20).len(), 5 << 20);
    }
}
