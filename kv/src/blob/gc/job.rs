//! One garbage collection: from a pick to the heir in the manifest.
//!
//! Liveness is asked of the tables of one committed version. A record is live if a table has exactly its
//! version of its key and that entry's number leads to the record's file. References are only ever passed
//! on, from table to table, so what is not live then never is again; what is overwritten or
//! dropped while the job runs becomes the heir's garbage.
//!
//! Steps, and what a crash after each leaves:
//! 1. the heir is written and synced, its directory too: an orphan, removed by the next open;
//! 2. one manifest record adds the heir and lets the numbers of those inputs lead to it that the version still
//!    has: the new structure, and inputs that the next open removes;
//! 3. memory; the inputs go when the last version, iterator or snapshot's iterator lets go of them.
//!
//! The tables' accounts say how many live records each input has. Where the job found another number, nothing is
//! committed: better garbage than a lost value.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lavafs::CreateOptions;

use super::liveness::Referrers;
use super::{GcPick, LiveCount, Rewritten, rewrite};
use crate::blob::{BlobFileBuilder, BlobFileProperties, BlobFileReader};
use crate::db::engine::{ColumnFamily, Engine, State};
use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::stats::listener::CollectionEvent;
use crate::version::{BlobMeta, BlobUse, CfEdit, Version};
use crate::write::batch::CfId;

/// Bytes that are read at once of each input.
const INPUT_BUFFER: usize = 1 << 20;

/// Bytes of the output that are not written yet, about.
const OUTPUT_BUFFERS: usize = 1 << 20;

impl Engine {
    /// Collects what was picked of `version`. The pick is listed as being collected.
    pub(super) fn collect(
        self: &Arc<Self>,
        cf: CfId,
        pick: &GcPick,
        version: &Version,
    ) -> Result<()> {
        let sizes = pick
            .inputs
            .iter()
            .map(|input| &version.blobs.files()[input]);
        let mut event = CollectionEvent {
            cf,
            input_files: pick.inputs.len() as u64,
            input_bytes: sizes.map(|live| live.file.meta.file_size).sum(),
            output_bytes: 0,
            elapsed: Duration::ZERO,
            error: None,
        };
        self.tell(|listener| listener.on_collection_begin(&event));
        let begin = Instant::now();
        let outcome = self.collect_and_commit(cf, pick, version);
        event.elapsed = begin.elapsed();
        match &outcome {
            Ok(bytes) => event.output_bytes = *bytes,
            Err(error) => event.error = Some(error.clone()),
        }
        self.tell(|listener| listener.on_collection_end(&event));
        outcome.map(|_| ())
    }

    /// Returns the bytes of the heir; 0 where there is none.
    fn collect_and_commit(
        self: &Arc<Self>,
        cf: CfId,
        pick: &GcPick,
        version: &Version,
    ) -> Result<u64> {
        let readers = self.readers_of(pick, version)?;
        let created = Cell::new(None);
        let outcome = self.copy_live(cf, pick, version, &readers, &created);
        let Some(number) = created.get() else {
            return outcome.map(|_| 0);
        };
        match outcome {
            Ok(Some(properties)) => {
                let bytes = self.commit_heir(cf, pick, number, properties)?;
                let read = readers.iter().map(|reader| reader.properties().file_bytes);
                self.tickers.blob_collection_read_bytes.add(read.sum());
                self.tickers.blob_collections.add(1);
                Ok(bytes)
            }
            Ok(None) => {
                self.remove_file(FileName::Blob(number));
                Ok(0)
            }
            Err(error) => {
                self.remove_file(FileName::Blob(number));
                Err(error)
            }
        }
    }

    fn readers_of(&self, pick: &GcPick, version: &Version) -> Result<Vec<Arc<BlobFileReader>>> {
        let inputs = pick.inputs.iter().map(|number| {
            let live = version.blobs.files().get(number);
            let live = live.expect("the pick is of this version");
            live.file.reader(self).cloned()
        });
        inputs.collect()
    }

