//! Recovery: from files to the state of every log.
//!
//! 1. The metalog's highest file with a whole snapshot gives the logs, their floors and
//!    truncations.
//! 2. Each data file gives its records: a sealed one by its directory, any other by a scan.
//! 3. A record counts if its log is there, its LSN is not below the floor, and no truncation to a
//!    later epoch covers it. Of several with one LSN the operation number decides. The place of
//!    a record among files says nothing.
//! 4. A data file that was not sealed is cut at its last valid group, a new file of the metalog is
//!    begun with a snapshot, the older ones are removed, and the data file is sealed. A crash before
//!    any of these steps leaves what was there before; they can be done again. Where there is no space
//!    to seal the file, appends go on in it. One whose seal is there while its size is uncertain gets
//!    that size: a crash came between the two.
//!
//! Invariant: only the last data file with records can be unsealed; if another one ends without
//! its directory, records that were durable are missing, and that is corruption. Nothing is
//! changed before everything was read and judged.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use lavafs::{FileLock, FileSize, FileSystemRef};
use parking_lot::{Mutex, RwLock};

use crate::commit::GroupCommit;
use crate::data::{DataFile, DataLog, FileTable, data_path, seal_with};
use crate::engine::{Inner, Names};
use crate::error::{Error, Result};
use crate::group::{GroupReader, GroupWriter};
use crate::index::Entry;
use crate::meta::{MetaEnd, MetaLog, MetaOp, meta_path, read_meta_file};
use crate::options::LogOptions;
use crate::record::{
    DirectoryBuilder, DirectoryEntry, SECTION_DIRECTORY, SECTION_RECORDS, parse_directory,
    parse_footer, take_record,
};
use crate::state::{Core, LogState};
use lavafs::codec::Decoder;

/// Recovers the engine in `dir`.
pub(crate) fn recover(fs: FileSystemRef, dir: &Path, options: &LogOptions) -> Result<Inner> {
    fs.create_dir_all(dir)?;
    let lock = fs.lock(&dir.join("LOCK"))?;
    let found = Found::read(&fs, dir)?;
    let files = FileTable::default();
    let mut datalog = DataLog::new(dir, options.data_file_size, found.next_file());
    for data in found.data {
        let number = data.number;
        if let Some((file, sealed)) = data.finish(&fs, &mut datalog)? {
            files.add(number, file, sealed);
        }
    }
    let next_meta = found.meta_numbers.last().map_or(1, |last| last + 1);
    let next_log = found.namespace.next_log;
    let names = found.namespace.build(&files);
    let inner = Inner::new(fs, dir, options, Some(lock), datalog, files, names);
    let snapshot = inner.snapshot(next_log);
    let meta = MetaLog::begin(&inner.fs, dir, next_meta, next_log, &snapshot)?;
    *inner.meta.lock() = Some(meta);
    for number in found.meta_numbers {
        inner.fs.unlink(&meta_path(dir, number))?;
    }
    // Behind the metalog, which must have space: what gives space back needs an open engine.
    let mut data = inner.data.lock();
    match data.seal(&inner.files) {
        Err(error) if error.is_no_space() => {}
        other => other?,
    }
    let durable = data.sync()?;
    inner.durable.store(durable, Ordering::Release);
    drop(data);
    Ok(inner)
}

impl Inner {
    /// An engine of what was recovered, without a metalog. Nobody can change one that has no `lock`.
    pub(crate) fn new(
        fs: FileSystemRef,
        dir: &Path,
        options: &LogOptions,
        lock: Option<FileLock>,
        datalog: DataLog,
        files: FileTable,
        (names, next_op): (Names, u64),
    ) -> Inner {
        let closed = match lock {
            Some(_) => OnceLock::new(),
            None => OnceLock::from(Ok(())),
        };
        Inner {
            fs,
            dir: dir.to_path_buf(),
            options: options.clone(),
            commit: GroupCommit::new(),
            data: Mutex::new(datalog),
            meta: Mutex::new(None),
            names: RwLock::new(names),
            files,
            next_op: AtomicU64::new(next_op),
            durable: AtomicU64::new(0),
            closed,
            lock,
        }
    }
}

/// What the files of an engine hold.
pub(crate) struct Found {
    pub(crate) meta_numbers: Vec<u32>,
    pub(crate) data: Vec<Scanned>,
    pub(crate) namespace: Namespace,
}

