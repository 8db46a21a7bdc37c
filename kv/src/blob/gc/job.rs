//! One garbage collection: from a pick to the heirs in the manifest.
//!
//! Liveness is asked of the tables of one committed version. A record is live if a table has exactly its
//! version of its key and that entry's number leads to the record's file. References are only ever passed
//! on, from table to table, so what is not live then never is again; what is overwritten or
//! dropped while the job runs becomes the heirs' garbage.
//!
//! Steps, and what a crash after each leaves:
//! 1. the heirs are written and synced one after another, then their directory: orphans, removed by the next open;
//! 2. tables that a cut between heirs goes through are read, to tell how many references lead to which: the same;
//! 3. one manifest record adds the heirs and lets the numbers of those inputs lead to them that the version still
//!    has: the new structure, and inputs that the next open removes;
//! 4. memory; the inputs go when the last version, iterator or snapshot's iterator lets go of them.
//!
//! The tables' accounts say how many live records each input has. Where the job found another number, nothing is
//! committed: better garbage than a lost value.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lavafs::CreateOptions;

use super::liveness::Referrers;
use super::{GcPick, Rewritten, rewrite};
use crate::blob::{BlobFileBuilder, BlobFileReader};
use crate::db::engine::{ColumnFamily, Engine, State};
use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::key::user_key;
use crate::stats::listener::CollectionEvent;
use crate::version::{BlobMeta, BlobUse, CfEdit, Piece, Pieces, Share, Version};
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

    /// Returns the bytes of the heirs; 0 where there is none.
    fn collect_and_commit(
        self: &Arc<Self>,
        cf: CfId,
        pick: &GcPick,
        version: &Version,
    ) -> Result<u64> {
        let readers = self.readers_of(pick, version)?;
        let created = RefCell::new(Vec::new());
        let heirs = self
            .copy_live(cf, pick, version, &readers, &created)
            .and_then(|heirs| {
                let heirs = Heirs::new(&created.borrow(), heirs);
                let edit = |now: &Version| heirs.edit(&pick.inputs, now);
                let shares = self.prepare_shares(cf, edit)?;
                Ok((heirs, shares))
            });
        let created = created.into_inner();
        match heirs {
            Ok((heirs, shares)) if !created.is_empty() => {
                let bytes = self.commit_heirs(cf, pick, &heirs, &shares)?;
                let read = readers.iter().map(|reader| reader.properties().file_bytes);
                self.tickers.blob_collection_read_bytes.add(read.sum());
                self.tickers.blob_collections.add(1);
                Ok(bytes)
            }
            other => {
                self.remove_blobs(&created);
                // Dropped meanwhile: its files go by themselves.
                match other {
                    Err(error) if self.cf(cf).is_ok() => Err(error),
                    _ => Ok(0),
                }
            }
        }
    }

    fn remove_blobs(&self, numbers: &[FileNumber]) {
        for &number in numbers {
            self.remove_file(FileName::Blob(number));
        }
    }

    fn readers_of(&self, pick: &GcPick, version: &Version) -> Result<Vec<Arc<BlobFileReader>>> {
        let inputs = pick.inputs.iter().map(|number| {
            let live = version.blobs.files().get(number);
            let live = live.expect("the pick is of this version");
            Ok(Arc::clone(&*live.file.reader(self)?))
        });
        inputs.collect()
    }

    /// Writes the live values to new files, whose numbers go to `created`; durable on return.
    fn copy_live(
        self: &Arc<Self>,
        cf: CfId,
        pick: &GcPick,
        version: &Version,
        readers: &[Arc<BlobFileReader>],
        created: &RefCell<Vec<FileNumber>>,
    ) -> Result<Vec<Rewritten>> {
        let family = self.cf(cf)?;
        let options = &family.options;
        let mut referrers = Referrers::new(self, cf, version, readers);
        let _buffers = self
            .charge_io(readers.len() * INPUT_BUFFER + OUTPUT_BUFFERS + options.blob_sample_bytes());
        let expected = pick.copied_bytes.min(options.blob_file_size);
        let create = || {
            let number = self.new_file_number();
            let path = self.dir.join(FileName::Blob(number).to_string());
            let create = CreateOptions {
                expected_size: expected.min(self.fs.space().free / 4),
                ..CreateOptions::default()
            };
            let file = self.fs.create(&path, &create)?;
            created.borrow_mut().push(number);
            let mut builder = BlobFileBuilder::create(file, number, options.blob_file_options())?;
            // A repair without manifest follows the tables' references by these.
            let inputs = pick.inputs.iter();
            builder.set_ancestors(
                inputs.flat_map(|input| version.blobs.files()[input].names.iter().copied()),
            );
            Ok(builder)
        };
        let heirs = rewrite(readers, &mut referrers, options.blob_file_size, create)?;
        check_accounts(pick, version, &heirs)?;
        if !heirs.is_empty() {
            referrers.settle()?;
            self.fs.sync_dir(&self.dir)?;
        }
        Ok(heirs)
    }

    /// Lets the inputs' numbers lead to the heirs. Inputs that nothing refers to any more are gone
    /// from the version, and have no heir; a heir to which nothing leads then is not kept.
    fn commit_heirs(
        self: &Arc<Self>,
        cf: CfId,
        pick: &GcPick,
        heirs: &Heirs,
        shares: &[Share],
    ) -> Result<u64> {
        let wanted = Cell::new(true);
        let edit = |_: &State, cf: &ColumnFamily| {
            let edit = heirs.edit(&pick.inputs, &cf.view().version);
            wanted.set(edit.has_heirs());
            edit
        };
        let committed = self.change_cf_sharing(cf, shares, edit, |_| {});
        let failed = committed.err();
        if failed.is_some() || !wanted.get() {
            if failed.as_ref().is_none_or(|failed| !failed.may_be_recorded) {
                self.remove_blobs(&heirs.numbers());
            }
            // Unless it was dropped meanwhile.
            let failed = failed.filter(|_| self.cf(cf).is_ok());
            return failed.map_or(Ok(0), |failed| Err(failed.error));
        }
        let mut bytes = 0;
        for meta in &heirs.files {
            bytes += meta.file_size;
            self.tell_blob_file(meta.number, meta.file_size);
        }
        self.tickers.blob_collection_write_bytes.add(bytes);
        self.warm_blobs(cf, &heirs.numbers());
        Ok(bytes)
    }
}

