//! Numbers, heirs and sums, by hand and against a model that keeps each reference.

use super::*;
use crate::version::Piece;

fn none() -> Shares<'static> {
    Shares::new()
}

/// A number and its one heir.
fn one(number: FileNumber, heir: FileNumber) -> (FileNumber, Cow<'static, Pieces>) {
    (number, Cow::Owned(Pieces::one(heir)))
}

fn used(references: u64, value_bytes: u64) -> BlobUse {
    BlobUse {
        references,
        value_bytes,
    }
}

#[test]
fn numbers_lead_to_the_last_heir_until_no_table_uses_them() {
    let mut set = BlobSet::default();
    let (old, mid) = (vec![(1, used(3, 300))], vec![(2, used(1, 50))]);
    set.add_file(1, 'a').unwrap();
    set.refer(100, &old, &none()).unwrap();
    set.settle();
    set.add_file(2, 'b').unwrap();
    set.inherit([one(1, 2)], &none()).unwrap();
    set.refer(101, &mid, &none()).unwrap();
    set.settle();
    set.add_file(3, 'c').unwrap();
    set.inherit([one(2, 3)], &none()).unwrap();
    set.settle();
    assert_eq!(set.resolve(1, b"key"), Some(&'c'));
    assert_eq!(set.resolve(2, b"key"), Some(&'c'));
    assert_eq!(set.resolve(3, b"key"), Some(&'c'));
    assert_eq!(set.files()[&3].used, used(4, 350));
    assert_eq!(set.ancestors(), [(1, 3), (2, 3)]);
    set.forget(100, &old).unwrap();
    set.settle();
    assert_eq!(set.ancestors(), [(2, 3)]);
    set.forget(101, &mid).unwrap();
    set.settle();
    assert!(set.files().is_empty() && set.names.is_empty());
}

#[test]
fn a_table_that_moves_keeps_its_blob_files() {
    let mut set = BlobSet::default();
    let refs = vec![(7, used(1, 9))];
    set.add_file(7, ()).unwrap();
    set.refer(100, &refs, &none()).unwrap();
    set.settle();
    set.forget(100, &refs).unwrap();
    set.refer(100, &refs, &none()).unwrap();
    set.settle();
    assert_eq!(set.files()[&7].used, used(1, 9));
}

#[test]
fn a_file_that_nothing_refers_to_is_not_kept() {
    let mut set = BlobSet::default();
    set.add_file(1, ()).unwrap();
    set.settle();
    assert!(set.resolve(1, b"key").is_none() && set.files().is_empty());
}

#[test]
fn edits_that_do_not_fit_are_refused() {
    let mut set = BlobSet::default();
    set.add_file(1, ()).unwrap();
    assert!(set.add_file(1, ()).is_err());
    // After an error the set is of no use.
    assert!(set.clone().inherit([one(1, 1)], &none()).is_err());
    assert!(set.clone().inherit([one(1, 2)], &none()).is_err());
    assert!(set.refer(100, &vec![(9, used(1, 1))], &none()).is_err());
    assert!(set.forget(100, &vec![(1, used(1, 1))]).is_err());
    set.add_file(2, ()).unwrap();
    set.inherit([one(1, 2)], &none()).unwrap();
    set.refer(100, &vec![(1, used(1, 1))], &none()).unwrap();
    set.add_file(3, ()).unwrap();
    assert!(set.inherit([one(1, 3)], &none()).is_err(), "two heirs");
}

#[test]
fn counts_of_a_damaged_manifest_do_not_overflow() {
    let mut set = BlobSet::default();
    set.add_file(1, ()).unwrap();
    let refs = vec![(1, used(u64::MAX, u64::MAX))];
    set.refer(100, &refs, &none()).unwrap();
    set.refer(101, &refs, &none()).unwrap();
    assert_eq!(set.files()[&1].used, used(u64::MAX, u64::MAX));
    set.forget(100, &refs).unwrap();
    assert!(set.forget(101, &refs).is_err(), "more than there is");
}