impl Found {
    /// Reads and judges everything, and changes nothing.
    pub(crate) fn read(fs: &FileSystemRef, dir: &Path) -> Result<Found> {
        let (meta_numbers, data_numbers) = list_files(fs, dir)?;
        // The datalog first: an owner who is at work makes a log before its records.
        let mut data = Vec::new();
        for number in &data_numbers {
            data.push(read_data_file(fs, dir, *number)?);
        }
        let mut namespace = read_namespace(fs, dir, &meta_numbers, data.is_empty())?;
        check_sealed_in_order(&data)?;
        namespace.place_records(&data)?;
        Ok(Found {
            meta_numbers,
            data,
            namespace,
        })
    }

    /// The number of the next file of the datalog.
    pub(crate) fn next_file(&self) -> u32 {
        self.data.last().map_or(1, |last| last.number + 1)
    }
}

/// The numbers of the files of the metalog and of the datalog, ascending.
fn list_files(fs: &FileSystemRef, dir: &Path) -> Result<(Vec<u32>, Vec<u32>)> {
    let (mut meta, mut data) = (Vec::new(), Vec::new());
    for entry in fs.list(dir)? {
        let Some(name) = entry.name.to_str() else {
            continue;
        };
        let number = |prefix| {
            name.strip_prefix(prefix)?
                .strip_suffix(".log")?
                .parse::<u32>()
                .ok()
        };
        meta.extend(number("meta-"));
        data.extend(number("data-"));
    }
    meta.sort_unstable();
    data.sort_unstable();
    Ok((meta, data))
}

#[derive(Default)]
pub(crate) struct Namespace {
    path: PathBuf,
    /// Of the file that holds; `None` for an engine that was never opened.
    pub(crate) end: Option<MetaEnd>,
    logs: BTreeMap<u64, Recovered>,
    pub(crate) next_log: u64,
    next_op: u64,
}

struct Recovered {
    state: LogState,
    /// Live records with their operation numbers.
    records: Vec<(u64, Entry)>,
}

fn read_namespace(
    fs: &FileSystemRef,
    dir: &Path,
    numbers: &[u32],
    no_data: bool,
) -> Result<Namespace> {
    for number in numbers.iter().rev() {
        let path = meta_path(dir, *number);
        if let Some((ops, end)) = read_meta_file(fs, &path, *number)? {
            let mut namespace = Namespace {
                path,
                end: Some(end),
                next_log: 1,
                next_op: 1,
                ..Namespace::default()
            };
            for op in ops {
                namespace.apply(op)?;
            }
            return Ok(namespace);
        }
    }
    // A first open that did not come to its end leaves one file without a whole snapshot.
    if no_data && numbers.iter().all(|number| *number == 1) {
        return Ok(Namespace {
            next_log: 1,
            next_op: 1,
            ..Namespace::default()
        });
    }
    let last = numbers.last().copied().unwrap_or(1);
    let path = meta_path(dir, last);
    Err(Error::corrupt(
        path,
        0,
        "no file of the metalog has a whole snapshot",
    ))
}

impl Namespace {
    fn apply(&mut self, op: MetaOp) -> Result<()> {
        match op {
            MetaOp::Create {
                log,
                op,
                mode,
                floor,
                epoch,
                name,
                truncations,
            } => {
                let core = Core {
                    floor,
                    epoch,
                    truncations,
                    ..Core::default()
                };
                let state = LogState {
                    id: log,
                    name,
                    mode,
                    core: Mutex::new(core),
                };
                let records = Vec::new();
                if self
                    .logs
                    .insert(log, Recovered { state, records })
                    .is_some()
                {
                    return Err(self.corrupt(format!("log {log} is created twice")));
                }
                self.next_log = self.next_log.max(log.saturating_add(1));
                self.saw_op(op);
            }
            MetaOp::Delete { log, op } => {
                self.core(log)?;
                self.logs.remove(&log);
                self.saw_op(op);
            }
            MetaOp::Trim { log, op, floor } => {
                let core = self.core(log)?;
                core.floor = core.floor.max(floor);
                self.saw_op(op);
            }
            MetaOp::Truncate { log, op, to } => {
                let core = self.core(log)?;
                let expected = core.epoch.checked_add(1);
                core.add_truncation(to);
                if expected != Some(to.epoch) {
                    return Err(self.corrupt(format!("log {log} skips to epoch {}", to.epoch)));
                }
                self.saw_op(op);
            }
            MetaOp::SnapshotEnd {
                next_log,
                next_op,
                logs,
            } => {
                if logs != self.logs.len() as u64 {
                    return Err(self.corrupt(format!("the snapshot names {logs} logs")));
                }
                self.next_log = self.next_log.max(next_log);
                self.next_op = self.next_op.max(next_op);
            }
        }
        Ok(())
    }

