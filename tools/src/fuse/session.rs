//! `mount.lavafs` from the device's claim to a clean device.
//!
//! The caller's thread waits for the mount to end, which `umount DIR`, a signal or a lost connection
//! brings about, then unmounts the filesystem. One thread waits for signals; those that serve are
//! lavafs's own.
//!
//! A panic in any thread ends the process at once, as a crash would: what was synced is recovered
//! by the next mount, and nothing is written by code whose assumptions have failed.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lavafs::device::{self, BlockDevice, OpenMode};
use lavafs::fuse::{FuseMount, detach};
use lavafs::{Error, LavaFs};
use nix::sys::signal::{SigSet, Signal};

use super::options::Options;
use super::{FAILURE, SYSTEM, USAGE};
use crate::cli::{Failure, Outcome};

/// How long a device in use is waited for: `umount` returns before the process that owned the
/// device has finished.
const OWNER_GRACE: Duration = Duration::from_secs(2);

/// How often it is looked at meanwhile.
const OWNER_POLL: Duration = Duration::from_millis(20);

/// A mount that serves requests.
#[derive(Debug)]
pub(super) struct Session {
    fs: LavaFs,
    fuse: FuseMount,
}

impl Session {
    /// Mounts `device` on `dir`; requests are served from here on.
    pub(super) fn start(device: &Path, dir: &Path, options: &Options) -> Result<Session, Failure> {
        // Before any thread starts, so that all of them leave the signals to the one that waits.
        let signals = termination_signals();
        signals.thread_block().map_err(|error| system(&error))?;
        end_process_on_panic();
        let (fs, live) = mount_device(device, options)?;
        let serving = options.serving(&device.display().to_string(), live);
        let fuse = match fs.mount_on(dir, &serving) {
            Ok(fuse) => fuse,
            Err(error) => {
                if let Err(error) = fs.unmount() {
                    tracing::error!(%error, "the filesystem was not left clean");
                }
                return Err(fuse_failure(dir, &error));
            }
        };
        wait_for_signals(signals, dir.to_path_buf()).map_err(|error| system(&error))?;
        Ok(Session { fs, fuse })
    }

    /// Ends the mount.
    pub(super) fn stop(&self) {
        unmount(self.fuse.dir());
    }

    /// Waits for the end of the mount and leaves the device clean.
    pub(super) fn serve(self) -> Outcome {
        let served = self.fuse.wait();
        let unmounted = self.fs.unmount();
        served.map_err(|error| Failure::new(error.to_string()))?;
        unmounted.map_err(|error| Failure::new(error.to_string()).with_code(FAILURE))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn wait_for_signals(signals: SigSet, dir: PathBuf) -> io::Result<()> {
    let wait = move || {
        while let Ok(signal) = signals.wait() {
            tracing::info!(%signal, "unmounting");
            unmount(&dir);
        }
    };
    // Ends with the process.
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)?;
    Ok(())
}

fn unmount(dir: &Path) {
    if let Err(error) = detach(dir) {
        tracing::error!(%error, dir = %dir.display(), "unmounting failed");
    }
}

fn termination_signals() -> SigSet {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals
}

fn end_process_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// Opens and mounts the filesystem; true where it is a moving view of one that another process owns.
/// A process that has struck its name from the device is about to leave it, and is waited for.
fn mount_device(path: &Path, options: &Options) -> Result<(LavaFs, bool), Failure> {
    let mount_options = options.mounting();
    let deadline = Instant::now() + OWNER_GRACE;
    let (fs, owned_elsewhere) = loop {
        let (device, owned_elsewhere) =
            claim(path, options.read_only).map_err(|error| mount_failure(&error))?;
        let fs = LavaFs::mount(device, &mount_options).map_err(|error| mount_failure(&error))?;
        let leaving = owned_elsewhere && matches!(fs.owner(), Ok(None));
        if !leaving || Instant::now() >= deadline {
            break (fs, owned_elsewhere);
        }
        drop(fs);
        std::thread::sleep(OWNER_POLL);
    };
    if owned_elsewhere {
        let owner = match fs.owner() {
            Ok(Some(owner)) => owner.to_string(),
            _ => "another process".to_owned(),
        };
        eprintln!(
            "mount.lavafs: {} belongs to {owner}; this is a moving view",
            path.display()
        );
    }
    Ok((fs, owned_elsewhere))
}

/// Claims the device, for reading too: nobody can then change it. One that cannot be written at all
/// is opened without a claim; so is, for reading, one that another process owns, and `true` returned. One
/// that is to be written and that another process is about to leave is waited for.
fn claim(path: &Path, read_only: bool) -> lavafs::Result<(Arc<dyn BlockDevice>, bool)> {
    let deadline = Instant::now() + OWNER_GRACE;
    loop {
        match device::open(path, OpenMode::ReadWrite) {
            Ok(device) => return Ok((device, false)),
            Err(error) if read_only && cannot_be_written(&error) => {
                return Ok((device::open(path, OpenMode::ReadOnly)?, false));
            }
            Err(Error::InUse { .. }) if read_only => {
                return Ok((device::open(path, OpenMode::ReadOnly)?, true));
            }
            Err(Error::InUse { .. }) if Instant::now() < deadline => {
                std::thread::sleep(OWNER_POLL);
            }
            Err(error) => return Err(error),
        }
    }
}

fn cannot_be_written(error: &Error) -> bool {
    match error {
        Error::ReadOnly { .. } => true,
        Error::Io { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
        _ => false,
    }
}

fn mount_failure(error: &Error) -> Failure {
    let code = match error {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => USAGE,
        _ => FAILURE,
    };
    Failure::new(error.to_string()).with_code(code)
}

fn system(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(error.to_string()).with_code(SYSTEM)
}

/// Why FUSE did not take the mount.
fn fuse_failure(dir: &Path, error: &Error) -> Failure {
    if !Path::new("/dev/fuse").exists() {
        return Failure::new("/dev/fuse is missing: the kernel has no FUSE").with_code(SYSTEM);
    }
    let (code, text) = match error {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            if let Some(failure) = what_a_user_lacks() {
                return failure;
            }
            (USAGE, source.to_string())
        }
        Error::Io { source, .. } => (FAILURE, source.to_string()),
        other => (FAILURE, other.to_string()),
    };
    let text = text.trim().replace('\n', "; ");
    Failure::new(format!("{}: {text}", dir.display())).with_code(code)
}

/// Why somebody who is not root may not mount, where it is not the directory.
fn what_a_user_lacks() -> Option<Failure> {
    if nix::unistd::geteuid().is_root() {
        return None;
    }
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    if let Err(error) = opened {
        return Some(Failure::new(format!("/dev/fuse: {error}")).with_code(USAGE));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join("fusermount3").is_file()) {
        return None;
    }
    let text = "without fusermount3 (package fuse3) only root may mount";
    Some(Failure::new(text).with_code(SYSTEM))
}
