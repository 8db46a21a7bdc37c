//! The write path: queue, group, log, memtable, publish.
//!
//! Writers queue; one of them leads and commits everything that has queued (group commit, no
//! timer). The leader makes room (stalls, full memtables), gives sequence numbers, appends one
//! group to the log, syncs once if any of its writers asked for it, inserts into the memtables and
//! publishes. Batches are never re-encoded: their bytes go to the log as they are, and are decoded
//! once, when they are inserted. Of a large group the waiting writers insert a part each.
//!
//! A failed append gives the log up: it is cut back to its last good group and the next write
//! begins a new one. If that fails too, or a sync failed, the database turns read-only: what is
//! durable is then unknown.

pub(crate) mod batch;
pub(crate) mod protection;
pub(crate) mod stall;
pub(crate) mod succession;
pub(crate) mod wal;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lavalog::{Crew, Task};

use crate::background::scheduler;
use crate::background::space::is_reclaiming;
use crate::db::engine::{ColumnFamily, Engine, Mem, State, closing, no_such_cf, read_only};
use crate::env::ledger;
use crate::error::{Error, Result, Severity};
use crate::file_names::{FileName, FileNumber};
use crate::options::WriteOptions;
use crate::stats::histogram::Timed;
use crate::stats::listener::{Event, FileEvent, FileKind};
use crate::write::batch::{CfId, WriteBatch};
use crate::write::stall::Stall;
use crate::write::wal::{WAL_GROUP_BYTES, WalWriter};

/// Bytes of a group from which waiting writers insert a part of it: waking them has its price.
const SHARED_BYTES_MIN: usize = 32 << 10;

/// Threads at most that insert one group.
const HANDS_MAX: usize = 16;

type WriteCrew<'a> = Crew<'a, Result<()>, Error>;

/// What a caller asks of the leader.
#[derive(Debug)]
pub(crate) enum WriteItem {
    /// Apply a batch.
    Write(WriteBatch, WriteOptions),
    /// Make the memtable of a column family immutable and flush it.
    Seal(CfId),
    /// Make what was logged durable.
    SyncLog,
}

impl Engine {
    /// Queues `item` and returns its result.
    pub(crate) fn submit(self: &Arc<Self>, item: WriteItem) -> Result<()> {
        let mut events = Vec::new();
        let result = self.writers.submit_with(item, |items, crew| {
            self.untold.begin();
            let led = scheduler::guarded(|| Ok(self.lead(items, crew)));
            // A group may be in the log and in a part of the memtables: nothing is led any more.
            let led = led.inspect_err(|panicked| self.fail(panicked.clone()));
            events = self.untold.end();
            led
        });
        let told = scheduler::guarded(|| {
            events.iter().for_each(|event| self.tell_event(event));
            Ok(())
        });
        if let Err(panicked) = told {
            self.fail(panicked);
        }
        result?
    }

    /// Does `items` in order; one result each. Runs on one thread at a time.
    fn lead(self: &Arc<Self>, items: Vec<WriteItem>, crew: &WriteCrew<'_>) -> Vec<Result<()>> {
        let mut log = self.log.lock();
        let mut results = Vec::with_capacity(items.len());
        let mut group: Vec<(WriteBatch, WriteOptions)> = Vec::new();
        let mut bytes = 0;
        for item in items {
            match item {
                WriteItem::Write(batch, options) => {
                    if bytes + batch.data_size() > WAL_GROUP_BYTES {
                        self.commit(&mut log, &mut group, &mut results, crew);
                        bytes = 0;
                    }
                    bytes += batch.data_size();
                    group.push((batch, options));
                }
                WriteItem::Seal(cf) => {
                    self.commit(&mut log, &mut group, &mut results, crew);
                    let sealed = self.cf(cf).and_then(|cf| self.seal(&mut log, &cf));
                    results.push(sealed);
                }
                WriteItem::SyncLog => {
                    self.commit(&mut log, &mut group, &mut results, crew);
                    results.push(self.sync_log(&mut log));
                }
            }
        }
        self.commit(&mut log, &mut group, &mut results, crew);
        results
    }

    /// Commits `group` as one, and pushes a result for each of its writes.
    fn commit(
        self: &Arc<Self>,
        log: &mut Option<WalWriter>,
        group: &mut Vec<(WriteBatch, WriteOptions)>,
        results: &mut Vec<Result<()>>,
        crew: &WriteCrew<'_>,
    ) {
        if group.is_empty() {
            return;
        }
        let bytes = group.iter().map(|(batch, _)| batch.data_size()).sum();
        let count = group.len();
        let outcome = self
            .make_room(log, bytes)
            .and_then(|()| self.commit_group(log, group, crew));
        match outcome {
            Ok(each) => results.extend(each),
            Err(error) => results.extend((0..count).map(|_| Err(error.clone()))),
        }
        group.clear();
    }

