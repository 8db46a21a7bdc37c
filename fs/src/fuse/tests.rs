//! The mount's operations on a simulated device, without a kernel.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::device::{Fault, FaultOn, FaultPlan, FaultWhen, SimDevice};
use crate::{
    BLOCK_SIZE, CreateOptions, FileSize, FileSystem, Ino, LavaFs, MkfsOptions, MountOptions,
    SetAttributes, mkfs,
};
use fuser::{Errno, INodeNo};

use super::names::{Caller, Changes};
use super::ops::Mount;

const ROOT: INodeNo = INodeNo(1);
const ME: Caller = Caller {
    uid: 1000,
    gid: 100,
};

fn device() -> Arc<SimDevice> {
    let device = SimDevice::new(64 << 20, 512);
    mkfs(&device, &MkfsOptions::default()).unwrap();
    Arc::new(device)
}

fn mount(device: &Arc<SimDevice>, size_free: bool) -> Mount {
    let options = MountOptions {
        background: false,
        ..MountOptions::default()
    };
    Mount::new(LavaFs::mount(device.clone(), &options).unwrap(), size_free)
}

fn create(mount: &Mount, name: &str) -> (Ino, u64) {
    let (attr, handle, _) = mount.create(ME, ROOT, OsStr::new(name), 0o644).unwrap();
    (Ino(attr.ino.0), handle)
}

fn size(mount: &Mount, ino: Ino) -> u64 {
    mount.attributes(INodeNo(ino.0)).unwrap().size
}

#[test]
fn both_syncs_make_the_size_exact_unless_size_free() {
    for (size_free, data_only, kept) in [
        (false, false, 6),
        (false, true, 6),
        (true, false, 6),
        (true, true, 3),
    ] {
        let device = device();
        let before = mount(&device, size_free);
        let (ino, handle) = create(&before, "f");
        before.write(handle, 0, b"abc", 0).unwrap();
        before.fsync(handle, false).unwrap();
        before.write(handle, 3, b"def", 0).unwrap();
        before.fsync(handle, data_only).unwrap();
        let after = mount(&Arc::new(device.crash(7)), false);
        assert_eq!(size(&after, ino), kept, "{size_free} {data_only}");
    }
}

#[test]
fn an_uncertain_size_is_settled_by_opening_for_writing_only() {
    let device = device();
    let before = mount(&device, true);
    let (ino, handle) = create(&before, "f");
    before.write(handle, 0, b"abc", 0).unwrap();
    before.fsync(handle, false).unwrap();
    before.write(handle, 3, b"def", 0).unwrap();
    before.fsync(handle, true).unwrap();
    let after = mount(&Arc::new(device.crash(7)), true);
    let known = || after.fs.attributes(ino).unwrap().size;
    assert!(
        matches!(known(), FileSize::Between { lower: 3, .. }),
        "{:?}",
        known()
    );
    let reading = after.open(ino, libc::O_RDONLY).unwrap();
    assert!(matches!(known(), FileSize::Between { lower: 3, .. }));
    let writing = after.open(ino, libc::O_WRONLY).unwrap();
    assert_eq!(known(), FileSize::Exact(3));
    after.write(writing, 3, b"xyz", 0).unwrap();
    after.read(reading, 0, 10, false, |bytes| {
        assert_eq!(bytes, Ok(&b"abcxyz"[..]));
    });
}

#[test]
fn a_synchronous_descriptor_needs_no_sync() {
    let device = device();
    let before = mount(&device, false);
    let (ino, handle) = create(&before, "f");
    before.write(handle, 0, b"abc", libc::O_DSYNC).unwrap();
    before.write(handle, 3, b"def", libc::O_SYNC).unwrap();
    assert_eq!(size(&mount(&Arc::new(device.crash(1)), false), ino), 6);
}

#[test]
fn what_nobody_synced_is_committed_in_time() {
    let device = device();
    let before = mount(&device, false);
    let (ino, handle) = create(&before, "f");
    before.write(handle, 0, b"abc", 0).unwrap();
    before.commit(true).unwrap();
    assert_eq!(size(&mount(&Arc::new(device.crash(1)), false), ino), 3);
    assert!(before.files.unsynced().is_empty());
}

