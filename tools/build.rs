//! Gives the mount(8)-style binaries their dotted names.
//!
//! Linux looks for `mkfs.TYPE`, `fsck.TYPE` and `mount.TYPE`, but Cargo refuses a dot in the name
//! of a binary ("invalid character `.` in crate name"). So the targets are called `mkfs-lavafs`
//! and `fsck-lavafs`, and this script puts relative symbolic links with the dotted
//! names beside them, in the profile directory that Cargo will link them into. The links may
//! dangle until the binaries are linked. Only this file's change repeats the script.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR"));
    // OUT_DIR is <target>/<profile>/build/<package>-<hash>/out.
    let profile = out
        .ancestors()
        .nth(3)
        .expect("OUT_DIR lies three levels below the profile directory");
    for tool in ["mkfs", "fsck", "mount"] {
        link(
            &format!("{tool}-lavafs"),
            &profile.join(format!("{tool}.lavafs")),
        )?;
    }
    Ok(())
}

/// Makes `link` point at `target`, replacing what an earlier build left there.
fn link(target: &str, link: &Path) -> io::Result<()> {
    if fs::read_link(link).is_ok_and(|present| present == Path::new(target)) {
        return Ok(());
    }
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(target, link)
}
