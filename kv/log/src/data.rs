//! The datalog: records of all logs, in group files `data-NNNNNNNN.log`, and the table of those
//! files.
//!
//! A file is sealed by its directory and a closing group; only then is the next one begun. What a
//! crash leaves at each step: an unsealed last file, which recovery scans and seals; or a sealed
//! last file, and the next one begins with the first append.
//!
//! Locks: the engine guards [`DataLog`]; its lock is held across device I/O, by the leader of a
//! group. [`FileTable`] has a lock of its own, taken last and never held across I/O.
//!
//! Invariants: offsets in a file fit in 32 bits; `live` of a file is the number of index entries
//! that point into it; a sealed file without live records is removed, after the operations that
//! killed its records are durable.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lavafs::{FileRef, FileSystemRef};
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::group::{GROUP_HEADER_LEN, GroupWriter, PAYLOAD_LEN_MAX, Position};
use crate::index::Entry;
use crate::record::{DirectoryBuilder, take_record};
use lavafs::codec::Decoder;

const _: () = assert!((1usize << 30) + PAYLOAD_LEN_MAX + (1 << 20) < u32::MAX as usize);

/// A physical file that records are read from.
#[derive(Debug)]
pub(crate) struct DataFile {
    pub(crate) file: FileRef,
    pub(crate) path: PathBuf,
    pub(crate) generation: u64,
}

impl DataFile {
    /// Reads the record of `entry` as a whole into `bytes`, unless `read` says that it is there: behind the
    /// certain part of a size that nobody has settled since a crash. Checksums tell what is read there.
    pub(crate) fn read_rest(&self, entry: Entry, bytes: &mut [u8], read: usize) -> Result<usize> {
        if read == bytes.len() {
            return Ok(read);
        }
        let offset = u64::from(entry.offset);
        Ok(self.file.read_unverified(offset, bytes)?)
    }
}

#[derive(Debug)]
struct Slot {
    file: Arc<DataFile>,
    live: u64,
    sealed: bool,
}

/// All physical files by number.
#[derive(Debug, Default)]
pub(crate) struct FileTable {
    slots: Mutex<BTreeMap<u32, Slot>>,
}

impl FileTable {
    pub(crate) fn add(&self, number: u32, file: DataFile, sealed: bool) {
        let slot = Slot {
            file: Arc::new(file),
            live: 0,
            sealed,
        };
        let before = self.slots.lock().insert(number, slot);
        assert!(before.is_none(), "file numbers are not used twice");
    }

    /// The file of an entry. The caller holds the lock of the log whose index has the entry, so
    /// the file has a live record and is there.
    pub(crate) fn of(&self, entry: Entry) -> Arc<DataFile> {
        let slots = self.slots.lock();
        let slot = slots.get(&entry.file);
        slot.expect("a file with a live record stays").file.clone()
    }

    pub(crate) fn add_live(&self, number: u32, count: u64) {
        if let Some(slot) = self.slots.lock().get_mut(&number) {
            slot.live += count;
        }
    }

    /// Counts entries that left an index; true if that left a sealed file without live records.
    pub(crate) fn remove_live(&self, removed: &BTreeMap<u32, u64>) -> bool {
        let mut slots = self.slots.lock();
        let mut dead = false;
        for (number, count) in removed {
            let slot = slots
                .get_mut(number)
                .expect("a file with a live record stays");
            assert!(slot.live >= *count, "each entry is removed once");
            slot.live -= count;
            dead |= slot.sealed && slot.live == 0;
        }
        dead
    }

    pub(crate) fn has_dead(&self) -> bool {
        self.slots.lock().values().any(|s| s.sealed && s.live == 0)
    }

    /// Takes every sealed file without live records out of the table.
    pub(crate) fn take_dead(&self) -> Vec<Arc<DataFile>> {
        let mut slots = self.slots.lock();
        let (dead, kept) = std::mem::take(&mut *slots)
            .into_iter()
            .partition(|(_, slot)| slot.sealed && slot.live == 0);
        *slots = kept;
        let dead: BTreeMap<u32, Slot> = dead;
        dead.into_values().map(|slot| slot.file).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.lock().len()
    }

    fn seal(&self, number: u32) {
        if let Some(slot) = self.slots.lock().get_mut(&number) {
            slot.sealed = true;
        }
    }
}

/// The file that groups are appended to.
#[derive(Debug)]
pub(crate) struct DataLog {
    dir: PathBuf,
    file_size: u64,
    active: Option<Active>,
    next_number: u32,
}

#[derive(Debug)]
struct Active {
    number: u32,
    writer: GroupWriter,
    directory: DirectoryBuilder,
}

/// The file that the next group goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prepared {
    pub(crate) number: u32,
    pub(crate) generation: u64,
    /// The file before it was sealed just now.
    pub(crate) sealed: bool,
}

