//! Writing a group file: one append per group, one flush per sync.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use lavafs::{CreateOptions, FileRef, FileSize, FileSystemRef, TailPolicy, align_up};

use super::{
    FILE_HEADER_LEN, FOOTER_LEN_MAX, FileHeader, GROUP_HEADER_LEN, GroupHeader, GroupReader, Kind,
    PAYLOAD_LEN_MAX, Position,
};
use crate::error::{Error, Result};

/// Appends groups to one file. One owner; readers use their own handle on [`GroupWriter::file`].
///
/// After a failed append or sync every later call reports that failure: what reached the device
/// is unknown, and a flush must not be retried.
#[derive(Debug)]
pub struct GroupWriter {
    file: FileRef,
    path: PathBuf,
    write_unit: u64,
    generation: u64,
    /// Offset behind the last group, without padding.
    end: u64,
    /// `end` at the last sync.
    durable: u64,
    next_sequence: u64,
    prev_crc: u32,
    failed: Option<Error>,
}

impl GroupWriter {
    /// Makes the file, which must not exist, with space for `expected_size` bytes, and writes its
    /// header. Nothing is durable before the first [`GroupWriter::sync`].
    pub fn create(fs: &FileSystemRef, path: &Path, expected_size: u64) -> Result<GroupWriter> {
        GroupWriter::create_tagged(fs, path, expected_size, 0)
    }

    /// Like [`GroupWriter::create`], with a tag that [`GroupReader::tag`] gives back: it tells a
    /// file that was renamed or put in another's place.
    pub fn create_tagged(
        fs: &FileSystemRef,
        path: &Path,
        expected_size: u64,
        tag: u64,
    ) -> Result<GroupWriter> {
        let options = CreateOptions {
            expected_size,
            tail: TailPolicy::Seal,
        };
        let write_unit = fs.write_unit();
        let unit_on_disk = u32::try_from(write_unit).map_err(|_| Error::Invalid {
            what: format!("a write unit of {write_unit} bytes"),
        })?;
        let file = fs.create(path, &options)?;
        let generation = file.generation().0;
        let (header, crc) = FileHeader::encode(unit_on_disk, generation, tag);
        let start = file.append(&header)?;
        assert_eq!(start, 0, "a new file is empty");
        Ok(GroupWriter {
            file,
            path: path.to_path_buf(),
            write_unit,
            generation,
            end: FILE_HEADER_LEN as u64,
            durable: 0,
            next_sequence: 0,
            prev_crc: crc,
            failed: None,
        })
    }

    /// Continues a file that was not closed, after `reader` has returned its last group. What
    /// lies behind that group is cut off.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the reader has not reached the tail, found no valid file header,
    /// or found a closing group.
    pub fn resume(reader: &GroupReader) -> Result<GroupWriter> {
        let Some(point) = reader.resume_point() else {
            return Err(Error::Invalid {
                what: format!("{} cannot be continued", reader.path().display()),
            });
        };
        let file = reader.file().clone();
        match file.size() {
            FileSize::Between { .. } => file.settle(point.offset)?,
            FileSize::Exact(size) if size > point.offset => {
                file.truncate(point.offset)?;
                file.fsync()?;
            }
            FileSize::Exact(_) => {}
        }
        Ok(GroupWriter {
            file,
            path: reader.path().to_path_buf(),
            write_unit: point.write_unit,
            generation: point.generation,
            end: point.offset,
            // What recovery has read may still lie in a cache.
            durable: 0,
            next_sequence: point.next_sequence,
            prev_crc: point.prev_crc,
            failed: None,
        })
    }

