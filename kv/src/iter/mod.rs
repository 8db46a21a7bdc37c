//! Iterators over internal keys: the one interface that memtables, tables and merges share.

mod db_iter;
mod merge;
mod run;
mod visible;

pub use db_iter::DbIterator;
pub(crate) use db_iter::Origin;
pub use merge::MergingIterator;
pub(crate) use run::RunIterator;
pub(crate) use visible::VisibleIterator;

use crate::error::Result;

/// Walks internal keys in order, in both directions. Made unpositioned (not valid).
///
/// An iterator that fails becomes invalid and stays so until the next seek;
/// [`InternalIterator::status`] tells a failure from the end. Whoever reads to the end must ask
/// for the status, or would take a failed device for missing keys.
pub trait InternalIterator: Send {
    /// True where the iterator is at an entry.
    fn valid(&self) -> bool;

    /// Moves to the first entry.
    fn seek_to_first(&mut self);

    /// Moves to the last entry.
    fn seek_to_last(&mut self);

    /// Moves to the first entry at or after `target`, an internal key.
    fn seek(&mut self, target: &[u8]);

    /// Moves to the last entry at or before `target`, an internal key.
    fn seek_for_prev(&mut self, target: &[u8]);

    /// Moves to the next entry. The iterator must be valid.
    fn next(&mut self);

    /// Moves to the previous entry. The iterator must be valid.
    fn prev(&mut self);

    /// The internal key here. The iterator must be valid.
    fn key(&self) -> &[u8];

    /// The value here. The iterator must be valid.
    fn value(&self) -> &[u8];

    /// True where the entry here was found in the cache.
    fn is_cached(&self) -> bool {
        false
    }

    /// The failure that made the iterator invalid, if one did.
    fn status(&self) -> Result<()>;
}

impl<I: InternalIterator + ?Sized> InternalIterator for Box<I> {
    fn valid(&self) -> bool {
        (**self).valid()
    }

    fn seek_to_first(&mut self) {
        (**self).seek_to_first();
    }

    fn seek_to_last(&mut self) {
        (**self).seek_to_last();
    }

    fn seek(&mut self, target: &[u8]) {
        (**self).seek(target);
    }

    fn seek_for_prev(&mut self, target: &[u8]) {
        (**self).seek_for_prev(target);
    }

    fn next(&mut self) {
        (**self).next();
    }

    fn prev(&mut self) {
        (**self).prev();
    }

    fn key(&self) -> &[u8] {
        (**self).key()
    }

    fn value(&self) -> &[u8] {
        (**self).value()
    }

    fn is_cached(&self) -> bool {
        (**self).is_cached()
    }

    fn status(&self) -> Result<()> {
        (**self).status()
    }
}
