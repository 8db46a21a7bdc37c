//! `BlobFile`: the handle of a blob file, shared by the versions that have it.
//!
//! It opens the file on first use, and removes it when the manifest needs it no more, durably, and the last
//! version with it is gone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::blob::BlobFileReader;
use crate::cache::Reservation;
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
    reader: OnceLock<OpenBlob>,
    obsolete: AtomicBool,
    /// A scan found that its values' neighbours lie in many other files.
    scattered: AtomicBool,
    remover: Arc<ObsoleteFiles>,
}

/// An open blob file. Its index is in memory, charged to the cache's budget: blocks give way to it.
pub(crate) struct OpenBlob {
    pub(crate) reader: Arc<BlobFileReader>,
    pub(crate) _charge: Reservation,
}

/// Opens blob files for a version's readers.
pub(crate) trait BlobOpener: Send + Sync {
    fn open_blob(&self, meta: &BlobMeta) -> Result<OpenBlob>;
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
            reader: OnceLock::new(),
            obsolete: AtomicBool::new(false),
            scattered: AtomicBool::new(false),
            remover,
        })
    }

    /// The open file.
    pub(crate) fn reader(&self, opener: &dyn BlobOpener) -> Result<&Arc<BlobFileReader>> {
        if let Some(open) = self.reader.get() {
            return Ok(&open.reader);
        }
        let open = opener.open_blob(&self.meta)?;
        Ok(&self.reader.get_or_init(|| open).reader)
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

impl Drop for BlobFile {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire) {
            // The handle goes first: space of an open file does not return.
            drop(self.reader.take());
            let name = FileName::Blob(self.meta.number);
            self.remover.let_go(name, self.meta.file_size);
        }
    }
}
