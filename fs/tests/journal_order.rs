//! The journal holds changes in the order in which they were made, whoever made them: after a crash
//! between any two group commits the metadata is consistent.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{formatted, mount};
use lavafs::device::SimDevice;
use lavafs::{CheckMode, CreateOptions, FileSystem, MkfsOptions, SetAttributes, check};

/// Device operations in which the threads meet.
const OPS: usize = 1500;

const ROUNDS: u32 = 1500;

fn device() -> Arc<SimDevice> {
    formatted(8 << 20, &MkfsOptions::default())
}

/// A link had changed the link count of a file in memory and let go of it, but its operations were
/// not enqueued yet. A truncation of the same file, which journals all attributes, came between;
/// the group commit after it was the last thing before the crash. The link count was ahead of the
/// names; after an unlink it was behind them, and with an open file it was zero: the next mount took the file
/// for an orphan and removed it, although it had a name.
#[test]
fn a_truncation_never_journals_half_of_a_link_or_unlink() {
    let device = device();
    let fs = mount(&device);
    let path = Path::new("/f");
    let file = fs.create(path, &CreateOptions::default()).unwrap();
    fs.commit().unwrap();
    device.record();
    std::thread::scope(|scope| {
        let (fs, file, device) = (&fs, &file, &device);
        scope.spawn(move || {
            while device.recorded_ops() < OPS {
                fs.link(path, Path::new("/g")).unwrap();
                fs.unlink(path).unwrap();
                fs.rename(Path::new("/g"), path).unwrap();
            }
        });
        scope.spawn(move || {
            while device.recorded_ops() < OPS {
                file.append(&[1]).unwrap();
                file.truncate(0).unwrap();
                fs.commit().unwrap();
            }
        });
    });
    let recording = device.take_recording();
    let ops = recording.ops().len();
    for at in 0..=ops {
        let crashed = Arc::new(recording.crash(at, at as u64));
        let report = check(crashed.clone(), CheckMode::ReadOnly).unwrap();
        assert!(report.is_clean(), "crash at {at}: {report:?}");
        let fs = mount(&crashed);
        let named = [path, Path::new("/g")].map(|path| fs.metadata(path));
        let links = named.iter().flatten().count();
        assert!(links > 0, "crash at {at}: the file is gone");
        for metadata in named.into_iter().flatten() {
            assert_eq!(metadata.links as usize, links, "crash at {at}");
        }
    }
}

/// As above with the attributes that a `chmod` sets: what was journaled is a state that was.
#[test]
fn attributes_are_journaled_in_the_order_they_were_set() {
    let device = device();
    let fs = mount(&device);
    let path = Path::new("/f");
    let file = fs.create(path, &CreateOptions::default()).unwrap();
    let ino = fs.resolve(path).unwrap();
    device.record();
    let done = AtomicBool::new(false);
    let mut acked = Vec::new();
    std::thread::scope(|scope| {
        let (fs, file, done, device) = (&fs, &file, &done, &device);
        scope.spawn(move || {
            while !done.load(Ordering::Acquire) {
                file.append(&[1]).unwrap();
                file.truncate(0).unwrap();
                fs.commit().unwrap();
            }
        });
        for uid in 1..=ROUNDS {
            let set = SetAttributes {
                uid: Some(uid),
                gid: Some(uid),
                ..SetAttributes::default()
            };
            fs.set_attributes(ino, &set).unwrap();
            if uid % 16 == 0 {
                fs.commit().unwrap();
                acked.push((device.recorded_ops(), uid));
            }
        }
        done.store(true, Ordering::Release);
    });
    let recording = device.take_recording();
    let mut last = 0;
    for (at, uid) in acked {
        let fs = mount(&Arc::new(recording.crash(at, u64::from(uid))));
        let attributes = fs.attributes(ino).unwrap();
        assert_eq!(attributes.uid, attributes.gid);
        assert!(attributes.uid >= uid && attributes.uid >= last);
        last = uid;
    }
}

/// Truncations and closes were enqueued without a look at the queue. A loop of them, with nobody
/// who synced, let it outgrow the journal's region, and nothing could be committed any more.
#[test]
fn truncations_that_nobody_syncs_stay_within_the_journal() {
    let device = device();
    let fs = mount(&device);
    for _ in 0..20_000 {
        let open = fs.open(Path::new("/f"));
        let file = open.or_else(|_| fs.create(Path::new("/f"), &CreateOptions::default()));
        let file = file.unwrap();
        file.append(&[1]).unwrap();
        file.truncate(0).unwrap();
    }
    fs.commit().unwrap();
    let crashed = Arc::new(device.crash(1));
    assert!(check(crashed, CheckMode::ReadOnly).unwrap().is_clean());
}
