//! Failures are one clear line on stderr and a non-zero exit code, and change nothing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{PATIENCE, await_free, image, ok, program, run};

/// Runs a command line that must fail with `code`, with one line on stderr that holds each of
/// `parts`.
fn fails(line: &str, code: i32, parts: &[&str]) {
    let output = run(line);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{line}: {message}");
    assert_eq!(message.lines().count(), 1, "{line}: {message}");
    for part in parts {
        assert!(message.contains(part), "{line}: {message} lacks {part}");
    }
}

#[test]
fn a_missing_device_is_named() {
    fails(
        "lava fs df --fs /no/such/device",
        1,
        &["/no/such/device", "no such file"],
    );
    fails("mkfs.lavafs /no/such/device", 1, &["/no/such/device"]);
    fails("fsck.lavafs -n /no/such/device", 8, &["/no/such/device"]);
    fails(
        "mount.lavafs /no/such/device /mnt",
        32,
        &["/no/such/device"],
    );
}

#[test]
fn a_device_that_is_too_small_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.img");
    fails(
        &format!("mkfs.lavafs --size 64K {}", path.display()),
        1,
        &["small.img"],
    );
    assert!(!path.exists(), "what the command made is removed again");
}

#[test]
fn what_is_no_lavafs_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zeros.img");
    fs::write(&path, vec![0; 4 << 20]).unwrap();
    let path = path.display();
    fails(&format!("lava fs ls --fs {path}"), 1, &["not a LavaFS"]);
    fails(&format!("fsck.lavafs -n {path}"), 8, &["not a LavaFS"]);
}

#[test]
fn an_existing_filesystem_is_kept_without_f() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "16M");
    let path = path.display();
    ok(&format!("lava fs mkdir --fs {path} /keep"));
    fails(&format!("mkfs.lavafs {path}"), 1, &["-f"]);
    fails(&format!("mkfs.lavafs --size 16M {path}"), 1, &["-f"]);
    fails(
        &format!("lava demo --image {path} --data /usr/share/zoneinfo"),
        1,
        &["-f"],
    );
    assert!(ok(&format!("lava fs ls --fs {path}")).contains("/keep"));
    ok(&format!("mkfs.lavafs -n -f {path}"));
    assert!(
        ok(&format!("lava fs ls --fs {path}")).contains("/keep"),
        "-n writes nothing"
    );
    ok(&format!("mkfs.lavafs -f {path}"));
    assert_eq!(ok(&format!("lava fs ls --fs {path}")), "");
}

#[test]
fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "16M");
    // The copies of the superblock are in blocks 0, 1, the middle and the last (fs/FORMAT.md).
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut block = vec![0; 512];
    file.read_exact_at(&mut block, 0).unwrap();
    let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
    let copies = [0, 1, word(120), word(112) - 1];
    block[160] |= 0x80;
    let crc = crc32c::crc32c(&block[12..512]);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
    for copy in copies {
        file.write_all_at(&block, copy * 4096).unwrap();
    }
    drop(file);
    let path = path.display();
    fails(&format!("lava fs ls --fs {path}"), 1, &["not supported"]);
    fails(&format!("fsck.lavafs -n {path}"), 8, &["not supported"]);
    fails(&format!("mkfs.lavafs {path}"), 1, &["-f"]);
}

/// True where the process has the file open and locked.
fn holds(process: u32, file: &Path) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return false;
    };
    let locked = |number: &std::ffi::OsStr| {
        let info = format!("/proc/{process}/fdinfo/{}", number.display());
        fs::read_to_string(info).is_ok_and(|info| info.contains("\nlock:"))
    };
    entries.flatten().any(|entry| {
        fs::read_link(entry.path()).is_ok_and(|target| target == file) && locked(&entry.file_name())
    })
}

#[test]
fn a_device_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "64M").display().to_string();
    let mut owner = program("lava")
        .args(["bench", "fs", "--workload", "randread", "--file-size", "1M"])
        .args(["--runtime", "600", "--fs", &path])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Not before the owner has the device, or it would be the one refused.
    let started = Instant::now();
    while !holds(owner.id(), path.as_ref()) {
        assert!(started.elapsed() < PATIENCE, "never opened");
        std::thread::sleep(Duration::from_millis(10));
    }
    let refused = run(&format!("lava fs mkdir --fs {path} /second"));
    assert!(!refused.status.success());
    let refused = String::from_utf8(refused.stderr).unwrap();
    let pid = owner.id().to_string();
    let formatted = run(&format!("mkfs.lavafs -f {path}"));
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(
        refused.contains("in use") && refused.contains(&pid),
        "{refused}"
    );
    assert_eq!(refused.lines().count(), 1, "{refused}");
    assert!(
        !formatted.status.success(),
        "not even -f takes a device away"
    );
    await_free(path.as_ref());
    ok(&format!("fsck.lavafs -n {path}"));
}

