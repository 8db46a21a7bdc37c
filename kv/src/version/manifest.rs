//! The manifest file: version edits in the log crate's group framing, one edit a group.
//!
//! The first group holds the whole structure at the time the file was made, later ones are
//! changes. `CURRENT` holds the name of the manifest in force and a newline, and is replaced by rename: a
//! crash leaves the old manifest or the new one in force, each of them whole.
//!
//! A torn last group is an edit that was never acknowledged and is dropped. A group that was
//! durable and is damaged is corruption, and the database is not opened.
//!
//! A failed append leaves it unknown whether the edit is durable, so the writer is not used
//! again: a new manifest is begun, and until that is in force no file that the uncertain edit
//! names or removes may be deleted.

use std::io::IoSlice;
use std::path::Path;

use lavafs::FileSystemRef;
use lavalog::{GroupReader, GroupWriter};

use crate::error::{Error, Result};
use crate::file_names::{self, CURRENT, FileName, FileNumber};

use super::edit::VersionEdit;

/// Bytes of space taken for a manifest at once.
const EXPECTED_SIZE: u64 = 64 << 10;

/// Longest `CURRENT` file.
const CURRENT_MAX: u64 = 64;

/// Appends edits to the manifest in force.
#[derive(Debug)]
pub(crate) struct ManifestWriter {
    writer: GroupWriter,
    number: FileNumber,
}

impl ManifestWriter {
    /// Writes manifest `number`, beginning with `snapshot`; durable on return. An error leaves no file.
    pub(crate) fn create(
        fs: &FileSystemRef,
        dir: &Path,
        number: FileNumber,
        snapshot: &VersionEdit,
    ) -> Result<ManifestWriter> {
        let path = dir.join(FileName::Manifest(number).to_string());
        let create = || {
            let writer = GroupWriter::create_tagged(fs, &path, EXPECTED_SIZE, number)?;
            let mut manifest = ManifestWriter { writer, number };
            manifest.append(snapshot)?;
            fs.sync_dir(dir)?;
            Ok(manifest)
        };
        create().inspect_err(|_| drop(fs.unlink(&path)))
    }

    /// Makes this manifest the one in force.
    pub(crate) fn put_in_force(&self, fs: &FileSystemRef, dir: &Path) -> Result<()> {
        let name = FileName::Manifest(self.number);
        file_names::replace_file(fs, dir, CURRENT, format!("{name}\n").as_bytes())
    }

    /// Appends `edit`; durable on return. After an error the writer must be dropped.
    pub(crate) fn append(&mut self, edit: &VersionEdit) -> Result<()> {
        self.writer.append(&[IoSlice::new(&edit.encode())])?;
        self.writer.sync()?;
        Ok(())
    }

    pub(crate) fn number(&self) -> FileNumber {
        self.number
    }

    /// Bytes written.
    pub(crate) fn size(&self) -> u64 {
        self.writer.len()
    }
}

/// Number of the manifest in force; `None` where there is no database.
pub(crate) fn current(fs: &FileSystemRef, dir: &Path) -> Result<Option<FileNumber>> {
    let path = dir.join(CURRENT);
    let data = match file_names::read_small_file(fs, &path, CURRENT_MAX) {
        Err(Error::Fs(error)) if error.is_not_found() => return Ok(None),
        other => other?,
    };
    let name = data
        .strip_suffix(b"\n")
        .and_then(|name| std::str::from_utf8(name).ok());
    match name.and_then(|name| FileName::parse(name.as_ref())) {
        Some(FileName::Manifest(number)) => Ok(Some(number)),
        _ => Err(Error::corrupt(
            path.display().to_string(),
            0_u64,
            "does not name a manifest".to_owned(),
        )),
    }
}

/// Calls `apply` with every edit of manifest `number`, in order.
pub(crate) fn replay(
    fs: &FileSystemRef,
    dir: &Path,
    number: FileNumber,
    mut apply: impl FnMut(VersionEdit) -> Result<()>,
) -> Result<()> {
    let path = dir.join(FileName::Manifest(number).to_string());
    let file = fs.open(&path)?;
    let mut reader = GroupReader::open(file, &path)?;
    if reader.tag().is_some_and(|tag| tag != number) {
        let detail = "is another manifest under this name".to_owned();
        return Err(Error::corrupt(path.display().to_string(), 0_u64, detail));
    }
    let mut edits = 0_u64;
    while let Some(group) = reader.next_group()? {
        let offset = group.position.offset;
        let named = |detail: String| Error::corrupt(path.display().to_string(), offset, detail);
        let edit = VersionEdit::decode(group.payload).map_err(named)?;
        apply(edit).map_err(|error| match error {
            Error::InvalidArgument { what } => named(what),
            other => other,
        })?;
        edits += 1;
    }
    if edits == 0 {
        // It was in force, so its first group was durable.
        let detail = "holds no edit".to_owned();
        return Err(Error::corrupt(path.display().to_string(), 0_u64, detail));
    }
    Ok(())
}