    fn commit_group(
        self: &Arc<Self>,
        log: &mut Option<WalWriter>,
        group: &mut Vec<(WriteBatch, WriteOptions)>,
        crew: &WriteCrew<'_>,
    ) -> Result<Vec<Result<()>>> {
        let mems = self.mems_for(group)?;
        let mut results = Vec::with_capacity(group.len());
        let mut sequence = self.last_sequence() + 1;
        for (batch, _) in group.iter_mut() {
            let known = match batch.cfs().iter().find(|cf| !mems.contains_key(cf)) {
                Some(cf) => Err(no_such_cf(*cf)),
                None => batch.check_protection(),
            };
            if known.is_ok() {
                batch.set_sequence(sequence);
                sequence += u64::from(batch.count());
            }
            results.push(known);
        }
        let accepted: Vec<(WriteBatch, WriteOptions)> = std::mem::take(group)
            .into_iter()
            .zip(&results)
            .filter_map(|(write, result)| result.is_ok().then_some(write))
            .collect();
        self.append_to_log(log, &accepted)?;
        let accepted = self.apply(accepted, mems, crew);
        for (batch, _) in accepted.iter() {
            self.tickers.keys_written.add(u64::from(batch.count()));
            self.tickers.bytes_written.add(batch.data_size() as u64);
        }
        self.tickers.write_groups.add(1);
        self.published.store(sequence - 1, Ordering::Release);
        Ok(results)
    }

    /// Inserts batches that were logged into the memtables. The waiting writers of a large group
    /// help: each inserts a part, into skiplists that take inserts of several threads at once.
    fn apply(
        &self,
        writes: Vec<(WriteBatch, WriteOptions)>,
        mems: BTreeMap<CfId, Arc<Mem>>,
        crew: &WriteCrew<'_>,
    ) -> Arc<Vec<(WriteBatch, WriteOptions)>> {
        let writes = Arc::new(writes);
        let bytes: usize = writes.iter().map(|(batch, _)| batch.data_size()).sum();
        let hands = writes.len().min(crew.len() + 1).min(HANDS_MAX);
        let alone = !self.options.allow_concurrent_memtable_write;
        if alone || hands < 2 || bytes < SHARED_BYTES_MIN {
            for (batch, options) in writes.iter() {
                apply_to_mems(batch, *options, &mems);
            }
            return writes;
        }
        let mems = Arc::new(mems);
        let part = |hand: usize| -> Task {
            let (writes, mems) = (Arc::clone(&writes), Arc::clone(&mems));
            Box::new(move || {
                for (batch, options) in writes.iter().skip(hand).step_by(hands) {
                    apply_to_mems(batch, *options, &mems);
                }
            })
        };
        crew.share((0..hands).map(part).collect());
        self.tickers.shared_inserts.add(1);
        writes
    }

    /// The memtables that the group writes to.
    fn mems_for(&self, group: &[(WriteBatch, WriteOptions)]) -> Result<BTreeMap<CfId, Arc<Mem>>> {
        let state = self.state.lock();
        if state.cfs.is_empty() {
            return Err(closing());
        }
        let mut mems = BTreeMap::new();
        for id in group.iter().flat_map(|(batch, _)| batch.cfs()) {
            if let std::collections::btree_map::Entry::Vacant(slot) = mems.entry(*id)
                && let Some(cf) = state.cfs.get(id)
            {
                slot.insert(Arc::clone(&cf.view().mem));
            }
        }
        Ok(mems)
    }

    fn append_to_log(
        self: &Arc<Self>,
        log: &mut Option<WalWriter>,
        writes: &[(WriteBatch, WriteOptions)],
    ) -> Result<()> {
        let logged: Vec<&WriteBatch> = writes
            .iter()
            .filter(|(_, options)| !options.disable_wal)
            .map(|(batch, _)| batch)
            .collect();
        let synced = writes
            .iter()
            .any(|(_, options)| options.sync && !options.disable_wal);
        if !logged.is_empty() {
            let wal = log.as_mut().ok_or_else(closing)?;
            self.tickers
                .wal_bytes
                .add(logged.iter().map(|batch| batch.data_size() as u64).sum());
            if let Err(error) = self.append_group(wal, &logged, synced) {
                return Err(self.log_failed(log, error));
            }
        }
        if synced {
            self.sync_log(log)?;
        }
        Ok(())
    }

