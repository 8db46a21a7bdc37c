//! The rules of `BlockDevice` as one suite over every implementation, and opening.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::open::{Engine, open_with};
use super::*;
use crate::error::{Error, PathError};

const SIZE: u64 = 8 << 20;

fn pattern(offset: u64, len: usize) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    for (word, i) in buf.chunks_mut(8).zip(0..) {
        word.copy_from_slice(
            &(offset / 8 + i)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_le_bytes(),
        );
    }
    buf
}

/// Every rule that a working device can show.
fn obeys_the_rules(device: &dyn BlockDevice) {
    let geometry = device.geometry();
    let block = geometry.logical_block;
    assert_eq!(geometry.size, SIZE);
    assert!(block.is_power_of_two() && (512..=4096).contains(&block));

    for (durability, offset) in [(Durability::Volatile, 0), (Durability::Durable, 1 << 20)] {
        let data = pattern(offset, 128 << 10);
        device.write(offset, &data, durability).unwrap();
        let mut back = AlignedBuf::zeroed(data.len());
        device.read(offset, &mut back).unwrap();
        assert!(back[..] == data[..]);
    }
    device.flush().unwrap();

    for durability in [Durability::Volatile, Durability::Durable] {
        device.write_batch(&[], durability).unwrap();
        let data: Vec<_> = (0..300).map(|i| pattern(i * 4096, 4096)).collect();
        let writes: Vec<_> = data
            .iter()
            .zip(0..)
            .map(|(data, i)| DeviceWrite {
                offset: i * 7919 % 300 * 4096,
                data,
            })
            .collect();
        device.write_batch(&writes, durability).unwrap();
        for depth in [1, 3, 32, 1000] {
            let mut buffers: Vec<_> = writes.iter().map(|_| AlignedBuf::zeroed(4096)).collect();
            let mut reads: Vec<_> = writes
                .iter()
                .zip(&mut buffers)
                .map(|(write, buf)| DeviceRead::new(write.offset, buf))
                .collect();
            device.read_batch(&mut reads, depth);
            for (read, write) in reads.iter().zip(&writes) {
                read.result.as_ref().unwrap();
                assert!(*read.buf == *write.data, "read back at depth {depth}");
            }
        }
    }

    // The last block, and one logical block.
    let last = pattern(7, block as usize);
    device
        .write(SIZE - block, &last, Durability::Durable)
        .unwrap();
    let mut back = AlignedBuf::zeroed(block as usize);
    device.read(SIZE - block, &mut back).unwrap();
    assert!(back[..] == last[..]);

    let before = device.counters();
    device
        .write(0, &pattern(0, 4096), Durability::Volatile)
        .unwrap();
    device
        .write(4096, &pattern(0, 4096), Durability::Durable)
        .unwrap();
    device.flush().unwrap();
    device.read(0, &mut AlignedBuf::zeroed(8192)).unwrap();
    device.discard(1 << 20, 64 << 10).unwrap();
    let sent = device.counters() - before;
    assert_eq!(
        (sent.write_bytes, sent.write_ios, sent.flushes),
        (8192, 2, 2)
    );
    assert_eq!((sent.read_bytes, sent.read_ios), (8192, 1));
    assert!(sent.discard_bytes == 64 << 10 || sent.discard_bytes == 0);
}

/// Threads that write, read and flush beside each other see their own bytes.
fn serves_threads(device: &dyn BlockDevice) {
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            scope.spawn(move || {
                let base = thread * (1 << 20);
                for round in 0..20u64 {
                    let data = pattern(base + round, 16 << 10);
                    let durability =
                        [Durability::Volatile, Durability::Durable][round as usize % 2];
                    device
                        .write(base + round * 16384, &data, durability)
                        .unwrap();
                    let mut back = AlignedBuf::zeroed(data.len());
                    let mut reads = [DeviceRead::new(base + round * 16384, &mut back)];
                    device.read_batch(&mut reads, 4);
                    reads[0].result.as_ref().unwrap();
                    assert!(back[..] == data[..]);
                }
                device.flush().unwrap();
            });
        }
    });
}

