//! The namespace by inode number: what the FUSE mount and the path-based API are built on.
//!
//! Every change is one atomic transaction: the tables are locked, the change is checked, its
//! operations are applied and enqueued, and the lock is let go. Changes are durable in the order
//! they were made, with the next commit ([`LavaFs::commit`], any `fsync`).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::alloc::Run;
use crate::core::Core;
use crate::error::{Error, PathError, Result};
use crate::file::LavaFile;
use crate::format::op::{FLAG_EXACT, FLAG_SEAL, InodeRecord, Op};
use crate::fs::LavaFs;
use crate::meta::inode::{Inode, InodeState, MODE_DIRECTORY, MODE_FILE, MODE_SYMLINK, MODE_TYPE};
use crate::meta::journal::DataState;
use crate::meta::tables::Tables;
use crate::types::{FileSize, Ino};
use crate::vfs::{CreateOptions, FileKind, FileRef, TailPolicy};

/// Longest name in bytes.
pub const NAME_LEN_MAX: usize = 255;

/// Longest target of a symbolic link in bytes.
pub const TARGET_LEN_MAX: usize = 4095;

/// Most names of one file.
pub const LINKS_MAX: u32 = 65_000;

/// Longest name and value of an extended attribute in bytes.
pub const XATTR_NAME_LEN_MAX: usize = 255;
/// See [`XATTR_NAME_LEN_MAX`].
pub const XATTR_VALUE_LEN_MAX: usize = 16 << 10;

/// Bytes of operations that a new name and inode take at most, without target or attributes.
const CREATE_OPS_LEN_MAX: u64 = 512;

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

/// A change in progress: operations already applied, to be enqueued together.
struct Change<'a> {
    core: &'a Core,
    tables: parking_lot::RwLockWriteGuard<'a, Tables>,
    ops: Vec<u8>,
    /// Inodes whose attributes changed; their operations are encoded when all are enqueued.
    edited: Vec<Arc<Inode>>,
    freed: Vec<Run>,
}

impl<'a> Change<'a> {
    fn begin(core: &'a Core) -> Self {
        let tables = core.tables.write();
        Change {
            core,
            tables,
            ops: Vec::with_capacity(256),
            edited: Vec::new(),
            freed: Vec::new(),
        }
    }

    fn apply(&mut self, op: Op<'_>) {
        self.tables.apply(&op, &mut self.freed);
        op.encode(&mut self.ops);
    }

    /// Applies what `edit` does to the attributes of `inode`. The record holds the size too, which
    /// a sync changes without the tables' lock.
    fn edit(&mut self, inode: &Arc<Inode>, edit: impl FnOnce(&mut InodeRecord)) {
        let mut state = inode.state.write();
        let mut record = state.record(inode.ino);
        edit(&mut record);
        state.apply(&Op::SetInode(record), &mut self.freed);
        if !self.edited.iter().any(|edited| edited.ino == inode.ino) {
            self.edited.push(inode.clone());
        }
    }

    /// Takes one name from `inode`; without names and handles it goes.
    fn drop_name(&mut self, inode: &Arc<Inode>, is_open: bool, now_ns: i64) {
        let links = inode.state.read().links;
        if links <= 1 && !is_open {
            self.apply(Op::RemoveInode { ino: inode.ino });
        } else {
            self.edit(inode, |record| {
                record.links -= 1;
                record.changed_ns = now_ns;
            });
        }
    }

    fn touch(&mut self, dir: Ino, now_ns: i64) {
        if let Some(inode) = self.tables.inode(dir).cloned() {
            self.edit(&inode, |record| {
                record.modified_ns = now_ns;
                record.changed_ns = now_ns;
            });
        }
    }

    /// Enqueues everything. The states of the edited inodes stay locked from the moment they are
    /// encoded until they are enqueued: a sync in between would enqueue a greater size first, and
    /// the older one here would take back after a crash what was acknowledged. The tables are
    /// locked, so nobody else locks more than one state.
    fn enqueue(self) -> u64 {
        let Change {
            core,
            tables,
            mut ops,
            edited,
            freed,
        } = self;
        let states: Vec<_> = edited.iter().map(|inode| inode.state.read()).collect();
        for (inode, state) in edited.iter().zip(&states) {
            Op::SetInode(state.record(inode.ino)).encode(&mut ops);
        }
        let ticket = core.enqueue_encoded(&ops, DataState::Durable);
        drop(states);
        drop(tables);
        core.quarantine(freed, ticket);
        ticket
    }
}

