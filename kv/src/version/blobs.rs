//! `BlobSet`: the blob files of a version, the numbers that lead to them, and who refers to what.
//!
//! Tables refer to blob files by number. When garbage collection writes a file's live values into
//! another one, its heir, tables stay as they are: the old number becomes a *name* that leads to the heir
//! (LavaStore paper, section 3.2.1). Names are kept flat: one lookup leads from any number to the
//! file that has the value now, or to the few of which the user key says which one (pieces.rs).
//!
//! Each table lists how many references with how many value bytes it has to each number. Adding
//! and removing these lists as tables come and go keeps the sums exact at the cost of the edit
//! alone; nothing is ever computed anew. Where a name leads to several files, each table's references
//! under it are told file by file, so that the sums stay exact for every file. From the sums follows everything else: garbage, the
//! pruning of names that no table uses, and the removal of files that nothing refers to.
//!
//! The sets of two versions share what the edit between them did not touch (shared_map.rs).
//!
//! Invariants, after [`BlobSet::settle`]:
//! - every file is referred to; a name leads to files, and is a file's own number or referred to;
//! - a file's own number leads to it alone;
//! - a file's sums are those of its names; they are at most what the file holds, because
//!   every internal key is in one table only.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::file_names::FileNumber;

use super::pieces::{Parts, Pieces};
use super::shared_map::SharedMap;

/// References, counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlobUse {
    /// References.
    pub references: u64,
    /// Bytes of their values before compression.
    pub value_bytes: u64,
}

impl BlobUse {
    /// Stops at the top, where a damaged manifest alone can bring it: `subtract` then says that less was there.
    pub(crate) fn add(&mut self, other: BlobUse) {
        self.references = self.references.saturating_add(other.references);
        self.value_bytes = self.value_bytes.saturating_add(other.value_bytes);
    }

    /// False where `other` is more than this.
    #[must_use]
    fn subtract(&mut self, other: BlobUse) -> bool {
        let left = self.references.checked_sub(other.references);
        let bytes = self.value_bytes.checked_sub(other.value_bytes);
        let (Some(references), Some(value_bytes)) = (left, bytes) else {
            return false;
        };
        *self = BlobUse {
            references,
            value_bytes,
        };
        true
    }
}

/// A table's references, by the number they name, ascending.
pub(crate) type TableRefs = Vec<(FileNumber, BlobUse)>;

/// A blob file of a version with what refers to it under all its names.
#[derive(Clone, Debug)]
pub(crate) struct LiveBlob<F> {
    pub(crate) file: F,
    pub(crate) used: BlobUse,
    /// Numbers that lead here, the file's own included.
    pub(crate) names: BTreeSet<FileNumber>,
}

#[derive(Clone, Debug)]
struct Name {
    target: Target,
    used: BlobUse,
}

/// Where a name leads.
#[derive(Clone, Debug)]
enum Target {
    One(FileNumber),
    Split(Arc<Split>),
}

/// A name that leads to several files.
#[derive(Clone, Debug)]
struct Split {
    pieces: Pieces,
    /// What each table with the name refers to, file by file.
    shares: BTreeMap<FileNumber, Parts>,
}

/// What a table's references to a number in pieces lead to, as an edit tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Share {
    pub(crate) table: FileNumber,
    pub(crate) number: FileNumber,
    pub(crate) parts: Parts,
}

/// An edit's shares by number and table.
pub(crate) type Shares<'a> = HashMap<(FileNumber, FileNumber), &'a Parts>;

/// `shares` by number and table.
pub(crate) fn by_number(shares: &[Share]) -> Shares<'_> {
    let shares = shares.iter();
    shares
        .map(|share| ((share.number, share.table), &share.parts))
        .collect()
}

/// The blob files of a version. `F` is a handle of the file, or its description.
#[derive(Clone, Debug)]
pub(crate) struct BlobSet<F> {
    names: SharedMap<Name>,
    files: SharedMap<LiveBlob<F>>,
    /// Names that lead to several files.
    splits: BTreeSet<FileNumber>,
    /// Names that an edit has touched since the last `settle`.
    touched: Vec<FileNumber>,
}

impl<F> Default for BlobSet<F> {
    fn default() -> Self {
        BlobSet {
            names: SharedMap::default(),
            files: SharedMap::default(),
            splits: BTreeSet::new(),
            touched: Vec::new(),
        }
    }
}

