//! A random workload on a filesystem, beside its model.
//!
//! One thread, no background thread, everything decided by the seed: a run repeats exactly. Only
//! operations that the model says are allowed are tried; the sole error that may come back is
//! `NoSpace`, and then nothing may have changed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use lavafs::device::{BlockDevice, Recording, SimDevice};
use lavafs::{
    CreateOptions, Error, FileKind, FileRef, FileSize, FileSystem, Ino, LavaFs, Ownership,
    RenameMode, SetAttributes, TailPolicy, align_up,
};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::model::{Branch, Model, Names, Node, Sized};
use super::verify::{assert_clean, mount, survey};

/// What a run on a device leaves to be explored.
pub(super) struct Life {
    pub(super) model: Model,
    pub(super) recording: Recording,
    /// Inodes whose files are sealed.
    pub(super) sealed: BTreeMap<u64, bool>,
    /// Why the run itself failed, at its end.
    pub(super) failure: Option<String>,
}

/// Runs `steps` random operations on the filesystem that `device` holds.
pub(super) fn run(
    device: SimDevice,
    seed: u64,
    steps: usize,
    sealed: BTreeMap<u64, bool>,
    generations: Vec<u64>,
) -> Life {
    let device = Arc::new(device);
    device.record();
    let mut failure = None;
    let mut model = Model {
        generations: generations.into_iter().map(|seen| (0, seen)).collect(),
        ..Model::default()
    };
    let mut seals = BTreeMap::new();
    match Run::begin(&device, seed, model, sealed) {
        Ok(mut run) => {
            for step in 0..steps {
                if let Err(why) = run.step() {
                    let done = run.model.events.last().map(|event| event.what.clone());
                    failure = Some(format!("step {step} (last event {done:?}): {why}"));
                    break;
                }
            }
            model = run.model;
            seals = run.sealed;
        }
        Err(why) => {
            model = Model::default();
            failure = Some(format!("begin: {why}"));
        }
    }
    Life {
        model,
        recording: device.take_recording(),
        sealed: seals,
        failure,
    }
}

/// An open file.
struct Open {
    file: FileRef,
    /// The size is uncertain since a crash.
    uncertain: bool,
}

struct Run {
    device: Arc<SimDevice>,
    fs: LavaFs,
    rng: StdRng,
    model: Model,
    open: BTreeMap<u64, Open>,
    sealed: BTreeMap<u64, bool>,
    /// The event that an `fdatasync` of an inode makes durable: creation or truncation.
    born: BTreeMap<u64, usize>,
    /// The last event that names an inode, which its `fsync` makes durable.
    named: BTreeMap<u64, usize>,
    /// Sizes that are enqueued: generation, branch, and the size.
    pending: Vec<(u64, usize, Sized)>,
}

/// `Ok(None)` where there was no space.
fn allow_no_space<T>(outcome: lavafs::Result<T>, what: &str) -> Result<Option<T>, String> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Error::NoSpace { .. }) => Ok(None),
        Err(error) => Err(format!("{what}: {error}")),
    }
}

impl Run {
    fn begin(
        device: &Arc<SimDevice>,
        seed: u64,
        model: Model,
        sealed: BTreeMap<u64, bool>,
    ) -> Result<Run, String> {
        let fs = mount(device).map_err(|error| format!("mount: {error}"))?;
        let mut run = Run {
            device: device.clone(),
            fs,
            rng: StdRng::seed_from_u64(seed),
            model,
            open: BTreeMap::new(),
            sealed,
            born: BTreeMap::new(),
            named: BTreeMap::new(),
            pending: Vec::new(),
        };
        run.adopt()?;
        Ok(run)
    }

    /// Takes the state after the mount for the model's first.
    fn adopt(&mut self) -> Result<(), String> {
        let found = survey(&self.fs).map_err(|error| format!("survey: {error}"))?;
        self.model.push_state(0, "mount".to_owned(), found.names);
        self.model.ack(0, 0);
        for file in found.files {
            let size = file.size();
            let mut data = vec![0; size.upper() as usize];
            let read = file.read_unverified(0, &mut data);
            read.map_err(|error| format!("read_unverified: {error}"))?;
            let exact = size == FileSize::Exact(size.lower());
            let mut branch = Branch::new(0, data);
            branch.acked = Some(0);
            branch.synced.push((0, size.upper()));
            branch.sized.push(Sized {
                acked: 0,
                size: size.lower(),
                exact_until: exact.then_some(1),
            });
            let generation = file.generation().0;
            self.model.contents.insert(generation, vec![branch]);
            self.model.generations.push((0, generation));
        }
        Ok(())
    }

