//! Writing tables and blob files: merges sorted input, for compactions and flushes alike.
//!
//! Output order: a file is written and synced, then (once, for all of them) its directory; only then
//! may the manifest name it. A crash before that leaves files that no version names, and the
//! next open removes them. On an error the files written so far are removed at once.
//!
//! No user key is split between two output tables, so runs have disjoint user-key ranges.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use lavafs::{CreateOptions, FileSystemRef};

use crate::blob::reference::BlobReference;
use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::iter::InternalIterator;
use crate::key::{InternalKeyRef, LookupKey, MAX_SEQ, ValueKind};
use crate::sstable::{KeptBlock, TableBuilder, TableOptions, TableSummary};
use crate::version::{BlobFile, BlobMeta, BlobSet, Hidden, Pieces, SstMeta};

use super::merge::VersionFilter;
use super::separation::{BlobWriter, Separation};
use super::split::Part;

/// Entries between two looks at whether the database is closing.
const STOP_CHECK_INTERVAL: u64 = 1024;

/// Bytes of output between two requests to the rate limiter.
pub(super) const PACE_BYTES: u64 = 64 << 10;

/// Which entries are taken for such as readers will ask for: blocks of which most are so are kept for the
/// cache, up to [`TableOptions::keep_bytes`] of the job's tables together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Warm {
    /// Those that come out of cached blocks.
    Cached,
    /// References to blob files: their blocks are small beside what they lead to.
    References,
    /// All.
    All,
}

/// Where and how output tables are written.
pub(crate) struct CompactionContext<'a> {
    pub(crate) fs: &'a FileSystemRef,
    pub(crate) dir: &'a Path,
    pub(crate) table_options: TableOptions,
    /// What of the input is merged.
    pub(crate) part: Part,
    /// Bytes at which the next table begins.
    pub(crate) target_file_size: u64,
    /// When the newest entry was flushed, in seconds since 1970; 0: unknown.
    pub(crate) created: u64,
    /// Bytes that a table may reach, for the filesystem to place it.
    pub(crate) expected_size: u64,
    pub(crate) warm: Warm,
    /// Gives a number to a new file.
    pub(crate) new_number: &'a dyn Fn() -> FileNumber,
    /// An error ends the job.
    pub(crate) keep_going: &'a dyn Fn() -> Result<()>,
    /// Waits until so many more bytes may be written; an error ends the job.
    pub(crate) pace: &'a dyn Fn(u64) -> Result<()>,
    /// True where no table outside the merge can hold an older version of the key.
    pub(crate) is_oldest: &'a dyn Fn(&[u8]) -> bool,
    pub(crate) separation: Separation<'a>,
}

/// Files written by a job, all durable.
#[derive(Debug, Default)]
pub(crate) struct TableOutputs {
    pub(crate) tables: Vec<SstMeta>,
    pub(crate) blobs: Vec<BlobMeta>,
    /// Blocks of the tables for the cache, by table.
    pub(crate) kept: Vec<(FileNumber, Vec<KeptBlock>)>,
    /// A number that references were written with, and those by which the inputs knew the file.
    renamed: HashMap<FileNumber, BTreeSet<FileNumber>>,
}

impl TableOutputs {
    /// Tables that were there before.
    pub(crate) fn of_tables(tables: impl Iterator<Item = SstMeta>) -> Self {
        TableOutputs {
            tables: tables.collect(),
            ..TableOutputs::default()
        }
    }

    /// Takes in what another part of the same job wrote.
    pub(crate) fn join(&mut self, part: TableOutputs) {
        self.tables.extend(part.tables);
        self.blobs.extend(part.blobs);
        self.kept.extend(part.kept);
        for (number, known) in part.renamed {
            self.renamed.entry(number).or_default().extend(known);
        }
    }