#[test]
fn what_is_not_shared_out_is_refused() {
    let mut set = BlobSet::default();
    let refs = vec![(1, used(3, 300))];
    for number in 1..=3 {
        set.add_file(number, ()).unwrap();
        set.touched.clear();
    }
    set.refer(100, &refs, &none()).unwrap();
    let piece = |from: &[u8], file| Piece {
        from: from.to_vec(),
        file,
    };
    let pieces = Pieces::of(vec![piece(b"", 2), piece(b"m", 3)]);
    let heirs = || [(1, Cow::Borrowed(&pieces))];
    let share = |parts: &[(FileNumber, BlobUse)]| {
        [Share {
            table: 100,
            number: 1,
            parts: parts.to_vec(),
        }]
    };
    assert!(set.clone().inherit(heirs(), &none()).is_err());
    let less = share(&[(2, used(1, 100)), (3, used(1, 100))]);
    assert!(set.clone().inherit(heirs(), &by_number(&less)).is_err());
    let elsewhere = share(&[(2, used(1, 100)), (9, used(2, 200))]);
    assert!(
        set.clone()
            .inherit(heirs(), &by_number(&elsewhere))
            .is_err()
    );
    let right = share(&[(2, used(1, 100)), (3, used(2, 200))]);
    let before = set.clone();
    set.inherit(heirs(), &by_number(&right)).unwrap();
    set.settle();
    assert_eq!(set.files()[&3].used, used(2, 200));
    assert_eq!(
        (set.resolve_number(1, b"a"), set.resolve_number(1, b"m")),
        (Some(2), Some(3))
    );
    // A version that is held stays as it was.
    assert_eq!(
        (before.resolve_number(1, b"m"), before.files().len()),
        (Some(1), 3)
    );
    assert!(set.refer(101, &refs, &none()).is_err(), "no share");
    set.forget(100, &refs).unwrap();
    set.settle();
    assert!(set.files().is_empty() && set.names.is_empty() && set.splits.is_empty());
}

/// Every reference by itself: by table, the key and the number that it names.
#[derive(Default)]
struct Model {
    tables: BTreeMap<FileNumber, BTreeMap<u16, FileNumber>>,
    /// The file that has the value of a key. A key is in one table only.
    places: BTreeMap<u16, FileNumber>,
    next: FileNumber,
    next_key: u16,
    random: u64,
}

const LEN: u64 = 10;

