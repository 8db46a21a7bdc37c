//! The options after `-o`, of mount(8), of FUSE and our own.

use std::path::PathBuf;
use std::time::Duration;

use lavafs::MountOptions;
use lavafs::fuse::{Access, FuseOptions, KernelOption};

use crate::cli::parse_size;

/// What the options say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Options {
    /// Write nothing to the device.
    pub(super) read_only: bool,
    /// fdatasync has its native meaning: bytes durable, the size not journaled.
    pub(super) size_free: bool,
    /// Take the device over from a process of another machine that did not unmount it.
    pub(super) take_over: bool,
    /// Who may use the mount.
    pub(super) access: Access,
    /// The kernel checks permission bits.
    pub(super) permissions: bool,
    /// How often changes that nobody synced are made durable; `None` for never.
    pub(super) commit: Option<Duration>,
    /// Most bytes of one read ahead; 0 for none.
    pub(super) readahead: u64,
    /// Most bytes of appended data in flight; 0 for none.
    pub(super) write_behind: u64,
    /// Where the background process logs instead of syslog.
    pub(super) log: Option<PathBuf>,
    /// The name of the source in the table of mounts, where it is not the device.
    pub(super) source: Option<String>,
    /// Flags for the kernel.
    kernel: Vec<KernelOption>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            read_only: false,
            size_free: false,
            take_over: false,
            access: Access::Owner,
            permissions: false,
            commit: Some(Duration::from_secs(5)),
            readahead: MountOptions::default().readahead,
            write_behind: MountOptions::default().write_behind,
            log: None,
            source: None,
            kernel: Vec::new(),
        }
    }
}

impl Options {
    /// Parses lists of options separated by commas; a later one overrides an earlier one. With
    /// `sloppy` unknown options are passed over, as `mount -s` wants it.
    ///
    /// # Errors
    /// One sentence about the first option that is not understood.
    pub(super) fn parse(lists: &[String], sloppy: bool) -> Result<Options, String> {
        let mut options = Options::default();
        for option in lists.iter().flat_map(|list| list.split(',')) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            let known = match value {
                None => options.set(name),
                Some(value) => options.assign(name, value)?,
            };
            if name == "remount" {
                return Err("remount: unmount, and mount again with other options".to_owned());
            }
            if !known && !sloppy {
                return Err(format!("unknown option '{option}'"));
            }
        }
        Ok(options)
    }

    /// Options without a value. False for an unknown one.
    fn set(&mut self, name: &str) -> bool {
        match name {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "sizefree" => self.size_free = true,
            "take_over" => self.take_over = true,
            "default_permissions" => self.permissions = true,
            "allow_other" => self.access = Access::All,
            "allow_root" => self.access = Access::RootAndOwner,
            "dev" => self.flag(KernelOption::Dev, &KernelOption::NoDev),
            "nodev" => self.flag(KernelOption::NoDev, &KernelOption::Dev),
            "suid" => self.flag(KernelOption::Suid, &KernelOption::NoSuid),
            "nosuid" => self.flag(KernelOption::NoSuid, &KernelOption::Suid),
            "exec" => self.flag(KernelOption::Exec, &KernelOption::NoExec),
            "noexec" => self.flag(KernelOption::NoExec, &KernelOption::Exec),
            "sync" => self.flag(KernelOption::Sync, &KernelOption::Async),
            "async" => self.flag(KernelOption::Async, &KernelOption::Sync),
            // For mount(8) itself and for init systems; or about access times, which LavaFS does
            // not keep.
            "" | "defaults" | "auto" | "noauto" | "nofail" | "_netdev" | "user" | "nouser"
            | "users" | "owner" | "group" | "atime" | "noatime" | "diratime" | "nodiratime"
            | "relatime" | "norelatime" | "strictatime" | "lazytime" => {}
            other => return other.starts_with("x-") || other.starts_with("X-"),
        }
        true
    }

    /// Options with a value. False for an unknown one.
    fn assign(&mut self, name: &str, value: &str) -> Result<bool, String> {
        match name {
            "commit" => {
                let seconds: u64 = value
                    .parse()
                    .ok()
                    .filter(|&seconds| seconds <= 3600)
                    .ok_or(format!("commit={value}: it is 0 to 3600 seconds"))?;
                self.commit = (seconds > 0).then(|| Duration::from_secs(seconds));
            }
            "readahead" => self.readahead = size(name, value)?,
            "write_behind" => self.write_behind = size(name, value)?,
            "log" => self.log = Some(PathBuf::from(value)),
            "fsname" => self.source = Some(value.to_owned()),
            "subtype" if value == "lavafs" => {}
            "comment" => {}
            other => return Ok(other.starts_with("x-") || other.starts_with("X-")),
        }
        Ok(true)
    }

    fn flag(&mut self, flag: KernelOption, opposite: &KernelOption) {
        self.kernel.retain(|other| other != opposite);
        if !self.kernel.contains(&flag) {
            self.kernel.push(flag);
        }
    }

    /// How the filesystem is to be mounted in this process.
    pub(super) fn mounting(&self) -> MountOptions {
        MountOptions {
            read_only: self.read_only,
            take_over: self.take_over,
            readahead: self.readahead,
            write_behind: self.write_behind,
            ..MountOptions::default()
        }
    }

    /// How the filesystem on `device` is to be served.
    pub(super) fn serving(&self, device: &str, live: bool) -> FuseOptions {
        FuseOptions {
            read_only: self.read_only,
            live,
            size_free: self.size_free,
            commit: self.commit,
            access: self.access,
            permissions: self.permissions,
            source: self.source.clone().unwrap_or_else(|| device.to_owned()),
            kernel: self.kernel.clone(),
        }
    }
}

fn size(name: &str, value: &str) -> Result<u64, String> {
    parse_size(value).map_err(|error| format!("{name}={value}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        Options::parse(&[text.to_owned()], false)
    }

    #[test]
    fn fstab_lines_are_understood() {
        let options = parse("defaults,ro,noauto,x-systemd.automount,comment=a,nofail").unwrap();
        assert!(options.read_only);
        let options = parse("ro,rw,sizefree,commit=30,allow_other").unwrap();
        assert!(!options.read_only && options.size_free);
        assert_eq!(options.commit, Some(Duration::from_secs(30)));
        assert_eq!(parse("commit=0").unwrap().commit, None);
        let sizes = parse("readahead=0,write_behind=16M").unwrap().mounting();
        assert_eq!((sizes.readahead, sizes.write_behind), (0, 16 << 20));
    }

    #[test]
    fn a_later_flag_replaces_its_opposite() {
        let options = parse("nodev,noexec,exec,dev").unwrap();
        assert_eq!(options.kernel, [KernelOption::Exec, KernelOption::Dev]);
    }

    #[test]
    fn unknown_options_are_named_unless_sloppy() {
        for bad in ["wibble", "wibble=3", "commit", "sizefree=1"] {
            assert_eq!(parse(bad).unwrap_err(), format!("unknown option '{bad}'"));
            assert!(Options::parse(&[bad.to_owned()], true).is_ok());
        }
        assert!(
            parse("readahead=much")
                .unwrap_err()
                .starts_with("readahead=much: ")
        );
        assert!(parse("commit=abc").unwrap_err().contains("3600"));
        assert!(Options::parse(&["remount,ro".to_owned()], true).is_err());
    }
}
