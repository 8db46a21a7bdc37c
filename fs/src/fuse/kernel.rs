//! The kernel's requests, unpacked for [`Mount`] and answered.
//!
//! The kernel may cache names, attributes and pages for long, because every change passes through
//! it; not so where the filesystem is live, and the kernel asks every time. A file opened for writing bypasses the page cache, though:
//! - a shared writable mapping would write pages back in place, long after the program was told that
//!   all is well; without the cache such a mapping is refused (ENODEV);
//! - appends go out in larger requests, with a copy less.
//!
//! What is appended past the cache may lie in a page whose end a reader has cached as zeros. The
//! kernel drops a file's pages when its modification time has changed (AUTO_INVAL_DATA).
//!
//! Writes reach us at once, not through the writeback cache, which would write whole pages at
//! times of its own. Locks stay in the kernel: no other machine can have the filesystem mounted.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::{BLOCK_SIZE, FileKind, Ino, NAME_LEN_MAX};
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::errno::{Answer, answer};
use super::names::{Caller, Changes};
use super::negotiate::negotiate;
use super::ops::Mount;

/// How long the kernel may believe names and attributes, where all changes pass through it.
const TTL: Duration = Duration::from_secs(3600);

const GENERATION: Generation = Generation(0);

/// The filesystem for fuser.
#[derive(Debug)]
pub(super) struct Kernel(pub(super) Arc<Mount>);

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
    }
}

impl Kernel {
    /// How long the kernel may believe names and attributes.
    fn ttl(&self) -> Duration {
        if self.0.live { Duration::ZERO } else { TTL }
    }

    /// How the kernel is to treat a file opened with `flags`.
    fn open_mode(&self, flags: i32) -> FopenFlags {
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            FopenFlags::FOPEN_DIRECT_IO
        } else if self.0.live {
            FopenFlags::empty()
        } else {
            FopenFlags::FOPEN_KEEP_CACHE
        }
    }

    fn reply_entry(&self, reply: ReplyEntry, result: Answer<FileAttr>) {
        match result {
            Ok(attr) => reply.entry(&self.ttl(), &attr, GENERATION),
            Err(error) => reply.error(error),
        }
    }

    fn reply_attr(&self, reply: ReplyAttr, result: Answer<FileAttr>) {
        match result {
            Ok(attr) => reply.attr(&self.ttl(), &attr),
            Err(error) => reply.error(error),
        }
    }
}

fn reply_empty(reply: ReplyEmpty, result: Answer<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

/// The value, or for a `size` of 0 its length.
fn reply_xattr(reply: ReplyXattr, size: u32, result: Answer<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Kernel {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiate(config)
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.reply_entry(reply, self.0.lookup(parent, name));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        self.0.removed.forget(ino);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.reply_attr(reply, self.0.attributes(ino));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = Changes {
            mode,
            uid,
            gid,
            size,
            modified: mtime,
        };
        self.reply_attr(reply, self.0.set_attributes(caller(req), ino, &changes));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        use std::os::unix::ffi::OsStrExt;
        match answer("readlink", ino.0, self.0.fs.read_link(Ino(ino.0))) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        self.reply_entry(reply, self.0.mknod(caller(req), parent, name, mode));
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.reply_entry(reply, self.0.mkdir(caller(req), parent, name, mode));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.0.unlink(parent, name));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.0.rmdir(parent, name));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let made = self
            .0
            .symlink(caller(req), parent, name, target.as_os_str());
        self.reply_entry(reply, made);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.0.rename((parent, name), (newparent, newname), flags);
        reply_empty(reply, renamed);
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.reply_entry(reply, self.0.link(ino, newparent, newname));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.0.create(caller(req), parent, name, mode) {
            Ok((attr, handle, _)) => {
                let handle = FileHandle(handle);
                reply.created(
                    &self.ttl(),
                    &attr,
                    GENERATION,
                    handle,
                    self.open_mode(flags),
                );
            }
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mut opened = self.0.open(Ino(ino.0), flags.0);
        if let Ok(handle) = opened
            && flags.0 & libc::O_TRUNC != 0
            && req.uid() != 0
            && let Err(error) = self.0.drop_privileges(Ino(ino.0))
        {
            self.0.close(handle);
            opened = Err(error);
        }
        match opened {
            Ok(handle) => reply.opened(FileHandle(handle), self.open_mode(flags.0)),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let direct = flags.0 & (libc::O_ACCMODE | libc::O_DIRECT) != libc::O_RDONLY;
        self.0
            .read(fh.0, offset, size as usize, direct, |result| match result {
                Ok(bytes) => reply.data(bytes),
                Err(error) => reply.error(error),
            });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut result = self.0.write(fh.0, offset, data, flags.0);
        if result.is_ok()
            && write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID)
            && let Err(error) = self.0.drop_privileges(Ino(ino.0))
        {
            result = Err(error);
        }
        match result {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(error),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.0.flush(fh.0));
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.close(fh.0);
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.0.fsync(fh.0, datasync));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.0.follow();
        let handle = self.0.listings.open(Ino(ino.0));
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.0.read_dir(fh.0, offset, |entry, next| {
            let ino = INodeNo(entry.ino.0);
            reply.add(ino, next, file_type(entry.kind), &entry.name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.0.read_dir(fh.0, offset, |entry, next| {
            match self.0.entry_attributes(ino, entry) {
                Some(attr) => {
                    reply.add(attr.ino, next, &entry.name, &self.ttl(), &attr, GENERATION)
                }
                None => false,
            }
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.0.listings.close(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, answer("fsync", ino.0, self.0.commit(false)));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let space = self.0.statfs();
        let block = BLOCK_SIZE as u32;
        reply.statfs(
            space.blocks,
            space.free,
            space.free,
            space.files + space.free,
            space.free,
            block,
            NAME_LEN_MAX as u32,
            block,
        );
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.0.set_xattr(ino, name, value, flags));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.0.xattr(ino, name));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.0.xattr_names(ino));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.0.remove_xattr(ino, name));
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.0.fallocate(fh.0, offset, length, mode));
    }
}
