//! Small value types shared by every layer above the device: units, identifiers, sizes.
//!
//! All offsets and lengths are `u64`, in bytes unless a name says `blocks`. The crate is built
//! for 64-bit targets only, so a `u64` and a `usize` convert without loss.

use std::fmt;

const _: () = assert!(usize::BITS == 64, "offsets are u64 and index memory");

/// Allocation and metadata unit in bytes. Independent of the device's logical block and of the
/// machine's page size.
pub const BLOCK_SIZE: u64 = 4096;

/// Inode number: names one file or directory, never reused within one filesystem.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ino(pub u64);

/// File generation: changes whenever a file's bytes begin anew (create, truncate to a shorter
/// size) and is never reused within one filesystem, across crashes too. Engines seed their record checksums with
/// it, so that bytes of an older file in a reused extent can never pass for valid
/// (../../FORMAT.md, "Generations").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Generation(pub u64);

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is known of a file's size, in bytes.
///
/// `fdatasync` does not journal sizes (LavaStore paper, section 3.3.3), so after a crash a file
/// that was being appended to has a size only known to lie between two bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileSize {
    /// The size is this.
    Exact(u64),
    /// The size lies in `lower..=upper`. Bytes below `lower` are the file's own and durable;
    /// beyond it they may be the file's own, zeros or garbage, to be told apart by checksum.
    Between {
        /// Size known to be durable.
        lower: u64,
        /// Bytes allocated to the file.
        upper: u64,
    },
}

impl FileSize {
    /// The size below which every byte is certainly the file's own.
    pub fn lower(self) -> u64 {
        match self {
            FileSize::Exact(size) => size,
            FileSize::Between { lower, .. } => lower,
        }
    }

    /// The size that the file cannot exceed.
    pub fn upper(self) -> u64 {
        match self {
            FileSize::Exact(size) => size,
            FileSize::Between { upper, .. } => upper,
        }
    }
}

/// Rounds `value` up to a multiple of `unit`, a power of two.
pub fn align_up(value: u64, unit: u64) -> u64 {
    debug_assert!(unit.is_power_of_two());
    (value + unit - 1) & !(unit - 1)
}

/// Rounds `value` down to a multiple of `unit`, a power of two.
pub fn align_down(value: u64, unit: u64) -> u64 {
    debug_assert!(unit.is_power_of_two());
    value & !(unit - 1)
}
