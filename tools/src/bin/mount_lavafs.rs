//! `mount.lavafs`: see [`lavatools::fuse`].

use std::process::ExitCode;

use lavatools::{cli, fuse, fuse::MountCommand};

fn main() -> ExitCode {
    cli::run("mount.lavafs", fuse::USAGE, |mount: MountCommand| {
        mount.run()
    })
}