    /// Appends one group whose payload is the concatenation of `parts` and returns where the
    /// payload lies. Readers see it at once; it is durable after [`GroupWriter::sync`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for a payload of more than [`PAYLOAD_LEN_MAX`] bytes: nothing was
    /// written and the writer can be used on. Any other error is final.
    pub fn append(&mut self, parts: &[IoSlice<'_>]) -> Result<Position> {
        self.check()?;
        self.append_kind(Kind::Data, parts)
    }

    /// Makes every appended group durable: one flush, none if nothing was appended.
    pub fn sync(&mut self) -> Result<()> {
        self.check()?;
        if self.durable < self.end {
            self.file.fdatasync().map_err(|e| self.fail(e.into()))?;
            self.durable = self.end;
        }
        Ok(())
    }

    /// Ends the file with a closing group, so that damage in its last data group is told from a
    /// torn tail, and makes everything and the exact size durable.
    pub fn close(self) -> Result<()> {
        self.close_with(&[])
    }

    /// Like [`GroupWriter::close`]; the closing group carries `footer`, which
    /// [`GroupReader::read_closing`] finds without reading the file.
    ///
    /// # Panics
    /// If the footer is longer than [`FOOTER_LEN_MAX`].
    pub fn close_with(mut self, footer: &[u8]) -> Result<()> {
        self.end_with(footer)
    }

    /// [`GroupWriter::close_with`] for who may have to do it again; nothing else can follow.
    pub(crate) fn end_with(&mut self, footer: &[u8]) -> Result<()> {
        assert!(footer.len() <= FOOTER_LEN_MAX, "a footer fits in one unit");
        self.sync()?;
        self.append_kind(Kind::Closing, &[IoSlice::new(footer)])?;
        self.file.fsync().map_err(|e| self.fail(e.into()))
    }

    /// The file, for reading.
    pub fn file(&self) -> &FileRef {
        &self.file
    }

    /// The generation that the file's checksums are seeded with: that of its header.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file up to the end of the last group.
    pub fn len(&self) -> u64 {
        self.end
    }

    /// True before the first group.
    pub fn is_empty(&self) -> bool {
        self.next_sequence == 0
    }

    /// Bytes of the file that are known to be durable.
    pub fn durable_len(&self) -> u64 {
        self.durable
    }

    /// Goes on after an append or sync that found no space: of the group nothing is in the file, and no flush
    /// has failed.
    pub(crate) fn forgive_no_space(&mut self) -> &mut GroupWriter {
        if self.failed.as_ref().is_some_and(Error::is_no_space) {
            self.failed = None;
        }
        self
    }

    fn append_kind(&mut self, kind: Kind, parts: &[IoSlice<'_>]) -> Result<Position> {
        let payload_len: usize = parts.iter().map(|part| part.len()).sum();
        if payload_len > PAYLOAD_LEN_MAX {
            return Err(Error::Invalid {
                what: format!("a group of {payload_len} bytes; at most {PAYLOAD_LEN_MAX}"),
            });
        }
        let payload_crc = parts
            .iter()
            .fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        let header = GroupHeader {
            payload_len: u32::try_from(payload_len).expect("bounded by PAYLOAD_LEN_MAX"),
            sequence: self.next_sequence,
            durable_upto: self.durable,
            prev_crc: self.prev_crc,
            kind,
            payload_crc,
            crc: 0,
        };
        let (bytes, crc) = header.encode(self.generation);
        let mut all = Vec::with_capacity(parts.len() + 1);
        all.push(IoSlice::new(&bytes));
        all.extend_from_slice(parts);
        let start = self
            .file
            .append_vectored(&all)
            .map_err(|e| self.fail(e.into()))?;
        let padded = align_up(self.end, self.write_unit);
        assert!(
            start == self.end || start == padded,
            "{}: a group at {start}, expected at {} or {padded}",
            self.path.display(),
            self.end,
        );
        let position = Position {
            offset: start + GROUP_HEADER_LEN as u64,
            len: payload_len as u64,
        };
        self.end = position.end();
        self.next_sequence += 1;
        self.prev_crc = crc;
        Ok(position)
    }

    fn check(&self) -> Result<()> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn fail(&mut self, error: Error) -> Error {
        self.failed = Some(error.clone());
        error
    }
}
