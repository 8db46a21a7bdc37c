//! FIFO: nothing is merged; the oldest tables go when all take too much space or are too old.

use std::sync::Arc;

use crate::version::{SstFile, Version};

use super::super::choice::{Action, Choice, InFlight, Input};
use super::PickerOptions;

pub(super) fn pick(
    version: &Version,
    options: &PickerOptions,
    busy: &[InFlight],
) -> Option<Choice> {
    let mut total: u64 = version
        .files()
        .map(|(_, _, file)| file.meta.file_size)
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
                    total -= file.meta.file_size;
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