impl DataLog {
    pub(crate) fn new(dir: &Path, file_size: u64, next_number: u32) -> DataLog {
        DataLog {
            dir: dir.to_path_buf(),
            file_size,
            active: None,
            next_number,
        }
    }

    /// Goes on in a file that is not sealed; `directory` is of the records that it holds.
    pub(crate) fn resume(&mut self, number: u32, writer: GroupWriter, directory: DirectoryBuilder) {
        assert!(
            self.active.is_none(),
            "one file at most has records and no end"
        );
        self.active = Some(Active {
            number,
            writer,
            directory,
        });
    }

    /// Names the file that the next group goes to. Seals the present one if it is full, and begins
    /// one if there is none.
    pub(crate) fn prepare(&mut self, fs: &FileSystemRef, files: &FileTable) -> Result<Prepared> {
        let full = |active: &Active| active.writer.len() >= self.file_size;
        let sealed = self.active.as_ref().is_some_and(full);
        if sealed {
            self.seal(files)?;
        }
        if self.active.is_none() {
            let number = self.next_number;
            let path = data_path(&self.dir, number);
            let tag = u64::from(number);
            // On a small or nearly full device a whole file's space would be all there is.
            let expected_size = self.file_size.min(fs.space().free / 16);
            let made = GroupWriter::create_tagged(fs, &path, expected_size, tag);
            let writer = made.or_else(|error| {
                // The next append tries again, under the same name.
                if error.is_no_space() {
                    remove_unused(fs, &path)?;
                }
                Err(error)
            })?;
            let file = DataFile {
                file: writer.file().clone(),
                path,
                generation: writer.generation(),
            };
            files.add(number, file, false);
            self.next_number += 1;
            self.active = Some(Active {
                number,
                writer,
                directory: DirectoryBuilder::default(),
            });
        }
        let active = self.active.as_ref().expect("made above");
        Ok(Prepared {
            number: active.number,
            generation: active.writer.generation(),
            sealed,
        })
    }

    /// Appends a group of records to the file that [`DataLog::prepare`] named.
    pub(crate) fn append(&mut self, payload: &[u8]) -> Result<(Position, &mut DirectoryBuilder)> {
        let active = self.active.as_mut().expect("a group is prepared first");
        let writer = active.writer.forgive_no_space();
        let position = writer.append(&[IoSlice::new(payload)])?;
        Ok((position, &mut active.directory))
    }

    /// Makes every group durable; returns the place before which all records are durable.
    pub(crate) fn sync(&mut self) -> Result<u64> {
        match &mut self.active {
            Some(active) => {
                active.writer.forgive_no_space().sync()?;
                Ok(place(active.number, active.writer.len()))
            }
            None => Ok(place(self.next_number, 0)),
        }
    }

    /// Ends the present file with its directory; the next append begins another. One that could not be
    /// ended stays: its records are not durable, or a later file would be taken for proof that it lost its end.
    pub(crate) fn seal(&mut self, files: &FileTable) -> Result<()> {
        if let Some(active) = &mut self.active {
            seal_with(&mut active.writer, &active.directory)?;
            files.seal(active.number);
            self.active = None;
        }
        Ok(())
    }
}

/// Writes the directory and the closing group. Where there was no space for them it can be done again.
pub(crate) fn seal_with(writer: &mut GroupWriter, directory: &DirectoryBuilder) -> Result<()> {
    // With the records durable first, the directory's group is proof that none is missing.
    writer.forgive_no_space().sync()?;
    let position = writer.append(&[IoSlice::new(directory.payload())])?;
    let start = position.offset - GROUP_HEADER_LEN as u64;
    writer.end_with(&directory.footer(start))
}

/// Removes a file that could not be begun.
pub(crate) fn remove_unused(fs: &FileSystemRef, path: &Path) -> Result<()> {
    match fs.unlink(path) {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

/// A place in the datalog as one number: file, then offset.
pub(crate) fn place(number: u32, offset: u64) -> u64 {
    let offset = u32::try_from(offset).expect("offsets in a data file fit in 32 bits");
    u64::from(number) << 32 | u64::from(offset)
}

pub(crate) fn data_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("data-{number:08}.log"))
}

/// Takes the data out of a framed record as read, if it is the record of `log` and `entry`.
pub(crate) fn unframe(bytes: &[u8], log: u64, entry: Entry, file: &DataFile) -> Result<Vec<u8>> {
    let corrupt = |detail| Error::corrupt(&file.path, u64::from(entry.offset), detail);
    let mut cursor = Decoder::new(bytes);
    let (key, data, len) = take_record(&mut cursor, file.generation).map_err(corrupt)?;
    if key.log != log || key.lsn != entry.lsn || len != entry.len {
        return Err(corrupt("another record than the index names"));
    }
    Ok(data.to_vec())
}
