//! Flushes: the immutable memtables of a column family become one run of level 0.
//!
//! Large values go to blob files ([`crate::compaction::Separation`]); one edit adds table and blob files.
//! All memtables that wait are merged into one table, oldest included, so that level 0's runs
//! are in the order of their writes. One flush at a time for each column family. After the
//! manifest holds the table, the logs below the next memtable's hold nothing of this family. They are durable
//! before: other families have parts of the same batches, in memory alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::background::scheduler;
use crate::compaction::{
    self, Along, CompactionContext, Retention, Separation, TableOutputs, VersionFilter, Warm,
};
use crate::db::engine::{ColumnFamily, Engine, Mem};
use crate::env::Priority;
use crate::env::ledger::{Charge, MemoryKind};
use crate::error::Result;
use crate::file_names::FileNumber;
use crate::iter::{InternalIterator, MergingIterator};
use crate::options::{Options, PrepopulateBlockCache};
use crate::sstable::TableOptions;
use crate::stats::histogram::Timed;
use crate::stats::listener::{FileEvent, FileKind, JobEvent};
use crate::version::{CfEdit, SstMeta, Version};
use crate::write::batch::CfId;

/// Bytes of the buffers of a table that is being written: blocks that are gathered, and what of the file
/// the filesystem has not written yet.
const TABLE_BUFFERS: usize = 640 << 10;

/// The same of a blob file.
const BLOB_BUFFERS: usize = (1 << 20) + (384 << 10);

/// Bytes of memory for a table of `entries` that is being written: buffers, the hash that its filter is
/// made of for each entry, and what waits for dictionaries.
pub(crate) fn output_memory(options: &Options, entries: u64) -> usize {
    let hashes = entries.next_power_of_two() as usize * size_of::<u64>();
    let filter = (entries as f64 * options.bloom_bits_per_key / 8.0) as usize;
    let blobs = match options.min_blob_size {
        0 => 0,
        _ => BLOB_BUFFERS + options.blob_sample_bytes(),
    };
    TABLE_BUFFERS + hashes + filter + options.table_sample_bytes() + blobs
}

fn memory_of(mems: &[Arc<Mem>]) -> usize {
    mems.iter().map(|mem| mem.table.approximate_memory()).sum()
}

impl Engine {
    /// Writes memtables, none of them empty, into one table. None if no entry survives.
    /// `version` is the one that the table is for; `keep_bytes` bounds the blocks that are kept for the cache.
    pub(crate) fn write_mems(
        &self,
        cf: &ColumnFamily,
        mems: &[Arc<Mem>],
        version: &Version,
        keep_bytes: usize,
    ) -> Result<TableOutputs> {
        let filter = VersionFilter::new(Retention {
            snapshots: self.snapshots.sequences(),
        });
        let children = mems
            .iter()
            .map(|mem| Box::new(mem.table.checked_iter()) as Box<dyn InternalIterator>)
            .collect();
        let memory = memory_of(mems);
        let entries = mems.iter().map(|mem| mem.table.entries()).sum();
        let _buffers = self.charge_io(output_memory(&cf.options, entries));
        let nothing = Along::new();
        let context = CompactionContext {
            fs: &self.fs,
            dir: &self.dir,
            table_options: TableOptions {
                keep_bytes,
                ..cf.named(cf.options.table_options(version, 0, entries, entries))
            },
            warm: match self.options.prepopulate_block_cache {
                PrepopulateBlockCache::Disable => Warm::References,
                PrepopulateBlockCache::FlushOnly => Warm::All,
            },
            part: (None, None),
            target_file_size: u64::MAX,
            created: scheduler::now(),
            expected_size: match cf.options.min_blob_size {
                0 => (memory as u64).min(self.fs.space().free / 4),
                // What is separated is not known yet.
                _ => 0,
            },
            new_number: &|| self.new_file_number(),
            keep_going: &|| self.keep_going_on(cf),
            pace: &|bytes| self.pace(cf, bytes, Priority::High),
            is_oldest: &|_| false,
            separation: self.separation(&cf.options, memory as u64, &|_, _| None, &nothing),
        };
        compaction::run(&context, &mut MergingIterator::new(children), filter)
    }

    /// Waits until background work on `cf` may write so many more bytes.
    pub(crate) fn pace(&self, cf: &ColumnFamily, bytes: u64, priority: Priority) -> Result<()> {
        let limiter = self.env.rate_limiter();
        limiter.request(bytes, priority, || self.keep_going_on(cf))
    }

    /// Charges buffers of background work to the ledger, if there is one.
    pub(crate) fn charge_io(&self, bytes: usize) -> Option<Charge> {
        let ledger = self.env.ledger()?;
        Some(ledger.charge(MemoryKind::Io, bytes))
    }

