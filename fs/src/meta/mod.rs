//! Metadata: inodes and names in memory, the journal and its checkpoints on the device.

pub(crate) mod checkpoint;
pub(crate) mod extents;
pub(crate) mod inode;
pub(crate) mod journal;
pub(crate) mod pace;
pub(crate) mod recovery;
pub(crate) mod superblocks;
pub(crate) mod tables;
