//! Tests of the merge against a sorted map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::error::Result;
use crate::key::{InternalKey, ValueKind};

/// A sorted list as a child; fails at the entry numbered `fails_at`.
#[derive(Default)]
struct ListIterator {
    list: Vec<(InternalKey, Vec<u8>)>,
    at: Option<usize>,
    fails_at: Option<usize>,
}

impl ListIterator {
    fn go(&mut self, at: Option<usize>) {
        self.at = at.filter(|&at| at < self.list.len());
    }

    fn before(&self, target: &[u8], or_at: bool) -> usize {
        self.list.partition_point(|(key, _)| {
            let order = compare_internal(key.as_bytes(), target);
            order.is_lt() || or_at && order.is_eq()
        })
    }
}

impl InternalIterator for ListIterator {
    fn valid(&self) -> bool {
        self.at.is_some() && self.at != self.fails_at
    }

    fn seek_to_first(&mut self) {
        self.go(Some(0));
    }

    fn seek_to_last(&mut self) {
        self.go(self.list.len().checked_sub(1));
    }

    fn seek(&mut self, target: &[u8]) {
        self.go(Some(self.before(target, false)));
    }

    fn seek_for_prev(&mut self, target: &[u8]) {
        self.go(self.before(target, true).checked_sub(1));
    }

    fn next(&mut self) {
        self.go(self.at.map(|at| at + 1));
    }

    fn prev(&mut self) {
        self.go(self.at.and_then(|at| at.checked_sub(1)));
    }

    fn key(&self) -> &[u8] {
        self.list[self.at.unwrap()].0.as_bytes()
    }

    fn value(&self) -> &[u8] {
        &self.list[self.at.unwrap()].1
    }

    fn status(&self) -> Result<()> {
        match self.at.is_some() && self.at == self.fails_at {
            true => Err(Error::corrupt("list", 0u64, "fails here")),
            false => Ok(()),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    First,
    Last,
    Seek(Vec<u8>, u64),
    SeekForPrev(Vec<u8>, u64),
    Next,
    Prev,
}

fn user_key() -> impl Strategy<Value = Vec<u8>> {
    let short = prop::collection::vec(0u8..3, 0..4);
    prop_oneof![
        short.clone(),
        short.prop_map(|end| [&b"a common head"[..], &end].concat())
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::First),
        1 => Just(Step::Last),
        3 => (user_key(), 0u64..5).prop_map(|(key, seq)| Step::Seek(key, seq)),
        3 => (user_key(), 0u64..5).prop_map(|(key, seq)| Step::SeekForPrev(key, seq)),
        12 => Just(Step::Next),
        12 => Just(Step::Prev),
    ]
}

proptest! {
    /// Every walk, turn and seek gives what one sorted map of (key, child) gives; equal keys in
    /// several children included.
    #[test]
    fn a_merge_walks_like_a_sorted_map(
        children in prop::collection::vec(
            prop::collection::btree_set((user_key(), 0u64..4), 0..12), 0..6),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut model = BTreeMap::new();
        let mut boxed: Vec<Box<dyn InternalIterator>> = Vec::new();
        for (number, keys) in children.iter().enumerate() {
            let mut list: Vec<_> = keys
                .iter()
                .map(|(key, seq)| InternalKey::new(key, *seq, ValueKind::Value))
                .map(|key| (key, vec![number as u8]))
                .collect();
            list.sort();
            model.extend(list.iter().map(|(key, value)| ((key.clone(), number), value.clone())));
            boxed.push(Box::new(ListIterator { list, ..ListIterator::default() }));
        }
        let entries: Vec<_> = model.into_iter().collect();
        let mut merge = MergingIterator::new(boxed);
        let mut at: Option<usize> = None;
        for step in steps {
            at = match step {
                Step::First => {
                    merge.seek_to_first();
                    Some(0)
                }
                Step::Last => {
                    merge.seek_to_last();
                    entries.len().checked_sub(1)
                }
                Step::Seek(key, seq) => {
                    let target = InternalKey::new(&key, seq, ValueKind::Value);
                    merge.seek(target.as_bytes());
                    Some(entries.partition_point(|((key, _), _)| *key < target))
                }
                Step::SeekForPrev(key, seq) => {
                    let target = InternalKey::new(&key, seq, ValueKind::Value);
                    merge.seek_for_prev(target.as_bytes());
                    entries.partition_point(|((key, _), _)| *key <= target).checked_sub(1)
                }
                Step::Next if merge.valid() => {
                    merge.next();
                    at.map(|at| at + 1)
                }
                Step::Prev if merge.valid() => {
                    merge.prev();
                    at.and_then(|at| at.checked_sub(1))
                }
                Step::Next | Step::Prev => continue,
            };
            at = at.filter(|&at| at < entries.len());
            prop_assert_eq!(merge.valid(), at.is_some());
            if let Some(at) = at {
                prop_assert_eq!(merge.key(), entries[at].0.0.as_bytes());
                prop_assert_eq!(merge.value(), &entries[at].1[..]);
            }
        }
        prop_assert!(merge.status().is_ok());
    }
}

#[test]
fn a_failing_child_ends_the_merge_with_its_error() {
    let list = |from: u8, fails_at| {
        let list = (from..200).step_by(2);
        Box::new(ListIterator {
            list: list
                .map(|i| (InternalKey::new(&[i], 1, ValueKind::Value), vec![]))
                .collect(),
            fails_at,
            ..ListIterator::default()
        }) as Box<dyn InternalIterator>
    };
    let mut merge = MergingIterator::new(vec![list(0, None), list(1, Some(3))]);
    merge.seek_to_first();
    let mut given = 0;
    while merge.valid() {
        given += 1;
        merge.next();
    }
    assert_eq!(given, 6, "keys 0 to 5 come before the failing one");
    assert!(merge.status().unwrap_err().is_corrupt());
    // Met while seeking, and forgotten by a seek that goes well.
    merge.seek(InternalKey::new(&[7], 1, ValueKind::Value).as_bytes());
    assert!(!merge.valid() && merge.status().is_err());
    merge.seek_to_last();
    assert!(merge.valid() && merge.status().is_ok());
}