    fn sync_log(self: &Arc<Self>, log: &mut Option<WalWriter>) -> Result<()> {
        let usable = |wal: &&mut WalWriter| !wal.failed() || wal.settled();
        let Some(mut wal) = log.as_mut().filter(usable) else {
            // What was logged is durable to an unknown extent; no later sync can tell.
            check_writable(&self.state.lock())?;
            return Err(closing());
        };
        if wal.failed() {
            if wal.held_bytes() == 0 {
                return Ok(());
            }
            self.switch_log(log)?;
            wal = log.as_mut().ok_or_else(closing)?;
        }
        if wal.must_wait_to_sync()
            && let Err(error) = self.catch_up(wal, true)
        {
            return Err(self.log_failed(log, error));
        }
        self.tickers.wal_syncs.add(1);
        if let Err(error) = self.histograms.time(Timed::WalSync, || wal.sync()) {
            self.harden(error.clone());
            return Err(error);
        }
        let (number, size) = (wal.number(), wal.size());
        self.state.lock().logs.insert(number, size);
        Ok(())
    }

    /// After a failed append: gives the log up. Returns the error to tell the writers.
    fn log_failed(self: &Arc<Self>, log: &mut Option<WalWriter>, error: Error) -> Error {
        let passes = error.severity() == Severity::Transient;
        let wal = log.as_mut().expect("the log just failed");
        if !wal.failed() {
            return error;
        }
        let cut = wal.cut_back();
        if !passes || cut.is_err() {
            self.harden(error.clone());
        }
        error
    }

    /// Turns the database read-only, whatever kind of error this is.
    pub(crate) fn harden(self: &Arc<Self>, error: Error) {
        self.fail(Error::ReadOnly {
            reason: Arc::from(error.to_string()),
        });
    }

    /// Waits until `bytes` may be written: not stopped, slowed enough, no memtable full.
    fn make_room(self: &Arc<Self>, log: &mut Option<WalWriter>, bytes: usize) -> Result<()> {
        let begin = Instant::now();
        let mut delayed = false;
        let mut looked = false;
        loop {
            let mut state = self.state.lock();
            check_writable(&state)?;
            if log.as_ref().is_some_and(WalWriter::failed) {
                drop(state);
                self.switch_log(log)?;
                continue;
            }
            self.look_at_space(&mut state, if looked { 0 } else { bytes });
            looked = true;
            if state.stall == Stall::Stopped {
                self.wait_for_change(&mut state)?;
                continue;
            }
            if let Stall::Delayed(rate) = state.stall
                && !delayed
            {
                drop(state);
                delayed = true;
                let delay = self.pacer.lock().delay(Instant::now(), bytes, rate);
                if !delay.is_zero() {
                    std::thread::sleep(delay);
                }
                continue;
            }
            if let Some(wal) = log {
                state.logs.insert(wal.number(), wal.size());
            }
            let Some(full) = self.full_cf(&state) else {
                self.prepare_next_log(&mut state);
                drop(state);
                if self.waits_for_memory(begin) {
                    continue;
                }
                break;
            };
            if full.view().imms.len() + 1 >= full.options.max_write_buffer_number {
                self.wait_for_change(&mut state)?;
                continue;
            }
            let reclaiming = is_reclaiming(&state);
            drop(state);
            match self.seal(log, &full) {
                // The next log did not fit; what gives space back may only take longer than usual.
                Err(error) if error.is_no_space() && reclaiming => {
                    self.wait_for_change(&mut self.state.lock())?;
                }
                sealed => sealed?,
            }
        }
        let waited = begin.elapsed().as_micros() as u64;
        if waited > 1000 || delayed {
            self.tickers.stall_micros.add(waited);
        }
        Ok(())
    }

    /// Under memory pressure of all databases of the environment: waits a moment, and returns
    /// true where the group, which began to wait at `begin`, must look again.
    fn waits_for_memory(&self, begin: Instant) -> bool {
        let Some(ledger) = self.env.ledger() else {
            return false;
        };
        if ledger.is_under_pressure() {
            ledger.relieve();
        }
        if !ledger.is_full() || begin.elapsed() >= ledger::WAIT_MAX {
            return false;
        }
        self.tickers.waits_for_memory.add(1);
        ledger.wait_for_memory(Duration::from_millis(10));
        true
    }