#[test]
fn a_full_image_is_told_and_stays_sound() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "8M");
    let large = dir.path().join("large");
    fs::write(&large, vec![7; 12 << 20]).unwrap();
    let (path, large) = (path.display(), large.display());
    fails(
        &format!("lava fs put --fs {path} {large} /large"),
        1,
        &["no space left"],
    );
    assert_eq!(
        ok(&format!("lava fs ls --fs {path}")),
        "",
        "half a copy is removed"
    );
    ok(&format!("fsck.lavafs -n {path}"));
    ok(&format!("lava fs put --fs {path} Cargo.toml /small"));
    assert_eq!(
        ok(&format!("lava fs cat --fs {path} /small")),
        fs::read_to_string("Cargo.toml").unwrap()
    );
}

#[test]
fn unreadable_inputs_are_named_counted_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("pairs.tsv");
    fs::write(&input, "a\t1\nno tab here\nb\\q\t2\nc\t3\n").unwrap();
    let line = format!(
        "lava kv load --json --fs host:{} --db /db {}",
        dir.path().display(),
        input.display()
    );
    let output = run(&line);
    let (out, err) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert_eq!(err.lines().count(), 2, "{err}");
    assert!(
        err.contains("pairs.tsv line 2") && err.contains("pairs.tsv line 3"),
        "{err}"
    );
    assert!(
        out.contains("\"pairs\":2") && out.contains("\"skipped\":2"),
        "{out}"
    );
}

#[test]
fn wrong_command_lines_have_their_codes() {
    fails("lava", 2, &["--help"]);
    fails("lava fs df", 2, &["--fs"]);
    fails("lava bench fs --fs x --workload append --bs 4X", 2, &["4X"]);
    fails(
        "lava bench kv --fs x --db /db --benchmarks nonsense",
        2,
        &["nonsense"],
    );
    fails("mkfs.lavafs", 2, &["DEVICE"]);
    fails("fsck.lavafs --nonsense x", 16, &["--nonsense"]);
    fails("mount.lavafs -o nonsense a b", 1, &["nonsense"]);
}

#[test]
fn a_missing_database_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().display();
    for command in ["verify", "stats", "compact", "dump"] {
        fails(
            &format!("lava kv {command} --fs host:{target} --db /none"),
            1,
            &["no database"],
        );
    }
    fails(
        &format!("lava log ls --fs host:{target} --log /none"),
        1,
        &["not found"],
    );
}

#[test]
fn a_directory_that_is_no_log_engine_is_told_and_not_made_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("foreign")).unwrap();
    let target = dir.path().display();
    for command in ["ls", "verify", "scan", "delete"] {
        let log = if command == "ls" || command == "verify" {
            ""
        } else {
            "a"
        };
        fails(
            &format!("lava log {command} --fs host:{target} --log /foreign {log}"),
            1,
            &["no log engine"],
        );
    }
    let left = fs::read_dir(dir.path().join("foreign")).unwrap().count();
    assert_eq!(left, 0, "nothing was made");
}

#[test]
fn no_record_is_appended_behind_the_last_lsn_of_all() {
    let dir = tempfile::tempdir().unwrap();
    let at = format!("--fs host:{} --log /log a", dir.path().display());
    ok(&format!("lava log create {at}"));
    ok(&format!("lava log append {at} one --lsn {}", u64::MAX));
    // Without an LSN it was the one after the last: 0.
    fails(&format!("lava log append {at} two"), 1, &["--lsn"]);
    let scanned = ok(&format!("lava log scan {at}"));
    assert_eq!(scanned.matches("bytes").count(), 1, "{scanned}");
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().display().to_string();
    ok(&format!("lava kv load --fs host:{target} --db /db src"));
    let mut dump = program("lava")
        .args(["kv", "dump", "--db", "/db", "--fs"])
        .arg(format!("host:{target}"))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(dump.stdout.take());
    let output = dump.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert!(output.stderr.is_empty(), "{output:?}");
}
