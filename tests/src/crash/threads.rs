//! Crashes under several threads at once, with the filesystem's own background thread beside them.
//!
//! Every thread makes, appends to, syncs, renames and removes files of its own in one directory, and appends
//! records to a file that all share. Its own operations are in order, so what a crash leaves of them is
//! the state after some prefix of them. Which prefixes go together is not free either: changes of
//! the namespace are durable in the order in which they happened, so that whoever finds one finds
//! every one that had returned before it was called.
//!
//! The shared file is appended to at offsets that the calls return; when all threads are done its whole
//! contents are known, and a crash leaves a prefix of them that holds what was synced.
//!
//! The seed decides what each thread does, the scheduler how they meet: a violation need not repeat.
//! Times are as in `model.rs`; an acknowledgement is noted when its thread gets to it, which may be
//! later than it was given but never earlier.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lavafs::device::{Recording, SimDevice};
use lavafs::{
    CreateOptions, FileRef, FileSystem, LavaFs, MkfsOptions, MountOptions, TailPolicy, mkfs,
};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::verify::{assert_clean, mount};
use super::{MIB, Violation, guard};

const THREADS: usize = 4;

/// The file that all threads append to.
const SHARED: &str = "/shared";

/// A change of the namespace by one thread, and what its files were called after it.
struct Change {
    /// Recorded device operations when it was begun.
    begun: usize,
    /// Ticks of a clock that all threads share.
    called: u64,
    returned: u64,
    /// Names to numbers of files.
    names: BTreeMap<String, usize>,
}

/// Bytes of one of a thread's files.
#[derive(Default)]
struct Contents {
    data: Vec<u8>,
    /// (recorded operations when begun, size led to).
    issued: Vec<(usize, u64)>,
    /// (recorded operations when acknowledged, size synced).
    synced: Vec<(usize, u64)>,
}

/// What one thread did.
#[derive(Default)]
struct Log {
    changes: Vec<Change>,
    /// (recorded operations when acknowledged, number of changes that are durable).
    acks: Vec<(usize, usize)>,
    files: Vec<Contents>,
    /// Records of the shared file: offset, bytes, begun, acknowledged.
    shared: Vec<(u64, Vec<u8>, usize, usize)>,
}

struct Worker<'a> {
    device: &'a SimDevice,
    fs: &'a LavaFs,
    clock: &'a AtomicU64,
    shared: &'a FileRef,
    id: usize,
    rng: StdRng,
    log: Log,
    open: BTreeMap<usize, FileRef>,
    renames: usize,
}

