//! Extended attributes: short values under any name, of files, directories and symbolic links.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::error::{Error, Result};
use crate::format::op::Op;
use crate::fs::LavaFs;
use crate::types::Ino;

use super::change::Change;
use super::edit::CREATE_OPS_LEN_MAX;

/// Longest name and value of an extended attribute in bytes.
pub const XATTR_NAME_LEN_MAX: usize = 255;
/// See [`XATTR_NAME_LEN_MAX`].
pub const XATTR_VALUE_LEN_MAX: usize = 16 << 10;

impl LavaFs {
    /// Sets an extended attribute.
    pub fn set_xattr(&self, ino: Ino, name: &OsStr, value: &[u8]) -> Result<()> {
        if name.is_empty() || name.len() > XATTR_NAME_LEN_MAX || value.len() > XATTR_VALUE_LEN_MAX {
            let what = format!(
                "an extended attribute has 1 to {XATTR_NAME_LEN_MAX} bytes of name and up to \
                 {XATTR_VALUE_LEN_MAX} of value"
            );
            return Err(Error::Invalid { what });
        }
        let journal = self.core.journal()?;
        let _alone = journal.begin_transaction()?;
        journal.admit((name.len() + value.len()) as u64 + CREATE_OPS_LEN_MAX)?;
        let mut change = Change::begin(&self.core);
        let op = Op::SetXattr {
            ino,
            name: name.as_bytes(),
            value,
        };
        change.add_op(ino, &op)?;
        change.touch_attributes(ino)?;
        change.finish();
        Ok(())
    }

    /// The value of an extended attribute, if it is set.
    pub fn xattr(&self, ino: Ino, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let inode = self.inode(ino)?;
        let state = inode.state.read();
        let extra = state.extra.as_ref();
        Ok(extra.and_then(|extra| extra.xattrs.get(name.as_bytes()).cloned()))
    }

    /// The names of all extended attributes.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<OsString>> {
        let inode = self.inode(ino)?;
        let state = inode.state.read();
        let names = state.extra.iter().flat_map(|extra| extra.xattrs.keys());
        Ok(names.map(|name| OsString::from_vec(name.clone())).collect())
    }

    /// Removes an extended attribute; false where it was not set.
    pub fn remove_xattr(&self, ino: Ino, name: &OsStr) -> Result<bool> {
        self.core.journal()?.drain()?;
        if self.xattr(ino, name)?.is_none() {
            return Ok(false);
        }
        let mut change = Change::begin(&self.core);
        let op = Op::RemoveXattr {
            ino,
            name: name.as_bytes(),
        };
        change.add_op(ino, &op)?;
        change.touch_attributes(ino)?;
        change.finish();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::device::SimDevice;
    use crate::fs::LavaFs;
    use crate::{FileSystem, MkfsOptions, MountOptions, mkfs};

    /// Threads were admitted one beside the other, each for itself, and enqueued together more than any
    /// checkpoint could hold: no commit succeeded any more, and the removal that would have helped
    /// commits first.
    #[test]
    fn what_is_admitted_at_the_same_time_fits_the_journal_together() {
        let device = Arc::new(SimDevice::new(8 << 20, 512));
        mkfs(&*device, &MkfsOptions::default()).unwrap();
        let options = MountOptions {
            background: false,
            ..MountOptions::default()
        };
        let fs = LavaFs::mount(device, &options).unwrap();
        std::thread::scope(|scope| {
            let held = fs.core.open.lock();
            for at in 0..20 {
                let (fs, name) = (&fs, format!("user.{at}"));
                scope.spawn(move || fs.set_xattr(LavaFs::ROOT, name.as_ref(), &[1; 16 << 10]));
            }
            std::thread::sleep(Duration::from_millis(200));
            drop(held);
        });
        fs.commit().unwrap();
        fs.create_dir_all("/there-is-room".as_ref()).unwrap();
        fs.unmount().unwrap();
    }
}
