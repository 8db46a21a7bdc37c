//! `Pieces`: the files that a number leads to, by user key.
//!
//! A collection of several files cuts its output where it is large enough, so that what one input had may be
//! in several heirs. Heirs of one collection have disjoint ranges of user keys, so a number and a key lead to one
//! file with a binary search among few.
//!
//! Invariants: starts ascend strictly, the first is empty; neighbours are different files.

use crate::file_names::FileNumber;

use super::blobs::BlobUse;

/// From a user key on, up to the next piece's, a number leads to this file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) from: Vec<u8>,
    pub(crate) file: FileNumber,
}

/// All pieces of a number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pieces(Vec<Piece>);

/// What a table refers to under a number, file by file, ascending.
pub(crate) type Parts = Vec<(FileNumber, BlobUse)>;

impl Pieces {
    /// One file, whatever the key.
    pub(crate) fn one(file: FileNumber) -> Self {
        Pieces(vec![Piece {
            from: Vec::new(),
            file,
        }])
    }

    /// Pieces with these starts, in whatever order; where there is none before a key, the first is meant.
    /// Pieces of equal start are of the same file.
    ///
    /// # Panics
    /// Without any.
    pub(crate) fn of(mut pieces: Vec<Piece>) -> Self {
        assert!(!pieces.is_empty(), "a number leads somewhere");
        pieces.sort_by(|a, b| a.from.cmp(&b.from));
        pieces[0].from.clear();
        pieces.dedup_by(|next, piece| next.file == piece.file || next.from == piece.from);
        Pieces(pieces)
    }

    /// As [`Pieces::of`] of what was read; `None` where the invariants do not hold.
    pub(crate) fn checked(pieces: Vec<Piece>) -> Option<Self> {
        let begins = pieces.first()?.from.is_empty();
        let ascend = pieces
            .windows(2)
            .all(|pair| pair[0].from < pair[1].from && pair[0].file != pair[1].file);
        (begins && ascend).then_some(Pieces(pieces))
    }

    pub(crate) fn as_slice(&self) -> &[Piece] {
        &self.0
    }

    /// The file, if it is the same for every key.
    pub(crate) fn single(&self) -> Option<FileNumber> {
        match &self.0[..] {
            [piece] => Some(piece.file),
            _ => None,
        }
    }

    fn at(&self, user_key: &[u8]) -> usize {
        let after = self.0.partition_point(|piece| *piece.from <= *user_key);
        after - 1
    }

    /// The file for this key.
    pub(crate) fn find(&self, user_key: &[u8]) -> FileNumber {
        self.0[self.at(user_key)].file
    }

    /// The file, if it is the same for all keys in `smallest..=largest`.
    pub(crate) fn single_within(&self, smallest: &[u8], largest: &[u8]) -> Option<FileNumber> {
        let at = self.at(smallest);
        (self.at(largest) == at).then(|| self.0[at].file)
    }

    /// Every file that some key leads to; one may come twice.
    pub(crate) fn files(&self) -> impl Iterator<Item = FileNumber> {
        self.0.iter().map(|piece| piece.file)
    }

    /// Pieces of the keys from `from` up to `until`, where `None` is no end.
    pub(crate) fn within(&self, from: &[u8], until: Option<&[u8]>) -> Vec<Piece> {
        let mut found = vec![Piece {
            from: from.to_vec(),
            file: self.find(from),
        }];
        let rest = self.0.iter().skip(self.at(from) + 1);
        found.extend(
            rest.take_while(|piece| until.is_none_or(|until| *piece.from < *until))
                .cloned(),
        );
        found
    }

