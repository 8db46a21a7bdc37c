//! The operations on names, each checked and staged into a [`Change`]. Single calls and
//! transactions both are made of these.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, PathError, Result};
use crate::format::op::InodeRecord;
use crate::types::Ino;

use super::change::{Change, missing};
use super::{LINKS_MAX, NAME_LEN_MAX, RenameMode};

impl Change<'_> {
    /// Makes the inode of `record`, whose only name is `name` in `dir`.
    pub(super) fn make(
        &mut self,
        dir: Ino,
        name: &OsStr,
        record: InodeRecord,
        target: Option<&OsStr>,
    ) -> Result<()> {
        check_name(name)?;
        self.check_free(dir, name)?;
        self.add_inode(record, target);
        self.set_name(dir, name, Some(record.ino));
        self.touch(dir);
        Ok(())
    }

    /// Gives `ino` a further name.
    pub(super) fn link(&mut self, ino: Ino, dir: Ino, name: &OsStr) -> Result<()> {
        check_name(name)?;
        if self.mode(ino).is_none() {
            return Err(missing(ino));
        }
        self.check_free(dir, name)?;
        if self.is_directory(ino) {
            return Err(Error::path(name, PathError::IsADirectory));
        }
        match self.links(ino) {
            0 => return Err(Error::path(name, PathError::NotFound)),
            LINKS_MAX.. => return Err(Error::path(name, PathError::TooManyLinks)),
            _ => {}
        }
        self.count_names(ino, 1)?;
        self.set_name(dir, name, Some(ino));
        self.touch(dir);
        Ok(())
    }

    /// Removes a name of what is no directory.
    pub(super) fn unlink(&mut self, dir: Ino, name: &OsStr) -> Result<()> {
        let ino = self.entry(dir, name)?;
        if self.is_directory(ino) {
            return Err(Error::path(name, PathError::IsADirectory));
        }
        self.set_name(dir, name, None);
        self.count_names(ino, -1)?;
        self.touch(dir);
        Ok(())
    }

    /// Removes an empty directory.
    pub(super) fn rmdir(&mut self, dir: Ino, name: &OsStr) -> Result<()> {
        let ino = self.entry(dir, name)?;
        if !self.is_directory(ino) {
            return Err(Error::path(name, PathError::NotADirectory));
        }
        if !self.is_empty_directory(ino) {
            return Err(Error::path(name, PathError::NotEmpty));
        }
        self.set_name(dir, name, None);
        self.remove_inode(ino)?;
        self.touch(dir);
        Ok(())
    }

    /// Renames; see [`RenameMode`].
    pub(super) fn rename(
        &mut self,
        from_dir: Ino,
        from: &OsStr,
        to_dir: Ino,
        to: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        check_name(to)?;
        let source = self.entry(from_dir, from)?;
        if !self.is_directory(to_dir) {
            return Err(self.not_a_directory(to_dir, to));
        }
        self.check_not_into_itself(source, to_dir, to)?;
        let mut left = None;
        match (mode, self.lookup(to_dir, to)) {
            (RenameMode::NoReplace, Some(_)) => {
                return Err(Error::path(to, PathError::AlreadyExists));
            }
            (RenameMode::Exchange, None) => return Err(Error::path(to, PathError::NotFound)),
            (RenameMode::Exchange, Some(target)) => {
                self.check_not_into_itself(target, from_dir, from)?;
                left = Some(target);
            }
            // Two names of one file: nothing to do, says POSIX.
            (_, Some(target)) if target == source => return Ok(()),
            (_, Some(target)) => {
                self.check_replaceable(source, target, to)?;
                self.count_names(target, -1)?;
            }
            (_, None) => {}
        }
        self.set_name(from_dir, from, left);
        self.set_name(to_dir, to, Some(source));
        self.touch_attributes(source)?;
        self.touch(from_dir);
        self.touch(to_dir);
        Ok(())
    }

    /// The inode of an entry that must exist.
    pub(super) fn entry(&self, dir: Ino, name: &OsStr) -> Result<Ino> {
        check_name(name)?;
        if !self.is_directory(dir) {
            return Err(self.not_a_directory(dir, name));
        }
        let ino = self.lookup(dir, name);
        ino.ok_or_else(|| Error::path(name, PathError::NotFound))
    }

    fn check_free(&self, dir: Ino, name: &OsStr) -> Result<()> {
        if !self.is_directory(dir) {
            return Err(self.not_a_directory(dir, name));
        }
        match self.lookup(dir, name) {
            Some(_) => Err(Error::path(name, PathError::AlreadyExists)),
            None => Ok(()),
        }
    }

    fn not_a_directory(&self, dir: Ino, name: &OsStr) -> Error {
        not_a_directory(self.mode(dir).is_some(), name)
    }

    fn check_replaceable(&self, source: Ino, target: Ino, to: &OsStr) -> Result<()> {
        match (self.is_directory(source), self.is_directory(target)) {
            (true, false) => Err(Error::path(to, PathError::NotADirectory)),
            (false, true) => Err(Error::path(to, PathError::IsADirectory)),
            (true, true) if !self.is_empty_directory(target) => {
                Err(Error::path(to, PathError::NotEmpty))
            }
            _ => Ok(()),
        }
    }

    /// A directory cannot be moved below itself: it would leave the tree.
    fn check_not_into_itself(&self, moved: Ino, to_dir: Ino, to: &OsStr) -> Result<()> {
        if !self.is_directory(moved) {
            return Ok(());
        }
        let mut dir = to_dir;
        loop {
            if dir == moved {
                return Err(Error::path(to, PathError::IntoItself));
            }
            match self.parent(dir) {
                Some(parent) if parent != dir => dir = parent,
                _ => return Ok(()),
            }
        }
    }
}

/// Checks that a file could have this name.
pub(super) fn check_name(name: &OsStr) -> Result<()> {
    let bytes = name.as_bytes();
    if bytes.is_empty()
        || bytes == b"."
        || bytes == b".."
        || bytes.iter().any(|b| matches!(b, 0 | b'/'))
    {
        return Err(Error::path(name, PathError::InvalidName));
    }
    if bytes.len() > NAME_LEN_MAX {
        return Err(Error::path(name, PathError::NameTooLong));
    }
    Ok(())
}

/// What is said of a directory that is none, or does not exist.
pub(super) fn not_a_directory(exists: bool, name: &OsStr) -> Error {
    let kind = if exists {
        PathError::NotADirectory
    } else {
        PathError::NotFound
    };
    Error::path(Path::new(name), kind)
}
