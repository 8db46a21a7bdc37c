//! `Values`: where a repair finds the values that tables refer to.
//!
//! Key and sequence number name one value in all blob files (FORMAT.md, "Keys"), so whichever file has
//! the record of an internal key has the value, whatever number the table names. Asked in turn: the file
//! of that number, the files that name it among their ancestors, every other file; sound ones first.
//!
//! A value in a sound file that the family may list stays where it is. Any other one is copied, if its
//! record checks. What no file has is lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lavafs::FileSystemRef;

use crate::blob::reference::BlobReference;
use crate::blob::{BlobFileReader, SalvagedFile};
use crate::error::Result;
use crate::file_names::{FileName, FileNumber};
use crate::version::BlobMeta;
use crate::write::batch::CfId;

/// Where a value is.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// In a file of the family's new structure.
    Stays(FileNumber),
    /// Read from a file that will not be in it.
    Copied(Vec<u8>),
    Lost,
}

enum Contents {
    Indexed(Arc<BlobFileReader>),
    Salvaged(SalvagedFile),
}

struct Source {
    contents: Contents,
    /// Every checksum is right.
    sound: bool,
    /// The family whose new structure has the file.
    owner: Option<CfId>,
}

/// The blob files of the directory, as far as they were asked for.
pub(super) struct Values<'a> {
    fs: &'a FileSystemRef,
    dir: &'a Path,
    sources: BTreeMap<FileNumber, Source>,
    /// A file without an owner becomes the first family's that refers to it.
    adopts: bool,
    /// Files of the directory that were not asked for yet.
    unread: Vec<FileNumber>,
}

impl<'a> Values<'a> {
    /// `files` are the blob files in the directory.
    pub(super) fn new(fs: &'a FileSystemRef, dir: &'a Path, files: Vec<FileNumber>) -> Self {
        Values {
            fs,
            dir,
            sources: BTreeMap::new(),
            adopts: false,
            unread: files,
        }
    }

    /// Without a manifest: looks at every file. Returns those that are damaged, and how.
    pub(super) fn adopt_all(&mut self) -> Result<Vec<(FileNumber, String)>> {
        self.adopts = true;
        let mut damaged = Vec::new();
        for number in std::mem::take(&mut self.unread) {
            if let Some(why) = self.read(number)? {
                damaged.push((number, why));
            }
        }
        Ok(damaged)
    }

    /// Looks at a file that a manifest gives to a family. Returns what is wrong with it.
    pub(super) fn claim(&mut self, cf: CfId, meta: &BlobMeta) -> Result<Option<String>> {
        self.unread.retain(|&number| number != meta.number);
        if let Some(why) = self.read(meta.number)? {
            return Ok(Some(why));
        }
        if self.meta(meta.number).as_ref() != Some(meta) {
            self.sources.remove(&meta.number);
            return Ok(Some("is not the manifest's".to_owned()));
        }
        let source = self.sources.get_mut(&meta.number);
        source.expect("just read").owner = Some(cf);
        Ok(None)
    }

    /// Opens a file and checks all of it. Returns what is wrong.
    fn read(&mut self, number: FileNumber) -> Result<Option<String>> {
        let path = self.dir.join(FileName::Blob(number).to_string());
        let file = match self.fs.open(&path) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Ok(Some("is missing".to_owned())),
            Err(error) => return Err(error.into()),
        };
        let (contents, why) = match BlobFileReader::open(file.clone(), number) {
            Ok(reader) => {
                let why = damage(reader.verify())?;
                (Contents::Indexed(reader), why)
            }
            Err(error) => {
                let why = damage(Err(error))?;
                (Contents::Salvaged(SalvagedFile::read(file, number)?), why)
            }
        };
        let source = Source {
            contents,
            sound: why.is_none(),
            owner: None,
        };
        self.sources.insert(number, source);
        Ok(why)
    }

    /// Finds the value of the entry with this internal key and reference.
    pub(super) fn find(&mut self, cf: CfId, key: &[u8], reference: BlobReference) -> Result<Found> {
        if let Some(found) = self.find_read(cf, key, reference)? {
            return Ok(found);
        }
        // Files that no family of the manifest has may still be there.
        for number in std::mem::take(&mut self.unread) {
            self.read(number)?;
        }
        let found = self.find_read(cf, key, reference)?;
        Ok(found.unwrap_or(Found::Lost))
    }

    fn find_read(
        &mut self,
        cf: CfId,
        key: &[u8],
        reference: BlobReference,
    ) -> Result<Option<Found>> {
        let order = self.search_order(reference.file);
        for number in order {
            let source = self.sources.get_mut(&number).expect("a file that was read");
            if source.len_of(key)? != Some(reference.value_len) {
                continue;
            }
            let free = source.owner.is_none() && self.adopts;
            if source.sound && (free || source.owner == Some(cf)) {
                source.owner = Some(cf);
                return Ok(Some(Found::Stays(number)));
            }
            if let Some(value) = source.value(key)?
                && value.len() as u64 == reference.value_len
            {
                return Ok(Some(Found::Copied(value)));
            }
        }
        Ok(None)
    }

    /// The files that were read, the likeliest first.
    fn search_order(&self, named: FileNumber) -> Vec<FileNumber> {
        if self.sources.get(&named).is_some_and(|it| it.sound) {
            // The common case: no other file need be ranked before it was asked.
            let others = self.sources.keys().filter(|&&number| number != named);
            return std::iter::once(named).chain(others.copied()).collect();
        }
        let mut order: Vec<FileNumber> = self.sources.keys().copied().collect();
        order.sort_by_key(|number| {
            let source = &self.sources[number];
            (!source.sound, *number != named, !source.inherits(named))
        });
        order
    }

    /// What a manifest records of a sound file.
    fn meta(&self, number: FileNumber) -> Option<BlobMeta> {
        let source = self.sources.get(&number)?;
        let Contents::Indexed(reader) = &source.contents else {
            return None;
        };
        let properties = reader.properties();
        Some(BlobMeta {
            number,
            file_size: properties.file_bytes,
            records: properties.records,
            value_bytes: properties.raw_value_bytes,
            checksum: properties.checksum,
            smallest: properties.smallest.clone(),
            largest: properties.largest.clone(),
        })
    }

    /// The files that belong to a family.
    pub(super) fn owned_by(&self, cf: CfId) -> Vec<BlobMeta> {
        let numbers = self.sources.iter();
        let numbers = numbers.filter(|(_, source)| source.owner == Some(cf));
        numbers
            .filter_map(|(&number, _)| self.meta(number))
            .collect()
    }
}

