//! Who holds a device or image that cannot be claimed, as far as the system tells.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The holder's name where the system does not tell.
pub(super) const UNKNOWN: &str = "another process";

/// A name for the holder of the block device or image `path`.
pub(super) fn find(path: &Path) -> String {
    let Ok(stat) = fs::metadata(path) else {
        return UNKNOWN.to_owned();
    };
    mount_point(stat.rdev())
        .or_else(|| open_by(stat.rdev(), stat.dev(), stat.ino()))
        .unwrap_or_else(|| UNKNOWN.to_owned())
}

/// Where the device number `rdev` is mounted.
fn mount_point(rdev: u64) -> Option<String> {
    if rdev == 0 {
        return None;
    }
    let device = format!("{}:{}", libc::major(rdev), libc::minor(rdev));
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut fields = mounts.lines().map(|line| line.split(' '));
    let mut mount = fields.find(|line| line.clone().nth(2) == Some(&device))?;
    Some(format!("a filesystem mounted at {}", mount.nth(4)?))
}

/// A process that has the file open; only the caller's own are visible without privileges.
fn open_by(rdev: u64, dev: u64, ino: u64) -> Option<String> {
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(open) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = open.flatten().any(|fd| {
            fs::metadata(fd.path()).is_ok_and(|stat| {
                if rdev == 0 {
                    (stat.dev(), stat.ino()) == (dev, ino)
                } else {
                    stat.rdev() == rdev
                }
            })
        });
        if holds {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("process {pid} ({})", command.trim()));
        }
    }
    None
}