/// What a job wrote, in key order.
struct Heirs {
    files: Vec<BlobMeta>,
    /// For each file and input, whether it has records of that.
    has: Vec<Vec<bool>>,
}

impl Heirs {
    fn new(numbers: &[FileNumber], written: Vec<Rewritten>) -> Self {
        let mut heirs = Heirs {
            files: Vec::new(),
            has: Vec::new(),
        };
        for (&number, Rewritten { properties, counts }) in numbers.iter().zip(written) {
            heirs.files.push(BlobMeta {
                number,
                file_size: properties.file_bytes,
                records: properties.records,
                value_bytes: properties.raw_value_bytes,
                checksum: properties.checksum,
                smallest: properties.smallest,
                largest: properties.largest,
            });
            heirs
                .has
                .push(counts.iter().map(|count| count.records > 0).collect());
        }
        heirs
    }

    fn numbers(&self) -> Vec<FileNumber> {
        self.files.iter().map(|meta| meta.number).collect()
    }

    /// The edit that lets those of `inputs` lead to the heirs that `version` still has; empty where it has
    /// none. An input leads to those heirs alone that have something of it.
    fn edit(&self, inputs: &[FileNumber], version: &Version) -> CfEdit {
        let mut edit = CfEdit::default();
        let left = inputs.iter().enumerate();
        let left = left.filter(|(_, input)| version.blobs.files().contains_key(input));
        for (at, &input) in left {
            let files = self.files.iter().zip(&self.has);
            let pieces = files.filter(|(_, has)| has[at]).map(|(meta, _)| Piece {
                from: user_key(&meta.smallest).to_vec(),
                file: meta.number,
            });
            let pieces: Vec<Piece> = pieces.collect();
            if pieces.is_empty() {
                continue;
            }
            let pieces = Pieces::of(pieces);
            match pieces.single() {
                Some(heir) => edit.heirs.push((input, heir)),
                None => edit.splits.push((input, pieces)),
            }
        }
        if edit.has_heirs() {
            edit.blobs.clone_from(&self.files);
        }
        edit
    }
}

/// Compares what was found live with what the tables account for.
fn check_accounts(pick: &GcPick, version: &Version, heirs: &[Rewritten]) -> Result<()> {
    for (at, number) in pick.inputs.iter().enumerate() {
        let used = version.blobs.files()[number].used;
        let mut found = BlobUse::default();
        for heir in heirs {
            found.add(BlobUse {
                references: heir.counts[at].records,
                value_bytes: heir.counts[at].value_bytes,
            });
        }
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