impl Source {
    fn inherits(&self, number: FileNumber) -> bool {
        match &self.contents {
            Contents::Indexed(reader) => {
                let ancestors = &reader.properties().ancestors;
                ancestors.binary_search(&number).is_ok()
            }
            Contents::Salvaged(_) => false,
        }
    }

    /// Bytes of the value of a key; `None` where the file has none, or a damaged one.
    fn len_of(&self, key: &[u8]) -> Result<Option<u64>> {
        match &self.contents {
            Contents::Indexed(reader) if self.sound => reader.value_len(key),
            _ => Ok(self.value(key)?.map(|value| value.len() as u64)),
        }
    }

    /// The value of a key, every byte checked; `None` where the file has none, or a damaged one.
    fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = match &self.contents {
            Contents::Indexed(reader) => reader.get(key),
            Contents::Salvaged(file) => file.get(key),
        };
        match value {
            Err(error) if error.is_corrupt() => Ok(None),
            other => other,
        }
    }
}

/// Tells damage, which is a finding, from what ends a repair: a device that fails, a newer format.
fn damage(outcome: Result<()>) -> Result<Option<String>> {
    match outcome {
        Ok(()) => Ok(None),
        Err(error) if error.is_corrupt() => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use lavafs::{CreateOptions, HostFs};

    use super::*;
    use crate::blob::{BlobFileBuilder, BlobFileOptions};
    use crate::key::InternalKey;
    use crate::key::ValueKind;

    fn key(name: &[u8], seq: u64) -> Vec<u8> {
        let key = InternalKey::new(name, seq, ValueKind::BlobReference);
        key.as_bytes().to_vec()
    }

    fn make(fs: &FileSystemRef, number: FileNumber, pairs: &[(&[u8], u64)], ancestors: &[u64]) {
        let path = Path::new("/").join(FileName::Blob(number).to_string());
        let file = fs.create(&path, &CreateOptions::default()).unwrap();
        let mut builder =
            BlobFileBuilder::create(file, number, BlobFileOptions::default()).unwrap();
        builder.set_ancestors(ancestors.iter().copied());
        for &(name, seq) in pairs {
            builder.add(&key(name, seq), &[seq as u8; 10]).unwrap();
        }
        builder.finish().unwrap();
    }

    fn reference(file: FileNumber) -> BlobReference {
        BlobReference {
            file,
            value_len: 10,
        }
    }

    /// Files of before say nothing of their ancestors.
    #[test]
    fn a_value_is_found_by_its_key_whether_or_not_its_file_names_the_ancestor() {
        for ancestors in [&[3, 4][..], &[]] {
            let dir = tempfile::tempdir().unwrap();
            let fs: FileSystemRef = Arc::new(HostFs::open(dir.path()).unwrap());
            make(&fs, 7, &[(b"a", 1), (b"b", 2)], &[]);
            make(&fs, 9, &[(b"a", 5), (b"c", 6)], ancestors);
            let mut values = Values::new(&fs, Path::new("/"), vec![7, 9]);
            assert_eq!(values.adopt_all().unwrap(), []);
            let mut find = |name: &[u8], seq, file| {
                let cf = CfId::DEFAULT;
                values.find(cf, &key(name, seq), reference(file)).unwrap()
            };
            assert_eq!(find(b"a", 5, 3), Found::Stays(9));
            assert_eq!(find(b"c", 6, 9), Found::Stays(9));
            assert_eq!(find(b"b", 2, 7), Found::Stays(7));
            // Another version of the key, or another length, is another value.
            assert_eq!(find(b"a", 4, 3), Found::Lost);
            assert_eq!(find(b"b", 1, 7), Found::Lost);
            assert_eq!(values.owned_by(CfId::DEFAULT).len(), 2);
            // What one family has, another one copies.
            let other = values.find(CfId(1), &key(b"b", 2), reference(7)).unwrap();
            assert_eq!(other, Found::Copied(vec![2; 10]));
        }
    }
}
