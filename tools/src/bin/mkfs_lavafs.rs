//! `mkfs.lavafs`: see [`lavatools::mkfs`].

use std::process::ExitCode;

use lavatools::{cli, mkfs::Mkfs};

fn main() -> ExitCode {
    cli::run("mkfs.lavafs", 2, |mkfs: Mkfs| mkfs.run())
}