    /// How a merge of about `input_bytes` separates values.
    pub(crate) fn separation<'a>(
        &self,
        options: &Options,
        input_bytes: u64,
        resolve: &'a dyn Fn(FileNumber, &[u8]) -> Option<FileNumber>,
        along: &'a Along,
    ) -> Separation<'a> {
        let expected = options.blob_file_size.min(input_bytes);
        Separation {
            min_blob_size: options.min_blob_size,
            blob_file_size: options.blob_file_size,
            expected_size: expected.min(self.fs.space().free / 4),
            options: options.blob_file_options(),
            resolve,
            along,
        }
    }

    /// Flushes what waits in `cf`. Runs on a background thread.
    pub(crate) fn flush_cf(self: &Arc<Self>, id: CfId) -> Result<()> {
        let Ok(cf) = self.cf(id) else {
            return Ok(());
        };
        let view = cf.view();
        let (mems, version) = (view.imms.clone(), Arc::clone(&view.version));
        drop(view);
        if mems.is_empty() {
            return Ok(());
        }
        let mut job = self.begin_job(id, memory_of(&mems) as u64, 0);
        self.tell(|listener| listener.on_flush_begin(&job));
        let begin = Instant::now();
        let outcome = match self.flush_mems(&cf, &mems, &version) {
            // Dropped meanwhile.
            Err(_) if self.cf(id).is_err() => Ok(Vec::new()),
            other => other,
        };
        self.end_job(&mut job, begin, &outcome);
        self.tell(|listener| listener.on_flush_end(&job));
        outcome.map(|_| ())
    }

    /// The event of a job that begins.
    pub(crate) fn begin_job(&self, cf: CfId, input_bytes: u64, output_level: usize) -> JobEvent {
        JobEvent {
            cf,
            input_bytes,
            output_files: 0,
            output_bytes: 0,
            output_level,
            elapsed: Duration::ZERO,
            error: None,
        }
    }

    /// Completes a job's event, and tells of the tables it made.
    pub(crate) fn end_job(
        &self,
        job: &mut JobEvent,
        begin: Instant,
        outcome: &Result<Vec<SstMeta>>,
    ) {
        job.elapsed = begin.elapsed();
        match outcome {
            Err(error) => job.error = Some(error.clone()),
            Ok(tables) => {
                job.output_files = tables.len() as u64;
                job.output_bytes = tables.iter().map(|table| table.file_size).sum();
                for table in tables {
                    let file = FileEvent {
                        kind: FileKind::Table,
                        path: self.table_path(table.number),
                        bytes: Some(table.file_size),
                    };
                    self.tell(|listener| listener.on_file_created(&file));
                }
            }
        }
    }

    /// Writes memtables into a table and installs it; returns what was made.
    fn flush_mems(
        self: &Arc<Self>,
        cf: &ColumnFamily,
        mems: &[Arc<Mem>],
        version: &Version,
    ) -> Result<Vec<SstMeta>> {
        let id = cf.id;
        let keep_bytes = self.warm_bytes_of_flush(memory_of(mems));
        let _kept = self.charge_io(keep_bytes);
        let mut outputs = self.histograms.time(Timed::Flush, || {
            self.write_mems(cf, mems, version, keep_bytes)
        })?;
        // A batch goes to several families: none may have its part for good before the log has the whole.
        if let Err(error) = self.end_previous() {
            outputs.discard(&self.fs, &self.dir);
            return Err(error);
        }
        let flushed = mems.len();
        let (bytes, blob_bytes) = (outputs.bytes(), outputs.blob_bytes());
        let installed = self.change_cf(
            id,
            |_, cf| {
                let view = cf.view();
                let left = view.imms.len() - flushed;
                let next = match left {
                    0 => &view.mem,
                    _ => &view.imms[left - 1],
                };
                CfEdit {
                    log_number: Some(next.log_number()),
                    added: outputs
                        .tables
                        .iter()
                        .map(|meta| (0, meta.number, meta.clone()))
                        .collect(),
                    blobs: outputs.blobs.clone(),
                    ..CfEdit::default()
                }
            },
            |view| {
                let left = view.imms.len() - flushed;
                view.imms.truncate(left);
                // Who waits for the flush finds it counted.
                self.tickers.flushes.add(1);
                self.tickers.flush_bytes.add(bytes);
                self.tickers.blob_write_bytes.add(blob_bytes);
            },
        );
        if let Err(failed) = installed {
            if !failed.may_be_recorded {
                outputs.discard(&self.fs, &self.dir);
            }
            return Err(failed.error);
        }
        self.warm_outputs(id, &mut outputs, &[]);
        for blob in &outputs.blobs {
            self.tell_blob_file(blob.number, blob.file_size);
        }
        Ok(outputs.tables)
    }
}
