//! The kernel's requests, answered by [`LavaFs`].
//!
//! - A file is written at its end only: a write that begins elsewhere fails with EOPNOTSUPP, and
//!   so do fallocate and every other request that append-only files cannot do.
//! - `fsync` and `fdatasync` both make bytes and size durable, because a foreign program expects
//!   to find what it synced; with `sizefree`, `fdatasync` has LavaFS's own meaning.
//! - Inode numbers are LavaFS's and are never reused, so the generation the kernel asks for is 0.
//! - A size that is only known to lie between two bounds after a crash is shown as the lower one,
//!   and settled there when the file is first opened for writing.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use lavafs::{
    Attributes, BLOCK_SIZE, CreateOptions, FileKind, FileRef, FileSize, FileSystem, Ino, LavaFs,
    NAME_LEN_MAX, Ownership, RenameMode, SetAttributes,
};

use super::errno::errno;
use super::handles::{Handle, Handles};

/// How long the kernel may keep names and attributes. Nobody else changes them.
const TTL: Duration = Duration::from_secs(1);

/// Bytes of zeros appended at a time where a truncation makes a file longer.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A mounted filesystem as the kernel's partner.
#[derive(Debug)]
pub(super) struct Mount {
    lava: LavaFs,
    size_free: bool,
    handles: Handles,
}

type Answer<T> = Result<T, Errno>;

/// Refuses the kernel's own attributes, which are access control lists: LavaFS has none, and a
/// program that is told so falls back to permission bits.
fn check_xattr(name: &OsStr) -> Answer<()> {
    if name.as_bytes().starts_with(b"system.") {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(())
}

/// Turns the filesystem's errors into numbers, logging those that mean damage.
fn checked<T>(result: lavafs::Result<T>) -> Answer<T> {
    result.map_err(|error| {
        if matches!(
            error,
            lavafs::Error::Io { .. } | lavafs::Error::Corrupt { .. }
        ) {
            tracing::error!(%error, "a request failed");
        }
        errno(&error)
    })
}

impl Mount {
    /// Serves `lava`.
    pub(super) fn new(lava: LavaFs, size_free: bool) -> Self {
        Mount {
            lava,
            size_free,
            handles: Handles::new(),
        }
    }

    fn attributes(&self, ino: Ino) -> Answer<FileAttr> {
        let attributes = checked(self.lava.attributes(ino))?;
        Ok(file_attr(&attributes))
    }

    fn entry(&self, ino: lavafs::Result<Ino>) -> Answer<FileAttr> {
        self.attributes(checked(ino)?)
    }

    fn open_file(&self, ino: Ino, flags: OpenFlags) -> Answer<FileRef> {
        let file = checked(self.lava.open_ino(ino))?;
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            let _writes = self.handles.lock_writes(ino);
            if let FileSize::Between { lower, .. } = file.size() {
                checked(file.settle(lower))?;
            }
        }
        Ok(file)
    }

    fn write_at(&self, ino: Ino, file: &FileRef, offset: u64, data: &[u8]) -> Answer<()> {
        let _writes = self.handles.lock_writes(ino);
        if offset != file.size().lower() {
            return Err(Errno::EOPNOTSUPP);
        }
        checked(file.append(data)).map(|_| ())
    }

    /// Makes a file `size` bytes long, with zeros where it grows.
    fn resize(&self, ino: Ino, size: u64) -> Answer<()> {
        let file = checked(self.lava.open_ino(ino))?;
        let _writes = self.handles.lock_writes(ino);
        if let FileSize::Between { lower, .. } = file.size() {
            checked(file.settle(lower))?;
        }
        let mut present = file.size().lower();
        if size < present {
            return checked(file.truncate(size));
        }
        while present < size {
            let len = (size - present).min(ZEROS.len() as u64);
            checked(file.append(&ZEROS[..len as usize]))?;
            present += len;
        }
        Ok(())
    }

    fn listing(&self, ino: Ino) -> Answer<Handle> {
        let mut entries = vec![
            (".".into(), ino, FileKind::Directory),
            (
                "..".into(),
                checked(self.lava.parent(ino))?,
                FileKind::Directory,
            ),
        ];
        entries.extend(checked(self.lava.entries(ino, None, usize::MAX))?);
        Ok(Handle::Directory(entries.into()))
    }
}

