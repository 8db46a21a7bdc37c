//! A process that owns a filesystem lets people look inside while it works. Needs root and
//! /dev/fuse; without them each test says so and passes.
#![cfg(feature = "fuse")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use lavafs::fuse::{FuseMount, FuseOptions, VIEW_ATTRIBUTE};
use lavafs::{CreateOptions, FileSystem, LavaFs, MkfsOptions, MountOptions, device, mkfs};

/// The owner's filesystem, and its own mount of it.
fn owned(root: &Path) -> Option<(LavaFs, FuseMount)> {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: mounting needs root and /dev/fuse");
        return None;
    }
    let device = device::create_image(&root.join("img"), 64 << 20, false).unwrap();
    mkfs(device.as_ref(), &MkfsOptions::default()).unwrap();
    let owner = LavaFs::mount(device, &MountOptions::default()).unwrap();
    fs::create_dir(root.join("mnt")).unwrap();
    let mount = owner
        .mount_on(&root.join("mnt"), &FuseOptions::inspection())
        .unwrap();
    Some((owner, mount))
}

fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().and_then(|e| e.raw_os_error()).unwrap_or(0)
}

fn cat(path: &Path) -> Vec<u8> {
    Command::new("cat").arg(path).output().unwrap().stdout
}

#[test]
fn a_foreign_program_reads_what_the_owner_has_just_appended() {
    let root = tempfile::tempdir().unwrap();
    let Some((owner, mount)) = owned(root.path()) else {
        return;
    };
    let dir = mount.dir().to_path_buf();
    let file = owner
        .create(Path::new("/log"), &CreateOptions::default())
        .unwrap();
    let mut expected = Vec::new();
    for round in 0..40_u8 {
        let bytes = vec![round; 1500];
        file.append(&bytes).unwrap();
        expected.extend(bytes);
        assert_eq!(cat(&dir.join("log")), expected, "round {round}");
    }
    // Shorter, and longer again with other bytes in the same pages.
    file.truncate(1000).unwrap();
    file.append(&[99; 3000]).unwrap();
    expected.truncate(1000);
    expected.extend([99; 3000]);
    assert_eq!(cat(&dir.join("log")), expected);
    owner.create_dir_all(Path::new("/a/b")).unwrap();
    assert!(dir.join("a/b").is_dir());
    owner
        .rename(Path::new("/log"), Path::new("/a/log"))
        .unwrap();
    assert!(!dir.join("log").exists());
    assert_eq!(cat(&dir.join("a/log")), expected);
    owner.unlink(Path::new("/a/log")).unwrap();
    assert_eq!(errno(fs::metadata(dir.join("a/log"))), libc::ENOENT);
    drop(file);
    mount.unmount().unwrap();
    owner.unmount().unwrap();
}

#[test]
fn an_inspection_changes_nothing_and_is_marked() {
    let root = tempfile::tempdir().unwrap();
    let Some((owner, mount)) = owned(root.path()) else {
        return;
    };
    let dir = mount.dir().to_path_buf();
    let file = owner
        .create(Path::new("/f"), &CreateOptions::default())
        .unwrap();
    file.append(b"bytes").unwrap();
    assert_eq!(errno(fs::write(dir.join("f"), b"x")), libc::EROFS);
    assert_eq!(errno(fs::remove_file(dir.join("f"))), libc::EROFS);
    assert_eq!(errno(fs::create_dir(dir.join("d"))), libc::EROFS);
    // Even where root lifts the kernel's own refusal.
    let lifted = Command::new("mount")
        .args(["-o", "remount,rw"])
        .arg(&dir)
        .output()
        .unwrap();
    if lifted.status.success() {
        assert_eq!(errno(fs::write(dir.join("f"), b"x")), libc::EROFS);
        assert_eq!(errno(fs::remove_file(dir.join("f"))), libc::EROFS);
        assert_eq!(errno(fs::create_dir(dir.join("d"))), libc::EROFS);
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.contains(dir.to_str().unwrap()));
    assert!(line.unwrap().contains(" fuse.lavafs-view "), "{line:?}");
    let mark = Command::new("python3")
        .args([
            "-c",
            "import os,sys; print(os.getxattr(sys.argv[1], sys.argv[2]).decode())",
        ])
        .arg(&dir)
        .arg(VIEW_ATTRIBUTE)
        .output();
    if let Ok(mark) = mark {
        let mark = String::from_utf8(mark.stdout).unwrap();
        let me = format!("owner: process {} on", std::process::id());
        assert!(mark.contains("moving view") && mark.contains(&me), "{mark}");
    } else {
        eprintln!("skipped the mark: no python3");
    }
    drop(file);
    drop(mount);
    assert!(!dir.join("f").exists(), "dropping it unmounts");
    owner.unmount().unwrap();
}
