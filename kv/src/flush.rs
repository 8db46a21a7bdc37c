//! Flushes: the immutable memtables of a column family become one run of level 0.
//!
//! Large values go to blob files ([`crate::compaction::Separation`]); one edit adds table and blob files.
//! All memtables that wait are merged into one table, oldest included, so that level 0's runs
//! are in the order of their writes. One flush at a time for each column family. After the
//! manifest holds the table, the logs below the next memtable's hold nothing of this family.

use std::sync::Arc;

use crate::batch::CfId;
use crate::compaction::{
    self, CompactionContext, Retention, Separation, TableOutputs, VersionFilter,
};
use crate::engine::{Engine, Mem};
use crate::error::Result;
use crate::file_names::FileNumber;
use crate::histogram::Timed;
use crate::iter::{InternalIterator, MergingIterator};
use crate::version::CfEdit;

impl Engine {
    /// Writes memtables, none of them empty, into one table. None if no entry survives.
    pub(crate) fn write_mems(&self, mems: &[Arc<Mem>]) -> Result<TableOutputs> {
        let filter = VersionFilter::new(Retention {
            snapshots: self.snapshots.sequences(),
        });
        let children = mems
            .iter()
            .map(|mem| Box::new(mem.table.iter()) as Box<dyn InternalIterator>)
            .collect();
        let memory: usize = mems.iter().map(|mem| mem.table.approximate_memory()).sum();
        let context = CompactionContext {
            fs: &self.fs,
            dir: &self.dir,
            table_options: self.options.table_options(),
            target_file_size: u64::MAX,
            expected_size: match self.options.min_blob_size {
                0 => (memory as u64).min(self.fs.space().free / 4),
                // What is separated is not known yet.
                _ => 0,
            },
            new_number: &|| self.new_file_number(),
            keep_going: &|| self.keep_going(),
            is_oldest: &|_| false,
            separation: self.separation(memory as u64, &|_| None),
        };
        compaction::run(&context, &mut MergingIterator::new(children), filter)
    }

    /// How a merge of about `input_bytes` separates values.
    pub(crate) fn separation<'a>(
        &self,
        input_bytes: u64,
        resolve: &'a dyn Fn(FileNumber) -> Option<FileNumber>,
    ) -> Separation<'a> {
        let options = &self.options;
        let expected = options.blob_file_size.min(input_bytes);
        Separation {
            min_blob_size: options.min_blob_size,
            blob_file_size: options.blob_file_size,
            expected_size: expected.min(self.fs.space().free / 4),
            options: options.blob_file_options(),
            resolve,
        }
    }

    /// Flushes what waits in `cf`. Runs on a background thread.
    pub(crate) fn flush_cf(self: &Arc<Self>, id: CfId) -> Result<()> {
        let Ok(cf) = self.cf(id) else {
            return Ok(());
        };
        let mems = cf.view().imms.clone();
        if mems.is_empty() {
            return Ok(());
        }
        let outputs = self
            .histograms
            .time(Timed::Flush, || self.write_mems(&mems))?;
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
            },
        );
        if installed.is_err() && self.cf(id).is_err() {
            // Dropped meanwhile: nothing was recorded.
            outputs.discard(&self.fs, &self.dir);
            return Ok(());
        }
        installed?;
        self.tickers.flushes.add(1);
        self.tickers.flush_bytes.add(bytes);
        self.tickers.blob_write_bytes.add(blob_bytes);
        Ok(())
    }
}
