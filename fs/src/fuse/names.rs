//! Requests about names, directories and the attributes of inodes.
//!
//! Inode numbers are LavaFS's own and are never reused, so the kernel's generation is always 0 and
//! no count of its references is kept: what it asks about and is gone is ENOENT.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::{
    BLOCK_SIZE, CreateOptions, Error, FileKind, FileSystem, Ino, Ownership, RenameMode,
    SetAttributes,
};
use fuser::{Errno, FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};
use parking_lot::Mutex;

use super::attr::{file_attr, from_kernel};
use super::errno::{Answer, answer};
use super::handles::{Entry, OpenFile};
use super::ops::Mount;

/// Directories that were removed, as they were then: whoever has one open, or is in it, can still
/// ask about it, until the kernel forgets it.
#[derive(Debug, Default)]
pub(super) struct Removed(Mutex<HashMap<INodeNo, FileAttr>>);

impl Removed {
    fn insert(&self, attr: FileAttr) {
        self.0
            .lock()
            .insert(attr.ino, FileAttr { nlink: 0, ..attr });
    }

    fn get(&self, ino: INodeNo) -> Option<FileAttr> {
        self.0.lock().get(&ino).copied()
    }

    pub(super) fn forget(&self, ino: INodeNo) {
        self.0.lock().remove(&ino);
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// What `setattr` is to change.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Changes {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) modified: Option<TimeOrNow>,
}

/// Space, for statfs, in blocks of [`BLOCK_SIZE`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Statfs {
    pub(super) blocks: u64,
    pub(super) free: u64,
    pub(super) files: u64,
}

impl Mount {
    pub(super) fn lookup(&self, dir: INodeNo, name: &OsStr) -> Answer<FileAttr> {
        self.follow();
        let ino = answer("lookup", dir.0, self.fs.lookup(Ino(dir.0), name))?;
        self.attributes(INodeNo(ino.0))
    }

    pub(super) fn attributes(&self, ino: INodeNo) -> Answer<FileAttr> {
        self.follow();
        self.drain_ino(Ino(ino.0));
        let found = self.fs.attributes(Ino(ino.0));
        if found.as_ref().is_err_and(Error::is_not_found)
            && let Some(attr) = self.removed.get(ino)
        {
            return Ok(attr);
        }
        let mut attr = file_attr(&answer("stat", ino.0, found)?);
        if attr.kind == FileType::Directory {
            // As other filesystems count: its name, its dot, and the two dots of each one in it.
            attr.nlink = self.fs.subdirectories(Ino(ino.0)).saturating_add(2);
        }
        Ok(attr)
    }

    /// See setattr. The size is changed through the file, the rest through the inode.
    pub(super) fn set_attributes(
        &self,
        caller: Caller,
        ino: INodeNo,
        changes: &Changes,
    ) -> Answer<FileAttr> {
        self.writable()?;
        self.drain_ino(Ino(ino.0));
        if let Some(size) = changes.size {
            let file = self.temporary_file(Ino(ino.0))?;
            self.truncate(file.file(), size)?;
        }
        let before = answer("chmod", ino.0, self.fs.attributes(Ino(ino.0)))?;
        let chown = changes.uid.is_some() || changes.gid.is_some();
        let mut mode = changes.mode;
        // The kernel leaves these to us (FUSE_HANDLE_KILLPRIV_V2).
        let kills = (chown || changes.size.is_some() && caller.uid != 0)
            && before.kind == FileKind::File
            && mode.is_none();
        if kills && without_privileges(before.mode) != before.mode {
            mode = Some(without_privileges(before.mode));
        }
        let set = SetAttributes {
            mode,
            uid: changes.uid,
            gid: changes.gid,
            modified_ns: changes.modified.map(from_kernel),
        };
        if mode.is_some() || chown || set.modified_ns.is_some() {
            answer(
                "set attributes",
                ino.0,
                self.fs.set_attributes(Ino(ino.0), &set),
            )?;
        }
        self.attributes(ino)
    }

    /// Takes the set-user-id and set-group-id bits from a file that another user writes to.
    pub(super) fn drop_privileges(&self, ino: Ino) -> Answer<()> {
        self.writable()?;
        let mode = answer("stat", ino.0, self.fs.attributes(ino))?.mode;
        let set = SetAttributes {
            mode: Some(without_privileges(mode)),
            ..SetAttributes::default()
        };
        if without_privileges(mode) == mode {
            return Ok(());
        }
        answer("chmod", ino.0, self.fs.set_attributes(ino, &set))
    }

    /// Owner and mode of something new: in a set-group-id directory the group is the directory's,
    /// and new directories are so too.
    fn ownership(&self, caller: Caller, dir: INodeNo, mode: u32) -> Answer<Ownership> {
        self.writable()?;
        let parent = answer("create", dir.0, self.fs.attributes(Ino(dir.0)))?;
        let inherits = parent.mode & libc::S_ISGID != 0;
        let makes_directory = mode & libc::S_IFMT == libc::S_IFDIR;
        let set_gid = if inherits && makes_directory {
            libc::S_ISGID
        } else {
            0
        };
        Ok(Ownership {
            mode: mode & 0o7777 | set_gid,
            uid: caller.uid,
            gid: if inherits { parent.gid } else { caller.gid },
        })
    }

    /// Creates a file and opens it. Returns the handle.
    pub(super) fn create(
        &self,
        caller: Caller,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
    ) -> Answer<(FileAttr, u64, Arc<OpenFile>)> {
        let ownership = self.ownership(caller, dir, mode)?;
        let options = CreateOptions::default();
        let made = self.fs.create_at(Ino(dir.0), name, ownership, &options);
        let (ino, file) = answer("create", dir.0, made)?;
        let opened = self.files.open(ino, || Ok(file));
        let (handle, file) = answer("create", ino.0, opened)?;
        Ok((self.attributes(INodeNo(ino.0))?, handle, file))
    }

