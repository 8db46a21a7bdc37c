//! When collections run: after any background work, if the picker finds one due and compaction does not
//! need the machine; and when nobody has written for a while.
//!
//! Collections run on the threads of compactions, beside as many compactions as there may be. While a
//! compaction is due none is begun, unless the disk is so full that space matters more. A full disk stops
//! flushes and compactions, but not collections, which give space back.
//!
//! A file whose collection failed is held back and the rest goes on: for good where it is damaged, until
//! there is more free space where there was too little. The database stays as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Candidate, Effort, GcPick, Limits, Standing, pick};
use crate::background::scheduler::{guarded, next_compaction, spawn};
use crate::db::engine::{ColumnFamily, Engine, State};
use crate::env::Priority;
use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::key::SeqNo;
use crate::version::Version;
use crate::write::batch::CfId;

/// How often the watcher looks whether somebody writes, at most.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Usage from which a collection does not wait for compactions.
const URGENT_USAGE: f64 = 0.9;

/// Bytes that a job reads and writes at most, in files of full size. The more it writes, the more values come
/// to lie in the order of their keys; but inputs go when all is written, so it is one file where space is short.
const INPUTS_MAX: u64 = 8;
const OUTPUTS_MAX: u64 = 4;

/// What the engine's state knows of collections.
#[derive(Debug, Default)]
pub(crate) struct Collections {
    /// Files being collected.
    files: BTreeSet<FileNumber>,
    /// Bytes that their collections copy, written already or not.
    copied_bytes: u64,
    /// Tasks queued or running.
    tasks: usize,
    /// Files whose collection failed, with the free bytes that it takes to try again.
    held: BTreeMap<FileNumber, u64>,
    /// The last sequence number when idleness was found.
    idle_at: Option<SeqNo>,
    /// A thread waits for idleness.
    pub(crate) watching: bool,
}

impl Collections {
    /// Bytes that the collections now running may yet write, at most.
    pub(crate) fn bytes_to_come(&self) -> u64 {
        self.copied_bytes
    }

    fn begin(&mut self, pick: &GcPick) {
        self.files.extend(&pick.inputs);
        self.copied_bytes += pick.copied_bytes;
    }

    /// True while a collection is queued or running.
    pub(crate) fn in_progress(&self) -> bool {
        self.tasks > 0 || !self.files.is_empty()
    }
}

/// A collection that is due.
struct Due {
    cf: CfId,
    pick: GcPick,
    version: Arc<Version>,
}

/// The disk, as the picker needs it.
#[derive(Clone, Copy)]
struct Disk {
    usage: f64,
    free: u64,
}

impl Disk {
    fn of(engine: &Engine) -> Disk {
        let space = engine.fs.space();
        Disk {
            usage: 1.0 - space.free as f64 / (space.total as f64).max(1.0),
            free: space.free,
        }
    }
}

/// Queues a collection if one is due; it queues the next.
pub(crate) fn schedule(engine: &Arc<Engine>, state: &mut State) {
    let options = &engine.options;
    if !state.cfs.values().any(|cf| is_collected(cf)) {
        return;
    }
    let disk = Disk::of(engine);
    let is_idle = state.collections.idle_at == Some(engine.published.load(Ordering::Acquire));
    let effort = Effort::at(disk.usage, is_idle, options.max_blob_collections);
    if state.collections.tasks >= effort.threads {
        return;
    }
    if next(state, effort, disk).is_none() {
        let later = Effort::at(disk.usage, true, 1);
        if !is_idle && !state.collections.watching && next(state, later, disk).is_some() {
            watch_for_idleness(engine, state);
        }
        return;
    }
    let compacts = !options.disable_auto_compactions && next_compaction(engine, state).is_some();
    if compacts && disk.usage < URGENT_USAGE {
        return;
    }
    state.collections.tasks += 1;
    spawn(engine, state, Priority::Low, move |engine| {
        let outcome = collect_once(engine, effort);
        engine.state.lock().collections.tasks -= 1;
        outcome
    });
}

fn collect_once(engine: &Arc<Engine>, effort: Effort) -> Result<()> {
    let mut state = engine.state.lock();
    let disk = Disk::of(engine);
    let Some(due) = next(&state, effort, disk) else {
        return Ok(());
    };
    state.collections.begin(&due.pick);
    // Others may run beside it.
    schedule(engine, &mut state);
    drop(state);
    run(engine, &due, disk)
}

/// Collects what is due and takes it off the list.
fn run(engine: &Arc<Engine>, due: &Due, disk: Disk) -> Result<()> {
    let outcome = engine.collect(due.cf, &due.pick, &due.version);
    let mut state = engine.state.lock();
    let collections = &mut state.collections;
    for number in &due.pick.inputs {
        collections.files.remove(number);
    }
    collections.copied_bytes -= due.pick.copied_bytes;
    let outcome = match outcome {
        Err(error) if error.is_corrupt() => {
            tracing::error!(%error, "a blob file cannot be collected");
            hold(collections, &due.pick, &error, u64::MAX);
            Ok(())
        }
        Err(Error::Fs(error @ lavafs::Error::NoSpace { .. })) => {
            tracing::warn!(%error, "no space for a collection");
            let more = disk.free.saturating_add(due.pick.copied_bytes / 8 + 1);
            hold(collections, &due.pick, &Error::Fs(error), more);
            Ok(())
        }
        other => other,
    };
    // What is gone is not held back any more.
    let mut held = std::mem::take(&mut state.collections.held);
    held.retain(|number, _| {
        let mut cfs = state.cfs.values();
        cfs.any(|cf| cf.view().version.blobs.files().contains_key(number))
    });
    state.collections.held = held;
    drop(state);
    engine.changed.notify_all();
    outcome
}