    fn core(&mut self, log: u64) -> Result<&mut Core> {
        if !self.logs.contains_key(&log) {
            return Err(self.corrupt(format!("an operation on log {log}, which is not there")));
        }
        let recovered = self.logs.get_mut(&log).expect("looked up above");
        Ok(recovered.state.core.get_mut())
    }

    fn saw_op(&mut self, op: u64) {
        self.next_op = self.next_op.max(op.saturating_add(1));
    }

    fn corrupt(&self, detail: String) -> Error {
        Error::corrupt(&self.path, 0, detail)
    }

    /// Gives each live record to its log. A record of an unknown log below `next_log` is of a
    /// deleted one. A create or truncation is durable before a record that depends on it is
    /// written, so a record of a log or epoch that the metalog does not know is proof that the
    /// metalog lost its end.
    fn place_records(&mut self, files: &[Scanned]) -> Result<()> {
        for file in files {
            for record in &file.records {
                let key = record.key;
                self.saw_op(key.op);
                if key.log >= self.next_log {
                    let at = format!("{} at byte {}", file.path.display(), record.offset);
                    return Err(self.corrupt(format!(
                        "the creation of log {} is lost: {at} has a record of it",
                        key.log
                    )));
                }
                let Some(log) = self.logs.get_mut(&key.log) else {
                    continue;
                };
                let core = log.state.core.get_mut();
                if key.epoch > core.epoch {
                    let at = format!("{} at byte {}", file.path.display(), record.offset);
                    return Err(self.corrupt(format!(
                        "a truncation of log {} is lost: {at} has a record of epoch {}",
                        key.log, key.epoch
                    )));
                }
                if core.is_live(key.epoch, key.lsn) {
                    let entry = Entry {
                        lsn: key.lsn,
                        file: file.number,
                        offset: record.offset,
                        len: record.len,
                    };
                    log.records.push((key.op, entry));
                }
            }
        }
        Ok(())
    }

    /// Builds the indexes and counts live records; also the next operation number.
    pub(crate) fn build(self, files: &FileTable) -> (Names, u64) {
        let mut names = Names::default();
        let mut live: HashMap<u32, u64> = HashMap::new();
        for recovered in self.logs.into_values() {
            let Recovered {
                mut state,
                mut records,
            } = recovered;
            records.sort_unstable_by_key(|(op, entry)| (entry.lsn, *op));
            let later_wins = state.later_wins();
            let core = state.core.get_mut();
            for (_, entry) in records {
                if core.index.last() == Some(entry.lsn) && !later_wins {
                    continue;
                }
                *live.entry(entry.file).or_insert(0) += 1;
                if let Some(old) = core.index.insert(entry) {
                    *live.entry(old.file).or_insert(0) -= 1;
                }
            }
            names.add(Arc::new(state));
        }
        for (number, count) in live {
            files.add_live(number, count);
        }
        (names, self.next_op)
    }
}

/// What was found in one data file.
pub(crate) struct Scanned {
    pub(crate) number: u32,
    pub(crate) path: PathBuf,
    generation: u64,
    pub(crate) records: Vec<DirectoryEntry>,
    /// Bytes up to the end of the last valid group.
    pub(crate) len: u64,
    /// The directory was read, or seen behind all records: none is missing.
    complete: bool,
    /// Present if the file is to be sealed.
    pub(crate) unsealed: Option<GroupReader>,
    pub(crate) file: lavafs::FileRef,
}

fn read_data_file(fs: &FileSystemRef, dir: &Path, number: u32) -> Result<Scanned> {
    let path = data_path(dir, number);
    let file = fs.open(&path)?;
    let mut reader = GroupReader::open(file.clone(), &path)?;
    if reader.tag().is_some_and(|tag| tag != u64::from(number)) {
        return Err(Error::corrupt(&path, 0, "the file has another file's name"));
    }
    let mut scanned = Scanned {
        number,
        generation: reader.generation(),
        records: Vec::new(),
        len: file.size().upper(),
        complete: true,
        unsealed: None,
        file,
        path,
    };
    if let Some(records) = read_directory(&mut reader)? {
        scanned.records = records;
        return Ok(scanned);
    }
    let mut reader = GroupReader::open(scanned.file.clone(), &scanned.path)?;
    scanned.complete = scan_groups(&mut reader, &mut scanned.records)?;
    scanned.len = reader.valid_len();
    if !reader.is_closed() {
        scanned.unsealed = Some(reader);
    }
    Ok(scanned)
}

