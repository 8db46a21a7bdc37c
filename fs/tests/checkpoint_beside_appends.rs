//! Appends while a checkpoint is being written: nothing but the checkpoint waits for its device
//! writes, and no crash in the middle loses what was acknowledged.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "common/gated.rs"]
mod gated;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::Duration;

use lavafs::device::{BlockDevice, SimDevice};
use lavafs::{
    BLOCK_SIZE, CheckMode, CreateOptions, FileRef, FileSystem, LavaFs, MkfsOptions, MountOptions,
    TailPolicy, check, mkfs,
};

use gated::{Gated, epoch, regions};

const REGION_BLOCKS: u64 = 256;
const THREADS: usize = 4;
const APPENDS: usize = 40;
const APPEND_LEN: usize = 4096;

fn mount(device: Arc<dyn BlockDevice>) -> LavaFs {
    let options = MountOptions {
        background: false,
        ..MountOptions::default()
    };
    LavaFs::mount(device, &options).unwrap()
}

fn pattern(thread: usize, at: usize) -> Vec<u8> {
    vec![(thread * APPENDS + at) as u8 | 1; APPEND_LEN]
}

/// What a thread was told: after so many device operations, so many of its appends were durable.
type Acked = (usize, usize, usize);

/// Appends with every kind of sync; a further extent and a new name are needed on the way.
fn append(fs: &LavaFs, device: &SimDevice, thread: usize, file: &FileRef) -> Vec<Acked> {
    let mut acked = Vec::new();
    for at in 0..APPENDS {
        let data = pattern(thread, at);
        match at % 4 {
            0 => _ = file.append_durable(&[io::IoSlice::new(&data)]).unwrap(),
            3 => {
                file.append(&data).unwrap();
                file.fsync().unwrap();
            }
            _ => {
                file.append(&data).unwrap();
                file.fdatasync().unwrap();
            }
        }
        acked.push((device.recorded_ops(), thread, at + 1));
        if at % 16 == 0 {
            let path = format!("/made-{thread}-{at}");
            fs.create(Path::new(&path), &CreateOptions::default())
                .unwrap();
            fs.commit().unwrap();
        }
    }
    acked
}

fn assert_contents(fs: &LavaFs, thread: usize, appends: usize, what: &str) {
    let file = fs.open(Path::new(&format!("/{thread}"))).unwrap();
    let mut bytes = vec![0; appends * APPEND_LEN];
    let read = file.read_unverified(0, &mut bytes).unwrap();
    assert_eq!(read, bytes.len(), "{what}");
    for (at, part) in bytes.chunks(APPEND_LEN).enumerate() {
        assert!(part == pattern(thread, at), "{what}: append {at}");
    }
}

