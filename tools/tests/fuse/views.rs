//! A device that another process owns, looked at through `mount.lavafs -o ro`; faults and size.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lavafs::device::{Fault, FaultOn, FaultPlan, FaultWhen, SimDevice};
use lavafs::fuse::FuseOptions;
use lavafs::{CreateOptions, FileSystem, LavaFs, MkfsOptions, MountOptions, mkfs};

use crate::fixture::{Fixture, MIB, PATIENCE, append, command, errno, run};

/// A second mount of the fixture's image, read-only. Unmounted when dropped.
struct View {
    dir: std::path::PathBuf,
    said: String,
}

impl View {
    fn new(fixture: &Fixture) -> View {
        let dir = fixture.root.path().join("view");
        fs::create_dir(&dir).unwrap();
        let output = command()
            .args(["-o", "ro"])
            .args([fixture.image(), dir.clone()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        View { dir, said }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}

/// Waits until `holds`, which a view may take a moment for.
fn soon(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_device_in_use_is_shown_as_a_moving_view() {
    let Some(mut fixture) = Fixture::mounted(64 * MIB) else {
        return;
    };
    let mut file = File::create(fixture.path("log")).unwrap();
    file.write_all(&[1; 5000]).unwrap();
    file.sync_all().unwrap();
    let view = View::new(&fixture);
    assert_eq!(view.said.lines().count(), 1, "{}", view.said);
    assert!(view.said.contains("moving view"), "{}", view.said);
    let server = fixture.server.as_ref().unwrap().id();
    assert!(
        view.said.contains(&format!("process {server} ")),
        "{}",
        view.said
    );
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.contains(view.dir.to_str().unwrap()));
    assert!(line.unwrap().contains(" fuse.lavafs-view ro,"), "{line:?}");
    let log = view.dir.join("log");
    assert_eq!(fs::read(&log).unwrap(), vec![1; 5000]);
    for round in 2..6 {
        file.write_all(&vec![round; 5000]).unwrap();
        file.sync_all().unwrap();
        let size = u64::from(round) * 5000;
        soon("the synced bytes", || {
            fs::metadata(&log).unwrap().len() == size
        });
        let bytes = run("cat", [&log]).stdout;
        assert_eq!(bytes.len() as u64, size);
        assert_eq!(bytes[bytes.len() - 5000..], vec![round; 5000]);
    }
    fs::rename(fixture.path("log"), fixture.path("moved")).unwrap();
    fs::create_dir(fixture.path("d")).unwrap();
    File::open(fixture.dir()).unwrap().sync_all().unwrap();
    soon("the new names", || {
        view.dir.join("moved").exists() && view.dir.join("d").is_dir()
    });
    assert!(!log.exists());
    assert_eq!(errno(fs::write(view.dir.join("x"), b"")), libc::EROFS);
    // The owner leaves; the view stays, and another owner may come.
    drop(file);
    fixture.remount();
    append(&fixture.path("moved")).write_all(b"end").unwrap();
    File::open(fixture.path("moved"))
        .unwrap()
        .sync_all()
        .unwrap();
    soon("the next owner's bytes", || {
        fs::read(view.dir.join("moved")).unwrap().ends_with(b"end")
    });
    drop(view);
    fixture.umount();
    fixture.assert_clean();
}

/// A filesystem in memory, mounted by this process.
fn simulated(root: &Path) -> (Arc<SimDevice>, LavaFs) {
    let device = Arc::new(SimDevice::new(64 << 20, 512));
    mkfs(&*device, &MkfsOptions::default()).unwrap();
    let fs = LavaFs::mount(device.clone(), &MountOptions::default()).unwrap();
    fs::create_dir(root.join("mnt")).unwrap();
    (device, fs)
}

#[test]
fn a_bad_block_is_an_error_for_its_page_only() {
    if Fixture::new(64 * MIB).is_none() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (device, owner) = simulated(root.path());
    let file = owner
        .create(Path::new("/victim"), &CreateOptions::default())
        .unwrap();
    let data: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
    file.append(&data).unwrap();
    file.fsync().unwrap();
    drop(file);
    let ino = owner.resolve(Path::new("/victim")).unwrap();
    let (bad, block) = (1_003_520_u64, 4096); // Page 245.
    let mut before = 0;
    let mut on_device = None;
    for (start, blocks) in owner.extents(ino).unwrap() {
        if on_device.is_none() && bad < (before + blocks) * block {
            on_device = Some((start - before) * block + bad);
        }
        before += blocks;
    }
    let within = FaultWhen::Within {
        offset: on_device.unwrap() + 512,
        len: 512,
    };
    device.set_faults(Some(FaultPlan::new(1).rule(
        FaultOn::Read,
        within,
        Fault::Eio,
    )));
    let mount = owner
        .mount_on(&root.path().join("mnt"), &FuseOptions::default())
        .unwrap();
    let path = mount.dir().join("victim");
    for writer in [false, true] {
        let file = OpenOptions::new()
            .read(true)
            .write(writer)
            .open(&path)
            .unwrap();
        let mut failed = Vec::new();
        let mut buf = vec![0; 4096];
        for page in 0..data.len().div_ceil(4096) as u64 {
            let part = &mut buf[..data.len().saturating_sub(page as usize * 4096).min(4096)];
            match file.read_exact_at(part, page * 4096) {
                Ok(()) => assert!(*part == data[page as usize * 4096..][..part.len()]),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EIO));
                    failed.push(page);
                }
            }
        }
        assert_eq!(failed, [245], "opened for writing: {writer}");
        // A long read ends before the bad page.
        let mut long = vec![0; 1 << 20];
        let read = file.read_at(&mut long, 800 * 1024).unwrap();
        assert_eq!(read as u64, bad - 800 * 1024);
        assert!(long[..read] == data[800 * 1024..][..read]);
    }
    mount.unmount().unwrap();
    device.set_faults(None);
    owner.unmount().unwrap();
}

