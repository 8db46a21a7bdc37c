//! Reading a group file, and judging its tail.
//!
//! The expected next group is looked for behind the last one and at the next write unit. Where
//! neither holds a valid one that continues the chain, the rest of the file is searched for a
//! header that proves corruption (see the parent module); without one the tail is torn or clean.

use std::path::{Path, PathBuf};

use lavafs::{FileRef, FileSize, align_down, align_up};

use super::{
    BadFileHeader, FILE_HEADER_LEN, FileHeader, GROUP_HEADER_LEN, GROUP_MAGIC, GroupHeader, Kind,
    Position,
};
use crate::error::{Error, Result};

const READAHEAD_LEN: u64 = 1 << 20;

/// How a file ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    /// With a closing group, or with zeros or nothing behind the last group.
    Clean,
    /// Bytes at `offset` are no valid group, and nothing says that they were ever durable: the
    /// group being written at the crash, or an older file's bytes in the same extent.
    Torn {
        /// Where the group after the last valid one should begin.
        offset: u64,
    },
}

/// One group as read.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// 0 for the first group of a file, then one more for each.
    pub sequence: u64,
    /// Where the payload lies in the file.
    pub position: Position,
    /// The payload; its checksum held.
    pub payload: &'a [u8],
}

/// The closing group of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Closing {
    /// What [`super::GroupWriter::close_with`] was given.
    pub footer: Vec<u8>,
    /// The file's tag.
    pub tag: u64,
    /// Where the closing group begins.
    pub offset: u64,
}

/// Reads the groups of one file in order. Never changes the file.
#[derive(Debug)]
pub struct GroupReader {
    file: FileRef,
    path: PathBuf,
    /// `None` where the file never got a durable header.
    header: Option<FileHeader>,
    generation: u64,
    upper: u64,
    window: Window,
    /// Behind the last valid group.
    end: u64,
    /// What the groups so far say that was durable when they were written.
    durable_upto: u64,
    next_sequence: u64,
    /// `None` after a seek: the next group may continue any chain.
    prev_crc: Option<u32>,
    closed: bool,
    tail: Option<Tail>,
    /// Where a writer may continue; set with `tail`.
    resume_at: u64,
}

/// Where and how a [`super::GroupWriter`] continues.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResumePoint {
    pub(super) offset: u64,
    pub(super) write_unit: u64,
    pub(super) generation: u64,
    pub(super) next_sequence: u64,
    pub(super) prev_crc: u32,
}

impl GroupReader {
    /// Begins at the first group of `file`; `path` is its name in messages.
    ///
    /// A file whose header was never durable has no groups.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a damaged header that was durable; `Unsupported` for a newer format.
    pub fn open(file: FileRef, path: &Path) -> Result<GroupReader> {
        let upper = file.size().upper();
        let mut reader = GroupReader {
            generation: file.generation().0,
            file,
            path: path.to_path_buf(),
            header: None,
            upper,
            window: Window::default(),
            end: 0,
            durable_upto: 0,
            next_sequence: 0,
            prev_crc: None,
            closed: false,
            tail: None,
            resume_at: 0,
        };
        match read_file_header(&reader.file, path)? {
            Some(header) => {
                reader.generation = header.generation;
                reader.end = FILE_HEADER_LEN as u64;
                reader.prev_crc = Some(header.crc);
                reader.header = Some(header);
            }
            None => reader.tail = Some(reader.judge_tail(0, "the file header is damaged")?),
        }
        Ok(reader)
    }

    /// The closing group of `file`, read from its last unit alone; `None` where the size is not
    /// exact or the last unit holds no valid closing group.
    pub fn read_closing(file: &FileRef, path: &Path) -> Result<Option<Closing>> {
        let FileSize::Exact(size) = file.size() else {
            return Ok(None);
        };
        let Some(header) = read_file_header(file, path)? else {
            return Ok(None);
        };
        if size <= FILE_HEADER_LEN as u64 {
            return Ok(None);
        }
        let offset = align_down(size - 1, u64::from(header.write_unit));
        let wanted = usize::try_from(size - offset).expect("at most a write unit");
        let mut bytes = vec![0; wanted];
        let read = file.read_at(offset, &mut bytes)?;
        bytes.truncate(read);
        let Some(group) = GroupHeader::decode(&bytes, header.generation) else {
            return Ok(None);
        };
        let payload = &bytes[GROUP_HEADER_LEN..];
        let footer = payload.get(..group.payload_len as usize);
        Ok(footer
            .filter(|footer| group.kind == Kind::Closing && crc_holds(&group, footer))
            .map(|footer| Closing {
                footer: footer.to_vec(),
                tag: header.tag,
                offset,
            }))
    }