/// A write marked its file as unsynced and then appended. The commit that comes regularly took the mark in
/// between and synced the file without those bytes; the next ones found no mark, and a crash much later took them.
#[test]
fn what_is_written_beside_a_commit_is_committed_by_the_next() {
    let device = device();
    let before = mount(&device, false);
    before.start_writers().unwrap();
    let (ino, handle) = create(&before, "f");
    before.write(handle, 0, b"abc", 0).unwrap();
    before.fsync(handle, false).unwrap();
    std::thread::scope(|scope| {
        // A long write looks for space first.
        let space = before.fs.core.alloc.lock();
        let write = scope.spawn(|| before.write(handle, 3, &[1; 64 << 10], 0));
        std::thread::sleep(Duration::from_millis(100));
        before.commit(true).unwrap();
        drop(space);
        write.join().unwrap().unwrap();
    });
    before.commit(true).unwrap();
    let after = mount(&Arc::new(device.crash(1)), false);
    assert_eq!(size(&after, ino), 3 + (64 << 10));
}

/// A regular commit took a file's mark and failed; the commits after it passed the file over, so that a crash
/// however much later took what nobody had synced.
#[test]
fn what_a_commit_could_not_make_durable_is_made_so_by_the_next() {
    let device = device();
    let before = mount(&device, false);
    let (ino, handle) = create(&before, "f");
    before.write(handle, 0, b"abc", 0).unwrap();
    before.fsync(handle, false).unwrap();
    let superblock = before.fs.superblock();
    let journal = FaultWhen::Within {
        offset: superblock.journal_start * BLOCK_SIZE,
        len: 2 * superblock.journal_blocks * BLOCK_SIZE,
    };
    // No checkpoint can be read back, and the journal gets full.
    let unreadable = FaultPlan::new(1).rule(FaultOn::Read, journal, Fault::Eio);
    device.set_faults(Some(unreadable));
    let full = (0..2000).any(|_| {
        let touch = SetAttributes::default();
        before.fs.set_attributes(LavaFs::ROOT, &touch).unwrap();
        before.fs.commit().is_err()
    });
    assert!(full);
    // The cut must be durable before its block is written again.
    let cut = Changes {
        size: Some(1),
        ..Changes::default()
    };
    before.set_attributes(ME, INodeNo(ino.0), &cut).unwrap();
    before.write(handle, 1, b"BCDE", 0).unwrap();
    before.commit(true).unwrap_err();
    device.set_faults(None);
    before.commit(true).unwrap();
    let after = mount(&Arc::new(device.crash(1)), false);
    assert_eq!(size(&after, ino), 5);
}

#[test]
fn extending_without_space_changes_nothing() {
    let mount = mount(&device(), false);
    let (ino, handle) = create(&mount, "f");
    mount.write(handle, 0, b"abc", 0).unwrap();
    let free = mount.statfs().free;
    let changes = Changes {
        size: Some(free * 4096 + (1 << 20)),
        ..Changes::default()
    };
    let refused = mount.set_attributes(ME, INodeNo(ino.0), &changes);
    assert_eq!(refused, Err(Errno::ENOSPC));
    assert_eq!(size(&mount, ino), 3);
    mount.write(handle, 3, b"d", 0).unwrap();
    mount.fsync(handle, false).unwrap();
}

#[test]
fn a_write_beyond_the_end_follows_zeros_and_one_before_it_is_refused() {
    let mount = mount(&device(), false);
    let (ino, handle) = create(&mount, "f");
    mount.write(handle, 0, b"abc", 0).unwrap();
    mount.write(handle, 700_000, b"def", 0).unwrap();
    assert_eq!(size(&mount, ino), 700_003);
    assert_eq!(
        mount.write(handle, 699_999, b"x", 0),
        Err(Errno::EOPNOTSUPP)
    );
    let mut expected = vec![0; 700_003];
    expected[..3].copy_from_slice(b"abc");
    expected[700_000..].copy_from_slice(b"def");
    mount.read(handle, 0, 1 << 20, false, |bytes| {
        assert!(bytes == Ok(&expected[..]));
    });
    // Whoever appends means the end, wherever the kernel believes it to be.
    mount
        .write(handle, 1_000_000, b"g", libc::O_APPEND)
        .unwrap();
    assert_eq!(size(&mount, ino), 700_004);
    assert_eq!(
        mount.fallocate(handle, 700_000, 1000, 0),
        Err(Errno::EINVAL)
    );
    assert_eq!(size(&mount, ino), 700_004);
}

