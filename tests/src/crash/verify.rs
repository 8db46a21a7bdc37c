//! Comparison of a crashed device with the model. See `model.rs` for what must hold when.

use std::collections::BTreeMap;
use std::sync::Arc;

use lavafs::device::SimDevice;
use lavafs::{
    CheckMode, CreateOptions, FileKind, FileRef, FileSize, FileSystem, Ino, LavaFs, MountOptions,
    ReadRequest, check,
};

use super::model::{Branch, Model, Names, Node};

/// What is found on a mounted filesystem.
pub(super) struct Found {
    pub(super) names: Names,
    /// Every named file, open.
    pub(super) files: Vec<FileRef>,
}

/// Mounts as the explorer does: without a thread, so that runs repeat.
pub(super) fn mount(device: &Arc<SimDevice>) -> lavafs::Result<LavaFs> {
    let options = MountOptions {
        background: false,
        ..MountOptions::default()
    };
    LavaFs::mount(device.clone(), &options)
}

/// Fails unless the device checks clean.
pub(super) fn assert_clean(device: &Arc<SimDevice>, when: &str) -> Result<(), String> {
    let report = check(device.clone(), CheckMode::ReadOnly).map_err(|e| format!("check: {e}"))?;
    if report.is_clean() {
        Ok(())
    } else {
        Err(format!(
            "check {when} finds problems: {:?}",
            report.problems
        ))
    }
}

/// Checks everything that must hold on `device`, crashed at operation `at`.
pub(super) fn verify(model: &Model, device: SimDevice, at: usize) -> Result<(), String> {
    let device = Arc::new(device);
    assert_clean(&device, "before mounting")?;
    let fs = mount(&device).map_err(|error| format!("mount: {error}"))?;
    let found = survey(&fs).map_err(|error| format!("survey: {error}"))?;
    verify_names(model, &found.names, at)?;
    for file in &found.files {
        let generation = file.generation().0;
        let branches = model.contents.get(&generation).ok_or_else(|| {
            format!("a file has generation {generation}, which was never given out")
        })?;
        verify_file(branches, file, at)
            .map_err(|why| format!("file of generation {generation}: {why}"))?;
    }
    verify_batches(&fs, &found.files)?;
    drop(found);
    verify_new_generation(model, &fs, at)?;
    drop(fs);
    assert_clean(&device, "after mounting")
}

/// Reads the whole namespace and opens all files.
pub(super) fn survey(fs: &LavaFs) -> lavafs::Result<Found> {
    let mut names = Names::default();
    let mut files = Vec::new();
    let mut stack = vec![LavaFs::ROOT];
    add_node(
        fs,
        LavaFs::ROOT,
        FileKind::Directory,
        &mut names,
        &mut files,
    )?;
    while let Some(dir) = stack.pop() {
        for (name, ino, kind) in fs.entries(dir, None, usize::MAX)? {
            let name = name.to_string_lossy().into_owned();
            names.entries.insert((dir.0, name), ino.0);
            if !names.nodes.contains_key(&ino.0) {
                add_node(fs, ino, kind, &mut names, &mut files)?;
                if kind == FileKind::Directory {
                    stack.push(ino);
                }
            }
        }
    }
    Ok(Found { names, files })
}

fn add_node(
    fs: &LavaFs,
    ino: Ino,
    kind: FileKind,
    names: &mut Names,
    files: &mut Vec<FileRef>,
) -> lavafs::Result<()> {
    let attributes = fs.attributes(ino)?;
    let mut generation = 0;
    if kind == FileKind::File {
        let file = fs.open_ino(ino)?;
        generation = file.generation().0;
        files.push(file);
    }
    let mut xattrs = BTreeMap::new();
    for name in fs.xattr_names(ino)? {
        let value = fs.xattr(ino, &name)?.unwrap_or_default();
        xattrs.insert(name.to_string_lossy().into_owned(), value);
    }
    let mut target = None;
    if kind == FileKind::Symlink {
        target = Some(fs.read_link(ino)?.to_string_lossy().into_owned());
    }
    let node = Node {
        target,
        links: attributes.links,
        xattrs,
        ..Node::new(kind, generation, attributes.mode & 0o7777)
    };
    names.nodes.insert(ino.0, node);
    Ok(())
}

/// The namespace is that after some event between the last acknowledged and the last begun.
fn verify_names(model: &Model, names: &Names, at: usize) -> Result<(), String> {
    let digest = names.digest();
    let possible = model.possible(at);
    if model.events[possible.clone()]
        .iter()
        .any(|event| event.digest == digest)
    {
        return Ok(());
    }
    let elsewhere = model.events.iter().position(|event| event.digest == digest);
    let (first, last) = (*possible.start(), *possible.end());
    Err(format!(
        "the namespace is that after event {elsewhere:?}, not {first} ({}) to {last} ({}); \
         from the first it differs in: {}; from the last in: {}",
        model.events[first].what,
        model.events[last].what,
        model.events[first].names.difference(names),
        model.events[last].names.difference(names),
    ))
}

