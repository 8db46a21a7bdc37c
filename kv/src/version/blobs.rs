//! `BlobSet`: the blob files of a version, the numbers that lead to them, and who refers to what.
//!
//! Tables refer to blob files by number. When garbage collection writes a file's live values into
//! another one, its heir, tables stay as they are: the old number becomes a *name* that leads to the heir
//! (LavaStore paper, section 3.2.1). A file has at most one heir, so names are kept flat: one look
//! at a hash table leads from any number to the one file that has the value now.
//!
//! Each table lists how many references with how many value bytes it has to each number. Adding
//! and removing these lists as tables come and go keeps the sums exact at the cost of the edit
//! alone; nothing is ever computed anew. From the sums follows everything else: garbage, the
//! pruning of names that no table uses, and the removal of files that nothing refers to.
//!
//! Invariants, after [`BlobSet::settle`]:
//! - every file is referred to; a name leads to a file, and is that file's own number or referred to;
//! - a file's sums are those of its names; they are at most what the file holds, because
//!   every internal key is in one table only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::blob::BlobFileReader;
use crate::cache::Reservation;
use crate::error::{Error, Result};
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

/// References, counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlobUse {
    /// References.
    pub references: u64,
    /// Bytes of their values before compression.
    pub value_bytes: u64,
}

impl BlobUse {
    pub(crate) fn add(&mut self, other: BlobUse) {
        self.references += other.references;
        self.value_bytes += other.value_bytes;
    }

    /// False where `other` is more than this.
    #[must_use]
    fn subtract(&mut self, other: BlobUse) -> bool {
        let left = self.references.checked_sub(other.references);
        let bytes = self.value_bytes.checked_sub(other.value_bytes);
        let (Some(references), Some(value_bytes)) = (left, bytes) else {
            return false;
        };
        *self = BlobUse {
            references,
            value_bytes,
        };
        true
    }
}