#[test]
fn a_gap_cut_short_by_a_failure_is_not_left_behind() {
    let device = device();
    let before = mount(&device, false);
    let (ino, handle) = create(&before, "f");
    before.write(handle, 0, b"abc", 0).unwrap();
    before.fsync(handle, false).unwrap();
    let plan = FaultPlan::new(1).rule(FaultOn::Write, FaultWhen::Nth(3), Fault::Eio);
    device.set_faults(Some(plan));
    assert!(before.write(handle, 8 << 20, b"def", 0).is_err());
    device.set_faults(None);
    let after = mount(&Arc::new(device.crash(7)), false);
    let found = size(&after, ino);
    assert!((3..8 << 20).contains(&found), "{found}");
    let reading = after.open(ino, libc::O_RDONLY).unwrap();
    after.read(reading, 0, 9 << 20, false, |bytes| {
        let bytes = bytes.unwrap();
        assert!(bytes[..3] == *b"abc" && bytes[3..].iter().all(|&byte| byte == 0));
    });
}

#[test]
fn a_directory_has_two_links_and_one_for_each_in_it() {
    let device = device();
    let mount_ = mount(&device, false);
    let links = |mount: &Mount, ino| mount.attributes(ino).unwrap().nlink;
    let make = |dir, name: &str| mount_.mkdir(ME, dir, OsStr::new(name), 0o755).unwrap().ino;
    let (a, b) = (make(ROOT, "a"), make(ROOT, "b"));
    let inner = make(a, "inner");
    create(&mount_, "f");
    assert_eq!((links(&mount_, ROOT), links(&mount_, a)), (4, 3));
    let name = OsStr::new("inner");
    let none = fuser::RenameFlags::empty();
    mount_.rename((a, name), (b, name), none).unwrap();
    assert_eq!((links(&mount_, a), links(&mount_, b)), (2, 3));
    make(a, "inner");
    mount_.rename((a, name), (b, name), none).unwrap();
    assert_eq!((links(&mount_, a), links(&mount_, b)), (2, 3));
    // Whoever had it open can still ask.
    assert_eq!(links(&mount_, inner), 0);
    mount_.rmdir(b, name).unwrap();
    mount_.commit(false).unwrap();
    let after = mount(&Arc::new(device.crash(1)), false);
    assert_eq!((links(&after, ROOT), links(&after, b)), (4, 2));
}

#[test]
fn after_a_failed_write_programs_learn_that_the_filesystem_is_read_only() {
    let device = device();
    let mount = mount(&device, false);
    let (_, handle) = create(&mount, "f");
    mount.write(handle, 0, b"abc", 0).unwrap();
    let plan = FaultPlan::new(1).rule(FaultOn::Write, FaultWhen::Nth(0), Fault::Eio);
    device.set_faults(Some(plan));
    assert_eq!(mount.fsync(handle, false), Err(Errno::EIO));
    assert_eq!(mount.fsync(handle, false), Err(Errno::EROFS));
    assert_eq!(mount.write(handle, 3, b"d", 0), Err(Errno::EROFS));
    mount.read(handle, 0, 3, false, |bytes| {
        assert_eq!(bytes, Ok(&b"abc"[..]));
    });
}

#[test]
fn a_listing_keeps_its_offsets_while_names_come_and_go() {
    let mount = mount(&device(), false);
    for i in 0..3000 {
        let (_, handle) = create(&mount, &format!("f{i:04}"));
        mount.close(handle);
    }
    let handle = mount.listings.open(Ino(ROOT.0));
    let list = |offset, count| {
        let mut names = Vec::new();
        let add = |entry: &super::handles::Entry, next: u64| {
            names.push((entry.name.clone().into_string().unwrap(), next));
            names.len() == count
        };
        mount.read_dir(handle, offset, add).unwrap();
        names
    };
    let first = list(0, 1500);
    assert_eq!((first[0].0.as_str(), first[1].0.as_str()), (".", ".."));
    assert_eq!(first[2], ("f0000".to_owned(), 3));
    for i in 0..1000 {
        mount.unlink(ROOT, OsStr::new(&format!("f{i:04}"))).unwrap();
    }
    // Going on, going back, and the end.
    assert_eq!(list(1500, 1)[0].0, "f1498");
    assert_eq!(list(100, 1), [("f0098".to_owned(), 101)]);
    assert_eq!(list(3001, 9), [("f2999".to_owned(), 3002)]);
    assert!(list(3002, 9).is_empty());
    assert_eq!(list(0, usize::MAX).len(), 2002);
    mount.listings.close(handle);
    assert_eq!(mount.listings.get(handle).err(), Some(Errno::EBADF));
}

