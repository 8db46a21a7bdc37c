//! An image and where it is mounted.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lavafs::device::{self, OpenMode};
use lavafs::{CheckMode, Error, MkfsOptions, check, mkfs};

pub(crate) const MIB: u64 = 1 << 20;

/// How long what takes a moment may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// An image and where it is mounted. Dropping it unmounts, after a panic too.
pub(crate) struct Fixture {
    pub(crate) root: tempfile::TempDir,
    pub(crate) server: Option<Child>,
}

impl Fixture {
    /// A fresh filesystem of `size` bytes, or `None` where it cannot be mounted.
    pub(crate) fn new(size: u64) -> Option<Fixture> {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: mounting needs root and /dev/fuse");
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("mnt")).unwrap();
        let device = device::create_image(&root.path().join("img"), size, false).unwrap();
        mkfs(device.as_ref(), &MkfsOptions::default()).unwrap();
        Some(Fixture { root, server: None })
    }

    pub(crate) fn mounted(size: u64) -> Option<Fixture> {
        let mut fixture = Fixture::new(size)?;
        fixture.mount("rw");
        Some(fixture)
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.root.path().join("img")
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Mounts with a server in the foreground, whose process the test knows, and waits for it.
    pub(crate) fn mount(&mut self, options: &str) {
        let log = File::create(self.root.path().join("log")).unwrap();
        let server = command()
            .args(["-f", "-v", "-o", options])
            .args([self.image(), self.dir()])
            .stderr(log)
            .spawn()
            .unwrap();
        self.server = Some(server);
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains("mounted on") {
            let gone = self.server.as_mut().unwrap().try_wait().unwrap().is_some();
            assert!(
                !gone && Instant::now() < deadline,
                "no mount: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.root.path().join("log")).unwrap()
    }

    pub(crate) fn umount(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let umount = || {
            let mut command = Command::new("umount");
            command.env("LC_ALL", "C").arg(self.dir()).output().unwrap()
        };
        let mut output = umount();
        // Somebody may look at all that is mounted.
        while !output.status.success() && Instant::now() < deadline {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("busy"), "{said}");
            std::thread::sleep(Duration::from_millis(10));
            output = umount();
        }
        assert!(output.status.success(), "{output:?}");
        let status = self.server.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }

    pub(crate) fn remount(&mut self) {
        self.umount();
        self.mount("rw");
    }

    /// What fsck says of the image, once its last owner has let go of it.
    pub(crate) fn assert_clean(&self) {
        let deadline = Instant::now() + PATIENCE;
        let device = loop {
            match device::open(&self.image(), OpenMode::ReadWrite) {
                Err(Error::InUse { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                opened => break opened.unwrap(),
            }
        };
        let report = check(device, CheckMode::ReadOnly).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir())
            .stderr(Stdio::null())
            .status();
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mount-lavafs"));
    command.env_remove("RUST_LOG");
    command
}

pub(crate) fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {text}");
    output
}

/// Runs mount.lavafs, which must fail with `code` and one line, and returns the line.
pub(crate) fn refused(code: i32, arguments: &[&OsStr]) -> String {
    let output = command().args(arguments).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("mount.lavafs: "), "{text}");
    text
}

pub(crate) fn errno<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap(),
    }
}

pub(crate) fn append(path: &Path) -> File {
    OpenOptions::new().append(true).open(path).unwrap()
}
