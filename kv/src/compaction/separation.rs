//! Separation: large values of a merge's output go to blob files, their keys to tables.
//!
//! A blob file is finished when it has reached its size, whatever table is being written then; its
//! records are in key order because the merge is. References of the input are passed on, with the number
//! of the file that has the value now, so that names of collected files fall out of use; or their values are copied ([`super::correlated`]).
//!
//! A collection may commit while the merge runs, and the number written here may be an ancestor's by
//! then, even one that no table of the version refers to any more. The names under which the
//! inputs knew the value are therefore kept: [`TableOutputs::forgotten_names`] tells at commit
//! where they lead, or that the merge is to be done anew because others have given the number another meaning.
//!
//! [`TableOutputs::forgotten_names`]: super::job::TableOutputs::forgotten_names

use std::collections::{BTreeSet, HashMap};

use lavafs::CreateOptions;

use crate::blob::reference::BlobReference;
use crate::blob::{BlobFileBuilder, BlobFileOptions, BlobFileReader};
use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::key::{InternalKeyRef, ValueKind, append_internal};
use crate::version::BlobMeta;

use super::correlated::Along;
use super::job::{CompactionContext, PACE_BYTES, remove_file};

/// Which values are separated, and how.
pub(crate) struct Separation<'a> {
    /// Bytes of a value from which it is separated; 0: none is.
    pub(crate) min_blob_size: usize,
    /// Bytes at which the next blob file begins.
    pub(crate) blob_file_size: u64,
    /// Bytes that a blob file may reach, for the filesystem to place it.
    pub(crate) expected_size: u64,
    pub(crate) options: BlobFileOptions,
    /// The number of the file that has the value of a number and a user key.
    pub(crate) resolve: &'a dyn Fn(FileNumber, &[u8]) -> Option<FileNumber>,
    /// Files whose values are copied.
    pub(crate) along: &'a Along,
}

struct OpenBlob {
    number: FileNumber,
    builder: BlobFileBuilder,
    value_bytes: u64,
}

/// Writes the blob files of one merge.
#[derive(Default)]
pub(super) struct BlobWriter {
    open: Option<OpenBlob>,
    pub(super) done: Vec<BlobMeta>,
    /// A number that was written, and those by which the inputs knew the file.
    pub(super) renamed: HashMap<FileNumber, BTreeSet<FileNumber>>,
    /// The last entry as the table is to have it.
    key: Vec<u8>,
    reference: Vec<u8>,
    /// Bytes that the rate limiter does not know of.
    unpaced: u64,
}

impl BlobWriter {
    /// What the table is to hold in the place of an entry; `None`: the entry itself.
    pub(super) fn separate(
        &mut self,
        context: &CompactionContext<'_>,
        key: &[u8],
        value: &[u8],
    ) -> Result<Option<(&[u8], &[u8])>> {
        let entry = InternalKeyRef::decode(key).expect("the merge has checked it");
        match entry.kind {
            ValueKind::BlobReference => {
                let reference = BlobReference::of_entry(value)?;
                let current = (context.separation.resolve)(reference.file, entry.user_key);
                let current = current.ok_or_else(|| no_such_file(reference.file))?;
                if let Some(reader) = context.separation.along.get(&current) {
                    self.key.clear();
                    self.key.extend_from_slice(key);
                    self.copy(context, reader, reference.value_len)?;
                    return Ok(Some((&self.key, &self.reference)));
                }
                if current == reference.file {
                    return Ok(None);
                }
                let known = self.renamed.entry(current).or_default();
                known.insert(reference.file);
                self.key.clear();
                self.key.extend_from_slice(key);
                let current = BlobReference {
                    file: current,
                    ..reference
                };
                current.encode_into(&mut self.reference);
            }
            ValueKind::Value if self.is_large(context, value) => {
                self.key.clear();
                let kind = ValueKind::BlobReference as u8;
                append_internal(&mut self.key, entry.user_key, entry.seq, kind);
                self.write(context, value)?;
            }
            _ => return Ok(None),
        }
        Ok(Some((&self.key, &self.reference)))
    }