    /// Makes the memtable of `cf` immutable for the sake of other databases, if it can.
    pub(crate) fn seal_for_memory(self: &Arc<Self>, cf: CfId) {
        if let Err(error) = self.submit(WriteItem::Seal(cf)) {
            tracing::debug!(%error, "not flushed for want of memory");
        }
    }

    /// A column family whose memtable must be sealed before more is written.
    fn full_cf(&self, state: &State) -> Option<Arc<ColumnFamily>> {
        let ledger = self
            .env
            .ledger()
            .filter(|ledger| ledger.is_under_pressure());
        let share = ledger.map_or(usize::MAX, |ledger| ledger.fair_share());
        let is_full = |cf: &&Arc<ColumnFamily>| {
            let table = &cf.view().mem.table;
            let memory = table.approximate_memory();
            memory >= cf.options.write_buffer_size || (memory > share && !table.is_empty())
        };
        if let Some(cf) = state.cfs.values().find(is_full) {
            return Some(Arc::clone(cf));
        }
        let total: u64 = state.logs.values().sum();
        let families = state.cfs.values().map(|cf| &*cf.options);
        if total < self.options.wal_size_limit(families) {
            return None;
        }
        let oldest = *state.logs.keys().next()?;
        let holds_oldest = |cf: &&Arc<ColumnFamily>| {
            let view = cf.view();
            !view.mem.table.is_empty() && view.mem.log_number() <= oldest
        };
        state.cfs.values().find(holds_oldest).cloned()
    }

    /// Waits for background work; gives up where none can help.
    fn wait_for_change(&self, state: &mut parking_lot::MutexGuard<'_, State>) -> Result<()> {
        if state.closing_soon {
            return Err(closing());
        }
        if let Some(background) = &state.error {
            let may_help = background.error.is_no_space() && state.collections.in_progress();
            if !may_help {
                return Err(background.error.clone());
            }
        }
        self.changed.wait_for(state, Duration::from_secs(1));
        Ok(())
    }

    /// Makes the memtable of `cf` immutable, begins a new log and queues a flush. Nothing is to be done for a family
    /// that was dropped: that is no error of a write to another.
    fn seal(self: &Arc<Self>, log: &mut Option<WalWriter>, cf: &Arc<ColumnFamily>) -> Result<()> {
        check_writable(&self.state.lock())?;
        if cf.dropped.load(Ordering::Acquire) || cf.view().mem.table.is_empty() {
            return Ok(());
        }
        if log
            .as_ref()
            .is_some_and(|wal| wal.failed() && wal.held_bytes() > 0)
        {
            // What it holds is in the memtable, and goes to a log before the next memtable's.
            self.switch_log(log)?;
        }
        let number = self.switch_log(log)?;
        let mem = self.new_mem(number);
        let mut state = self.state.lock();
        let mut view = (*cf.view()).clone();
        view.imms.insert(0, std::mem::replace(&mut view.mem, mem));
        let sealed = Arc::clone(&view.imms[0]);
        let old = cf.set_view(view, &state);
        sealed.table.seal();
        scheduler::schedule(self, &mut state);
        drop(state);
        drop(old);
        Ok(())
    }

    /// Begins the next log. The one in use is closed, durable to its last byte, before the next takes
    /// a group.
    fn switch_log(self: &Arc<Self>, log: &mut Option<WalWriter>) -> Result<FileNumber> {
        let number = self.succeed_log(log)?;
        let event = FileEvent {
            kind: FileKind::Wal,
            path: self.dir.join(FileName::Wal(number).to_string()),
            bytes: Some(0),
        };
        self.tell_unless_leading(Event::FileCreated(event));
        let mut state = self.state.lock();
        state.logs.insert(number, 0);
        for cf in state.cfs.values() {
            let mem = &cf.view().mem;
            if mem.table.is_empty() {
                mem.advance_log_number(number);
            }
        }
        Ok(number)
    }
}

/// Fails where the database takes no writes at all.
pub(crate) fn check_writable(state: &State) -> Result<()> {
    if state.closing {
        return Err(closing());
    }
    match &state.error {
        Some(background) if !background.transient => Err(read_only(&background.error)),
        _ => Ok(()),
    }
}

fn apply_to_mems(batch: &WriteBatch, options: WriteOptions, mems: &BTreeMap<CfId, Arc<Mem>>) {
    for (sequence, entry) in (batch.sequence()..).zip(batch.iter()) {
        let mem = &mems[&entry.cf];
        mem.table
            .insert(sequence, entry.kind, entry.key, entry.value);
        if options.disable_wal {
            mem.set_unlogged();
        }
    }
}
