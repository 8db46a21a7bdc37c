//! A merge of sorted iterators: a binary heap of children, in either direction.
//!
//! The heap's root is the child at the smallest key (the largest, walking backward). Each heap
//! entry keeps the head of its child's user key, so that most comparisons touch no child.
//! After a step only the root has moved, so it is sifted down: two comparisons where the same
//! child goes on giving keys, as it does in long runs.
//!
//! Children may hold equal internal keys; they come out in the order of the children, and in the
//! opposite order walking backward. The first child to fail makes the merge invalid: going on
//! without it would hide its keys and uncover what they shadow.

use std::cmp::Ordering;

use super::InternalIterator;
use crate::error::{Error, Result};
use crate::key::{compare_internal, key_head, user_key};

/// Merges sorted iterators into one.
pub struct MergingIterator {
    children: Vec<Box<dyn InternalIterator>>,
    /// Valid children only, the next one to give first.
    heap: Vec<HeapEntry>,
    direction: Direction,
    failure: Option<Error>,
}

#[derive(Clone, Copy)]
struct HeapEntry {
    head: u64,
    child: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

impl MergingIterator {
    /// A merge of `children`; equal keys come in their order.
    pub fn new(children: Vec<Box<dyn InternalIterator>>) -> Self {
        MergingIterator {
            heap: Vec::with_capacity(children.len()),
            children,
            direction: Direction::Forward,
            failure: None,
        }
    }

    /// True where `a` is to be given before `b`.
    #[inline]
    fn before(&self, a: HeapEntry, b: HeapEntry) -> bool {
        let order = a.head.cmp(&b.head).then_with(|| {
            let (key_a, key_b) = (self.children[a.child].key(), self.children[b.child].key());
            compare_internal(key_a, key_b).then(a.child.cmp(&b.child))
        });
        match self.direction {
            Direction::Forward => order == Ordering::Less,
            Direction::Backward => order == Ordering::Greater,
        }
    }

    fn sift_down(&mut self, mut at: usize) {
        loop {
            let mut first = 2 * at + 1;
            if first >= self.heap.len() {
                return;
            }
            if first + 1 < self.heap.len() && self.before(self.heap[first + 1], self.heap[first]) {
                first += 1;
            }
            if !self.before(self.heap[first], self.heap[at]) {
                return;
            }
            self.heap.swap(at, first);
            at = first;
        }
    }

    /// Moves every child with `position` and builds the heap anew.
    fn rebuild(
        &mut self,
        direction: Direction,
        mut position: impl FnMut(usize, &mut dyn InternalIterator),
    ) {
        self.direction = direction;
        self.failure = None;
        self.heap.clear();
        for (index, child) in self.children.iter_mut().enumerate() {
            position(index, child.as_mut());
            if child.valid() {
                self.heap.push(HeapEntry {
                    head: key_head(user_key(child.key())),
                    child: index,
                });
            } else if let Err(failure) = child.status() {
                self.failure = Some(failure);
                self.heap.clear();
                return;
            }
        }
        for at in (0..self.heap.len() / 2).rev() {
            self.sift_down(at);
        }
    }

    /// Restores the heap after the root's child has moved.
    fn settle_root(&mut self) {
        let root = self.heap[0].child;
        let child = &self.children[root];
        if child.valid() {
            self.heap[0].head = key_head(user_key(child.key()));
        } else if let Err(failure) = child.status() {
            self.failure = Some(failure);
            self.heap.clear();
            return;
        } else {
            self.heap.swap_remove(0);
        }
        self.sift_down(0);
    }

    /// Makes the other children stand on the far side of the current key, which they have passed
    /// or not yet reached.
    fn turn(&mut self, direction: Direction) {
        let current = self.heap[0].child;
        let key = self.children[current].key().to_vec();
        self.rebuild(direction, |index, child| {
            match (direction, index.cmp(&current)) {
                (_, Ordering::Equal) => {}
                (Direction::Forward, Ordering::Greater) => child.seek(&key),
                (Direction::Forward, Ordering::Less) => {
                    child.seek(&key);
                    while child.valid() && child.key() == key {
                        child.next();
                    }
                }
                (Direction::Backward, Ordering::Less) => child.seek_for_prev(&key),
                (Direction::Backward, Ordering::Greater) => {
                    child.seek_for_prev(&key);
                    while child.valid() && child.key() == key {
                        child.prev();
                    }
                }
            }
        });
    }
}

impl InternalIterator for MergingIterator {
    #[inline]
    fn valid(&self) -> bool {
        !self.heap.is_empty()
    }

    fn seek_to_first(&mut self) {
        self.rebuild(Direction::Forward, |_, child| child.seek_to_first());
    }

    fn seek_to_last(&mut self) {
        self.rebuild(Direction::Backward, |_, child| child.seek_to_last());
    }

    fn seek(&mut self, target: &[u8]) {
        self.rebuild(Direction::Forward, |_, child| child.seek(target));
    }

    fn seek_for_prev(&mut self, target: &[u8]) {
        self.rebuild(Direction::Backward, |_, child| child.seek_for_prev(target));
    }

    fn next(&mut self) {
        assert!(self.valid(), "next needs a valid iterator");
        if self.direction != Direction::Forward {
            self.turn(Direction::Forward);
            if self.failure.is_some() {
                return;
            }
        }
        self.children[self.heap[0].child].next();
        self.settle_root();
    }

    fn prev(&mut self) {
        assert!(self.valid(), "prev needs a valid iterator");
        if self.direction != Direction::Backward {
            self.turn(Direction::Backward);
            if self.failure.is_some() {
                return;
            }
        }
        self.children[self.heap[0].child].prev();
        self.settle_root();
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.children[self.heap[0].child].key()
    }

    #[inline]
    fn value(&self) -> &[u8] {
        self.children[self.heap[0].child].value()
    }

    fn is_cached(&self) -> bool {
        self.children[self.heap[0].child].is_cached()
    }

    fn status(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests;
