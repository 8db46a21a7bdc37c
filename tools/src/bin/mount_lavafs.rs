//! `mount.lavafs`: see [`lavatools::fuse`].

use std::process::ExitCode;

use lavatools::{cli, fuse, fuse::MountCommand};

fn main() -> ExitCode {
    let arguments = fuse::helper_arguments(std::env::args_os());
    cli::run_with(
        "mount.lavafs",
        fuse::USAGE,
        arguments,
        |mount: MountCommand| mount.run(),
    )
}