    /// Writes the live values to a new file, whose number goes to `created`; durable on return.
    /// `None` where there is nothing to commit.
    fn copy_live(
        self: &Arc<Self>,
        cf: CfId,
        pick: &GcPick,
        version: &Version,
        readers: &[Arc<BlobFileReader>],
        created: &Cell<Option<FileNumber>>,
    ) -> Result<Option<BlobFileProperties>> {
        let family = self.cf(cf)?;
        let mut referrers = Referrers::new(self, cf, version, readers);
        let _buffers = self.charge_io(readers.len() * INPUT_BUFFER + OUTPUT_BUFFERS);
        let create = || {
            let number = self.new_file_number();
            let path = self.dir.join(FileName::Blob(number).to_string());
            let options = CreateOptions {
                expected_size: pick.copied_bytes.min(self.fs.space().free / 4),
                ..CreateOptions::default()
            };
            let file = self.fs.create(&path, &options)?;
            created.set(Some(number));
            let options = family.options.blob_file_options();
            let mut builder = BlobFileBuilder::create(file, number, options)?;
            // A repair without manifest follows the tables' references by these.
            let inputs = pick.inputs.iter();
            builder.set_ancestors(
                inputs.flat_map(|input| version.blobs.files()[input].names.iter().copied()),
            );
            Ok(builder)
        };
        let (properties, counts) = match rewrite(readers, &mut referrers, create) {
            Ok(Rewritten::Written(properties, counts)) => (properties, counts),
            Ok(Rewritten::NothingLive) => {
                check_accounts(pick, version, &vec![LiveCount::default(); readers.len()])?;
                return Ok(None);
            }
            // Dropped meanwhile: its files go by themselves.
            Err(_) if self.cf(cf).is_err() => return Ok(None),
            Err(error) => return Err(error),
        };
        check_accounts(pick, version, &counts)?;
        referrers.settle()?;
        self.fs.sync_dir(&self.dir)?;
        Ok(Some(properties))
    }

    /// Lets the inputs' numbers lead to the heir. Inputs that nothing refers to any more are gone
    /// from the version, and have no heir.
    fn commit_heir(
        self: &Arc<Self>,
        cf: CfId,
        pick: &GcPick,
        number: FileNumber,
        properties: BlobFileProperties,
    ) -> Result<u64> {
        let bytes = properties.file_bytes;
        let meta = BlobMeta {
            number,
            file_size: properties.file_bytes,
            records: properties.records,
            value_bytes: properties.raw_value_bytes,
            checksum: properties.checksum,
            smallest: properties.smallest,
            largest: properties.largest,
        };
        let wanted = Cell::new(true);
        let edit = |_: &State, cf: &ColumnFamily| {
            let view = cf.view();
            let files = view.version.blobs.files();
            let inputs = pick.inputs.iter().filter(|input| files.contains_key(input));
            let heirs: Vec<_> = inputs.map(|&input| (input, number)).collect();
            wanted.set(!heirs.is_empty());
            CfEdit {
                blobs: wanted.get().then_some(meta).into_iter().collect(),
                heirs,
                ..CfEdit::default()
            }
        };
        let committed = self.change_cf(cf, edit, |_| {});
        if committed.is_err() && self.cf(cf).is_ok() {
            // The record may be durable: the file stays until the next open knows.
            return committed.map(|()| 0);
        }
        if committed.is_err() || !wanted.get() {
            self.remove_file(FileName::Blob(number));
            return Ok(0);
        }
        self.tickers.blob_collection_write_bytes.add(bytes);
        self.tell_blob_file(number, bytes);
        self.warm(cf, &[], &[number], Vec::new());
        Ok(bytes)
    }
}

/// Compares what was found live with what the tables account for.
fn check_accounts(pick: &GcPick, version: &Version, counts: &[LiveCount]) -> Result<()> {
    for (number, count) in pick.inputs.iter().zip(counts) {
        let used = version.blobs.files()[number].used;
        let found = BlobUse {
            references: count.records,
            value_bytes: count.value_bytes,
        };
        if found != used {
            let detail = format!(
                "tables account for {} references with {} bytes, a collection finds {} with {}",
                used.references, used.value_bytes, found.references, found.value_bytes
            );
            let name = FileName::Blob(*number).to_string();
            return Err(Error::corrupt(name, 0_u64, detail));
        }
    }
    Ok(())
}
