//! The namespace by inode number: what the FUSE mount and the path-based API are built on.
//!
//! Here is what only looks; single changes are in `edit.rs`, several as one in `transaction.rs`,
//! attributes of any name in `xattr.rs`. Every change is one atomic transaction, staged and finished by
//! `change.rs`. Changes are durable in the order they were made, with the next commit
//! ([`LavaFs::commit`], any `fsync`).

mod change;
mod edit;
mod staged;
mod transaction;
mod xattr;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, PathError, Result};
use crate::fs::LavaFs;
use crate::meta::inode::Inode;
use crate::meta::tables::Tables;
use crate::types::{FileSize, Ino};
use crate::vfs::{FileKind, FileRef};

use change::missing;
use staged::not_a_directory;
pub use transaction::Transaction;
pub use xattr::{XATTR_NAME_LEN_MAX, XATTR_VALUE_LEN_MAX};

/// Longest name in bytes.
pub const NAME_LEN_MAX: usize = 255;

/// Longest target of a symbolic link in bytes.
pub const TARGET_LEN_MAX: usize = 4095;

/// Most names of one file.
pub const LINKS_MAX: u32 = 65_000;

/// All attributes of an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Inode number.
    pub ino: Ino,
    /// Kind, from `mode`.
    pub kind: FileKind,
    /// Type and permission bits as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub links: u32,
    /// Size in bytes; of a symbolic link, its target's length.
    pub size: FileSize,
    /// Bytes of the device allocated.
    pub allocated: u64,
    /// Time of the last change of contents, nanoseconds since 1970 UTC.
    pub modified_ns: i64,
    /// Time of the last change of attributes or contents.
    pub changed_ns: i64,
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Clone, Copy, Default, Debug)]
pub struct SetAttributes {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Time of the last change of contents.
    pub modified_ns: Option<i64>,
}

/// Owner and permission bits of something new.
#[derive(Clone, Copy, Debug)]
pub struct Ownership {
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// How a rename treats an existing target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RenameMode {
    /// Replace it atomically.
    #[default]
    Replace,
    /// Fail with `AlreadyExists` (RENAME_NOREPLACE).
    NoReplace,
    /// Exchange the two (RENAME_EXCHANGE).
    Exchange,
}

impl LavaFs {
    /// The inode that `name` names in `dir`.
    pub fn lookup(&self, dir: Ino, name: &OsStr) -> Result<Ino> {
        let tables = self.core.tables.read();
        if !tables.is_directory(dir) {
            return Err(not_a_directory(tables.inode(dir).is_some(), name));
        }
        match name.as_bytes() {
            b"." => Ok(dir),
            b".." => tables
                .parent(dir)
                .ok_or_else(|| Error::path(name, PathError::NotFound)),
            bytes => tables
                .lookup(dir, bytes)
                .ok_or_else(|| Error::path(name, PathError::NotFound)),
        }
    }

    /// All attributes of an inode.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes> {
        let inode = self.inode(ino)?;
        let open = self.core.opened(ino);
        let state = inode.state.read();
        let kind = state.kind();
        let size = match (&open, kind) {
            (_, FileKind::Symlink) => FileSize::Exact(
                state
                    .extra
                    .as_ref()
                    .map_or(0, |extra| extra.target.len() as u64),
            ),
            (_, FileKind::Directory) => FileSize::Exact(0),
            (None, FileKind::File) if state.size > state.durable_size => {
                FileSize::Exact(state.size)
            }
            (None, FileKind::File) => state.journaled_size(),
            (Some(_), FileKind::File) => FileSize::Exact(0),
        };
        let mut attributes = Attributes {
            ino,
            kind,
            mode: state.mode,
            uid: state.uid,
            gid: state.gid,
            links: state.links,
            size,
            allocated: state.allocated(),
            modified_ns: state.modified_ns,
            changed_ns: state.changed_ns,
        };
        drop(state);
        if let (Some(open), FileKind::File) = (open, kind) {
            attributes.size = open.size();
            attributes.modified_ns = open.modified_ns.load(Ordering::Acquire);
            let appended_ns = open.changed_ns.load(Ordering::Acquire);
            attributes.changed_ns = attributes.changed_ns.max(appended_ns);
        }
        Ok(attributes)
    }

    /// Up to `limit` entries of `dir` after the name `after`, in byte order.
    pub fn entries(
        &self,
        dir: Ino,
        after: Option<&OsStr>,
        limit: usize,
    ) -> Result<Vec<(OsString, Ino, FileKind)>> {
        let tables = self.core.tables.read();
        if !tables.is_directory(dir) {
            return Err(not_a_directory(
                tables.inode(dir).is_some(),
                OsStr::new("directory"),
            ));
        }
        let entries = tables.entries(dir, after.map(OsStr::as_bytes)).take(limit);
        Ok(entries
            .map(|(name, ino)| {
                let kind = tables
                    .inode(ino)
                    .map_or(FileKind::File, |inode| inode.state.read().kind());
                (OsString::from_vec(name.to_vec()), ino, kind)
            })
            .collect())
    }

    /// The directory that holds `dir`; the root holds itself.
    pub fn parent(&self, dir: Ino) -> Result<Ino> {
        self.lookup(dir, OsStr::new(".."))
    }

    /// How many directories `dir` holds; 0 for what is no directory.
    pub fn subdirectories(&self, dir: Ino) -> u32 {
        self.core.tables.read().subdirectories(dir)
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<OsString> {
        let inode = self.inode(ino)?;
        let state = inode.state.read();
        match (&state.extra, state.kind()) {
            (Some(extra), FileKind::Symlink) => Ok(OsString::from_vec(extra.target.clone())),
            _ => Err(Error::Invalid {
                what: format!("inode {ino} is not a symbolic link"),
            }),
        }
    }

    /// Opens a regular file by its number. Handles on one file share its state.
    pub fn open_ino(&self, ino: Ino) -> Result<FileRef> {
        let mut open = self.core.open.lock();
        let inode = self.inode(ino)?;
        match inode.state.read().kind() {
            FileKind::File => {}
            FileKind::Directory => {
                return Err(Error::path(format!("inode {ino}"), PathError::IsADirectory));
            }
            FileKind::Symlink => {
                return Err(Error::Invalid {
                    what: format!("inode {ino} is a symbolic link"),
                });
            }
        }
        Ok(Arc::new(self.core.open_handle(&mut open, &inode, 0)))
    }

    /// The device runs of a file, in file order, as (start block, blocks) of 4 KiB.
    pub fn extents(&self, ino: Ino) -> Result<Vec<(u64, u64)>> {
        let inode = self.inode(ino)?;
        let state = inode.state.read();
        Ok(state
            .extents
            .runs()
            .map(|run| (run.start, run.blocks))
            .collect())
    }

    pub(crate) fn inode(&self, ino: Ino) -> Result<Arc<Inode>> {
        existing(&self.core.tables.read(), ino)
    }
}

fn existing(tables: &Tables, ino: Ino) -> Result<Arc<Inode>> {
    tables.inode(ino).cloned().ok_or_else(|| missing(ino))
}
