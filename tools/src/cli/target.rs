//! TARGET: where a filesystem lives, and opening it.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use lavafs::device::{self, OpenMode};
use lavafs::{FileSystem, FileSystemRef, HostFs, LavaFs, MountOptions};

use super::{Context, Outcome};

/// Where a filesystem is: a block device, an image file, or `host:DIR`, a directory of a kernel
/// filesystem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A block device or an image file that holds a LavaFS.
    Device(PathBuf),
    /// A directory of a kernel filesystem.
    Host(PathBuf),
}

/// Whether a command changes the filesystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It does; the device is owned exclusively.
    ReadWrite,
    /// It only looks; nothing is written to the device.
    ReadOnly,
}

impl From<OsString> for Target {
    fn from(text: OsString) -> Self {
        match text.as_bytes().strip_prefix(b"host:") {
            Some(dir) => Target::Host(PathBuf::from(OsString::from_vec(dir.to_vec()))),
            None => Target::Device(PathBuf::from(text)),
        }
    }
}

impl FromStr for Target {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Target::from(OsString::from(text)))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Device(path) => path.display().fmt(f),
            Target::Host(dir) => write!(f, "host:{}", dir.display()),
        }
    }
}

impl Target {
    /// Opens the filesystem.
    ///
    /// # Errors
    /// The device is missing, in use, not a LavaFS, of a newer format, or damaged.
    pub fn open(&self, access: Access) -> Outcome<Mounted> {
        match self {
            Target::Device(path) => {
                let mode = match access {
                    Access::ReadWrite => OpenMode::ReadWrite,
                    Access::ReadOnly => OpenMode::ReadOnly,
                };
                let device = device::open(path, mode)?;
                let options = MountOptions {
                    read_only: access == Access::ReadOnly,
                    ..MountOptions::default()
                };
                let lava = LavaFs::mount(device, &options)?;
                Ok(Mounted {
                    fs: Arc::new(lava.clone()) as FileSystemRef,
                    lava: Some(lava),
                })
            }
            Target::Host(dir) => {
                let fs = HostFs::open(dir).context(|| dir.display())?;
                Ok(Mounted {
                    fs: Arc::new(fs) as FileSystemRef,
                    lava: None,
                })
            }
        }
    }
}

/// An open filesystem. Drop every engine and file on it, then call [`Mounted::close`].
#[derive(Debug)]
pub struct Mounted {
    fs: FileSystemRef,
    lava: Option<LavaFs>,
}

impl Mounted {
    /// The filesystem as engines see it.
    pub fn fs(&self) -> &FileSystemRef {
        &self.fs
    }

    /// The LavaFS below, if it is one.
    pub fn lava(&self) -> Option<&LavaFs> {
        self.lava.as_ref()
    }

    /// Unmounts.
    ///
    /// # Errors
    /// What was appended but not synced could not be written.
    pub fn close(self) -> Outcome<()> {
        if let Some(lava) = self.lava {
            lava.unmount()?;
        }
        Ok(())
    }

    /// Runs `work` on the filesystem and unmounts, whether it fails or not. The work's failure
    /// is the one reported.
    pub fn with<T>(self, work: impl FnOnce(&dyn FileSystem, &Mounted) -> Outcome<T>) -> Outcome<T> {
        let result = work(self.fs.as_ref(), &self);
        let closed = self.close();
        let value = result?;
        closed?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_prefix_chooses_the_kernel_filesystem() {
        let target = |text: &str| Target::from(OsString::from(text));
        assert_eq!(target("host:/tmp/x"), Target::Host("/tmp/x".into()));
        assert_eq!(target("/dev/sdz"), Target::Device("/dev/sdz".into()));
        assert_eq!(target("./host:x"), Target::Device("./host:x".into()));
        assert_eq!(target("host:d").to_string(), "host:d");
    }
}