    /// Creates a regular file without opening it; devices, pipes and sockets are EPERM, as POSIX
    /// says for a filesystem without them.
    pub(super) fn mknod(
        &self,
        caller: Caller,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
    ) -> Answer<FileAttr> {
        if !matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG) {
            return Err(Errno::EPERM);
        }
        let (attr, handle, file) = self.create(caller, dir, name, mode)?;
        self.files.close(handle);
        drop(file);
        Ok(attr)
    }

    pub(super) fn mkdir(
        &self,
        caller: Caller,
        dir: INodeNo,
        name: &OsStr,
        mode: u32,
    ) -> Answer<FileAttr> {
        let ownership = self.ownership(caller, dir, mode & 0o7777 | libc::S_IFDIR)?;
        let made = self.fs.mkdir_at(Ino(dir.0), name, ownership);
        let ino = answer("mkdir", dir.0, made)?;
        self.attributes(INodeNo(ino.0))
    }

    pub(super) fn symlink(
        &self,
        caller: Caller,
        dir: INodeNo,
        name: &OsStr,
        target: &OsStr,
    ) -> Answer<FileAttr> {
        let ownership = self.ownership(caller, dir, 0o777)?;
        let made = self.fs.symlink_at(Ino(dir.0), name, target, ownership);
        let ino = answer("symlink", dir.0, made)?;
        self.attributes(INodeNo(ino.0))
    }

    pub(super) fn link(&self, ino: INodeNo, dir: INodeNo, name: &OsStr) -> Answer<FileAttr> {
        self.writable()?;
        let linked = self.fs.link_at(Ino(ino.0), Ino(dir.0), name);
        answer("link", ino.0, linked)?;
        self.attributes(ino)
    }

    pub(super) fn unlink(&self, dir: INodeNo, name: &OsStr) -> Answer<()> {
        self.writable()?;
        answer("unlink", dir.0, self.fs.unlink_at(Ino(dir.0), name))
    }

    pub(super) fn rmdir(&self, dir: INodeNo, name: &OsStr) -> Answer<()> {
        self.writable()?;
        let before = self.lookup(dir, name);
        answer("rmdir", dir.0, self.fs.rmdir_at(Ino(dir.0), name))?;
        self.removed.insert(before?);
        Ok(())
    }

    pub(super) fn rename(
        &self,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
        flags: RenameFlags,
    ) -> Answer<()> {
        self.writable()?;
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return Err(Errno::EINVAL);
        };
        let target = self.lookup(to.0, to.1).ok();
        let renamed = self
            .fs
            .rename_at(Ino(from.0.0), from.1, Ino(to.0.0), to.1, mode);
        answer("rename", from.0.0, renamed)?;
        if let Some(target) = target.filter(|target| target.kind == FileType::Directory)
            && self.fs.attributes(Ino(target.ino.0)).is_err()
        {
            self.removed.insert(target);
        }
        Ok(())
    }

    /// Hands the entries from `offset` on to `add`, which says when it is full. `add` gets the
    /// offset that follows the entry.
    pub(super) fn read_dir(
        &self,
        handle: u64,
        offset: u64,
        mut add: impl FnMut(&Entry, u64) -> bool,
    ) -> Answer<()> {
        let listing = self.listings.get(handle)?;
        let mut listing = listing.lock();
        if offset == 0 {
            listing.rewind();
        }
        let mut position = offset;
        while let Some(entry) = listing.entry(&self.fs, position)? {
            position += 1;
            if add(&entry, position) {
                break;
            }
        }
        Ok(())
    }

    /// The attributes that go with an entry. The listing may be older than the name: it is looked up
    /// again, and `None` where it has gone. The kernel keeps a directory from changing while it
    /// reads it, so the answer is true when it arrives.
    pub(super) fn entry_attributes(&self, dir: INodeNo, entry: &Entry) -> Option<FileAttr> {
        let ino = match entry.name.as_bytes() {
            b"." | b".." => entry.ino,
            _ => self.fs.lookup(Ino(dir.0), &entry.name).ok()?,
        };
        self.attributes(INodeNo(ino.0)).ok()
    }

    pub(super) fn statfs(&self) -> Statfs {
        let space = self.fs.space();
        Statfs {
            blocks: space.total / BLOCK_SIZE,
            free: space.free / BLOCK_SIZE,
            files: self.fs.inode_count(),
        }
    }

    /// Makes namespace changes durable, and with `files` also what was written to open files. All is tried even
    /// if one fails, and that one again by the next commit.
    pub(super) fn commit(&self, files: bool) -> crate::Result<()> {
        let mut outcome = Ok(());
        if files {
            for file in self.files.unsynced() {
                outcome = outcome.and(self.sync_present(&file, false));
            }
        }
        outcome.and(self.fs.commit())
    }
}

/// A mode without the bits that give a program its file's identity. A set-group-id bit without
/// group execution is an old mark for mandatory locking and stays.
fn without_privileges(mode: u32) -> u32 {
    let mode = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 {
        mode & !libc::S_ISGID
    } else {
        mode
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_takes_the_bits_that_lend_an_identity() {
        assert_eq!(without_privileges(0o106_755), 0o100_755);
        assert_eq!(without_privileges(0o102_644), 0o102_644);
        assert_eq!(without_privileges(0o104_644), 0o100_644);
    }
}