    fn now(&self) -> usize {
        self.device.recorded_ops()
    }

    fn log(&mut self, begun: usize, file: &FileRef, what: &str) {
        let entry = format!("{what} of generation {}", file.generation());
        self.model.log.push((begun, entry));
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() {
            return None;
        }
        Some(from[self.rng.random_range(0..from.len())].clone())
    }

    fn last_event(&self) -> usize {
        self.model.events.len() - 1
    }

    fn names(&self) -> Arc<Names> {
        self.model.names().clone()
    }

    fn step(&mut self) -> Result<(), String> {
        match self.rng.random_range(0..100) {
            0..10 => self.create(),
            10..36 => self.append(),
            36..48 => self.fdatasync(),
            48..56 => self.fsync(),
            56..60 => self.truncate(),
            60..64 => self.settle(),
            64..70 => self.rename(),
            70..73 => self.link(),
            73..80 => self.unlink(),
            80..82 => self.mkdir(),
            82..83 => self.rmdir(),
            83..87 => self.attributes(),
            87..91 => self.commit(),
            91..94 => self.close(),
            94..96 => self.reopen(),
            96..98 => self.read_back(),
            98..99 => self.remount(),
            _ => self.empty_out(),
        }
    }

    fn directory(&mut self) -> u64 {
        let names = self.names();
        let nodes = names.nodes.iter().filter(|(_, node)| node.directory);
        let dirs: Vec<u64> = nodes.map(|(&ino, _)| ino).collect();
        self.pick(&dirs).expect("the root is a directory")
    }

    fn place(&mut self) -> (u64, String) {
        let name = format!("n{}", self.rng.random_range(0..10));
        (self.directory(), name)
    }

    fn entry(&mut self) -> Option<((u64, String), u64)> {
        let names = self.names();
        let entries: Vec<_> = names.entries.iter().collect();
        self.pick(&entries).map(|(key, &ino)| (key.clone(), ino))
    }

    fn open_file(&mut self, uncertain: bool) -> Option<(u64, FileRef)> {
        let open = self
            .open
            .iter()
            .filter(|(_, open)| open.uncertain == uncertain);
        let inos: Vec<u64> = open.map(|(&ino, _)| ino).collect();
        let ino = self.pick(&inos)?;
        Some((ino, self.open[&ino].file.clone()))
    }

    /// A certain file, most of the time.
    fn any_open_file(&mut self) -> Option<(u64, FileRef, bool)> {
        let uncertain = self.chance(20);
        let found = self
            .open_file(uncertain)
            .map(|(ino, file)| (ino, file, uncertain));
        found.or_else(|| {
            self.open_file(!uncertain)
                .map(|(ino, file)| (ino, file, !uncertain))
        })
    }

    fn is_named(&self, ino: u64) -> bool {
        self.model.names().nodes.contains_key(&ino)
    }

    fn create(&mut self) -> Result<(), String> {
        let (dir, name) = self.place();
        if self.names().entries.contains_key(&(dir, name.clone())) {
            return Ok(());
        }
        let sealed = self.chance(25);
        let expected: u64 = self.rng.random_range(1..600_000);
        let expected = if self.chance(20) && self.fs.space().free > 2 * expected {
            expected
        } else {
            0
        };
        let options = CreateOptions {
            expected_size: expected,
            tail: if sealed {
                TailPolicy::Seal
            } else {
                TailPolicy::Pack
            },
        };
        let begun = self.now();
        let owner = Ownership {
            mode: 0o644,
            uid: 0,
            gid: 0,
        };
        let created = self
            .fs
            .create_at(Ino(dir), OsStr::new(&name), owner, &options);
        let Some((ino, file)) = allow_no_space(created, "create")? else {
            return Ok(());
        };
        let generation = file.generation().0;
        self.model.generations.push((self.now(), generation));
        let mut branch = Branch::new(begun, Vec::new());
        branch.acked = Some(begun);
        self.model.contents.insert(generation, vec![branch]);
        self.model
            .push(begun, format!("create {dir}/{name} as {ino}"), |names| {
                names.entries.insert((dir, name), ino.0);
                names
                    .nodes
                    .insert(ino.0, Node::new(FileKind::File, generation, 0o644));
            });
        self.born.insert(ino.0, self.last_event());
        self.named.insert(ino.0, self.last_event());
        self.sealed.insert(ino.0, sealed);
        let uncertain = false;
        self.open.insert(ino.0, Open { file, uncertain });
        Ok(())
    }

