//! Attributes as the kernel is told them, and times on their way to and from it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{Attributes, BLOCK_SIZE, FileKind, align_up};
use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

/// What the kernel is told. Sizes that are uncertain since a crash are shown as the lower bound.
/// Blocks are those that the bytes take, not those allocated ahead, which come and go without the
/// kernel's knowledge.
pub(super) fn file_attr(attributes: &Attributes) -> FileAttr {
    let (kind, size) = match attributes.kind {
        FileKind::File => (FileType::RegularFile, attributes.size.lower()),
        FileKind::Directory => (FileType::Directory, 0),
        FileKind::Symlink => (FileType::Symlink, attributes.size.lower()),
    };
    let data = if kind == FileType::RegularFile {
        size
    } else {
        0
    };
    let modified = to_time(attributes.modified_ns);
    FileAttr {
        ino: INodeNo(attributes.ino.0),
        size,
        blocks: align_up(data, BLOCK_SIZE) / 512,
        atime: modified,
        mtime: modified,
        ctime: to_time(attributes.changed_ns),
        crtime: UNIX_EPOCH,
        kind,
        perm: (attributes.mode & 0o7777) as u16,
        nlink: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: 0,
        blksize: BLOCK_SIZE as u32,
        flags: 0,
    }
}

fn to_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 {
        UNIX_EPOCH + distance
    } else {
        UNIX_EPOCH - distance
    }
}

/// A time that the kernel sent, in nanoseconds since 1970 UTC. Times before 1970 reach us from
/// fuser 0.18 with their nanoseconds counted in the wrong direction: seconds -2 and 0.8 s, which is
/// 1.2 s before 1970, arrive as 2.8 s before it.
pub(super) fn from_kernel(time: TimeOrNow) -> i64 {
    let time = match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    };
    let ns = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos() as i128,
        Err(before) => {
            let before = before.duration();
            i128::from(before.subsec_nanos()) - i128::from(before.as_secs()) * 1_000_000_000
        }
    };
    i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_way_through_the_kernel() {
        // As fuser decodes (seconds, nanoseconds) of a request.
        let decoded = |secs: i64, nanos: u32| {
            let distance = Duration::new(secs.unsigned_abs(), nanos);
            let time = if secs >= 0 {
                UNIX_EPOCH + distance
            } else {
                UNIX_EPOCH - distance
            };
            from_kernel(TimeOrNow::SpecificTime(time))
        };
        assert_eq!(decoded(5, 300), 5_000_000_300);
        assert_eq!(decoded(-2, 800_000_000), -1_200_000_000);
        assert_eq!(decoded(-2, 0), -2_000_000_000);
        assert_eq!(decoded(i64::MAX / 2, 0), i64::MAX);
        for ns in [0, 1, -1, 1_700_000_000_123_456_789, i64::MIN, i64::MAX] {
            let shown = to_time(ns);
            let back = match shown.duration_since(UNIX_EPOCH) {
                Ok(since) => since.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            };
            assert_eq!(back, i128::from(ns));
        }
    }
}
