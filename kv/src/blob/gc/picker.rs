//! Chooses which blob files to collect: a pure function of the files' garbage and the disk's usage.
//!
//! How hard to try follows the disk ([`Effort::at`]; LavaStore paper, section 3.2.2: few and lazy while
//! there is room, more and earlier when there is not). Effort names a share of garbage that all files
//! together may have. Above it, the files with the largest shares of garbage are collected first, which
//! frees most for each byte copied.
//!
//! | disk usage | garbage tolerated | threads |
//! | --- | --- | --- |
//! | up to 50% | 30% | 1 |
//! | 75% | 10% | 1 |
//! | 90% | 4% | all |
//! | from 95% | 2%, smallest files first | all |
//!
//! When no one has written for a while, at most 5% are tolerated, since copying then disturbs nobody.
//!
//! Invariants of a pick:
//! - its inputs are eligible, and their live bytes fit in the space that is free;
//! - it has at least one input; with several, live and input bytes are within the limits;
//! - it frees at least a fiftieth of what it reads, so no sequence of jobs goes on without gain: a job's output
//!   has no garbage and is not picked before new garbage falls on it;
//! - files that are not eligible are passed over, never waited for.

/// Share of garbage that a file needs to be collected.
const MIN_SHARE: f64 = 0.02;

/// Usage from which space is so short that the cheapest files go first.
const NEARLY_FULL: f64 = 0.95;

/// Garbage tolerated at a disk usage; between the points, in proportion.
const TOLERATED: [(f64, f64); 5] = [
    (0.0, 0.30),
    (0.5, 0.30),
    (0.75, 0.10),
    (0.9, 0.04),
    (0.95, 0.02),
];

/// Garbage tolerated while nobody writes.
const TOLERATED_IDLE: f64 = 0.05;

/// Usage up to which one thread collects, and from which all do.
const ONE_THREAD: f64 = 0.75;
const ALL_THREADS: f64 = 0.9;

/// A blob file as the picker sees it. Byte counts of values are before compression.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Candidate {
    pub(crate) number: u64,
    /// Bytes of the file.
    pub(crate) file_bytes: u64,
    /// Bytes of all values in it.
    pub(crate) value_bytes: u64,
    /// Bytes of the values that tables refer to.
    pub(crate) live_bytes: u64,
    pub(crate) standing: Standing,
}

/// Whether a file may be collected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    Eligible,
    /// Another job collects it already: its garbage is as good as gone.
    Collecting,
    /// Not now, for any reason; its garbage counts.
    Held,
}

impl Candidate {
    /// Share of its values that nothing refers to, 0 to 1.
    fn share(&self) -> f64 {
        match self.value_bytes {
            0 => 0.0,
            total => self.garbage_bytes() as f64 / total as f64,
        }
    }

    fn garbage_bytes(&self) -> u64 {
        self.value_bytes.saturating_sub(self.live_bytes)
    }

    /// Bytes that its live values take in a file, about.
    fn copied_bytes(&self) -> u64 {
        (self.file_bytes as f64 * (1.0 - self.share())).ceil() as u64
    }
}

/// How hard to collect.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Effort {
    /// Share of garbage in all files together up to which nothing is done, 0 to 1.
    pub(crate) tolerated: f64,
    /// Jobs at a time.
    pub(crate) threads: usize,
    /// The cheapest files first instead of the ones with most garbage.
    pub(crate) smallest_first: bool,
    /// The caller wants it, whatever the options of a family say.
    pub(crate) is_asked_for: bool,
}

impl Effort {
    /// The effort at a disk usage of 0 to 1. `idle`: nobody has written for a while.
    pub(crate) fn at(usage: f64, idle: bool, max_threads: usize) -> Effort {
        let usage = if usage.is_finite() {
            usage.clamp(0.0, 1.0)
        } else {
            1.0
        };
        let mut tolerated = TOLERATED[TOLERATED.len() - 1].1;
        for pair in TOLERATED.windows(2) {
            let ((from, high), (to, low)) = (pair[0], pair[1]);
            if usage < to {
                tolerated = high + (low - high) * (usage - from) / (to - from);
                break;
            }
        }
        if idle {
            tolerated = tolerated.min(TOLERATED_IDLE);
        }
        let share = ((usage - ONE_THREAD) / (ALL_THREADS - ONE_THREAD)).clamp(0.0, 1.0);
        let max_threads = max_threads.max(1);
        Effort {
            tolerated,
            threads: 1 + ((max_threads - 1) as f64 * share).round() as usize,
            smallest_first: usage >= NEARLY_FULL,
            is_asked_for: false,
        }
    }
}

