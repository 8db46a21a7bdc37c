//! `mount.lavafs`: a LavaFS as a directory of the kernel, through FUSE.
//!
//! - `options`: what `-o` says
//! - `daemon`: going into the background
//! - `session`: a mount from the device's claim to a clean device
//!
//! The requests themselves are served by [`lavafs::fuse`].
//!
//! Exit codes are mount(8)'s: 0 mounted, 1 wrong command line or not permitted, 2 a system error
//! (no FUSE, no process), 32 the mount failed.

mod daemon;
mod options;
mod session;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use self::daemon::Side;
use self::options::Options;
use self::session::Session;
use crate::cli::{Context, Failure, Outcome};

/// Exit code: wrong command line, or not permitted.
pub const USAGE: u8 = 1;
/// Exit code: the system lacks what a mount needs.
pub const SYSTEM: u8 = 2;
/// Exit code: the mount failed.
pub const FAILURE: u8 = 32;

/// Mount a LavaFS filesystem through FUSE
///
/// `umount DIR` ends the mount; so do SIGTERM and SIGINT to its process. Programs can read, create,
/// append, rename and remove; overwriting in place fails with "operation not supported".
///
/// With -o ro a device that another process has mounted is shown as a moving view: its type in the
/// table of mounts is fuse.lavafs-view, and the extended attribute user.lavafs.view of DIR names the owner.
///
/// Options: ro, rw; sizefree (fdatasync makes bytes durable but not the size); commit=SECONDS
/// (what nobody synced is made durable that often, default 5, 0 for never); readahead=SIZE (most bytes of
/// one read ahead, default 1M, 0 for none); write_behind=SIZE (most bytes of appended data that the device
/// may be writing while programs go on, default 4M, 0 for none); allow_other,
/// allow_root, default_permissions (the first two imply it); [no]dev, [no]suid, [no]exec, sync,
/// async; take_over (from another machine that did not unmount); log=FILE (of the background
/// process, default syslog); fsname=NAME; and what fstab needs.
///
/// Exit code 0: mounted; 1: wrong command line or not permitted; 2: system error; 32: failed.
#[derive(Debug, Parser)]
#[command(name = "mount.lavafs", version)]
pub struct MountCommand {
    /// Stay in the foreground and log to standard error
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Options, separated by commas
    #[arg(short = 'o', value_name = "OPTION,...", action = clap::ArgAction::Append)]
    options: Vec<String>,
    /// Pass over unknown options
    #[arg(short = 's')]
    sloppy: bool,
    /// Say what was mounted
    #[arg(short = 'v', long)]
    verbose: bool,
    /// Write no mtab (none is ever written)
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Type of the filesystem; only lavafs
    #[arg(short = 't', value_name = "TYPE", value_parser = ["lavafs", "fuse.lavafs"])]
    kind: Option<String>,
    /// Block device or image file
    device: PathBuf,
    /// Directory to mount it on
    dir: PathBuf,
}

impl MountCommand {
    /// Mounts. In the foreground, and in the background process, returns when the filesystem has
    /// been unmounted.
    pub fn run(&self) -> Outcome {
        let options = Options::parse(&self.options, self.sloppy)
            .map_err(|what| Failure::new(what).with_code(USAGE))?;
        let device = absolute(&self.device)?;
        let dir = absolute(&self.dir)?;
        // A mount whose process has died, for one, is there and yet says nothing of itself.
        let what = match dir.metadata() {
            Ok(metadata) if metadata.is_dir() => None,
            Ok(_) => Some("not a directory".to_owned()),
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
                Some("a mount whose process has died; umount it first".to_owned())
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(what) = what {
            let what = format!("{}: {what}", self.dir.display());
            return Err(Failure::new(what).with_code(FAILURE));
        }
        if self.foreground {
            let session = Session::start(&device, &dir, &options)?;
            self.announce(&device, &dir);
            return session.serve();
        }
        let side = daemon::start(SYSTEM)
            .context(|| "starting a process")
            .map_err(|failure| failure.with_code(SYSTEM))?;
        match side {
            Side::Parent(Ok(())) => Ok(ExitCode::SUCCESS),
            Side::Parent(Err(code)) => Ok(ExitCode::from(code)),
            Side::Child(reporter) => {
                let session = Session::start(&device, &dir, &options)?;
                self.announce(&device, &dir);
                if let Err(error) = reporter.ready(options.log.as_deref()) {
                    session.stop();
                    session.serve()?;
                    let failure = Failure::new(format!("going into the background: {error}"));
                    return Err(failure.with_code(SYSTEM));
                }
                session.serve()
            }
        }
    }

    fn announce(&self, device: &Path, dir: &Path) {
        if self.verbose {
            eprintln!(
                "mount.lavafs: {} mounted on {}",
                device.display(),
                dir.display()
            );
        }
    }
}

/// The path as it is from everywhere.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize()
        .context(|| path.display())
        .map_err(|failure| failure.with_code(FAILURE))
}
