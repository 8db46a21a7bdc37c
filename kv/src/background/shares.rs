//! Sharing out: what a table refers to under a number that leads to several blob files, file by file.
//!
//! Tables list their references by number alone. A table within one piece of the number refers to that
//! piece's file; others are read, once for all their numbers. Whoever may have such tables does so before it
//! commits ([`Engine::prepare_shares`]), so that the lock of the structure, which flushes wait for, is held for
//! tables alone that have come since.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::blob::reference::BlobReference;
use crate::db::engine::Engine;
use crate::error::{Error, Result};
use crate::file_names::FileNumber;
use crate::iter::{InternalIterator, RunIterator};
use crate::key::{InternalKeyRef, ValueKind};
use crate::sstable::TableReadOptions;
use crate::version::{
    BlobUse, CfEdit, Parts, Pieces, Share, SstFile, TableOpener, TableRefs, Version,
};
use crate::write::batch::CfId;

/// Entries between two looks at whether the database is closing.
const STOP_CHECK_INTERVAL: u64 = 1024;

/// Where the numbers of a version lead after an edit.
struct After<'a> {
    version: &'a Version,
    heirs: HashMap<FileNumber, Pieces>,
}

impl After<'_> {
    /// The pieces of a number, if it leads to several files.
    fn pieces(&self, number: FileNumber) -> Option<Pieces> {
        let pieces = match self.version.blobs.pieces(number) {
            Some(pieces) => pieces.inherited(|file| self.heirs.get(&file)),
            None => self.heirs.get(&number)?.clone(),
        };
        pieces.single().is_none().then_some(pieces)
    }
}

impl Engine {
    /// The shares that an edit needs if it is committed now: what [`Engine::share_out`] would read under the
    /// structure's lock is read without it.
    pub(crate) fn prepare_shares(
        self: &Arc<Self>,
        cf: CfId,
        edit: impl FnOnce(&Version) -> CfEdit,
    ) -> Result<Vec<Share>> {
        let version = Arc::clone(&self.cf(cf)?.view().version);
        let mut change = edit(&version);
        self.share_out(&version, &mut change, &[])?;
        Ok(change.shares)
    }

    /// Adds to `change`, an edit of `version`, the shares that it needs; those of `prepared` that still
    /// hold are taken from there.
    pub(crate) fn share_out(
        self: &Arc<Self>,
        version: &Version,
        change: &mut CfEdit,
        prepared: &[Share],
    ) -> Result<()> {
        if change.splits.is_empty() && !version.blobs.has_splits() {
            return Ok(());
        }
        let heirs = change.all_heirs();
        let after = After {
            version,
            heirs: heirs
                .map(|(number, pieces)| (number, pieces.into_owned()))
                .collect(),
        };
        let prepared: HashMap<_, _> = prepared
            .iter()
            .map(|share| ((share.table, share.number), &share.parts))
            .collect();
        let cut = change.splits.iter();
        let cut = cut.filter_map(|(number, _)| version.blobs.files().get(number));
        let cut: BTreeSet<FileNumber> = cut.flat_map(|live| &live.names).copied().collect();
        let mut known = HashMap::new();
        for (_, _, file) in version.files() {
            known.insert(file.meta.number, file);
            let refs = file.meta.blob_refs.iter();
            let refs = refs.filter(|(number, _)| cut.contains(number));
            let wanted: TableRefs = refs.copied().collect();
            change
                .shares
                .extend(self.shares_of(file, &wanted, &after, &prepared)?);
        }
        for (_, _, meta) in &change.added {
            if let Some(file) = known.get(&meta.number) {
                // It changes its place alone.
                let number = file.meta.number;
                let refs = meta.blob_refs.iter();
                let refs = refs.filter(|(name, _)| after.pieces(*name).is_some());
                change.shares.extend(refs.map(|&(name, used)| Share {
                    table: number,
                    number: name,
                    parts: version.blobs.parts(number, name, used),
                }));
                continue;
            }
            let file = SstFile::new(meta.clone(), Arc::clone(&self.remover));
            let shares = self.shares_of(&file, &meta.blob_refs, &after, &prepared)?;
            change.shares.extend(shares);
        }
        Ok(())
    }

    /// The shares of one table for those of `refs` that lead to several files.
    fn shares_of(
        self: &Arc<Self>,
        file: &Arc<SstFile>,
        refs: &TableRefs,
        after: &After<'_>,
        prepared: &HashMap<(FileNumber, FileNumber), &Parts>,
    ) -> Result<Vec<Share>> {
        let meta = &file.meta;
        let mut shares = Vec::new();
        let mut unknown = BTreeMap::new();
        for &(number, used) in refs {
            let Some(pieces) = after.pieces(number) else {
                continue;
            };
            let (first, last) = (meta.smallest_user_key(), meta.largest_user_key());
            let holds = |parts: &&&Parts| {
                let files: BTreeSet<FileNumber> = pieces.files().collect();
                parts.iter().all(|(file, _)| files.contains(file))
            };
            let known = prepared.get(&(meta.number, number)).filter(holds);
            let parts = match (pieces.single_within(first, last), known) {
                (Some(file), _) => vec![(file, used)],
                (None, Some(parts)) => (*parts).clone(),
                (None, None) => {
                    unknown.insert(number, (pieces, BTreeMap::new()));
                    continue;
                }
            };
            shares.push(Share {
                table: meta.number,
                number,
                parts,
            });
        }
        if !unknown.is_empty() {
            self.count(file, &mut unknown)?;
        }
        shares.extend(unknown.into_iter().map(|(number, (_, parts))| Share {
            table: meta.number,
            number,
            parts: parts.into_iter().collect(),
        }));
        Ok(shares)
    }

    /// Reads a table and counts its references to these numbers, file by file.
    fn count(
        self: &Arc<Self>,
        file: &Arc<SstFile>,
        numbers: &mut BTreeMap<FileNumber, (Pieces, BTreeMap<FileNumber, BlobUse>)>,
    ) -> Result<()> {
        let options = TableReadOptions {
            fill_cache: false,
            silent: true,
            readahead_bytes: 256 << 10,
            ..TableReadOptions::default()
        };
        let opener = Arc::clone(self) as Arc<dyn TableOpener>;
        let files = Arc::new(vec![Arc::clone(file)]);
        let mut entries = RunIterator::new(files, 0..1, opener, options);
        entries.seek_to_first();
        let mut seen = 0_u64;
        while entries.valid() {
            if seen.is_multiple_of(STOP_CHECK_INTERVAL) {
                self.keep_going()?;
            }
            seen += 1;
            let key = InternalKeyRef::decode(entries.key())
                .ok_or_else(|| Error::corrupt("table", 0_u64, "bad internal key"))?;
            if key.kind == ValueKind::BlobReference {
                let reference = BlobReference::of_entry(entries.value())?;
                if let Some((pieces, parts)) = numbers.get_mut(&reference.file) {
                    let file = pieces.find(key.user_key);
                    parts.entry(file).or_default().add(reference.as_use());
                }
            }
            entries.next();
        }
        entries.status()
    }
}
