//! A random workload on a filesystem, beside its model.
//!
//! One thread, no background thread, everything decided by the seed: a run repeats exactly. Only
//! operations that the model says are allowed are tried; the sole error that may come back is
//! `NoSpace`, and then nothing may have changed.

mod files;
mod names;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lavafs::device::{Recording, SimDevice};
use lavafs::{Error, FileRef, FileSize, FileSystem, LavaFs};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::model::{Branch, Model, Names, Sized};
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
            83..85 => self.symlink(),
            85..87 => self.attributes(),
            87..91 => self.commit(),
            91..94 => self.close(),
            94..96 => self.reopen(),
            96..98 => self.read_back(),
            98..99 if self.chance(80) => self.remount(),
            98..99 => self.expand(),
            _ => self.empty_out(),
        }
    }

    fn is_named(&self, ino: u64) -> bool {
        self.model.names().nodes.contains_key(&ino)
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

    /// Grows the filesystem to the device, which is larger in some worlds.
    fn expand(&mut self) -> Result<(), String> {
        self.log_step("expand");
        self.fs
            .expand()
            .map_err(|error| format!("expand: {error}"))?;
        Ok(())
    }

    fn log_step(&mut self, what: &str) {
        let now = self.now();
        self.model.log.push((now, what.to_owned()));
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
