//! LavaFS: a user-space, append-only, extent-based filesystem that owns a raw partition or an
//! image file.
//!
//! Engines use it through the [`FileSystem`] and [`File`] traits.

pub mod device;
mod error;
mod host_fs;
mod types;
mod vfs;

pub use error::{Error, PathError, Result};
pub use host_fs::HostFs;
pub use types::{BLOCK_SIZE, FileSize, Generation, Ino, align_down, align_up};
pub use vfs::{
    CreateOptions, DirEntry, File, FileKind, FileLock, FileRef, FileSystem, FileSystemRef,
    Metadata, ReadRequest, Space, TailPolicy,
};