    /// Continues at the group that begins at `offset`, without a check that it follows the one
    /// before: for readers of an index in the file.
    pub fn seek(&mut self, offset: u64) {
        if self.header.is_some() {
            self.end = offset;
            self.prev_crc = None;
            self.closed = false;
            self.tail = None;
        }
    }

    /// The next data group; `None` at the end, then see [`GroupReader::tail`].
    ///
    /// # Errors
    /// [`Error::Corrupt`] with file and offset for a bad group that is proven to have been
    /// durable. It is reported by every further call too.
    pub fn next_group(&mut self) -> Result<Option<Group<'_>>> {
        if self.tail.is_some() {
            return Ok(None);
        }
        let padded = align_up(self.end, self.write_unit());
        let mut reason = self.probe(self.end)?;
        if !matches!(reason, Probe::Valid(_)) && padded != self.end {
            let behind_padding = self.probe(padded)?;
            // Say why the place with the better claim failed.
            if !matches!(behind_padding, Probe::Bad("no group begins here")) {
                reason = behind_padding;
            }
        }
        match reason {
            Probe::Valid(found) => self.accept(found),
            Probe::Bad(detail) => {
                let start = self.continue_at()?;
                self.resume_at = if start <= self.upper { start } else { self.end };
                self.tail = Some(self.judge_tail(start, detail)?);
                Ok(None)
            }
        }
    }

    /// How the file ends.
    ///
    /// # Panics
    /// Before [`GroupReader::next_group`] has returned `None`.
    pub fn tail(&self) -> Tail {
        self.tail.expect("the tail is known at the end")
    }

    /// True once the closing group was read: nothing can be missing.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The caller's tag; `None` where the file never got a durable header.
    pub fn tag(&self) -> Option<u64> {
        self.header.map(|header| header.tag)
    }

    /// The generation that checksums of this file's records are seeded with.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Offset behind the last valid group.
    pub fn valid_len(&self) -> u64 {
        self.end
    }

    /// Bytes of [`GroupReader::valid_len`] that are proven to be durable: by a later group, or by the
    /// closing one.
    pub fn durable_len(&self) -> u64 {
        if self.closed {
            return self.end;
        }
        self.durable_upto.min(self.end)
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file.
    pub fn file(&self) -> &FileRef {
        &self.file
    }

    pub(super) fn resume_point(&self) -> Option<ResumePoint> {
        if self.tail.is_none() || self.closed {
            return None;
        }
        Some(ResumePoint {
            offset: self.resume_at,
            write_unit: self.write_unit(),
            generation: self.header?.generation,
            next_sequence: self.next_sequence,
            prev_crc: self.prev_crc?,
        })
    }

    fn write_unit(&self) -> u64 {
        self.header.map_or(1, |header| u64::from(header.write_unit))
    }

    /// Looks for the next group of the chain at `offset`; checks header, chain and payload.
    fn probe(&mut self, offset: u64) -> Result<Probe> {
        let bytes = self
            .window
            .get(&self.file, self.upper, offset, GROUP_HEADER_LEN as u64)?;
        if bytes.len() < GROUP_HEADER_LEN || bytes[..4] != GROUP_MAGIC {
            return Ok(Probe::Bad("no group begins here"));
        }
        let Some(header) = GroupHeader::decode(bytes, self.generation) else {
            return Ok(Probe::Bad("a group header fails its checksum"));
        };
        if let Some(prev_crc) = self.prev_crc
            && (header.prev_crc != prev_crc || header.sequence != self.next_sequence)
        {
            return Ok(Probe::Bad("a group does not follow the one before"));
        }
        let position = Position {
            offset: offset + GROUP_HEADER_LEN as u64,
            len: u64::from(header.payload_len),
        };
        let payload = self.payload(position)?;
        if !crc_holds(&header, payload) {
            return Ok(Probe::Bad("a group's payload fails its checksum"));
        }
        Ok(Probe::Valid(Found { header, position }))
    }

    fn accept(&mut self, found: Found) -> Result<Option<Group<'_>>> {
        let Found { header, position } = found;
        self.end = position.end();
        self.durable_upto = self.durable_upto.max(header.durable_upto);
        self.next_sequence = header.sequence + 1;
        self.prev_crc = Some(header.crc);
        if header.kind == Kind::Closing {
            self.closed = true;
            self.tail = Some(Tail::Clean);
            return Ok(None);
        }
        let payload = self.payload(position)?;
        Ok(Some(Group {
            sequence: header.sequence,
            position,
            payload,
        }))
    }

    /// The bytes of a payload, short where the file ends before it does.
    fn payload(&mut self, position: Position) -> Result<&[u8]> {
        // Header and payload in one window, so that a payload is read once.
        let start = position.offset - GROUP_HEADER_LEN as u64;
        let len = position.len + GROUP_HEADER_LEN as u64;
        if start + len > self.upper {
            return Ok(&[]);
        }
        let bytes = self.window.get(&self.file, self.upper, start, len)?;
        Ok(bytes.get(GROUP_HEADER_LEN..).unwrap_or(&[]))
    }

    /// Where the next group should begin: behind the padding if there is some.
    fn continue_at(&mut self) -> Result<u64> {
        let padded = align_up(self.end, self.write_unit());
        let padding = self
            .window
            .get(&self.file, self.upper, self.end, padded - self.end)?;
        let all_zero = padding.iter().all(|&byte| byte == 0);
        Ok(if all_zero { padded } else { self.end })
    }

    /// Decides between a torn tail and corruption at `start`.
    fn judge_tail(&mut self, start: u64, detail: &str) -> Result<Tail> {
        let mut offset = start;
        loop {
            let bytes = self
                .window
                .get(&self.file, self.upper, offset, READAHEAD_LEN)?;
            if bytes.len() < GROUP_HEADER_LEN {
                break;
            }
            let last = bytes.len() - GROUP_HEADER_LEN;
            let mut at = 0;
            while let Some(skip) = bytes[at..].iter().position(|&byte| byte == GROUP_MAGIC[0]) {
                at += skip;
                if at > last {
                    break;
                }
                if let Some(later) = GroupHeader::decode(&bytes[at..], self.generation)
                    && later.durable_upto > start
                {
                    let proof = offset + at as u64;
                    let detail =
                        format!("{detail}, yet the group at byte {proof} says it was durable");
                    return Err(Error::corrupt(&self.path, start, detail));
                }
                at += 1;
            }
            offset += last as u64 + 1;
        }
        let first = self
            .window
            .get(&self.file, self.upper, start, GROUP_HEADER_LEN as u64)?;
        let clean = first.iter().all(|&byte| byte == 0);
        Ok(if clean {
            Tail::Clean
        } else {
            Tail::Torn { offset: start }
        })
    }
}

