//! What the engine's tests share: small options, a seeded generator, and a filesystem that is
//! watched and can run out of space.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "test code, of which each test binary uses a part"
)]

pub(crate) mod draw;

use std::any::Any;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lavafs::device::{self, BlockDevice, DeviceCounters, SimDevice};
use lavafs::{
    CreateOptions, DirEntry, Error, File, FileLock, FileRef, FileSize, FileSystem, FileSystemRef,
    Generation, HostFs, LavaFs, Metadata, MkfsOptions, MountOptions, ReadRequest, Result, Space,
    mkfs,
};
use lavakv::Options;
use parking_lot::{Mutex, MutexGuard};

/// The filesystem on `dir`.
pub(crate) fn host(dir: &Path) -> FileSystemRef {
    Arc::new(HostFs::open(dir).unwrap())
}

/// A simulated device with an empty filesystem.
pub(crate) fn sim_device(size: u64, logical_block: u64) -> Arc<SimDevice> {
    let device = SimDevice::new(size, logical_block);
    mkfs(&device, &MkfsOptions::default()).unwrap();
    Arc::new(device)
}

/// The filesystem on `device`, without a thread of its own.
pub(crate) fn mount(device: Arc<dyn BlockDevice>) -> FileSystemRef {
    let options = MountOptions {
        background: false,
        ..MountOptions::default()
    };
    Arc::new(LavaFs::mount(device, &options).unwrap())
}

/// A new filesystem in an image file, as a program would have it.
pub(crate) fn image(path: &Path, size: u64) -> FileSystemRef {
    let device = device::create_image(path, size, false).unwrap();
    mkfs(&*device, &MkfsOptions::default()).unwrap();
    Arc::new(LavaFs::mount(device, &MountOptions::default()).unwrap())
}

/// Runs a test on each kind of filesystem, empty.
pub(crate) fn on_each_fs(test: impl Fn(FileSystemRef)) {
    let dir = tempfile::tempdir().unwrap();
    let host_dir = dir.path().join("host");
    std::fs::create_dir(&host_dir).unwrap();
    println!("on HostFs");
    test(host(&host_dir));
    println!("on LavaFs in memory");
    test(mount(sim_device(512 << 20, 512)));
    println!("on LavaFs in an image");
    test(image(&dir.path().join("image"), 1 << 30));
}

/// Options with everything tiny, so that flushes and compactions happen all the time.
pub(crate) fn tiny() -> Options {
    Options {
        create_if_missing: true,
        write_buffer_size: 16 << 10,
        target_file_size_base: 8 << 10,
        max_bytes_for_level_base: 32 << 10,
        max_bytes_for_level_multiplier: 3.0,
        num_levels: 5,
        block_size: 1024,
        block_cache_size: 64 << 10,
        cache_index_and_filter_blocks: true,
        histograms: true,
        ..Options::default()
    }
}

/// The seed of a random test: `LAVA_SEED`, or one from the clock. Printed, to be replayed.
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var("LAVA_SEED") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_nanos() as u64,
    };
    println!("LAVA_SEED={seed}");
    seed
}

/// A small generator (splitmix64): replayable from its seed on any version of any crate.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Copies a directory as it is at one moment, which is what a crash leaves: where something changed meanwhile, all is
/// copied again. A list of files from before a flush and the manifest from after it are what no crash leaves.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    loop {
        let before = files_below(from);
        std::fs::create_dir_all(to).unwrap();
        for path in before.keys() {
            let target = to.join(path.strip_prefix(from).unwrap());
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            unless_gone(std::fs::copy(path, target));
        }
        if files_below(from) == before {
            return;
        }
        std::fs::remove_dir_all(to).unwrap();
    }
}