    /// Bytes of the tables.
    pub(crate) fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.file_size).sum()
    }

    /// Bytes of the blob files.
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.file_size).sum()
    }

    /// Numbers that the tables refer to and that `now`, which has the job's inputs still, does not
    /// know any more, with the files they lead to: a collection has replaced them since `then`, from which the
    /// job took the numbers. `None` where the tables are of no use: another job, which knew the file by other
    /// names, has made its number known again meanwhile, for its own keys alone.
    pub(crate) fn forgotten_names(
        &self,
        then: &BlobSet<Arc<BlobFile>>,
        now: &BlobSet<Arc<BlobFile>>,
    ) -> Option<Vec<(FileNumber, Pieces)>> {
        let mut names = Vec::new();
        for (&number, known) in &self.renamed {
            let heirs = heirs_of(number, known, then, now)?;
            if now.pieces(number).is_none() {
                names.push((number, heirs));
            }
        }
        names.sort_unstable_by_key(|(number, _)| *number);
        Some(names)
    }

    /// Removes the files of a job whose result is not wanted.
    pub(crate) fn discard(&self, fs: &FileSystemRef, dir: &Path) {
        for table in &self.tables {
            remove_file(fs, dir, FileName::Table(table.number));
        }
        for blob in &self.blobs {
            remove_file(fs, dir, FileName::Blob(blob.number));
        }
    }
}

/// What a file's records, which `known` led to, are in now: where a name led to it, the name's heirs
/// are its heirs. `None` where its own number leads elsewhere.
fn heirs_of(
    number: FileNumber,
    known: &BTreeSet<FileNumber>,
    then: &BlobSet<Arc<BlobFile>>,
    now: &BlobSet<Arc<BlobFile>>,
) -> Option<Pieces> {
    let own = now.pieces(number);
    let mut heirs = Vec::new();
    for &name in known {
        let before = then.pieces(name).expect("the inputs have the name");
        let after = now.pieces(name).expect("the inputs are still there");
        for (piece, until) in before.ranges() {
            if piece.file == number {
                let range = after.within(&piece.from, until);
                let same = |own: &Pieces| own.within(&piece.from, until) == range;
                if !own.as_ref().is_none_or(same) {
                    return None;
                }
                heirs.extend(range);
            }
        }
    }
    Some(Pieces::of(heirs))
}

/// Merges `input` into tables.
pub(crate) fn run(
    context: &CompactionContext<'_>,
    input: &mut dyn InternalIterator,
    filter: VersionFilter,
) -> Result<TableOutputs> {
    let mut writer = OutputWriter {
        context,
        open: None,
        blobs: BlobWriter::default(),
        done: TableOutputs::default(),
    };
    let outcome = merge(context, input, filter, &mut writer);
    writer.done.blobs = std::mem::take(&mut writer.blobs.done);
    writer.done.renamed = std::mem::take(&mut writer.blobs.renamed);
    match outcome {
        Ok(()) => Ok(writer.done),
        Err(error) => {
            if let Some(open) = writer.open.take() {
                let number = open.number;
                drop(open);
                remove_file(context.fs, context.dir, FileName::Table(number));
            }
            writer.blobs.abandon(context);
            writer.done.discard(context.fs, context.dir);
            Err(error)
        }
    }
}

fn merge(
    context: &CompactionContext<'_>,
    input: &mut dyn InternalIterator,
    mut filter: VersionFilter,
    writer: &mut OutputWriter<'_>,
) -> Result<()> {
    let mut seen = 0_u64;
    match &context.part.0 {
        Some(first) => input.seek(LookupKey::new(first, MAX_SEQ).internal()),
        None => input.seek_to_first(),
    }
    // A single deletion that is kept unless the put that it ends comes next.
    let mut held: Option<(Vec<u8>, bool)> = None;
    while input.valid() {
        if seen.is_multiple_of(STOP_CHECK_INTERVAL) {
            (context.keep_going)()?;
        }
        seen += 1;
        let key = input.key();
        if held.as_ref().is_some_and(|(single, _)| single == key) {
            // A repair may find it twice. The filter drops a second version of anything else.
            input.next();
            continue;
        }
        let entry = InternalKeyRef::decode(key)
            .ok_or_else(|| Error::corrupt("input of a merge", 0_u64, "bad internal key"))?;
        let end = context.part.1.as_deref();
        if end.is_some_and(|end| entry.user_key >= end) {
            break;
        }
        if let Some((single, new_key)) = held.take()
            && !filter.ends(entry)
        {
            writer.add(&single, &[], new_key, false)?;
        }
        let new_key = !filter.is_same_key(entry.user_key);
        if filter.keep(entry, context.is_oldest) {
            if entry.kind == ValueKind::SingleDelete {
                held = Some((key.to_vec(), new_key));
            } else {
                let warm = match context.warm {
                    Warm::Cached | Warm::References => input.is_cached(),
                    Warm::All => true,
                };
                writer.add(key, input.value(), new_key, warm)?;
            }
        }
        input.next();
    }
    input.status()?;
    if let Some((single, new_key)) = held {
        writer.add(&single, &[], new_key, false)?;
    }
    writer.finish_table()?;
    writer.blobs.finish(context)?;
    if !writer.done.tables.is_empty() {
        context.fs.sync_dir(context.dir)?;
    }
    Ok(())
}

