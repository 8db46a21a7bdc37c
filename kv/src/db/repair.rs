//! `repair`: makes a database that does not open open again, with everything that its files still hold.
//!
//! 1. With a manifest in force that reads back, the structure is its, less the tables that are missing
//!    or fail a checksum. An older version of a key that a lost table hid shows up again: that cannot
//!    be told.
//! 2. Without, every sound table counts. Tables name their column family, but not their level, so
//!    those of each family are merged into one run at its last level, all newest versions and
//!    deletions kept. Names of families come from any manifest that reads back, else from the stored
//!    options and the tables.
//! 3. The new structure is put in force with a new manifest, the one switch: before it nothing was
//!    changed but for new files that nothing names.
//! 4. Damaged files get the suffix `.damaged`. The database is opened, so that its logs are replayed,
//!    each up to the first group that fails, and closed again.
//!
//! A table that was obsolete when the manifest was lost counts too: what a compaction that dropped it
//! had dropped with it, a key deleted long ago, may be back.
//!
//! Not done: tables with values in blob files. Their database is refused, not thinned out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lavafs::FileSystemRef;

use crate::cache::BlockCache;
use crate::compaction::{self, Along, CompactionContext, Retention, Separation, VersionFilter};
use crate::db::recovery;
use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::iter::{InternalIterator, MergingIterator};
use crate::options::{self, Options, WalRecoveryMode};
use crate::sstable::{OpenOptions, Table, TableReadOptions};
use crate::version::{
    COMPARATOR, CfEdit, Recovered, SstMeta, TableRefs, Version, VersionEdit, VersionSet,
};
use crate::write::batch::CfId;
use crate::write::wal;

/// What a repair did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RepairReport {
    /// The manifest was sound, and tells the structure.
    pub manifest_kept: bool,
    /// Column families of the repaired database.
    pub cfs: u64,
    /// Tables that are sound and counted.
    pub tables: u64,
    /// Files that are damaged or missing, and how.
    pub lost: Vec<(PathBuf, String)>,
    /// Entries of the sound tables.
    pub entries: u64,
    /// Logs that were replayed, as far as they are sound.
    pub logs: u64,
}

/// A family of the new structure.
#[derive(Debug, Default)]
struct Family {
    name: Option<String>,
    log_number: FileNumber,
    /// Level, run and table.
    tables: Vec<(u32, u64, SstMeta)>,
    /// Tables to be merged.
    loose: Vec<Arc<Table>>,
}

struct Repair<'a> {
    fs: &'a FileSystemRef,
    dir: &'a Path,
    options: &'a Options,
    cache: Arc<BlockCache>,
    next_file: AtomicU64,
    families: BTreeMap<CfId, Family>,
    next_cf: u32,
    last_sequence: u64,
    damaged: Vec<FileName>,
    report: RepairReport,
}

/// Repairs the database in `dir`.
pub(crate) fn repair(fs: &FileSystemRef, dir: &Path, options: &Options) -> Result<RepairReport> {
    options.validate()?;
    // A directory that does not exist must not be made by its lock.
    let names: Vec<FileName> = fs
        .list(dir)?
        .iter()
        .filter_map(|entry| FileName::parse(&entry.name))
        .collect();
    let of_database = |name: &FileName| {
        let kinds = [FileName::Lock, FileName::Temporary];
        !kinds.contains(name)
    };
    if !names.iter().any(of_database) {
        let what = format!("no file of a database in {}", dir.display());
        return Err(Error::invalid_argument(what));
    }
    let lock = recovery::lock_dir(fs, dir)?;
    let highest = names.iter().filter_map(|name| name.number()).max();
    let mut repair = Repair {
        fs,
        dir,
        options,
        cache: BlockCache::new(8 << 20),
        next_file: AtomicU64::new(highest.unwrap_or(0) + 1),
        families: BTreeMap::new(),
        next_cf: 1,
        last_sequence: 0,
        damaged: Vec::new(),
        report: RepairReport::default(),
    };
    repair.find_structure(&names)?;
    repair.find_logged_families(&names)?;
    repair.merge_loose_tables()?;
    repair.switch(&names)?;
    let mut report = repair.report;
    drop(lock);
    let options = Options {
        wal_recovery_mode: WalRecoveryMode::TolerateCorruptedTail,
        disable_auto_compactions: true,
        ..options.clone()
    };
    let engine = recovery::open(fs.clone(), dir, options)?;
    report.cfs = engine.state.lock().cfs.len() as u64;
    engine.close()?;
    Ok(report)
}

