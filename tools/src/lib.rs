//! The command-line tools as a library; the binaries are thin mains over it.

pub mod bench;
pub mod cli;
pub mod demo;
pub mod fs_command;
pub mod fs_copy;
pub mod fs_inside;
pub mod fsck;
pub mod fuse;
pub mod kv_command;
pub mod lava;
pub mod log_command;
mod log_stats;
pub mod manual;
pub mod metered;
pub mod mkfs;
pub mod source;
