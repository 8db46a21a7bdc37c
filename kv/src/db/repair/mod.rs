//! `repair`: makes a database that does not open open again, with everything that its files still hold.
//!
//! 1. With a manifest in force that reads back, the structure is its, less the tables and blob files that are
//!    missing or fail a checksum. Tables that refer to a lost blob file are written anew
//!    ([`merge`]): values of it that can still be read are copied, entries whose value is gone become
//!    deletions and are reported. An older version of a key that a lost table hid shows up again: that
//!    cannot be told.
//! 2. Without, every sound table counts. Tables name their column family, but not their level, so
//!    those of each family are merged into one run at its last level, all newest versions and
//!    deletions kept, with references to the blob files that have the values ([`values`]). Names of families come
//!    from any manifest that reads back, else from the stored options and the tables.
//! 3. Files that will not be part of the new structure though it may miss them get a second name: damaged ones and
//!    logs behind a damaged one `NAME.damaged`, and, where there was no manifest or a table is lost, blob files
//!    that nothing refers to `NAME.orphan`.
//! 4. The new structure is opened as if a manifest had told it: the logs are replayed, each up to the first group
//!    that fails. Where there was no manifest, what tables have is left out. What was replayed is in tables then, and
//!    one new manifest with everything is put in force, the one switch: before it nothing was changed but for
//!    new files and second names, and after it no old log counts. A crash leaves what was there, or the new structure.
//! 5. What it does not need is removed, and the database is closed again.
//!
//! A table that was obsolete when the manifest was lost counts too: what a compaction that dropped it
//! had dropped with it, a key deleted long ago, may be back.
//!
//! Not done: values without a table. A blob file tells keys and values, but not which of them were
//! overwritten or deleted since.

mod merge;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lavafs::FileSystemRef;