impl Worker<'_> {
    fn names(&self) -> BTreeMap<String, usize> {
        self.log
            .changes
            .last()
            .map_or_else(BTreeMap::new, |last| last.names.clone())
    }

    /// Runs one change of the namespace and notes it.
    fn change(
        &mut self,
        names: BTreeMap<String, usize>,
        body: impl FnOnce(&LavaFs) -> lavafs::Result<()>,
    ) -> Result<(), String> {
        let begun = self.device.recorded_ops();
        let called = self.clock.fetch_add(1, Ordering::SeqCst);
        body(self.fs).map_err(|error| format!("thread {}: {error}", self.id))?;
        let returned = self.clock.fetch_add(1, Ordering::SeqCst);
        self.log.changes.push(Change {
            begun,
            called,
            returned,
            names,
        });
        Ok(())
    }

    fn fresh_name(&mut self) -> String {
        self.renames += 1;
        format!("t{}-{}", self.id, self.renames)
    }

    fn pick(&mut self) -> Option<(String, usize)> {
        let names: Vec<_> = self.names().into_iter().collect();
        (!names.is_empty()).then(|| names[self.rng.random_range(0..names.len())].clone())
    }

    fn step(&mut self) -> Result<(), String> {
        match self.rng.random_range(0..100) {
            0..12 => self.create(),
            12..45 => self.append(),
            45..60 => self.sync(),
            60..72 => self.rename(),
            72..77 => self.unlink(),
            77..80 => self.commit(),
            _ => self.append_shared(),
        }
    }

    fn create(&mut self) -> Result<(), String> {
        let (name, number) = (self.fresh_name(), self.log.files.len());
        let mut names = self.names();
        names.insert(name.clone(), number);
        let mut file = None;
        self.change(names, |fs| {
            file = Some(fs.create(Path::new(&name), &CreateOptions::default())?);
            Ok(())
        })?;
        self.log.files.push(Contents::default());
        self.open.insert(number, file.expect("it was created"));
        Ok(())
    }

    fn append(&mut self) -> Result<(), String> {
        let Some((_, number)) = self.pick() else {
            return self.create();
        };
        let mut bytes = vec![0; self.rng.random_range(1..9000)];
        self.rng.fill_bytes(&mut bytes);
        let begun = self.device.recorded_ops();
        let appended = self.open[&number].append(&bytes);
        appended.map_err(|error| format!("append: {error}"))?;
        let contents = &mut self.log.files[number];
        contents.data.extend(bytes);
        contents.issued.push((begun, contents.data.len() as u64));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), String> {
        let Some((_, number)) = self.pick() else {
            return Ok(());
        };
        let exact = self.rng.random();
        let changes = self.log.changes.len();
        let file = &self.open[&number];
        let synced = if exact {
            file.fsync()
        } else {
            file.fdatasync()
        };
        synced.map_err(|error| format!("sync: {error}"))?;
        let now = self.device.recorded_ops();
        let contents = &mut self.log.files[number];
        contents.synced.push((now, contents.data.len() as u64));
        // An fsync makes the file's own names durable, and with the last of them all before it.
        let made = |change: &Change| change.names.values().any(|&named| named == number);
        let created = self.log.changes[..changes].iter().position(made);
        let durable = created.map_or(0, |at| at + 1);
        self.log.acks.push((now, durable));
        Ok(())
    }

    fn rename(&mut self) -> Result<(), String> {
        let Some((from, number)) = self.pick() else {
            return Ok(());
        };
        let to = self.fresh_name();
        let mut names = self.names();
        names.remove(&from);
        names.insert(to.clone(), number);
        self.change(names, |fs| fs.rename(Path::new(&from), Path::new(&to)))
    }

    fn unlink(&mut self) -> Result<(), String> {
        let Some((name, number)) = self.pick() else {
            return Ok(());
        };
        let mut names = self.names();
        names.remove(&name);
        self.open.remove(&number);
        self.change(names, |fs| fs.unlink(Path::new(&name)))
    }

    fn commit(&mut self) -> Result<(), String> {
        let changes = self.log.changes.len();
        let done = match self.rng.random_range(0..2) {
            0 => self.fs.sync_dir(Path::new("/")),
            _ => self.fs.checkpoint(),
        };
        done.map_err(|error| format!("commit: {error}"))?;
        self.log.acks.push((self.device.recorded_ops(), changes));
        Ok(())
    }

    fn append_shared(&mut self) -> Result<(), String> {
        let mut bytes = vec![0; self.rng.random_range(1..3000)];
        self.rng.fill_bytes(&mut bytes);
        let begun = self.device.recorded_ops();
        let offset = self.shared.append_durable(&[IoSlice::new(&bytes)]);
        let offset = offset.map_err(|error| format!("append_durable: {error}"))?;
        let acked = self.device.recorded_ops();
        self.log.shared.push((offset, bytes, begun, acked));
        Ok(())
    }
}

/// Explores one world of several threads and returns the number of states that were checked.
///
/// # Errors
/// The first violation. It need not happen again: see the module's words.
pub fn explore_threads(seed: u64, steps: usize, crashes: u64) -> Result<u64, Box<Violation>> {
    let violation = |at, crash_seed, what| {
        Box::new(Violation {
            seed,
            life: 0,
            at,
            crash_seed,
            what,
        })
    };
    let lived = guard(|| live(seed, steps)).map_err(|what| violation(usize::MAX, 0, what))?;
    let (recording, logs) = lived;
    let whole = whole_shared(&logs);
    let mut states = 0;
    for at in 0..=recording.ops().len() {
        for crash_seed in 0..crashes {
            let device = Arc::new(recording.crash(at, crash_seed));
            guard(|| verify(&device, &logs, &whole, at))
                .map_err(|what| violation(at, crash_seed, what))?;
            states += 1;
        }
    }
    Ok(states)
}

