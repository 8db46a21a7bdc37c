//! `Db`: the handle that callers hold.
//!
//! It is `Send` and `Sync`; a clone shares the same open database. When the last clone is dropped,
//! background work stops and the directory is unlocked, but nothing is flushed or synced: what
//! was acknowledged with `sync` is durable, and the rest is as after a crash of the process.
//! [`Db::close`] also makes the rest durable.

pub(crate) mod close;
mod destroy;
pub(crate) mod engine;
pub(crate) mod foreign;
pub(crate) mod multi_get;
pub(crate) mod pinned;
pub(crate) mod read;
pub(crate) mod read_only;
pub(crate) mod recovery;
pub(crate) mod repair;
pub(crate) mod snapshot;
pub(crate) mod verify;

use std::path::Path;
use std::sync::Arc;

use lavafs::FileSystemRef;

use self::repair::RepairReport;
use self::verify::VerifyReport;
use crate::background::scheduler;
use crate::blob::garbage::GarbageReport;
use crate::db::engine::Engine;
use crate::db::pinned::PinnedSlice;
use crate::db::snapshot::Snapshot;
use crate::error::{Error, Result};
use crate::iter::DbIterator;
use crate::options::{Options, ReadOptions, WriteOptions};
use crate::stats::histogram::{HistogramValues, Timed};
use crate::stats::metrics::TickerValues;
use crate::stats::prometheus;
use crate::stats::properties::{self, Stats};
use crate::write::WriteItem;
use crate::write::batch::{CfId, WriteBatch};

/// An open database. Cheap to clone; all methods may be called from any thread.
#[derive(Clone, Debug)]
pub struct Db {
    handle: Arc<Handle>,
}

/// Stops the engine when the last `Db` goes.
#[derive(Debug)]
struct Handle {
    engine: Arc<Engine>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.engine.abandon();
    }
}

impl Db {
    /// Opens the database in directory `dir` of `fs`, making it if
    /// [`Options::create_if_missing`] says so, and recovers what a crash left.
    ///
    /// # Errors
    /// [`Error::Busy`] where it is open elsewhere, [`Error::InvalidArgument`] for an option out of range
    /// or a database that does not exist, [`Error::Corrupt`] with file and offset for damage,
    /// [`Error::Unsupported`] for a newer format. Nothing is changed in these cases.
    pub fn open(fs: FileSystemRef, dir: &Path, options: Options) -> Result<Db> {
        let engine = recovery::open(fs, dir, options)?;
        Ok(Db {
            handle: Arc::new(Handle { engine }),
        })
    }

    /// Opens the database in directory `dir` of `fs` for reading alone. Nothing is changed on disk,
    /// the directory's lock is not taken, and so another process or handle may have it
    /// open: what is shown is the state of the moment of this call, logged writes included but for
    /// those that an owner still has in its memory (see [`WriteOptions`]), and stays so. Background
    /// work does not run; every change fails with [`Error::ReadOnly`].
    ///
    /// # Errors
    /// As [`Db::open`]; [`Error::Busy`] where the owner replaces files faster than they are opened.
    pub fn open_read_only(fs: FileSystemRef, dir: &Path, options: Options) -> Result<Db> {
        let engine = read_only::open(&fs, dir, &options)?;
        Ok(Db {
            handle: Arc::new(Handle { engine }),
        })
    }

    /// Makes a database that is damaged open again, with everything that its files still
    /// hold: rebuilds the manifest if it is lost, leaves out tables, blob files and ends of logs that fail their
    /// checksums, and sets damaged files aside under the suffix `.damaged`, blob files whose tables may be lost
    /// under `.orphan`. A healthy database comes out with the same contents.
    ///
    /// # Errors
    /// [`Error::Busy`] where the database is open, [`Error::InvalidArgument`] where there is none,
    /// [`Error::Unsupported`] for a newer format.
    pub fn repair(fs: &FileSystemRef, dir: &Path, options: &Options) -> Result<RepairReport> {
        repair::repair(fs, dir, options)
    }

    /// Removes the database in `dir` with all its files, and the directory if nothing else is in it.
    /// No error where there is none.
    ///
    /// # Errors
    /// [`Error::Busy`] where it is open, [`Error::InvalidArgument`] for another program's database.
    pub fn destroy(fs: &FileSystemRef, dir: &Path) -> Result<()> {
        destroy::destroy(fs, dir)
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.handle.engine
    }

    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// As [`Db::write`].
    pub fn put(&self, key: &[u8], value: &[u8], options: &WriteOptions) -> Result<()> {
        let mut batch = WriteBatch::with_capacity(key.len() + value.len() + 16);
        batch.put(key, value);
        self.write(batch, options)
    }

