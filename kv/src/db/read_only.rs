//! Opening for reading alone: the state of a moment, with nothing changed on disk.
//!
//! 1. read the manifest in force and open every table and blob file it names, so that they stay readable
//!    although the owner may remove them;
//! 2. replay the logs into memtables, which are kept in memory however large they get.
//!
//! No lock is taken. An owner that is at work may remove a file between two steps, end one log
//! and begin the next between the reads of the two, or flush a log that the manifest read before
//! still needs and remove it: then all is tried again, a few times.

use std::path::Path;
use std::sync::Arc;

use lavafs::FileSystemRef;

use crate::db::engine::{BackgroundError, Engine, View};
use crate::db::recovery::{self, Replay};
use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::options::Options;
use crate::version::Recovered;

/// How often opening is tried beside an owner that changes files meanwhile.
const ATTEMPTS: usize = 10;

/// Opens the database at `dir`.
pub(crate) fn open(fs: &FileSystemRef, dir: &Path, options: &Options) -> Result<Arc<Engine>> {
    options.validate()?;
    let mut attempt = 1;
    let mut missing = String::new();
    loop {
        match open_once(fs, dir, options) {
            Err(error) if attempt < ATTEMPTS && may_pass(&error) => {
                attempt += 1;
                missing = error.to_string();
            }
            // The same file each time: no owner is at work, it is lost.
            Err(error) if error.to_string() == missing => return Err(error),
            Err(busy @ Error::Busy { .. }) => return Err(busy),
            // Another file than before, or another damage: the owner is at work.
            Err(error) if may_pass(&error) => {
                let what = format!("files change while {} is opened: {error}", dir.display());
                return Err(Error::Busy { what });
            }
            other => return other,
        }
    }
}

/// True for what a change by the owner between two steps looks like.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Busy { .. } => true,
        Error::Fs(error) => error.is_not_found(),
        other => other.is_corrupt(),
    }
}

fn open_once(fs: &FileSystemRef, dir: &Path, options: &Options) -> Result<Arc<Engine>> {
    let Some(recovered) = Recovered::read(fs, dir)? else {
        let what = format!("no database at {}", dir.display());
        return Err(Error::invalid_argument(what));
    };
    let engine = recovery::engine_for(fs.clone(), dir, options.clone(), None, &recovered)?;
    engine.install_recovered(&recovered, false)?;
    let cfs = engine.state.lock().cfs.clone();
    for cf in cfs.values() {
        for (_, _, file) in cf.view().version.files() {
            file.table(&*engine)
                .map_err(|error| named(error, FileName::Table(file.meta.number)))?;
        }
        for (&number, live) in cf.view().version.blobs.files().iter() {
            let opened = live.file.reader(&*engine);
            opened.map_err(|error| named(error, FileName::Blob(number)))?;
        }
    }
    engine.replay_logs(&recovered, Replay::of(options))?;
    for cf in cfs.values() {
        // Nobody is to wait for them to be flushed.
        cf.view().mem.table.seal();
    }
    engine.state.lock().error = Some(BackgroundError {
        error: Error::ReadOnly {
            reason: Arc::from("it was opened for reading alone"),
        },
        transient: false,
        resumable: false,
    });
    Ok(engine)
}

/// A file that the manifest names and that is not there is damage, if it stays so.
fn named(error: Error, name: FileName) -> Error {
    match error {
        Error::Fs(source) if source.is_not_found() => {
            Error::corrupt(name.to_string(), 0_u64, "is missing")
        }
        other => other,
    }
}

impl Engine {
    /// Fails where the oldest log that the recovered manifest needs is gone because its owner
    /// flushed it since: what it held is in a table that the manifest of before does not name.
    pub(crate) fn refuse_flushed_logs(&self, needed: FileNumber) -> Result<()> {
        let now = Recovered::read(&self.fs, &self.dir)?.unwrap_or_default();
        match now.cfs.values().map(|cf| cf.log_number).min() {
            Some(least) if least == needed => Ok(()),
            _ => {
                let what = format!("{} was flushed while it was opened", self.dir.display());
                Err(Error::Busy { what })
            }
        }
    }

    /// Makes the full memtable of a column family immutable; nothing flushes it.
    pub(crate) fn keep_in_memory(&self, cf: &crate::db::engine::ColumnFamily) {
        let view = cf.view();
        let mut imms = view.imms.clone();
        imms.insert(0, Arc::clone(&view.mem));
        view.mem.table.seal();
        let next = View {
            mem: self.new_mem(0),
            imms,
            version: Arc::clone(&view.version),
        };
        let state = self.state.lock();
        cf.set_view(next, &state);
    }
}