fn live(seed: u64, steps: usize) -> Result<(Recording, Vec<Log>), String> {
    let say = |error: lavafs::Error| error.to_string();
    let device = Arc::new(SimDevice::new(32 * MIB, 512));
    let options = MkfsOptions {
        uuid: Some(uuid::Uuid::from_u128(u128::from(seed) + 1)),
        journal_size: Some(256 << 10),
        ..MkfsOptions::default()
    };
    mkfs(&*device, &options).map_err(say)?;
    let fs = LavaFs::mount(device.clone(), &MountOptions::default()).map_err(say)?;
    let options = CreateOptions {
        tail: [TailPolicy::Seal, TailPolicy::Pack][seed as usize % 2],
        ..CreateOptions::default()
    };
    let shared = fs.create(Path::new(SHARED), &options).map_err(say)?;
    shared.fsync().map_err(say)?;
    device.record();
    let clock = AtomicU64::new(0);
    let logs = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|id| {
                let (device, fs, clock, shared) = (&*device, &fs, &clock, &shared);
                scope.spawn(move || {
                    let mut worker = Worker {
                        device,
                        fs,
                        clock,
                        shared,
                        id,
                        rng: StdRng::seed_from_u64(seed * THREADS as u64 + id as u64),
                        log: Log::default(),
                        open: BTreeMap::new(),
                        renames: 0,
                    };
                    (0..steps).try_for_each(|_| worker.step())?;
                    Ok(worker.log)
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|log| log.unwrap_or_else(|_| Err("a thread panicked".to_owned())))
            .collect::<Result<Vec<Log>, String>>()
    })?;
    Ok((device.take_recording(), logs))
}

/// All bytes that the shared file ever had; what no append covers is padding.
fn whole_shared(logs: &[Log]) -> Vec<u8> {
    let mut whole = Vec::new();
    for (offset, bytes, ..) in logs.iter().flat_map(|log| &log.shared) {
        let end = *offset as usize + bytes.len();
        if whole.len() < end {
            whole.resize(end, 0);
        }
        whole[*offset as usize..end].copy_from_slice(bytes);
    }
    whole
}

fn verify(device: &Arc<SimDevice>, logs: &[Log], shared: &[u8], at: usize) -> Result<(), String> {
    assert_clean(device, "before mounting")?;
    let fs = mount(device).map_err(|error| format!("mount: {error}"))?;
    let mut found = vec![Vec::new(); logs.len()];
    let entries = fs.list(Path::new("/")).map_err(|error| error.to_string())?;
    for entry in entries
        .iter()
        .filter(|entry| entry.name != OsStr::new(&SHARED[1..]))
    {
        let name = entry.name.to_string_lossy().into_owned();
        let thread = name[1..].split('-').next().and_then(|id| id.parse().ok());
        let thread: usize = thread.ok_or_else(|| format!("nobody made {name}"))?;
        found[thread].push(name);
    }
    let mut prefixes = Vec::new();
    for (thread, (log, names)) in logs.iter().zip(&found).enumerate() {
        let prefix = prefix(log, names, at).map_err(|why| format!("thread {thread}: {why}"))?;
        verify_files(&fs, log, prefix.1, at).map_err(|why| format!("thread {thread}: {why}"))?;
        prefixes.push(prefix);
    }
    verify_order(logs, &prefixes)?;
    verify_shared(&fs, logs, shared, at)?;
    drop(fs);
    assert_clean(device, "after mounting")
}

