//! `VisibleIterator`: the entries that a snapshot sees, in both directions.
//!
//! Below it is a merge of internal keys: for each user key its versions from new to old. Forward,
//! the first version at or below the snapshot decides and the rest is skipped. Backward, versions
//! come from old to new, so the last one at or below the snapshot decides, and the merge then
//! stands before the key; the entry is kept in a buffer.
//!
//! An entry's value is as the tables have it: a reference where the value is in a blob file
//! ([`super::DbIterator`] reads those).

use crate::error::{Error, Result};
use crate::key::{InternalKeyRef, MAX_SEQ, SEEK_KIND, SeqNo, ValueKind, append_internal};

use super::{InternalIterator, MergingIterator};

/// Where the merge below stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Position {
    /// Nowhere.
    Invalid,
    /// On the version that is shown.
    Forward,
    /// Before all versions of the key that is shown, which is in the buffer.
    Backward,
}

/// Walks the entries that a snapshot sees, within bounds. Made unpositioned.
pub(crate) struct VisibleIterator {
    merge: MergingIterator,
    sequence: SeqNo,
    lower: Option<Vec<u8>>,
    upper: Option<Vec<u8>>,
    position: Position,
    /// The key (backward: shown; forward: the last one shown, to be skipped).
    key: Vec<u8>,
    value: Vec<u8>,
    /// Sequence number and kind of the entry that is shown.
    shown: (SeqNo, ValueKind),
    failure: Option<Error>,
    target: Vec<u8>,
}

impl VisibleIterator {
    pub(crate) fn new(
        children: Vec<Box<dyn InternalIterator>>,
        sequence: SeqNo,
        bounds: (Option<Vec<u8>>, Option<Vec<u8>>),
    ) -> Self {
        VisibleIterator {
            merge: MergingIterator::new(children),
            sequence,
            lower: bounds.0,
            upper: bounds.1,
            position: Position::Invalid,
            key: Vec::new(),
            value: Vec::new(),
            shown: (0, ValueKind::Delete),
            failure: None,
            target: Vec::new(),
        }
    }

    /// True where the iterator is at a key.
    pub(crate) fn valid(&self) -> bool {
        self.position != Position::Invalid
    }

    /// The key here.
    ///
    /// # Panics
    /// If the iterator is not valid.
    pub(crate) fn key(&self) -> &[u8] {
        assert!(self.valid(), "key of an invalid iterator");
        &self.key
    }

    /// Sequence number and kind of the entry here.
    pub(crate) fn shown(&self) -> (SeqNo, ValueKind) {
        self.shown
    }

    /// The value here, or the reference to it.
    ///
    /// # Panics
    /// If the iterator is not valid.
    pub(crate) fn value(&self) -> &[u8] {
        match self.position {
            Position::Forward => self.merge.value(),
            Position::Backward => &self.value,
            Position::Invalid => panic!("value of an invalid iterator"),
        }
    }

