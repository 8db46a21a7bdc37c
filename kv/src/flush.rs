//! Flushes: the immutable memtables of a column family become one run of level 0.
//!
//! All memtables that wait are merged into one table, oldest included, so that level 0's runs
//! are in the order of their writes. One flush at a time for each column family. After the
//! manifest holds the table, the logs below the next memtable's hold nothing of this family.

use std::sync::Arc;

use crate::batch::CfId;
use crate::compaction::{self, CompactionContext, Retention, TableOutputs, VersionFilter};
use crate::engine::{Engine, Mem};
use crate::error::Result;
use crate::histogram::Timed;
use crate::iter::{InternalIterator, MergingIterator};
use crate::scheduler;
use crate::version::{CfEdit, Version};

impl Engine {
    /// Writes memtables, none of them empty, into one table. None if no entry survives.
    /// `version` is the one that the table is for.
    pub(crate) fn write_mems(&self, mems: &[Arc<Mem>], version: &Version) -> Result<TableOutputs> {
        let filter = VersionFilter::new(Retention {
            snapshots: self.snapshots.sequences(),
        });
        let children = mems
            .iter()
            .map(|mem| Box::new(mem.table.iter()) as Box<dyn InternalIterator>)
            .collect();
        let memory: usize = mems.iter().map(|mem| mem.table.approximate_memory()).sum();
        let entries = mems.iter().map(|mem| mem.table.entries()).sum();
        let context = CompactionContext {
            fs: &self.fs,
            dir: &self.dir,
            table_options: self.options.table_options(version, 0, entries, entries),
            part: (None, None),
            target_file_size: u64::MAX,
            created: scheduler::now(),
            expected_size: (memory as u64).min(self.fs.space().free / 4),
            new_number: &|| self.new_file_number(),
            keep_going: &|| self.keep_going(),
            is_oldest: &|_| false,
        };
        compaction::run(&context, &mut MergingIterator::new(children), filter)
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
        let outputs = self
            .histograms
            .time(Timed::Flush, || self.write_mems(&mems, &version))?;
        let flushed = mems.len();
        let bytes = outputs.bytes();
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
        Ok(())
    }
}
