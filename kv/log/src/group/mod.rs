//! The framing of one physical log file: a header, then groups, each one durable as a whole.
//!
//! File header, 64 bytes at offset 0:
//!
//!  off  len  field
//!    0    8  magic        "LAVAGRPS"
//!    8    2  version      1
//!   10    2  header_len   64
//!   12    4  incompat     feature bits: an unknown one refuses the file
//!   16    4  compat       feature bits: unknown ones are ignored
//!   20    4  write_unit   padding unit of this file, in bytes
//!   24    8  generation   the file's generation when it was made
//!   32    8  tag          the caller's, such as a file number
//!   40   20  reserved     zero
//!   60    4  crc32c       over bytes 0..60
//!
//! Group: a header of 40 bytes, then the payload:
//!
//!  off  len  field
//!    0    4  magic        B5 4C 47 1A
//!    4    4  payload_len  0..=PAYLOAD_LEN_MAX
//!    8    8  sequence     0 for the first group, then previous + 1
//!   16    8  durable_upto end of the bytes known durable when the group was written
//!   24    4  prev_crc     header_crc of the group before; of the file header for the first
//!   28    1  kind         1 data, 2 closing (nothing follows)
//!   29    3  reserved     zero
//!   32    4  payload_crc  crc32c of the payload
//!   36    4  header_crc   crc32c of generation (8 bytes), then bytes 0..36
//!
//! A group begins where the one before ends or, if a sync came between, at the next multiple of
//! the write unit; the filesystem fills the space between with zeros (`TailPolicy::Seal`).
//!
//! Invariants:
//! - the generation is mixed into every header checksum, so a group of an older file in a
//!   reused extent never passes for valid;
//! - a group that fails its check is a torn tail, *unless* a later header of the same
//!   generation says that it had been durable. Only bytes written after that sync can say so,
//!   therefore such a header is proof of corruption, even one found inside a payload;
//! - a length is used only after its header's checksum held, and then bounded by the file's
//!   upper size.
//!
//! A damaged last group looks torn. [`GroupWriter::close`] writes a closing group, after which it
//! does not. Not done here: retries, rolling over to a next file, meaning of payloads.

mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use reader::{Closing, Group, GroupReader, Tail};
pub use writer::GroupWriter;

/// Length of a file header in bytes.
pub const FILE_HEADER_LEN: usize = 64;
/// Length of a group header in bytes: with a record of 4 KiB it fits in 9 sectors of 512 bytes.
pub const GROUP_HEADER_LEN: usize = 40;
/// Largest payload of one group in bytes.
pub const PAYLOAD_LEN_MAX: usize = 1 << 30;
/// Largest footer that a closing group can carry: with its header it fits in any write unit.
pub const FOOTER_LEN_MAX: usize = 512 - GROUP_HEADER_LEN;

/// First bytes of every file of groups.
pub const FILE_MAGIC: [u8; 8] = *b"LAVAGRPS";
const FILE_VERSION: u16 = 1;
const INCOMPAT_KNOWN: u32 = 0;
const GROUP_MAGIC: [u8; 4] = [0xB5, b'L', b'G', 0x1A];

const _: () = assert!(4096 + GROUP_HEADER_LEN + 64 <= 9 * 512);
const _: () = assert!(PAYLOAD_LEN_MAX <= u32::MAX as usize - GROUP_HEADER_LEN);

/// Where a payload lies in its file, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Position {
    /// Offset of the first byte.
    pub offset: u64,
    /// Length.
    pub len: u64,
}

impl Position {
    /// Offset behind the last byte.
    pub fn end(self) -> u64 {
        self.offset + self.len
    }
}

/// What a group is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Data,
    Closing,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FileHeader {
    write_unit: u32,
    generation: u64,
    tag: u64,
    crc: u32,
}

/// Why a file header cannot be used.
enum BadFileHeader {
    /// Not one, or a damaged one.
    Damaged,
    /// Valid, of a format that this program does not know.
    Newer(String),
}

