//! Owner record: which process has the filesystem mounted read-write.
//!
//!  off  len  field
//!    0    8  magic     "LAVAOWNR"
//!    8    4  crc32c    over bytes 12..512
//!   12    4  pid       0: nobody, the filesystem was unmounted
//!   16   16  boot      boot id of the owner's kernel
//!   32    8  since_ns  when it was mounted, nanoseconds since 1970 UTC
//!   40   64  host      UTF-8, padded with zeros
//!  104  408  reserved  zero
//!
//! The record explains; the exclusion itself is the device's exclusive open. It is written
//! durably at mount and at unmount, in block 2, and never read for anything but a message or the
//! refusal to attach a device that a living process on another machine may own.

use uuid::Uuid;

use crate::codec::Decoder;
use crate::types::BLOCK_SIZE;

const MAGIC: &[u8; 8] = b"LAVAOWNR";
const BODY_LEN: usize = 512;
const HOST_LEN: usize = 64;

/// The process that owns a filesystem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    /// Process id; 0 for nobody.
    pub pid: u32,
    /// Boot id of the kernel it runs on.
    pub boot: Uuid,
    /// When it mounted, nanoseconds since 1970 UTC.
    pub since_ns: i64,
    /// Host name.
    pub host: String,
}

impl Owner {
    /// This process.
    pub(crate) fn this_process(now_ns: i64) -> Owner {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mut host = read("/proc/sys/kernel/hostname").trim().to_owned();
        while host.len() > HOST_LEN {
            host.pop();
        }
        Owner {
            pid: std::process::id(),
            boot: Uuid::parse_str(read("/proc/sys/kernel/random/boot_id").trim())
                .unwrap_or_default(),
            since_ns: now_ns,
            host,
        }
    }

    /// True where the process may still run: it does on this machine, or the machine is another one,
    /// of which nothing is known. A process id that was given out again counts as running.
    pub fn may_live(&self) -> bool {
        let is_running = || std::path::Path::new(&format!("/proc/{}", self.pid)).exists();
        self.is_elsewhere() || self.boot == Owner::this_process(0).boot && is_running()
    }

    /// True where the process is, or was, one of another machine.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.host != Owner::this_process(0).host
    }

    /// The record of an unmounted filesystem.
    pub(crate) fn nobody() -> Owner {
        Owner {
            pid: 0,
            boot: Uuid::nil(),
            since_ns: 0,
            host: String::new(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_SIZE as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.pid.to_le_bytes());
        out.extend_from_slice(self.boot.as_bytes());
        out.extend_from_slice(&self.since_ns.to_le_bytes());
        out.extend_from_slice(self.host.as_bytes());
        out.resize(BODY_LEN, 0);
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out.resize(BLOCK_SIZE as usize, 0);
        out
    }

    /// The owner in `block`; `None` where there is none or the record is unreadable.
    pub(crate) fn decode(block: &[u8]) -> Option<Owner> {
        let mut decoder = Decoder::new(block.get(..BODY_LEN)?);
        let magic = decoder.take(8)?;
        let crc = decoder.u32()?;
        if magic != MAGIC || crc != crc32c::crc32c(&block[12..BODY_LEN]) {
            return None;
        }
        let pid = decoder.u32()?;
        let boot = Uuid::from_bytes(decoder.take(16)?.try_into().ok()?);
        let since_ns = decoder.i64()?;
        let host = decoder.take(HOST_LEN)?;
        let host_len = host.iter().position(|&byte| byte == 0).unwrap_or(HOST_LEN);
        let host = String::from_utf8_lossy(&host[..host_len]).into_owned();
        (pid != 0).then_some(Owner {
            pid,
            boot,
            since_ns,
            host,
        })
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on {}", self.pid, self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_named_until_it_leaves() {
        let owner = Owner::this_process(5);
        assert_eq!(Owner::decode(&owner.encode()), Some(owner));
        assert_eq!(Owner::decode(&Owner::nobody().encode()), None);
        assert_eq!(Owner::decode(&[0; 4096]), None);
    }
}
