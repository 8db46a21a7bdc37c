//! Single changes of the namespace, each a transaction of its own.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, PathError, Result};
use crate::file::LavaFile;
use crate::format::op::{FLAG_EXACT, FLAG_SEAL, InodeRecord};
use crate::fs::LavaFs;
use crate::meta::inode::{MODE_DIRECTORY, MODE_FILE, MODE_SYMLINK};
use crate::types::Ino;
use crate::vfs::{CreateOptions, FileRef, TailPolicy};

use super::change::Change;
use super::{Ownership, RenameMode, SetAttributes, TARGET_LEN_MAX};

/// Bytes of operations that a new name and inode take at most, without target or attributes.
pub(super) const CREATE_OPS_LEN_MAX: u64 = 512;

impl LavaFs {
    /// Changes attributes.
    pub fn set_attributes(&self, ino: Ino, set: &SetAttributes) -> Result<()> {
        self.core.journal()?.admit(CREATE_OPS_LEN_MAX)?;
        self.set_open_modified(ino, set);
        let mut change = Change::begin(&self.core);
        change.set_attributes(ino, set)?;
        change.finish();
        self.set_open_modified(ino, set);
        Ok(())
    }

    /// Tells an open file that its time was set, so that what was appended before does not set it
    /// again at the next sync or close. Done before the change, for a sync that comes in between,
    /// and after it, for a file that is opened in between.
    fn set_open_modified(&self, ino: Ino, set: &SetAttributes) {
        if let (Some(modified_ns), Some(open)) = (set.modified_ns, self.core.opened(ino)) {
            open.modified_ns.store(modified_ns, Ordering::Release);
        }
    }

    /// Makes a regular file and opens it.
    pub fn create_at(
        &self,
        dir: Ino,
        name: &OsStr,
        ownership: Ownership,
        options: &CreateOptions,
    ) -> Result<(Ino, FileRef)> {
        let (ino, handle) = self.create_file(dir, name, ownership, options)?;
        if options.expected_size > 0
            && let Err(error) = handle.open.allocate_expected(options.expected_size)
        {
            drop(handle);
            let mut change = Change::begin(&self.core);
            // Meanwhile the name may have been given to another file.
            if change.lookup(dir, name) == Some(ino) {
                change.unlink(dir, name)?;
                change.finish();
            }
            return Err(error);
        }
        Ok((ino, Arc::new(handle)))
    }

    fn create_file(
        &self,
        dir: Ino,
        name: &OsStr,
        ownership: Ownership,
        options: &CreateOptions,
    ) -> Result<(Ino, LavaFile)> {
        let record = self.new_record(MODE_FILE, ownership, tail_flags(options.tail))?;
        let (_, mut open) = self.make(dir, name, record, None)?.finish_and_open();
        let inode = self.inode(record.ino)?;
        let handle = self
            .core
            .open_handle(&mut open, &inode, options.expected_size);
        Ok((record.ino, handle))
    }

    /// Makes a directory.
    pub fn mkdir_at(&self, dir: Ino, name: &OsStr, ownership: Ownership) -> Result<Ino> {
        let record = self.new_record(MODE_DIRECTORY, ownership, FLAG_EXACT)?;
        self.make(dir, name, record, None)?.finish();
        Ok(record.ino)
    }

    /// Makes a symbolic link.
    pub fn symlink_at(
        &self,
        dir: Ino,
        name: &OsStr,
        target: &OsStr,
        ownership: Ownership,
    ) -> Result<Ino> {
        if target.is_empty() {
            return Err(Error::path(target, PathError::NotFound));
        }
        if target.len() > TARGET_LEN_MAX {
            return Err(Error::path(name, PathError::NameTooLong));
        }
        let ownership = Ownership {
            mode: 0o777,
            ..ownership
        };
        let record = self.new_record(MODE_SYMLINK, ownership, FLAG_EXACT)?;
        let _alone = self.core.journal()?.begin_transaction()?;
        self.make(dir, name, record, Some(target))?.finish();
        Ok(record.ino)
    }

    /// What a new inode begins as, with a number of its own.
    pub(super) fn new_record(
        &self,
        kind: u32,
        ownership: Ownership,
        flags: u64,
    ) -> Result<InodeRecord> {
        let ino = Ino(self.core.new_id()?);
        let now_ns = self.core.now_ns();
        Ok(InodeRecord {
            ino,
            generation: ino.0,
            mode: kind | ownership.mode & 0o7777,
            uid: ownership.uid,
            gid: ownership.gid,
            links: 1,
            flags,
            size: 0,
            modified_ns: now_ns,
            changed_ns: now_ns,
        })
    }

    fn make(
        &self,
        dir: Ino,
        name: &OsStr,
        record: InodeRecord,
        target: Option<&OsStr>,
    ) -> Result<Change<'_>> {
        let target_len = target.map_or(0, OsStr::len) as u64;
        self.core
            .journal()?
            .admit(CREATE_OPS_LEN_MAX + target_len)?;
        let mut change = Change::begin(&self.core);
        change.make(dir, name, record, target)?;
        Ok(change)
    }

    /// Gives a file a further name.
    pub fn link_at(&self, ino: Ino, dir: Ino, name: &OsStr) -> Result<()> {
        self.core.journal()?.admit(CREATE_OPS_LEN_MAX)?;
        let mut change = Change::begin(&self.core);
        change.link(ino, dir, name)?;
        change.finish();
        Ok(())
    }

    /// Removes a name of a file or symbolic link.
    pub fn unlink_at(&self, dir: Ino, name: &OsStr) -> Result<()> {
        self.core.journal()?.drain()?;
        let mut change = Change::begin(&self.core);
        change.unlink(dir, name)?;
        change.finish();
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir_at(&self, dir: Ino, name: &OsStr) -> Result<()> {
        self.core.journal()?.drain()?;
        let mut change = Change::begin(&self.core);
        change.rmdir(dir, name)?;
        change.finish();
        Ok(())
    }

    /// Renames; see [`RenameMode`].
    pub fn rename_at(
        &self,
        from_dir: Ino,
        from: &OsStr,
        to_dir: Ino,
        to: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        self.core.journal()?.admit(CREATE_OPS_LEN_MAX)?;
        let mut change = Change::begin(&self.core);
        change.rename(from_dir, from, to_dir, to, mode)?;
        change.finish();
        Ok(())
    }
}

/// The flags of a new file with this tail policy.
pub(super) fn tail_flags(tail: TailPolicy) -> u64 {
    match tail {
        TailPolicy::Pack => 0,
        TailPolicy::Seal => FLAG_SEAL,
    }
}
