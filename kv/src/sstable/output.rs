//! A table or blob file on its way to disk: appends gathered to large ones, and a checksum of all bytes.
//!
//! Nothing is durable until [`FileOutput::finish`] has returned.

use std::io::IoSlice;

use lavafs::FileRef;
use xxhash_rust::xxh3::Xxh3;

use crate::error::Result;

/// A file that is written once, from front to back, by one thread.
pub(crate) struct FileOutput {
    file: FileRef,
    /// Bytes gathered before they are appended; what is longer is appended from where it is.
    gathered: usize,
    /// Bytes not yet appended.
    pending: Vec<u8>,
    /// Bytes of the file, `pending` included.
    len: u64,
    digest: Xxh3,
}

impl FileOutput {
    /// Begins in `file`, which must be empty and the caller's alone.
    pub(crate) fn new(file: FileRef, gathered: usize) -> Self {
        assert_eq!(file.size().upper(), 0, "a file is begun once");
        FileOutput {
            file,
            gathered,
            pending: Vec::with_capacity(gathered + (64 << 10)),
            len: 0,
            digest: Xxh3::new(),
        }
    }

    /// Bytes written so far.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Writes `parts` and `tail` one after the other.
    pub(crate) fn write(&mut self, parts: &[&[u8]], tail: &[u8]) -> Result<()> {
        let len = parts.iter().map(|part| part.len()).sum::<usize>() + tail.len();
        if len >= self.gathered {
            let mut slices = vec![IoSlice::new(&self.pending)];
            slices.extend(parts.iter().map(|part| IoSlice::new(part)));
            slices.push(IoSlice::new(tail));
            slices.iter().for_each(|slice| self.digest.update(slice));
            self.file.append_vectored(&slices)?;
            self.pending.clear();
        } else {
            parts
                .iter()
                .for_each(|part| self.pending.extend_from_slice(part));
            self.pending.extend_from_slice(tail);
            if self.pending.len() >= self.gathered {
                self.append_pending()?;
            }
        }
        self.len += len as u64;
        Ok(())
    }

    /// xxh3 of all bytes so far.
    pub(crate) fn checksum(&mut self) -> Result<u64> {
        self.append_pending()?;
        Ok(self.digest.digest())
    }

    /// Writes `footer` and makes all durable; returns the checksum of the file.
    pub(crate) fn finish(&mut self, footer: &[u8]) -> Result<u64> {
        self.write(&[], footer)?;
        let checksum = self.checksum()?;
        self.file.fsync()?;
        let size = self.file.size().lower();
        assert_eq!(size, self.len, "nobody else appends to the file");
        Ok(checksum)
    }

    fn append_pending(&mut self) -> Result<()> {
        self.digest.update(&self.pending);
        self.file.append(&self.pending)?;
        self.pending.clear();
        Ok(())
    }
}

impl std::fmt::Debug for FileOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of {:?}", self.len, self.file)
    }
}
