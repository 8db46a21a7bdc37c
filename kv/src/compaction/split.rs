//! Parts of one compaction that run side by side: ranges of user keys with about as many bytes each.
//!
//! A part begins at a boundary and ends before the next, so all versions of a key are in one part, and
//! the parts' tables, one part after another, are one run. Pure.

use super::choice::Choice;

/// A range of user keys: from the first, included, to the second, excluded; `None` is unbounded.
pub(crate) type Part = (Option<Vec<u8>>, Option<Vec<u8>>);

/// Splits `choice` into at most `parts` parts, none much smaller than `bytes_min`. Boundaries are first
/// keys of input tables: where tables begin is the one thing about the data that is known unread.
pub(crate) fn split(choice: &Choice, parts: usize, bytes_min: u64) -> Vec<Part> {
    let mut tables: Vec<(&[u8], u64)> = choice
        .files()
        .map(|(_, file)| (file.meta.smallest_user_key(), file.meta.file_size))
        .collect();
    tables.sort_unstable();
    let total = choice.bytes();
    let parts = (parts as u64).min(total / bytes_min.max(1)).max(1);
    let share = total.div_ceil(parts);
    let mut boundaries: Vec<Vec<u8>> = Vec::new();
    let first = tables.first().map_or(&[][..], |(key, _)| key);
    let mut bytes = 0;
    for &(key, size) in &tables {
        let last = boundaries.last().map_or(first, Vec::as_slice);
        if bytes >= share && key > last && (boundaries.len() as u64) < parts - 1 {
            boundaries.push(key.to_vec());
            bytes = 0;
        }
        bytes += size;
    }
    let begins = std::iter::once(None).chain(boundaries.iter().cloned().map(Some));
    let ends = boundaries.iter().cloned().map(Some).chain([None]);
    begins.zip(ends).collect()
}
