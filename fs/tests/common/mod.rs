//! A simulated device with a filesystem, and its mount, for tests that repeat exactly.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::sync::Arc;

use lavafs::device::SimDevice;
use lavafs::{LavaFs, MkfsOptions, MountOptions, mkfs};

/// A device of `size` bytes in logical blocks of 512, with a fresh filesystem.
pub(crate) fn formatted(size: u64, options: &MkfsOptions) -> Arc<SimDevice> {
    let device = SimDevice::new(size, 512);
    mkfs(&device, options).unwrap();
    Arc::new(device)
}

/// Mounts it without a thread in the background.
pub(crate) fn mount(device: &Arc<SimDevice>) -> LavaFs {
    let options = MountOptions {
        background: false,
        ..MountOptions::default()
    };
    LavaFs::mount(device.clone(), &options).unwrap()
}