/// The files below a directory, each with its inode and its size: files only grow, so that none has changed whose
/// inode and size are the same.
fn files_below(dir: &Path) -> BTreeMap<PathBuf, (u64, u64)> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match unless_gone(entry.metadata()) {
            Some(metadata) if metadata.is_dir() => files.append(&mut files_below(&entry.path())),
            Some(metadata) => drop(files.insert(entry.path(), (metadata.ino(), metadata.len()))),
            None => {}
        }
    }
    files
}

/// What was found of a file that may be removed meanwhile.
fn unless_gone<T>(found: std::io::Result<T>) -> Option<T> {
    match found {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        found => Some(found.unwrap()),
    }
}

type Watcher = dyn Fn(&str, &Path) + Send + Sync;

/// Asked before each change, read and look at the free space, on the thread that makes it: the error that it
/// fails with, if it is to fail.
type Fault = dyn Fn(&str, &Path) -> Option<i32> + Send + Sync;

/// Done once, before the next change of this kind to a file whose name ends so.
struct Interlude {
    op: &'static str,
    suffix: &'static str,
    action: Box<dyn FnOnce() + Send>,
}

/// A filesystem that tells a watcher of each change before it happens, and has a space limit.
pub(crate) struct WatchFs {
    inner: FileSystemRef,
    shared: Arc<Shared>,
}

struct Shared {
    watcher: Box<Watcher>,
    /// Bytes that may still be appended.
    space: AtomicU64,
    /// Every fdatasync fails.
    broken: AtomicBool,
    /// Appends to files whose names end so fail with this error, so many times.
    failing: Mutex<Option<(String, i32, u64)>>,
    /// The same for making files; what is left of the count.
    unmakeable: Mutex<Option<(String, i32, u64)>>,
    interlude: Mutex<Option<Interlude>>,
    fault: Mutex<Option<Arc<Fault>>>,
    /// Appends to files whose names contain this find no space; how many did.
    full: Mutex<(Option<String>, u64)>,
    read_batches: AtomicU64,
    reads: AtomicU64,
    /// Held while the watcher is told and the change is made: the watcher sees no change halfway.
    gate: Mutex<()>,
}

impl Shared {
    fn check(&self, op: &'static str, path: &Path) -> Result<()> {
        let fault = self.fault.lock().clone();
        match fault.and_then(|fault| fault(op, path)) {
            None => Ok(()),
            Some(libc::ENOSPC) => Err(Error::NoSpace { needed: 1, free: 0 }),
            Some(errno) => {
                let source = std::io::Error::from_raw_os_error(errno);
                Err(Error::io(op, "the disk", 0, source))
            }
        }
    }

    fn tell(&self, op: &str, path: &Path) -> MutexGuard<'_, ()> {
        let due =
            |next: &mut Interlude| next.op == op && path.to_str().unwrap().ends_with(next.suffix);
        let interlude = self.interlude.lock().take_if(due);
        if let Some(interlude) = interlude {
            (interlude.action)();
        }
        let gate = self.gate.lock();
        (self.watcher)(op, path);
        gate
    }
}

impl std::fmt::Debug for WatchFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl WatchFs {
    pub(crate) fn new(inner: FileSystemRef, watcher: Box<Watcher>) -> Arc<WatchFs> {
        let space = AtomicU64::new(u64::MAX / 2);
        Arc::new(WatchFs {
            inner,
            shared: Arc::new(Shared {
                watcher,
                space,
                broken: AtomicBool::new(false),
                failing: Mutex::new(None),
                unmakeable: Mutex::new(None),
                interlude: Mutex::new(None),
                fault: Mutex::new(None),
                full: Mutex::default(),
                read_batches: AtomicU64::new(0),
                reads: AtomicU64::new(0),
                gate: Mutex::new(()),
            }),
        })
    }

    /// From now on `bytes` may be appended.
    pub(crate) fn set_space(&self, bytes: u64) {
        self.shared.space.store(bytes, Ordering::SeqCst);
    }

    /// Batches of reads, and all reads, those of batches included, so far.
    pub(crate) fn reads(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        (count(&self.shared.read_batches), count(&self.shared.reads))
    }

