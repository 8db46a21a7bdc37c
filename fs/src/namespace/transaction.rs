//! Several changes of the namespace as one: all of them happen, or none.

use std::path::{Path, PathBuf};

use crate::error::{Error, PathError, Result};
use crate::format::op::{FLAG_EXACT, InodeRecord};
use crate::fs::{LavaFs, at_path, names, process_ownership};
use crate::meta::inode::{MODE_DIRECTORY, MODE_FILE};
use crate::meta::tables::ROOT;
use crate::types::Ino;
use crate::vfs::TailPolicy;

use super::RenameMode;
use super::change::Change;
use super::edit::tail_flags;

/// Bytes of journal that one step takes at most: two longest names and the attributes of the two
/// directories and two inodes they are about.
const STEP_LEN_MAX: u64 = 1024;

/// Changes of the namespace that [`Transaction::commit`] makes as one.
///
/// Steps are collected and looked at only by `commit`: each is checked as if those before it had been made, so
/// that a file may be created, linked and its first name removed in one transaction. Nobody sees
/// some of them without the others, neither another thread nor the filesystem after a crash: they
/// are one journal record. File contents take no part: what the files hold is made durable by
/// their own sync, before.
///
/// ```
/// # fn main() -> lavafs::Result<()> {
/// # use lavafs::{FileSystem, TailPolicy};
/// # let device = lavafs::device::SimDevice::new(4 << 20, 512);
/// # lavafs::mkfs(&device, &lavafs::MkfsOptions::default())?;
/// # let fs = lavafs::LavaFs::mount(std::sync::Arc::new(device), &Default::default())?;
/// # let mut first = fs.transaction();
/// # first.create("/table.new", TailPolicy::Pack).create("/table.log", TailPolicy::Seal);
/// # first.commit()?;
/// let mut change = fs.transaction();
/// change.rename("/table.new", "/table").unlink("/table.log");
/// change.commit()?;
/// assert_eq!(fs.list("/".as_ref())?.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "nothing happens before `commit`"]
pub struct Transaction<'a> {
    fs: &'a LavaFs,
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    Create(PathBuf, TailPolicy),
    CreateDir(PathBuf),
    Link(PathBuf, PathBuf),
    Unlink(PathBuf),
    RemoveDir(PathBuf),
    Rename(PathBuf, PathBuf, RenameMode),
}

impl LavaFs {
    /// An empty transaction.
    pub fn transaction(&self) -> Transaction<'_> {
        Transaction {
            fs: self,
            steps: Vec::new(),
        }
    }

    /// The most steps of one transaction on this filesystem: 1024 where the journal's regions have 8
    /// MiB or more, and an eighth of a region in KiB where they are smaller.
    ///
    /// # Errors
    /// `ReadOnly`.
    pub fn transaction_steps_max(&self) -> Result<usize> {
        let bytes = self.core.journal()?.transaction_len_max();
        Ok((bytes / STEP_LEN_MAX) as usize)
    }
}