    /// Removes `key`; no error where it does not exist.
    ///
    /// # Errors
    /// As [`Db::write`].
    pub fn delete(&self, key: &[u8], options: &WriteOptions) -> Result<()> {
        let mut batch = WriteBatch::with_capacity(key.len() + 16);
        batch.delete(key);
        self.write(batch, options)
    }

    /// Ends `key`, which was put at most once since it last ended: see
    /// [`WriteBatch::single_delete`].
    ///
    /// # Errors
    /// As [`Db::write`].
    pub fn single_delete(&self, key: &[u8], options: &WriteOptions) -> Result<()> {
        let mut batch = WriteBatch::with_capacity(key.len() + 16);
        batch.single_delete(key);
        self.write(batch, options)
    }

    /// Sets `key` to `value` in a column family.
    ///
    /// # Errors
    /// As [`Db::write`].
    pub fn put_cf(&self, cf: CfId, key: &[u8], value: &[u8], options: &WriteOptions) -> Result<()> {
        let mut batch = WriteBatch::with_capacity(key.len() + value.len() + 16);
        batch.put_cf(cf, key, value);
        self.write(batch, options)
    }

    /// Removes `key` from a column family; no error where it does not exist.
    ///
    /// # Errors
    /// As [`Db::write`].
    pub fn delete_cf(&self, cf: CfId, key: &[u8], options: &WriteOptions) -> Result<()> {
        let mut batch = WriteBatch::with_capacity(key.len() + 16);
        batch.delete_cf(cf, key);
        self.write(batch, options)
    }

    /// Ends `key` of a column family, which was put at most once since it last ended.
    ///
    /// # Errors
    /// As [`Db::write`].
    pub fn single_delete_cf(&self, cf: CfId, key: &[u8], options: &WriteOptions) -> Result<()> {
        let mut batch = WriteBatch::with_capacity(key.len() + 16);
        batch.single_delete_cf(cf, key);
        self.write(batch, options)
    }

    /// Applies `batch` atomically: readers see all of it or nothing, and so does recovery. With
    /// [`WriteOptions::sync`] it is durable on return.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a key or value over its limit or an unknown column family,
    /// [`Error::Fs`] where the log cannot be written (with no space left, later writes succeed
    /// again when there is some), [`Error::ReadOnly`] after a hard failure. A batch whose sync
    /// failed is not applied, but may be there after a reopen.
    pub fn write(&self, mut batch: WriteBatch, options: &WriteOptions) -> Result<()> {
        batch.check()?;
        if batch.data_size() > crate::write::batch::MAX_BATCH_LEN {
            return Err(Error::invalid_argument(format!(
                "batch of {} bytes: at most {}",
                batch.data_size(),
                crate::write::batch::MAX_BATCH_LEN
            )));
        }
        if options.sync && options.disable_wal {
            let what = "a write without log cannot be synced";
            return Err(Error::invalid_argument(what));
        }
        if batch.is_empty() {
            return match options.sync {
                true => self.sync_wal(),
                false => Ok(()),
            };
        }
        let engine = self.engine();
        if engine.options.protection_bytes_per_key > 0 {
            batch.protect();
        }
        engine.histograms.time(Timed::Write, || {
            engine.submit(WriteItem::Write(batch, *options))
        })
    }

    /// The value of `key`, if it has one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with file and offset for damage on the way; never a wrong value.
    pub fn get(&self, key: &[u8], options: &ReadOptions) -> Result<Option<Vec<u8>>> {
        self.get_cf(CfId::DEFAULT, key, options)
    }

    /// The value of `key` in a column family.
    ///
    /// # Errors
    /// As [`Db::get`], and [`Error::InvalidArgument`] for an unknown column family.
    pub fn get_cf(&self, cf: CfId, key: &[u8], options: &ReadOptions) -> Result<Option<Vec<u8>>> {
        let engine = self.engine();
        engine
            .histograms
            .time(Timed::Get, || engine.get(cf, key, options))
    }

