//! `LavaFs`: mounting, unmounting, and the path-based `FileSystem`.
//!
//! Mounting read-write recovers (`recovery.rs`), removes what was unlinked while open, and then
//! always makes a checkpoint in the idle region: a torn tail is left behind with the old region,
//! numbers for inodes and generations are reserved anew, and everything that recovery read from the
//! device's volatile cache is flushed before anybody relies on it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::path::{Component, Path};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::alloc::{Allocator, FreeMap};
use crate::background::Background;
use crate::core::Core;
use crate::device::{AlignedBuf, BlockDevice, DeviceCounters, DeviceWrite, Durability};
use crate::discard::Discards;
use crate::disk::Disk;
use crate::error::{Error, PathError, Result};
use crate::file::{ReadaheadBudget, WriteBehindBudget, read_batch};
use crate::format::owner::Owner;
use crate::format::superblock::{COMPAT_DISCARD, OWNER_BLOCK, Superblock};
use crate::meta::journal::Journal;
use crate::meta::recovery::{Recovered, check_owner, recover, recover_moving};
use crate::meta::superblocks;
use crate::meta::tables::{ROOT, Tables};
use crate::namespace::{Ownership, RenameMode};
use crate::options::MountOptions;
use crate::types::{BLOCK_SIZE, Ino};
use crate::vfs::{
    CreateOptions, DirEntry, FileKind, FileLock, FileRef, FileSystem, Metadata, ReadRequest, Space,
};
use crate::view::View;

/// A mounted filesystem. Cheap to clone; all clones are one filesystem. Any thread may use it.
///
/// Dropping the last clone and the last file without [`LavaFs::unmount`] is like a crash of the
/// process: what was synced is there after the next mount.
#[derive(Clone, Debug)]
pub struct LavaFs {
    pub(crate) core: Arc<Core>,
}

impl LavaFs {
    /// The root directory's inode number.
    pub const ROOT: Ino = ROOT;

    /// Mounts the filesystem on `device`.
    ///
    /// # Errors
    /// `NotLavaFs`; `Unsupported` for a newer format; `Corrupt` where the metadata is damaged
    /// (read-only mounting may still work, with a warning); `InUse`; `Io`.
    pub fn mount(device: Arc<dyn BlockDevice>, options: &MountOptions) -> Result<LavaFs> {
        options.validate()?;
        let disk = Arc::new(Disk::new(device));
        let recovered = if options.read_only {
            recover_moving(&disk)?
        } else {
            recover(&disk)?
        };
        for sentence in &recovered.damage {
            tracing::warn!(device = disk.name(), "{sentence}");
        }
        let read_only = options.read_only || recovered.superblock.must_be_read_only();
        if !read_only && let Some(sentence) = recovered.damage.first() {
            let detail = format!("{sentence}; mount read-only, or run fsck.lavafs");
            return Err(Error::corrupt("journal", 0, detail));
        }
        let alloc = free_space(&recovered.superblock, &recovered.tables)?;
        let bad_copies = [
            &recovered.bad_superblocks[..],
            &recovered.stale_superblocks[..],
        ]
        .concat();
        let fs = Self::assemble(&disk, recovered, alloc, read_only, options);
        if read_only {
            disk.refuse_changes("it is mounted so");
            return Ok(fs);
        }
        if !options.take_over {
            check_owner(&disk)?;
        }
        fs.write_owner(&Owner::this_process(fs.core.now_ns()))?;
        superblocks::write(&disk, &fs.superblock(), &bad_copies)?;
        fs.remove_orphans();
        fs.core.checkpoint()?;
        if options.background {
            let thread = Background::start(&fs.core)
                .map_err(|e| Error::io("start a thread", disk.name(), 0, e))?;
            *fs.core.background.lock() = Some(thread);
            if fs.superblock().compat & COMPAT_DISCARD != 0 {
                let started = fs.core.discards.start(&fs.core);
                started.map_err(|e| Error::io("start a thread", disk.name(), 0, e))?;
            }
        }
        Ok(fs)
    }

