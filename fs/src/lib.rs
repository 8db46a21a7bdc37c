//! LavaFS: a user-space, append-only, extent-based filesystem that owns a raw partition or an
//! image file.
//!
//! Engines use it through the [`FileSystem`] and [`File`] traits, which [`LavaFs`] implements on
//! a device and [`HostFs`] on a directory of a kernel filesystem. The layout on the device is in
//! FORMAT.md beside this crate's sources.

mod alloc;
mod background;
mod check;
pub mod codec;
mod core;
pub mod device;
mod discard;
mod disk;
mod dump;
mod error;
mod expand;
mod file;
mod format;
mod fragmentation;
mod fs;
#[cfg(feature = "fuse")]
pub mod fuse;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod host_fs;
mod meta;
mod mkfs;
mod namespace;
mod options;
mod types;
mod vfs;
mod view;

pub use check::{CheckMode, CheckReport, Problem, check};
pub use dump::{CopyDump, CopyState, Dump, HeaderDump, InodeDump, RecordDump, RegionDump};
pub use error::{Error, PathError, Result};
pub use format::owner::Owner;
pub use format::superblock::{LABEL_LEN_MAX, Superblock};
pub use fragmentation::{Bucket, Fragmentation};
pub use fs::LavaFs;
pub use host_fs::HostFs;
pub use mkfs::{known_contents, mkfs};
pub use namespace::{
    Attributes, LINKS_MAX, NAME_LEN_MAX, Ownership, RenameMode, SetAttributes, TARGET_LEN_MAX,
    Transaction, XATTR_NAME_LEN_MAX, XATTR_VALUE_LEN_MAX,
};
pub use options::{DEVICE_SIZE_MIN, DISCARD_RATE_MIN, MkfsOptions, MountOptions, READAHEAD_RANGE};
pub use types::{BLOCK_SIZE, FileSize, Generation, Ino, align_down, align_up};
pub use vfs::{
    CreateOptions, DirEntry, File, FileKind, FileLock, FileRef, FileSystem, FileSystemRef,
    Metadata, ReadRequest, Space, TailPolicy,
};