fn image(dir: &Path) -> PathBuf {
    let path = dir.join("image");
    drop(create_image(&path, SIZE + 100, false).unwrap());
    path
}

fn engines() -> Vec<Engine> {
    let mut engines = vec![Engine::Pread, Engine::Auto];
    match super::ring::probe() {
        Ok(()) => engines.push(Engine::Uring),
        Err(error) => eprintln!("without io_uring: {error}"),
    }
    engines
}

fn suite(path: &Path) {
    for engine in engines() {
        let device = open_with(path, OpenMode::ReadWrite, engine).unwrap();
        eprintln!("{engine:?} on {}: {:?}", device.name(), device.geometry());
        obeys_the_rules(&*device);
        serves_threads(&*device);
    }
}

#[test]
fn the_simulated_device_obeys_the_rules() {
    for block in [512, 4096] {
        obeys_the_rules(&SimDevice::new(SIZE, block));
        serves_threads(&SimDevice::new(SIZE, block));
    }
}

#[test]
fn images_obey_the_rules() {
    let dir = tempfile::tempdir().unwrap();
    suite(&image(dir.path()));
}

#[test]
fn images_in_memory_obey_the_rules() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("skipped: no tmpfs at /dev/shm");
        return;
    };
    suite(&image(dir.path()));
}

/// A loop device with direct I/O, detached on drop.
struct LoopDevice {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl LoopDevice {
    /// `None`, with a word why, where this user cannot have one.
    fn new() -> Option<LoopDevice> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backing");
        let backing = File::create(&file).unwrap();
        backing.write_all_at(&vec![0; SIZE as usize], 0).unwrap();
        backing.sync_all().unwrap();
        let set_up = Command::new("losetup")
            .args(["--direct-io=on", "--find", "--show"])
            .arg(&file)
            .output();
        match set_up {
            Ok(output) if output.status.success() => Some(LoopDevice {
                path: String::from_utf8(output.stdout).unwrap().trim().into(),
                _dir: dir,
            }),
            other => {
                eprintln!("skipped: a loop device needs root: {other:?}");
                None
            }
        }
    }

