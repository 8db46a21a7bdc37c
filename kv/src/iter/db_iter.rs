//! `DbIterator`: the keys and values that a snapshot sees, in both directions, wherever the values are.
//!
//! A value that is in a blob file takes a read of its own, so a walk reads values ahead: the first one
//! alone, then two together, four, and so on, up to a bound in number and bytes. The reads of a batch are
//! submitted together, and neighbours in a file become one read. A seek starts again with one, so that
//! short scans read little in vain. With [`crate::ReadOptions::lazy_values`] separated values are read only when
//! asked for, one by one.
//!
//! While entries are read ahead, the walk below stands at the last of them (or has ended), and
//! the first of them is shown. An entry that is not separated is shown where the walk stands.
//!
//! It holds the view it was made from: memtables, tables and blob files live as long as it does.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::blob::reference::BlobReference;
use crate::blob::values::SeparatedValue;
use crate::db::engine::{Engine, View};
use crate::db::snapshot::Snapshot;
use crate::env::ledger::Charge;
use crate::error::{Error, Result};
use crate::key::{ValueKind, append_internal};

use super::VisibleIterator;

/// Values read ahead at most, in number.
const AHEAD_MAX: usize = 64;

/// Bytes of values from which no more are read ahead.
const AHEAD_BYTES_MAX: u64 = 1 << 20;

/// What belongs to the making of an iterator beside the walk.
pub(crate) struct Origin {
    pub(crate) engine: Arc<Engine>,
    pub(crate) view: Arc<View>,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) lazy_values: bool,
    pub(crate) fill_cache: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Forward,
    Backward,
}

/// An entry read ahead, its value loaded.
struct Ahead {
    key: Vec<u8>,
    value: Vec<u8>,
}

/// Walks the keys that a snapshot sees, within bounds. Made unpositioned.
pub struct DbIterator {
    walk: VisibleIterator,
    engine: Arc<Engine>,
    view: Arc<View>,
    lazy_values: bool,
    /// Values that are read alone are kept in the cache.
    fill_cache: bool,
    /// Entries from the one shown on, in the order of `direction`. Empty where the entry shown is
    /// the walk's.
    ahead: VecDeque<Ahead>,
    direction: Direction,
    /// Entries to read together next time.
    window: usize,
    /// The separated value of the walk's entry, if it was read.
    value: Option<Vec<u8>>,
    failure: Option<Error>,
    /// What of the environment's memory `ahead` takes.
    charge: Option<Charge>,
    _snapshot: Option<Snapshot>,
}

impl std::fmt::Debug for DbIterator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DbIterator")
            .field("valid", &self.valid())
            .field("ahead", &self.ahead.len())
            .finish_non_exhaustive()
    }
}

impl DbIterator {
    pub(crate) fn new(walk: VisibleIterator, origin: Origin) -> Self {
        DbIterator {
            walk,
            engine: origin.engine,
            view: origin.view,
            lazy_values: origin.lazy_values,
            fill_cache: origin.fill_cache,
            ahead: VecDeque::new(),
            direction: Direction::Forward,
            window: 1,
            value: None,
            failure: None,
            charge: None,
            _snapshot: origin.snapshot,
        }
    }

    /// True where the iterator is at a key.
    #[inline]
    pub fn valid(&self) -> bool {
        !self.ahead.is_empty() || (self.walk.valid() && self.failure.is_none())
    }

    /// The key here.
    ///
    /// # Panics
    /// If the iterator is not valid.
    pub fn key(&self) -> &[u8] {
        match self.ahead.front() {
            Some(entry) => &entry.key,
            None => self.walk.key(),
        }
    }

    /// The value here.
    ///
    /// # Panics
    /// If the iterator is not valid; with [`crate::ReadOptions::lazy_values`] also where the value is in a
    /// blob file and [`DbIterator::load_value`] was not called.
    pub fn value(&self) -> &[u8] {
        if let Some(entry) = self.ahead.front() {
            return &entry.value;
        }
        match &self.value {
            Some(value) => value,
            None => {
                assert!(!self.is_separated(), "a lazy value was not loaded");
                self.walk.value()
            }
        }
    }

    /// The value here, read now if it was not yet: for lazy values, and right for all.
    ///
    /// # Errors
    /// What the read failed with. The iterator stays where it is.
    ///
    /// # Panics
    /// If the iterator is not valid.
    pub fn load_value(&mut self) -> Result<&[u8]> {
        if self.ahead.is_empty() && self.value.is_none() && self.is_separated() {
            let wanted = self.wanted()?;
            let version = &self.view.version;
            let value = self
                .engine
                .separated_value(version, &wanted, self.fill_cache)?;
            self.value = Some(value.to_vec());
        }
        Ok(self.value())
    }