fn ownership(request: &Request, mode: u32, umask: u32) -> Ownership {
    Ownership {
        mode: mode & !umask & 0o7777,
        uid: request.uid(),
        gid: request.gid(),
    }
}

fn file_attr(attributes: &Attributes) -> FileAttr {
    let modified = time(attributes.modified_ns);
    let changed = time(attributes.changed_ns);
    FileAttr {
        ino: INodeNo(attributes.ino.0),
        size: attributes.size.lower(),
        blocks: attributes.allocated / 512,
        atime: modified,
        mtime: modified,
        ctime: changed,
        crtime: changed,
        kind: file_type(attributes.kind),
        perm: (attributes.mode & 0o7777) as u16,
        nlink: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: 0,
        blksize: BLOCK_SIZE as u32,
        flags: 0,
    }
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
    }
}

/// A time from nanoseconds since 1970, which may be negative.
fn time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    }
}

/// Nanoseconds since 1970; times beyond the years 1677 to 2262 are cut off there.
fn nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

/// Answers with an entry or an error.
fn reply_entry(reply: ReplyEntry, answer: Answer<FileAttr>) {
    match answer {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn reply_attr(reply: ReplyAttr, answer: Answer<FileAttr>) {
    match answer {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(error) => reply.error(error),
    }
}

fn reply_empty(reply: ReplyEmpty, answer: Answer<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn reply_open(reply: ReplyOpen, answer: Answer<FileHandle>) {
    match answer {
        Ok(handle) => reply.opened(handle, FopenFlags::empty()),
        Err(error) => reply.error(error),
    }
}

/// Answers with a value, or its size where the caller asks for that.
fn reply_xattr(reply: ReplyXattr, room: u32, answer: Answer<Vec<u8>>) {
    match answer {
        Ok(value) if room == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > room as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Mount {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.lava.lookup(Ino(parent.0), name);
        reply_entry(reply, self.entry(found));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(reply, self.attributes(Ino(ino.0)));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let ino = Ino(ino.0);
        let set = SetAttributes {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            modified_ns: mtime.map(|time| match time {
                TimeOrNow::SpecificTime(time) => nanoseconds(time),
                TimeOrNow::Now => nanoseconds(SystemTime::now()),
            }),
        };
        let changed = (|| {
            if let Some(size) = size {
                self.resize(ino, size)?;
            }
            checked(self.lava.set_attributes(ino, &set))?;
            self.attributes(ino)
        })();
        reply_attr(reply, changed);
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match checked(self.lava.read_link(Ino(ino.0))) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        if mode & libc::S_IFMT != libc::S_IFREG {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let ownership = ownership(request, mode, umask);
        let options = CreateOptions::default();
        let made = self
            .lava
            .create_at(Ino(parent.0), name, ownership, &options)
            .map(|(ino, _)| ino);
        reply_entry(reply, self.entry(made));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let ownership = ownership(request, mode, umask);
        let made = self.lava.mkdir_at(Ino(parent.0), name, ownership);
        reply_entry(reply, self.entry(made));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, checked(self.lava.unlink_at(Ino(parent.0), name)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, checked(self.lava.rmdir_at(Ino(parent.0), name)));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let ownership = ownership(request, 0o777, 0);
        let target = target.as_os_str();
        let made = self.lava.symlink_at(Ino(parent.0), name, target, ownership);
        reply_entry(reply, self.entry(made));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        let (from, to) = (Ino(parent.0), Ino(new_parent.0));
        let renamed = self.lava.rename_at(from, name, to, new_name, mode);
        reply_empty(reply, checked(renamed));
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let ino = Ino(ino.0);
        let linked = self.lava.link_at(ino, Ino(new_parent.0), new_name);
        reply_entry(reply, self.entry(linked.map(|()| ino)));
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.open_file(Ino(ino.0), flags);
        let opened = opened.map(|file| self.handles.insert(Handle::File(file)));
        reply_open(reply, opened);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let ownership = ownership(request, mode, umask);
        let options = CreateOptions::default();
        let parent = Ino(parent.0);
        let created = checked(self.lava.create_at(parent, name, ownership, &options));
        let created = created.and_then(|(ino, file)| Ok((self.attributes(ino)?, file)));
        match created {
            Ok((attr, file)) => {
                let handle = self.handles.insert(Handle::File(file));
                reply.created(&TTL, &attr, Generation(0), handle, FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = vec![0; size as usize];
        let read = self
            .handles
            .file(handle)
            .and_then(|file| checked(file.read_at(offset, &mut buffer)));
        match read {
            Ok(len) => reply.data(&buffer[..len]),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self
            .handles
            .file(handle)
            .and_then(|file| self.write_at(Ino(ino.0), &file, offset, data));
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Called at each close of a descriptor. Nothing is held back here that an error could
        // still be reported for: appends have been answered, and durability is fsync's matter.
        reply_empty(reply, self.handles.file(handle).map(|_| ()));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.handles.remove(handle);
        reply.ok();
    }

    fn fsync(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        let synced = self.handles.file(handle).and_then(|file| {
            checked(if data_only && self.size_free {
                file.fdatasync()
            } else {
                file.fsync()
            })
        });
        reply_empty(reply, synced);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.listing(Ino(ino.0));
        reply_open(reply, opened.map(|listing| self.handles.insert(listing)));
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = match self.handles.directory(handle) {
            Ok(entries) => entries,
            Err(error) => return reply.error(error),
        };
        // An entry's offset is where the listing goes on after it.
        for (index, (name, ino, kind)) in entries.iter().enumerate().skip(offset as usize) {
            let next = index as u64 + 1;
            if reply.add(INodeNo(ino.0), next, file_type(*kind), name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.handles.remove(handle);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply_empty(reply, checked(self.lava.commit()));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let space = self.lava.space();
        let (blocks, free) = (space.total / BLOCK_SIZE, space.free / BLOCK_SIZE);
        let inodes = self.lava.inode_count();
        // Inodes have no table of their own; any free block can become one's.
        reply.statfs(
            blocks,
            free,
            free,
            inodes + free,
            free,
            BLOCK_SIZE as u32,
            NAME_LEN_MAX as u32,
            BLOCK_SIZE as u32,
        );
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let ino = Ino(ino.0);
        let set = (|| {
            check_xattr(name)?;
            let present = checked(self.lava.xattr(ino, name))?.is_some();
            if flags & libc::XATTR_CREATE != 0 && present {
                return Err(Errno::EEXIST);
            }
            if flags & libc::XATTR_REPLACE != 0 && !present {
                return Err(Errno::NO_XATTR);
            }
            checked(self.lava.set_xattr(ino, name, value))
        })();
        reply_empty(reply, set);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = check_xattr(name).and_then(|()| checked(self.lava.xattr(Ino(ino.0), name)));
        reply_xattr(
            reply,
            size,
            value.and_then(|value| value.ok_or(Errno::NO_XATTR)),
        );
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = checked(self.lava.xattr_names(Ino(ino.0))).map(|names| {
            let mut list = Vec::new();
            for name in names {
                list.extend(name.as_bytes());
                list.push(0);
            }
            list
        });
        reply_xattr(reply, size, names);
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = checked(self.lava.remove_xattr(Ino(ino.0), name));
        let removed = removed.and_then(|was_set| was_set.then_some(()).ok_or(Errno::NO_XATTR));
        reply_empty(reply, removed);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive() {
        for ns in [0, 1, -1, 1_700_000_000_123_456_789, -86_400_000_000_001] {
            assert_eq!(nanoseconds(time(ns)), ns);
        }
    }
}
