//! Fingerprints of what a pool has evicted, in memory of a fixed size.
//!
//! An array addressed by the hash; each place holds the fingerprint of the last entry that fell on it, and
//! what the pool had evicted in all when that entry went. An entry that comes back is a *ghost
//! hit* if the pool has evicted at most a *window* of bytes since: with a window more of cache it would
//! still have been there. Windows in bytes make the hits of pools with small and with large entries
//! comparable: each tells what the same number of bytes would have saved. An entry that another one
//! overwrote is forgotten, so hits are counted low, never high but for a fingerprint in 2^32.

/// Bytes in which the age of an entry is told.
const UNIT: u64 = 256;

#[derive(Clone, Copy, Default)]
struct Ghost {
    /// 0: none.
    fingerprint: u32,
    /// Units evicted before it, modulo 2^32.
    evicted: u32,
}

/// Bytes of memory of one place.
pub(super) const GHOST_BYTES: usize = size_of::<Ghost>();

pub(super) struct Ghosts {
    places: Box<[Ghost]>,
    evicted: u64,
}

fn fingerprint(tag: u64) -> u32 {
    (tag >> 32) as u32 | 1
}

impl Ghosts {
    /// Remembers at most `places` entries, a power of two.
    pub(super) fn new(places: usize) -> Self {
        assert!(places.is_power_of_two());
        Ghosts {
            places: vec![Ghost::default(); places].into(),
            evicted: 0,
        }
    }

    /// An entry of `charge` bytes was evicted.
    pub(super) fn remember(&mut self, tag: u64, charge: usize) {
        self.evicted += charge as u64;
        let at = tag as usize & (self.places.len() - 1);
        self.places[at] = Ghost {
            fingerprint: fingerprint(tag),
            evicted: (self.evicted / UNIT) as u32,
        };
    }

    /// True where the entry left not longer ago than `window` bytes; it is forgotten then.
    pub(super) fn take(&mut self, tag: u64, window: usize) -> bool {
        let at = tag as usize & (self.places.len() - 1);
        let ghost = &mut self.places[at];
        if ghost.fingerprint != fingerprint(tag) {
            return false;
        }
        ghost.fingerprint = 0;
        let since = ((self.evicted / UNIT) as u32).wrapping_sub(ghost.evicted);
        u64::from(since) * UNIT <= window as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ghost_is_known_once_and_for_a_window_of_bytes() {
        let mut ghosts = Ghosts::new(1024);
        let tag = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for number in 1..=100 {
            ghosts.remember(tag(number), 1 << 10);
        }
        let known = |ghosts: &mut Ghosts| {
            (1..=100)
                .filter(|&number| ghosts.take(tag(number), 20 << 10))
                .count()
        };
        assert_eq!(known(&mut ghosts), 21, "what went within the last window");
        assert_eq!(known(&mut ghosts), 0, "once");
    }
}
