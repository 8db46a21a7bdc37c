//! What a mount does with files, names and failures, call by call.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FallocateFlags, RenameFlags, fallocate, renameat2};

use crate::fixture::{Fixture, MIB, append, command, errno, refused, run};
use crate::foreign::have;

#[test]
fn a_copied_tree_is_equal_after_umount_and_mount() {
    let Some(mut fixture) = Fixture::mounted(512 * MIB) else {
        return;
    };
    let source = Path::new("/usr/share/perl");
    let source = if source.exists() {
        source
    } else {
        Path::new("/usr/share/zoneinfo")
    };
    let copy = fixture.path("tree");
    run("cp", [OsStr::new("-a"), source.as_os_str(), copy.as_ref()]);
    let equal = || {
        run(
            "diff",
            [
                "-r".as_ref(),
                "--no-dereference".as_ref(),
                source.as_os_str(),
                copy.as_ref(),
            ],
        )
    };
    equal();
    let archive = fixture.path("a.tar");
    run(
        "tar",
        [
            "-cf".as_ref(),
            archive.as_os_str(),
            "-C".as_ref(),
            source.as_os_str(),
            ".".as_ref(),
        ],
    );
    fs::create_dir(fixture.path("un")).unwrap();
    run(
        "tar",
        [
            "-xf".as_ref(),
            archive.as_os_str(),
            "-C".as_ref(),
            fixture.path("un").as_os_str(),
        ],
    );
    fixture.umount();
    fixture.assert_clean();
    fixture.mount("ro");
    equal();
    let un = fixture.path("un");
    run(
        "diff",
        [
            "-r".as_ref(),
            "--no-dereference".as_ref(),
            source.as_os_str(),
            un.as_ref(),
        ],
    );
    let entry = fs::read_dir(source).unwrap().next().unwrap().unwrap();
    let (a, b) = (
        entry.metadata().unwrap(),
        copy.join(entry.file_name()).symlink_metadata().unwrap(),
    );
    assert_eq!(
        (a.mode(), a.uid(), a.mtime_nsec()),
        (b.mode(), b.uid(), b.mtime_nsec())
    );
    assert_eq!(errno(File::create(fixture.path("x"))), libc::EROFS);
}

#[test]
fn files_grow_at_their_end_and_nowhere_else() {
    let Some(mut fixture) = Fixture::mounted(64 * MIB) else {
        return;
    };
    let path = fixture.path("f");
    fs::write(&path, vec![7; 10_000]).unwrap();
    let contents = || fs::read(&path).unwrap();
    let write_only = OpenOptions::new().write(true).open(&path).unwrap();
    let read_write = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    for file in [&write_only, &read_write] {
        let size = contents().len() as u64;
        for offset in [0, 1, 4096, size - 1] {
            let written = file.write_at(b"abc", offset);
            assert_eq!(errno(written), libc::EOPNOTSUPP, "at {offset}");
        }
        assert_eq!(contents(), vec![7; size as usize], "nothing was changed");
        assert_eq!(file.write_at(&[7; 3], size).unwrap(), 3);
        assert_eq!(contents().len() as u64, size + 3);
        file.sync_all().unwrap();
        file.sync_data().unwrap();
    }
    append(&path).write_all(&[7; 200_000]).unwrap();
    assert_eq!(contents(), vec![7; 210_006]);
    // Longer by zeros, shorter, and then from there.
    write_only.set_len(210_100).unwrap();
    assert_eq!(contents()[210_006..], [0; 94]);
    write_only.set_len(5).unwrap();
    append(&path).write_all(b"end").unwrap();
    assert_eq!(contents(), b"\x07\x07\x07\x07\x07end");
    assert_eq!(errno(write_only.set_len(1 << 40)), libc::ENOSPC);
    assert!(fallocate(&write_only, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 1 << 20).is_ok());
    let too_much = fallocate(&write_only, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 1 << 40);
    assert_eq!(too_much, Err(nix::errno::Errno::ENOSPC));
    let punched = FallocateFlags::FALLOC_FL_KEEP_SIZE | FallocateFlags::FALLOC_FL_PUNCH_HOLE;
    let punched = fallocate(&write_only, punched, 0, 4);
    assert_eq!(punched, Err(nix::errno::Errno::EOPNOTSUPP));
    drop((write_only, read_write));
    fixture.remount();
    assert_eq!(fs::read(&path).unwrap(), b"\x07\x07\x07\x07\x07end");
    File::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    fixture.umount();
    fixture.assert_clean();
}

