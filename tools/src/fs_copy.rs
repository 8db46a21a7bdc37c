//! `lava fs get` and `put`: files and trees between a filesystem and the kernel's.
//!
//! Between a LavaFS and the kernel, modes and times of change are kept, and symbolic links are copied as
//! links. `host:DIR` keeps contents and names only, and refuses links.
//!
//! A first pass finds what there is and how many bytes, so that the bar knows its end. A copy that fails
//! names the file; a single file is then removed again, of a tree what was copied stays.

use std::fs::{self, File as KernelFile, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use lavafs::{CreateOptions, FileKind, FileSystem, LavaFs, Ownership, SetAttributes};
use walkdir::WalkDir;

use crate::cli::{Access, Context, Failure, Outcome, Progress, Target};

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// A copy between the filesystem and the kernel's.
#[derive(Debug, Args)]
pub struct Copy {
    /// Block device, image file or host:DIR
    #[arg(long, value_name = "TARGET")]
    fs: Target,
    /// File or directory to copy; a directory with all that is below it
    from: PathBuf,
    /// The copy; it must not exist, but `get` replaces a file
    to: PathBuf,
}

/// One thing to copy.
struct Item {
    from: PathBuf,
    to: PathBuf,
    kind: FileKind,
    len: u64,
}

impl Copy {
    /// Copies out of the filesystem.
    pub(crate) fn get(&self) -> Outcome {
        self.fs.open(Access::ReadOnly)?.with(|fs, mounted| {
            let items = self.found_inside(fs)?;
            let progress = Progress::bytes("copying", items.iter().map(|item| item.len).sum());
            for item in &items {
                get(fs, mounted.lava(), item, &progress).context(|| item.from.display())?;
            }
            // Directories last, and from below: what is made in one changes its time.
            for item in items
                .iter()
                .rev()
                .filter(|item| item.kind == FileKind::Directory)
            {
                if let Some(lava) = mounted.lava() {
                    keep_outside(lava, item)?;
                }
            }
            Ok(())
        })?;
        Ok(std::process::ExitCode::SUCCESS)
    }

    /// Copies into the filesystem.
    pub(crate) fn put(&self) -> Outcome {
        self.fs.open(Access::ReadWrite)?.with(|fs, mounted| {
            let items = self.found_outside()?;
            let progress = Progress::bytes("copying", items.iter().map(|item| item.len).sum());
            for item in &items {
                put(fs, mounted.lava(), item, &progress).context(|| item.to.display())?;
            }
            for item in items
                .iter()
                .rev()
                .filter(|item| item.kind != FileKind::Symlink)
            {
                if let Some(lava) = mounted.lava() {
                    keep_inside(lava, item)?;
                }
            }
            Ok(fs.sync_dir(Path::new("/"))?)
        })?;
        Ok(std::process::ExitCode::SUCCESS)
    }

    fn found_inside(&self, fs: &dyn FileSystem) -> Outcome<Vec<Item>> {
        let top = fs.metadata(&self.from)?;
        if top.kind == FileKind::Directory && self.to.symlink_metadata().is_ok() {
            return Err(Failure::new(format!("{} exists", self.to.display())));
        }
        let mut items = vec![Item {
            from: self.from.clone(),
            to: self.to.clone(),
            kind: top.kind,
            len: top.size.lower(),
        }];
        let mut next = 0;
        while next < items.len() {
            if items[next].kind == FileKind::Directory {
                let (from, to) = (items[next].from.clone(), items[next].to.clone());
                for entry in fs.list(&from)? {
                    let from = from.join(&entry.name);
                    let len = fs.metadata(&from)?.size.lower();
                    let (to, kind) = (to.join(&entry.name), entry.kind);
                    items.push(Item {
                        from,
                        to,
                        kind,
                        len,
                    });
                }
            }
            next += 1;
        }
        Ok(items)
    }

    fn found_outside(&self) -> Outcome<Vec<Item>> {
        let mut items = Vec::new();
        for entry in WalkDir::new(&self.from).sort_by_file_name() {
            let entry = entry?;
            let kind = match entry.file_type() {
                kind if kind.is_dir() => FileKind::Directory,
                kind if kind.is_symlink() => FileKind::Symlink,
                kind if kind.is_file() => FileKind::File,
                kind => {
                    let what = if kind.is_socket() {
                        "socket"
                    } else {
                        "device or pipe"
                    };
                    return Err(Failure::new(format!(
                        "{}: a {what} cannot be copied",
                        entry.path().display()
                    )));
                }
            };
            let below = entry
                .path()
                .strip_prefix(&self.from)
                .expect("it was found below");
            let to = if below.as_os_str().is_empty() {
                self.to.clone()
            } else {
                self.to.join(below)
            };
            let len = if kind == FileKind::File {
                entry.metadata()?.len()
            } else {
                0
            };
            items.push(Item {
                from: entry.into_path(),
                to,
                kind,
                len,
            });
        }
        Ok(items)
    }
}

fn get(
    fs: &dyn FileSystem,
    lava: Option<&LavaFs>,
    item: &Item,
    progress: &Progress,
) -> Outcome<()> {
    match item.kind {
        FileKind::Directory => fs::create_dir(&item.to).context(|| item.to.display()),
        FileKind::Symlink => {
            let lava = lava.ok_or_else(links_refused)?;
            let target = lava.read_link(lava.resolve(&item.from)?)?;
            symlink(target, &item.to).context(|| item.to.display())
        }
        FileKind::File => {
            let mut out = KernelFile::create(&item.to).context(|| item.to.display())?;
            let file = fs.open(&item.from)?;
            let mut buffer = vec![0; COPY_BYTES];
            let mut offset = 0;
            loop {
                let read = file.read_at(offset, &mut buffer)?;
                if read == 0 {
                    break;
                }
                out.write_all(&buffer[..read])
                    .context(|| item.to.display())?;
                offset += read as u64;
                progress.add(read as u64);
            }
            lava.map_or(Ok(()), |lava| keep_outside(lava, item))
        }
    }
}

fn put(
    fs: &dyn FileSystem,
    lava: Option<&LavaFs>,
    item: &Item,
    progress: &Progress,
) -> Outcome<()> {
    match item.kind {
        FileKind::Directory => {
            if fs.metadata(&item.to).is_ok() {
                return Err(Failure::new("it exists"));
            }
            Ok(fs.create_dir_all(&item.to)?)
        }
        FileKind::Symlink => {
            let lava = lava.ok_or_else(links_refused)?;
            let (dir, name) = lava.resolve_parent(&item.to)?;
            let stat = item.from.symlink_metadata()?;
            let ownership = Ownership {
                mode: 0o777,
                uid: stat.uid(),
                gid: stat.gid(),
            };
            lava.symlink_at(dir, name, fs::read_link(&item.from)?.as_os_str(), ownership)?;
            Ok(())
        }
        FileKind::File => put_file(fs, item, progress),
    }
}

fn put_file(fs: &dyn FileSystem, item: &Item, progress: &Progress) -> Outcome<()> {
    let mut source = KernelFile::open(&item.from).context(|| item.from.display())?;
    let options = CreateOptions {
        expected_size: item.len,
        ..CreateOptions::default()
    };
    let file = fs.create(&item.to, &options)?;
    let copied: Outcome<()> = (|| {
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let read = source.read(&mut buffer).context(|| item.from.display())?;
            if read == 0 {
                return Ok(file.fsync()?);
            }
            file.append(&buffer[..read])?;
            progress.add(read as u64);
        }
    })();
    drop(file);
    if copied.is_err() {
        // Half a copy is of no use; the first error is the one to report.
        let _ = fs.unlink(&item.to);
    }
    copied
}