    /// The next `count` appends to files whose names end in `suffix` fail with `errno`.
    pub(crate) fn fail_appends(&self, suffix: &str, errno: i32, count: u64) {
        *self.shared.failing.lock() = Some((suffix.to_owned(), errno, count));
    }

    /// The next `count` files whose names end in `suffix` cannot be made, for `errno`.
    pub(crate) fn fail_creates(&self, suffix: &str, errno: i32, count: u64) {
        *self.shared.unmakeable.lock() = Some((suffix.to_owned(), errno, count));
    }

    /// Of the files that [`WatchFs::fail_creates`] was told of: how many can still not be made.
    pub(crate) fn creates_to_fail(&self) -> u64 {
        let left = self.shared.unmakeable.lock();
        left.as_ref().map_or(0, |(_, _, left)| *left)
    }

    /// Before the next `op` on a path that ends in `suffix`, `action` is done on the thread that is
    /// about to make the change: whatever of the database's own work it does comes between two steps of that thread's.
    pub(crate) fn before_next(
        &self,
        op: &'static str,
        suffix: &'static str,
        action: impl FnOnce() + Send + 'static,
    ) {
        *self.shared.interlude.lock() = Some(Interlude {
            op,
            suffix,
            action: Box::new(action),
        });
    }

    /// From now on `fault` is asked before each change and read; no lock is held then, so that it may block.
    pub(crate) fn fail_where(
        &self,
        fault: impl Fn(&str, &Path) -> Option<i32> + Send + Sync + 'static,
    ) {
        *self.shared.fault.lock() = Some(Arc::new(fault));
    }

    /// True where the action given last was not done yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.shared.interlude.lock().is_some()
    }

    /// From now on there is no space for files whose names contain `part`, although some is free, as under
    /// a quota; `None`: there is for all.
    /// Returns how many appends were refused since the last call.
    pub(crate) fn fill_for(&self, part: Option<&str>) -> u64 {
        let part = part.map(str::to_owned);
        std::mem::replace(&mut *self.shared.full.lock(), (part, 0)).1
    }

    /// Appends refused since [`WatchFs::fill_for`].
    pub(crate) fn refused(&self) -> u64 {
        self.shared.full.lock().1
    }

    /// From now on every fdatasync fails.
    pub(crate) fn break_syncs(&self) {
        self.shared.broken.store(true, Ordering::SeqCst);
    }

    fn tell(&self, op: &str, path: &Path) -> MutexGuard<'_, ()> {
        self.shared.tell(op, path)
    }

    fn wrap(&self, inner: FileRef, path: &Path) -> FileRef {
        Arc::new(WatchFile {
            inner,
            path: path.to_path_buf(),
            shared: Arc::clone(&self.shared),
        })
    }
}

