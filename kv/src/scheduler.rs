//! Background work: what runs when, and what happens when it fails.
//!
//! `schedule` looks at the state and queues what is missing: a flush for each column family with
//! immutable memtables, compaction tasks up to the limit while one is due, and collections of blob
//! files ([`crate::blob::gc`]). Each task ends by calling it again, so work goes on until nothing is due.
//!
//! A task that fails for want of space sets a transient error: nothing is scheduled until a
//! thread of its own sees free space again and clears it. Any other failure is hard. A panic poisons the
//! database: its state in memory cannot be trusted.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::batch::CfId;
use crate::blob::gc;
use crate::compaction::{Choice, PickerOptions, pick};
use crate::engine::{Engine, State};
use crate::env::Priority;
use crate::error::{Error, Result};

/// How often free space is looked at after it ran out.
const RESUME_INTERVAL: Duration = Duration::from_millis(100);

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
    if engine.options.disable_auto_compactions || state.manual_compactions > 0 {
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

/// The compaction that is due, if one is.
pub(crate) fn next_compaction(engine: &Engine, state: &State) -> Option<(CfId, Choice)> {
    let options = PickerOptions::of(&engine.options);
    state.cfs.values().find_map(|cf| {
        let busy: Vec<_> = state
            .compacting
            .iter()
            .filter(|(id, _)| *id == cf.id)
            .map(|(_, running)| running.clone())
            .collect();
        let choice = pick(&cf.view().version, &options, &busy)?;
        Some((cf.id, choice))
    })
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
        let outcome = catch_unwind(AssertUnwindSafe(|| task(&engine)));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => engine.fail(error),
            Err(panic) => engine.fail(Error::Poisoned {
                reason: Arc::from(format!(
                    "a background thread panicked: {}",
                    message(&*panic)
                )),
            }),
        }
        let mut state = engine.state.lock();
        schedule(&engine, &mut state);
        state.tasks -= 1;
        drop(state);
        engine.changed.notify_all();
    });
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Starts the thread that waits for free space, clears the error and schedules again.
pub(crate) fn resume_when_space_returns(engine: &Arc<Engine>) {
    let waiting = Arc::clone(engine);
    let spawned = std::thread::Builder::new()
        .name("lavakv-resume".to_owned())
        .spawn(move || wait_for_space(&waiting));
    if let Err(error) = spawned {
        engine.state.lock().resuming = false;
        tracing::error!(%error, "no thread to wait for free space; reopen to resume");
    }
}

fn wait_for_space(engine: &Arc<Engine>) {
    let mut state = engine.state.lock();
    loop {
        engine.changed.wait_for(&mut state, RESUME_INTERVAL);
        let hard = state.error.as_ref().is_some_and(|known| !known.transient);
        if state.closing || hard {
            state.resuming = false;
            break;
        }
        let needed = (engine.options.write_buffer_size as u64).min(8 << 20);
        if parking_lot::MutexGuard::unlocked(&mut state, || engine.fs.space().free) < needed {
            continue;
        }
        state.error = None;
        state.resuming = false;
        tracing::info!(dir = %engine.dir.display(), "space has returned; resuming");
        schedule(engine, &mut state);
        break;
    }
    drop(state);
    engine.changed.notify_all();
}
