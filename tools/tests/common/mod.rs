//! Running the built binaries.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test binary uses a part"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