impl LavaFs {
    /// The inode that `name` names in `dir`.
    pub fn lookup(&self, dir: Ino, name: &OsStr) -> Result<Ino> {
        let tables = self.core.tables.read();
        if !tables.is_directory(dir) {
            return Err(not_a_directory(&tables, dir, name));
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

    /// Changes attributes.
    pub fn set_attributes(&self, ino: Ino, set: &SetAttributes) -> Result<()> {
        self.core.journal()?.admit(CREATE_OPS_LEN_MAX)?;
        let now_ns = self.core.now_ns();
        self.set_open_modified(ino, set);
        let mut change = Change::begin(&self.core);
        let inode = existing(&change.tables, ino)?;
        change.edit(&inode, |record| {
            if let Some(mode) = set.mode {
                record.mode = record.mode & MODE_TYPE | mode & 0o7777;
            }
            record.uid = set.uid.unwrap_or(record.uid);
            record.gid = set.gid.unwrap_or(record.gid);
            record.modified_ns = set.modified_ns.unwrap_or(record.modified_ns);
            record.changed_ns = now_ns;
        });
        change.enqueue();
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

    /// Up to `limit` entries of `dir` after the name `after`, in byte order.
    pub fn entries(
        &self,
        dir: Ino,
        after: Option<&OsStr>,
        limit: usize,
    ) -> Result<Vec<(OsString, Ino, FileKind)>> {
        let tables = self.core.tables.read();
        if !tables.is_directory(dir) {
            return Err(not_a_directory(&tables, dir, OsStr::new("directory")));
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

    /// Makes a regular file and opens it.
    pub fn create_at(
        &self,
        dir: Ino,
        name: &OsStr,
        ownership: Ownership,
        options: &CreateOptions,
    ) -> Result<(Ino, FileRef)> {
        let (inode, handle) = self.create_file(dir, name, ownership, options)?;
        if options.expected_size > 0
            && let Err(error) = handle.open.allocate_expected(options.expected_size)
        {
            drop(handle);
            self.unlink_at(dir, name)?;
            return Err(error);
        }
        Ok((inode.ino, Arc::new(handle)))
    }

    fn create_file(
        &self,
        dir: Ino,
        name: &OsStr,
        ownership: Ownership,
        options: &CreateOptions,
    ) -> Result<(Arc<Inode>, LavaFile)> {
        let flags = if options.tail == TailPolicy::Seal {
            FLAG_SEAL
        } else {
            0
        };
        let ino = Ino(self.core.new_id()?);
        let mut open = self.core.open.lock();
        let record = self.new_record(ino, MODE_FILE, ownership, flags);
        self.make(dir, name, &record, None)?;
        let inode = self.inode(ino)?;
        let handle = self
            .core
            .open_handle(&mut open, &inode, options.expected_size);
        Ok((inode, handle))
    }

    /// Makes a directory.
    pub fn mkdir_at(&self, dir: Ino, name: &OsStr, ownership: Ownership) -> Result<Ino> {
        let ino = Ino(self.core.new_id()?);
        let record = self.new_record(ino, MODE_DIRECTORY, ownership, FLAG_EXACT);
        self.make(dir, name, &record, None)?;
        Ok(ino)
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
        let ino = Ino(self.core.new_id()?);
        let ownership = Ownership {
            mode: 0o777,
            ..ownership
        };
        let record = self.new_record(ino, MODE_SYMLINK, ownership, FLAG_EXACT);
        self.make(dir, name, &record, Some(target))?;
        Ok(ino)
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

    fn new_record(&self, ino: Ino, kind: u32, ownership: Ownership, flags: u64) -> InodeRecord {
        let now_ns = self.core.now_ns();
        InodeRecord {
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
        }
    }

    fn make(
        &self,
        dir: Ino,
        name: &OsStr,
        record: &InodeRecord,
        target: Option<&OsStr>,
    ) -> Result<()> {
        check_name(name)?;
        let target_len = target.map_or(0, OsStr::len) as u64;
        self.core
            .journal()?
            .admit(CREATE_OPS_LEN_MAX + target_len)?;
        let mut change = Change::begin(&self.core);
        check_free(&change.tables, dir, name)?;
        change.apply(Op::SetInode(*record));
        if let Some(target) = target {
            change.apply(Op::SetTarget {
                ino: record.ino,
                target: target.as_bytes(),
            });
        }
        change.apply(Op::Link {
            dir,
            name: name.as_bytes(),
            ino: record.ino,
        });
        change.touch(dir, record.changed_ns);
        change.enqueue();
        Ok(())
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

    /// Gives a file a further name.
    pub fn link_at(&self, ino: Ino, dir: Ino, name: &OsStr) -> Result<()> {
        check_name(name)?;
        self.core.journal()?.admit(CREATE_OPS_LEN_MAX)?;
        let now_ns = self.core.now_ns();
        let mut change = Change::begin(&self.core);
        let inode = existing(&change.tables, ino)?;
        check_free(&change.tables, dir, name)?;
        let (kind, links) = {
            let state = inode.state.read();
            (state.kind(), state.links)
        };
        if kind == FileKind::Directory {
            return Err(Error::path(name, PathError::IsADirectory));
        }
        if links == 0 {
            return Err(Error::path(name, PathError::NotFound));
        }
        if links >= LINKS_MAX {
            return Err(Error::path(name, PathError::TooManyLinks));
        }
        change.edit(&inode, |record| {
            record.links += 1;
            record.changed_ns = now_ns;
        });
        change.apply(Op::Link {
            dir,
            name: name.as_bytes(),
            ino,
        });
        change.touch(dir, now_ns);
        change.enqueue();
        Ok(())
    }

    /// Removes a name of a file or symbolic link.
    pub fn unlink_at(&self, dir: Ino, name: &OsStr) -> Result<()> {
        self.core.journal()?.drain()?;
        let now_ns = self.core.now_ns();
        let open = self.core.open.lock();
        let mut change = Change::begin(&self.core);
        let inode = entry(&change.tables, dir, name)?;
        if inode.state.read().kind() == FileKind::Directory {
            return Err(Error::path(name, PathError::IsADirectory));
        }
        change.apply(Op::Unlink {
            dir,
            name: name.as_bytes(),
        });
        change.drop_name(&inode, open.contains_key(&inode.ino), now_ns);
        change.touch(dir, now_ns);
        change.enqueue();
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir_at(&self, dir: Ino, name: &OsStr) -> Result<()> {
        self.core.journal()?.drain()?;
        let now_ns = self.core.now_ns();
        let mut change = Change::begin(&self.core);
        let inode = entry(&change.tables, dir, name)?;
        if inode.state.read().kind() != FileKind::Directory {
            return Err(Error::path(name, PathError::NotADirectory));
        }
        if !change.tables.is_empty_directory(inode.ino) {
            return Err(Error::path(name, PathError::NotEmpty));
        }
        change.apply(Op::Unlink {
            dir,
            name: name.as_bytes(),
        });
        change.apply(Op::RemoveInode { ino: inode.ino });
        change.touch(dir, now_ns);
        change.enqueue();
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
        check_name(from)?;
        check_name(to)?;
        self.core.journal()?.admit(CREATE_OPS_LEN_MAX)?;
        let now_ns = self.core.now_ns();
        let open = self.core.open.lock();
        let mut change = Change::begin(&self.core);
        let source = entry(&change.tables, from_dir, from)?;
        if !change.tables.is_directory(to_dir) {
            return Err(not_a_directory(&change.tables, to_dir, to));
        }
        check_not_into_itself(&change.tables, source.ino, to_dir, to)?;
        let target = change.tables.lookup(to_dir, to.as_bytes());
        let target = target.and_then(|ino| change.tables.inode(ino).cloned());
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => {
                return Err(Error::path(to, PathError::AlreadyExists));
            }
            (RenameMode::Exchange, None) => return Err(Error::path(to, PathError::NotFound)),
            (RenameMode::Exchange, Some(target)) => {
                check_not_into_itself(&change.tables, target.ino, from_dir, from)?;
                change.apply(Op::Link {
                    dir: from_dir,
                    name: from.as_bytes(),
                    ino: target.ino,
                });
            }
            // Two names of one file: nothing to do, says POSIX.
            (_, Some(target)) if target.ino == source.ino => return Ok(()),
            (_, Some(target)) => {
                check_replaceable(&change.tables, &source, &target, to)?;
                change.apply(Op::Unlink {
                    dir: from_dir,
                    name: from.as_bytes(),
                });
                change.drop_name(&target, open.contains_key(&target.ino), now_ns);
            }
            (_, None) => change.apply(Op::Unlink {
                dir: from_dir,
                name: from.as_bytes(),
            }),
        }
        change.apply(Op::Link {
            dir: to_dir,
            name: to.as_bytes(),
            ino: source.ino,
        });
        change.edit(&source, |record| record.changed_ns = now_ns);
        change.touch(from_dir, now_ns);
        change.touch(to_dir, now_ns);
        change.enqueue();
        Ok(())
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, ino: Ino, name: &OsStr, value: &[u8]) -> Result<()> {
        if name.is_empty() || name.len() > XATTR_NAME_LEN_MAX || value.len() > XATTR_VALUE_LEN_MAX {
            let what = format!(
                "an extended attribute has 1 to {XATTR_NAME_LEN_MAX} bytes of name and up to \
                 {XATTR_VALUE_LEN_MAX} of value"
            );
            return Err(Error::Invalid { what });
        }
        self.core
            .journal()?
            .admit((name.len() + value.len()) as u64 + CREATE_OPS_LEN_MAX)?;
        let mut change = Change::begin(&self.core);
        let inode = existing(&change.tables, ino)?;
        change.apply(Op::SetXattr {
            ino,
            name: name.as_bytes(),
            value,
        });
        let now_ns = self.core.now_ns();
        change.edit(&inode, |record| record.changed_ns = now_ns);
        change.enqueue();
        Ok(())
    }

    /// The value of an extended attribute, if it is set.
    pub fn xattr(&self, ino: Ino, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let inode = self.inode(ino)?;
        let state = inode.state.read();
        let extra = state.extra.as_ref();
        Ok(extra.and_then(|extra| extra.xattrs.get(name.as_bytes()).cloned()))
    }

    /// The names of all extended attributes.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<OsString>> {
        let inode = self.inode(ino)?;
        let state = inode.state.read();
        let names = state.extra.iter().flat_map(|extra| extra.xattrs.keys());
        Ok(names.map(|name| OsString::from_vec(name.clone())).collect())
    }

    /// Removes an extended attribute; false where it was not set.
    pub fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<bool> {
        self.core.journal()?.drain()?;
        if self.xattr(ino, name)?.is_none() {
            return Ok(false);
        }
        let mut change = Change::begin(&self.core);
        let inode = existing(&change.tables, ino)?;
        change.apply(Op::RemoveXattr {
            ino,
            name: name.as_bytes(),
        });
        let now_ns = self.core.now_ns();
        change.edit(&inode, |record| record.changed_ns = now_ns);
        change.enqueue();
        Ok(true)
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

/// Checks that a file could have this name.
fn check_name(name: &OsStr) -> Result<()> {
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

fn existing(tables: &Tables, ino: Ino) -> Result<Arc<Inode>> {
    let inode = tables.inode(ino).cloned();
    inode.ok_or_else(|| Error::path(format!("inode {ino}"), PathError::NotFound))
}

fn entry(tables: &Tables, dir: Ino, name: &OsStr) -> Result<Arc<Inode>> {
    check_name(name)?;
    if !tables.is_directory(dir) {
        return Err(not_a_directory(tables, dir, name));
    }
    let ino = tables.lookup(dir, name.as_bytes());
    existing(
        tables,
        ino.ok_or_else(|| Error::path(name, PathError::NotFound))?,
    )
}

fn check_free(tables: &Tables, dir: Ino, name: &OsStr) -> Result<()> {
    if !tables.is_directory(dir) {
        return Err(not_a_directory(tables, dir, name));
    }
    match tables.lookup(dir, name.as_bytes()) {
        Some(_) => Err(Error::path(name, PathError::AlreadyExists)),
        None => Ok(()),
    }
}

fn not_a_directory(tables: &Tables, dir: Ino, name: &OsStr) -> Error {
    let kind = if tables.inode(dir).is_some() {
        PathError::NotADirectory
    } else {
        PathError::NotFound
    };
    Error::path(Path::new(name), kind)
}

fn check_replaceable(tables: &Tables, source: &Inode, target: &Inode, to: &OsStr) -> Result<()> {
    let is_dir = |state: &InodeState| state.kind() == FileKind::Directory;
    let (from_dir, to_dir) = (is_dir(&source.state.read()), is_dir(&target.state.read()));
    match (from_dir, to_dir) {
        (true, false) => Err(Error::path(to, PathError::NotADirectory)),
        (false, true) => Err(Error::path(to, PathError::IsADirectory)),
        (true, true) if !tables.is_empty_directory(target.ino) => {
            Err(Error::path(to, PathError::NotEmpty))
        }
        _ => Ok(()),
    }
}

/// A directory cannot be moved below itself: it would leave the tree.
fn check_not_into_itself(tables: &Tables, moved: Ino, to_dir: Ino, to: &OsStr) -> Result<()> {
    if !tables.is_directory(moved) {
        return Ok(());
    }
    let mut dir = to_dir;
    loop {
        if dir == moved {
            return Err(Error::path(to, PathError::IntoItself));
        }
        match tables.parent(dir) {
            Some(parent) if parent != dir => dir = parent,
            _ => return Ok(()),
        }
    }
}