impl FileSystem for WatchFs {
    fn create(&self, path: &Path, options: &CreateOptions) -> Result<FileRef> {
        self.shared.check("create", path)?;
        let _gate = self.tell("create", path);
        if let Some((suffix, errno, left)) = &mut *self.shared.unmakeable.lock()
            && *left > 0
            && path.to_str().unwrap().ends_with(suffix.as_str())
        {
            *left -= 1;
            let source = std::io::Error::from_raw_os_error(*errno);
            return Err(Error::io("create", "the disk", 0, source));
        }
        Ok(self.wrap(self.inner.create(path, options)?, path))
    }
    fn open(&self, path: &Path) -> Result<FileRef> {
        self.shared.check("open", path)?;
        Ok(self.wrap(self.inner.open(path)?, path))
    }
    fn metadata(&self, path: &Path) -> Result<Metadata> {
        self.inner.metadata(path)
    }
    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        self.inner.list(dir)
    }
    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        self.inner.create_dir_all(dir)
    }
    fn remove_dir(&self, dir: &Path) -> Result<()> {
        self.inner.remove_dir(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.shared.check("rename", from)?;
        let _gate = self.tell("rename", from);
        self.inner.rename(from, to)
    }
    fn link(&self, existing: &Path, new: &Path) -> Result<()> {
        let _gate = self.tell("link", new);
        self.inner.link(existing, new)
    }
    fn unlink(&self, path: &Path) -> Result<()> {
        self.shared.check("unlink", path)?;
        let _gate = self.tell("unlink", path);
        self.inner.unlink(path)
    }
    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.shared.check("sync_dir", dir)?;
        let _gate = self.tell("sync_dir", dir);
        self.inner.sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> Result<FileLock> {
        self.inner.lock(path)
    }
    fn read_batch(&self, requests: &mut [ReadRequest<'_>], _queue_depth: usize) -> Result<()> {
        self.shared.read_batches.fetch_add(1, Ordering::SeqCst);
        for request in requests {
            request.read = request.file.read_at(request.offset, request.buf)?;
        }
        Ok(())
    }
    fn space(&self) -> Space {
        let fails = self.shared.check("space", Path::new("/"));
        assert!(fails.is_ok(), "a look at the space cannot fail");
        let free = self.shared.space.load(Ordering::SeqCst);
        Space {
            total: u64::MAX / 2,
            free,
        }
    }
    fn counters(&self) -> DeviceCounters {
        self.inner.counters()
    }
    fn write_unit(&self) -> u64 {
        self.inner.write_unit()
    }
    fn buffer_memory(&self) -> u64 {
        self.inner.buffer_memory()
    }
    fn limit_buffer_memory(&self, bytes: u64) {
        self.inner.limit_buffer_memory(bytes);
    }
}

#[derive(Debug)]
struct WatchFile {
    inner: FileRef,
    path: PathBuf,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl File for WatchFile {
    fn append_vectored(&self, parts: &[IoSlice<'_>]) -> Result<u64> {
        self.shared.check("append", &self.path)?;
        let _gate = self.shared.tell("append", &self.path);
        if let Some((suffix, errno, left)) = &mut *self.shared.failing.lock()
            && *left > 0
            && self.path.to_str().unwrap().ends_with(suffix.as_str())
        {
            *left -= 1;
            let source = std::io::Error::from_raw_os_error(*errno);
            return Err(Error::io("append", "the disk", 0, source));
        }
        let needed: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if let (Some(part), refused) = &mut *self.shared.full.lock()
            && self.path.to_str().unwrap().contains(part.as_str())
        {
            *refused += 1;
            return Err(Error::NoSpace { needed, free: 0 });
        }
        let free = self.shared.space.load(Ordering::SeqCst);
        if needed > free {
            return Err(Error::NoSpace { needed, free });
        }
        self.shared.space.fetch_sub(needed, Ordering::SeqCst);
        self.inner.append_vectored(parts)
    }
    fn fdatasync(&self) -> Result<()> {
        self.shared.check("fdatasync", &self.path)?;
        let _gate = self.shared.tell("fdatasync", &self.path);
        if self.shared.broken.load(Ordering::SeqCst) {
            let source = std::io::Error::from_raw_os_error(5);
            return Err(Error::io("flush", "the disk", 0, source));
        }
        self.inner.fdatasync()
    }
    fn fsync(&self) -> Result<()> {
        self.shared.check("fsync", &self.path)?;
        let _gate = self.shared.tell("fsync", &self.path);
        self.inner.fsync()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.shared.reads.fetch_add(1, Ordering::SeqCst);
        self.shared.check("read", &self.path)?;
        self.inner.read_at(offset, buf)
    }
    fn read_unverified(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.shared.check("read", &self.path)?;
        self.inner.read_unverified(offset, buf)
    }
    fn size(&self) -> FileSize {
        self.inner.size()
    }
    fn settle(&self, size: u64) -> Result<()> {
        self.inner.settle(size)
    }
    fn truncate(&self, size: u64) -> Result<()> {
        self.inner.truncate(size)
    }
    fn generation(&self) -> Generation {
        self.inner.generation()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