    fn append(&mut self) -> Result<(), String> {
        let Some((_, file)) = self.open_file(false) else {
            return self.create();
        };
        let len = match self.rng.random_range(0..100) {
            0..50 => self.rng.random_range(1..1200),
            50..60 => 512 * self.rng.random_range(1..17),
            60..85 => self.rng.random_range(1200..12_000),
            85..97 => self.rng.random_range(12_000..70_000),
            _ => self.rng.random_range(70_000..300_000),
        };
        let mut bytes = vec![0; len];
        self.rng.fill_bytes(&mut bytes);
        let begun = self.now();
        self.log(
            begun,
            &file,
            &format!("append {len} at {}", file.size().lower()),
        );
        let appended = allow_no_space(file.append(&bytes), "append")?;
        let branch = self.model.branch(file.generation().0);
        if let Some(offset) = appended {
            if offset != branch.len() {
                return Err(format!("append at {offset} of {}", branch.len()));
            }
            branch.grow(begun, &bytes);
        }
        expect_size(&file, branch.len(), "append")
    }

    /// Notes the padding that a sync of a sealed file is about to add.
    fn pad(&mut self, ino: u64, file: &FileRef, begun: usize) {
        if self.sealed.get(&ino) == Some(&true) {
            let unit = self.device.geometry().logical_block;
            let branch = self.model.branch(file.generation().0);
            let padding = align_up(branch.len(), unit) - branch.len();
            if padding > 0 {
                branch.grow(begun, &vec![0; padding as usize]);
            }
        }
    }

    /// A sync of a sealed file needs space for the padding, and so may fail without it.
    fn sync(
        &mut self,
        ino: u64,
        file: &FileRef,
        sync: fn(&FileRef) -> lavafs::Result<()>,
        what: &str,
    ) -> Result<(), String> {
        let begun = self.now();
        self.log(begun, file, what);
        self.pad(ino, file, begun);
        sync(file).map_err(|error| format!("{what}: {error}"))?;
        let now = self.now();
        let branch = self.model.branch(file.generation().0);
        branch.synced.push((now, branch.len()));
        expect_size(file, branch.len(), what)
    }

    fn fdatasync(&mut self) -> Result<(), String> {
        let Some((ino, file)) = self.open_file(false) else {
            return Ok(());
        };
        self.sync(ino, &file, |file| file.fdatasync(), "fdatasync")?;
        let born = self.born.get(&ino).copied().unwrap_or(0);
        self.model.ack(self.now(), born);
        Ok(())
    }

    fn fsync(&mut self) -> Result<(), String> {
        let Some((ino, file, uncertain)) = self.any_open_file() else {
            return Ok(());
        };
        if uncertain {
            file.fsync().map_err(|error| format!("fsync: {error}"))?;
        } else {
            self.sync(ino, &file, |file| file.fsync(), "fsync")?;
            let now = self.now();
            self.model.branch(file.generation().0).note_size(now);
        }
        let named = self.named.get(&ino).copied().unwrap_or(0);
        self.model.ack(self.now(), named);
        Ok(())
    }

    fn truncate(&mut self) -> Result<(), String> {
        let Some((ino, file, uncertain)) = self.any_open_file() else {
            return Ok(());
        };
        let size = self.size_to_cut_to(0, file.size().lower());
        let begun = self.now();
        let before = file.generation().0;
        let outcome = allow_no_space(file.truncate(size), "truncate")?;
        let generation = file.generation().0;
        if outcome.is_none() || generation == before {
            return if generation != before || outcome.is_some() && uncertain {
                Err("truncate is half done".to_owned())
            } else {
                Ok(())
            };
        }
        let now = self.now();
        self.model.generations.push((now, generation));
        let data = self.model.branch(before).data[..size as usize].to_vec();
        let mut branch = Branch::new(begun, data);
        branch.acked = Some(begun);
        // The cut, its generation and its size are one change: none is seen without the others.
        branch.note_size(0);
        self.model.contents.insert(generation, vec![branch]);
        if self.is_named(ino) {
            self.model
                .push(begun, format!("truncate {ino} to {size}"), |names| {
                    names.nodes.get_mut(&ino).expect("it is named").generation = generation;
                });
            self.born.insert(ino, self.last_event());
            self.named.insert(ino, self.last_event());
        }
        self.open.get_mut(&ino).expect("it is open").uncertain = false;
        expect_size(&file, size, "truncate")
    }

