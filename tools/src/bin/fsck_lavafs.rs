//! `fsck.lavafs`: see [`lavatools::fsck`].

use std::process::ExitCode;

use lavatools::{cli, fsck, fsck::Fsck};

fn main() -> ExitCode {
    cli::run("fsck.lavafs", fsck::USAGE, |fsck: Fsck| fsck.run())
}
