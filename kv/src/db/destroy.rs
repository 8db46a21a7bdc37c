//! Removing a database.

use std::path::Path;

use lavafs::FileSystemRef;

use crate::db::{foreign, recovery};
use crate::error::Result;
use crate::file_names::{FileName, LOCK};

/// See [`crate::Db::destroy`].
pub(crate) fn destroy(fs: &FileSystemRef, dir: &Path) -> Result<()> {
    match fs.metadata(dir) {
        Err(error) if error.is_not_found() => return Ok(()),
        other => other?,
    };
    foreign::refuse(fs, dir)?;
    let lock = recovery::lock_dir(fs, dir)?;
    // Without CURRENT there is no database any more, so it goes first.
    let mut names: Vec<FileName> = fs
        .list(dir)?
        .iter()
        .filter_map(|entry| FileName::parse(&entry.name))
        .collect();
    names.sort_by_key(|name| match name {
        FileName::Current => 0,
        FileName::Lock => 2,
        _ => 1,
    });
    for name in names.iter().filter(|name| **name != FileName::Lock) {
        fs.unlink(&dir.join(name.to_string()))?;
        if *name == FileName::Current {
            fs.sync_dir(dir)?;
        }
    }
    drop(lock);
    fs.unlink(&dir.join(LOCK))?;
    if fs.list(dir)?.is_empty() {
        fs.remove_dir(dir)?;
    }
    Ok(())
}