impl Name {
    fn files(&self) -> BTreeSet<FileNumber> {
        match &self.target {
            Target::One(file) => BTreeSet::from([*file]),
            Target::Split(split) => split.pieces.files().collect(),
        }
    }

    fn pieces(&self) -> Pieces {
        match &self.target {
            Target::One(file) => Pieces::one(*file),
            Target::Split(split) => split.pieces.clone(),
        }
    }

    fn shares(&self) -> Option<&BTreeMap<FileNumber, Parts>> {
        match &self.target {
            Target::One(_) => None,
            Target::Split(split) => Some(&split.shares),
        }
    }
}

impl<F: Clone> BlobSet<F> {
    /// The file that has the value which a key's reference to `number` means.
    #[inline]
    pub(crate) fn resolve(&self, number: FileNumber, user_key: &[u8]) -> Option<&F> {
        let file = self.resolve_number(number, user_key)?;
        self.files.get(&file).map(|live| &live.file)
    }

    /// The number of the file that `number` leads to for a key.
    #[inline]
    pub(crate) fn resolve_number(&self, number: FileNumber, user_key: &[u8]) -> Option<FileNumber> {
        self.names.get(&number).map(|name| match &name.target {
            Target::One(file) => *file,
            Target::Split(split) => split.pieces.find(user_key),
        })
    }

    /// The files that `number` leads to; `None` where it is not known.
    pub(crate) fn pieces(&self, number: FileNumber) -> Option<Pieces> {
        self.names.get(&number).map(Name::pieces)
    }

    /// True where some number leads to several files.
    pub(crate) fn has_splits(&self) -> bool {
        !self.splits.is_empty()
    }

    /// What a table of the version refers to under `number`, file by file.
    pub(crate) fn parts(&self, table: FileNumber, number: FileNumber, used: BlobUse) -> Parts {
        match self.names.get(&number).map(|name| &name.target) {
            Some(Target::One(file)) => vec![(*file, used)],
            Some(Target::Split(split)) => split.shares.get(&table).cloned().unwrap_or_default(),
            None => Parts::new(),
        }
    }

    /// The files by number, with what refers to them.
    pub(crate) fn files(&self) -> &SharedMap<LiveBlob<F>> {
        &self.files
    }

    /// How many numbers are not a file's own.
    pub(crate) fn ancestor_count(&self) -> usize {
        self.names.len() - self.files.len()
    }

    /// Numbers that are not a file's own and lead to one, with it, ascending.
    pub(crate) fn ancestors(&self) -> Vec<(FileNumber, FileNumber)> {
        let pairs = self.names.iter().filter_map(|(&number, name)| {
            let Target::One(file) = name.target else {
                return None;
            };
            (file != number).then_some((number, file))
        });
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort_unstable();
        pairs
    }

    /// Numbers that lead to several files, ascending, with these.
    pub(crate) fn splits(&self) -> Vec<(FileNumber, Pieces)> {
        let numbers = self.splits.iter();
        numbers
            .map(|&number| (number, self.names[&number].pieces()))
            .collect()
    }

    /// What the tables refer to under these numbers, ascending.
    pub(crate) fn shares(&self) -> Vec<Share> {
        let shares = self.splits.iter().flat_map(|&number| {
            let shares = self.names[&number].shares().into_iter().flatten();
            shares.map(move |(&table, parts)| Share {
                table,
                number,
                parts: parts.clone(),
            })
        });
        shares.collect()
    }

    pub(crate) fn add_file(&mut self, number: FileNumber, file: F) -> Result<()> {
        let live = LiveBlob {
            file,
            used: BlobUse::default(),
            names: BTreeSet::from([number]),
        };
        let name = Name {
            target: Target::One(number),
            used: BlobUse::default(),
        };
        let known = self.names.insert(number, name).is_some();
        if self.files.insert(number, live).is_some() || known {
            return Err(bad(format!("blob file {number} is added twice")));
        }
        self.touched.push(number);
        Ok(())
    }