/// The file is as one of the branches that may be the durable one.
fn verify_file(branches: &[Branch], file: &FileRef, at: usize) -> Result<(), String> {
    let upper = file.size().upper();
    let mut bytes = vec![0; upper as usize];
    let read = file.read_unverified(0, &mut bytes);
    let read = read.map_err(|error| format!("read_unverified: {error}"))?;
    if read as u64 != upper {
        return Err(format!("read_unverified gives {read} of {upper} bytes"));
    }
    let lower = file.size().lower() as usize;
    let mut known = vec![0; lower + 1];
    let read = file.read_at(0, &mut known);
    let read = read.map_err(|error| format!("read_at: {error}"))?;
    if read != lower || known[..lower] != bytes[..lower] {
        return Err(format!("read_at gives {read} bytes below {lower}"));
    }
    let mut why = "it was not begun".to_owned();
    for (index, branch) in branches.iter().enumerate() {
        let replaced = branches.get(index + 1).and_then(|next| next.acked);
        if branch.begun > at || replaced.is_some_and(|acked| acked <= at) {
            continue;
        }
        match verify_branch(branch, file.size(), &bytes, at) {
            Ok(()) => return Ok(()),
            Err(error) => why = format!("in branch {index}: {error}"),
        }
    }
    Err(why)
}

fn verify_branch(branch: &Branch, size: FileSize, bytes: &[u8], at: usize) -> Result<(), String> {
    let begun = branch.issued.partition_point(|issued| issued.0 <= at);
    let issued = branch.issued[begun - 1].1;
    let lower = size.lower();
    if lower > issued {
        return Err(format!(
            "size {size:?}, but only {issued} bytes were appended"
        ));
    }
    if let Some(offset) = mismatch(bytes, &branch.data, lower) {
        return Err(format!("byte {offset} below {size:?} was never there"));
    }
    for sized in branch.sized.iter().filter(|sized| sized.acked <= at) {
        if lower < sized.size {
            return Err(format!(
                "size {size:?}, but {} was journaled and acknowledged at {}",
                sized.size, sized.acked
            ));
        }
        if sized.exact_until.is_some_and(|until| begun <= until)
            && size != FileSize::Exact(sized.size)
        {
            return Err(format!("size {size:?}, not exactly {}", sized.size));
        }
    }
    let synced = branch.synced.iter().filter(|synced| synced.0 <= at);
    let synced = synced.map(|synced| synced.1).max().unwrap_or(0);
    if size.upper() < synced {
        return Err(format!("size {size:?}, but {synced} bytes were synced"));
    }
    if let Some(offset) = mismatch(bytes, &branch.data, synced) {
        return Err(format!("byte {offset} of {synced} synced ones is lost"));
    }
    Ok(())
}

/// The first of `len` bytes that differs.
fn mismatch(found: &[u8], expected: &[u8], len: u64) -> Option<usize> {
    let len = len as usize;
    if found[..len] == expected[..len] {
        return None;
    }
    (0..len).find(|&at| found[at] != expected[at])
}

/// What one batch of reads gives of all files is what single reads give.
fn verify_batches(fs: &LavaFs, files: &[FileRef]) -> Result<(), String> {
    let mut expected = Vec::with_capacity(2 * files.len());
    for file in files {
        let size = file.size().lower() as usize;
        // Not at a block's border, and one byte beyond the end.
        for (from, to) in [(0, size / 3), (size / 3, size + 1)] {
            let mut bytes = vec![0; to - from];
            let read = file.read_at(from as u64, &mut bytes);
            bytes.truncate(read.map_err(|error| format!("read_at: {error}"))?);
            expected.push((file, from as u64, to - from, bytes));
        }
    }
    let mut bufs: Vec<Vec<u8>> = expected.iter().map(|part| vec![0; part.2]).collect();
    let mut requests: Vec<ReadRequest<'_>> = expected
        .iter()
        .zip(&mut bufs)
        .map(|(&(file, offset, ..), buf)| ReadRequest {
            file,
            offset,
            buf,
            read: 0,
        })
        .collect();
    let batch = fs.read_batch(&mut requests, 4);
    batch.map_err(|error| format!("read_batch: {error}"))?;
    for (request, (file, offset, _, bytes)) in requests.iter().zip(&expected) {
        if request.buf[..request.read] != bytes[..] {
            let generation = file.generation();
            return Err(format!(
                "a batch reads generation {generation} otherwise at {offset}"
            ));
        }
    }
    Ok(())
}

/// A file made after the crash has a generation that nobody has seen.
fn verify_new_generation(model: &Model, fs: &LavaFs, at: usize) -> Result<(), String> {
    let name = std::path::Path::new("/made after the crash");
    let file = match fs.create(name, &CreateOptions::default()) {
        Ok(file) => file,
        Err(lavafs::Error::NoSpace { .. }) => return Ok(()),
        Err(error) => return Err(format!("create after the crash: {error}")),
    };
    let generation = file.generation().0;
    let seen = model
        .generations
        .iter()
        .any(|&(given, old)| given <= at && old == generation);
    if seen {
        return Err(format!("generation {generation} is given out again"));
    }
    Ok(())
}