impl Transaction<'_> {
    /// Makes an empty file. It is opened after the commit.
    pub fn create(&mut self, path: impl AsRef<Path>, tail: TailPolicy) -> &mut Self {
        self.step(Step::Create(path.as_ref().into(), tail))
    }

    /// Makes a directory, in one that exists.
    pub fn create_dir(&mut self, path: impl AsRef<Path>) -> &mut Self {
        self.step(Step::CreateDir(path.as_ref().into()))
    }

    /// Gives a file or symbolic link a further name.
    pub fn link(&mut self, existing: impl AsRef<Path>, new: impl AsRef<Path>) -> &mut Self {
        self.step(Step::Link(existing.as_ref().into(), new.as_ref().into()))
    }

    /// Removes a name of a file or symbolic link. An open file stays readable.
    pub fn unlink(&mut self, path: impl AsRef<Path>) -> &mut Self {
        self.step(Step::Unlink(path.as_ref().into()))
    }

    /// Removes an empty directory.
    pub fn remove_dir(&mut self, path: impl AsRef<Path>) -> &mut Self {
        self.step(Step::RemoveDir(path.as_ref().into()))
    }

    /// Renames, replacing what `to` names.
    pub fn rename(&mut self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> &mut Self {
        self.rename_as(from, to, RenameMode::Replace)
    }

    /// Renames; see [`RenameMode`].
    pub fn rename_as(
        &mut self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
        mode: RenameMode,
    ) -> &mut Self {
        let (from, to) = (from.as_ref().into(), to.as_ref().into());
        self.step(Step::Rename(from, to, mode))
    }

    fn step(&mut self, step: Step) -> &mut Self {
        self.steps.push(step);
        self
    }

    /// Makes all changes, and makes them durable: one journal record and one durable write, shared with
    /// whoever else waits for one.
    ///
    /// # Errors
    /// `Path` for the first step that cannot be made; `Invalid` for more steps than
    /// [`LavaFs::transaction_steps_max`]; `NoSpace` where the metadata would outgrow the journal (never for
    /// a transaction that only removes); `ReadOnly`. Then nothing was changed. `Io` where the device failed:
    /// the filesystem is read-only from then on and shows all changes, and after the next mount
    /// there are all of them or none.
    pub fn commit(self) -> Result<()> {
        let core = &self.fs.core;
        let journal = core.journal()?;
        let steps_max = self.fs.transaction_steps_max()?;
        if self.steps.len() > steps_max {
            let what = format!(
                "a transaction of {} steps; {steps_max} at most",
                self.steps.len()
            );
            return Err(Error::Invalid { what });
        }
        let growing = self.steps.iter().filter(|step| step.grows()).count() as u64;
        let alone = journal.begin_transaction()?;
        if growing > 0 {
            journal.admit(growing * STEP_LEN_MAX)?;
        }
        let records = self.new_records()?;
        let mut records = records.into_iter();
        let mut change = Change::begin(core);
        for step in &self.steps {
            step.stage(&mut change, &mut records)?;
        }
        let ticket = change.finish();
        drop(alone);
        core.commit(ticket)
    }

    /// What the new inodes begin as. Their numbers may have to be made durable first, which cannot
    /// be done with the tables locked.
    fn new_records(&self) -> Result<Vec<InodeRecord>> {
        let mut records = Vec::new();
        for step in &self.steps {
            records.push(match step {
                Step::Create(_, tail) => {
                    let ownership = process_ownership(0o644);
                    self.fs
                        .new_record(MODE_FILE, ownership, tail_flags(*tail))?
                }
                Step::CreateDir(_) => {
                    let ownership = process_ownership(0o755);
                    self.fs.new_record(MODE_DIRECTORY, ownership, FLAG_EXACT)?
                }
                _ => continue,
            });
        }
        Ok(records)
    }
}

impl Step {
    /// True where the next checkpoint may be longer for it.
    fn grows(&self) -> bool {
        !matches!(self, Step::Unlink(_) | Step::RemoveDir(_))
    }

    fn stage(
        &self,
        change: &mut Change<'_>,
        records: &mut impl Iterator<Item = InodeRecord>,
    ) -> Result<()> {
        let mut record = || records.next().expect("one was made for each creation");
        match self {
            Step::Create(path, _) | Step::CreateDir(path) => {
                let (dir, name) = change.resolve_parent(path)?;
                change.make(dir, name, record(), None).at(path)
            }
            Step::Link(existing, new) => {
                let ino = change.resolve(existing)?;
                let (dir, name) = change.resolve_parent(new)?;
                change.link(ino, dir, name).at(new)
            }
            Step::Unlink(path) => {
                let (dir, name) = change.resolve_parent(path)?;
                change.unlink(dir, name).at(path)
            }
            Step::RemoveDir(path) => {
                let (dir, name) = change.resolve_parent(path)?;
                change.rmdir(dir, name).at(path)
            }
            Step::Rename(from, to, mode) => {
                let (from_dir, from_name) = change.resolve_parent(from)?;
                let (to_dir, to_name) = change.resolve_parent(to)?;
                change.entry(from_dir, from_name).at(from)?;
                let renamed = change.rename(from_dir, from_name, to_dir, to_name, *mode);
                renamed.at(to)
            }
        }
    }
}

/// Gives an error about one name the whole path.
trait At {
    fn at(self, path: &Path) -> Self;
}

impl<T> At for Result<T> {
    fn at(self, path: &Path) -> Self {
        self.map_err(|error| at_path(error, path))
    }
}

impl Change<'_> {
    /// The inode that a path names.
    fn resolve(&self, path: &Path) -> Result<Ino> {
        let mut ino = ROOT;
        for name in names(path)? {
            ino = self.entry(ino, name).at(path)?;
        }
        Ok(ino)
    }

    /// The directory that holds a path's last component, and that component.
    fn resolve_parent<'p>(&self, path: &'p Path) -> Result<(Ino, &'p std::ffi::OsStr)> {
        let invalid = || Error::path(path, PathError::InvalidName);
        let name = names(path)?.pop().ok_or_else(invalid)?;
        let parent = self.resolve(path.parent().ok_or_else(invalid)?)?;
        Ok((parent, name))
    }
}
