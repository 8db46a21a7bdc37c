//! `mount.lavafs`: a LavaFS as a directory of the kernel, through FUSE.
//!
//! Without `-f` the program starts itself again in the background and returns when that process
//! has mounted, or with its message. (Forking would lose the filesystem's threads.) The
//! background process owns the device until `umount DIR` ends its session, or SIGTERM or SIGINT;
//! it then writes everything and leaves the device clean.
//!
//! Exit codes are mount(8)'s: 0 mounted, 1 wrong command line, 32 mount failure.

mod errno;
mod handles;
mod ops;
mod options;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use fuser::{Config, MountOption, Session, SessionACL};
use lavafs::device::{self, BlockDevice, OpenMode};
use lavafs::{LavaFs, MountOptions};
use nix::sys::signal::{SigSet, Signal};

use self::ops::Mount;
use self::options::Options;
use crate::cli::{Context, Failure, Outcome};

/// Exit code: wrong command line.
pub const USAGE: u8 = 1;
/// Exit code: the mount failed.
pub const FAILURE: u8 = 32;

/// What the background process prints when it has mounted.
const READY: &str = "mounted";

/// How long a device that is in use is waited for: an `umount` returns before the process that
/// owned the device has finished.
const OWNER_GRACE: Duration = Duration::from_secs(2);

/// Threads that serve the kernel's requests.
const THREADS: usize = 4;

/// Mount a LavaFS filesystem through FUSE
///
/// `umount DIR` ends the mount. Files can be read, created and appended to; overwriting in place
/// fails with "operation not supported". Both fsync and fdatasync make bytes and size durable,
/// unless the option sizefree is given. Exit code 0: mounted; 1: wrong command line; 32: failed.
#[derive(Debug, Parser)]
#[command(name = "mount.lavafs", version)]
pub struct MountCommand {
    /// Stay in the foreground
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Options, separated by commas: ro, rw, sizefree (fdatasync does not journal the size),
    /// allow_other, and mount(8)'s dev, suid, exec and atime options
    #[arg(short = 'o', value_name = "OPTION,...", action = clap::ArgAction::Append)]
    options: Vec<String>,
    /// Detach from the terminal once mounted; the background process is started so
    #[arg(long, hide = true, requires = "foreground")]
    report_ready: bool,
    /// Block device or image file
    device: PathBuf,
    /// Directory to mount it on
    dir: PathBuf,
}

impl MountCommand {
    /// Mounts; in the foreground, returns when the filesystem is unmounted.
    pub fn run(&self) -> Outcome {
        let options = Options::parse(&self.options).map_err(|error| error.with_code(USAGE))?;
        let run = if self.foreground {
            self.serve(&options)
        } else {
            self.start_in_background()
        };
        run.map_err(|failure| failure.with_code(FAILURE))?;
        Ok(ExitCode::SUCCESS)
    }

    /// Starts this program again and waits until it has mounted or failed.
    fn start_in_background(&self) -> Outcome<()> {
        let absolute = |path: &Path| path.canonicalize().context(|| path.display());
        let program = std::env::current_exe().context(|| "finding this program")?;
        let mut command = Command::new(program);
        command.args(["-f", "--report-ready"]);
        for options in &self.options {
            command.args(["-o", options]);
        }
        command
            .arg(absolute(&self.device)?)
            .arg(absolute(&self.dir)?);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context(|| "starting in the background")?;
        let reports = child.stdout.take().expect("its standard output is a pipe");
        let mut report = String::new();
        BufReader::new(reports)
            .read_line(&mut report)
            .context(|| "waiting for the mount")?;
        let mut errors = child.stderr.take().expect("its standard error is a pipe");
        if report.trim_end() == READY {
            return Ok(());
        }
        let status = child.wait().context(|| "waiting for the mount")?;
        let mut message = String::new();
        errors
            .read_to_string(&mut message)
            .context(|| "reading the mount's message")?;
        let message = message.trim();
        let message = message.strip_prefix("mount.lavafs: ").unwrap_or(message);
        if message.is_empty() {
            let how = match status.signal() {
                Some(signal) => format!("signal {signal}"),
                None => status.to_string(),
            };
            return Err(Failure::new(format!("the mount ended by {how}")));
        }
        Err(Failure::new(message))
    }

    /// Mounts and serves the kernel until the filesystem is unmounted.
    fn serve(&self, options: &Options) -> Outcome<()> {
        if !self.dir.is_dir() {
            return Err(Failure::new(format!(
                "{}: not a directory",
                self.dir.display()
            )));
        }
        if self.report_ready {
            nix::unistd::setsid().context(|| "detaching")?;
        }
        // Before any thread is started, so that all of them inherit the mask and the signals
        // come to the one thread that waits for them.
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        signals.thread_block().context(|| "blocking signals")?;
        let mount_options = MountOptions {
            read_only: options.read_only,
            ..MountOptions::default()
        };
        let lava = LavaFs::mount(self.open(options)?, &mount_options)?;
        let served = self.serve_until_unmounted(options, &lava, signals);
        let unmounted = lava.unmount();
        served?;
        Ok(unmounted?)
    }

    fn serve_until_unmounted(
        &self,
        options: &Options,
        lava: &LavaFs,
        signals: SigSet,
    ) -> Outcome<()> {
        let mut config = Config::default();
        config.mount_options = options.kernel.clone();
        config.mount_options.extend([
            MountOption::FSName(self.device.display().to_string()),
            MountOption::Subtype("lavafs".to_string()),
            MountOption::DefaultPermissions,
        ]);
        if options.allow_other {
            config.acl = SessionACL::All;
        }
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let mount = Mount::new(lava.clone(), options.size_free);
        let mut session = Session::new(mount, &self.dir, &config)
            .context(|| format!("mounting on {}", self.dir.display()))?;
        let mut unmounter = session.unmount_callable();
        std::thread::Builder::new()
            .name("signals".to_string())
            .spawn(move || {
                if let Ok(signal) = signals.wait() {
                    tracing::info!(%signal, "unmounting");
                    if let Err(error) = unmounter.unmount() {
                        tracing::error!(%error, "cannot unmount");
                    }
                }
            })
            .context(|| "starting the signal thread")?;
        if self.report_ready {
            detach().context(|| "detaching")?;
        }
        session.run().context(|| "serving the mount")
    }

    /// Opens the device, waiting a moment for an owner that is about to go.
    fn open(&self, options: &Options) -> Outcome<Arc<dyn BlockDevice>> {
        let mode = if options.read_only {
            OpenMode::ReadOnly
        } else {
            OpenMode::ReadWrite
        };
        let started = Instant::now();
        loop {
            match device::open(&self.device, mode) {
                Err(lavafs::Error::InUse { .. }) if started.elapsed() < OWNER_GRACE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                other => return Ok(other?),
            }
        }
    }
}

/// Tells the waiting parent that the mount stands, and lets go of terminal and directory.
fn detach() -> std::io::Result<()> {
    println!("{READY}");
    std::io::stdout().flush()?;
    std::env::set_current_dir("/")?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}

/// mount(8) calls its helpers as `mount.TYPE DEVICE DIR [-sfnv] [-o OPTIONS]`; its `-s`, `-n` and
/// `-v` have no meaning here and are left out of the command line.
pub fn helper_arguments(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    arguments
        .into_iter()
        .filter(|argument| !matches!(argument.to_str(), Some("-s" | "-n" | "-v")))
        .collect()
}