impl Model {
    fn below(&mut self, limit: u64) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.random >> 33) % limit
    }

    fn number(&mut self) -> FileNumber {
        self.next += 1;
        self.next
    }

    fn refs(&self, table: FileNumber) -> TableRefs {
        let mut refs: BTreeMap<FileNumber, BlobUse> = BTreeMap::new();
        for number in self.tables[&table].values() {
            refs.entry(*number).or_default().add(used(1, LEN));
        }
        refs.into_iter().collect()
    }

    /// What every table refers to, as it is.
    fn shares(&self) -> Vec<Share> {
        let mut shares: BTreeMap<_, BTreeMap<FileNumber, BlobUse>> = BTreeMap::new();
        for (&table, entries) in &self.tables {
            for (key, &number) in entries {
                let parts = shares.entry((table, number)).or_default();
                parts.entry(self.places[key]).or_default().add(used(1, LEN));
            }
        }
        let shares = shares.into_iter().map(|((table, number), parts)| Share {
            table,
            number,
            parts: parts.into_iter().collect(),
        });
        shares.collect()
    }

    fn flush(&mut self, set: &mut BlobSet<()>) {
        let (file, table) = (self.number(), self.number());
        let mut entries = BTreeMap::new();
        for _ in 0..=self.below(12) {
            // Keys spread over the whole range, each one new.
            self.next_key = self.next_key.wrapping_add(40_503);
            entries.insert(self.next_key, file);
            self.places.insert(self.next_key, file);
        }
        self.tables.insert(table, entries);
        set.add_file(file, ()).unwrap();
        set.refer(table, &self.refs(table), &none()).unwrap();
    }

    fn collect(&mut self, set: &mut BlobSet<()>) {
        let files: Vec<FileNumber> = set.files().keys().copied().collect();
        let picked: BTreeSet<_> = (0..=self.below(2))
            .map(|_| files[self.below(files.len() as u64) as usize])
            .collect();
        let cuts: BTreeSet<u16> = (0..self.below(3))
            .map(|_| self.below(1 << 16) as u16)
            .collect();
        let cuts: Vec<u16> = std::iter::once(0).chain(cuts).collect();
        let heirs: Vec<FileNumber> = cuts.iter().map(|_| self.number()).collect();
        let mut pieces: BTreeMap<FileNumber, BTreeMap<u16, FileNumber>> = BTreeMap::new();
        for (key, place) in &mut self.places {
            if picked.contains(place) {
                let at = cuts.partition_point(|cut| cut <= key) - 1;
                pieces
                    .entry(*place)
                    .or_default()
                    .insert(cuts[at], heirs[at]);
                *place = heirs[at];
            }
        }
        for heir in heirs {
            set.add_file(heir, ()).unwrap();
        }
        let pieces = pieces.into_iter().map(|(number, list)| {
            let list = list.into_iter().map(|(from, file)| Piece {
                from: from.to_be_bytes().to_vec(),
                file,
            });
            (number, Cow::Owned(Pieces::of(list.collect())))
        });
        let pieces: Vec<_> = pieces.collect();
        let shares = self.shares();
        set.inherit(pieces, &by_number(&shares)).unwrap();
    }

    fn compact(&mut self, set: &mut BlobSet<()>) {
        let tables: Vec<FileNumber> = self.tables.keys().copied().collect();
        let mut merged = BTreeMap::new();
        for _ in 0..=self.below(2) {
            let table = tables[self.below(tables.len() as u64) as usize];
            let Some(_) = self.tables.get(&table) else {
                continue;
            };
            set.forget(table, &self.refs(table)).unwrap();
            for (key, _) in self.tables.remove(&table).unwrap() {
                if self.below(3) == 0 {
                    self.places.remove(&key);
                } else {
                    merged.insert(key, self.places[&key]);
                }
            }
        }
        if !merged.is_empty() {
            let table = self.number();
            self.tables.insert(table, merged);
            set.refer(table, &self.refs(table), &none()).unwrap();
        }
    }

    fn change_level(&mut self, set: &mut BlobSet<()>) {
        let tables: Vec<FileNumber> = self.tables.keys().copied().collect();
        let table = tables[self.below(tables.len() as u64) as usize];
        let (refs, shares) = (self.refs(table), set.shares());
        set.forget(table, &refs).unwrap();
        set.refer(table, &refs, &by_number(&shares)).unwrap();
    }

    fn check(&self, set: &BlobSet<()>) {
        let mut uses: BTreeMap<FileNumber, BlobUse> = BTreeMap::new();
        for place in self.places.values() {
            uses.entry(*place).or_default().add(used(1, LEN));
        }
        let found: BTreeMap<_, _> = set
            .files()
            .iter()
            .map(|(file, live)| (*file, live.used))
            .collect();
        assert_eq!(found, uses);
        let mut names = BTreeSet::new();
        for (key, number) in self.tables.values().flatten() {
            assert_eq!(
                set.resolve_number(*number, &key.to_be_bytes()),
                Some(self.places[key])
            );
            names.insert(*number);
        }
        names.extend(uses.keys());
        assert_eq!(set.names.keys().copied().collect::<BTreeSet<_>>(), names);
        for (file, live) in set.files().iter() {
            let leads = |name: &&FileNumber| set.names[name].files().contains(file);
            assert_eq!(live.names, names.iter().filter(leads).copied().collect());
        }
        // A new manifest tells the same.
        let mut again = BlobSet::default();
        set.files()
            .keys()
            .for_each(|file| again.add_file(*file, ()).unwrap());
        let (ancestors, splits, shares) = (set.ancestors(), set.splits(), set.shares());
        let heirs = ancestors.iter().map(|&(number, heir)| one(number, heir));
        let heirs = heirs.chain(splits.iter().map(|(number, p)| (*number, Cow::Borrowed(p))));
        again.inherit(heirs, &none()).unwrap();
        for &table in self.tables.keys() {
            again
                .refer(table, &self.refs(table), &by_number(&shares))
                .unwrap();
        }
        again.settle();
        let told = |set: &BlobSet<()>| {
            let files = set
                .files()
                .iter()
                .map(|(file, live)| (*file, live.used, live.names.clone()));
            (
                files.collect::<Vec<_>>(),
                set.ancestors(),
                set.splits(),
                set.shares(),
            )
        };
        assert_eq!(told(&again), told(set));
    }
}

#[test]
fn every_reference_leads_to_its_value_and_sums_are_exact_whatever_is_collected() {
    let mut pieces_max = 0;
    for seed in 0..60 {
        let mut set = BlobSet::default();
        let mut model = Model {
            random: seed,
            ..Model::default()
        };
        for step in 0..80 {
            match model.below(8) {
                _ if model.tables.is_empty() => model.flush(&mut set),
                0..3 => model.flush(&mut set),
                3..5 => model.collect(&mut set),
                5..7 => model.compact(&mut set),
                _ => model.change_level(&mut set),
            }
            set.settle();
            model.check(&set);
            let most = set
                .splits()
                .iter()
                .map(|(_, pieces)| pieces.as_slice().len())
                .max();
            pieces_max = pieces_max.max(most.unwrap_or(0));
            assert!(step < 80);
        }
    }
    assert!(pieces_max > 3, "names were split again: {pieces_max}");
}