    /// Goes on from a recovered state as a mount does, leaves a fresh checkpoint and unmounts.
    /// For repair, which has decided that the state is to be kept.
    pub(crate) fn restart(device: Arc<dyn BlockDevice>, recovered: Recovered) -> Result<()> {
        let disk = Arc::new(Disk::new(device));
        let alloc = free_space(&recovered.superblock, &recovered.tables)?;
        let options = MountOptions::default();
        let fs = Self::assemble(&disk, recovered, alloc, false, &options);
        fs.remove_orphans();
        // Before any record: one behind the last would have its sizes believed without their data.
        fs.core.checkpoint()?;
        fs.unmount()
    }

    /// Removes what was unlinked while open and never closed.
    fn remove_orphans(&self) {
        let orphans = self.core.tables.read().orphans();
        for orphan in orphans {
            tracing::info!(
                ino = orphan.0,
                "removing a file that was unlinked while open"
            );
            self.core.remove_inode(orphan);
        }
    }

    fn assemble(
        disk: &Arc<Disk>,
        recovered: Recovered,
        alloc: Allocator,
        read_only: bool,
        options: &MountOptions,
    ) -> LavaFs {
        let view = read_only.then(|| View::new(&recovered));
        let Recovered {
            superblock,
            tables,
            end,
            ..
        } = recovered;
        let tables = Arc::new(RwLock::new(tables));
        let journal = (!read_only)
            .then(|| Journal::new(disk.clone(), tables.clone(), superblock.clone(), &end));
        let core = Core {
            disk: disk.clone(),
            superblock: RwLock::new(superblock),
            tables,
            alloc: Mutex::new(alloc),
            open: Mutex::new(HashMap::new()),
            locks: Arc::new(Mutex::new(HashSet::new())),
            journal,
            background: Mutex::new(None),
            discards: Discards::new(options.discard_rate, options.discard_backlog),
            readahead: ReadaheadBudget::new(options.readahead),
            write_behind: WriteBehindBudget::new(options.write_behind),
            view,
        };
        LavaFs {
            core: Arc::new(core),
        }
    }

    fn write_owner(&self, owner: &Owner) -> Result<()> {
        let mut block = AlignedBuf::zeroed(BLOCK_SIZE as usize);
        block.copy_from_slice(&owner.encode());
        let write = DeviceWrite {
            offset: OWNER_BLOCK * BLOCK_SIZE,
            data: &block,
        };
        self.core.disk.write(&[write], Durability::Durable)?;
        Ok(())
    }

    /// Makes everything durable and leaves the device clean.
    ///
    /// # Errors
    /// `Invalid` while files are open; the filesystem then stays mounted. Otherwise whatever kept
    /// the last changes from being durable.
    pub fn unmount(self) -> Result<()> {
        let open = self.core.open.lock().len();
        if open > 0 {
            return Err(Error::Invalid {
                what: format!("{open} files are still open"),
            });
        }
        // The thread may yet ask for work, for which it takes the lock.
        let background = self.core.background.lock().take();
        drop(background);
        if self.core.journal.is_none() {
            return Ok(());
        }
        self.core.commit_all()?;
        self.core.checkpoint()?;
        self.core.finish_discards();
        self.write_owner(&Owner::nobody())?;
        self.core.disk.refuse_changes("it was unmounted");
        Ok(())
    }

    /// Makes every namespace change so far, and the sizes of closed files, durable.
    pub fn commit(&self) -> Result<()> {
        self.core.commit_all()
    }

    /// Makes a checkpoint now, and leaves an empty journal.
    pub fn checkpoint(&self) -> Result<()> {
        self.core.checkpoint()
    }

    /// The superblock.
    pub fn superblock(&self) -> Superblock {
        self.core.superblock.read().clone()
    }

    /// The unused runs of the device, ascending, as (start block, blocks) of 4 KiB.
    pub fn free_runs(&self) -> Vec<(u64, u64)> {
        self.core.alloc.lock().runs().collect()
    }

