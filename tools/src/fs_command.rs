//! `lava fs`: looks at and changes a filesystem without mounting it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use lavafs::{FileKind, FileSize, FileSystem, Metadata};
use serde_json::{Value, json};

use crate::cli::{
    Access, Outcome, Progress, Table, Target, human_bytes, human_count, json_line, line,
};

use crate::fs_copy::Copy;
use crate::fs_inside::{DumpCommand, Expand, Frag, Label};

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// Look at and change a filesystem
#[derive(Debug, Subcommand)]
pub enum FsCommand {
    /// List directories; one line a name: kind, links, size, name. JSON: one object a line
    Ls(List),
    /// Show what is known of files and directories
    Stat(Paths),
    /// Write files to standard output
    Cat(Paths),
    /// Copy a file or a tree out of the filesystem
    Get(Copy),
    /// Copy a file or a tree into the filesystem; it must not exist there
    Put(Copy),
    /// Make directories and their missing parents
    Mkdir(Paths),
    /// Rename, replacing a file of the new name
    Mv(Move),
    /// Remove files and empty directories
    Rm(Remove),
    /// Show total, used and free space
    Df(Df),
    /// Print every structure on a device: superblocks, journal regions and records, extents
    Dump(DumpCommand),
    /// Show in which pieces free space and files lie, in blocks of 4 KiB
    Frag(Frag),
    /// Grow the filesystem to the size that its device or image has now
    Expand(Expand),
    /// Show the filesystem's label, or give it another
    Label(Label),
}

/// The filesystem that every command needs.
#[derive(Debug, Args)]
struct Where {
    /// Block device, image file or host:DIR
    #[arg(long, value_name = "TARGET")]
    fs: Target,
}

/// `lava fs ls`.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    at: Where,
    /// List what is below, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Print JSON objects
    #[arg(long)]
    json: bool,
    /// Files or directories
    #[arg(default_value = "/")]
    paths: Vec<PathBuf>,
}

/// A filesystem and some paths in it.
#[derive(Debug, Args)]
pub struct Paths {
    #[command(flatten)]
    at: Where,
    /// Print JSON objects
    #[arg(long)]
    json: bool,
    /// Files or directories
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

/// A rename.
#[derive(Debug, Args)]
pub struct Move {
    #[command(flatten)]
    at: Where,
    /// The present name
    from: PathBuf,
    /// The new name
    to: PathBuf,
}

/// `lava fs rm`.
#[derive(Debug, Args)]
pub struct Remove {
    #[command(flatten)]
    at: Where,
    /// Remove directories with all that is below them
    #[arg(short = 'r', long)]
    recursive: bool,
    /// Files or directories
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

/// `lava fs df`.
#[derive(Debug, Args)]
pub struct Df {
    #[command(flatten)]
    at: Where,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl FsCommand {
    /// Runs the command.
    pub fn run(&self) -> Outcome {
        match self {
            FsCommand::Ls(list) => list.run(),
            FsCommand::Stat(paths) => {
                paths.each(Access::ReadOnly, |fs, path| stat(fs, path, paths.json))
            }
            FsCommand::Cat(paths) => paths.each(Access::ReadOnly, |fs, path| {
                let mut out = std::io::stdout().lock();
                copy_out(fs, path, &mut out, "reading")
            }),
            FsCommand::Get(copy) => copy.get(),
            FsCommand::Put(copy) => copy.put(),
            FsCommand::Mkdir(paths) => paths.each(Access::ReadWrite, |fs, path| {
                fs.create_dir_all(path)?;
                Ok(fs.sync_dir(parent(path))?)
            }),
            FsCommand::Mv(names) => on(&names.at, Access::ReadWrite, |fs| {
                fs.rename(&names.from, &names.to)?;
                fs.sync_dir(parent(&names.from))?;
                Ok(fs.sync_dir(parent(&names.to))?)
            }),
            FsCommand::Rm(remove) => remove.run(),
            FsCommand::Df(df) => on(&df.at, Access::ReadOnly, |fs| df.print(fs)),
            FsCommand::Dump(dump) => dump.run(),
            FsCommand::Frag(frag) => frag.run(),
            FsCommand::Expand(expand) => expand.run(),
            FsCommand::Label(label) => label.run(),
        }
    }
}

/// Opens the filesystem, works on it and closes it.
fn on(at: &Where, access: Access, work: impl FnOnce(&dyn FileSystem) -> Outcome<()>) -> Outcome {
    at.fs.open(access)?.with(|fs, _| work(fs))?;
    Ok(ExitCode::SUCCESS)
}

impl Paths {
    fn each(
        &self,
        access: Access,
        mut work: impl FnMut(&dyn FileSystem, &Path) -> Outcome<()>,
    ) -> Outcome {
        on(&self.at, access, |fs| {
            self.paths.iter().try_for_each(|path| work(fs, path))
        })
    }
}

impl List {
    fn run(&self) -> Outcome {
        on(&self.at, Access::ReadOnly, |fs| {
            for path in &self.paths {
                let metadata = fs.metadata(path)?;
                if metadata.kind != FileKind::Directory {
                    self.print(path, &metadata)?;
                    continue;
                }
                self.list(fs, path)?;
            }
            Ok(())
        })
    }