    /// Bytes of the value here; nothing is read for it.
    ///
    /// # Panics
    /// If the iterator is not valid.
    pub fn value_len(&self) -> usize {
        if self.ahead.is_empty() && self.value.is_none() && self.is_separated() {
            let reference = BlobReference::decode(self.walk.value());
            return reference.map_or(0, |reference| reference.value_len as usize);
        }
        self.value().len()
    }

    /// The failure that ended the walk, if one did. Ask when the iterator is not valid.
    pub fn status(&self) -> Result<()> {
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None => self.walk.status(),
        }
    }

    /// Moves to the first key.
    pub fn seek_to_first(&mut self) {
        self.reset();
        self.walk.seek_to_first();
        self.show(Direction::Forward);
    }

    /// Moves to the last key.
    pub fn seek_to_last(&mut self) {
        self.reset();
        self.walk.seek_to_last();
        self.show(Direction::Backward);
    }

    /// Moves to the first key at or after `key`.
    pub fn seek(&mut self, key: &[u8]) {
        self.reset();
        self.walk.seek(key);
        self.show(Direction::Forward);
    }

    /// Moves to the last key at or before `key`.
    pub fn seek_for_prev(&mut self, key: &[u8]) {
        self.reset();
        self.walk.seek_for_prev(key);
        self.show(Direction::Backward);
    }

    /// Moves to the next key.
    ///
    /// # Panics
    /// If the iterator is not valid.
    pub fn next(&mut self) {
        self.step(Direction::Forward);
    }

    /// Moves to the previous key.
    ///
    /// # Panics
    /// If the iterator is not valid.
    pub fn prev(&mut self) {
        self.step(Direction::Backward);
    }

    fn reset(&mut self) {
        self.ahead.clear();
        self.charge = None;
        self.value = None;
        self.failure = None;
        self.window = 1;
    }

    /// True where the walk's entry has its value in a blob file.
    fn is_separated(&self) -> bool {
        self.walk.shown().1 == ValueKind::BlobReference
    }

    fn wanted(&self) -> Result<SeparatedValue> {
        let (seq, kind) = self.walk.shown();
        let mut key = Vec::with_capacity(self.walk.key().len() + 8);
        append_internal(&mut key, self.walk.key(), seq, kind as u8);
        let reference = BlobReference::of_entry(self.walk.value())?;
        Ok(SeparatedValue { key, reference })
    }

    fn move_walk(&mut self, direction: Direction) {
        match direction {
            Direction::Forward => self.walk.next(),
            Direction::Backward => self.walk.prev(),
        }
    }

    fn step(&mut self, direction: Direction) {
        assert!(self.valid(), "a step from an invalid iterator");
        self.value = None;
        if direction == self.direction {
            self.window = (self.window * 2).min(AHEAD_MAX);
        } else {
            self.window = 1;
        }
        match self.ahead.pop_front() {
            // The walk stands at the entry.
            None => self.move_walk(direction),
            Some(_) if direction == self.direction => {
                if !self.ahead.is_empty() {
                    return;
                }
                // It stood at the last entry, or has ended after it.
                if self.walk.valid() {
                    self.move_walk(direction);
                }
            }
            Some(entry) => {
                self.ahead.clear();
                self.walk.seek(&entry.key);
                if self.walk.valid() {
                    self.move_walk(direction);
                }
            }
        }
        self.show(direction);
    }

    /// Loads what is to be shown from where the walk stands.
    fn show(&mut self, direction: Direction) {
        self.direction = direction;
        if !self.walk.valid() || self.lazy_values || !self.is_separated() {
            return;
        }
        let loaded = match self.window {
            1 => self.load_value().map(|_| ()),
            _ => self.read_ahead(),
        };
        if let Err(error) = loaded {
            self.ahead.clear();
            self.failure = Some(error);
        }
    }

    /// Reads the values of the walk's entry and those after it.
    fn read_ahead(&mut self) -> Result<()> {
        let mut wanted = Vec::new();
        let mut places = Vec::new();
        let mut bytes = 0;
        loop {
            let mut value = Vec::new();
            if self.is_separated() {
                let separated = self.wanted()?;
                bytes += separated.reference.value_len;
                wanted.push(separated);
                places.push(self.ahead.len());
            } else {
                value.extend_from_slice(self.walk.value());
                bytes += value.len() as u64;
            }
            let key = self.walk.key().to_vec();
            self.ahead.push_back(Ahead { key, value });
            if self.ahead.len() >= self.window || bytes >= AHEAD_BYTES_MAX {
                break;
            }
            self.move_walk(self.direction);
            if !self.walk.valid() {
                break;
            }
        }
        self.charge = self.engine.charge_io(bytes as usize);
        // What the values are read into, on their way.
        let _buffers = self.engine.charge_io(bytes as usize);
        let values = self.engine.scanned_values(&self.view.version, &wanted)?;
        for (place, value) in places.into_iter().zip(values) {
            self.ahead[place].value = value;
        }
        Ok(())
    }
}
