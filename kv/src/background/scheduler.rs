//! Background work: what runs when, and what happens when it fails.
//!
//! `schedule` looks at the state and queues what is missing: a flush for each column family with
//! immutable memtables, compaction tasks up to the limit while one is due, and collections of blob
//! files ([`crate::blob::gc`]). Each task ends by calling it again, so work goes on until nothing is due.
//!
//! A task that fails for want of space, or with an error of the system that may pass, sets a
//! transient error: nothing is scheduled until a thread of its own sees free space again, or a pause that
//! doubles is over, and clears it. Any other failure is hard; [`resume`] clears it on request.
//! A panic poisons the database: its state in memory cannot be trusted.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::MutexGuard;

use crate::background::space::compaction_for_space;
use crate::blob::gc;
use crate::compaction::{Choice, PickerOptions, awaited, pick};
use crate::db::engine::{Engine, State, closing, read_only};
use crate::env::Priority;
use crate::error::{Error, Result};
use crate::key::SeqNo;
use crate::options::CompactionStyle;
use crate::options::Options;
use crate::write::batch::CfId;

/// How often free space is looked at after it ran out, and the first pause after other transient
/// errors.
const RESUME_INTERVAL: Duration = Duration::from_millis(100);

/// Bounds of the age that the pause between two looks at the age of tables is reckoned from.
const AGE_PAUSE_MIN: Duration = Duration::from_secs(1);
/// See [`AGE_PAUSE_MIN`].
const AGE_PAUSE_MAX: Duration = Duration::from_secs(8 * 60);

/// Queues what is due.
pub(crate) fn schedule(engine: &Arc<Engine>, state: &mut State) {
    let hard = state.error.as_ref().is_some_and(|known| !known.transient);
    if state.closing || hard {
        return;
    }
    // A full disk is what garbage collection is for.
    gc::schedule(engine, state);
    if state.error.is_some() {
        return;
    }
    let waiting: Vec<CfId> = state
        .cfs
        .values()
        .filter(|cf| !state.flushing.contains(&cf.id) && !cf.view().imms.is_empty())
        .map(|cf| cf.id)
        .collect();
    for id in waiting {
        if state.flushing.len() >= engine.options.max_flushes() {
            break;
        }
        state.flushing.insert(id);
        spawn(engine, state, Priority::High, move |engine| {
            let outcome = engine.flush_cf(id);
            engine.state.lock().flushing.remove(&id);
            outcome
        });
    }
    watch_age(engine, state);
    watch_snapshots(engine, state);
    if state.manual_compactions > 0 {
        return;
    }
    if state.compaction_tasks < engine.options.max_compactions()
        && next_compaction(engine, state).is_some()
    {
        state.compaction_tasks += 1;
        spawn(engine, state, Priority::Low, |engine| {
            let outcome = compact_once(engine);
            engine.state.lock().compaction_tasks -= 1;
            outcome
        });
    }
}

/// Starts the thread that looks at the age of a FIFO's tables, which changes without any write.
fn watch_age(engine: &Arc<Engine>, state: &mut State) {
    if state.watching_age || oldest_ttl(state).is_none() {
        return;
    }
    let watcher = Arc::clone(engine);
    let spawned = std::thread::Builder::new()
        .name("lavakv-age".to_owned())
        .spawn(move || {
            let mut state = watcher.state.lock();
            while let (false, Some(ttl)) = (state.closing, oldest_ttl(&state)) {
                // A table may live an eighth longer than it should.
                let pause = Duration::from_secs(ttl).clamp(AGE_PAUSE_MIN, AGE_PAUSE_MAX) / 8;
                let until = Instant::now() + pause;
                while !state.closing && Instant::now() < until {
                    watcher.changed.wait_until(&mut state, until);
                }
                schedule(&watcher, &mut state);
            }
            state.watching_age = false;
            drop(state);
            watcher.changed.notify_all();
        });
    match spawned {
        Ok(_) => state.watching_age = true,
        Err(error) => tracing::warn!(%error, "no thread to look at the age of tables"),
    }
}

/// Has the snapshot list say when a release lets a compaction drop what it had to keep.
fn watch_snapshots(engine: &Engine, state: &State) {
    engine.snapshots.watch(|oldest| {
        let cfs = state.cfs.values();
        let compacted = cfs.filter(|cf| !cf.options.disable_auto_compactions);
        compacted
            .filter_map(|cf| awaited(&cf.view().version, &cf.options.compaction, oldest))
            .min()
    });
}

/// Schedules once more, on a thread of the environment: the caller may hold any lock.
pub(crate) fn schedule_soon(engine: &Arc<Engine>) {
    let later = Arc::clone(engine);
    engine.env.schedule(Priority::Low, move || {
        schedule(&later, &mut later.state.lock());
    });
}

/// The shortest time that a FIFO keeps its tables, if there is one that counts it.
fn oldest_ttl(state: &State) -> Option<u64> {
    let policies = state.cfs.values().map(|cf| &cf.options);
    policies
        .filter(|options| !options.disable_auto_compactions)
        .map(|options| &options.compaction)
        .filter(|policy| policy.style == CompactionStyle::Fifo && policy.fifo_ttl > 0)
        .map(|policy| policy.fifo_ttl)
        .min()
}

