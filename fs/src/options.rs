//! Options of mkfs and mount, with their defaults and limits.

use uuid::Uuid;

use crate::error::{Error, Result};

/// Smallest device in bytes that can hold a filesystem: 2 MiB.
pub const DEVICE_SIZE_MIN: u64 = 2 << 20;

/// How a filesystem is made.
#[derive(Clone, Debug, Default)]
pub struct MkfsOptions {
    /// Name of the filesystem, at most 64 bytes. Default empty.
    pub label: Option<String>,
    /// Identity. Default random.
    pub uuid: Option<Uuid>,
    /// Bytes of one of the two journal regions. Default 1/128 of the device, between 256 KiB and
    /// 256 MiB. A file takes about 80 bytes of it, an extent about 10, and at most 5/8 of it can be used.
    pub journal_size: Option<u64>,
    /// Feature names to set, or with a leading `^` to clear. Known: `discard` (freed space is
    /// discarded on the device; default off).
    pub features: Vec<String>,
    /// Format even if the device holds a known filesystem.
    pub force: bool,
    /// Check everything and report, but write nothing.
    pub dry_run: bool,
}

/// Least [`MountOptions::discard_rate`]: 1 MiB a second.
pub const DISCARD_RATE_MIN: u64 = 1 << 20;

/// Least and largest [`MountOptions::readahead`] that is not 0: 64 KiB and 16 MiB.
pub const READAHEAD_RANGE: std::ops::RangeInclusive<u64> = 64 << 10..=16 << 20;

impl MountOptions {
    /// Refuses options out of range.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.readahead != 0 && !READAHEAD_RANGE.contains(&self.readahead) {
            let (min, max) = READAHEAD_RANGE.into_inner();
            let what = format!(
                "a readahead of {} bytes; 0, or {min} to {max}",
                self.readahead
            );
            return Err(Error::Invalid { what });
        }
        if self.discard_rate < DISCARD_RATE_MIN {
            let rate = self.discard_rate;
            let what = format!("a discard rate of {rate} bytes/s; at least {DISCARD_RATE_MIN}");
            return Err(Error::Invalid { what });
        }
        Ok(())
    }
}

/// How a filesystem is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Write nothing to the device, not even to repair. Works beside a process that owns the
    /// device (opened with [`crate::device::OpenMode::ReadOnly`]); see [`crate::LavaFs::refresh`].
    /// Default false.
    pub read_only: bool,
    /// Run a background thread for checkpoints, extents ahead of need and discards. Without it the
    /// calling threads do these themselves, which makes runs repeatable. Default true.
    pub background: bool,
    /// Take over a device whose owner record names a process on another machine. Default
    /// false: refuse.
    pub take_over: bool,
    /// Bytes a second that are discarded at most, on a filesystem with the `discard` feature.
    /// Default 256 MiB, at least [`DISCARD_RATE_MIN`]. Without `background` freed space is
    /// discarded at once by whoever freed it, at any rate.
    pub discard_rate: u64,
    /// Bytes that may wait to be discarded; what is freed beyond that is not discarded until it is
    /// freed again. Waiting space is free for files. Default 1 GiB; 0 discards nothing.
    pub discard_backlog: u64,
    /// Most bytes of one read ahead of a sequential reader; two are held for each reader, 64 MiB for
    /// the whole mount, or what [`crate::FileSystem::limit_buffer_memory`] left of that. Reads of more than half of it are not read ahead for. Default 1 MiB; 0 reads
    /// nothing ahead; otherwise within [`READAHEAD_RANGE`], and rounded down to a power of two.
    pub readahead: u64,
    /// Most bytes of appended data that the device may be writing while the appending threads go on, for
    /// the whole mount, in buffers of 256 KiB. Nothing of it is durable before a sync, as ever.
    /// Default 4 MiB; 0 writes every full buffer before the append returns.
    pub write_behind: u64,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            read_only: false,
            background: true,
            take_over: false,
            discard_rate: 256 << 20,
            discard_backlog: 1 << 30,
            readahead: 1 << 20,
            write_behind: 4 << 20,
        }
    }
}
