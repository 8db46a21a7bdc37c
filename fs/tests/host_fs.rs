//! `HostFs` against the filesystem contract, and what is its own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod conformance;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lavafs::{CreateOptions, Error, FileSize, FileSystem, HostFs};

#[test]
fn host_fs_meets_the_contract() {
    conformance::run_all(|| {
        let dir = tempfile::tempdir().unwrap();
        let fs = HostFs::open(&dir.path().join("made/by/open")).unwrap();
        (Box::new(fs), dir)
    });
}

#[test]
fn buffered_host_fs_meets_the_contract() {
    let Some(shm) = shared_memory() else {
        eprintln!("skipped: no tmpfs at /dev/shm");
        return;
    };
    conformance::run_all(|| {
        let dir = tempfile::tempdir_in(shm).unwrap();
        (Box::new(HostFs::open(dir.path()).unwrap()), dir)
    });
}

fn shared_memory() -> Option<&'static Path> {
    Some(Path::new("/dev/shm")).filter(|path| tempfile::tempdir_in(path).is_ok())
}

#[test]
fn kernel_files_hold_exactly_the_synced_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let fs = HostFs::open(dir.path()).unwrap();
    let file = fs
        .create(Path::new("/a"), &CreateOptions::default())
        .unwrap();
    let mut model = Vec::new();
    for (len, byte) in [(10, 1), (5000, 2), (1, 3), (300_000, 4), (4096, 5)] {
        file.append(&vec![byte; len]).unwrap();
        model.resize(model.len() + len, byte);
        file.fdatasync().unwrap();
        assert!(std::fs::read(dir.path().join("a")).unwrap() == model);
    }
}

#[test]
fn settle_drops_a_torn_tail_and_keeps_the_generation() {
    let dir = tempfile::tempdir().unwrap();
    let fs = HostFs::open(dir.path()).unwrap();
    let file = fs
        .create(Path::new("/a"), &CreateOptions::default())
        .unwrap();
    file.append(b"record|torn").unwrap();
    file.fsync().unwrap();
    let generation = file.generation();
    drop(file);
    let file = fs.open(Path::new("/a")).unwrap();
    file.settle(7).unwrap();
    assert_eq!(file.size(), FileSize::Exact(7));
    assert_eq!(file.generation(), generation);
    file.append(b"next").unwrap();
    file.fsync().unwrap();
    assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), b"record|next");
}

#[test]
fn surplus_of_the_expected_size_returns_at_close() {
    let dir = tempfile::tempdir().unwrap();
    let fs = HostFs::open(dir.path()).unwrap();
    let options = CreateOptions {
        expected_size: 1 << 20,
        ..CreateOptions::default()
    };
    let file = fs.create(Path::new("/a"), &options).unwrap();
    let taken = std::fs::metadata(dir.path().join("a")).unwrap().blocks() * 512;
    file.append(b"small").unwrap();
    drop(file);
    let stat = std::fs::metadata(dir.path().join("a")).unwrap();
    assert_eq!(stat.len(), 5);
    assert!(
        stat.blocks() * 512 <= 4096,
        "of {taken} bytes taken the surplus stays"
    );
}

#[test]
fn a_file_that_cannot_be_made_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fs = HostFs::open(dir.path()).unwrap();
    let options = CreateOptions {
        expected_size: 1 << 50,
        ..CreateOptions::default()
    };
    assert!(fs.create(Path::new("/huge"), &options).is_err());
    assert!(fs.list(Path::new("/")).unwrap().is_empty());
}

/// A small tmpfs, unmounted on drop.
struct SmallMount(tempfile::TempDir);

impl SmallMount {
    /// `None` where this user may not mount.
    fn new() -> Option<SmallMount> {
        let dir = tempfile::tempdir().unwrap();
        let (none, options) = (None::<&str>, Some("size=2m"));
        nix::mount::mount(
            none,
            dir.path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            options,
        )
        .ok()
        .map(|()| SmallMount(dir))
    }
}

impl Drop for SmallMount {
    fn drop(&mut self) {
        nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_filesystem_is_an_ordinary_error_and_goes_on_after_a_deletion() {
    let Some(mount) = SmallMount::new() else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    let fs = HostFs::open(mount.0.path()).unwrap();
    let options = CreateOptions::default();
    let filler = fs.create(Path::new("/filler"), &options).unwrap();
    filler.append(&vec![1; 1 << 20]).unwrap();
    filler.fdatasync().unwrap();
    let file = fs.create(Path::new("/file"), &options).unwrap();
    file.append(b"kept").unwrap();
    let large = vec![2; 1600 << 10];
    let failed = file.append(&large);
    assert!(matches!(failed, Err(Error::NoSpace { .. })), "{failed:?}");
    assert_eq!(
        file.size(),
        FileSize::Exact(4),
        "a failed append leaves nothing"
    );
    drop(filler);
    fs.unlink(Path::new("/filler")).unwrap();
    assert_eq!(file.append(&large).unwrap(), 4);
    file.fdatasync().unwrap();
    let bytes = std::fs::read(mount.0.path().join("file")).unwrap();
    assert!(bytes == [b"kept", &large[..]].concat());
}

#[test]
fn a_file_of_another_program_is_given_a_generation_that_stays() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("foreign"), b"bytes").unwrap();
    let fs = HostFs::open(dir.path()).unwrap();
    let generation = fs.open(Path::new("/foreign")).unwrap().generation();
    drop(fs);
    let fs = HostFs::open(dir.path()).unwrap();
    let file = fs.open(Path::new("/foreign")).unwrap();
    assert_eq!(file.generation(), generation);
    assert_eq!(file.size(), FileSize::Exact(5));
}

#[test]
fn two_processes_or_instances_exclude_each_other_by_lock() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (
        HostFs::open(dir.path()).unwrap(),
        HostFs::open(dir.path()).unwrap(),
    );
    let lock = one.lock(Path::new("LOCK")).unwrap();
    assert!(two.lock(Path::new("LOCK")).is_err());
    drop(lock);
    two.lock(Path::new("LOCK")).unwrap();
}

#[test]
fn a_root_that_is_a_file_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(HostFs::open(file.path()).is_err());
}