#[test]
fn writers_and_owners_take_a_files_privileges_away() {
    let mount = mount(&device(), false);
    let (ino, handle) = create(&mount, "f");
    let ino = INodeNo(ino.0);
    let mode = |changes: Changes, caller| mount.set_attributes(caller, ino, &changes).unwrap().perm;
    let set_bits = Changes {
        mode: Some(0o6755),
        ..Changes::default()
    };
    let shorter = Changes {
        size: Some(0),
        ..Changes::default()
    };
    let chown = Changes {
        uid: Some(5),
        ..Changes::default()
    };
    let root = Caller { uid: 0, gid: 0 };
    assert_eq!(mode(set_bits, ME), 0o6755);
    assert_eq!(mode(shorter, root), 0o6755);
    assert_eq!(mode(shorter, ME), 0o755);
    assert_eq!(mode(set_bits, ME), 0o6755);
    assert_eq!(mode(chown, root), 0o755);
    assert_eq!(mode(set_bits, ME), 0o6755);
    mount.drop_privileges(Ino(ino.0)).unwrap();
    assert_eq!(mount.attributes(ino).unwrap().perm, 0o755);
    mount.close(handle);
}

#[test]
fn new_entries_of_a_set_group_id_directory_have_its_group() {
    let mount = mount(&device(), false);
    let dir = mount.mkdir(ME, ROOT, OsStr::new("d"), 0o755).unwrap();
    let changes = Changes {
        mode: Some(0o2775),
        gid: Some(77),
        ..Changes::default()
    };
    mount.set_attributes(ME, dir.ino, &changes).unwrap();
    let sub = mount.mkdir(ME, dir.ino, OsStr::new("s"), 0o755).unwrap();
    assert_eq!((sub.gid, sub.perm), (77, 0o2755));
    let file = mount
        .mknod(ME, dir.ino, OsStr::new("f"), libc::S_IFREG | 0o600)
        .unwrap();
    assert_eq!((file.uid, file.gid, file.perm), (1000, 77, 0o600));
    let fifo = mount.mknod(ME, dir.ino, OsStr::new("p"), libc::S_IFIFO | 0o600);
    assert_eq!(fifo, Err(Errno::EPERM));
}

/// The space went to others between the answer and the append. The close of one descriptor, as a child that
/// inherited it does it, took the failure with it, and an fsync said that all was well.
#[test]
fn no_sync_succeeds_after_bytes_that_were_answered_were_lost() {
    let device = Arc::new(SimDevice::new(256 << 20, 512));
    mkfs(&*device, &MkfsOptions::default()).unwrap();
    let before = mount(&device, false);
    before.start_writers().unwrap();
    let (ino, handle) = create(&before, "f");
    let other = before.open(ino, libc::O_WRONLY).unwrap();
    before.write(handle, 0, b"kept", 0).unwrap();
    let bytes = vec![1; 512 << 10];
    before.write(handle, 4, &bytes, 0).unwrap();
    let all = CreateOptions {
        expected_size: before.fs.space().free,
        ..CreateOptions::default()
    };
    let hog = before.fs.create(Path::new("/hog"), &all).unwrap();
    assert_eq!(before.flush(other), Err(Errno::ENOSPC));
    before.close(other);
    assert_eq!(before.fsync(handle, false), Err(Errno::ENOSPC));
    assert_eq!(before.fsync(handle, true), Err(Errno::ENOSPC));
    assert_eq!(before.flush(handle), Err(Errno::ENOSPC));

    // What is in the file is durable all the same.
    let after = mount(&Arc::new(device.crash(1)), false);
    assert_eq!(size(&after, ino), 4);
    // A program that chooses a new end has been told.
    drop(hog);
    before.fs.unlink(Path::new("/hog")).unwrap();
    let cut = Changes {
        size: Some(0),
        ..Changes::default()
    };
    before.set_attributes(ME, INodeNo(ino.0), &cut).unwrap();
    before.write(handle, 0, &bytes, 0).unwrap();
    before.fsync(handle, false).unwrap();
    assert_eq!(size(&before, ino), 512 << 10);
}