/// Bounds of one job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limits {
    /// Bytes of live values that are copied, unless one input alone has more.
    pub(crate) copied_bytes: u64,
    /// Bytes of the inputs, unless one alone has more.
    pub(crate) input_bytes: u64,
    /// Bytes of the disk that the outputs may take.
    pub(crate) free_bytes: u64,
}

/// A job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct GcPick {
    /// Numbers of the files, ascending.
    pub(crate) inputs: Vec<u64>,
    /// Bytes of the outputs, about.
    pub(crate) copied_bytes: u64,
    /// Bytes that the disk has more when the inputs are gone, about.
    pub(crate) freed_bytes: u64,
}

/// The next job, if there is garbage beyond what the effort tolerates and a file worth collecting.
pub(crate) fn pick(candidates: &[Candidate], effort: Effort, limits: Limits) -> Option<GcPick> {
    let counted = candidates
        .iter()
        .filter(|file| file.standing != Standing::Collecting);
    let (mut garbage, mut total) = counted.fold((0.0, 0.0), |(garbage, total), file| {
        let bytes = file.file_bytes as f64;
        (garbage + bytes * file.share(), total + bytes)
    });
    if total == 0.0 || garbage <= effort.tolerated * total {
        return None;
    }
    let worth = |file: &&Candidate| {
        file.standing == Standing::Eligible
            && file.garbage_bytes() > 0
            && file.share() >= MIN_SHARE
            && file.copied_bytes() <= limits.free_bytes
    };
    let mut files: Vec<&Candidate> = candidates.iter().filter(worth).collect();
    files.sort_by(|a, b| {
        let by_share = || b.share().total_cmp(&a.share());
        let by_cost = match effort.smallest_first {
            true => a.copied_bytes().cmp(&b.copied_bytes()),
            false => std::cmp::Ordering::Equal,
        };
        by_cost.then_with(by_share).then(a.number.cmp(&b.number))
    });
    let mut pick = GcPick {
        inputs: Vec::new(),
        copied_bytes: 0,
        freed_bytes: 0,
    };
    let mut read_bytes = 0;
    for file in files {
        let copied = pick.copied_bytes + file.copied_bytes();
        let read = read_bytes + file.file_bytes;
        let first = pick.inputs.is_empty();
        if copied > limits.free_bytes {
            continue;
        }
        if !first && (copied > limits.copied_bytes || read > limits.input_bytes) {
            continue;
        }
        pick.inputs.push(file.number);
        pick.copied_bytes = copied;
        pick.freed_bytes += file.file_bytes.saturating_sub(file.copied_bytes());
        read_bytes = read;
        let freed = file.file_bytes as f64 * file.share();
        (garbage, total) = (garbage - freed, total - freed);
        if garbage <= effort.tolerated * total {
            break;
        }
    }
    pick.inputs.sort_unstable();
    (!pick.inputs.is_empty()).then_some(pick)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        copied_bytes: 1000,
        input_bytes: 4000,
        free_bytes: 100_000,
    };

    fn file(number: u64, bytes: u64, garbage_percent: u64) -> Candidate {
        Candidate {
            number,
            file_bytes: bytes,
            value_bytes: bytes * 2,
            live_bytes: bytes * 2 * (100 - garbage_percent) / 100,
            standing: Standing::Eligible,
        }
    }

    fn effort(tolerated: f64) -> Effort {
        Effort {
            tolerated,
            threads: 1,
            smallest_first: false,
            is_asked_for: false,
        }
    }

    #[test]
    fn effort_grows_with_usage_and_never_falls() {
        let lazy = Effort::at(0.2, false, 4);
        assert_eq!((lazy.threads, lazy.smallest_first), (1, false));
        assert!(Effort::at(0.75, false, 4).tolerated <= 0.13);
        assert!(Effort::at(0.2, true, 4).tolerated <= 0.06);
        let full = Effort::at(0.97, false, 4);
        assert_eq!((full.threads, full.smallest_first), (4, true));
        let mut last = lazy;
        for percent in 0..=100 {
            let now = Effort::at(f64::from(percent) / 100.0, false, 4);
            let wanted = now.tolerated <= last.tolerated || percent <= 20;
            assert!(wanted && now.threads >= last.threads, "{percent}%");
            last = now;
        }
        assert_eq!(Effort::at(f64::NAN, false, 0).threads, 1);
    }

    #[test]
    fn the_most_garbage_goes_first_until_the_rest_is_tolerated() {
        let files = [file(1, 1000, 10), file(2, 1000, 80), file(3, 1000, 40)];
        let picked = pick(&files, effort(0.25), LIMITS).unwrap();
        assert_eq!(picked.inputs, [2]);
        assert_eq!((picked.copied_bytes, picked.freed_bytes), (200, 800));
        assert_eq!(pick(&files, effort(0.05), LIMITS).unwrap().inputs, [2, 3]);
        assert_eq!(pick(&files, effort(0.5), LIMITS), None);
    }

    #[test]
    fn files_that_are_not_eligible_hold_nothing_up() {
        let mut files = [file(1, 1000, 90), file(2, 1000, 80), file(3, 1000, 30)];
        files[0].standing = Standing::Held;
        files[1].standing = Standing::Collecting;
        assert_eq!(pick(&files, effort(0.1), LIMITS).unwrap().inputs, [3]);
        // What others collect does not count as garbage any more.
        files[0].standing = Standing::Collecting;
        assert_eq!(pick(&files, effort(0.3), LIMITS), None);
    }

    #[test]
    fn a_nearly_full_disk_is_freed_by_what_fits_smallest_first() {
        let files = [file(1, 9000, 50), file(2, 100, 20), file(3, 2000, 60)];
        let limits = Limits {
            free_bytes: 900,
            ..LIMITS
        };
        let smallest = Effort::at(0.99, false, 1);
        assert_eq!(pick(&files, smallest, limits).unwrap().inputs, [2, 3]);
        let limits = Limits {
            free_bytes: 90,
            ..LIMITS
        };
        assert_eq!(pick(&files, smallest, limits).unwrap().inputs, [2]);
        let limits = Limits {
            free_bytes: 79,
            ..LIMITS
        };
        assert_eq!(pick(&files, smallest, limits), None);
    }

    #[test]
    fn collecting_ends_because_outputs_have_no_garbage() {
        for usage in [0.1, 0.6, 0.8, 0.93, 1.0] {
            let mut files: Vec<_> = (0..60).map(|n| file(n, 500 + n * 10, n % 55)).collect();
            let mut jobs = 0;
            while let Some(picked) = pick(&files, Effort::at(usage, true, 1), LIMITS) {
                files.retain(|file| !picked.inputs.contains(&file.number));
                files.push(file(1000 + jobs, picked.copied_bytes, 0));
                jobs += 1;
                assert!(jobs <= 60, "each job takes at least one file for good");
            }
            let garbage: u64 = files.iter().map(Candidate::garbage_bytes).sum();
            let total: u64 = files.iter().map(|file| file.value_bytes).sum();
            assert!(
                garbage as f64 <= 0.06 * total as f64,
                "{usage}: {garbage} of {total}"
            );
        }
    }

    proptest! {
        #[test]
        fn picks_keep_their_bounds_and_gain(
            files in prop::collection::vec((1u64..5000, 0u64..=100, 0u8..4), 0..40),
            usage in 0.0f64..1.0, free in 0u64..20_000,
        ) {
            let files: Vec<_> = files.iter().enumerate().map(|(number, &(bytes, garbage, standing))| {
                let standing = match standing {
                    0 => Standing::Held,
                    1 => Standing::Collecting,
                    _ => Standing::Eligible,
                };
                Candidate { standing, ..file(number as u64, bytes, garbage) }
            }).collect();
            let limits = Limits { free_bytes: free, ..LIMITS };
            if let Some(picked) = pick(&files, Effort::at(usage, false, 2), limits) {
                let inputs: Vec<_> = files.iter().filter(|f| picked.inputs.contains(&f.number)).collect();
                prop_assert_eq!(inputs.len(), picked.inputs.len());
                prop_assert!(!inputs.is_empty());
                prop_assert!(inputs.iter().all(|file| file.standing == Standing::Eligible));
                let read: u64 = inputs.iter().map(|file| file.file_bytes).sum();
                prop_assert!(picked.copied_bytes <= free);
                prop_assert!(inputs.len() == 1 || read <= limits.input_bytes);
                prop_assert!(inputs.len() == 1 || picked.copied_bytes <= limits.copied_bytes);
                let garbage: u64 = inputs.iter().map(|file| file.garbage_bytes()).sum();
                let values: u64 = inputs.iter().map(|file| file.value_bytes).sum();
                prop_assert!(garbage as f64 >= MIN_SHARE * values as f64 * 0.99);
            }
        }
    }
}