    fn is_large(&self, context: &CompactionContext<'_>, value: &[u8]) -> bool {
        let limit = context.separation.min_blob_size;
        limit > 0 && value.len() >= limit
    }

    /// Writes the value of `self.key`.
    fn write(&mut self, context: &CompactionContext<'_>, value: &[u8]) -> Result<()> {
        self.room(context)?;
        let open = self.open.as_mut().expect("made room for");
        let written = open.builder.add(&self.key, value)?;
        self.written(context, value.len() as u64, written)
    }

    /// Writes the value of `self.key` as another file stores it.
    fn copy(
        &mut self,
        context: &CompactionContext<'_>,
        from: &BlobFileReader,
        value_len: u64,
    ) -> Result<()> {
        self.room(context)?;
        let open = self.open.as_mut().expect("made room for");
        let key = &self.key;
        let written = from.with_stored(key, |stored| open.builder.add_stored(key, stored))?;
        let Some(written) = written else {
            let name = FileName::Blob(from.number()).to_string();
            let detail = format!("no record for key {}", key.escape_ascii());
            return Err(Error::corrupt(name, 0_u64, detail));
        };
        self.written(context, value_len, written)
    }

    /// Makes the open file one that is not full.
    fn room(&mut self, context: &CompactionContext<'_>) -> Result<()> {
        let full = self
            .open
            .as_ref()
            .is_some_and(|open| open.builder.estimated_size() >= context.separation.blob_file_size);
        if full {
            self.finish(context)?;
        }
        if self.open.is_none() {
            self.open = Some(begin(context)?);
        }
        Ok(())
    }

    /// A value was written, whose record takes so many bytes.
    fn written(
        &mut self,
        context: &CompactionContext<'_>,
        value_len: u64,
        record_len: u64,
    ) -> Result<()> {
        self.unpaced += record_len;
        let open = self.open.as_mut().expect("just written to");
        open.value_bytes += value_len;
        let reference = BlobReference {
            file: open.number,
            value_len,
        };
        reference.encode_into(&mut self.reference);
        if self.unpaced >= PACE_BYTES {
            (context.pace)(std::mem::take(&mut self.unpaced))?;
        }
        Ok(())
    }

    /// Makes the open file durable.
    pub(super) fn finish(&mut self, context: &CompactionContext<'_>) -> Result<()> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        match open.builder.finish() {
            Ok(properties) => {
                self.done.push(BlobMeta {
                    number: open.number,
                    file_size: properties.file_bytes,
                    records: properties.records,
                    value_bytes: open.value_bytes,
                    checksum: properties.checksum,
                    smallest: properties.smallest,
                    largest: properties.largest,
                });
                Ok(())
            }
            Err(error) => {
                remove_file(context.fs, context.dir, FileName::Blob(open.number));
                Err(error)
            }
        }
    }

    /// Gives up the file that was not finished.
    pub(super) fn abandon(&mut self, context: &CompactionContext<'_>) {
        if let Some(open) = self.open.take() {
            let number = open.number;
            drop(open);
            remove_file(context.fs, context.dir, FileName::Blob(number));
        }
    }
}

fn begin(context: &CompactionContext<'_>) -> Result<OpenBlob> {
    let number = (context.new_number)();
    let path = context.dir.join(FileName::Blob(number).to_string());
    let options = CreateOptions {
        expected_size: context.separation.expected_size,
        ..CreateOptions::default()
    };
    let file = context.fs.create(&path, &options)?;
    let builder = BlobFileBuilder::create(file, number, context.separation.options.clone())?;
    Ok(OpenBlob {
        number,
        builder,
        value_bytes: 0,
    })
}

pub(crate) fn no_such_file(number: FileNumber) -> Error {
    let name = FileName::Blob(number).to_string();
    Error::corrupt(
        name,
        0_u64,
        "a table refers to this file, which the version has not",
    )
}