    fn size_to_cut_to(&mut self, from: u64, to: u64) -> u64 {
        let size = self.rng.random_range(from..=to);
        match self.rng.random_range(0..4) {
            0 => from,
            1 => to,
            2 => (size & !511).max(from),
            _ => size,
        }
    }

    fn settle(&mut self) -> Result<(), String> {
        let uncertain = self.chance(70);
        let Some((ino, file)) = self.open_file(uncertain) else {
            return Ok(());
        };
        let known = file.size();
        let from = if uncertain {
            known.lower()
        } else {
            known.lower() / 2
        };
        let size = self.size_to_cut_to(from, known.upper());
        let begun = self.now();
        self.log(begun, &file, &format!("settle {known:?} at {size}"));
        if allow_no_space(file.settle(size), "settle")?.is_none() {
            return Ok(());
        }
        let now = self.now();
        let generation = file.generation().0;
        let branches = self
            .model
            .contents
            .get_mut(&generation)
            .expect("it has contents");
        let last = branches.last_mut().expect("there is a branch");
        if uncertain || size < last.len() {
            let data = last.data[..size as usize].to_vec();
            let mut branch = Branch::new(begun, data);
            branch.acked = Some(now);
            branch.note_size(now);
            branch.synced.push((now, size));
            branches.push(branch);
            let born = self.born.get(&ino).copied().unwrap_or(0);
            self.model.ack(now, born);
        }
        self.open.get_mut(&ino).expect("it is open").uncertain = false;
        expect_size(&file, size, "settle")
    }

    fn rename(&mut self) -> Result<(), String> {
        let Some((from, source)) = self.entry() else {
            return Ok(());
        };
        let names = self.names();
        let exchange = self.chance(20);
        let to = match self.entry() {
            Some((key, _)) if exchange || self.chance(50) => key,
            _ => self.place(),
        };
        let target = names.entries.get(&to).copied();
        if is_below(&names, to.0, source) || to == from {
            return Ok(());
        }
        let mode = match target {
            Some(target) if exchange => {
                if is_below(&names, from.0, target) {
                    return Ok(());
                }
                RenameMode::Exchange
            }
            Some(target) => {
                let (old, new) = (&names.nodes[&target], &names.nodes[&source]);
                let replaceable = old.directory == new.directory
                    && (!old.directory || names.is_empty_directory(target));
                if !replaceable {
                    return Ok(());
                }
                RenameMode::Replace
            }
            None => RenameMode::NoReplace,
        };
        let begun = self.now();
        let renamed = self.fs.rename_at(
            Ino(from.0),
            OsStr::new(&from.1),
            Ino(to.0),
            OsStr::new(&to.1),
            mode,
        );
        if allow_no_space(renamed, "rename")?.is_none() {
            return Ok(());
        }
        if target == Some(source) {
            return Ok(());
        }
        let what = format!("rename {from:?} to {to:?}, {mode:?}");
        self.model.push(begun, what, |names| {
            match target {
                Some(target) if mode == RenameMode::Exchange => {
                    names.entries.insert(from, target);
                }
                Some(target) => {
                    names.entries.remove(&from);
                    names.drop_name(target);
                }
                None => {
                    names.entries.remove(&from);
                }
            }
            names.entries.insert(to, source);
        });
        for ino in [Some(source), target].into_iter().flatten() {
            self.named.insert(ino, self.last_event());
        }
        Ok(())
    }

    fn link(&mut self) -> Result<(), String> {
        let (Some((_, ino)), to) = (self.entry(), self.place()) else {
            return Ok(());
        };
        let names = self.names();
        if names.nodes[&ino].directory || names.entries.contains_key(&to) {
            return Ok(());
        }
        let begun = self.now();
        let linked = self.fs.link_at(Ino(ino), Ino(to.0), OsStr::new(&to.1));
        if allow_no_space(linked, "link")?.is_some() {
            self.model
                .push(begun, format!("link {ino} as {to:?}"), |names| {
                    names.entries.insert(to, ino);
                    names.nodes.get_mut(&ino).expect("it is named").links += 1;
                });
            self.named.insert(ino, self.last_event());
        }
        Ok(())
    }

    fn unlink(&mut self) -> Result<(), String> {
        match self.entry() {
            Some((key, ino)) if !self.names().nodes[&ino].directory => self.unlink_entry(key, ino),
            _ => Ok(()),
        }
    }