use self::merge::{Lost, Target};
use self::values::Values;
use crate::cache::BlockCache;
use crate::db::foreign;
use crate::db::recovery::{self, Replay};
use crate::error::{Error, Result};
use crate::file_names::{FileName, FileNumber};
use crate::options::{self, Options, WalRecoveryMode};
use crate::sstable::{OpenOptions, Table};
use crate::version::{
    BlobMeta, COMPARATOR, CfEdit, Hidden, Recovered, RecoveredCf, SstMeta, VersionEdit,
};
use crate::write::batch::CfId;
use crate::write::wal::{self, Chain};

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
    /// Blob files of the new structure.
    pub blobs: u64,
    /// Entries whose value is in no blob file any more: their keys are deleted.
    pub lost_values: u64,
    /// Column family and key of the first hundred of them.
    pub lost_keys: Vec<(CfId, Vec<u8>)>,
    /// Second names of files that are not part of the repaired database: for whoever knows more of
    /// them. To be removed by hand.
    pub set_aside: Vec<PathBuf>,
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
    /// Tables to be merged into one run.
    loose: Vec<Arc<Table>>,
    /// Level, run and time of tables that refer to a lost blob file.
    torn: Vec<(u32, u64, u64, Arc<Table>)>,
    blobs: Vec<BlobMeta>,
    /// Numbers, and the blob files that they lead to.
    heirs: Vec<(FileNumber, FileNumber)>,
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
    values: Values<'a>,
    lost: Lost,
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
    foreign::refuse(fs, dir)?;
    recovery::refuse_newer(fs, dir)?;
    let lock = recovery::lock_dir(fs, dir)?;
    let blobs = names.iter().filter_map(|name| match name {
        FileName::Blob(number) => Some(*number),
        _ => None,
    });
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
        values: Values::new(fs, dir, blobs.collect()),
        lost: Lost::default(),
        damaged: Vec::new(),
        report: RepairReport::default(),
    };
    repair.find_structure(&names)?;
    repair.find_logged_families(&names)?;
    repair.write_anew()?;
    repair.set_aside(&names)?;
    let recovered = repair.structure()?;
    let mut report = repair.report;
    report.lost_values = repair.lost.count;
    report.lost_keys = repair.lost.keys;
    let replay = Replay {
        mode: WalRecoveryMode::TolerateCorruptedTail,
        knows_logs: report.manifest_kept,
    };
    let (fs, options, recovered) = (fs.clone(), options.clone(), Some(recovered));
    let engine = recovery::open_recovered(fs, dir, options, lock, recovered, replay)?;
    {
        let state = engine.state.lock();
        report.cfs = state.cfs.len() as u64;
        let blobs = state
            .cfs
            .values()
            .map(|cf| cf.view().version.blobs.files().len());
        report.blobs = blobs.sum::<usize>() as u64;
    }
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
        for (number, why) in self.values.adopt_all()? {
            self.lose(FileName::Blob(number), why);
        }
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
            let lost = self.keep_blobs(id, cf, &mut family)?;
            for (level, run, known) in cf.tables().values() {
                let Some((table, mut meta)) = self.open_table(known.number)? else {
                    continue;
                };
                // The manifest alone knows.
                meta.created = known.created;
                meta.hidden = known.hidden;
                if meta == *known {
                    self.count(&meta);
                    match meta.blob_refs.iter().any(|(name, _)| lost.contains(name)) {
                        true => family.torn.push((*level, *run, meta.created, table)),
                        false => family.tables.push((*level, *run, meta)),
                    }
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

    /// Keeps the sound blob files of a family that the manifest describes. Returns the numbers that
    /// lead to the others, or to several.
    fn keep_blobs(
        &mut self,
        id: CfId,
        cf: &RecoveredCf,
        family: &mut Family,
    ) -> Result<BTreeSet<FileNumber>> {
        let mut lost = BTreeSet::new();
        for (&number, live) in cf.blobs().files().iter() {
            if let Some(why) = self.values.claim(id, &live.file)? {
                self.lose(FileName::Blob(number), why);
                lost.extend(&live.names);
            }
        }
        // What leads to several files is told for each table by the manifest; tables with such numbers are
        // written anew instead, with the numbers of the files.
        let splits = cf.blobs().splits().into_iter();
        lost.extend(splits.map(|(number, _)| number));
        let heirs = cf.blobs().ancestors().into_iter();
        family.heirs = heirs.filter(|(name, _)| !lost.contains(name)).collect();
        Ok(lost)
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
                self.lose(name, "is missing".to_owned());
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let properties = table.properties();
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
            hidden: Hidden::default(),
            blob_refs: properties.blob_refs.clone(),
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
        let needed = self.families.values().map(|family| family.log_number);
        let needed = needed.min().unwrap_or(0);
        let mut logs: Vec<FileNumber> = names
            .iter()
            .filter_map(|name| match name {
                FileName::Wal(number) if *number >= needed => Some(*number),
                _ => None,
            })
            .collect();
        logs.sort_unstable();
        // Of a log that ends in a torn group: damage if a later one goes on.
        let mut torn = None;
        let mut after_damage = false;
        let mut chain = Chain::default();
        for number in logs {
            let mode = WalRecoveryMode::TolerateCorruptedTail;
            let end = wal::replay(self.fs, self.dir, number, mode, |batch| {
                if chain.continues(&batch) {
                    // Nothing of the log before is missing.
                    torn = None;
                }
                if !chain.add(&batch) {
                    return Err("sequence number out of order".into());
                }
                for entry in batch {
                    logged.insert(entry?.cf);
                }
                Ok(())
            })?;
            self.report.logs += 1;
            if let Some(torn) = torn.take_if(|_| end.groups > 0) {
                after_damage = true;
                self.lose(FileName::Wal(torn), "ends in a torn group".to_owned());
            }
            if after_damage && end.groups > 0 {
                self.lose(FileName::Wal(number), "follows a damaged log".to_owned());
            } else if end.damaged {
                after_damage = true;
                let why = format!("is damaged after {} groups", end.groups);
                self.lose(FileName::Wal(number), why);
            } else if end.torn_at.is_some() {
                torn.get_or_insert(number);
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

    /// Merges what has no structure, and writes tables with references to lost blob files in their places.
    fn write_anew(&mut self) -> Result<()> {
        for (&id, family) in &mut self.families {
            let name = family.name.clone().expect("every family has a name by now");
            let options = self.options.for_cf(&name);
            let mut target = Target {
                fs: self.fs,
                dir: self.dir,
                cf: id,
                name: &name,
                options,
                level: options.num_levels - 1,
                created: 0,
                next_file: &self.next_file,
            };
            let loose = std::mem::take(&mut family.loose);
            if !loose.is_empty() {
                let outputs = merge::merge(&target, &loose, &mut self.values, &mut self.lost)?;
                let level = target.level as u32;
                let added = outputs.tables.into_iter();
                family.tables.extend(added.map(|meta| (level, 0, meta)));
                family.blobs.extend(outputs.blobs);
            }
            for (level, run, created, table) in std::mem::take(&mut family.torn) {
                target.level = level as usize;
                target.created = created;
                let outputs = merge::merge(&target, &[table], &mut self.values, &mut self.lost)?;
                let added = outputs.tables.into_iter();
                family.tables.extend(added.map(|meta| (level, run, meta)));
                family.blobs.extend(outputs.blobs);
            }
            family.blobs.extend(self.values.owned_by(id));
        }
        Ok(())
    }

    /// Gives second names to files that opening would remove, though somebody may want them. They are durable
    /// before the new structure is in force.
    fn set_aside(&mut self, names: &[FileName]) -> Result<()> {
        let table_lost = self
            .damaged
            .iter()
            .any(|name| matches!(name, FileName::Table(_)));
        let mut aside: Vec<(FileName, &str)> = Vec::new();
        let damaged = self.damaged.iter().filter(|name| names.contains(name));
        aside.extend(damaged.map(|&name| (name, "damaged")));
        if table_lost || !self.report.manifest_kept {
            let refs = self.families.values().flat_map(|family| {
                let tables = family.tables.iter().flat_map(|(.., meta)| &meta.blob_refs);
                let heirs: BTreeMap<_, _> = family.heirs.iter().copied().collect();
                tables.map(move |(name, _)| *heirs.get(name).unwrap_or(name))
            });
            let referred: BTreeSet<FileNumber> = refs.collect();
            let orphans = names.iter().filter(|name| match name {
                FileName::Blob(number) => !referred.contains(number),
                _ => false,
            });
            let orphans = orphans.filter(|name| !self.damaged.contains(name));
            aside.extend(orphans.map(|&name| (name, "orphan")));
        }
        for (name, suffix) in aside {
            let second = self.dir.join(format!("{name}.{suffix}"));
            match self.fs.link(&self.dir.join(name.to_string()), &second) {
                // From a repair that a crash ended. Numbers are given once: it is the same file.
                Err(error) if error.is_already_exists() => {}
                other => other?,
            }
            self.report.set_aside.push(second);
        }
        Ok(self.fs.sync_dir(self.dir)?)
    }

    /// The new structure, as a manifest would tell it.
    fn structure(&self) -> Result<Recovered> {
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
                blobs: family.blobs.clone(),
                heirs: family.heirs.clone(),
                ..CfEdit::default()
            };
            edit.cfs.insert(id, change);
        }
        let mut recovered = Recovered::default();
        recovered.apply(edit)?;
        Ok(recovered)
    }
}
