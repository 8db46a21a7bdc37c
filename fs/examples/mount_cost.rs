//! What mounting costs: time, device reads and memory, by number of files and extents.
//!
//! ```text
//! cargo run --release -p lavafs --example mount_cost -- IMAGE FILES EXTENTS_PER_FILE
//! ```
//!
//! Makes a sparse image if there is none, with FILES files of EXTENTS_PER_FILE extents of one
//! block each, no two of a file adjacent, in directories of 1000. Their contents are not written:
//! a device in between drops what is not metadata, so that a million extents take seconds. Then it mounts the
//! image as any program would and prints one JSON object. Memory is what the allocator was asked for and
//! not given back, counted in between; the heap's own overhead is not in it. To tell the bytes of a file
//! from those of an extent, run it with two numbers of extents.
//!
//! With a fourth argument, a number of seconds, it then measures synced 4 KiB appends: first undisturbed,
//! then while another thread makes one checkpoint after the other; each for that long.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lavafs::device::{
    BlockDevice, DeviceCounters, DeviceRead, DeviceWrite, Durability, Geometry, OpenMode,
    create_image, open,
};
use lavafs::{
    BLOCK_SIZE, CreateOptions, Error, FileSystem, LavaFs, MkfsOptions, MountOptions, Result, mkfs,
};

/// Fills every byte of contents; no block of metadata looks like it.
const CONTENTS: u8 = 0xee;

/// Files of one directory.
const FILES_PER_DIRECTORY: u64 = 1000;

static LIVE_BYTES: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An image that forgets contents.
#[derive(Debug)]
struct MetadataOnly(Arc<dyn BlockDevice>);

impl BlockDevice for MetadataOnly {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, buf)
    }

    fn read_batch(&self, reads: &mut [DeviceRead<'_>], queue_depth: usize) {
        self.0.read_batch(reads, queue_depth);
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> io::Result<()> {
        self.write_batch(&[DeviceWrite { offset, data }], durability)
    }

    fn write_batch(&self, writes: &[DeviceWrite<'_>], durability: Durability) -> io::Result<()> {
        if writes.iter().all(|write| write.data[0] == CONTENTS) {
            return Ok(());
        }
        self.0.write_batch(writes, durability)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard(offset, len)
    }

    fn counters(&self) -> DeviceCounters {
        self.0.counters()
    }
}

fn path(file: u64) -> String {
    format!("/d{:04}/f{file:07}", file / FILES_PER_DIRECTORY)
}

/// Makes the image. Two files grow in turns, so that neither can grow its last extent.
fn build(image: &Path, files: u64, extents: u64) -> Result<()> {
    let size = (files * extents * BLOCK_SIZE * 5 / 4 + files * 4096).max(1 << 30);
    let device = create_image(image, size, false)?;
    let options = MkfsOptions {
        journal_size: Some((files * 200 + files * extents * 20).max(4 << 20)),
        ..MkfsOptions::default()
    };
    mkfs(&*device, &options)?;
    let fs = LavaFs::mount(
        Arc::new(MetadataOnly(device)),
        &MountOptions {
            background: false,
            ..MountOptions::default()
        },
    )?;
    let contents = [CONTENTS; BLOCK_SIZE as usize];
    for first in (0..files).step_by(2) {
        if first % FILES_PER_DIRECTORY == 0 {
            let dir = path(first);
            let dir = Path::new(&dir).parent().expect("a file is in a directory");
            fs.create_dir_all(dir)?;
        }
        for extent in 0..extents {
            for file in first..files.min(first + 2) {
                let path = path(file);
                let path = Path::new(&path);
                let file = if extent == 0 {
                    fs.create(path, &CreateOptions::default())?
                } else {
                    fs.open(path)?
                };
                file.append(&contents)?;
            }
        }
    }
    fs.unmount()
}

/// Synced appends for `span`: median and 99.9th percentile in microseconds, and how many.
fn appends(fs: &LavaFs, name: &str, span: Duration) -> Result<(f64, f64, usize)> {
    let file = fs.create(Path::new(name), &CreateOptions::default())?;
    let block = [1; BLOCK_SIZE as usize];
    let mut latencies = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < span {
        let started = Instant::now();
        file.append(&block)?;
        file.fdatasync()?;
        latencies.push(started.elapsed().as_secs_f64() * 1e6);
    }
    drop(file);
    fs.unlink(Path::new(name))?;
    latencies.sort_by(f64::total_cmp);
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    Ok((at(0.5), at(0.999), latencies.len()))
}

fn print_appends(fs: &LavaFs, span: Duration) -> Result<()> {
    appends(fs, "/warm", span / 4)?;
    let (median, alone_p999, ops) = appends(fs, "/alone", span)?;
    println!(r#"{{"appends":"alone","ops":{ops},"p50_us":{median:.1},"p999_us":{alone_p999:.1}}}"#);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let checkpoints = scope.spawn(|| -> Result<(u32, Duration)> {
            let begin = Instant::now();
            let mut made = 0;
            while !stop.load(Ordering::Acquire) {
                fs.checkpoint()?;
                made += 1;
            }
            Ok((made, begin.elapsed()))
        });
        let outcome = appends(fs, "/disturbed", span);
        stop.store(true, Ordering::Release);
        let (made, during) = checkpoints.join().expect("checkpoints do not panic")?;
        let (p50, p999, ops) = outcome?;
        let (ratio, ratio_to_p999) = (p999 / median, p999 / alone_p999);
        let each_ms = during.as_secs_f64() * 1e3 / f64::from(made.max(1));
        println!(
            r#"{{"appends":"during checkpoints","ops":{ops},"p50_us":{p50:.1},"p999_us":{p999:.1},"checkpoints":{made},"checkpoint_ms":{each_ms:.0},"p999_to_median_alone":{ratio:.2},"p999_to_p999_alone":{ratio_to_p999:.2}}}"#
        );
        Ok(())
    })
}

fn run(arguments: &[String]) -> Result<()> {
    let usage = || Error::Invalid {
        what: "usage: mount_cost IMAGE FILES EXTENTS_PER_FILE [SECONDS]".to_owned(),
    };
    let (image, numbers) = match arguments {
        [image, numbers @ ..] if (2..=3).contains(&numbers.len()) => (Path::new(image), numbers),
        _ => return Err(usage()),
    };
    let numbers: std::result::Result<Vec<u64>, _> = numbers.iter().map(|n| n.parse()).collect();
    let numbers = numbers.map_err(|_| usage())?;
    let (files, extents) = (numbers[0], numbers[1]);
    if !image.exists() {
        build(image, files, extents)?;
    }
    let device = open(image, OpenMode::ReadWrite)?;
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    let started = Instant::now();
    let fs = LavaFs::mount(device, &MountOptions::default())?;
    let elapsed = started.elapsed();
    let bytes = LIVE_BYTES.load(Ordering::Relaxed) - before;
    let counters = fs.counters();
    let found = fs.fragmentation();
    println!(
        r#"{{"files":{files},"extents":{},"mount_ms":{:.1},"memory_bytes":{bytes},"read_bytes":{},"write_bytes":{}}}"#,
        found.extents(),
        elapsed.as_secs_f64() * 1e3,
        counters.read_bytes,
        counters.write_bytes,
    );
    if let Some(&seconds) = numbers.get(2) {
        print_appends(&fs, Duration::from_secs(seconds))?;
    }
    fs.unmount()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = run(&arguments) {
        eprintln!("mount_cost: {error}");
        std::process::exit(1);
    }
}
