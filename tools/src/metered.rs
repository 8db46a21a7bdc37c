//! A filesystem that counts what one engine asks of it and passes everything on.
//!
//! Several engines share one filesystem, so the device's counters cannot be told apart by engine;
//! what each one appends and syncs can. Reads are passed on uncounted.

use std::any::Any;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lavafs::device::DeviceCounters;
use lavafs::{
    CreateOptions, DirEntry, File, FileLock, FileRef, FileSize, FileSystem, FileSystemRef,
    Generation, Metadata, ReadRequest, Result, Space,
};

/// What an engine asked of its filesystem. Any thread may count and read.
#[derive(Debug, Default)]
pub struct Meter {
    bytes: AtomicU64,
    appends: AtomicU64,
    syncs: AtomicU64,
}

impl Meter {
    /// Bytes appended.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Appends.
    pub fn appends(&self) -> u64 {
        self.appends.load(Ordering::Relaxed)
    }

    /// Calls of `fdatasync`, `fsync` and `append_durable`.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    fn appended(&self, parts: &[IoSlice<'_>]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
        self.appends.fetch_add(1, Ordering::Relaxed);
    }
}

/// A filesystem with a [`Meter`].
#[derive(Debug)]
pub struct Metered {
    inner: FileSystemRef,
    meter: Arc<Meter>,
}

impl Metered {
    /// Counts what is asked of `inner` through the returned filesystem.
    pub fn over(inner: FileSystemRef) -> (FileSystemRef, Arc<Meter>) {
        let meter = Arc::new(Meter::default());
        let metered = Metered {
            inner,
            meter: Arc::clone(&meter),
        };
        (Arc::new(metered), meter)
    }

    fn wrap(&self, inner: FileRef) -> FileRef {
        Arc::new(MeteredFile {
            inner,
            meter: Arc::clone(&self.meter),
        })
    }
}

impl FileSystem for Metered {
    fn create(&self, path: &Path, options: &CreateOptions) -> Result<FileRef> {
        Ok(self.wrap(self.inner.create(path, options)?))
    }

    fn open(&self, path: &Path) -> Result<FileRef> {
        Ok(self.wrap(self.inner.open(path)?))
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
        self.inner.rename(from, to)
    }

    fn link(&self, existing: &Path, new: &Path) -> Result<()> {
        self.inner.link(existing, new)
    }

