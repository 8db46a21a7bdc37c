//! Correlated compaction: blob files whose values a compaction takes along into its own (LavaStore paper,
//! section 3.3.2). The choice is a pure function.
//!
//! Two reasons. A file with much garbage is taken where the inputs hold nearly all references to it: the copy
//! is the one that a collection would make, but without asking for liveness, and the file is gone
//! after it. A file that scans found *scattered*, its neighbours in key order lying in many other files, is
//! taken for what the inputs refer to in it: the values come to lie in key order.
//!
//! The bytes to copy are bounded, so that a compaction stays one of tables. What a compaction drops is never
//! copied.

use std::collections::HashMap;
use std::sync::Arc;

use crate::blob::BlobFileReader;
use crate::error::Result;
use crate::file_names::FileNumber;
use crate::version::{BlobOpener, BlobUse, Version};

use super::choice::Choice;

/// Share of garbage from which a file is taken along.
const GARBAGE_SHARE: f64 = 0.25;

/// Share of a file's references that the inputs must hold then.
const HELD_SHARE: f64 = 0.9;

/// Files whose values go along, with their readers.
pub(crate) type Along = HashMap<FileNumber, Arc<BlobFileReader>>;

/// A blob file that a compaction's inputs refer to.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Referred {
    number: FileNumber,
    /// Bytes of the file for each byte of its values.
    density: f64,
    /// Share of its values that nothing refers to, 0 to 1.
    garbage: f64,
    /// By all tables.
    used: BlobUse,
    /// By the inputs.
    by_inputs: BlobUse,
    is_scattered: bool,
}

impl Referred {
    fn copied_bytes(&self) -> u64 {
        (self.by_inputs.value_bytes as f64 * self.density) as u64
    }

    fn qualifies(&self) -> bool {
        let held = self.by_inputs.references as f64 / self.used.references.max(1) as f64;
        self.is_scattered || (self.garbage >= GARBAGE_SHARE && held >= HELD_SHARE)
    }
}

/// Those that qualify, most garbage first, as far as `bytes_max` goes.
fn choose(mut files: Vec<Referred>, bytes_max: u64) -> Vec<FileNumber> {
    files.retain(Referred::qualifies);
    files.sort_by(|a, b| {
        let by_garbage = b.garbage.total_cmp(&a.garbage);
        by_garbage.then(a.number.cmp(&b.number))
    });
    let mut left = bytes_max;
    files.retain(|file| match left.checked_sub(file.copied_bytes()) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    });
    files.into_iter().map(|file| file.number).collect()
}

/// The files that a compaction of `version` takes along, up to `bytes_max` of values as they are stored.
pub(crate) fn take_along(
    choice: &Choice,
    version: &Version,
    bytes_max: u64,
    opener: &dyn BlobOpener,
) -> Result<Along> {
    if bytes_max == 0 || version.blobs.files().is_empty() {
        return Ok(Along::new());
    }
    let mut by_inputs: HashMap<FileNumber, BlobUse> = HashMap::new();
    for (_, file) in choice.files() {
        for &(name, used) in &file.meta.blob_refs {
            for (number, used) in version.blobs.parts(file.meta.number, name, used) {
                by_inputs.entry(number).or_default().add(used);
            }
        }
    }
    let referred = by_inputs.into_iter().map(|(number, by_inputs)| {
        let live = &version.blobs.files()[&number];
        let meta = &live.file.meta;
        let value_bytes = meta.value_bytes.max(1) as f64;
        Referred {
            number,
            density: meta.file_size as f64 / value_bytes,
            garbage: live.garbage_bytes() as f64 / value_bytes,
            used: live.used,
            by_inputs,
            is_scattered: live.file.is_scattered(),
        }
    });
    let chosen = choose(referred.collect(), bytes_max).into_iter();
    chosen
        .map(|number| {
            let file = &version.blobs.files()[&number].file;
            Ok((number, Arc::clone(&*file.reader(opener)?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(number: FileNumber, garbage: f64, held_percent: u64, is_scattered: bool) -> Referred {
        let of = |percent: u64| BlobUse {
            references: percent,
            value_bytes: percent * 20,
        };
        Referred {
            number,
            density: 0.5,
            garbage,
            used: of(100),
            by_inputs: of(held_percent),
            is_scattered,
        }
    }

    #[test]
    fn files_with_garbage_go_along_when_they_are_gone_after_it_and_scattered_ones_always() {
        let files = vec![
            file(1, 0.3, 95, false),
            file(2, 0.5, 100, false),
            file(3, 0.9, 50, false),
            file(4, 0.1, 100, false),
            file(5, 0.0, 10, true),
        ];
        assert_eq!(choose(files, 1 << 20), [2, 1, 5]);
    }

    #[test]
    fn the_bytes_copied_stay_within_the_bound() {
        let files: Vec<Referred> = (1..=9)
            .map(|number| file(number, 0.5, 100, false))
            .collect();
        assert_eq!(choose(files.clone(), 3999), [1, 2, 3]);
        assert_eq!(choose(files, 999), []);
    }
}
