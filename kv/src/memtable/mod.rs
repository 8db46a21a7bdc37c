//! The memtable: the newest writes in memory, ordered, before they are flushed to a table.
//!
//! Any number of threads insert and read at once without locks; nothing is removed. A memtable
//! is freed as a whole when the last `Arc` goes, so iterators and borrowed values are safe
//! through a flush.
//!
//! Its tests are small enough for Miri: `cargo +nightly miri test -p lavakv memtable`.

mod arena;
mod skiplist;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::skiplist::SkipList;
use crate::env::ledger::MemoryLedger;
use crate::error::{Error, Result};
use crate::iter::InternalIterator;
use crate::key::{InternalKeyRef, LookupKey, SeqNo, ValueKind, pack_trailer};
use crate::write::protection;

/// An ordered set of versions of keys in memory.
pub struct MemTable {
    id: u64,
    protected: bool,
    list: SkipList,
    entries: AtomicU64,
}

impl MemTable {
    /// An empty memtable; `id` is for the owner's use.
    pub fn new(id: u64) -> Arc<Self> {
        MemTable::with(id, None, false)
    }

    /// An empty memtable whose memory is charged to the ledger, if there is one. A `protected` one
    /// keeps a checksum with each entry.
    pub(crate) fn with(id: u64, ledger: Option<Arc<MemoryLedger>>, protected: bool) -> Arc<Self> {
        Arc::new(MemTable {
            id,
            list: SkipList::new(ledger, protected),
            protected,
            entries: AtomicU64::new(0),
        })
    }

    /// The number given at creation.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Adds a version of `key`. It can be read on return; a concurrent reader may see it earlier.
    ///
    /// # Panics
    /// If `key` was inserted with `seq` and `kind` before.
    pub fn insert(&self, seq: SeqNo, kind: ValueKind, key: &[u8], value: &[u8]) {
        let trailer = pack_trailer(seq, kind as u8);
        let checksum = match self.protected {
            true => protection::in_memtable(protection::of_entry(kind, key, value), trailer),
            false => 0,
        };
        self.list.insert(key, trailer, value, checksum);
        self.entries.fetch_add(1, Ordering::Relaxed);
    }

    /// Walks the memtable and checks the checksum of every entry it comes to, if they have one; one that
    /// disagrees ends the walk with [`Error::Corrupt`].
    pub(crate) fn checked_iter(self: &Arc<Self>) -> MemTableIterator {
        MemTableIterator {
            checked: true,
            ..self.iter()
        }
    }

    /// The newest version of `user_key` at or below `snapshot`.
    pub fn get(&self, user_key: &[u8], snapshot: SeqNo) -> Option<(SeqNo, ValueKind, &[u8])> {
        self.get_lookup(&LookupKey::new(user_key, snapshot))
    }

    /// Like [`MemTable::get`], for a lookup that goes on to older memtables and tables.
    pub fn get_lookup(&self, lookup: &LookupKey) -> Option<(SeqNo, ValueKind, &[u8])> {
        let node = self.list.seek(lookup.internal());
        if node.is_null() {
            return None;
        }
        let found = InternalKeyRef::decode(self.list.key(node)).expect("insert takes known kinds");
        (found.user_key == lookup.user_key())
            .then(|| (found.seq, found.kind, self.list.value(node)))
    }

    /// Like [`MemTable::get_lookup`], with a value that keeps the memtable instead of a borrow.
    pub(crate) fn get_pinned(
        self: &Arc<Self>,
        lookup: &LookupKey,
    ) -> Option<(ValueKind, PinnedEntry)> {
        let node = self.list.seek(lookup.internal());
        if node.is_null() {
            return None;
        }
        let found = InternalKeyRef::decode(self.list.key(node)).expect("insert takes known kinds");
        (found.user_key == lookup.user_key()).then(|| {
            let entry = PinnedEntry {
                table: Arc::clone(self),
                node,
            };
            (found.kind, entry)
        })
    }

    /// Walks the memtable as it grows: entries inserted behind the iterator's back may show up.
    pub fn iter(self: &Arc<Self>) -> MemTableIterator {
        MemTableIterator {
            table: Arc::clone(self),
            node: std::ptr::null(),
            checked: false,
            failure: None,
        }
    }

