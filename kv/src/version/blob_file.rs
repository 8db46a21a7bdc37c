//! `BlobFile`: the handle of a blob file, shared by the versions that have it.
//!
//! It opens the file on first use, and removes it when the manifest needs it no more, durably, and the last
//! version with it is gone. Where the cache's budget is short it closes the file and opens it again for the next
//! reader; whoever reads it meanwhile keeps it open.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwapOption, Guard};

use crate::blob::BlobFileReader;
use crate::cache::{BlockCache, Evictable};
use crate::error::Result;
use crate::file_names::{FileName, FileNumber};

use super::obsolete::ObsoleteFiles;

/// What the manifest records of a blob file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct BlobMeta {
    pub(crate) number: FileNumber,
    /// Bytes.
    pub(crate) file_size: u64,
    pub(crate) records: u64,
    /// Bytes of the values before compression.
    pub(crate) value_bytes: u64,
    /// Checksum of the whole file.
    pub(crate) checksum: u64,
    /// First internal key.
    pub(crate) smallest: Vec<u8>,
    /// Last internal key.
    pub(crate) largest: Vec<u8>,
}

/// A blob file's handle, shared by the versions that hold it. The file is removed when it is marked
/// obsolete and the last version with it is dropped.
pub(crate) struct BlobFile {
    pub(crate) meta: BlobMeta,
    /// Opened on first use; a failed open is tried again by the next reader.
    reader: ArcSwapOption<BlobFileReader>,
    /// A reader was asked for since the cache last wanted to know.
    used: AtomicBool,
    obsolete: AtomicBool,
    /// A scan found that its values' neighbours lie in many other files.
    scattered: AtomicBool,
    remover: Arc<ObsoleteFiles>,
}

/// An open blob file, which stays so until this is dropped. Its index is in memory, charged to the cache's budget.
pub(crate) struct OpenBlob(Guard<Option<Arc<BlobFileReader>>>);

impl OpenBlob {
    fn new(open: Guard<Option<Arc<BlobFileReader>>>) -> Option<Self> {
        open.is_some().then_some(OpenBlob(open))
    }
}

impl Deref for OpenBlob {
    type Target = Arc<BlobFileReader>;

    #[inline]
    fn deref(&self) -> &Arc<BlobFileReader> {
        self.0.as_ref().expect("made of open files only")
    }
}

/// Opens blob files for a version's readers.
pub(crate) trait BlobOpener: Send + Sync {
    /// Opens the file and charges its memory to the cache.
    fn open_blob(&self, meta: &BlobMeta) -> Result<Arc<BlobFileReader>>;

    /// The cache that may close open files for its budget. `None` where they have to stay open, as those of a
    /// read-only view do: their owner may have removed their names.
    fn closed_by(&self) -> Option<&BlockCache>;
}

impl std::fmt::Debug for BlobFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "BlobFile({}, {} bytes)",
            self.meta.number, self.meta.file_size
        )
    }
}

impl BlobFile {
    pub(crate) fn new(meta: BlobMeta, remover: Arc<ObsoleteFiles>) -> Arc<Self> {
        Arc::new(BlobFile {
            meta,
            reader: ArcSwapOption::empty(),
            used: AtomicBool::new(false),
            obsolete: AtomicBool::new(false),
            scattered: AtomicBool::new(false),
            remover,
        })
    }

    /// The file, if it is open.
    #[inline]
    pub(crate) fn open_reader(&self) -> Option<OpenBlob> {
        let open = OpenBlob::new(self.reader.load())?;
        // Written only where it changes something: all readers share it.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        Some(open)
    }

    /// The file, opened if it is not.
    pub(crate) fn reader(self: &Arc<Self>, opener: &dyn BlobOpener) -> Result<OpenBlob> {
        if let Some(open) = self.open_reader() {
            return Ok(open);
        }
        let opened = Some(opener.open_blob(&self.meta)?);
        let before = self
            .reader
            .compare_and_swap(&None::<Arc<BlobFileReader>>, opened.clone());
        // Another thread may have been quicker.
        if let Some(open) = OpenBlob::new(before) {
            return Ok(open);
        }
        if let Some(cache) = opener.closed_by() {
            cache.keep(self);
        }
        Ok(OpenBlob(Guard::from_inner(opened)))
    }

    /// Asks compactions to put its values in order with their neighbours; true where nobody has yet.
    pub(crate) fn mark_scattered(&self) -> bool {
        !self.scattered.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn is_scattered(&self) -> bool {
        self.scattered.load(Ordering::Relaxed)
    }

    /// The file is removed when the last version with it is gone. Call only after the manifest
    /// no longer needs it, durably.
    pub(crate) fn mark_obsolete(&self) {
        if !self.obsolete.swap(true, Ordering::AcqRel) {
            self.remover.hold(self.meta.file_size);
        }
    }
}

impl Evictable for BlobFile {
    fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    fn evict(&self) -> usize {
        let open = self.reader.swap(None);
        open.map_or(0, |reader| reader.memory())
    }
}

impl Drop for BlobFile {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire) {
            // The handle goes first: space of an open file does not return.
            self.reader.store(None);
            let name = FileName::Blob(self.meta.number);
            self.remover.let_go(name, self.meta.file_size);
        }
    }
}
