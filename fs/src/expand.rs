//! Changes of the superblock of a mounted filesystem: growing to the device's size, and the label.
//!
//! A device's size is read when it is opened. After a partition or image grew, the device is
//! opened again, mounted as before (the filesystem knows its own size), and then expanded.
//! Only the superblocks are written, so that it works on a full filesystem; the journal
//! regions stay as they are.
//!
//! What a crash at each step of an expansion leaves:
//! 1. new last copy written: the new size counts, older copies are replaced by the next mount;
//! 2. the others written, the first two last: the new size;
//! 3. the old last copy is wiped: the same. Only then its block and the new ones become free for
//!    files, so that up to here no byte of a file lies where the old superblock has a copy.
//!
//! A superblock change holds `superblock` for upgrading across device I/O; readers go on.

use parking_lot::RwLockUpgradableReadGuard;

use crate::alloc::Run;
use crate::device::{AlignedBuf, DeviceWrite, Durability};
use crate::error::Result;
use crate::format::superblock::Superblock;
use crate::fs::LavaFs;
use crate::meta::superblocks;
use crate::mkfs::check_label;
use crate::types::BLOCK_SIZE;

impl LavaFs {
    /// Grows the filesystem to the size that the device had when it was opened, and returns by how
    /// many bytes; 0 where it fills the device already. The bytes are free for files on return, and
    /// durably the filesystem's.
    ///
    /// # Errors
    /// `ReadOnly`; `Io`, after which the filesystem is read-only, with the old size or the new.
    pub fn expand(&self) -> Result<u64> {
        self.core.journal()?;
        let disk = &self.core.disk;
        let total_blocks = superblocks::device_blocks(disk);
        let current = self.core.superblock.upgradable_read();
        if total_blocks <= current.total_blocks {
            return Ok(0);
        }
        let grown = Superblock {
            epoch: current.epoch + 1,
            total_blocks,
            ..current.clone()
        };
        superblocks::write(disk, &grown, &grown.copies())?;
        let (old_last, new_last) = (current.total_blocks - 1, total_blocks - 1);
        let blank = AlignedBuf::zeroed(BLOCK_SIZE as usize);
        let wipe = DeviceWrite {
            offset: old_last * BLOCK_SIZE,
            data: &blank,
        };
        disk.write(&[wipe], Durability::Durable)?;
        *RwLockUpgradableReadGuard::upgrade(current) = grown;
        let added = Run {
            start: old_last,
            blocks: new_last - old_last,
        };
        self.core.alloc.lock().grow(added);
        Ok(added.blocks * BLOCK_SIZE)
    }

    /// Gives the filesystem another label, durable on return.
    ///
    /// # Errors
    /// `Invalid` for more than [`crate::LABEL_LEN_MAX`] bytes or a NUL; `ReadOnly`; `Io`.
    pub fn set_label(&self, label: &str) -> Result<()> {
        check_label(label)?;
        self.core.journal()?;
        let current = self.core.superblock.upgradable_read();
        let named = Superblock {
            epoch: current.epoch + 1,
            label: label.to_owned(),
            ..current.clone()
        };
        superblocks::write(&self.core.disk, &named, &named.copies())?;
        *RwLockUpgradableReadGuard::upgrade(current) = named;
        Ok(())
    }
}