#[test]
fn a_reader_sees_what_is_appended_beside_it() {
    let Some(fixture) = Fixture::mounted(64 * MIB) else {
        return;
    };
    let path = fixture.path("log");
    for read_too in [false, true] {
        fs::write(&path, b"").unwrap();
        let mut writer = OpenOptions::new()
            .read(read_too)
            .write(true)
            .open(&path)
            .unwrap();
        let mut reader = File::open(&path).unwrap();
        let mut seen = Vec::new();
        for round in 0..300_u32 {
            writer.write_all(&round.to_le_bytes().repeat(7)).unwrap();
            reader.seek(SeekFrom::Start(seen.len() as u64)).unwrap();
            reader.read_to_end(&mut seen).unwrap();
            let expected: Vec<u8> = (0..=round)
                .flat_map(|r| r.to_le_bytes().repeat(7))
                .collect();
            assert_eq!(seen, expected, "round {round}");
        }
    }
}

#[test]
fn names_links_and_attributes_are_posix() {
    let Some(mut fixture) = Fixture::mounted(64 * MIB) else {
        return;
    };
    let at = |name: &str| fixture.path(name);
    fs::write(at("a"), b"one").unwrap();
    fs::write(at("b"), b"two").unwrap();
    fs::hard_link(at("a"), at("a2")).unwrap();
    assert_eq!(fs::metadata(at("a")).unwrap().nlink(), 2);
    symlink("a", at("s")).unwrap();
    assert_eq!(fs::read(at("s")).unwrap(), b"one");
    let rename = |from: &str, to: &str, flags| {
        renameat2(
            nix::fcntl::AT_FDCWD,
            &at(from),
            nix::fcntl::AT_FDCWD,
            &at(to),
            flags,
        )
    };
    let kept = rename("a", "b", RenameFlags::RENAME_NOREPLACE);
    assert_eq!(kept, Err(nix::errno::Errno::EEXIST));
    rename("a", "b", RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!(
        (fs::read(at("a")).unwrap(), fs::read(at("b")).unwrap()),
        (b"two".to_vec(), b"one".to_vec())
    );
    fs::rename(at("a"), at("b")).unwrap();
    assert_eq!(fs::read(at("b")).unwrap(), b"two");
    assert_eq!(fs::metadata(at("a2")).unwrap().nlink(), 1);
    // Unlinked while open: readable, appendable, gone afterwards.
    let mut open = OpenOptions::new()
        .read(true)
        .append(true)
        .open(at("b"))
        .unwrap();
    fs::remove_file(at("b")).unwrap();
    open.write_all(b"!").unwrap();
    open.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "two!");
    drop(open);
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/x"), b"").unwrap();
    assert_eq!(errno(fs::remove_dir(at("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(at("d"), at("d/y"))), libc::EINVAL);
    File::open(at("d")).unwrap().sync_all().unwrap();
    fs::set_permissions(at("a2"), fs::Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::chown(at("d"), Some(12), Some(34)).unwrap();
    run(
        "touch",
        [
            "-h".as_ref(),
            "-d".as_ref(),
            "1969-12-31 23:59:58.8 UTC".as_ref(),
            at("a2").as_os_str(),
        ],
    );
    run("mkfifo", [fixture.root.path().join("fifo")]);
    let long = "n".repeat(255);
    fs::write(at(&long), b"").unwrap();
    let too_long = "n".repeat(256);
    assert_eq!(errno(fs::write(at(&too_long), b"")), libc::ENAMETOOLONG);
    fixture.remount();
    let at = |name: &str| fixture.path(name);
    let a2 = fs::metadata(at("a2")).unwrap();
    assert_eq!(
        (a2.mode() & 0o7777, a2.mtime(), a2.mtime_nsec()),
        (0o4711, -2, 800_000_000)
    );
    let d = fs::metadata(at("d")).unwrap();
    assert_eq!((d.uid(), d.gid()), (12, 34));
    assert!(at(&long).exists() && !at("b").exists());
    assert_eq!(fs::read_link(at("s")).unwrap(), Path::new("a"));
    fixture.umount();
    fixture.assert_clean();
}

#[test]
fn a_directory_that_changes_is_listed_without_loss_or_repetition() {
    let Some(fixture) = Fixture::mounted(256 * MIB) else {
        return;
    };
    let dir = fixture.path("big");
    fs::create_dir(&dir).unwrap();
    for i in 0..20_000 {
        File::create(dir.join(format!("keep-{i:05}"))).unwrap();
    }
    let mut seen = Vec::new();
    for (count, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if count % 500 == 0 {
            // Before, at and behind the reader.
            fs::write(dir.join(format!("aaa-{count}")), b"").unwrap();
            fs::write(dir.join(format!("zzz-{count}")), b"").unwrap();
            let _ = fs::remove_file(dir.join(format!("aaa-{}", count / 2)));
        }
        if name.starts_with("keep-") {
            seen.push(name);
        }
    }
    seen.sort();
    let expected: Vec<String> = (0..20_000).map(|i| format!("keep-{i:05}")).collect();
    assert!(seen == expected, "{} names", seen.len());
    fs::remove_dir_all(&dir).unwrap();
    assert!(!dir.exists());
}

#[test]
fn extended_attributes_mappings_and_space() {
    if !have("python3") {
        return;
    }
    let Some(fixture) = Fixture::mounted(64 * MIB) else {
        return;
    };
    let path = fixture.path("f");
    fs::write(&path, vec![9; 100_000]).unwrap();
    let python = format!(
        "import os, mmap, errno\n\
         p = {path:?}\n\
         os.setxattr(p, 'user.a', b'1'); os.setxattr(p, 'user.b', b'22')\n\
         assert os.listxattr(p) == ['user.a', 'user.b'], os.listxattr(p)\n\
         assert os.getxattr(p, 'user.b') == b'22'\n\
         os.removexattr(p, 'user.a'); assert os.listxattr(p) == ['user.b']\n\
         def fails(number, call):\n\
         \x20   try: call()\n\
         \x20   except OSError as e: assert e.errno == number, e\n\
         \x20   else: raise AssertionError('no error')\n\
         fails(errno.ENODATA, lambda: os.getxattr(p, 'user.a'))\n\
         fails(errno.EEXIST, lambda: os.setxattr(p, 'user.b', b'', os.XATTR_CREATE))\n\
         fails(errno.EOPNOTSUPP, lambda: os.setxattr(p, 'trusted.a', b''))\n\
         r = open(p, 'rb'); m = mmap.mmap(r.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)\n\
         assert m[:] == b'\\x09' * 100000\n\
         w = open(p, 'r+b')\n\
         fails(errno.ENODEV, lambda: mmap.mmap(w.fileno(), 0))\n\
         s = os.statvfs(p); assert 0 < s.f_bavail < s.f_blocks and s.f_namemax == 255\n"
    );
    run("python3", ["-c", &python]);
}

#[test]
fn what_was_synced_survives_the_death_of_the_mount() {
    let Some(mut fixture) = Fixture::mounted(256 * MIB) else {
        return;
    };
    let synced = fixture.path("synced");
    let mut file = File::create(&synced).unwrap();
    for data_only in [false, true] {
        file.write_all(&[5; 3000]).unwrap();
        if data_only {
            file.sync_data().unwrap();
        } else {
            file.sync_all().unwrap();
        }
    }
    let mut copy = Command::new("cp")
        .args(["-a", "/usr/share"])
        .arg(fixture.path("copy"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(400));
    let mut server = fixture.server.take().unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    copy.kill().unwrap();
    copy.wait().unwrap();
    drop(file);
    let again = refused(
        32,
        &[fixture.image().as_os_str(), fixture.dir().as_os_str()],
    );
    assert!(again.contains("umount it first"), "{again}");
    run("umount", ["-l".as_ref(), fixture.dir().as_os_str()]);
    fixture.assert_clean();
    fixture.mount("rw");
    assert_eq!(fs::read(&synced).unwrap(), vec![5; 6000]);
    append(&synced).write_all(b"x").unwrap();
    fixture.umount();
    fixture.assert_clean();
}

#[test]
fn sigterm_unmounts_even_what_is_in_use() {
    let Some(mut fixture) = Fixture::mounted(64 * MIB) else {
        return;
    };
    let path = fixture.path("f");
    fs::write(&path, b"kept").unwrap();
    let held = File::open(&path).unwrap();
    let server = fixture.server.as_ref().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = fixture.server.take().unwrap().wait().unwrap();
    assert!(status.success(), "{status}: {}", fixture.log());
    drop(held);
    assert!(!path.exists());
    fixture.assert_clean();
    fixture.mount("ro");
    assert_eq!(fs::read(&path).unwrap(), b"kept");
}

#[test]
fn the_background_process_takes_over_before_the_command_returns() {
    let Some(fixture) = Fixture::new(64 * MIB) else {
        return;
    };
    // `output` waits until nobody holds the pipes: the process must have let go of them.
    let output = command()
        .args([fixture.image(), fixture.dir()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::write(fixture.path("f"), b"1").unwrap();
    let image = fixture.image();
    let line = refused(32, &[image.as_os_str(), fixture.root.path().as_os_str()]);
    assert!(line.contains("in use"), "{line}");
    run("umount", [fixture.dir()]);
    fixture.assert_clean();
}

#[test]
fn a_mount_that_cannot_be_is_one_line_and_the_documented_code() {
    let Some(fixture) = Fixture::new(64 * MIB) else {
        return;
    };
    let (image, dir) = (fixture.image(), fixture.dir());
    let (image, dir) = (image.as_os_str(), dir.as_os_str());
    let other = fixture.root.path().join("other");
    fs::write(&other, vec![1; 4 << 20]).unwrap();
    let missing = fixture.root.path().join("missing");
    let line = refused(32, &[other.as_os_str(), dir]);
    assert!(line.contains("not a LavaFS"), "{line}");
    let line = refused(32, &[missing.as_os_str(), dir]);
    assert!(line.contains("missing: No such file"), "{line}");
    let line = refused(32, &[image, missing.as_os_str()]);
    assert!(line.contains("missing: No such file"), "{line}");
    let line = refused(32, &[image, other.as_os_str()]);
    assert!(line.contains("other: not a directory"), "{line}");
    let line = refused(1, &["-o".as_ref(), "ro,wibble".as_ref(), image, dir]);
    assert!(line.contains("unknown option 'wibble'"), "{line}");
    refused(1, &[image]);
    refused(1, &["--wibble".as_ref(), image, dir]);
    fixture.assert_clean();
}

#[test]
fn unreadable_bytes_are_an_error_for_their_range_and_a_line_in_the_log() {
    let Some(mut fixture) = Fixture::mounted(64 * MIB) else {
        return;
    };
    let path = fixture.path("dir/victim");
    fs::create_dir(fixture.path("dir")).unwrap();
    fs::write(&path, vec![3; 8 << 20]).unwrap();
    fixture.umount();
    fixture.mount("ro");
    // The image loses what lies behind the middle of the file.
    let image = OpenOptions::new()
        .write(true)
        .open(fixture.image())
        .unwrap();
    let lost = {
        let text = fs::read(fixture.image()).unwrap();
        let first = text
            .windows(8192)
            .step_by(4096)
            .position(|w| w.iter().all(|&b| b == 3));
        first.unwrap() as u64 * 4096 + (4 << 20)
    };
    image.set_len(lost).unwrap();
    let file = File::open(&path).unwrap();
    let mut buf = vec![0; 4096];
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(buf, vec![3; 4096]);
    assert_eq!(errno(file.read_exact_at(&mut buf, 7 << 20)), libc::EIO);
    let log = fixture.log();
    assert!(
        log.contains("/dir/victim") && log.contains("offset="),
        "{log}"
    );
}