    /// Bytes of freed space that wait for a discard, and bytes that will not get one because the
    /// backlog was full ([`MountOptions::discard_backlog`]).
    pub fn discard_backlog(&self) -> (u64, u64) {
        self.core.discards.backlog()
    }

    /// Number of files, directories and symbolic links.
    pub fn inode_count(&self) -> u64 {
        self.core.tables.read().inodes.len() as u64
    }

    /// The inode that a path names. Symbolic links are not followed.
    pub fn resolve(&self, path: &Path) -> Result<Ino> {
        let mut ino = ROOT;
        for name in names(path)? {
            ino = self
                .lookup(ino, name)
                .map_err(|error| at_path(error, path))?;
        }
        Ok(ino)
    }

    /// What `then` makes of the inode that a path names. Another may take its name before that, and is meant then.
    fn of_name<T>(&self, path: &Path, then: impl Fn(Ino) -> Result<T>) -> Result<T> {
        let mut ino = self.resolve(path)?;
        loop {
            let outcome = then(ino).map_err(|error| at_path(error, path));
            if !outcome.as_ref().is_err_and(Error::is_not_found) {
                return outcome;
            }
            let before = std::mem::replace(&mut ino, self.resolve(path)?);
            if ino == before {
                return outcome;
            }
        }
    }

    /// The directory that holds a path's last component, and that component.
    pub fn resolve_parent<'a>(&self, path: &'a Path) -> Result<(Ino, &'a OsStr)> {
        let invalid = || Error::path(path, PathError::InvalidName);
        let name = names(path)?.pop().ok_or_else(invalid)?;
        let parent = self.resolve(path.parent().ok_or_else(invalid)?)?;
        Ok((parent, name))
    }
}

/// The names in a path. `.` and further slashes are nothing; `..` is refused.
pub(crate) fn names(path: &Path) -> Result<Vec<&OsStr>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::path(path, PathError::InvalidName));
            }
        }
    }
    Ok(names)
}

/// Gives a path error about one name the whole path.
pub(crate) fn at_path(error: Error, path: &Path) -> Error {
    match error {
        Error::Path { kind, .. } => Error::path(path, kind),
        other => other,
    }
}

/// What the extents in use leave free.
pub(crate) fn free_space(superblock: &Superblock, tables: &Tables) -> Result<Allocator> {
    let mut used = tables.used_runs();
    used.sort_unstable_by_key(|run| run.0);
    let runs: Vec<(u64, u64)> = used
        .iter()
        .map(|&(start, blocks, _)| (start, blocks))
        .collect();
    let space = superblock.data_runs();
    let free = FreeMap::from_used(&space, &runs).map_err(|(start, blocks)| {
        let detail = format!(
            "blocks {start}..{} are owned twice or cannot be",
            start + blocks
        );
        Error::corrupt("extent", start.saturating_mul(BLOCK_SIZE), detail)
    })?;
    Ok(Allocator::new(free, space.iter().map(|run| run.1).sum()))
}

impl FileSystem for LavaFs {
    fn create(&self, path: &Path, options: &CreateOptions) -> Result<FileRef> {
        let (dir, name) = self.resolve_parent(path)?;
        let created = self.create_at(dir, name, process_ownership(0o644), options);
        Ok(created.map_err(|error| at_path(error, path))?.1)
    }

    fn open(&self, path: &Path) -> Result<FileRef> {
        self.of_name(path, |ino| self.open_ino(ino))
    }

