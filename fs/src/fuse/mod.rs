//! A mounted filesystem as a directory of the kernel, through FUSE. Behind the feature `fuse`.
//!
//! - `session`: a mount from its first request to its end; the public API
//! - `kernel`, `negotiate`: requests unpacked, replies packed; what is agreed on before
//! - `ops`, `extend`, `names`, `xattr`: what the requests do, testable without a kernel
//! - `behind`: appends that are answered before they have reached the device
//! - `handles`: what is open
//! - `view`: following an owner that goes on writing
//! - `errno`, `attr`: errors and attributes as the kernel wants them
//!
//! Whoever has the filesystem mounted serves it: `mount.lavafs`, or an engine's process that lets
//! people look inside while it works ([`crate::LavaFs::mount_on`]).

mod attr;
mod behind;
mod errno;
mod extend;
mod handles;
mod kernel;
mod names;
mod negotiate;
mod ops;
mod session;
#[cfg(test)]
mod tests;
mod view;
mod xattr;

pub use fuser::{MountOption as KernelOption, SessionACL as Access};

pub use self::session::{FuseMount, FuseOptions, detach};
pub use self::view::VIEW_ATTRIBUTE;