    /// Tells the ledger, if there is one, that nothing more will be inserted. Called once.
    pub(crate) fn seal(&self) {
        self.list.seal();
    }

    /// Bytes of memory in use, allocation slack included.
    pub fn approximate_memory(&self) -> usize {
        self.list.memory()
    }

    /// Versions inserted so far.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// True where nothing was inserted.
    pub fn is_empty(&self) -> bool {
        self.entries() == 0
    }
}

impl std::fmt::Debug for MemTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemTable {}: {} entries", self.id, self.entries())
    }
}

/// An entry of a memtable, which it keeps alive.
#[derive(Clone)]
pub(crate) struct PinnedEntry {
    table: Arc<MemTable>,
    /// A node of `table`.
    node: skiplist::NodePtr,
}

impl PinnedEntry {
    /// The entry's value.
    #[inline]
    pub(crate) fn value(&self) -> &[u8] {
        self.table.list.value(self.node)
    }
}

/// Walks a memtable, which it keeps alive.
pub struct MemTableIterator {
    table: Arc<MemTable>,
    /// A node of `table`, or null where the iterator is not valid.
    node: skiplist::NodePtr,
    checked: bool,
    failure: Option<Error>,
}

impl MemTableIterator {
    #[inline]
    fn go_to(&mut self, node: skiplist::NodePtr) {
        self.node = node;
        if self.checked {
            self.check();
        }
    }

    fn check(&mut self) {
        self.failure = None;
        if self.node.is_null() {
            return;
        }
        let list = &self.table.list;
        let Some(checksum) = list.checksum(self.node) else {
            return;
        };
        let (key, value) = (list.key(self.node), list.value(self.node));
        let computed = InternalKeyRef::decode(key).map(|parts| {
            let entry = protection::of_entry(parts.kind, parts.user_key, value);
            protection::in_memtable(entry, crate::key::trailer(key))
        });
        if computed != Some(checksum) {
            let detail = "an entry has changed since it was written";
            let sequence = crate::key::sequence(key);
            let name = format!("memtable {}, entry {sequence}", self.table.id);
            self.failure = Some(Error::corrupt(name, 0_u64, detail));
            self.node = std::ptr::null();
        }
    }
}

mod send {
    #![expect(unsafe_code, reason = "a raw pointer is not Send by itself")]

    // SAFETY: the node belongs to the memtable that the iterator keeps alive, and a memtable can
    // be read from any thread.
    unsafe impl Send for super::MemTableIterator {}
    // SAFETY: as above.
    unsafe impl Send for super::PinnedEntry {}
    // SAFETY: a node's key and value are never written once it can be reached.
    unsafe impl Sync for super::PinnedEntry {}
}

impl InternalIterator for MemTableIterator {
    #[inline]
    fn valid(&self) -> bool {
        !self.node.is_null()
    }

    fn seek_to_first(&mut self) {
        self.go_to(self.table.list.first());
    }

    fn seek_to_last(&mut self) {
        self.go_to(self.table.list.last());
    }

    fn seek(&mut self, target: &[u8]) {
        self.go_to(self.table.list.seek(target));
    }

    fn seek_for_prev(&mut self, target: &[u8]) {
        let list = &self.table.list;
        let mut node = list.seek(target);
        if node.is_null() || list.key(node) != target {
            node = list.seek_before(target);
        }
        self.go_to(node);
    }

    #[inline]
    fn next(&mut self) {
        assert!(self.valid(), "next needs a valid iterator");
        self.go_to(self.table.list.next(self.node));
    }

    fn prev(&mut self) {
        assert!(self.valid(), "prev needs a valid iterator");
        self.go_to(self.table.list.seek_before(self.table.list.key(self.node)));
    }

    #[inline]
    fn key(&self) -> &[u8] {
        assert!(self.valid(), "key needs a valid iterator");
        self.table.list.key(self.node)
    }

    #[inline]
    fn value(&self) -> &[u8] {
        assert!(self.valid(), "value needs a valid iterator");
        self.table.list.value(self.node)
    }

    fn status(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }
}