impl FileHeader {
    fn encode(write_unit: u32, generation: u64, tag: u64) -> ([u8; FILE_HEADER_LEN], u32) {
        let mut bytes = [0; FILE_HEADER_LEN];
        bytes[0..8].copy_from_slice(&FILE_MAGIC);
        bytes[8..10].copy_from_slice(&FILE_VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(FILE_HEADER_LEN as u16).to_le_bytes());
        bytes[20..24].copy_from_slice(&write_unit.to_le_bytes());
        bytes[24..32].copy_from_slice(&generation.to_le_bytes());
        bytes[32..40].copy_from_slice(&tag.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    fn decode(bytes: &[u8]) -> Result<FileHeader, BadFileHeader> {
        if bytes.len() < FILE_HEADER_LEN || bytes[..8] != FILE_MAGIC {
            return Err(BadFileHeader::Damaged);
        }
        let crc = crc32c::crc32c(&bytes[..60]);
        if crc != u32_at(bytes, 60) {
            return Err(BadFileHeader::Damaged);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        let header_len = u16::from_le_bytes([bytes[10], bytes[11]]);
        if version != FILE_VERSION || usize::from(header_len) != FILE_HEADER_LEN {
            return Err(BadFileHeader::Newer(format!(
                "group file version {version}"
            )));
        }
        let unknown = u32_at(bytes, 12) & !INCOMPAT_KNOWN;
        if unknown != 0 {
            return Err(BadFileHeader::Newer(format!(
                "group file features {unknown:#x}"
            )));
        }
        let write_unit = u32_at(bytes, 20);
        if !write_unit.is_power_of_two() {
            return Err(BadFileHeader::Damaged);
        }
        Ok(FileHeader {
            write_unit,
            generation: u64_at(bytes, 24),
            tag: u64_at(bytes, 32),
            crc,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct GroupHeader {
    payload_len: u32,
    sequence: u64,
    durable_upto: u64,
    prev_crc: u32,
    kind: Kind,
    payload_crc: u32,
    /// Set by `decode`; not an input of `encode`.
    crc: u32,
}

impl GroupHeader {
    /// The header's bytes and checksum.
    fn encode(&self, generation: u64) -> ([u8; GROUP_HEADER_LEN], u32) {
        let mut bytes = [0; GROUP_HEADER_LEN];
        bytes[0..4].copy_from_slice(&GROUP_MAGIC);
        bytes[4..8].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.durable_upto.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.prev_crc.to_le_bytes());
        bytes[28] = match self.kind {
            Kind::Data => 1,
            Kind::Closing => 2,
        };
        bytes[32..36].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = header_crc(generation, &bytes);
        bytes[36..40].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// The header in `bytes`, if it is a valid one of this generation.
    fn decode(bytes: &[u8], generation: u64) -> Option<GroupHeader> {
        if bytes.len() < GROUP_HEADER_LEN || bytes[..4] != GROUP_MAGIC {
            return None;
        }
        let crc = header_crc(generation, bytes);
        let payload_len = u32_at(bytes, 4);
        if crc != u32_at(bytes, 36) || payload_len as usize > PAYLOAD_LEN_MAX {
            return None;
        }
        let kind = match bytes[28] {
            1 => Kind::Data,
            2 => Kind::Closing,
            _ => return None,
        };
        // The next group has the next number: the last one is never used.
        let sequence = u64_at(bytes, 8);
        if sequence == u64::MAX {
            return None;
        }
        Some(GroupHeader {
            payload_len,
            sequence,
            durable_upto: u64_at(bytes, 16),
            prev_crc: u32_at(bytes, 24),
            kind,
            payload_crc: u32_at(bytes, 32),
            crc,
        })
    }
}

fn header_crc(generation: u64, bytes: &[u8]) -> u32 {
    let seed = crc32c::crc32c(&generation.to_le_bytes());
    crc32c::crc32c_append(seed, &bytes[..36])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of 4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of 8 bytes"))
}