enum Probe {
    Valid(Found),
    Bad(&'static str),
}

struct Found {
    header: GroupHeader,
    position: Position,
}

fn crc_holds(header: &GroupHeader, payload: &[u8]) -> bool {
    payload.len() == header.payload_len as usize && crc32c::crc32c(payload) == header.payload_crc
}

/// The header of `file`, if its bytes are certainly the file's own: below the lower size bound,
/// or of the file's generation.
fn read_file_header(file: &FileRef, path: &Path) -> Result<Option<FileHeader>> {
    let mut bytes = [0; FILE_HEADER_LEN];
    let read = file.read_unverified(0, &mut bytes)?;
    let own = file.size().lower() >= FILE_HEADER_LEN as u64;
    match FileHeader::decode(&bytes[..read]) {
        Ok(header) if own || header.generation == file.generation().0 => Ok(Some(header)),
        Ok(_) | Err(BadFileHeader::Damaged) => Ok(None),
        Err(BadFileHeader::Newer(what)) if own => Err(lavafs::Error::Unsupported {
            what: format!("{what} of {}", path.display()),
        }
        .into()),
        Err(BadFileHeader::Newer(_)) => Ok(None),
    }
}

/// A readahead buffer over a part of the file.
#[derive(Debug, Default)]
struct Window {
    bytes: Vec<u8>,
    offset: u64,
    /// Bytes of `bytes` that hold what the file has.
    filled: usize,
}

impl Window {
    /// The `len` bytes at `offset`; fewer only where the file ends at `upper`.
    fn get(&mut self, file: &FileRef, upper: u64, offset: u64, len: u64) -> Result<&[u8]> {
        let len = len.min(upper.saturating_sub(offset));
        let held = offset >= self.offset && offset + len <= self.offset + self.filled as u64;
        if !held {
            let wanted = len.max(READAHEAD_LEN).min(upper.saturating_sub(offset)) as usize;
            self.offset = offset;
            self.filled = 0;
            if self.bytes.len() < wanted || self.bytes.len() > wanted + 8 * READAHEAD_LEN as usize {
                self.bytes.clear();
                self.bytes.resize(wanted, 0);
                self.bytes.shrink_to_fit();
            }
            while self.filled < wanted {
                let at = offset + self.filled as u64;
                let read = file.read_unverified(at, &mut self.bytes[self.filled..wanted])?;
                if read == 0 {
                    break;
                }
                self.filled += read;
            }
        }
        if len == 0 {
            return Ok(&[]);
        }
        let from = usize::try_from(offset - self.offset).expect("within the window");
        let to = (from + len as usize).min(self.filled);
        Ok(&self.bytes[from.min(to)..to])
    }
}
