//! Running compactions: a choice of the picker becomes tables and a change of the version.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use crate::background::flush::output_memory;
use crate::background::install::ChangeFailed;
use crate::background::scheduler::{self, guarded, picker_options};
use crate::compaction::{
    self, Action, Along, Choice, CompactionContext, Part, Retention, TableOutputs, VersionFilter,
    Warm, pick_range, split,
};
use crate::db::engine::{ColumnFamily, Engine, State, read_only};
use crate::env::Priority;
use crate::error::Result;
use crate::iter::{InternalIterator, MergingIterator, RunIterator};
use crate::key::SeqNo;
use crate::sstable::{TableOptions, TableReadOptions};
use crate::stats::histogram::Timed;
use crate::version::{CfEdit, SstMeta, Version};
use crate::write::batch::CfId;

/// Bytes that a compaction reads ahead in each input, if memory is not limited.
const READAHEAD: usize = 1 << 20;

/// The least that it reads ahead.
const READAHEAD_MIN: usize = 64 << 10;

impl Engine {
    /// Does `choice`, which is listed as running, and takes it off the list.
    pub(crate) fn compact(
        self: &Arc<Self>,
        cf: CfId,
        choice: &Choice,
        version: &Version,
    ) -> Result<()> {
        let outcome = if choice.action == Action::Drop {
            self.drop_tables(cf, choice)
        } else if choice.is_trivial_move() {
            self.move_tables(cf, choice)
        } else {
            self.merge_tables(cf, choice, version)
        };
        let first = choice.files().next().map(|(_, file)| file.meta.number);
        let mut state = self.state.lock();
        state
            .compacting
            .retain(|(_, running)| first.is_none_or(|number| !running.inputs.contains(&number)));
        drop(state);
        self.changed.notify_all();
        match outcome {
            Err(_) if self.cf(cf).is_err() => Ok(()),
            other => other,
        }
    }

    fn drop_tables(self: &Arc<Self>, cf: CfId, choice: &Choice) -> Result<()> {
        self.install_outputs(cf, choice, None, &TableOutputs::default())?;
        self.tickers.dropped_bytes.add(choice.bytes());
        Ok(())
    }

    fn move_tables(self: &Arc<Self>, cf: CfId, choice: &Choice) -> Result<()> {
        let moved = TableOutputs::of_tables(choice.files().map(|(_, file)| file.meta.clone()));
        self.install_outputs(cf, choice, None, &moved)?;
        self.tickers.trivial_moves.add(1);
        Ok(())
    }

    fn merge_tables(self: &Arc<Self>, cf: CfId, choice: &Choice, version: &Version) -> Result<()> {
        let mut job = self.begin_job(cf, choice.bytes(), choice.output_level);
        self.tell(|listener| listener.on_compaction_begin(&job));
        let begin = Instant::now();
        let outcome = self.merge_and_install(cf, choice, version);
        self.end_job(&mut job, begin, &outcome);
        self.tell(|listener| listener.on_compaction_end(&job));
        outcome.map(|_| ())
    }

    /// Merges the inputs and installs the result; returns what was made.
    fn merge_and_install(
        self: &Arc<Self>,
        cf: CfId,
        choice: &Choice,
        version: &Version,
    ) -> Result<Vec<SstMeta>> {
        let family = self.cf(cf)?;
        let keep_bytes = self.warm_bytes_of_compaction(choice);
        let _kept = self.charge_io(keep_bytes);
        let mut outputs = self.histograms.time(Timed::Compaction, || {
            self.merge_inputs(choice, version, &family, keep_bytes)
        })?;
        let (bytes, blob_bytes) = (outputs.bytes(), outputs.blob_bytes());
        match self.install_outputs(cf, choice, Some(version), &outputs) {
            Ok(true) => {}
            Ok(false) => {
                // Whoever chose it finds it due still, and it is done anew from the present version.
                outputs.discard(&self.fs, &self.dir);
                return Ok(Vec::new());
            }
            Err(failed) => {
                if !failed.may_be_recorded {
                    outputs.discard(&self.fs, &self.dir);
                }
                return Err(failed.error);
            }
        }
        let replaced: Vec<_> = choice.files().map(|(_, file)| Arc::clone(file)).collect();
        self.warm_outputs(cf, &mut outputs, &replaced);
        for blob in &outputs.blobs {
            self.tell_blob_file(blob.number, blob.file_size);
        }
        self.tickers.compactions.add(1);
        self.tickers.compaction_read_bytes.add(choice.bytes());
        self.tickers.compaction_write_bytes.add(bytes);
        self.tickers.blob_write_bytes.add(blob_bytes);
        if choice.action == Action::Migrate {
            self.tickers.migration_bytes.add(choice.bytes());
        }
        Ok(outputs.tables)
    }