    /// The value of `key` in a column family, not copied: it keeps the block or memtable that it
    /// lies in.
    ///
    /// # Errors
    /// As [`Db::get_cf`].
    pub fn get_pinned(
        &self,
        cf: CfId,
        key: &[u8],
        options: &ReadOptions,
    ) -> Result<Option<PinnedSlice>> {
        let engine = self.engine();
        engine
            .histograms
            .time(Timed::Get, || engine.get_pinned(cf, key, options))
    }

    /// The values of `keys`, in their order, as of one moment. Blocks that must be read are read
    /// together, with up to 32 reads in flight.
    ///
    /// # Errors
    /// As [`Db::get`]: the first failure.
    pub fn multi_get(&self, keys: &[&[u8]], options: &ReadOptions) -> Result<Vec<Option<Vec<u8>>>> {
        self.multi_get_cf(CfId::DEFAULT, keys, options)
    }

    /// The values of `keys` in a column family.
    ///
    /// # Errors
    /// As [`Db::multi_get`], and [`Error::InvalidArgument`] for an unknown column family.
    pub fn multi_get_cf(
        &self,
        cf: CfId,
        keys: &[&[u8]],
        options: &ReadOptions,
    ) -> Result<Vec<Option<Vec<u8>>>> {
        let engine = self.engine();
        engine
            .histograms
            .time(Timed::MultiGet, || engine.multi_get(cf, keys, options))
    }

    /// A consistent view of the present, for [`ReadOptions::snapshot`]. Dropping it releases it.
    pub fn snapshot(&self) -> Snapshot {
        let engine = self.engine();
        engine.snapshots.take(&engine.published)
    }

    /// An iterator over the present or a snapshot; not positioned. It sees no later write.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another database's snapshot.
    pub fn iter(&self, options: &ReadOptions) -> Result<DbIterator> {
        self.iter_cf(CfId::DEFAULT, options)
    }

    /// An iterator over a column family.
    ///
    /// # Errors
    /// As [`Db::iter`], and [`Error::InvalidArgument`] for an unknown column family.
    pub fn iter_cf(&self, cf: CfId, options: &ReadOptions) -> Result<DbIterator> {
        self.engine().iter(cf, options)
    }

    /// Stores all memtables in tables; durable on return.
    ///
    /// # Errors
    /// What the flush failed with.
    pub fn flush(&self) -> Result<()> {
        let engine = self.engine();
        engine.refuse_when_closed()?;
        engine.flush_all()
    }

    /// Stores the memtables of one column family in tables; durable on return.
    ///
    /// # Errors
    /// As [`Db::flush`], and [`Error::InvalidArgument`] for an unknown column family.
    pub fn flush_cf(&self, cf: CfId) -> Result<()> {
        let engine = self.engine();
        engine.refuse_when_closed()?;
        engine.cf(cf)?;
        engine.flush_cfs(&[cf])
    }

    /// Flushes, and merges the tables that hold keys in `begin..=end` (`None`: unbounded) down to the
    /// last level that holds data there. A FIFO, which merges nothing, drops what is due.
    ///
    /// # Errors
    /// What flush or compaction failed with.
    pub fn compact_range(&self, begin: Option<&[u8]>, end: Option<&[u8]>) -> Result<()> {
        let engine = self.engine();
        let _job = engine.caller_job()?;
        engine.flush_all()?;
        let cfs: Vec<CfId> = engine.state.lock().cfs.keys().copied().collect();
        cfs.into_iter()
            .try_for_each(|cf| match engine.compact_range(cf, (begin, end)) {
                // Dropped meanwhile.
                Err(_) if engine.cf(cf).is_err() => Ok(()),
                other => other,
            })
    }

    /// The same of one column family.
    ///
    /// # Errors
    /// As [`Db::compact_range`], and [`Error::InvalidArgument`] for an unknown column family.
    pub fn compact_range_cf(
        &self,
        cf: CfId,
        begin: Option<&[u8]>,
        end: Option<&[u8]>,
    ) -> Result<()> {
        self.flush_cf(cf)?;
        self.engine().compact_range(cf, (begin, end))
    }

    /// Collects the garbage of blob files now, on this thread, whatever the options say: every
    /// file of which at least a fiftieth is garbage is replaced by one without.
    ///
    /// # Errors
    /// What the collection failed with. A file that is damaged is left as it is, without an error.
    pub fn collect_blob_garbage(&self) -> Result<()> {
        self.engine().collect_all()
    }