/// The records of a sealed file; `None` if it is not sealed or its end is damaged.
fn read_directory(reader: &mut GroupReader) -> Result<Option<Vec<DirectoryEntry>>> {
    let Some(closing) = GroupReader::read_closing(reader.file(), reader.path())? else {
        return Ok(None);
    };
    let Some((offset, count)) = parse_footer(&closing.footer) else {
        return Ok(None);
    };
    if offset >= closing.offset {
        return Ok(None);
    }
    reader.seek(offset);
    match reader.next_group() {
        Ok(Some(group)) => Ok(parse_directory(group.payload, count)),
        Ok(None) => Ok(None),
        Err(error) if error.is_corrupt() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads every group; true if the directory or the closing group was seen behind the records.
fn scan_groups(reader: &mut GroupReader, records: &mut Vec<DirectoryEntry>) -> Result<bool> {
    let path = reader.path().to_path_buf();
    let generation = reader.generation();
    let mut complete = false;
    while let Some(group) = reader.next_group()? {
        let corrupt = |offset, detail| Error::corrupt(&path, offset, detail);
        match group.payload.first() {
            Some(&SECTION_DIRECTORY) => complete = true,
            Some(&SECTION_RECORDS) => {
                let mut cursor = Decoder::new(&group.payload[1..]);
                while !cursor.is_empty() {
                    let offset = group.position.end() - cursor.remaining() as u64;
                    let record = take_record(&mut cursor, generation);
                    let (key, _, len) = record.map_err(|detail| corrupt(offset, detail))?;
                    let offset = u32::try_from(offset)
                        .map_err(|_| corrupt(offset, "a data file of over 4 GiB"))?;
                    records.push(DirectoryEntry { key, offset, len });
                }
            }
            _ => {
                return Err(corrupt(
                    group.position.offset,
                    "a group of an unknown section",
                ));
            }
        }
    }
    Ok(complete || reader.is_closed())
}

/// Refuses a file that ends without its directory though a later one has records.
fn check_sealed_in_order(files: &[Scanned]) -> Result<()> {
    let Some(last) = files.iter().rposition(|file| !file.records.is_empty()) else {
        return Ok(());
    };
    match files[..last].iter().find(|file| !file.complete) {
        Some(file) => {
            let end = file.unsealed.as_ref().map_or(0, GroupReader::valid_len);
            let detail = "the file ends here, yet a later one was begun";
            Err(Error::corrupt(&file.path, end, detail))
        }
        None => Ok(()),
    }
}

impl Scanned {
    /// Makes the file ready for use, or removes it if nothing was recorded before its crash. One that was
    /// being written at the crash is given to `datalog`. Also whether it is sealed.
    fn finish(self, fs: &FileSystemRef, datalog: &mut DataLog) -> Result<Option<(DataFile, bool)>> {
        let Some(reader) = &self.unsealed else {
            if let FileSize::Between { .. } = self.file.size() {
                self.file.settle(self.len)?;
            }
            return Ok(Some((self.into_file(), true)));
        };
        if self.records.is_empty() {
            fs.unlink(&self.path)?;
            return Ok(None);
        }
        tracing::info!(
            file = %self.path.display(), tail = ?reader.tail(), records = self.records.len(),
            "sealing a file that was being written at the crash"
        );
        let mut writer = GroupWriter::resume(reader)?;
        let directory = self.directory();
        if !self.complete {
            datalog.resume(self.number, writer, directory);
            return Ok(Some((self.into_file(), false)));
        }
        // It was sealed once and is not appended to, though its end is damaged and finds no space.
        match seal_with(&mut writer, &directory) {
            Err(error) if error.is_no_space() => {}
            other => other?,
        }
        Ok(Some((self.into_file(), true)))
    }

    fn directory(&self) -> DirectoryBuilder {
        let mut directory = DirectoryBuilder::default();
        self.records
            .iter()
            .for_each(|record| directory.add(*record));
        directory
    }

    pub(crate) fn into_file(self) -> DataFile {
        DataFile {
            file: self.file,
            path: self.path,
            generation: self.generation,
        }
    }
}
