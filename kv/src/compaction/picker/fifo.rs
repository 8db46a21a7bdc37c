//! FIFO: nothing is merged; the oldest tables go when all take too much space or are too old. What a table takes
//! is its own bytes and those of the values that it refers to in blob files: these go with it.

use std::sync::Arc;

use crate::file_names::FileNumber;
use crate::version::{SstFile, Version};

use super::super::choice::{Action, Choice, InFlight, Input};
use super::PickerOptions;

/// Bytes of a table and of its values in blob files, about: a file's bytes are shared out by the values'.
fn bytes_of(version: &Version, file: &SstFile) -> u64 {
    let stored = |&(number, used): &(FileNumber, _)| {
        let parts = version.blobs.parts(file.meta.number, number, used);
        let bytes = parts.into_iter().filter_map(|(number, used)| {
            let meta = &version.blobs.files().get(&number)?.file.meta;
            let density = meta.file_size as f64 / meta.value_bytes.max(1) as f64;
            Some((used.value_bytes as f64 * density) as u64)
        });
        bytes.sum::<u64>()
    };
    file.meta.file_size + file.meta.blob_refs.iter().map(stored).sum::<u64>()
}

pub(super) fn pick(
    version: &Version,
    options: &PickerOptions,
    busy: &[InFlight],
) -> Option<Choice> {
    let mut total: u64 = version
        .files()
        .map(|(_, _, file)| bytes_of(version, file))
        .sum();
    let policy = &options.policy;
    let is_old = |file: &SstFile| {
        let created = file.meta.created;
        policy.fifo_ttl > 0 && created > 0 && options.now.saturating_sub(created) >= policy.fifo_ttl
    };
    // From the oldest run on; what lies behind a table that stays is newer and stays too.
    let mut dropped: Vec<Input> = Vec::new();
    'runs: for (level, runs) in version.levels.iter().enumerate().rev() {
        for run in runs.runs.iter().rev() {
            let mut files: Vec<&Arc<SstFile>> = run.files.iter().collect();
            files.sort_by_key(|file| (file.meta.largest_seq, file.meta.number));
            let keep = files.iter().position(|file| {
                let goes = total > policy.fifo_max_table_files_size || is_old(file);
                if goes {
                    total -= bytes_of(version, file);
                }
                !goes
            });
            let gone = files.len().min(keep.unwrap_or(usize::MAX));
            if gone > 0 {
                dropped.push(Input {
                    level,
                    run: run.id,
                    files: files[..gone].iter().map(|&file| Arc::clone(file)).collect(),
                });
            }
            if keep.is_some() {
                break 'runs;
            }
        }
    }
    dropped.reverse();
    let oldest = dropped.last()?;
    let (output_level, output_run) = (oldest.level, oldest.run);
    let choice = Choice {
        action: Action::Drop,
        inputs: dropped,
        output_level,
        output_run,
    };
    choice.unless_busy(busy)
}