/// A table's references, by the number they name, ascending.
pub(crate) type TableRefs = Vec<(FileNumber, BlobUse)>;

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

    /// Asks compactions to put its values in order with their neighbours. Not remembered when the
    /// database is opened again.
    pub(crate) fn mark_scattered(&self) {
        self.scattered.store(true, Ordering::Relaxed);
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

/// A blob file of a version with what refers to it under all its names.
#[derive(Clone, Debug)]
pub(crate) struct LiveBlob<F> {
    pub(crate) file: F,
    pub(crate) used: BlobUse,
    /// Numbers that lead here, the file's own included.
    pub(crate) names: BTreeSet<FileNumber>,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    /// The file it leads to.
    file: FileNumber,
    used: BlobUse,
}

/// The blob files of a version. `F` is a handle of the file, or its description.
#[derive(Clone, Debug)]
pub(crate) struct BlobSet<F> {
    names: HashMap<FileNumber, Name>,
    files: BTreeMap<FileNumber, LiveBlob<F>>,
    /// Names that an edit has touched since the last `settle`.
    touched: Vec<FileNumber>,
}

impl<F> Default for BlobSet<F> {
    fn default() -> Self {
        BlobSet {
            names: HashMap::new(),
            files: BTreeMap::new(),
            touched: Vec::new(),
        }
    }
}

impl<F: Clone> BlobSet<F> {
    /// The file that has the values which references to `number` mean.
    #[inline]
    pub(crate) fn resolve(&self, number: FileNumber) -> Option<&F> {
        let name = self.names.get(&number)?;
        self.files.get(&name.file).map(|live| &live.file)
    }

    /// The number of the file that `number` leads to.
    #[inline]
    pub(crate) fn resolve_number(&self, number: FileNumber) -> Option<FileNumber> {
        self.names.get(&number).map(|name| name.file)
    }

    /// The files by number, with what refers to them.
    pub(crate) fn files(&self) -> &BTreeMap<FileNumber, LiveBlob<F>> {
        &self.files
    }

    /// Numbers that are not a file's own, with the files they lead to, ascending.
    pub(crate) fn ancestors(&self) -> Vec<(FileNumber, FileNumber)> {
        let pairs = self.files.iter().flat_map(|(&file, live)| {
            let others = live.names.iter().filter(move |&&name| name != file);
            others.map(move |&name| (name, file))
        });
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort_unstable();
        pairs
    }

    pub(crate) fn add_file(&mut self, number: FileNumber, file: F) -> Result<()> {
        let live = LiveBlob {
            file,
            used: BlobUse::default(),
            names: BTreeSet::from([number]),
        };
        let name = Name {
            file: number,
            used: BlobUse::default(),
        };
        let known = self.names.insert(number, name).is_some();
        if self.files.insert(number, live).is_some() || known {
            return Err(bad(format!("blob file {number} is added twice")));
        }
        self.touched.push(number);
        Ok(())
    }

    /// Lets `number` lead to the file `heir`. If `number` is a file's own, that file is gone and all
    /// its names lead to the heir; otherwise it must be a number that is not known.
    pub(crate) fn inherit(&mut self, number: FileNumber, heir: FileNumber) -> Result<()> {
        if number == heir || !self.files.contains_key(&heir) {
            return Err(bad(format!(
                "blob file {number} is inherited by {heir}, which is not there"
            )));
        }
        let (used, names) = match self.files.remove(&number) {
            Some(old) => (old.used, old.names),
            None if self.names.contains_key(&number) => {
                return Err(bad(format!("blob file {number} has two heirs")));
            }
            None => {
                let name = Name {
                    file: heir,
                    used: BlobUse::default(),
                };
                self.names.insert(number, name);
                (BlobUse::default(), BTreeSet::from([number]))
            }
        };
        for name in &names {
            let entry = self.names.get_mut(name).expect("a file's names are known");
            entry.file = heir;
        }
        self.touched.push(number);
        let live = self.files.get_mut(&heir).expect("looked up above");
        live.used.add(used);
        live.names.extend(names);
        Ok(())
    }

    /// A table with these references was added.
    pub(crate) fn refer(&mut self, refs: &TableRefs) -> Result<()> {
        for &(number, used) in refs {
            let Some(name) = self.names.get_mut(&number) else {
                return Err(bad(format!("no blob file has the number {number}")));
            };
            name.used.add(used);
            let live = self.files.get_mut(&name.file).expect("names lead to files");
            live.used.add(used);
        }
        Ok(())
    }

    /// A table with these references was removed.
    pub(crate) fn forget(&mut self, refs: &TableRefs) -> Result<()> {
        for &(number, used) in refs {
            let name = self.names.get_mut(&number);
            let file = name.and_then(|name| name.used.subtract(used).then_some(name.file));
            let live = file.and_then(|file| self.files.get_mut(&file));
            if !live.is_some_and(|live| live.used.subtract(used)) {
                return Err(bad(format!(
                    "more references to blob file {number} go than there were"
                )));
            }
            self.touched.push(number);
        }
        Ok(())
    }

    /// Ends an edit: forgets files that nothing refers to, and ancestors' names that no table uses.
    pub(crate) fn settle(&mut self) {
        for number in std::mem::take(&mut self.touched) {
            let Some(&Name { file, used }) = self.names.get(&number) else {
                continue;
            };
            let live = self.files.get_mut(&file).expect("names lead to files");
            if live.used.references == 0 {
                for name in &live.names {
                    self.names.remove(name);
                }
                self.files.remove(&file);
            } else if used.references == 0 && number != file {
                live.names.remove(&number);
                self.names.remove(&number);
            }
        }
    }
}

fn bad(what: String) -> Error {
    Error::invalid_argument(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(references: u64, value_bytes: u64) -> BlobUse {
        BlobUse {
            references,
            value_bytes,
        }
    }

    #[test]
    fn numbers_lead_to_the_last_heir_until_no_table_uses_them() {
        let mut set = BlobSet::default();
        let (old, mid) = (vec![(1, used(3, 300))], vec![(2, used(1, 50))]);
        set.add_file(1, 'a').unwrap();
        set.refer(&old).unwrap();
        set.settle();
        set.add_file(2, 'b').unwrap();
        set.inherit(1, 2).unwrap();
        set.refer(&mid).unwrap();
        set.settle();
        set.add_file(3, 'c').unwrap();
        set.inherit(2, 3).unwrap();
        set.settle();
        assert_eq!(set.resolve(1), Some(&'c'));
        assert_eq!(set.resolve(2), Some(&'c'));
        assert_eq!(set.resolve(3), Some(&'c'));
        assert_eq!(set.files()[&3].used, used(4, 350));
        assert_eq!(set.ancestors(), [(1, 3), (2, 3)]);
        set.forget(&old).unwrap();
        set.settle();
        assert_eq!(set.ancestors(), [(2, 3)]);
        set.forget(&mid).unwrap();
        set.settle();
        assert!(set.files().is_empty() && set.names.is_empty());
    }

    #[test]
    fn a_table_that_moves_keeps_its_blob_files() {
        let mut set = BlobSet::default();
        let refs = vec![(7, used(1, 9))];
        set.add_file(7, ()).unwrap();
        set.refer(&refs).unwrap();
        set.settle();
        set.forget(&refs).unwrap();
        set.refer(&refs).unwrap();
        set.settle();
        assert_eq!(set.files()[&7].used, used(1, 9));
    }

    #[test]
    fn a_file_that_nothing_refers_to_is_not_kept() {
        let mut set = BlobSet::default();
        set.add_file(1, ()).unwrap();
        set.settle();
        assert!(set.resolve(1).is_none() && set.files().is_empty());
    }

    #[test]
    fn edits_that_do_not_fit_are_refused() {
        let mut set = BlobSet::default();
        set.add_file(1, ()).unwrap();
        assert!(set.add_file(1, ()).is_err());
        assert!(set.inherit(1, 1).is_err());
        assert!(set.inherit(1, 2).is_err());
        assert!(set.refer(&vec![(9, used(1, 1))]).is_err());
        assert!(set.forget(&vec![(1, used(1, 1))]).is_err());
        set.add_file(2, ()).unwrap();
        set.inherit(1, 2).unwrap();
        set.refer(&vec![(1, used(1, 1))]).unwrap();
        set.add_file(3, ()).unwrap();
        assert!(set.inherit(1, 3).is_err(), "two heirs");
    }
}
