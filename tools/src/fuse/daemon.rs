//! Going into the background: fork first, mount in the child, and tell the parent when it is done.
//!
//! The parent forks while it has one thread only, so the child has all that the process had. The
//! parent waits at a pipe: a byte means mounted; its end without one means that the child has
//! failed, which then has said why on the shared standard error.

#![expect(unsafe_code, reason = "fork is unsafe in a process with threads")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setsid};

/// Where syslog listens.
const SYSLOG: &str = "/dev/log";

/// The child's end of the pipe.
#[derive(Debug)]
pub(super) struct Reporter(File);

/// Which process this is after [`start`].
#[derive(Debug)]
pub(super) enum Side {
    /// The child has mounted, or ended with this code.
    Parent(Result<(), u8>),
    /// Mount, then call [`Reporter::ready`].
    Child(Reporter),
}

/// Forks. Must be called while the process has one thread. A child that dies without a code of
/// its own counts as `unexplained`.
pub(super) fn start(unexplained: u8) -> io::Result<Side> {
    let (read, write): (OwnedFd, OwnedFd) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: no other thread exists, so none can hold a lock that the child would need.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(write);
            let mounted = File::from(read).read(&mut [0])? == 1;
            let outcome = if mounted {
                Ok(())
            } else {
                Err(exit_code(child, unexplained))
            };
            Ok(Side::Parent(outcome))
        }
        ForkResult::Child => {
            drop(read);
            setsid()?;
            Ok(Side::Child(Reporter(File::from(write))))
        }
    }
}

fn exit_code(child: Pid, unexplained: u8) -> u8 {
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, code)) => u8::try_from(code).unwrap_or(unexplained),
        _ => unexplained,
    }
}

impl Reporter {
    /// Leaves the caller's terminal and directory, sends what is logged from here on to `log`, or
    /// to syslog, and lets the parent go.
    pub(super) fn ready(mut self, log: Option<&Path>) -> io::Result<()> {
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        match log {
            Some(path) => {
                let log = OpenOptions::new().create(true).append(true).open(path)?;
                nix::unistd::dup2_stderr(&log)?;
            }
            // Each line is one write, and so one message.
            None => match syslog() {
                Ok(socket) => nix::unistd::dup2_stderr(&socket)?,
                Err(_) => nix::unistd::dup2_stderr(&null)?,
            },
        }
        std::env::set_current_dir("/")?;
        self.0.write_all(&[1])
    }
}

fn syslog() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(SYSLOG)?;
    // A log that does not listen must not stop the filesystem.
    socket.set_nonblocking(true)?;
    Ok(socket)
}