#[test]
fn a_write_that_was_answered_and_failed_is_reported_by_the_next_sync_or_close() {
    if Fixture::new(64 * MIB).is_none() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (device, owner) = simulated(root.path());
    // Less than what the mount keeps free for answering early would be refused at once.
    let mount = owner
        .mount_on(&root.path().join("mnt"), &FuseOptions::default())
        .unwrap();
    let mut file = File::create(mount.dir().join("f")).unwrap();
    file.write_all(&vec![1; 1 << 20]).unwrap();
    file.sync_all().unwrap();
    let plan = FaultPlan::new(1).rule(FaultOn::Write, FaultWhen::Nth(0), Fault::Eio);
    device.set_faults(Some(plan));
    let written = (0..8).try_for_each(|_| file.write_all(&vec![2; 1 << 20]));
    let synced = file.sync_all();
    assert!(written.is_err() || synced.is_err());
    assert_eq!(errno(file.write_all(b"x")), libc::EROFS);
    drop(file);
    mount.unmount().unwrap();
}

#[test]
fn a_full_filesystem_is_told_by_the_write_itself() {
    let Some(mut fixture) = Fixture::mounted(128 * MIB) else {
        return;
    };
    let mut file = File::create(fixture.path("f")).unwrap();
    let mut written = 0_u64;
    let error = loop {
        match file.write(&vec![7; 1 << 20]) {
            Ok(n) => written += n as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(written > 100 * MIB, "{written}");
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().len(), written);
    drop(file);
    fixture.remount();
    assert_eq!(fs::metadata(fixture.path("f")).unwrap().len(), written);
    fs::remove_file(fixture.path("f")).unwrap();
    fs::write(fixture.path("g"), b"there is room again").unwrap();
    fixture.umount();
    fixture.assert_clean();
}

#[test]
fn a_hundred_thousand_files_are_walked() {
    let Some(mut fixture) = Fixture::mounted(1024 * MIB) else {
        return;
    };
    let dir = fixture.path("many");
    fs::create_dir(&dir).unwrap();
    for i in 0..100_000 {
        File::create(dir.join(format!("f{i}"))).unwrap();
    }
    fixture.remount();
    for (program, arguments) in [("find", vec!["-size", "-1"]), ("du", vec!["-a"])] {
        let started = Instant::now();
        let output = if program == "find" {
            run(
                program,
                [dir.as_os_str()]
                    .into_iter()
                    .chain(arguments.iter().map(|a| (*a).as_ref())),
            )
        } else {
            run(
                program,
                arguments
                    .iter()
                    .map(|a| (*a).as_ref())
                    .chain([dir.as_os_str()]),
            )
        };
        eprintln!("{program}: {:?}", started.elapsed());
        let lines = output.stdout.iter().filter(|&&b| b == b'\n').count();
        assert!(lines >= 100_000, "{program}: {lines}");
    }
    run("rm", ["-r".as_ref(), dir.as_os_str()]);
    fixture.umount();
    fixture.assert_clean();
}
