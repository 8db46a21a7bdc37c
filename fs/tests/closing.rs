//! Closes and unmounts beside other work on the same file or filesystem, each forced by a device that holds
//! back one write.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/gated.rs"]
mod gated;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use lavafs::device::SimDevice;
use lavafs::{
    BLOCK_SIZE, CheckMode, CreateOptions, Error, FileSystem, LavaFs, MkfsOptions, MountOptions,
    check, mkfs,
};

use gated::{Gated, regions};

const REGION_BLOCKS: u64 = 64;

/// Nothing tells when a thread waits for a lock.
const LONG_ENOUGH: Duration = Duration::from_millis(200);

fn formatted() -> Arc<SimDevice> {
    let device = SimDevice::new(16 << 20, 512);
    let options = MkfsOptions {
        journal_size: Some(REGION_BLOCKS * BLOCK_SIZE),
        ..MkfsOptions::default()
    };
    mkfs(&device, &options).unwrap();
    Arc::new(device)
}

fn mount(gated: &Arc<Gated>, background: bool) -> LavaFs {
    let options = MountOptions {
        background,
        ..MountOptions::default()
    };
    LavaFs::mount(gated.clone(), &options).unwrap()
}

/// Enqueues operations of `len` bytes and some more.
fn enqueue(fs: &LavaFs, len: usize) {
    let value = vec![7; len];
    fs.set_xattr(LavaFs::ROOT, OsStr::new("much"), &value)
        .unwrap();
}

/// Enqueues more than is left queued when something is to be added.
fn enqueue_much(fs: &LavaFs) {
    enqueue(fs, 16 << 10);
    enqueue(fs, 16 << 10);
}

/// One handle's close wrote the file out; another's waited for it, and went on when the file was not open
/// any more and had been opened anew. It then journaled the size that it knew, as exact, over appends that
/// were synced meanwhile, and gave their blocks back.
#[test]
fn a_close_that_comes_late_does_not_cut_what_was_synced_meanwhile() {
    let device = formatted();
    let gated = Gated::new(&device);
    let fs = mount(&gated, false);
    let path = Path::new("/file");
    let first = fs.create(path, &CreateOptions::default()).unwrap();
    first.append(b"first").unwrap();
    first.fsync().unwrap();
    first.append(b"second").unwrap();
    let [journal, idle] = regions(&device, REGION_BLOCKS);
    std::thread::scope(|scope| {
        gated.close(journal.end.max(idle.end)..16 << 20);
        scope.spawn(|| drop(first));
        gated.await_waiter();
        for _ in 0..2 {
            let late = fs.open(path).unwrap();
            scope.spawn(|| drop(late));
            std::thread::sleep(LONG_ENOUGH);
        }
        // So much is queued that the next close commits it before it does anything else, and the one behind
        // it too.
        enqueue_much(&fs);
        gated.close(journal.clone());
        std::thread::sleep(LONG_ENOUGH);
        let record = gated.await_waiter();
        scope.spawn(|| {
            let third = fs.open(path).unwrap();
            third.append(b"third").unwrap();
            third.fdatasync().unwrap();
            std::mem::forget(third);
        });
        std::thread::sleep(LONG_ENOUGH);
        enqueue_much(&fs);
        gated.close(record + 1..journal.end);
        std::thread::sleep(LONG_ENOUGH);
        gated.open();
    });
    fs.commit().unwrap();

    let crashed = Arc::new(device.crash(1));
    let fs = mount(&Gated::new(&crashed), false);
    let file = fs.open(path).unwrap();
    let mut bytes = [0; 16];
    assert_eq!(file.read_unverified(0, &mut bytes).unwrap(), 16);
    assert_eq!(&bytes, b"firstsecondthird");
}

/// A file was opened anew while its last close wrote it out. The size that the close enqueued was not
/// durable, and the new handle's fdatasync did not make it so, since nothing was appended behind it: a crash brought the
/// size of the last commit back, as exact, without bytes that were synced.
#[test]
fn a_sync_makes_the_size_durable_that_a_close_beside_it_enqueued() {
    let device = formatted();
    let gated = Gated::new(&device);
    let fs = mount(&gated, false);
    let path = Path::new("/file");
    let first = fs.create(path, &CreateOptions::default()).unwrap();
    first.append(b"first").unwrap();
    first.fsync().unwrap();
    first.append(b"second").unwrap();
    let [journal, idle] = regions(&device, REGION_BLOCKS);
    let late = std::thread::scope(|scope| {
        gated.close(journal.end.max(idle.end)..16 << 20);
        scope.spawn(|| drop(first));
        gated.await_waiter();
        let late = fs.open(path).unwrap();
        gated.open();
        late
    });
    late.fdatasync().unwrap();

    let crashed = Arc::new(device.crash(1));
    let fs = mount(&Gated::new(&crashed), false);
    let file = fs.open(path).unwrap();
    let mut bytes = [0; 11];
    assert_eq!(file.read_unverified(0, &mut bytes).unwrap(), 11);
    assert_eq!(&bytes, b"firstsecond");
}

/// The background thread, told by its commit that the journal is half full, asked for a checkpoint; the
/// unmount held the lock for that and waited for the thread to end.
#[test]
fn an_unmount_ends_while_the_background_thread_commits_to_a_journal_that_gets_half_full() {
    let device = formatted();
    let gated = Gated::new(&device);
    let fs = mount(&gated, true);
    let file = fs
        .create(Path::new("/file"), &CreateOptions::default())
        .unwrap();
    file.append(&[1; 20 << 10]).unwrap();
    file.fdatasync().unwrap();
    for _ in 0..6 {
        enqueue(&fs, 16 << 10);
    }
    fs.commit().unwrap();
    for _ in 0..2 {
        enqueue(&fs, 15 << 10);
    }
    let [journal, _] = regions(&device, REGION_BLOCKS);
    gated.close(journal);
    // Asks for the next extent, which the thread commits together with the rest.
    file.append(&[2; 20 << 10]).unwrap();
    file.fdatasync().unwrap();
    gated.await_waiter();
    drop(file);
    let (sender, unmounted) = channel();
    std::thread::spawn(move || sender.send(fs.unmount()));
    std::thread::sleep(LONG_ENOUGH);
    gated.open();
    let unmounted = unmounted.recv_timeout(Duration::from_secs(120));
    unmounted.expect("the unmount ends").unwrap();
    assert!(check(device, CheckMode::ReadOnly).unwrap().is_clean());
}

/// A create that found no space for the size it was told took its file's name away again, by the name alone;
/// while it waited for the journal, that had been given to another file.
#[test]
fn a_create_without_space_takes_no_name_that_was_given_to_another_file() {
    let device = formatted();
    let gated = Gated::new(&device);
    let fs = mount(&gated, false);
    let (wanted, other) = (Path::new("/wanted"), Path::new("/other"));
    drop(fs.create(other, &CreateOptions::default()).unwrap());
    let ino = fs.resolve(other).unwrap();
    let [journal, _] = regions(&device, REGION_BLOCKS);
    gated.close(journal);
    let options = CreateOptions {
        expected_size: 1 << 30,
        ..CreateOptions::default()
    };
    std::thread::scope(|scope| {
        let created = scope.spawn(|| fs.create(wanted, &options));
        gated.await_waiter();
        fs.rename(other, wanted).unwrap();
        gated.open();
        let error = created.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    });
    assert_eq!(fs.resolve(wanted).unwrap(), ino);
    fs.unmount().unwrap();
    assert!(check(device, CheckMode::ReadOnly).unwrap().is_clean());
}