    fn unlink_entry(&mut self, key: (u64, String), ino: u64) -> Result<(), String> {
        let begun = self.now();
        let unlinked = self.fs.unlink_at(Ino(key.0), OsStr::new(&key.1));
        unlinked.map_err(|error| format!("unlink: {error}"))?;
        self.model
            .push(begun, format!("unlink {key:?} of {ino}"), |names| {
                names.entries.remove(&key);
                names.drop_name(ino);
            });
        self.named.insert(ino, self.last_event());
        Ok(())
    }

    fn mkdir(&mut self) -> Result<(), String> {
        let (dir, name) = self.place();
        if self.names().entries.contains_key(&(dir, name.clone())) {
            return Ok(());
        }
        let begun = self.now();
        let owner = Ownership {
            mode: 0o755,
            uid: 0,
            gid: 0,
        };
        let made = self.fs.mkdir_at(Ino(dir), OsStr::new(&name), owner);
        if let Some(ino) = allow_no_space(made, "mkdir")? {
            self.model
                .push(begun, format!("mkdir {dir}/{name} as {ino}"), |names| {
                    names.entries.insert((dir, name), ino.0);
                    names
                        .nodes
                        .insert(ino.0, Node::new(FileKind::Directory, 0, 0o755));
                });
        }
        Ok(())
    }

    fn rmdir(&mut self) -> Result<(), String> {
        let names = self.names();
        let empty: Vec<_> = names
            .entries
            .iter()
            .filter(|&(_, ino)| names.nodes[ino].directory && names.is_empty_directory(*ino))
            .collect();
        let Some((key, &ino)) = self.pick(&empty) else {
            return Ok(());
        };
        let begun = self.now();
        let removed = self.fs.rmdir_at(Ino(key.0), OsStr::new(&key.1));
        removed.map_err(|error| format!("rmdir: {error}"))?;
        self.model.push(begun, format!("rmdir {key:?}"), |names| {
            names.entries.remove(key);
            names.drop_name(ino);
        });
        Ok(())
    }

    fn attributes(&mut self) -> Result<(), String> {
        let Some((_, ino)) = self.entry() else {
            return Ok(());
        };
        let begun = self.now();
        let name = format!("user.{}", self.rng.random_range(0..4));
        match self.rng.random_range(0..3) {
            0 => {
                let mode = self.rng.random_range(0..0o7777);
                let set = SetAttributes {
                    mode: Some(mode),
                    ..SetAttributes::default()
                };
                let done = self.fs.set_attributes(Ino(ino), &set);
                if allow_no_space(done, "set_attributes")?.is_some() {
                    self.model.push(begun, format!("chmod {ino}"), |names| {
                        names.nodes.get_mut(&ino).expect("it is named").mode = mode;
                    });
                }
            }
            1 => {
                let len = if self.chance(30) { 8000 } else { 100 };
                let mut value = vec![0; self.rng.random_range(0..len)];
                self.rng.fill_bytes(&mut value);
                let done = self.fs.set_xattr(Ino(ino), OsStr::new(&name), &value);
                if allow_no_space(done, "set_xattr")?.is_some() {
                    self.model
                        .push(begun, format!("set {name} of {ino}"), |names| {
                            let node = names.nodes.get_mut(&ino).expect("it is named");
                            node.xattrs.insert(name, value);
                        });
                }
            }
            _ => {
                let removed = self.fs.remove_xattr(Ino(ino), OsStr::new(&name));
                if removed.map_err(|error| format!("remove_xattr: {error}"))? {
                    self.model
                        .push(begun, format!("remove {name} of {ino}"), |names| {
                            let node = names.nodes.get_mut(&ino).expect("it is named");
                            node.xattrs.remove(&name);
                        });
                }
            }
        }
        self.named.insert(ino, self.last_event());
        Ok(())
    }

    /// Makes everything durable, in one of the ways there are.
    fn commit(&mut self) -> Result<(), String> {
        self.model.log.push((self.now(), "commit".to_owned()));
        let done = match self.rng.random_range(0..3) {
            0 => self.fs.commit(),
            1 => self.fs.sync_dir(Path::new("/")),
            _ => self.fs.checkpoint(),
        };
        done.map_err(|error| format!("commit: {error}"))?;
        self.all_is_durable();
        Ok(())
    }