/// Holds back the input that an error names, or all of them.
fn hold(collections: &mut Collections, pick: &GcPick, error: &Error, free: u64) {
    let named = |number: &&FileNumber| match error {
        Error::Corrupt { file, .. } => *file == FileName::Blob(**number).to_string(),
        _ => false,
    };
    match pick.inputs.iter().find(named) {
        Some(&number) => drop(collections.held.insert(number, free)),
        None => collections
            .held
            .extend(pick.inputs.iter().map(|&number| (number, free))),
    }
}

/// True where the background has blob files of the family to look after.
fn is_collected(cf: &ColumnFamily) -> bool {
    cf.options.enable_blob_garbage_collection && !cf.view().version.blobs.files().is_empty()
}

/// The collection that frees most for what it copies, of all column families.
fn next(state: &State, effort: Effort, disk: Disk) -> Option<Due> {
    let collections = &state.collections;
    // Outputs being written have not taken all of their space yet.
    let free_bytes = disk.free / (collections.files.len() as u64 + 1) / 8 * 7;
    let standing = |number: &FileNumber| {
        if collections.files.contains(number) {
            return Standing::Collecting;
        }
        match collections.held.get(number) {
            Some(&needed) if disk.free < needed => Standing::Held,
            _ => Standing::Eligible,
        }
    };
    let cfs = state.cfs.values();
    let due = cfs.filter(|cf| effort.is_asked_for || is_collected(cf));
    let due = due.filter_map(|cf| {
        let version = Arc::clone(&cf.view().version);
        let files = version
            .blobs
            .files()
            .iter()
            .map(|(number, live)| Candidate {
                number: *number,
                file_bytes: live.file.meta.file_size,
                value_bytes: live.file.meta.value_bytes,
                live_bytes: live.used.value_bytes,
                standing: standing(number),
            });
        let candidates: Vec<Candidate> = files.collect();
        let file_bytes = cf.options.blob_file_size;
        let outputs = match disk.usage >= URGENT_USAGE {
            true => 1,
            false => OUTPUTS_MAX,
        };
        let limits = Limits {
            copied_bytes: file_bytes.saturating_mul(outputs),
            input_bytes: file_bytes.saturating_mul(INPUTS_MAX),
            free_bytes,
        };
        let pick = pick(&candidates, effort, limits)?;
        let cf = cf.id;
        Some(Due { cf, pick, version })
    });
    due.max_by(|a, b| gain(&a.pick).total_cmp(&gain(&b.pick)))
}

/// Bytes freed for each byte copied.
fn gain(pick: &GcPick) -> f64 {
    pick.freed_bytes as f64 / (pick.copied_bytes as f64).max(1.0)
}

/// Starts the thread that waits until nobody writes, and schedules then.
fn watch_for_idleness(engine: &Arc<Engine>, state: &mut State) {
    let watcher = Arc::clone(engine);
    let spawned = std::thread::Builder::new()
        .name("lavakv-idle".to_owned())
        .spawn(move || wait_for_idleness(&watcher));
    match spawned {
        Ok(_) => state.collections.watching = true,
        Err(error) => tracing::warn!(%error, "no thread to wait for idleness"),
    }
}

fn wait_for_idleness(engine: &Arc<Engine>) {
    let idle_after = Duration::from_millis(engine.options.blob_collection_idle_millis);
    let interval = WATCH_INTERVAL
        .min(idle_after / 2)
        .max(Duration::from_millis(1));
    let mut state = engine.state.lock();
    let mut last = engine.published.load(Ordering::Acquire);
    let mut since = Instant::now();
    while !state.closing {
        engine.changed.wait_for(&mut state, interval);
        let now = engine.published.load(Ordering::Acquire);
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() >= idle_after {
            state.collections.idle_at = Some(now);
            crate::background::scheduler::schedule(engine, &mut state);
            break;
        }
    }
    state.collections.watching = false;
    drop(state);
    engine.changed.notify_all();
}

impl Engine {
    /// Collects every blob file with garbage worth it, now and on the caller's thread.
    pub(crate) fn collect_all(self: &Arc<Self>) -> Result<()> {
        let _job = self.caller_job()?;
        let all = Effort {
            tolerated: 0.0,
            threads: 1,
            smallest_first: false,
            is_asked_for: true,
        };
        loop {
            let mut state = self.state.lock();
            crate::write::check_writable(&state)?;
            let disk = Disk::of(self);
            let Some(due) = next(&state, all, disk) else {
                if state.collections.files.is_empty() {
                    return Ok(());
                }
                self.changed.wait(&mut state);
                continue;
            };
            state.collections.begin(&due.pick);
            drop(state);
            // On a thread of the caller's, but as far as everybody else goes in the background.
            if let Err(error) = guarded(|| run(self, &due, disk)) {
                self.fail(error.clone());
                return Err(error);
            }
        }
    }
}
