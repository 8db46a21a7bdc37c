//! Everything that is on the device apart from file contents. Prose: ../../FORMAT.md.

pub(crate) mod op;
pub(crate) mod owner;
pub(crate) mod record;
pub(crate) mod region;
pub(crate) mod superblock;
