//! Opening for reading alone: the state of a moment, with nothing changed on disk.
//!
//! Recovery as far as it reads: no lock is taken, no torn tail cut, no file sealed, begun or removed. What
//! an uncertain size leaves open is read up to the last valid group.
//!
//! An owner may be at work meanwhile. The datalog is read before the metalog, so that the log of each
//! record is known, and all is tried again, a few times, where a file vanishes between two steps.
//! Not done here: following the owner. What he appends later is not seen. A kernel's filesystem keeps
//! the files that he removes; on a view of a LavaFS their bytes may become another file's, which is
//! [`Error::Corrupt`] when they are read.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lavafs::FileSystemRef;

use crate::data::{DataLog, FileTable, place};
use crate::engine::{Inner, LogEngine};
use crate::error::{Error, Result};
use crate::options::LogOptions;
use crate::recovery::Found;

/// How often files are read beside an owner who changes them meanwhile.
const ATTEMPTS: usize = 10;

impl LogEngine {
    /// Opens the engine in `dir` of `fs` for reading alone. Nothing is changed on disk and the
    /// directory's lock is not taken, so another process or handle may have it open: what is shown is
    /// the state of the moment of this call, and stays so. Every change fails with [`Error::ReadOnly`].
    /// A directory without files of an engine is an engine without logs.
    ///
    /// At level durable, records are read that a later group or the end of their file proves durable.
    ///
    /// # Errors
    /// As [`LogEngine::open`], but for the lock; `NotFound` where `dir` is missing.
    pub fn open_read_only(fs: FileSystemRef, dir: &Path) -> Result<LogEngine> {
        let inner = beside_an_owner(|| look(&fs, dir))?;
        Ok(LogEngine {
            inner: Arc::new(inner),
        })
    }
}

/// Tries `read` again where the files changed meanwhile. The same failure twice is no owner's work.
pub(crate) fn beside_an_owner<T>(read: impl Fn() -> Result<T>) -> Result<T> {
    let mut before = String::new();
    for _ in 1..ATTEMPTS {
        match read() {
            Err(error) if may_pass(&error) && error.to_string() != before => {
                before = error.to_string();
            }
            other => return other,
        }
    }
    read()
}

fn may_pass(error: &Error) -> bool {
    match error {
        Error::Fs(error) if error.is_not_found() => true,
        other => other.is_corrupt(),
    }
}

fn look(fs: &FileSystemRef, dir: &Path) -> Result<Inner> {
    let found = Found::read(fs, dir)?;
    let options = LogOptions::default();
    let next_file = found.next_file();
    let mut durable = place(next_file, 0);
    let files = FileTable::default();
    for data in found.data {
        if let Some(reader) = &data.unsealed {
            let end = reader.durable_len().min(u64::from(u32::MAX));
            durable = durable.min(place(data.number, end));
        }
        let sealed = data.unsealed.is_none();
        files.add(data.number, data.into_file(), sealed);
    }
    let names = found.namespace.build(&files);
    let datalog = DataLog::new(dir, options.data_file_size, next_file);
    let inner = Inner::new(fs.clone(), dir, &options, None, datalog, files, names);
    inner.durable.store(durable, Ordering::Release);
    Ok(inner)
}