fn links_refused() -> Failure {
    Failure::new("symbolic links are copied to and from a LavaFS only")
}

/// Gives the kernel's copy the mode and time of change.
fn keep_outside(lava: &LavaFs, item: &Item) -> Outcome<()> {
    let attributes = lava.attributes(lava.resolve(&item.from)?)?;
    let kept = || -> std::io::Result<()> {
        let file = KernelFile::open(&item.to)?;
        file.set_permissions(Permissions::from_mode(attributes.mode & 0o7777))?;
        file.set_modified(time(attributes.modified_ns))
    };
    kept().context(|| item.to.display())
}

/// Gives the filesystem's copy mode, owner and time of change.
fn keep_inside(lava: &LavaFs, item: &Item) -> Outcome<()> {
    let stat = item
        .from
        .symlink_metadata()
        .context(|| item.from.display())?;
    let set = SetAttributes {
        mode: Some(stat.mode() & 0o7777),
        uid: Some(stat.uid()),
        gid: Some(stat.gid()),
        modified_ns: Some(stat.mtime().saturating_mul(1_000_000_000) + stat.mtime_nsec()),
    };
    Ok(lava.set_attributes(lava.resolve(&item.to)?, &set)?)
}

fn time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 {
        SystemTime::UNIX_EPOCH + distance
    } else {
        SystemTime::UNIX_EPOCH - distance
    }
}