    /// The failure that ended the walk, if one did. Ask when the iterator is not valid.
    pub(crate) fn status(&self) -> Result<()> {
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None => self.merge.status(),
        }
    }

    /// Moves to the first key.
    pub(crate) fn seek_to_first(&mut self) {
        self.failure = None;
        match self.lower.take() {
            Some(lower) => {
                self.merge_seek(&lower);
                self.lower = Some(lower);
            }
            None => self.merge.seek_to_first(),
        }
        self.find_forward(false);
    }

    /// Moves to the last key.
    pub(crate) fn seek_to_last(&mut self) {
        self.failure = None;
        match self.upper.take() {
            Some(upper) => {
                self.merge_seek_before(&upper);
                self.upper = Some(upper);
            }
            None => self.merge.seek_to_last(),
        }
        self.find_backward();
    }

    /// Moves to the first key at or after `key`.
    pub(crate) fn seek(&mut self, key: &[u8]) {
        if self.lower.as_deref().is_some_and(|lower| key < lower) {
            return self.seek_to_first();
        }
        self.failure = None;
        self.merge_seek(key);
        self.find_forward(false);
    }

    /// Moves to the last key at or before `key`.
    pub(crate) fn seek_for_prev(&mut self, key: &[u8]) {
        if self.upper.as_deref().is_some_and(|upper| key >= upper) {
            return self.seek_to_last();
        }
        self.failure = None;
        self.target.clear();
        append_internal(&mut self.target, key, 0, 0);
        self.merge.seek_for_prev(&self.target);
        self.find_backward();
    }

    /// Moves to the next key.
    ///
    /// # Panics
    /// If the iterator is not valid.
    pub(crate) fn next(&mut self) {
        assert!(self.valid(), "next of an invalid iterator");
        if self.position == Position::Backward {
            // The merge stands before the key, or before everything.
            if self.merge.valid() {
                self.merge.next();
            } else {
                self.merge.seek_to_first();
            }
        }
        self.find_forward(true);
    }

    /// Moves to the previous key.
    ///
    /// # Panics
    /// If the iterator is not valid.
    pub(crate) fn prev(&mut self) {
        assert!(self.valid(), "prev of an invalid iterator");
        if self.position == Position::Forward {
            let key = std::mem::take(&mut self.key);
            self.merge_seek_before(&key);
            self.key = key;
        }
        self.find_backward();
    }

    /// Puts the merge at the first version of the first key at or after `key`.
    fn merge_seek(&mut self, key: &[u8]) {
        self.target.clear();
        append_internal(&mut self.target, key, MAX_SEQ, SEEK_KIND);
        self.merge.seek(&self.target);
    }

    /// Puts the merge at the last version of the last key before `key`.
    fn merge_seek_before(&mut self, key: &[u8]) {
        self.target.clear();
        append_internal(&mut self.target, key, MAX_SEQ, SEEK_KIND);
        self.merge.seek_for_prev(&self.target);
    }

    fn fail(&mut self) {
        self.position = Position::Invalid;
        self.failure = Some(Error::corrupt("iterator input", 0_u64, "bad internal key"));
    }

    /// Shows the first visible key from where the merge stands; `skip`: past `self.key`.
    fn find_forward(&mut self, mut skip: bool) {
        self.position = Position::Invalid;
        while self.merge.valid() {
            let Some(entry) = InternalKeyRef::decode(self.merge.key()) else {
                return self.fail();
            };
            if self
                .upper
                .as_deref()
                .is_some_and(|upper| entry.user_key >= upper)
            {
                return;
            }
            let hidden = skip && entry.user_key == self.key.as_slice();
            if !hidden && entry.seq <= self.sequence {
                self.key.clear();
                self.key.extend_from_slice(entry.user_key);
                if !entry.kind.is_delete() {
                    self.shown = (entry.seq, entry.kind);
                    self.position = Position::Forward;
                    return;
                }
                skip = true;
            }
            self.merge.next();
        }
    }

    /// Shows the last visible key from where the merge stands, backwards.
    fn find_backward(&mut self) {
        self.position = Position::Invalid;
        let mut found = false;
        let mut begun = false;
        while self.merge.valid() {
            let Some(entry) = InternalKeyRef::decode(self.merge.key()) else {
                return self.fail();
            };
            let same = begun && entry.user_key == self.key.as_slice();
            if !same {
                if found {
                    break;
                }
                if self
                    .lower
                    .as_deref()
                    .is_some_and(|lower| entry.user_key < lower)
                {
                    return;
                }
                self.key.clear();
                self.key.extend_from_slice(entry.user_key);
                begun = true;
            }
            if entry.seq <= self.sequence {
                found = !entry.kind.is_delete();
                self.shown = (entry.seq, entry.kind);
                self.value.clear();
                if found {
                    self.value.extend_from_slice(self.merge.value());
                }
            }
            self.merge.prev();
        }
        if found && self.merge.status().is_ok() {
            self.position = Position::Backward;
        }
    }
}
