//! A `FileSystem` in memory for tests: it counts what a device would see, and shows what a crash
//! leaves.
//!
//! A crash keeps every synced byte and, of what was appended since, any prefix or any damaged
//! form that a test asks for. Directories exist implicitly; links and renames are not offered.

use std::any::Any;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use lavafs::device::DeviceCounters;
use lavafs::{
    CreateOptions, DirEntry, Error, File, FileKind, FileLock, FileRef, FileSize, FileSystem,
    Generation, Metadata, PathError, ReadRequest, Result, Space, TailPolicy, align_up,
};
use parking_lot::Mutex;

/// Room for whatever a test appends.
const PLENTY: i64 = 1 << 62;

#[derive(Debug)]
pub(crate) struct MemFs {
    files: Mutex<BTreeMap<PathBuf, Arc<MemFile>>>,
    next_generation: AtomicU64,
    shared: Arc<Shared>,
    write_unit: u64,
}

#[derive(Debug, Default)]
struct Shared {
    counters: Mutex<DeviceCounters>,
    /// Syncs that succeed before all others fail, less 2^62.
    good_syncs: AtomicI64,
    full: AtomicBool,
    /// Bytes that can still be appended, less 2^62.
    room: AtomicI64,
    sync_us: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct MemFile {
    state: Mutex<State>,
    shared: Arc<Shared>,
    write_unit: u64,
}

#[derive(Clone, Debug)]
struct State {
    bytes: Vec<u8>,
    synced: usize,
    /// The size was made durable and the file has not grown since.
    exact: bool,
    /// `Some(upper)` after a crash, if the size was not exact.
    between: Option<u64>,
    tail: TailPolicy,
    generation: u64,
}

impl MemFs {
    pub(crate) fn new(write_unit: u64) -> Arc<MemFs> {
        Arc::new(MemFs {
            files: Mutex::default(),
            next_generation: AtomicU64::new(1),
            shared: Arc::default(),
            write_unit,
        })
    }

    /// What a crash leaves: of the bytes not synced, `damage` decides. It gets the file's name,
    /// all bytes, and how many of them are synced.
    pub(crate) fn crash(&self, mut damage: impl FnMut(&Path, &mut Vec<u8>, usize)) -> Arc<MemFs> {
        let after = MemFs::new(self.write_unit);
        let generation = self.next_generation.load(Ordering::SeqCst);
        after.next_generation.store(generation, Ordering::SeqCst);
        for (path, file) in &*self.files.lock() {
            let mut state = file.state.lock().clone();
            let synced = state.synced;
            damage(path, &mut state.bytes, synced);
            assert!(state.bytes.len() >= synced, "synced bytes are kept");
            if !state.exact {
                state.between = Some(align_up(state.bytes.len() as u64, 4096) + 8192);
            }
            after.files.lock().insert(
                path.clone(),
                Arc::new(MemFile {
                    state: Mutex::new(state),
                    shared: after.shared.clone(),
                    write_unit: self.write_unit,
                }),
            );
        }
        after
    }

    /// Changes bytes of a file behind everybody's back.
    pub(crate) fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let file = self.files.lock()[path].clone();
        change(&mut file.state.lock().bytes);
    }

    /// Of the size of a file that is uncertain, less is certain.
    pub(crate) fn lower_size(&self, path: &Path, lower: usize) {
        let file = self.files.lock()[path].clone();
        let mut state = file.state.lock();
        assert!(state.between.is_some() && lower <= state.synced);
        state.synced = lower;
    }

    /// From now on a sync takes this long, as on a device.
    pub(crate) fn slow_syncs(&self, us: u64) {
        self.shared.sync_us.store(us, Ordering::SeqCst);
    }

    /// While set, there is no space for a file that is empty.
    pub(crate) fn set_full(&self, full: bool) {
        self.shared.full.store(full, Ordering::SeqCst);
    }

    /// From now on this many bytes can be appended, and those that are removed.
    pub(crate) fn set_room(&self, bytes: i64) {
        self.shared.room.store(bytes - PLENTY, Ordering::SeqCst);
    }