    fn all_is_durable(&mut self) {
        let now = self.now();
        self.model.ack(now, self.last_event());
        for (generation, index, sized) in std::mem::take(&mut self.pending) {
            let branches = self.model.contents.get_mut(&generation);
            let branch = &mut branches.expect("contents are kept")[index];
            branch.sized.push(Sized {
                acked: now,
                ..sized
            });
        }
    }

    fn close(&mut self) -> Result<(), String> {
        if let Some((ino, file, _)) = self.any_open_file() {
            drop(file);
            self.close_file(ino);
        }
        Ok(())
    }

    fn close_file(&mut self, ino: u64) {
        let open = self.open.remove(&ino).expect("it is open");
        if open.uncertain || !self.is_named(ino) {
            return;
        }
        self.log(self.now(), &open.file, "close");
        let generation = open.file.generation().0;
        let branches = &self.model.contents[&generation];
        let branch = branches.last().expect("there is a branch");
        let sized = Sized {
            acked: usize::MAX,
            size: branch.len(),
            exact_until: Some(branch.issued.len()),
        };
        self.pending.push((generation, branches.len() - 1, sized));
    }

    fn reopen(&mut self) -> Result<(), String> {
        let names = self.names();
        let closed = |(ino, node): &(&u64, &Node)| !node.directory && !self.open.contains_key(ino);
        let closed: Vec<u64> = names
            .nodes
            .iter()
            .filter(closed)
            .map(|(&ino, _)| ino)
            .collect();
        let Some(ino) = self.pick(&closed) else {
            return Ok(());
        };
        let file = self
            .fs
            .open_ino(Ino(ino))
            .map_err(|error| format!("open: {error}"))?;
        let uncertain = matches!(file.size(), FileSize::Between { .. });
        let branch = self.model.branch(file.generation().0);
        let was = branch.sized.iter().any(|sized| sized.exact_until.is_some());
        if uncertain && (was || branch.begun > 0) {
            return Err(format!("the size of inode {ino} has become uncertain"));
        }
        if !uncertain {
            expect_size(&file, branch.len(), "open")?;
        }
        self.open.insert(ino, Open { file, uncertain });
        Ok(())
    }

    fn read_back(&mut self) -> Result<(), String> {
        let Some((_, file)) = self.open_file(false) else {
            return Ok(());
        };
        let branch = self.model.branch(file.generation().0);
        let mut bytes = vec![0; branch.data.len() + 1];
        let read = file
            .read_at(0, &mut bytes)
            .map_err(|error| format!("read_at: {error}"))?;
        if bytes[..read] == branch.data[..] {
            Ok(())
        } else {
            Err(format!("{read} bytes read back differ"))
        }
    }

    /// Unmounts, checks and mounts again.
    fn remount(&mut self) -> Result<(), String> {
        let open: Vec<u64> = self.open.keys().copied().collect();
        for ino in open {
            self.close_file(ino);
        }
        let unmounted = self.fs.clone().unmount();
        unmounted.map_err(|error| format!("unmount: {error}"))?;
        self.all_is_durable();
        assert_clean(&Arc::new(self.device.duplicate()), "after unmounting")?;
        self.fs = mount(&self.device).map_err(|error| format!("mount: {error}"))?;
        let found = survey(&self.fs).map_err(|error| format!("survey: {error}"))?;
        if found.names == **self.model.names() {
            Ok(())
        } else {
            let why = self.model.names().difference(&found.names);
            Err(format!("unmounting changed the namespace: {why}"))
        }
    }

    /// Removes most files, as one does on a full device.
    fn empty_out(&mut self) -> Result<(), String> {
        if self.fs.space().free > self.fs.space().total / 2 {
            return Ok(());
        }
        let names = self.names();
        for (key, &ino) in &names.entries {
            if !names.nodes[&ino].directory && self.chance(80) {
                self.unlink_entry(key.clone(), ino)?;
            }
        }
        Ok(())
    }
}

/// True where `dir` is `above` or lies below it.
fn is_below(names: &Names, mut dir: u64, above: u64) -> bool {
    loop {
        if dir == above {
            return true;
        }
        let Some((key, _)) = names.entries.iter().find(|&(_, &ino)| ino == dir) else {
            return false;
        };
        dir = key.0;
    }
}

fn expect_size(file: &FileRef, size: u64, after: &str) -> Result<(), String> {
    if file.size() == FileSize::Exact(size) {
        Ok(())
    } else {
        Err(format!("size {:?} after {after}, not {size}", file.size()))
    }
}
