//! Telling another program's directory from a database's. Names alone do not: LevelDB and RocksDB have a
//! `CURRENT`, manifests, options and tables of the same names.
//!
//! Every kind of file says what it is in its first bytes, a table in its last ones. A directory with files of
//! a database's names none of which says so is somebody else's: nothing is made or removed there. One
//! file that does is enough, as the others may be damaged.

use std::path::Path;

use lavafs::FileSystemRef;

use crate::blob;
use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::options::{OPTIONS_NAME, WalRecoveryMode};
use crate::sstable;
use crate::version::Recovered;
use crate::write::batch::CfId;
use crate::write::wal;

/// Bytes that tell what a file is, at most.
const MARK_LEN: usize = 96;

/// Fails where `dir` holds another program's database.
pub(crate) fn refuse(fs: &FileSystemRef, dir: &Path) -> Result<()> {
    let mut names: Vec<FileName> = names(fs, dir)?;
    // The quickest to tell first; the names of the last kinds say nothing of the owner.
    names.retain(|name| !matches!(name, FileName::Lock | FileName::Temporary));
    names.sort_by_key(|name| match name {
        FileName::Manifest(_) => 0,
        FileName::Options(_) => 1,
        FileName::Current => 3,
        _ => 2,
    });
    let mut foreign = None;
    for name in names {
        match is_ours(fs, dir, name)? {
            Some(true) => return Ok(()),
            Some(false) => foreign = foreign.or(Some(name)),
            None => {}
        }
    }
    match foreign {
        None => Ok(()),
        Some(name) => Err(Error::invalid_argument(format!(
            "{} is of another program: {name} is no file of LavaKV",
            dir.display()
        ))),
    }
}

/// A directory without `CURRENT` that holds tables, blob files, logged writes or a manifest that was in
/// force is a damaged database, not an empty one: a crash while a database is made leaves an empty log and a
/// manifest with one edit, but never one of these.
pub(crate) fn refuse_damaged(fs: &FileSystemRef, dir: &Path) -> Result<()> {
    refuse(fs, dir)?;
    for name in names(fs, dir)? {
        let what = match name {
            FileName::Table(_) | FileName::Blob(_) => "data",
            FileName::Wal(number) if holds_writes(fs, dir, number)? => "logged writes",
            FileName::Manifest(number) if names_families(fs, dir, number) => "column families",
            _ => continue,
        };
        return Err(Error::corrupt(
            dir.join(name.to_string()).display().to_string(),
            0_u64,
            format!("{what} in a directory without CURRENT"),
        ));
    }
    Ok(())
}

fn names(fs: &FileSystemRef, dir: &Path) -> Result<Vec<FileName>> {
    let entries = fs.list(dir)?;
    let names = entries
        .iter()
        .filter_map(|entry| FileName::parse(&entry.name));
    Ok(names.collect())
}

fn holds_writes(fs: &FileSystemRef, dir: &Path, number: FileNumber) -> Result<bool> {
    let mut found = false;
    let mode = WalRecoveryMode::TolerateCorruptedTail;
    let end = wal::replay(fs, dir, number, mode, |_| {
        found = true;
        Ok(())
    })?;
    Ok(found || end.damaged)
}

fn names_families(fs: &FileSystemRef, dir: &Path, number: FileNumber) -> bool {
    let recovered = Recovered::read_manifest(fs, dir, number);
    recovered.is_ok_and(|recovered| recovered.cfs.keys().any(|&id| id != CfId::DEFAULT))
}

/// Whether a file is a database's; `None` where it is too short to tell, as a crash leaves it.
fn is_ours(fs: &FileSystemRef, dir: &Path, name: FileName) -> Result<Option<bool>> {
    let file = match fs.open(&dir.join(name.to_string())) {
        Err(error) if error.is_not_found() => return Ok(None),
        other => other?,
    };
    let mut mark = [0; MARK_LEN];
    let size = file.size().lower();
    let at = match name {
        FileName::Table(_) => size.saturating_sub(sstable::FOOTER_LEN as u64),
        _ => 0,
    };
    let read = file.read_at(at, &mut mark)?;
    let mark = &mark[..read];
    if mark.iter().all(|&byte| byte == 0) && name != FileName::Current {
        return Ok(None);
    }
    Ok(Some(match name {
        FileName::Wal(_) | FileName::Manifest(_) => mark.starts_with(&lavalog::GROUP_FILE_MAGIC),
        FileName::Table(_) => mark.starts_with(&sstable::FOOTER_MAGIC),
        FileName::Blob(_) => mark.starts_with(&blob::FILE_MAGIC),
        FileName::Options(_) => mark.starts_with(OPTIONS_NAME.as_bytes()),
        // Whose the manifest is that it names, it does not say.
        FileName::Current => {
            let is_text = !mark.starts_with(b"MANIFEST-");
            return Ok(is_text.then_some(false));
        }
        FileName::Lock | FileName::Temporary => return Ok(None),
    }))
}
