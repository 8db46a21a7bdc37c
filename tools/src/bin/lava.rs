//! `lava`: see [`lavatools::lava`].

use std::process::ExitCode;

use lavatools::{cli, lava::Lava};

fn main() -> ExitCode {
    cli::run("lava", 2, |lava: Lava| lava.run())
}