/// The compaction that is due, if one is.
pub(crate) fn next_compaction(engine: &Engine, state: &State) -> Option<(CfId, Choice)> {
    state.cfs.values().find_map(|cf| {
        if cf.options.disable_auto_compactions {
            return None;
        }
        let options = picker_options(engine, &cf.options);
        let busy: Vec<_> = state
            .compacting
            .iter()
            .filter(|(id, _)| *id == cf.id)
            .map(|(_, running)| running.clone())
            .collect();
        let version = &cf.view().version;
        let choice = pick(version, &options, &busy)
            .or_else(|| compaction_for_space(engine, state, version, &options, &busy))?;
        Some((cf.id, choice))
    })
}

/// What the pickers need, as of now.
pub(crate) fn picker_options(engine: &Engine, options: &Options) -> PickerOptions {
    let tickers = engine.tickers.values();
    PickerOptions {
        migration_credit: tickers.flush_bytes as i64 - tickers.migration_bytes as i64,
        now: now(),
        oldest_snapshot: engine.snapshots.oldest().unwrap_or(SeqNo::MAX),
        ..PickerOptions::of(options)
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |elapsed| elapsed.as_secs())
}

fn compact_once(engine: &Arc<Engine>) -> Result<()> {
    let mut state = engine.state.lock();
    if state.manual_compactions > 0 {
        return Ok(());
    }
    let Some((cf, choice)) = next_compaction(engine, &state) else {
        return Ok(());
    };
    let version = match state.cfs.get(&cf) {
        Some(cf) => Arc::clone(&cf.view().version),
        None => return Ok(()),
    };
    state.compacting.push((cf, choice.in_flight()));
    // Others may run beside it.
    schedule(engine, &mut state);
    drop(state);
    engine.compact(cf, &choice, &version)
}

/// Queues one task and counts it until it has ended.
pub(crate) fn spawn(
    engine: &Arc<Engine>,
    state: &mut State,
    priority: Priority,
    task: impl FnOnce(&Arc<Engine>) -> Result<()> + Send + 'static,
) {
    state.tasks += 1;
    let engine = Arc::clone(engine);
    engine.env.clone().schedule(priority, move || {
        match guarded(|| task(&engine)) {
            Ok(()) => engine.state.lock().retries = 0,
            Err(error) => engine.fail(error),
        }
        let mut state = engine.state.lock();
        schedule(&engine, &mut state);
        state.tasks -= 1;
        drop(state);
        engine.changed.notify_all();
    });
}

/// Does `work`; a panic becomes the error that poisons the database.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(poisoned(&*panic)))
}

/// What becomes of a database of which a background task panicked.
fn poisoned(panic: &(dyn Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    Error::Poisoned {
        reason: Arc::from(format!("a thread at work panicked: {message}")),
    }
}

/// Clears an error that may be cleared, and schedules again.
pub(crate) fn resume(engine: &Arc<Engine>) -> Result<()> {
    let state = engine.state.lock();
    if state.closing {
        return Err(closing());
    }
    match &state.error {
        None => return Ok(()),
        Some(known) if !known.resumable => return Err(read_only(&known.error)),
        Some(_) => {}
    }
    clear_error(engine, state);
    Ok(())
}

/// Clears the error, schedules again and tells everybody.
fn clear_error(engine: &Arc<Engine>, mut state: MutexGuard<'_, State>) {
    state.error = None;
    schedule(engine, &mut state);
    drop(state);
    engine.changed.notify_all();
    engine.tell(|listener| listener.on_resumed());
}

/// Starts the thread that waits for the cause to pass, clears the error and schedules again.
pub(crate) fn resume_later(engine: &Arc<Engine>) {
    let waiting = Arc::clone(engine);
    let spawned = std::thread::Builder::new()
        .name("lavakv-resume".to_owned())
        .spawn(move || wait_to_resume(&waiting));
    if let Err(error) = spawned {
        engine.state.lock().resuming = false;
        tracing::error!(%error, "no thread to resume background work; resume or reopen");
    }
}

fn wait_to_resume(engine: &Arc<Engine>) {
    let mut state = engine.state.lock();
    let pause = RESUME_INTERVAL * 2_u32.pow(state.retries.saturating_sub(1).min(5));
    let until = Instant::now() + pause;
    loop {
        engine.changed.wait_for(&mut state, RESUME_INTERVAL);
        let waits = state.error.as_ref().is_some_and(|known| known.transient);
        if state.closing || !waits {
            break;
        }
        if waits_for_space(&state) {
            // Not a failing device: it may take for ever.
            state.retries = 0;
            let needed = (engine.options.write_buffer_size as u64).min(8 << 20);
            let free = MutexGuard::unlocked(&mut state, || engine.fs.space().free);
            // What failed while nobody held the lock, a log perhaps, must not be cleared with it.
            if free < needed || state.closing || !waits_for_space(&state) {
                continue;
            }
        } else if Instant::now() < until {
            continue;
        }
        state.resuming = false;
        tracing::info!(dir = %engine.dir.display(), "resuming after a transient error");
        return clear_error(engine, state);
    }
    state.resuming = false;
    drop(state);
    engine.changed.notify_all();
}

fn waits_for_space(state: &State) -> bool {
    let error = state.error.as_ref();
    error.is_some_and(|known| known.transient && known.error.is_no_space())
}