    fn metadata(&self, path: &Path) -> Result<Metadata> {
        let attributes = self.of_name(path, |ino| self.attributes(ino))?;
        Ok(Metadata {
            kind: attributes.kind,
            size: attributes.size,
            allocated: attributes.allocated,
            ino: attributes.ino.0,
            links: attributes.links,
            modified_ns: attributes.modified_ns,
        })
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        let entries = self.entries(self.resolve(dir)?, None, usize::MAX);
        let entries = entries.map_err(|error| at_path(error, dir))?;
        Ok(entries
            .into_iter()
            .map(|(name, _, kind)| DirEntry { name, kind })
            .collect())
    }

    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        let mut ino = ROOT;
        for name in names(dir)? {
            ino = match self.lookup(ino, name) {
                Err(error) if error.is_not_found() => {
                    match self.mkdir_at(ino, name, process_ownership(0o755)) {
                        Err(error) if error.is_already_exists() => self.lookup(ino, name),
                        made => made,
                    }
                }
                found => found,
            }
            .map_err(|error| at_path(error, dir))?;
        }
        if self.core.tables.read().is_directory(ino) {
            Ok(())
        } else {
            Err(Error::path(dir, PathError::NotADirectory))
        }
    }

    fn remove_dir(&self, dir: &Path) -> Result<()> {
        let (parent, name) = self.resolve_parent(dir)?;
        self.rmdir_at(parent, name)
            .map_err(|error| at_path(error, dir))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let (from_dir, from_name) = self.resolve_parent(from)?;
        let (to_dir, to_name) = self.resolve_parent(to)?;
        let renamed = self.rename_at(from_dir, from_name, to_dir, to_name, RenameMode::Replace);
        renamed.map_err(|error| match &error {
            Error::Path { path, .. } if path.as_os_str() == from_name => at_path(error, from),
            _ => at_path(error, to),
        })
    }

    fn link(&self, existing: &Path, new: &Path) -> Result<()> {
        let ino = self.resolve(existing)?;
        let (dir, name) = self.resolve_parent(new)?;
        self.link_at(ino, dir, name)
            .map_err(|error| at_path(error, new))
    }

    fn unlink(&self, path: &Path) -> Result<()> {
        let (dir, name) = self.resolve_parent(path)?;
        self.unlink_at(dir, name)
            .map_err(|error| at_path(error, path))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        let ino = self.resolve(dir)?;
        if self.attributes(ino)?.kind != FileKind::Directory {
            return Err(Error::path(dir, PathError::NotADirectory));
        }
        self.commit()
    }

    fn lock(&self, path: &Path) -> Result<FileLock> {
        let ino = match self.create(path, &CreateOptions::default()) {
            Err(error) if error.is_already_exists() => self.resolve(path)?,
            created => {
                created?;
                self.resolve(path)?
            }
        };
        if !self.core.locks.lock().insert(ino) {
            return Err(Error::path(path, PathError::Locked));
        }
        Ok(FileLock::new(LockGuard {
            locks: self.core.locks.clone(),
            ino,
        }))
    }

    fn read_batch(&self, requests: &mut [ReadRequest<'_>], queue_depth: usize) -> Result<()> {
        read_batch(requests, queue_depth, None)
    }

    fn read_batch_timed(
        &self,
        requests: &mut [ReadRequest<'_>],
        queue_depth: usize,
        latencies: &mut [Duration],
    ) -> Result<()> {
        read_batch(requests, queue_depth, Some(latencies))
    }

    fn space(&self) -> Space {
        self.core.space()
    }

    fn counters(&self) -> DeviceCounters {
        self.core.disk.device().counters()
    }

    fn write_unit(&self) -> u64 {
        self.core.disk.unit()
    }

    fn buffer_memory(&self) -> u64 {
        self.core.readahead.memory_max() + self.core.write_behind.memory_max()
    }

    fn limit_buffer_memory(&self, bytes: u64) {
        self.core.write_behind.limit_memory(bytes / 4);
        self.core.readahead.limit_memory(bytes - bytes / 4);
    }
}

/// Lets go of an advisory lock.
struct LockGuard {
    locks: Arc<Mutex<HashSet<Ino>>>,
    ino: Ino,
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.locks.lock().remove(&self.ino);
    }
}

/// The process's user and group, for what the path-based API makes.
pub(crate) fn process_ownership(mode: u32) -> Ownership {
    let (uid, gid) = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    Ownership { mode, uid, gid }
}