    /// Merges in parts, each on a thread of its own, the first on this one. On an error nothing of
    /// any part is left.
    fn merge_inputs(
        self: &Arc<Self>,
        choice: &Choice,
        version: &Version,
        family: &ColumnFamily,
        keep_bytes: usize,
    ) -> Result<TableOutputs> {
        let bytes_min = family.options.target_file_size_base;
        let along_max = family.options.blob_correlated_compaction_bytes;
        let along_max = along_max.min(self.fs.space().free / 4);
        let along = compaction::take_along(choice, version, along_max, &**self)?;
        self.tickers.blob_files_along.add(along.len() as u64);
        let parts = split(choice, family.options.max_subcompactions, bytes_min);
        let keep_bytes = keep_bytes / parts.len().max(1);
        let merge = |part| self.merge_part(choice, version, family, part, &along, keep_bytes);
        let mut parts = parts.into_iter();
        let first = parts.next().expect("a compaction has a part");
        let mut outcomes = Vec::new();
        std::thread::scope(|scope| {
            let others: Vec<_> = parts.map(|part| scope.spawn(|| merge(part))).collect();
            outcomes.push(merge(first));
            for other in others {
                match other.join() {
                    Ok(outcome) => outcomes.push(outcome),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
        let mut whole = TableOutputs::default();
        let mut failure = None;
        for outcome in outcomes {
            match outcome {
                Ok(part) => whole.join(part),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        match failure {
            None => Ok(whole),
            Some(error) => {
                whole.discard(&self.fs, &self.dir);
                Err(error)
            }
        }
    }

    fn merge_part(
        self: &Arc<Self>,
        choice: &Choice,
        version: &Version,
        family: &ColumnFamily,
        part: Part,
        along: &Along,
        keep_bytes: usize,
    ) -> Result<TableOutputs> {
        let options = &family.options;
        let copied = along.values().map(|reader| reader.properties().file_bytes);
        let blob_bytes = copied.sum::<u64>().max(choice.bytes());
        // One more for what is on its way from the device to one of them.
        let inputs = choice.inputs.len() + 1;
        let readahead = self.merge_readahead(inputs);
        let table_part = options.target_file_size_base as f64 / choice.bytes().max(1) as f64;
        let table_entries = (choice.entries() as f64 * table_part.min(1.0)) as u64;
        let memory = inputs * readahead + output_memory(options, table_entries);
        let _buffers = self.charge_io(memory);
        let filter = VersionFilter::new(Retention {
            snapshots: self.snapshots.sequences(),
        });
        let children = choice
            .inputs
            .iter()
            .map(|input| {
                let run = RunIterator::new(
                    Arc::new(input.files.clone()),
                    0..input.files.len(),
                    Arc::clone(self) as Arc<dyn crate::version::TableOpener>,
                    TableReadOptions {
                        fill_cache: false,
                        silent: true,
                        readahead_bytes: readahead,
                        ..TableReadOptions::default()
                    },
                );
                Box::new(run) as Box<dyn InternalIterator>
            })
            .collect();
        let resolve = |number, key: &[u8]| version.blobs.resolve_number(number, key);
        let older = choice.older_runs(version);
        let created = choice.files().map(|(_, file)| file.meta.created).max();
        let context = CompactionContext {
            fs: &self.fs,
            dir: &self.dir,
            table_options: TableOptions {
                keep_bytes,
                ..family.named(options.table_options(
                    version,
                    choice.output_level,
                    choice.run_entries(version),
                    0,
                ))
            },
            warm: Warm::Cached,
            part,
            created: created.unwrap_or(0),
            target_file_size: options.target_file_size_base,
            expected_size: options
                .target_file_size_base
                .min(choice.bytes())
                .min(self.fs.space().free / 4),
            new_number: &|| self.new_file_number(),
            keep_going: &|| self.keep_going_on(family),
            pace: &|bytes| self.pace(family, bytes, Priority::Low),
            is_oldest: &|key| !older.iter().any(|run| run.file_for(key).is_some()),
            separation: self.separation(options, blob_bytes, &resolve, along),
        };
        compaction::run(&context, &mut MergingIterator::new(children), filter)
    }

    /// Bytes to read ahead in each of so many inputs.
    fn merge_readahead(&self, inputs: usize) -> usize {
        match self.env.ledger() {
            None => READAHEAD,
            Some(ledger) => (ledger.merge_share() / inputs).clamp(READAHEAD_MIN, READAHEAD),
        }
    }

    /// `version` is the one that blob files' numbers were taken from, if any were. False, and nothing is changed,
    /// where these do not lead to the values any more.
    fn install_outputs(
        self: &Arc<Self>,
        cf: CfId,
        choice: &Choice,
        version: Option<&Version>,
        outputs: &TableOutputs,
    ) -> Result<bool, ChangeFailed> {
        let removed = choice
            .files()
            .map(|(level, file)| (level as u32, file.meta.number))
            .collect();
        let (level, run) = (choice.output_level as u32, choice.output_run);
        let added = outputs.tables.iter().cloned();
        let edit = CfEdit {
            removed,
            added: added.map(|meta| (level, run, meta)).collect(),
            blobs: outputs.blobs.clone(),
            ..CfEdit::default()
        };
        let fits = Cell::new(true);
        let edit = |now: &Version| {
            let forgotten = match version {
                Some(then) => outputs.forgotten_names(&then.blobs, &now.blobs),
                None => Some(Vec::new()),
            };
            fits.set(forgotten.is_some());
            let Some(forgotten) = forgotten else {
                return CfEdit::default();
            };
            let mut edit = edit.clone();
            for (number, pieces) in forgotten {
                match pieces.single() {
                    Some(heir) => edit.heirs.push((number, heir)),
                    None => edit.splits.push((number, pieces)),
                }
            }
            edit
        };
        let shares = self.prepare_shares(cf, edit)?;
        let edit = |_: &State, cf: &ColumnFamily| edit(&cf.view().version);
        self.change_cf_sharing(cf, &shares, edit, |_| {})?;
        Ok(fits.get())
    }

    /// Merges everything in the range down to the last level that has data, level by level.
    /// Background compactions wait meanwhile. Runs on the caller's thread.
    pub(crate) fn compact_range(
        self: &Arc<Self>,
        cf: CfId,
        range: (Option<&[u8]>, Option<&[u8]>),
    ) -> Result<()> {
        let _job = self.caller_job()?;
        let family = self.cf(cf)?;
        let newest = {
            // With one lock: no compaction begins in between that would take newer runs along with these.
            let mut state = self.state.lock();
            state.manual_compactions += 1;
            let view = family.view();
            view.version.levels[0].runs.first().map(|run| run.id)
        };
        let mut levels = 0..family.options.num_levels;
        let outcome = levels.try_for_each(|level| self.compact_level(cf, level, range, newest));
        let mut state = self.state.lock();
        state.manual_compactions -= 1;
        scheduler::schedule(self, &mut state);
        outcome
    }

    fn compact_level(
        self: &Arc<Self>,
        id: CfId,
        level: usize,
        range: (Option<&[u8]>, Option<&[u8]>),
        newest_run: Option<u64>,
    ) -> Result<()> {
        let mut options = picker_options(self, &self.cf(id)?.options);
        options.newest_run = newest_run.unwrap_or(0);
        loop {
            options.oldest_snapshot = self.snapshots.oldest().unwrap_or(SeqNo::MAX);
            let mut state = self.state.lock();
            crate::write::check_writable(&state)?;
            if let Some(background) = &state.error {
                return Err(read_only(&background.error));
            }
            let cf = state.cf(id)?;
            let version = Arc::clone(&cf.view().version);
            let busy: Vec<_> = state
                .compacting
                .iter()
                .filter(|(cf, _)| *cf == id)
                .map(|(_, running)| running.clone())
                .collect();
            match pick_range(&version, level, range, &options, &busy) {
                None => return Ok(()),
                Some(Err(())) => {
                    self.changed.wait(&mut state);
                }
                Some(Ok(choice)) => {
                    state.compacting.push((id, choice.in_flight()));
                    drop(state);
                    // On a thread of the caller's, but as far as everybody else goes in the background.
                    if let Err(error) = guarded(|| self.compact(id, &choice, &version)) {
                        self.fail(error.clone());
                        return Err(error);
                    }
                }
            }
        }
    }
}
