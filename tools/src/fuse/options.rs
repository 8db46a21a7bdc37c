//! The mount options after `-o`.

use fuser::MountOption;

use crate::cli::{Failure, Outcome};

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Options {
    /// Write nothing to the device.
    pub(super) read_only: bool,
    /// fdatasync has its native meaning: bytes durable, the size not journaled.
    pub(super) size_free: bool,
    /// Users other than the mounting one may use the mount.
    pub(super) allow_other: bool,
    /// Options for the kernel.
    pub(super) kernel: Vec<MountOption>,
}

impl Options {
    /// Parses lists of options separated by commas. Options that are mount(8)'s own (defaults,
    /// nofail, user, x-...) are accepted and mean nothing here.
    pub(super) fn parse(lists: &[String]) -> Outcome<Options> {
        let mut options = Options::default();
        for option in lists.iter().flat_map(|list| list.split(',')) {
            match option {
                "ro" => options.read_only = true,
                "rw" => options.read_only = false,
                "sizefree" => options.size_free = true,
                "allow_other" => options.allow_other = true,
                "dev" => options.kernel.push(MountOption::Dev),
                "nodev" => options.kernel.push(MountOption::NoDev),
                "suid" => options.kernel.push(MountOption::Suid),
                "nosuid" => options.kernel.push(MountOption::NoSuid),
                "exec" => options.kernel.push(MountOption::Exec),
                "noexec" => options.kernel.push(MountOption::NoExec),
                "atime" => options.kernel.push(MountOption::Atime),
                "noatime" => options.kernel.push(MountOption::NoAtime),
                "" | "defaults" | "auto" | "noauto" | "nofail" | "_netdev" | "user" | "users"
                | "nouser" | "owner" | "group" | "relatime" => {}
                other if other.starts_with("x-") || other.starts_with("comment=") => {}
                other => return Err(Failure::new(format!("unknown mount option '{other}'"))),
            }
        }
        if options.read_only {
            options.kernel.push(MountOption::RO);
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parsed_and_unknown_ones_refused() {
        let parse = |text: &str| Options::parse(&[text.to_string()]);
        let options = parse("defaults,ro,sizefree,nodev,x-systemd.automount").unwrap();
        assert!(options.read_only && options.size_free && !options.allow_other);
        assert_eq!(options.kernel, [MountOption::NoDev, MountOption::RO]);
        assert!(!parse("ro,rw").unwrap().read_only);
        assert!(parse("sizfree").is_err());
    }
}