struct OpenTable {
    number: FileNumber,
    builder: TableBuilder,
    /// Bytes that the rate limiter knows of.
    paced: u64,
    hidden: Hidden,
}

impl OpenTable {
    /// Counts an entry that was added after a newer version of its key. A single deletion is not kept for
    /// snapshots alone.
    fn hide(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let entry = InternalKeyRef::decode(key).expect("the merge has checked it");
        self.hidden.entries += u64::from(entry.kind != ValueKind::SingleDelete);
        if entry.kind == ValueKind::BlobReference {
            self.hidden.value_bytes += BlobReference::of_entry(value)?.value_len;
        }
        Ok(())
    }
}

struct OutputWriter<'a> {
    context: &'a CompactionContext<'a>,
    open: Option<OpenTable>,
    blobs: BlobWriter,
    done: TableOutputs,
}

impl OutputWriter<'_> {
    /// Adds an entry; `new_key` where its user key is a new one, `warm` where readers ask for it.
    fn add(&mut self, key: &[u8], value: &[u8], new_key: bool, warm: bool) -> Result<()> {
        let full = self
            .open
            .as_ref()
            .is_some_and(|open| open.builder.estimated_size() >= self.context.target_file_size);
        if full && new_key {
            self.finish_table()?;
        }
        if self.open.is_none() {
            self.open = Some(self.begin_table()?);
        }
        let open = self.open.as_mut().expect("opened above");
        let separated = self.blobs.separate(self.context, key, value)?;
        let warm = warm || (separated.is_some() && self.context.warm == Warm::References);
        let (key, value) = separated.unwrap_or((key, value));
        open.builder.add_warm(key, value, warm)?;
        if !new_key {
            open.hide(key, value)?;
        }
        let size = open.builder.estimated_size();
        if size >= open.paced + PACE_BYTES {
            let bytes = size - open.paced;
            open.paced = size;
            (self.context.pace)(bytes)?;
        }
        Ok(())
    }

    fn begin_table(&self) -> Result<OpenTable> {
        let context = self.context;
        let number = (context.new_number)();
        let path = context.dir.join(FileName::Table(number).to_string());
        let options = CreateOptions {
            expected_size: context.expected_size,
            ..CreateOptions::default()
        };
        let file = context.fs.create(&path, &options)?;
        let kept = self.done.kept.iter().flat_map(|(_, blocks)| blocks);
        let kept: usize = kept.map(|block| block.bytes.len()).sum();
        let mut table_options = context.table_options.clone();
        table_options.keep_bytes = table_options.keep_bytes.saturating_sub(kept);
        let builder = TableBuilder::new(file, table_options);
        Ok(OpenTable {
            number,
            builder,
            paced: 0,
            hidden: Hidden::default(),
        })
    }

    fn finish_table(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let OpenTable {
            number,
            builder,
            hidden,
            ..
        } = open;
        match builder.finish() {
            Ok(mut summary) => {
                let kept = std::mem::take(&mut summary.kept);
                self.done.kept.push((number, kept));
                self.done.tables.push(SstMeta {
                    created: self.context.created,
                    hidden,
                    ..meta_of(number, summary)
                });
            }
            Err(error) => {
                remove_file(self.context.fs, self.context.dir, FileName::Table(number));
                return Err(error);
            }
        }
        Ok(())
    }
}

fn meta_of(number: FileNumber, summary: TableSummary) -> SstMeta {
    SstMeta {
        number,
        file_size: summary.file_size,
        smallest: summary.smallest,
        largest: summary.largest,
        entries: summary.entries,
        deletions: summary.deletions,
        checksum: summary.checksum,
        smallest_seq: summary.smallest_seq,
        largest_seq: summary.largest_seq,
        created: 0,
        hidden: Hidden::default(),
        blob_refs: summary.blob_refs,
    }
}

pub(super) fn remove_file(fs: &FileSystemRef, dir: &Path, name: FileName) {
    let path = dir.join(name.to_string());
    if let Err(error) = fs.unlink(&path)
        && !error.is_not_found()
    {
        tracing::warn!(path = %path.display(), %error, "unwanted file not removed");
    }
}