    /// Makes every logged write so far durable.
    ///
    /// # Errors
    /// What the sync failed with; the database is read-only then.
    pub fn sync_wal(&self) -> Result<()> {
        self.engine().submit(WriteItem::SyncLog)
    }

    /// Waits until no flush or compaction is due.
    ///
    /// # Errors
    /// What background work failed with.
    pub fn wait_for_background_work(&self) -> Result<()> {
        self.engine().wait_idle()
    }

    /// Makes a column family.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the name is taken, empty or over 255 bytes.
    pub fn create_cf(&self, name: &str) -> Result<CfId> {
        let engine = self.engine();
        engine.create_cf(name, engine.options.for_cf(name).clone())
    }

    /// Makes a column family with options of its own, which are stored; when the database is
    /// opened again they come from [`Options::cf_options`].
    ///
    /// # Errors
    /// As [`Db::create_cf`], and [`Error::InvalidArgument`] for an option out of range.
    pub fn create_cf_with(&self, name: &str, options: Options) -> Result<CfId> {
        self.engine().create_cf(name, options)
    }

    /// The options in force of a column family.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an unknown column family.
    pub fn cf_options(&self, cf: CfId) -> Result<Options> {
        Ok((*self.engine().cf(cf)?.options).clone())
    }

    /// Drops a column family with all its data.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an unknown one and for the default.
    pub fn drop_cf(&self, cf: CfId) -> Result<()> {
        self.engine().drop_cf(cf)
    }

    /// The column families and their names, in the order they were made.
    pub fn cfs(&self) -> Vec<(CfId, String)> {
        let state = self.engine().state.lock();
        state
            .cfs
            .values()
            .map(|cf| (cf.id, cf.name.clone()))
            .collect()
    }

    /// The column family with this name.
    pub fn cf(&self, name: &str) -> Option<CfId> {
        let state = self.engine().state.lock();
        state
            .cfs
            .values()
            .find(|cf| cf.name == name)
            .map(|cf| cf.id)
    }

    /// Counters and sizes.
    pub fn stats(&self) -> Stats {
        properties::stats(self.engine())
    }

    /// The counters alone: cheap.
    pub fn tickers(&self) -> TickerValues {
        self.engine().tickers.values()
    }

    /// How long operations took, by name; empty unless [`Options::histograms`] is set. Names: `get`,
    /// `multi_get`, `write`, `wal_sync`, `flush`, `compaction`.
    pub fn histograms(&self) -> Vec<(&'static str, HistogramValues)> {
        self.engine().histograms.values()
    }

    /// A property by its name in RocksDB (`rocksdb.num-files-at-level0`) or with the prefix
    /// `lavakv.`; `None` for an unknown one.
    pub fn property(&self, name: &str) -> Option<String> {
        properties::property(self.engine(), name)
    }

    /// Counters, sizes and histograms in the text format that Prometheus scrapes (version 0.0.4).
    /// Every line carries the label `db`, the database's directory.
    pub fn metrics_text(&self) -> String {
        prometheus::text(self.engine())
    }

    /// Clears a hard error of background work, which then goes on; no error where there is none.
    ///
    /// # Errors
    /// The error itself, where it cannot be cleared: after a failure of the log, corruption or a
    /// panic the database must be opened again.
    pub fn resume(&self) -> Result<()> {
        scheduler::resume(self.engine())
    }

    /// Reads every file and checks everything that can be checked: checksums, key order, levels,
    /// and that manifest and directory agree. Reads only; writers go on meanwhile.
    ///
    /// # Errors
    /// The first disagreement.
    pub fn verify(&self) -> Result<VerifyReport> {
        verify::verify(self.engine())
    }

    /// Reads every record of every blob file, and checks that what tables account for is what they
    /// refer to: the garbage of each file, and that every reference has its value.
    ///
    /// # Errors
    /// The first disagreement.
    pub fn verify_garbage(&self) -> Result<GarbageReport> {
        self.engine().verify_garbage()
    }

    /// Makes everything written durable, ends background work, and what other threads have under way that changes files,
    /// and unlocks the directory. Other clones then fail with [`Error::Busy`]. A second close waits for the first and
    /// does nothing.
    ///
    /// # Errors
    /// What could not be made durable; the database is closed all the same.
    pub fn close(&self) -> Result<()> {
        self.engine().close()
    }
}