/// How many of the thread's changes are there: the least and the most that it can be. They differ where a
/// file came and went.
fn prefix(log: &Log, found: &[String], at: usize) -> Result<(usize, usize), String> {
    let acked = log.acks.iter().filter(|ack| ack.0 <= at).map(|ack| ack.1);
    let least = acked.max().unwrap_or(0);
    let most = log.changes.partition_point(|change| change.begun <= at);
    let is_found = |count: &usize| match count.checked_sub(1) {
        None => found.is_empty(),
        Some(last) => {
            let names = &log.changes[last].names;
            names.len() == found.len() && found.iter().all(|name| names.contains_key(name))
        }
    };
    let first = (least..=most).find(is_found);
    let last = (least..=most).rev().find(is_found);
    first.zip(last).ok_or_else(|| {
        format!("{found:?} are not the names after any of {least} to {most} changes")
    })
}

/// What had returned before a change that is there was called is there too.
fn verify_order(logs: &[Log], prefixes: &[(usize, usize)]) -> Result<(), String> {
    for (thread, (log, &(_, prefix))) in logs.iter().zip(prefixes).enumerate() {
        let Some(missing) = log.changes.get(prefix) else {
            continue;
        };
        for (other, (theirs, &(count, _))) in logs.iter().zip(prefixes).enumerate() {
            let after = |change: &&Change| change.called > missing.returned;
            if let Some(later) = theirs.changes[..count].iter().find(after) {
                return Err(format!(
                    "thread {thread}'s change {prefix} is missing (returned at {}), but thread \
                     {other}'s that was called at {} is there",
                    missing.returned, later.called
                ));
            }
        }
    }
    Ok(())
}

fn verify_files(fs: &LavaFs, log: &Log, prefix: usize, at: usize) -> Result<(), String> {
    let Some(last) = prefix.checked_sub(1) else {
        return Ok(());
    };
    for (name, &number) in &log.changes[last].names {
        let contents = &log.files[number];
        let file = fs
            .open(Path::new(name))
            .map_err(|error| error.to_string())?;
        let issued = contents.issued.iter().filter(|issued| issued.0 <= at);
        let issued = issued.map(|issued| issued.1).max().unwrap_or(0);
        let synced = contents.synced.iter().filter(|synced| synced.0 <= at);
        let synced = synced.map(|synced| synced.1).max().unwrap_or(0);
        compare(&file, &contents.data, issued, synced).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}

fn verify_shared(fs: &LavaFs, logs: &[Log], whole: &[u8], at: usize) -> Result<(), String> {
    let file = fs
        .open(Path::new(SHARED))
        .map_err(|error| error.to_string())?;
    let records = || logs.iter().flat_map(|log| &log.shared);
    let end = |record: &&(u64, Vec<u8>, usize, usize)| record.0 + record.1.len() as u64;
    let issued = records().filter(|record| record.2 <= at);
    // A sealed file's padding belongs to the record before it.
    let issued = issued
        .map(|record| end(&record).next_multiple_of(512))
        .max();
    let synced = records().filter(|record| record.3 <= at);
    let synced = synced.map(|record| end(&record)).max();
    compare(&file, whole, issued.unwrap_or(0), synced.unwrap_or(0))
        .map_err(|why| format!("the shared file: {why}"))
}

/// The file holds all synced bytes of `data` and nothing else below its size's lower bound, which is no
/// more than was issued.
fn compare(file: &FileRef, data: &[u8], issued: u64, synced: u64) -> Result<(), String> {
    let size = file.size();
    if size.lower() > issued || size.upper() < synced {
        return Err(format!(
            "size {size:?} with {issued} issued and {synced} synced"
        ));
    }
    let mut bytes = vec![0; size.upper() as usize];
    let read = file.read_unverified(0, &mut bytes);
    read.map_err(|error| format!("read_unverified: {error}"))?;
    let known = size.lower().max(synced) as usize;
    let mut expected = data[..known.min(data.len())].to_vec();
    expected.resize(known, 0);
    match (0..known).find(|&offset| bytes[offset] != expected[offset]) {
        None => Ok(()),
        Some(offset) => Err(format!(
            "byte {offset} of {known} is wrong, size {size:?}, {synced} synced"
        )),
    }
}