    /// Lists `top`, and with `-R` what is below, depth first. Without recursion of its own, so
    /// that a deep tree cannot exhaust the stack.
    fn list(&self, fs: &dyn FileSystem, top: &Path) -> Outcome<()> {
        let mut pending = vec![top.to_path_buf()];
        while let Some(dir) = pending.pop() {
            let mut below = Vec::new();
            for entry in fs.list(&dir)? {
                let path = dir.join(&entry.name);
                self.print(&path, &fs.metadata(&path)?)?;
                if self.recursive && entry.kind == FileKind::Directory {
                    below.push(path);
                }
            }
            pending.extend(below.into_iter().rev());
        }
        Ok(())
    }

    fn print(&self, path: &Path, metadata: &Metadata) -> Outcome<()> {
        if self.json {
            return json_line(&metadata_json(path, metadata));
        }
        let size = match metadata.size {
            FileSize::Exact(size) => size.to_string(),
            FileSize::Between { lower, upper } => format!("{lower}..{upper}"),
        };
        let kind = match metadata.kind {
            FileKind::Directory => 'd',
            FileKind::File => '-',
            FileKind::Symlink => 'l',
        };
        line(format_args!(
            "{kind} {:>3} {size:>12} {}",
            metadata.links,
            path.display()
        ))
    }
}

fn stat(fs: &dyn FileSystem, path: &Path, json: bool) -> Outcome<()> {
    let metadata = fs.metadata(path)?;
    if json {
        return json_line(&metadata_json(path, &metadata));
    }
    let mut table = Table::default();
    table.row(&["path", &path.display().to_string()]);
    table.row(&["kind", kind_name(metadata.kind)]);
    let size = match metadata.size {
        FileSize::Exact(size) => size.to_string(),
        FileSize::Between { lower, upper } => format!("between {lower} and {upper}"),
    };
    table.row(&["size", &size]);
    table.row(&["allocated", &metadata.allocated.to_string()]);
    table.row(&["inode", &metadata.ino.to_string()]);
    table.row(&["links", &metadata.links.to_string()]);
    table.row(&[
        "modified",
        &format!("{} ns since 1970", metadata.modified_ns),
    ]);
    if metadata.kind == FileKind::File {
        let generation = fs.open(path)?.generation();
        table.row(&["generation", &generation.to_string()]);
    }
    line(table)
}

fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
    }
}

fn metadata_json(path: &Path, metadata: &Metadata) -> Value {
    json!({
        "path": path.display().to_string(),
        "kind": kind_name(metadata.kind),
        "size": metadata.size.lower(),
        "size_upper": metadata.size.upper(),
        "allocated": metadata.allocated,
        "ino": metadata.ino,
        "links": metadata.links,
        "modified_ns": metadata.modified_ns,
    })
}

/// Copies the file at `path` to `out`.
fn copy_out(
    fs: &dyn FileSystem,
    path: &Path,
    out: &mut impl Write,
    what: &'static str,
) -> Outcome<()> {
    let file = fs.open(path)?;
    let progress = Progress::bytes(what, file.size().lower());
    let mut buffer = vec![0; COPY_BYTES];
    let mut offset = 0;
    loop {
        let read = file.read_at(offset, &mut buffer)?;
        if read == 0 {
            out.flush()?;
            return Ok(());
        }
        out.write_all(&buffer[..read])?;
        offset += read as u64;
        progress.add(read as u64);
    }
}

impl Remove {
    fn run(&self) -> Outcome {
        on(&self.at, Access::ReadWrite, |fs| {
            for path in &self.paths {
                if fs.metadata(path)?.kind != FileKind::Directory {
                    fs.unlink(path)?;
                } else if self.recursive {
                    remove_tree(fs, path)?;
                } else {
                    fs.remove_dir(path)?;
                }
                fs.sync_dir(parent(path))?;
            }
            Ok(())
        })
    }
}

/// Removes `top` and all below: files on the way down, directories on the way up.
fn remove_tree(fs: &dyn FileSystem, top: &Path) -> Outcome<()> {
    let mut directories = vec![top.to_path_buf()];
    let mut next = 0;
    while next < directories.len() {
        let dir = directories[next].clone();
        for entry in fs.list(&dir)? {
            let path = dir.join(&entry.name);
            match entry.kind {
                FileKind::Directory => directories.push(path),
                _ => fs.unlink(&path)?,
            }
        }
        next += 1;
    }
    for dir in directories.iter().rev() {
        fs.remove_dir(dir)?;
    }
    Ok(())
}

impl Df {
    fn print(&self, fs: &dyn FileSystem) -> Outcome<()> {
        let space = fs.space();
        let used = space.total - space.free;
        if self.json {
            return json_line(&json!({
                "total": space.total,
                "used": used,
                "free": space.free,
            }));
        }
        let percent = (used * 100).checked_div(space.total).unwrap_or(0);
        let mut table = Table::new(&["filesystem", "total", "used", "free", "use%", "bytes free"]);
        table.row(&[
            self.at.fs.to_string(),
            human_bytes(space.total),
            human_bytes(used),
            human_bytes(space.free),
            format!("{percent}%"),
            human_count(space.free),
        ]);
        line(table)
    }
}

/// The directory that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("/"),
    }
}