impl Repair<'_> {
    fn find_structure(&mut self, names: &[FileName]) -> Result<()> {
        match Recovered::read(self.fs, self.dir) {
            Ok(Some(recovered)) => return self.keep_structure(&recovered),
            Ok(None) => {}
            Err(error @ Error::Unsupported { .. }) => return Err(error),
            Err(error) => {
                self.report
                    .lost
                    .push((self.dir.join("CURRENT"), error.to_string()));
            }
        }
        self.names_from_manifests(names);
        for name in names {
            let FileName::Table(number) = *name else {
                continue;
            };
            let Some((table, meta)) = self.open_table(number)? else {
                continue;
            };
            let (id, name) = match &table.properties().column_family {
                Some((id, name)) => (CfId(*id), Some(name.clone())),
                None => (CfId::DEFAULT, None),
            };
            self.count(&meta);
            let family = self.families.entry(id).or_default();
            family.name = family.name.take().or(name);
            family.loose.push(table);
        }
        Ok(())
    }

    /// The manifest in force is sound: its tables count as far as they are.
    fn keep_structure(&mut self, recovered: &Recovered) -> Result<()> {
        self.report.manifest_kept = true;
        self.next_cf = recovered.next_cf;
        self.last_sequence = recovered.last_sequence;
        self.next_file
            .fetch_max(recovered.next_file_number, Ordering::Relaxed);
        for (&id, cf) in &recovered.cfs {
            let mut family = Family {
                name: Some(cf.name.clone()),
                log_number: cf.log_number,
                ..Family::default()
            };
            for (level, run, known) in cf.tables().values() {
                let Some((_, mut meta)) = self.open_table(known.number)? else {
                    continue;
                };
                // The manifest alone knows.
                meta.created = known.created;
                if meta == *known {
                    self.count(&meta);
                    family.tables.push((*level, *run, meta));
                } else {
                    self.lose(
                        FileName::Table(known.number),
                        "is not the manifest's".to_owned(),
                    );
                }
            }
            self.families.insert(id, family);
        }
        Ok(())
    }

    /// Names of families from whichever manifest still reads back, the newest first.
    fn names_from_manifests(&mut self, names: &[FileName]) {
        let mut numbers: Vec<FileNumber> = names
            .iter()
            .filter_map(|name| match name {
                FileName::Manifest(number) => Some(*number),
                _ => None,
            })
            .collect();
        for (id, name) in options::stored_families(self.fs, self.dir) {
            self.families.entry(id).or_default().name = Some(name);
        }
        numbers.sort_unstable();
        for number in numbers.into_iter().rev() {
            match Recovered::read_manifest(self.fs, self.dir, number) {
                Ok(recovered) => {
                    self.next_cf = recovered.next_cf;
                    for (id, cf) in recovered.cfs {
                        self.families.entry(id).or_default().name = Some(cf.name);
                    }
                    return;
                }
                Err(error) => self.lose(FileName::Manifest(number), error.to_string()),
            }
        }
    }

    /// A table with every checksum checked; `None` for a damaged one, which is noted.
    fn open_table(&mut self, number: FileNumber) -> Result<Option<(Arc<Table>, SstMeta)>> {
        let name = FileName::Table(number);
        let checked = self.fs.open(&self.dir.join(name.to_string()));
        let checked = checked.map_err(Error::from).and_then(|file| {
            let size = file.size().lower();
            let table = Table::open(
                file,
                number,
                Arc::clone(&self.cache),
                OpenOptions::default(),
            )?;
            let checksum = table.verify()?;
            Ok((table, checksum, size))
        });
        let (table, checksum, file_size) = match checked {
            Ok(sound) => sound,
            Err(error) if error.is_corrupt() => {
                self.lose(name, error.to_string());
                return Ok(None);
            }
            Err(Error::Fs(error)) if error.is_not_found() => {
                let path = self.dir.join(name.to_string());
                self.report.lost.push((path, "is missing".to_owned()));
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let properties = table.properties();
        if properties.blob_references > 0 {
            let what = format!("repair of {name}, whose values are in blob files");
            return Err(Error::Unsupported { what });
        }
        let meta = SstMeta {
            number,
            file_size,
            smallest: properties.smallest.clone(),
            largest: properties.largest.clone(),
            entries: properties.entries,
            deletions: properties.deletions,
            checksum,
            smallest_seq: properties.smallest_seq,
            largest_seq: properties.largest_seq,
            created: 0,
            blob_refs: TableRefs::new(),
        };
        Ok(Some((table, meta)))
    }

    fn count(&mut self, meta: &SstMeta) {
        self.report.tables += 1;
        self.report.entries += meta.entries;
        self.last_sequence = self.last_sequence.max(meta.largest_seq);
    }

    fn lose(&mut self, name: FileName, why: String) {
        let path = self.dir.join(name.to_string());
        self.report.lost.push((path, why));
        self.damaged.push(name);
    }

    /// Families that only logs know of: none where the manifest is sound.
    fn find_logged_families(&mut self, names: &[FileName]) -> Result<()> {
        let mut logged = BTreeSet::new();
        for name in names {
            let FileName::Wal(number) = *name else {
                continue;
            };
            let mode = WalRecoveryMode::TolerateCorruptedTail;
            let end = wal::replay(self.fs, self.dir, number, mode, |batch| {
                for entry in batch {
                    logged.insert(entry?.cf);
                }
                Ok(())
            })?;
            self.report.logs += 1;
            if end.damaged {
                let why = format!("is damaged after {} groups", end.groups);
                self.report.lost.push((end.path, why));
            }
        }
        self.families.entry(CfId::DEFAULT).or_default();
        for id in logged {
            if id.0 >= self.next_cf || !self.report.manifest_kept {
                self.families.entry(id).or_default();
            }
        }
        for (id, family) in &mut self.families {
            self.next_cf = self.next_cf.max(id.0 + 1);
            let made_up = match id.0 {
                0 => "default".to_owned(),
                id => format!("recovered-{id}"),
            };
            family.name.get_or_insert(made_up);
        }
        Ok(())
    }

    fn merge_loose_tables(&mut self) -> Result<()> {
        for (id, family) in &mut self.families {
            let loose = std::mem::take(&mut family.loose);
            if loose.is_empty() {
                continue;
            }
            let name = family.name.clone().expect("every family has a name by now");
            let options = self.options.for_cf(&name);
            let children = loose
                .iter()
                .map(|table| {
                    let iter = table.iter(TableReadOptions::default());
                    Box::new(iter) as Box<dyn InternalIterator>
                })
                .collect();
            let entries = loose.iter().map(|table| table.properties().entries).sum();
            let level = options.num_levels - 1;
            let empty = Version::empty(options.num_levels);
            let mut table_options = options.table_options(&empty, level, entries, entries);
            table_options.column_family = Some((id.0, name));
            let nothing = Along::new();
            let context = CompactionContext {
                fs: self.fs,
                dir: self.dir,
                table_options,
                part: (None, None),
                created: 0,
                target_file_size: options.target_file_size_base,
                expected_size: options.target_file_size_base.min(self.fs.space().free / 4),
                new_number: &|| self.next_file.fetch_add(1, Ordering::Relaxed),
                keep_going: &|| Ok(()),
                pace: &|_| Ok(()),
                // Logs may hold what a deletion hides.
                is_oldest: &|_| false,
                // Tables with references were refused; what is inline stays so.
                separation: Separation {
                    min_blob_size: 0,
                    blob_file_size: options.blob_file_size,
                    expected_size: 0,
                    options: options.blob_file_options(),
                    resolve: &|_, _| None,
                    along: &nothing,
                },
            };
            let filter = VersionFilter::new(Retention {
                snapshots: Vec::new(),
            });
            let outputs = compaction::run(&context, &mut MergingIterator::new(children), filter)?;
            let added = outputs.tables.into_iter();
            let added = added.map(|meta| (level as u32, 0, meta));
            family.tables = added.collect();
        }
        Ok(())
    }

    /// Puts the new structure in force, and sets damaged files aside.
    fn switch(&mut self, names: &[FileName]) -> Result<()> {
        let manifest = self.next_file.fetch_add(1, Ordering::Relaxed);
        let mut edit = VersionEdit {
            comparator: Some(COMPARATOR.to_owned()),
            next_file_number: Some(self.next_file.load(Ordering::Relaxed)),
            last_sequence: Some(self.last_sequence),
            next_cf: Some(self.next_cf),
            ..VersionEdit::default()
        };
        for (&id, family) in &self.families {
            let change = CfEdit {
                created: family.name.clone(),
                log_number: Some(family.log_number),
                added: family.tables.clone(),
                ..CfEdit::default()
            };
            edit.cfs.insert(id, change);
        }
        let (fs, dir) = (self.fs.clone(), self.dir.to_path_buf());
        VersionSet::new(fs, dir, u64::MAX).begin(manifest, &edit)?;
        for name in self.damaged.iter().filter(|name| names.contains(name)) {
            let path = self.dir.join(name.to_string());
            let aside = self.dir.join(format!("{name}.damaged"));
            self.fs.rename(&path, &aside)?;
        }
        Ok(self.fs.sync_dir(self.dir)?)
    }
}
