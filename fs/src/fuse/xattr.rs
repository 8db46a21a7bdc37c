//! Requests about extended attributes.
//!
//! Programs may set those of the namespace `user`. Access control lists, capabilities and labels are
//! not kept; a program that is told so goes on without them. The root of a live mount has one more,
//! which marks it as a view and cannot be changed.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::{Ino, LavaFs, XATTR_NAME_LEN_MAX, XATTR_VALUE_LEN_MAX};
use fuser::{Errno, INodeNo};

use super::errno::{Answer, answer};
use super::ops::Mount;
use super::view;

/// Prefix of the extended attributes that programs may set.
const USER_ATTRIBUTES: &[u8] = b"user.";

impl Mount {
    pub(super) fn xattr(&self, ino: INodeNo, name: &OsStr) -> Answer<Vec<u8>> {
        check_xattr_name(name)?;
        if self.live && ino.0 == LavaFs::ROOT.0 && view::is_mark(name) {
            return Ok(view::sentence(&self.fs).into_bytes());
        }
        let value = answer("getxattr", ino.0, self.fs.xattr(Ino(ino.0), name))?;
        value.ok_or(Errno::ENODATA)
    }

    /// The names, each with a NUL behind it.
    pub(super) fn xattr_names(&self, ino: INodeNo) -> Answer<Vec<u8>> {
        let mut names = answer("listxattr", ino.0, self.fs.xattr_names(Ino(ino.0)))?;
        if self.live && ino.0 == LavaFs::ROOT.0 {
            names.retain(|name| !view::is_mark(name));
            names.push(view::VIEW_ATTRIBUTE.into());
        }
        let with_nul = |name: &OsString| [name.as_bytes(), b"\0"].concat();
        Ok(names.iter().flat_map(with_nul).collect())
    }

    pub(super) fn set_xattr(
        &self,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Answer<()> {
        self.writable()?;
        check_xattr_name(name)?;
        if name.len() > XATTR_NAME_LEN_MAX {
            return Err(Errno::ERANGE);
        }
        if value.len() > XATTR_VALUE_LEN_MAX {
            return Err(Errno::E2BIG);
        }
        let present = answer("setxattr", ino.0, self.fs.xattr(Ino(ino.0), name))?.is_some();
        if present && flags & libc::XATTR_CREATE != 0 {
            return Err(Errno::EEXIST);
        }
        if !present && flags & libc::XATTR_REPLACE != 0 {
            return Err(Errno::ENODATA);
        }
        answer(
            "setxattr",
            ino.0,
            self.fs.set_xattr(Ino(ino.0), name, value),
        )
    }

    pub(super) fn remove_xattr(&self, ino: INodeNo, name: &OsStr) -> Answer<()> {
        self.writable()?;
        check_xattr_name(name)?;
        let removed = self.fs.remove_xattr(Ino(ino.0), name);
        if answer("removexattr", ino.0, removed)? {
            Ok(())
        } else {
            Err(Errno::ENODATA)
        }
    }
}

fn check_xattr_name(name: &OsStr) -> Answer<()> {
    if name.as_bytes().starts_with(USER_ATTRIBUTES) {
        Ok(())
    } else {
        Err(Errno::EOPNOTSUPP)
    }
}