    /// Lets numbers lead to these files. A number that is a file's own: that file is gone, and what led to it
    /// leads to its heirs. Otherwise it must be a number that is not known. After an error the set is of no use.
    pub(crate) fn inherit<'a>(
        &mut self,
        heirs: impl IntoIterator<Item = (FileNumber, Cow<'a, Pieces>)>,
        shares: &Shares<'_>,
    ) -> Result<()> {
        let mut gone = BTreeMap::new();
        let mut names = BTreeSet::new();
        for (number, pieces) in heirs {
            if let Some(live) = self.files.remove(&number) {
                names.extend(live.names);
            } else if self.names.contains_key(&number) || gone.contains_key(&number) {
                return Err(bad(format!("blob file {number} has two heirs")));
            } else {
                let name = Name {
                    target: Target::One(number),
                    used: BlobUse::default(),
                };
                self.names.insert(number, name);
                names.insert(number);
            }
            gone.insert(number, pieces);
        }
        for (number, pieces) in &gone {
            if let Some(heir) = pieces.files().find(|heir| !self.files.contains_key(heir)) {
                return Err(bad(format!(
                    "blob file {number} is inherited by {heir}, which is not there"
                )));
            }
        }
        for name in names {
            self.hand_on(name, &gone, shares)?;
            self.touched.push(name);
        }
        Ok(())
    }

    /// Lets one name lead to the heirs of the files that are gone.
    fn hand_on(
        &mut self,
        number: FileNumber,
        gone: &BTreeMap<FileNumber, Cow<'_, Pieces>>,
        given: &Shares<'_>,
    ) -> Result<()> {
        let name = &self.names[&number];
        let pieces = name
            .pieces()
            .inherited(|file| gone.get(&file).map(AsRef::as_ref));
        let mut gains: Vec<(FileNumber, BlobUse)> = Vec::new();
        let mut losses: Vec<(FileNumber, BlobUse)> = Vec::new();
        let target = if let Some(file) = pieces.single() {
            match name.shares() {
                None => gains.push((file, name.used)),
                Some(shares) => {
                    let parts = shares.values().flatten().copied();
                    gains.extend(
                        parts
                            .filter(|(old, _)| gone.contains_key(old))
                            .map(|(_, used)| (file, used)),
                    );
                }
            }
            Target::One(file)
        } else {
            let known = name.shares();
            let given_tables = given.keys().filter(|(of, _)| *of == number);
            let tables: BTreeSet<FileNumber> = match known {
                Some(known) => known.keys().copied().collect(),
                None if name.used == BlobUse::default() => BTreeSet::new(),
                None => given_tables.map(|(_, table)| *table).collect(),
            };
            let mut shares = BTreeMap::new();
            let mut total = BlobUse::default();
            for table in tables {
                let old = known.and_then(|known| known.get(&table));
                let parts = share_after(old, given.get(&(number, table)).copied(), gone)
                    .ok_or_else(|| no_share(number, table))?;
                let left = old.into_iter().flatten();
                losses.extend(left.filter(|(file, _)| !gone.contains_key(file)));
                for &(file, used) in &parts {
                    gains.push((file, used));
                    total.add(used);
                }
                shares.insert(table, parts);
            }
            if total != name.used {
                return Err(bad(format!(
                    "{} references to {number} are shared out, of {}",
                    total.references, name.used.references
                )));
            }
            Target::Split(Arc::new(Split {
                pieces: pieces.clone(),
                shares,
            }))
        };
        self.set_target(number, target);
        for file in pieces.files() {
            let live = self.files.get_mut(&file).expect("heirs are there");
            live.names.insert(number);
        }
        for (file, used) in gains {
            let live = self.files.get_mut(&file);
            live.ok_or_else(|| no_share(number, file))?.used.add(used);
        }
        for (file, used) in losses {
            let live = self.files.get_mut(&file);
            if !live.is_some_and(|live| live.used.subtract(used)) {
                return Err(no_share(number, file));
            }
        }
        Ok(())
    }

    fn set_target(&mut self, number: FileNumber, target: Target) {
        match target {
            Target::One(_) => self.splits.remove(&number),
            Target::Split(_) => self.splits.insert(number),
        };
        let name = self.names.get_mut(&number).expect("the name is known");
        name.target = target;
    }