    /// Reads and writes of 512 bytes, I/Os and flushes, from the kernel's statistics.
    fn stat(&self) -> DeviceCounters {
        let name = self.path.file_name().unwrap().to_str().unwrap();
        let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        let fields: Vec<u64> = stat
            .split_whitespace()
            .map(|field| field.parse().unwrap())
            .collect();
        DeviceCounters {
            read_ios: fields[0],
            read_bytes: fields[2] * 512,
            write_ios: fields[4],
            write_bytes: fields[6] * 512,
            discard_bytes: fields[13] * 512,
            flushes: fields[15],
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
        assert!(detached.unwrap().success());
    }
}

#[test]
fn block_devices_obey_the_rules() {
    if let Some(loop_device) = LoopDevice::new() {
        suite(&loop_device.path);
    }
}

#[test]
fn counters_equal_the_kernels_statistics() {
    let engines = engines()
        .into_iter()
        .filter(|&engine| engine != Engine::Auto);
    for engine in engines {
        // One for each: udev looks again at a device that somebody has written to and closed.
        let Some(loop_device) = LoopDevice::new() else {
            return;
        };
        let device = open_with(&loop_device.path, OpenMode::ReadWrite, engine).unwrap();
        // Where udev looks at new devices, let it finish.
        let _ = Command::new("udevadm").arg("settle").status();
        let (before, kernel_before) = (device.counters(), loop_device.stat());
        for i in 0..10 {
            device
                .write(i * 4096, &pattern(i, 4096), Durability::Durable)
                .unwrap();
            device
                .write(i * 8192, &pattern(i, 8192), Durability::Volatile)
                .unwrap();
        }
        device.flush().unwrap();
        // Apart, so that the block layer merges none of them.
        let data = pattern(0, 4096);
        let writes: Vec<_> = (0..40)
            .map(|i| DeviceWrite {
                offset: i * 65536,
                data: &data,
            })
            .collect();
        device.write_batch(&writes, Durability::Volatile).unwrap();
        let mut buffers: Vec<_> = (0..40).map(|_| AlignedBuf::zeroed(4096)).collect();
        let mut reads: Vec<_> = buffers
            .iter_mut()
            .zip(0..)
            .map(|(buf, i)| DeviceRead::new(i * 65536, buf))
            .collect();
        device.read_batch(&mut reads, 8);
        device.flush().unwrap();
        device.discard(0, 1 << 20).unwrap();
        let ours = device.counters() - before;
        // The kernel also counts a flush of its own as a write of no bytes; the flush within a
        // FUA write it does not.
        let flush_calls = if engine == Engine::Pread {
            ours.flushes
        } else {
            2
        };
        assert_eq!(ours.flushes, 12, "{engine:?}");
        let kernels = || {
            let kernels = loop_device.stat() - kernel_before;
            DeviceCounters {
                write_ios: kernels.write_ios - flush_calls,
                ..kernels
            }
        };
        // It counts an I/O when whoever waits for it has been woken.
        let started = std::time::Instant::now();
        while kernels() != ours && started.elapsed() < std::time::Duration::from_secs(10) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(ours, kernels(), "{engine:?}");
    }
}

#[test]
fn an_owned_image_is_in_use_but_readable() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let owner = open(&path, OpenMode::ReadWrite).unwrap();
    let refused = open(&path, OpenMode::ReadWrite).unwrap_err();
    let own = format!("process {}", std::process::id());
    assert!(
        matches!(&refused, Error::InUse { owner, .. } if owner.starts_with(&own)),
        "{refused}"
    );
    let again = create_image(&path, SIZE, true).unwrap_err();
    assert!(
        matches!(again, Error::InUse { .. }),
        "an owned image is never emptied"
    );
    owner
        .write(0, &pattern(0, 4096), Durability::Durable)
        .unwrap();
    let reader = open(&path, OpenMode::ReadOnly).unwrap();
    let mut back = AlignedBuf::zeroed(4096);
    reader.read(0, &mut back).unwrap();
    assert!(back[..] == pattern(0, 4096)[..]);
    for refused in [
        reader.write(0, &back, Durability::Volatile),
        reader.write(0, &back, Durability::Durable),
        reader.flush(),
        reader.discard(0, 4096),
    ] {
        assert_eq!(
            refused.unwrap_err().kind(),
            std::io::ErrorKind::ReadOnlyFilesystem
        );
    }
    drop(owner);
    open(&path, OpenMode::ReadWrite).unwrap();
}

#[test]
fn an_owned_or_mounted_block_device_is_in_use() {
    let Some(loop_device) = LoopDevice::new() else {
        return;
    };
    let path = &loop_device.path;
    let owner = open(path, OpenMode::ReadWrite).unwrap();
    assert!(matches!(
        open(path, OpenMode::ReadWrite),
        Err(Error::InUse { .. })
    ));
    drop(owner);
    let made = Command::new("mkfs.ext4").arg("-qF").arg(path).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped the mounted half: no mkfs.ext4");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some(path), dir.path(), Some("ext4"), flags, None::<&str>).unwrap();
    let refused = open(path, OpenMode::ReadWrite)
        .map(drop)
        .unwrap_err()
        .to_string();
    nix::mount::umount(dir.path()).unwrap();
    assert!(refused.contains("mounted at"), "{refused}");
}

