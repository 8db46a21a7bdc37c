//! Running the built binaries.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test binary uses a part"
)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

/// How long what takes a moment may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A program of this package.
pub(crate) fn program(name: &str) -> Command {
    let path = match name {
        "lava" => env!("CARGO_BIN_EXE_lava"),
        "mkfs.lavafs" => env!("CARGO_BIN_EXE_mkfs-lavafs"),
        "fsck.lavafs" => env!("CARGO_BIN_EXE_fsck-lavafs"),
        "mount.lavafs" => env!("CARGO_BIN_EXE_mount-lavafs"),
        _ => panic!("there is no {name}"),
    };
    Command::new(path)
}

/// Runs a command line, split at spaces.
pub(crate) fn run(line: &str) -> Output {
    let mut words = line.split_whitespace();
    let mut command = program(words.next().unwrap());
    command.args(words).output().unwrap()
}

/// Runs a command line that must succeed and returns its standard output.
pub(crate) fn ok(line: &str) -> String {
    let output = run(line);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A fresh filesystem of `size` in `dir`.
pub(crate) fn image(dir: &Path, size: &str) -> PathBuf {
    let image = dir.join("test.img");
    ok(&format!("mkfs.lavafs --size {size} {}", image.display()));
    image
}

/// Waits until nobody has the image: a process that was killed is gone before the kernel has taken down its
/// rings, which hold the image and its lock, and the commands wait for that no longer than two seconds.
pub(crate) fn await_free(image: &Path) {
    let started = Instant::now();
    let mut file = File::open(image).unwrap();
    while let Err((still, error)) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        assert!(started.elapsed() < PATIENCE, "{}: {error}", image.display());
        file = still;
        std::thread::sleep(Duration::from_millis(5));
    }
}
