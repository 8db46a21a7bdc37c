//! A mount from its first request to its end.
//!
//! Threads: those of fuser, which serve requests; one that commits what nobody synced; those of
//! `behind`, which write what was answered already. A mount ends by `umount DIR`, by
//! [`FuseMount::unmount`], or with a lost connection. What is open is closed then; the filesystem
//! stays mounted in this process, for its owner to go on or to unmount it.

use std::fs;
use std::io;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use nix::errno::Errno;
use nix::mount::MntFlags;

use super::kernel::Kernel;
use super::ops::Mount;
use crate::error::{Error, Result};
use crate::fs::LavaFs;

/// Least and most threads that serve requests; between them, two for each processor.
const THREADS: (usize, usize) = (4, 16);

/// The kernel's readahead in bytes: several requests, so that the device has more than one to do.
const READ_AHEAD_LEN: usize = 4 << 20;

/// How a filesystem is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FuseOptions {
    /// Accept no change through the mount. Default false; always so where the filesystem itself is
    /// mounted read-only.
    pub read_only: bool,
    /// The filesystem changes otherwise than through this mount too: its owner goes on writing, in
    /// this process or another. The kernel then asks again instead of relying on its caches, and the
    /// mount is marked as a moving view. Default false.
    pub live: bool,
    /// fdatasync has its native meaning: bytes durable, the size not journaled. Default false.
    pub size_free: bool,
    /// How often changes that nobody synced are made durable; `None` for never. Default 5 s.
    pub commit: Option<Duration>,
    /// Who may use the mount. Default: its owner.
    pub access: SessionACL,
    /// The kernel checks permission bits; always so where others may use the mount. Default false.
    pub permissions: bool,
    /// The name of the source in the table of mounts. Default `lavafs`.
    pub source: String,
    /// Further options for the kernel, such as `NoExec`.
    pub kernel: Vec<MountOption>,
}

impl Default for FuseOptions {
    fn default() -> Self {
        FuseOptions {
            read_only: false,
            live: false,
            size_free: false,
            commit: Some(Duration::from_secs(5)),
            access: SessionACL::Owner,
            permissions: false,
            source: "lavafs".to_owned(),
            kernel: Vec::new(),
        }
    }
}

impl FuseOptions {
    /// For looking inside while the owner of the filesystem goes on: read-only and live.
    pub fn inspection() -> Self {
        FuseOptions {
            read_only: true,
            live: true,
            commit: None,
            ..FuseOptions::default()
        }
    }

    fn config(&self, read_only: bool) -> Config {
        let mut config = Config::default();
        config.mount_options = self.kernel.clone();
        let options = &mut config.mount_options;
        options.push(MountOption::FSName(self.source.clone()));
        let kind = if self.live { "lavafs-view" } else { "lavafs" };
        options.push(MountOption::CUSTOM(format!("subtype={kind}")));
        if read_only {
            options.push(MountOption::RO);
        }
        // Users whom the owner lets in must meet the permission bits.
        if self.permissions || self.access != SessionACL::Owner {
            options.push(MountOption::DefaultPermissions);
        }
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        config.acl = self.access;
        config.n_threads = Some((2 * processors).clamp(THREADS.0, THREADS.1));
        config.clone_fd = true;
        config
    }
}

/// A filesystem on a directory. Dropping it unmounts; [`FuseMount::wait`] serves until somebody else
/// does.
#[derive(Debug)]
pub struct FuseMount {
    dir: PathBuf,
    mount: Arc<Mount>,
    fuse: Option<BackgroundSession>,
    committer: Option<Committer>,
}

/// The thread that commits. It ends when the sender is dropped.
#[derive(Debug)]
struct Committer {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl LavaFs {
    /// Mounts this filesystem on `dir`, through FUSE; requests are served by threads of this process
    /// from here on. The caller goes on using the filesystem, and must say so with
    /// [`FuseOptions::live`]; files that the mount has open count as open for
    /// [`LavaFs::unmount`].
    ///
    /// # Errors
    /// `Io` where the kernel refuses the mount: no /dev/fuse, no permission, no such directory.
    pub fn mount_on(&self, dir: &Path, options: &FuseOptions) -> Result<FuseMount> {
        let failed = |error: io::Error| Error::io("mount on", &dir.display().to_string(), 0, error);
        let dir_path = dir.canonicalize().map_err(failed)?;
        let read_only = options.read_only || self.core.view.is_some();
        let mount = Mount::new(self.clone(), options.size_free)
            .read_only(read_only)
            .live(options.live);
        let mount = Arc::new(mount);
        mount.start_writers().map_err(failed)?;
        let kernel = Kernel(mount.clone());
        let fuse = fuser::Session::new(kernel, &dir_path, &options.config(read_only))
            .and_then(fuser::Session::spawn)
            .map_err(failed)?;
        read_ahead(&dir_path);
        let committer = match options.commit.filter(|_| !read_only) {
            Some(interval) => Some(Committer::start(&mount, interval).map_err(failed)?),
            None => None,
        };
        Ok(FuseMount {
            dir: dir_path,
            mount,
            fuse: Some(fuse),
            committer,
        })
    }
}

impl FuseMount {
    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until the mount ends, and closes what is open.
    ///
    /// # Errors
    /// `Io` where the connection to the kernel failed.
    pub fn wait(mut self) -> Result<()> {
        self.join()
    }

    /// Ends the mount. Programs that still have files open in it get errors.
    ///
    /// # Errors
    /// As [`FuseMount::wait`], and where the kernel refuses.
    pub fn unmount(mut self) -> Result<()> {
        detach(&self.dir)
            .map_err(|error| Error::io("unmount", &self.dir.display().to_string(), 0, error))?;
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        let Some(fuse) = self.fuse.take() else {
            return Ok(());
        };
        let served = fuse.join();
        if let Some(Committer { stop, thread }) = self.committer.take() {
            drop(stop);
            if thread.join().is_err() {
                tracing::error!("the committing thread panicked");
            }
        }
        self.mount.close_all();
        served.map_err(|error| Error::io("serve", &self.dir.display().to_string(), 0, error))
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        if self.fuse.is_none() {
            return;
        }
        let ended = match detach(&self.dir) {
            Ok(()) => self.join().map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = ended {
            tracing::error!(error, dir = %self.dir.display(), "unmounting failed");
        }
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

/// Unmounts `dir`. What is in use is detached, and programs that still have files open get errors.
///
/// # Errors
/// What the kernel says; EPERM where neither it nor fusermount3 lets the caller.
pub fn detach(dir: &Path) -> io::Result<()> {
    match nix::mount::umount(dir) {
        Err(Errno::EBUSY) => {
            nix::mount::umount2(dir, MntFlags::MNT_DETACH | MntFlags::MNT_FORCE)?;
        }
        // Not root: the set-user-id helper may.
        Err(Errno::EPERM) => {
            let status = Command::new("fusermount3")
                .args(["-u", "-z", "--"])
                .arg(dir)
                .status()?;
            if !status.success() {
                return Err(Errno::EPERM.into());
            }
        }
        outcome => outcome?,
    }
    Ok(())
}

/// Raises the kernel's readahead for this mount from its default of 128 KiB. Only root may; without
/// it sequential reads are slower and nothing else.
fn read_ahead(dir: &Path) {
    let Ok(dev) = fs::metadata(dir).map(|stat| stat.st_dev()) else {
        return;
    };
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&path, (READ_AHEAD_LEN >> 10).to_string()) {
        tracing::debug!(path, %error, "readahead stays as it is");
    }
}