    fn unlink(&self, path: &Path) -> Result<()> {
        self.inner.unlink(path)
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.inner.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> Result<FileLock> {
        self.inner.lock(path)
    }

    fn read_batch(&self, requests: &mut [ReadRequest<'_>], queue_depth: usize) -> Result<()> {
        with_inner(requests, |below| self.inner.read_batch(below, queue_depth))
    }

    fn read_batch_timed(
        &self,
        requests: &mut [ReadRequest<'_>],
        queue_depth: usize,
        latencies: &mut [Duration],
    ) -> Result<()> {
        with_inner(requests, |below| {
            self.inner.read_batch_timed(below, queue_depth, latencies)
        })
    }

    fn space(&self) -> Space {
        self.inner.space()
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
struct MeteredFile {
    inner: FileRef,
    meter: Arc<Meter>,
}

/// Calls `read` with the same requests of the files below, and takes over how much was read.
fn with_inner(
    requests: &mut [ReadRequest<'_>],
    read: impl FnOnce(&mut [ReadRequest<'_>]) -> Result<()>,
) -> Result<()> {
    let files: Vec<FileRef> = requests
        .iter()
        .map(|request| inner(request.file).clone())
        .collect();
    let mut below: Vec<ReadRequest<'_>> = requests
        .iter_mut()
        .zip(&files)
        .map(|(request, file)| ReadRequest {
            file,
            offset: request.offset,
            buf: &mut *request.buf,
            read: 0,
        })
        .collect();
    read(&mut below)?;
    let reads: Vec<usize> = below.iter().map(|request| request.read).collect();
    for (request, read) in requests.iter_mut().zip(reads) {
        request.read = read;
    }
    Ok(())
}

/// The file below a metered one.
fn inner(file: &FileRef) -> &FileRef {
    let metered = file.as_any().downcast_ref::<MeteredFile>();
    &metered.expect("the file is of this filesystem").inner
}

impl File for MeteredFile {
    fn append_vectored(&self, parts: &[IoSlice<'_>]) -> Result<u64> {
        let offset = self.inner.append_vectored(parts)?;
        self.meter.appended(parts);
        Ok(offset)
    }

    fn append_durable(&self, parts: &[IoSlice<'_>]) -> Result<u64> {
        self.meter.syncs.fetch_add(1, Ordering::Relaxed);
        let offset = self.inner.append_durable(parts)?;
        self.meter.appended(parts);
        Ok(offset)
    }

    fn fdatasync(&self) -> Result<()> {
        self.meter.syncs.fetch_add(1, Ordering::Relaxed);
        self.inner.fdatasync()
    }

    fn fsync(&self) -> Result<()> {
        self.meter.syncs.fetch_add(1, Ordering::Relaxed);
        self.inner.fsync()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.inner.read_at(offset, buf)
    }

    fn read_unverified(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
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

#[cfg(test)]
mod tests {
    use lavafs::device::SimDevice;
    use lavafs::{LavaFs, MkfsOptions, MountOptions, mkfs};

    use super::*;

    #[test]
    fn appends_and_syncs_are_counted_and_reads_pass_through() {
        let dir = tempfile::tempdir().unwrap();
        let host = lavafs::HostFs::open(dir.path()).unwrap();
        let (fs, meter) = Metered::over(Arc::new(host));
        let file = fs
            .create(Path::new("/a"), &CreateOptions::default())
            .unwrap();
        file.append(b"hello ").unwrap();
        file.append(b"world").unwrap();
        file.fdatasync().unwrap();
        assert_eq!((meter.bytes(), meter.appends(), meter.syncs()), (11, 2, 1));
        file.append_durable(&[IoSlice::new(b", "), IoSlice::new(b"all")])
            .unwrap();
        assert_eq!((meter.bytes(), meter.appends(), meter.syncs()), (16, 3, 2));
        let mut buf = [0; 5];
        let mut requests = [ReadRequest {
            file: &file,
            offset: 6,
            buf: &mut buf,
            read: 0,
        }];
        fs.read_batch(&mut requests, 1).unwrap();
        assert_eq!(requests[0].read, 5);
        assert_eq!(&buf, b"world");
    }

    /// The trait's default gives the same bytes, one read at a time, and never a latency of zero.
    #[test]
    fn timed_batches_reach_the_filesystem_whole() {
        let device = SimDevice::new(64 << 20, 512);
        mkfs(&device, &MkfsOptions::default()).unwrap();
        let lava = LavaFs::mount(Arc::new(device), &MountOptions::default()).unwrap();
        let (fs, _) = Metered::over(Arc::new(lava));
        let file = fs
            .create(Path::new("/a"), &CreateOptions::default())
            .unwrap();
        file.append_durable(&[IoSlice::new(&[7; 4096])]).unwrap();
        file.append(&[8; 100]).unwrap();
        let mut bufs = [[0; 100], [0; 100]];
        let mut requests: Vec<ReadRequest<'_>> = bufs
            .iter_mut()
            .zip([0, 4096])
            .map(|(buf, offset)| ReadRequest {
                file: &file,
                offset,
                buf,
                read: 0,
            })
            .collect();
        let mut latencies = [Duration::MAX; 2];
        fs.read_batch_timed(&mut requests, 2, &mut latencies)
            .unwrap();
        assert!(requests.iter().all(|request| request.read == 100));
        assert_eq!(bufs, [[7; 100], [8; 100]]);
        assert!(latencies[0] < Duration::MAX, "it was timed");
        assert_eq!(latencies[1], Duration::ZERO, "it was in memory");
    }
}