    /// Each piece with where it ends.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (&Piece, Option<&[u8]>)> {
        let ends = self.0[1..].iter().map(|piece| Some(&piece.from[..]));
        self.0.iter().zip(ends.chain([None]))
    }

    /// The same with the heirs that `heirs` tells in the place of files that have some.
    pub(crate) fn inherited<'a>(&self, heirs: impl Fn(FileNumber) -> Option<&'a Pieces>) -> Pieces {
        let mut pieces = Vec::new();
        for (piece, until) in self.ranges() {
            match heirs(piece.file) {
                Some(heirs) => pieces.extend(heirs.within(&piece.from, until)),
                None => pieces.push(piece.clone()),
            }
        }
        Pieces::of(pieces)
    }

    /// The same without a file to which no reference leads any more; `None` if nothing is left.
    pub(crate) fn without(&self, file: FileNumber) -> Option<Pieces> {
        let left = self.0.iter().filter(|piece| piece.file != file).cloned();
        let left: Vec<Piece> = left.collect();
        (!left.is_empty()).then(|| Pieces::of(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(list: &[(&str, FileNumber)]) -> Pieces {
        let list = list.iter().map(|&(from, file)| Piece {
            from: from.as_bytes().to_vec(),
            file,
        });
        Pieces::of(list.collect())
    }

    #[test]
    fn keys_lead_to_the_piece_that_they_are_in() {
        let all = pieces(&[("", 1), ("g", 2), ("p", 3)]);
        assert_eq!(all.find(b""), 1);
        assert_eq!(all.find(b"fz"), 1);
        assert_eq!(all.find(b"g"), 2);
        assert_eq!(all.find(b"z"), 3);
        assert_eq!(all.single_within(b"g", b"o"), Some(2));
        assert_eq!(all.single_within(b"a", b"g"), None);
        assert_eq!(all.without(2), Some(pieces(&[("", 1), ("p", 3)])));
        assert_eq!(Pieces::one(7).without(7), None);
    }

    #[test]
    fn heirs_take_the_place_of_their_file_within_its_piece() {
        let all = pieces(&[("", 1), ("g", 2), ("p", 1)]);
        let heirs = pieces(&[("", 8), ("c", 9), ("r", 8)]);
        let after = all.inherited(|file| (file == 1).then_some(&heirs));
        let expected = [("", 8), ("c", 9), ("g", 2), ("p", 9), ("r", 8)];
        assert_eq!(after, pieces(&expected));
        let one = Pieces::one(5);
        let after = after.inherited(|_| Some(&one));
        assert_eq!(after.single(), Some(5));
    }

    #[test]
    fn pieces_out_of_order_are_refused() {
        let piece = |from: &str, file| Piece {
            from: from.as_bytes().to_vec(),
            file,
        };
        assert!(Pieces::checked(vec![piece("", 1), piece("b", 2)]).is_some());
        for bad in [
            vec![],
            vec![piece("a", 1)],
            vec![piece("", 1), piece("", 2)],
            vec![piece("", 1), piece("b", 1)],
            vec![piece("", 1), piece("c", 2), piece("b", 1)],
        ] {
            assert!(Pieces::checked(bad).is_none());
        }
    }

    proptest! {
        #[test]
        fn inheriting_finds_for_each_key_the_heir_of_what_it_found(
            starts in prop::collection::vec((any::<u8>(), 1u64..4), 1..6),
            heirs in prop::collection::vec((any::<u8>(), 10u64..14), 1..6),
            inherits in 1u64..4,
        ) {
            let of = |list: &[(u8, u64)]| {
                let list = list.iter().map(|&(from, file)| Piece { from: vec![from], file });
                Pieces::of(list.collect())
            };
            let (before, heirs) = (of(&starts), of(&heirs));
            let after = before.inherited(|file| (file == inherits).then_some(&heirs));
            prop_assert!(Pieces::checked(after.as_slice().to_vec()).is_some());
            for key in 0..=255 {
                let expected = match before.find(&[key]) {
                    file if file == inherits => heirs.find(&[key]),
                    file => file,
                };
                prop_assert_eq!(after.find(&[key]), expected);
            }
        }
    }
}