    pub(crate) fn fail_syncs(&self) {
        self.fail_syncs_after(0);
    }

    /// So many further syncs succeed, and no others.
    pub(crate) fn fail_syncs_after(&self, count: i64) {
        let good = count - PLENTY;
        self.shared.good_syncs.store(good, Ordering::SeqCst);
    }

    /// Further syncs succeed.
    pub(crate) fn mend_syncs(&self) {
        self.shared.good_syncs.store(0, Ordering::SeqCst);
    }

    /// Every file's bytes and size.
    pub(crate) fn contents(&self) -> BTreeMap<PathBuf, (Vec<u8>, FileSize)> {
        let files = self.files.lock();
        let contents = files.iter().map(|(path, file)| {
            let bytes = file.state.lock().bytes.clone();
            (path.clone(), (bytes, file.size()))
        });
        contents.collect()
    }
}

impl MemFile {
    fn sync(&self) -> Result<()> {
        let before = self.shared.good_syncs.fetch_sub(1, Ordering::SeqCst);
        if PLENTY + before <= 0 {
            let source = std::io::Error::other("injected");
            return Err(Error::io("flush", "memory", 0, source));
        }
        let sync_us = self.shared.sync_us.load(Ordering::SeqCst);
        if sync_us > 0 {
            std::thread::sleep(std::time::Duration::from_micros(sync_us));
        }
        let mut state = self.state.lock();
        if state.tail == TailPolicy::Seal {
            let padded = align_up(state.bytes.len() as u64, self.write_unit) as usize;
            state.bytes.resize(padded, 0);
        }
        let mut counters = self.shared.counters.lock();
        let first = state.synced as u64 / self.write_unit * self.write_unit;
        counters.write_bytes += align_up(state.bytes.len() as u64, self.write_unit) - first;
        counters.write_ios += 1;
        counters.flushes += 1;
        state.synced = state.bytes.len();
        Ok(())
    }
}

impl File for MemFile {
    fn append_vectored(&self, parts: &[IoSlice<'_>]) -> Result<u64> {
        let mut state = self.state.lock();
        if state.bytes.is_empty() && self.shared.full.load(Ordering::SeqCst) {
            return Err(Error::NoSpace { needed: 1, free: 0 });
        }
        let needed: usize = parts.iter().map(|part| part.len()).sum();
        if PLENTY + self.shared.room.load(Ordering::SeqCst) < needed as i64 {
            return Err(Error::NoSpace {
                needed: needed as u64,
                free: 0,
            });
        }
        self.shared.room.fetch_sub(needed as i64, Ordering::SeqCst);
        assert!(state.between.is_none(), "settle before appending");
        state.exact = false;
        let start = state.bytes.len() as u64;
        for part in parts {
            state.bytes.extend_from_slice(part);
        }
        Ok(start)
    }

    fn fdatasync(&self) -> Result<()> {
        self.sync()
    }

    fn fsync(&self) -> Result<()> {
        self.sync()?;
        self.state.lock().exact = true;
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let state = self.state.lock();
        let end = match state.between {
            Some(_) => state.synced,
            None => state.bytes.len(),
        };
        let from = (offset as usize).min(end);
        let len = buf.len().min(end - from);
        buf[..len].copy_from_slice(&state.bytes[from..from + len]);
        let mut counters = self.shared.counters.lock();
        counters.read_bytes += len as u64;
        counters.read_ios += 1;
        Ok(len)
    }

    fn read_unverified(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let upper = self.size().upper();
        let state = self.state.lock();
        let len = buf.len().min(upper.saturating_sub(offset) as usize);
        for (i, byte) in buf[..len].iter_mut().enumerate() {
            *byte = state.bytes.get(offset as usize + i).copied().unwrap_or(0);
        }
        let mut counters = self.shared.counters.lock();
        counters.read_bytes += len as u64;
        counters.read_ios += 1;
        Ok(len)
    }

    fn size(&self) -> FileSize {
        let state = self.state.lock();
        match state.between {
            Some(upper) => FileSize::Between {
                lower: state.synced as u64,
                upper,
            },
            None => FileSize::Exact(state.bytes.len() as u64),
        }
    }

    fn settle(&self, size: u64) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(upper) = state.between.take() {
            assert!((state.synced as u64..=upper).contains(&size));
        } else {
            assert_eq!(size, state.bytes.len() as u64, "the size is exact");
        }
        state.bytes.resize(size as usize, 0);
        state.synced = size as usize;
        Ok(())
    }