    /// A table with these references was added.
    pub(crate) fn refer(
        &mut self,
        table: FileNumber,
        refs: &TableRefs,
        given: &Shares<'_>,
    ) -> Result<()> {
        for &(number, used) in refs {
            let Some(name) = self.names.get_mut(&number) else {
                return Err(bad(format!("no blob file has the number {number}")));
            };
            name.used.add(used);
            let parts = match &mut name.target {
                Target::One(file) => vec![(*file, used)],
                Target::Split(split) => {
                    let parts = given.get(&(number, table));
                    let parts = parts.filter(|parts| sum(parts) == used);
                    let parts = parts.ok_or_else(|| no_share(number, table))?.to_vec();
                    let shares = &mut Arc::make_mut(split).shares;
                    shares.insert(table, parts.clone());
                    parts
                }
            };
            for (file, used) in parts {
                let live = self.files.get_mut(&file);
                let live = live.filter(|live| live.names.contains(&number));
                live.ok_or_else(|| no_share(number, table))?.used.add(used);
            }
        }
        Ok(())
    }

    /// A table with these references was removed.
    pub(crate) fn forget(&mut self, table: FileNumber, refs: &TableRefs) -> Result<()> {
        let too_many = |number: FileNumber| {
            bad(format!(
                "more references to blob file {number} go than there were"
            ))
        };
        for &(number, used) in refs {
            let name = self.names.get_mut(&number);
            let name = name.ok_or_else(|| too_many(number))?;
            if !name.used.subtract(used) {
                return Err(too_many(number));
            }
            let parts = match &mut name.target {
                Target::One(file) => vec![(*file, used)],
                Target::Split(split) => {
                    let parts = Arc::make_mut(split).shares.remove(&table);
                    parts.ok_or_else(|| no_share(number, table))?
                }
            };
            for (file, used) in parts {
                let live = self.files.get_mut(&file);
                if !live.is_some_and(|live| live.used.subtract(used)) {
                    return Err(too_many(number));
                }
            }
            self.touched.push(number);
        }
        Ok(())
    }

    /// Ends an edit: forgets files that nothing refers to, and ancestors' names that no table uses.
    pub(crate) fn settle(&mut self) {
        for number in std::mem::take(&mut self.touched) {
            let Some(name) = self.names.get(&number) else {
                continue;
            };
            for file in name.files() {
                if self.files[&file].used.references == 0 {
                    self.drop_file(file);
                }
            }
            let Some(name) = self.names.get(&number) else {
                continue;
            };
            if name.used.references == 0 && !self.files.contains_key(&number) {
                for file in name.files() {
                    let live = self.files.get_mut(&file).expect("names lead to files");
                    live.names.remove(&number);
                }
                self.names.remove(&number);
                self.splits.remove(&number);
            }
        }
    }

    /// A file that nothing refers to goes, and no name leads to it any more.
    fn drop_file(&mut self, file: FileNumber) {
        let live = self.files.remove(&file).expect("asked for by who knows it");
        for number in live.names {
            let name = &self.names[&number];
            let target = match (&name.target, name.pieces().without(file)) {
                (Target::Split(split), Some(pieces)) => match pieces.single() {
                    Some(file) => Target::One(file),
                    None => Target::Split(Arc::new(Split {
                        pieces,
                        shares: split.shares.clone(),
                    })),
                },
                _ => {
                    self.names.remove(&number);
                    self.splits.remove(&number);
                    continue;
                }
            };
            self.set_target(number, target);
        }
    }
}

/// A table's parts when files are gone; `None` where they cannot be told.
fn share_after(
    old: Option<&Parts>,
    given: Option<&Parts>,
    gone: &BTreeMap<FileNumber, Cow<'_, Pieces>>,
) -> Option<Parts> {
    if let Some(given) = given {
        let same = old.is_none_or(|old| sum(old) == sum(given));
        return same.then(|| given.clone());
    }
    let mut parts: BTreeMap<FileNumber, BlobUse> = BTreeMap::new();
    for &(file, used) in old? {
        let file = match gone.get(&file) {
            Some(heirs) => heirs.single()?,
            None => file,
        };
        parts.entry(file).or_default().add(used);
    }
    Some(parts.into_iter().collect())
}

fn sum(parts: &Parts) -> BlobUse {
    let mut sum = BlobUse::default();
    parts.iter().for_each(|(_, used)| sum.add(*used));
    sum
}

fn bad(what: String) -> Error {
    Error::invalid_argument(what)
}

fn no_share(number: FileNumber, table: FileNumber) -> Error {
    bad(format!(
        "what table {table} refers to under {number} is not shared out among its files"
    ))
}

#[cfg(test)]
mod tests;