#[test]
fn synced_appends_do_not_wait_for_a_checkpoint_and_survive_a_crash_in_it() {
    let device = Arc::new(SimDevice::new(16 << 20, 512));
    let options = MkfsOptions {
        journal_size: Some(REGION_BLOCKS * BLOCK_SIZE),
        ..MkfsOptions::default()
    };
    mkfs(&*device, &options).unwrap();
    let gated = Gated::new(&device);
    let fs = mount(gated.clone());
    let files: Vec<_> = (0..THREADS)
        .map(|thread| {
            let options = CreateOptions {
                tail: [TailPolicy::Pack, TailPolicy::Seal][thread % 2],
                ..CreateOptions::default()
            };
            fs.create(Path::new(&format!("/{thread}")), &options)
                .unwrap()
        })
        .collect();
    for at in 0..500 {
        let path = format!("/filler-{at}");
        fs.create(Path::new(&path), &CreateOptions::default())
            .unwrap();
    }
    fs.commit().unwrap();
    device.record();
    let [_, idle] = regions(&device, REGION_BLOCKS);
    gated.close(idle);
    let mut acked = std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| fs.checkpoint());
        gated.await_waiter();
        let (sender, receiver) = channel();
        for (thread, file) in files.iter().enumerate() {
            let (sender, fs, device) = (sender.clone(), &fs, &device);
            scope.spawn(move || sender.send(append(fs, device, thread, file)));
        }
        drop(sender);
        let mut acked = Vec::new();
        let mut finished = 0;
        while let Ok(told) = receiver.recv_timeout(Duration::from_secs(120)) {
            acked.extend(told);
            finished += 1;
        }
        let still_writing = !checkpoint.is_finished();
        gated.open();
        checkpoint.join().unwrap().unwrap();
        assert_eq!(finished, THREADS, "appends waited for the checkpoint");
        assert!(still_writing);
        acked
    });
    acked.sort_unstable();
    for thread in 0..THREADS {
        assert_contents(&fs, thread, APPENDS, "after the checkpoint");
    }
    let recording = device.take_recording();
    let ops = recording.ops().len();
    // The last operations are the checkpoint's own writes, its flush and its switch.
    let last = ops.saturating_sub(12);
    for at in (0..last).step_by(7).chain(last..=ops) {
        let crashed = Arc::new(recording.crash(at, at as u64));
        let report = check(crashed.clone(), CheckMode::ReadOnly).unwrap();
        assert!(report.is_clean(), "crash at {at}: {report:?}");
        let fs = mount(crashed);
        for thread in 0..THREADS {
            let told = acked.iter().rfind(|told| told.0 <= at && told.1 == thread);
            let appends = told.map_or(0, |told| told.2);
            assert_contents(
                &fs,
                thread,
                appends,
                &format!("crash at {at}, file {thread}"),
            );
        }
    }
}

/// An append that comes meanwhile waits for the rest of one transfer: none may be long.
#[test]
fn a_checkpoint_is_written_and_read_back_in_short_parts() {
    const PART_LEN: usize = 64 << 10;
    let device = Arc::new(SimDevice::new(16 << 20, 512));
    let options = MkfsOptions {
        journal_size: Some(REGION_BLOCKS * BLOCK_SIZE),
        ..MkfsOptions::default()
    };
    mkfs(&*device, &options).unwrap();
    let gated = Gated::new(&device);
    let fs = mount(gated.clone());
    for at in 0..4000 {
        let path = format!("/file-{at}");
        fs.create(Path::new(&path), &CreateOptions::default())
            .unwrap();
    }
    fs.commit().unwrap();
    gated.longest.store(0, Ordering::Relaxed);
    let before = device.counters();
    fs.checkpoint().unwrap();
    let done = device.counters() - before;
    assert!(done.write_bytes > 2 * PART_LEN as u64);
    assert!(done.read_bytes > 2 * PART_LEN as u64);
    assert_eq!(gated.longest.load(Ordering::Relaxed), PART_LEN);
}

/// Each commit while a checkpoint was being made asked for another one, and the background thread made them
/// all, one after the other, with nothing to write but the same again.
#[test]
fn a_half_full_journal_is_checkpointed_once() {
    let device = Arc::new(SimDevice::new(16 << 20, 512));
    let options = MkfsOptions {
        journal_size: Some(REGION_BLOCKS * BLOCK_SIZE),
        ..MkfsOptions::default()
    };
    mkfs(&*device, &options).unwrap();
    let gated = Gated::new(&device);
    let fs = LavaFs::mount(gated.clone(), &MountOptions::default()).unwrap();
    let [first, idle] = regions(&device, REGION_BLOCKS);
    let before = epoch(&device, &first);
    gated.close(idle);
    for _ in 0..560 {
        let set = |value: &[u8]| fs.set_xattr(LavaFs::ROOT, "a".as_ref(), value);
        set(&[1; 512]).unwrap();
        fs.commit().unwrap();
    }
    gated.await_waiter();
    gated.open();
    fs.unmount().unwrap();
    let [last, _] = regions(&device, REGION_BLOCKS);
    assert_eq!(epoch(&device, &last) - before, 2);
}