    fn truncate(&self, size: u64) -> Result<()> {
        let mut state = self.state.lock();
        let cut = state.bytes.len() as i64 - size as i64;
        self.shared.room.fetch_add(cut.max(0), Ordering::SeqCst);
        state.bytes.truncate(size as usize);
        state.synced = state.synced.min(size as usize);
        state.generation += 1_000_000;
        Ok(())
    }

    fn generation(&self) -> Generation {
        Generation(self.state.lock().generation)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl FileSystem for MemFs {
    fn create(&self, path: &Path, options: &CreateOptions) -> Result<FileRef> {
        let mut files = self.files.lock();
        if files.contains_key(path) {
            return Err(Error::path(path, PathError::AlreadyExists));
        }
        let file = Arc::new(MemFile {
            state: Mutex::new(State {
                bytes: Vec::new(),
                synced: 0,
                exact: false,
                between: None,
                tail: options.tail,
                generation: self.next_generation.fetch_add(1, Ordering::SeqCst),
            }),
            shared: self.shared.clone(),
            write_unit: self.write_unit,
        });
        files.insert(path.to_path_buf(), file.clone());
        Ok(file)
    }

    fn open(&self, path: &Path) -> Result<FileRef> {
        match self.files.lock().get(path) {
            Some(file) => Ok(file.clone()),
            None => Err(Error::path(path, PathError::NotFound)),
        }
    }

    fn metadata(&self, path: &Path) -> Result<Metadata> {
        let size = self.open(path)?.size();
        Ok(Metadata {
            kind: FileKind::File,
            size,
            allocated: size.upper(),
            ino: 0,
            links: 1,
            modified_ns: 0,
        })
    }

    fn list(&self, dir: &Path) -> Result<Vec<DirEntry>> {
        let files = self.files.lock();
        let names = files.keys().filter(|path| path.parent() == Some(dir));
        Ok(names
            .map(|path| DirEntry {
                name: path.file_name().expect("a file has a name").to_owned(),
                kind: FileKind::File,
            })
            .collect())
    }

    fn create_dir_all(&self, _dir: &Path) -> Result<()> {
        Ok(())
    }

    fn remove_dir(&self, _dir: &Path) -> Result<()> {
        Ok(())
    }

    fn rename(&self, from: &Path, _to: &Path) -> Result<()> {
        panic!("rename of {} is not offered", from.display());
    }

    fn link(&self, existing: &Path, _new: &Path) -> Result<()> {
        panic!("link of {} is not offered", existing.display());
    }

    fn unlink(&self, path: &Path) -> Result<()> {
        match self.files.lock().remove(path) {
            Some(file) => {
                let bytes = file.state.lock().bytes.len() as i64;
                self.shared.room.fetch_add(bytes, Ordering::SeqCst);
                Ok(())
            }
            None => Err(Error::path(path, PathError::NotFound)),
        }
    }

    fn sync_dir(&self, _dir: &Path) -> Result<()> {
        Ok(())
    }

    fn lock(&self, _path: &Path) -> Result<FileLock> {
        Ok(FileLock::new(()))
    }

    fn read_batch(&self, requests: &mut [ReadRequest<'_>], _queue_depth: usize) -> Result<()> {
        for request in requests {
            request.read = request.file.read_at(request.offset, request.buf)?;
        }
        Ok(())
    }

    fn space(&self) -> Space {
        Space {
            total: u64::MAX,
            free: u64::MAX,
        }
    }

    fn counters(&self) -> DeviceCounters {
        *self.shared.counters.lock()
    }

    fn write_unit(&self) -> u64 {
        self.write_unit
    }
}
