//! A mount from its first request to a clean device.
//!
//! Threads: those of fuser, which serve requests; one that waits for signals; one that commits what
//! nobody synced. The caller's thread waits for the session to end, which `umount DIR`, a signal
//! or a lost connection brings about, then closes what is open and unmounts.
//!
//! A panic in any thread ends the process at once, as a crash would: what was synced is recovered
//! by the next mount, and nothing is written by code whose assumptions have failed.

use std::fs;
use std::io;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::BackgroundSession;
use lavafs::device::{self, BlockDevice, OpenMode};
use lavafs::{Error, LavaFs, MountOptions};
use nix::errno::Errno;
use nix::mount::MntFlags;
use nix::sys::signal::{SigSet, Signal};

use super::kernel::Kernel;
use super::ops::{Mount, REQUEST_LEN_MAX};
use super::options::Options;
use super::{FAILURE, SYSTEM, USAGE};
use crate::cli::{Failure, Outcome};

/// How long a device in use is waited for: `umount` returns before the process that owned the
/// device has finished.
const OWNER_GRACE: Duration = Duration::from_secs(2);

/// Least and most threads that serve requests; between them, two for each processor.
const THREADS: (usize, usize) = (4, 16);

/// A mount that serves requests.
#[derive(Debug)]
pub(super) struct Session {
    dir: PathBuf,
    mount: Arc<Mount>,
    fuse: BackgroundSession,
    committer: Option<Committer>,
}

/// The thread that commits. It ends when the sender is dropped.
#[derive(Debug)]
struct Committer {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Session {
    /// Mounts `device` on `dir`; requests are served from here on.
    pub(super) fn start(device: &Path, dir: &Path, options: &Options) -> Result<Session, Failure> {
        // Before any thread starts, so that all of them leave the signals to the one that waits.
        let signals = termination_signals();
        signals.thread_block().map_err(|error| system(&error))?;
        end_process_on_panic();
        let fs = mount_device(device, options)?;
        let mount = Arc::new(Mount::new(fs.clone(), options.size_free));
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = (2 * threads).clamp(THREADS.0, THREADS.1);
        let config = options.session(&device.display().to_string(), threads);
        let started = fuser::Session::new(Kernel(mount.clone()), dir, &config)
            .and_then(fuser::Session::spawn);
        let fuse = match started {
            Ok(fuse) => fuse,
            Err(error) => {
                drop(mount);
                if let Err(error) = fs.unmount() {
                    tracing::error!(%error, "the filesystem was not left clean");
                }
                return Err(fuse_failure(dir, &error));
            }
        };
        read_ahead(dir);
        let committer = match options.commit.filter(|_| !options.read_only) {
            Some(interval) => Some(Committer::start(&mount, interval).map_err(|e| system(&e))?),
            None => None,
        };
        let session = Session {
            dir: dir.to_path_buf(),
            mount,
            fuse,
            committer,
        };
        session.wait_for_signals(signals).map_err(|e| system(&e))?;
        Ok(session)
    }

    fn wait_for_signals(&self, signals: SigSet) -> io::Result<()> {
        let dir = self.dir.clone();
        let wait = move || {
            while let Ok(signal) = signals.wait() {
                tracing::info!(%signal, "unmounting");
                detach(&dir);
            }
        };
        // Ends with the process.
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(wait)?;
        Ok(())
    }

    /// Ends the mount.
    pub(super) fn stop(&self) {
        detach(&self.dir);
    }

    /// Waits for the end of the mount and leaves the device clean.
    pub(super) fn serve(self) -> Outcome {
        let Session {
            mount,
            fuse,
            committer,
            ..
        } = self;
        let served = fuse.join();
        if let Some(Committer { stop, thread }) = committer {
            drop(stop);
            if thread.join().is_err() {
                tracing::error!("the committing thread panicked");
            }
        }
        mount.files.close_all();
        let unmounted = mount.fs.clone().unmount();
        served.map_err(|error| Failure::new(format!("serving the kernel: {error}")))?;
        unmounted.map_err(|error| Failure::new(error.to_string()).with_code(FAILURE))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Committer {
    fn start(mount: &Arc<Mount>, interval: Duration) -> io::Result<Committer> {
        let (stop, stopped) = channel();
        let mount = mount.clone();
        let thread = std::thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || commit_regularly(&mount, interval, &stopped))?;
        Ok(Committer { stop, thread })
    }
}

/// Bounds what a crash takes from programs that never sync. An idle filesystem writes nothing.
fn commit_regularly(mount: &Mount, interval: Duration, stopped: &Receiver<()>) {
    while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        match mount.commit(true) {
            Ok(()) => {}
            Err(Error::ReadOnly { reason }) => {
                tracing::error!(%reason, "the filesystem has become read-only");
                return;
            }
            Err(error) => tracing::error!(%error, "changes could not be made durable"),
        }
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

/// Opens and mounts the filesystem. A device that another process is about to leave is waited for.
fn mount_device(path: &Path, options: &Options) -> Result<LavaFs, Failure> {
    let deadline = Instant::now() + OWNER_GRACE;
    let device = loop {
        match open_device(path, options.read_only) {
            Err(Error::InUse { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(device) => break device,
            Err(error) => return Err(mount_failure(&error)),
        }
    };
    let mount_options = MountOptions {
        read_only: options.read_only,
        take_over: options.take_over,
        ..MountOptions::default()
    };
    LavaFs::mount(device, &mount_options).map_err(|error| mount_failure(&error))
}

/// Claims the device, for reading too: what is served would be wrong if somebody else wrote to it.
/// Only one that cannot be written at all is opened without a claim.
fn open_device(path: &Path, read_only: bool) -> lavafs::Result<Arc<dyn BlockDevice>> {
    match device::open(path, OpenMode::ReadWrite) {
        Err(error) if read_only && cannot_be_written(&error) => {
            device::open(path, OpenMode::ReadOnly)
        }
        opened => opened,
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
fn fuse_failure(dir: &Path, error: &io::Error) -> Failure {
    if !Path::new("/dev/fuse").exists() {
        return Failure::new("/dev/fuse is missing: the kernel has no FUSE").with_code(SYSTEM);
    }
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => USAGE,
        _ => FAILURE,
    };
    let text = error.to_string();
    let text = text.trim().replace('\n', "; ");
    Failure::new(format!("{}: {text}", dir.display())).with_code(code)
}

/// Unmounts. What is in use is detached, and programs that still have files open get errors.
fn detach(dir: &Path) {
    let outcome = match nix::mount::umount(dir) {
        Err(Errno::EBUSY) => nix::mount::umount2(dir, MntFlags::MNT_DETACH | MntFlags::MNT_FORCE),
        // Not root: the set-user-id helper may.
        Err(Errno::EPERM) => {
            let status = Command::new("fusermount3")
                .args(["-u", "-z", "--"])
                .arg(dir)
                .status();
            match status {
                Ok(status) if status.success() => Ok(()),
                _ => Err(Errno::EPERM),
            }
        }
        outcome => outcome,
    };
    if let Err(error) = outcome {
        tracing::error!(%error, dir = %dir.display(), "unmounting failed");
    }
}

/// Raises the kernel's readahead for this mount from its default of 128 KiB to one request. Only
/// root may; without it sequential reads are slower and nothing else.
fn read_ahead(dir: &Path) {
    let Ok(dev) = fs::metadata(dir).map(|stat| stat.st_dev()) else {
        return;
    };
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&path, (REQUEST_LEN_MAX >> 10).to_string()) {
        tracing::debug!(path, %error, "readahead stays as it is");
    }
}