#[test]
fn what_is_no_device_is_refused_in_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let missing = open(&dir.path().join("none"), OpenMode::ReadWrite).unwrap_err();
    assert!(missing.is_not_found());
    let directory = open(dir.path(), OpenMode::ReadWrite).unwrap_err();
    assert!(matches!(
        directory,
        Error::Path {
            kind: PathError::IsADirectory,
            ..
        }
    ));
    let character = open(Path::new("/dev/null"), OpenMode::ReadWrite).unwrap_err();
    assert!(matches!(character, Error::Unsupported { .. }));
    let existing = create_image(&image(dir.path()), SIZE, false).unwrap_err();
    assert!(existing.is_already_exists());
    for error in [missing, directory, character, existing] {
        assert!(!error.to_string().contains('\n'));
    }
}

#[test]
fn an_overwritten_image_is_empty_and_sparse() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let device = open(&path, OpenMode::ReadWrite).unwrap();
    device
        .write(0, &pattern(0, 1 << 20), Durability::Durable)
        .unwrap();
    drop(device);
    let device = create_image(&path, 1 << 40, true).unwrap();
    assert_eq!(device.geometry().size, 1 << 40);
    let mut back = AlignedBuf::zeroed(1 << 20);
    device.read(0, &mut back).unwrap();
    assert!(back.iter().all(|&byte| byte == 0));
    assert_eq!(std::fs::metadata(&path).unwrap().blocks(), 0);
}

#[test]
fn a_discarded_range_of_an_image_returns_its_space() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let device = open(&path, OpenMode::ReadWrite).unwrap();
    device
        .write(0, &pattern(0, 1 << 20), Durability::Durable)
        .unwrap();
    let before = std::fs::metadata(&path).unwrap().blocks();
    device.discard(0, 1 << 20).unwrap();
    if device.counters().discard_bytes == 0 {
        eprintln!(
            "skipped: the filesystem of {} punches no holes",
            path.display()
        );
        return;
    }
    assert!(std::fs::metadata(&path).unwrap().blocks() < before);
}

#[test]
fn engines_are_forced_by_name_only() {
    use super::open::engine_named;
    assert_eq!(engine_named("").unwrap(), Engine::Auto);
    assert_eq!(engine_named("uring").unwrap(), Engine::Uring);
    assert_eq!(engine_named("pread").unwrap(), Engine::Pread);
    assert!(matches!(engine_named("aio"), Err(Error::Invalid { .. })));
}

#[test]
fn rings_of_ended_threads_leave_no_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let device: Arc<dyn BlockDevice> = open(&image(dir.path()), OpenMode::ReadWrite).unwrap();
    for _ in 0..2000 {
        let device = Arc::clone(&device);
        std::thread::spawn(move || {
            device
                .write(0, &pattern(0, 4096), Durability::Volatile)
                .unwrap();
            let mut back = AlignedBuf::zeroed(4096);
            let mut reads = [DeviceRead::new(0, &mut back)];
            device.read_batch(&mut reads, 1);
            reads[0].result.as_ref().unwrap();
        })
        .join()
        .unwrap();
    }
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 500, "{open} descriptors are open");
}

#[test]
fn each_read_of_a_batch_tells_its_own_time() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for engine in [Engine::Auto, Engine::Pread] {
        let device = open_with(&image, OpenMode::ReadOnly, engine).unwrap();
        let mut bufs: Vec<_> = (0..64).map(|_| AlignedBuf::zeroed(4096)).collect();
        let mut reads: Vec<_> = bufs
            .iter_mut()
            .zip(0..)
            .map(|(buf, i)| DeviceRead::new(i * 8192, buf))
            .collect();
        let started = std::time::Instant::now();
        device.read_batch(&mut reads, 4);
        let whole = started.elapsed();
        let sum: std::time::Duration = reads.iter().map(|read| read.elapsed).sum();
        assert!(reads.iter().all(|read| !read.elapsed.is_zero()));
        // No more than four were in flight at any time.
        assert!(sum <= 4 * whole, "{sum:?} in {whole:?}");
    }
}
