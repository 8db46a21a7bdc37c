//! A skiplist of internal keys in an arena: lock-free inserts and reads, no removal.
//!
//! After RocksDB's InlineSkipList, with one addition: a link keeps, beside the pointer, the head
//! (first eight bytes) of the user key it leads to, so that a search turns down without touching
//! the node it turns away from. On lists larger than the cache most of a search is such misses.
//!
//! ```text
//! node, aligned to 8; the upper links lie below the node's address
//!   off      len  field
//!   -16*i     16  link of level i >= 1: next pointer, head of the next node's user key
//!     0        8  next pointer of level 0
//!     8        4  length of the internal key
//!    12        4  length of the value
//!    16        n  internal key
//!  16+n        m  value
//! 16+n+m        8  checksum of the entry, in a protected list (protection.rs)
//! ```
//!
//! Invariants:
//! - a node is written whole before a release store makes it reachable at level 0, and is linked
//!   upward from there; from then on only its links change;
//! - a pointer only ever comes to lead to a *smaller* node (new nodes go in between);
//! - heads are hints. One may be that of a node that the pointer led to earlier, so a search
//!   that turns down on it may do so too early, which costs time alone: level 0 is walked by
//!   keys, and a node is linked between neighbours whose keys were compared.
//!
//! What is not promised: a reader may miss a key whose insert has not returned. The database
//! publishes a sequence number only after its insert has.
#![expect(
    unsafe_code,
    reason = "nodes are variable-sized and linked by raw pointers"
)]

use std::cell::{Cell, UnsafeCell};
use std::cmp::Ordering as Order;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use super::arena::{ALIGN, Arena};
use crate::env::ledger::MemoryLedger;
use crate::key::{TRAILER_LEN, compare_user, key_head, user_key};
use crate::write::protection::PROTECTION_LEN;

/// Levels of the tallest node: enough for some million nodes at one in [`BRANCHING`] a level.
const MAX_HEIGHT: usize = 20;

/// One node in this many reaches the next level. Turning down costs no miss thanks to the heads,
/// so many levels with few steps on each are best; without heads it would be 4.
const BRANCHING: u64 = 2;

/// The head of a link that leads nowhere.
const NO_HEAD: u64 = u64::MAX;

/// A link of level 1 or above.
struct Link {
    next: AtomicPtr<Node>,
    head: AtomicU64,
}

/// The fixed part of a node at its address; see the layout above.
#[repr(C)]
pub(super) struct Node {
    next: AtomicPtr<Node>,
    key_len: u32,
    value_len: u32,
}

const _: () = assert!(size_of::<Link>() == 16 && size_of::<Node>() == 16);
const _: () = assert!(align_of::<Node>() <= ALIGN);

/// A pointer to a node of a list that outlives it, or null.
pub(super) type NodePtr = *const Node;

/// Where a search ended: on each level a node before the target, and what follows on level 0.
struct Splice {
    prev: [NodePtr; MAX_HEIGHT],
    next: NodePtr,
}

/// The list.
pub(super) struct SkipList {
    arena: Arena,
    /// A node of full height without a key, before all others.
    root: NonNull<Node>,
    /// Levels in use.
    height: AtomicUsize,
    /// Nodes carry a checksum.
    protected: bool,
    /// True while a thread uses `hint`.
    hint_taken: AtomicBool,
    /// The splice of the last insert that got hold of it: where a sequential writer goes on.
    hint: UnsafeCell<Splice>,
}

// SAFETY: nodes are immutable but for their atomic links; `hint` is used by one thread at a
// time, guarded by `hint_taken`; the arena is shared safely by itself.
unsafe impl Send for SkipList {}
// SAFETY: as above.
unsafe impl Sync for SkipList {}

thread_local! {
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

/// A height drawn so that one node in [`BRANCHING`] rises a level.
fn random_height() -> usize {
    let mut random = RANDOM.with(|state| {
        // SplitMix64: any state is a good one, zero too.
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mixed = (next ^ next >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    });
    let mut height = 1;
    while height < MAX_HEIGHT && random < u64::MAX / BRANCHING {
        random = random.wrapping_mul(BRANCHING);
        height += 1;
    }
    height
}

/// Asks the processor to bring a node's first cache line.
#[inline]
fn prefetch(node: NodePtr) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch reads nothing as far as the program can tell, from any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(node.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = node;
}

/// What is looked for: an internal key in parts.
#[derive(Clone, Copy)]
struct Target<'a> {
    user_key: &'a [u8],
    trailer: u64,
    head: u64,
}

impl<'a> Target<'a> {
    fn new(internal_key: &'a [u8]) -> Self {
        let user_key = user_key(internal_key);
        Target {
            user_key,
            trailer: crate::key::trailer(internal_key),
            head: key_head(user_key),
        }
    }
}

impl SkipList {
    /// An empty list, whose memory is charged to the ledger if there is one.
    /// The nodes of a `protected` one carry checksums.
    pub(super) fn new(ledger: Option<Arc<MemoryLedger>>, protected: bool) -> Self {
        let arena = Arena::new(ledger);
        let root = Self::alloc_node(&arena, MAX_HEIGHT, 0, 0, 0);
        SkipList {
            arena,
            root,
            height: AtomicUsize::new(1),
            protected,
            hint_taken: AtomicBool::new(false),
            hint: UnsafeCell::new(Splice {
                prev: [root.as_ptr(); MAX_HEIGHT],
                next: ptr::null(),
            }),
        }
    }

    /// See [`super::MemTable::seal`].
    pub(super) fn seal(&self) {
        self.arena.seal();
    }

    /// Bytes of memory in use.
    pub(super) fn memory(&self) -> usize {
        self.arena.memory()
    }

    /// Inserts a version of a key. It is in the list on return. `checksum` is kept in a protected list.
    ///
    /// # Panics
    /// If the list holds the same user key with the same trailer.
    pub(super) fn insert(&self, user_key: &[u8], trailer: u64, value: &[u8], checksum: u64) {
        let height = random_height();
        let node = self.new_node(height, user_key, trailer, value, checksum);
        let target = Target {
            user_key,
            trailer,
            head: key_head(user_key),
        };
        self.height.fetch_max(height, Ordering::Relaxed);
        if self.hint_taken.swap(true, Ordering::Acquire) {
            let mut splice = Splice {
                prev: [self.root.as_ptr(); MAX_HEIGHT],
                next: ptr::null(),
            };
            self.find_splice(target, &mut splice);
            self.link(node, height, target, &mut splice);
        } else {
            // SAFETY: `hint_taken` was false and is true now: the splice is this thread's.
            let splice = unsafe { &mut *self.hint.get() };
            if !self.is_between(target, splice.prev[0], splice.next) {
                self.find_splice(target, splice);
            }
            self.link(node, height, target, splice);
            self.hint_taken.store(false, Ordering::Release);
        }
    }

    /// The first node at or after an internal key, or null.
    pub(super) fn seek(&self, internal_key: &[u8]) -> NodePtr {
        self.find(Target::new(internal_key)).1
    }

    /// The last node before an internal key, or null.
    pub(super) fn seek_before(&self, internal_key: &[u8]) -> NodePtr {
        self.unless_root(self.find(Target::new(internal_key)).0)
    }

    /// The first node, or null.
    pub(super) fn first(&self) -> NodePtr {
        self.next_of(self.root.as_ptr(), 0)
    }

    /// The last node, or null.
    pub(super) fn last(&self) -> NodePtr {
        let mut node: NodePtr = self.root.as_ptr();
        for level in (0..self.height.load(Ordering::Relaxed)).rev() {
            loop {
                let next = self.next_of(node, level);
                if next.is_null() {
                    break;
                }
                node = next;
            }
        }
        self.unless_root(node)
    }

    /// The node after `node` (of this list, not null), or null.
    #[inline]
    pub(super) fn next(&self, node: NodePtr) -> NodePtr {
        let next = self.next_of(node, 0);
        if !next.is_null() {
            // A walk meets one cache miss per node; this one overlaps with the caller's work.
            prefetch(self.next_of(next, 0));
        }
        next
    }

    /// The internal key of `node`, which must be of this list and not null.
    #[inline]
    pub(super) fn key(&self, node: NodePtr) -> &[u8] {
        // SAFETY: the node lives as long as the arena, that is `self`, its key follows its fixed
        // part and is never written after the node became reachable.
        unsafe {
            let data = node.cast::<u8>().add(size_of::<Node>());
            std::slice::from_raw_parts(data, (*node).key_len as usize)
        }
    }

    /// The checksum of `node`, which must be of this list and not null; `None` in a list that keeps
    /// none.
    pub(super) fn checksum(&self, node: NodePtr) -> Option<u64> {
        if !self.protected {
            return None;
        }
        let mut checksum = [0; PROTECTION_LEN];
        // SAFETY: as in `key`; in a protected list the checksum follows the value, written with it. The
        // pointer is the node's, since the value's may not leave the value.
        unsafe {
            let lens = (*node).key_len as usize + (*node).value_len as usize;
            let at = node.cast::<u8>().add(size_of::<Node>() + lens);
            ptr::copy_nonoverlapping(at, checksum.as_mut_ptr(), PROTECTION_LEN);
        }
        Some(u64::from_le_bytes(checksum))
    }

    /// The value of `node`, which must be of this list and not null.
    #[inline]
    pub(super) fn value(&self, node: NodePtr) -> &[u8] {
        // SAFETY: as in `key`; the value follows the key.
        unsafe {
            let data = node
                .cast::<u8>()
                .add(size_of::<Node>() + (*node).key_len as usize);
            std::slice::from_raw_parts(data, (*node).value_len as usize)
        }
    }

    fn unless_root(&self, node: NodePtr) -> NodePtr {
        if ptr::eq(node, self.root.as_ptr()) {
            ptr::null()
        } else {
            node
        }
    }

    /// The link of a level from 1 up.
    #[inline]
    fn link_of(&self, node: NodePtr, level: usize) -> &Link {
        debug_assert!(level >= 1, "level 0 is in the node");
        // SAFETY: callers reach a node at `level` only through a link of that level, so the node
        // has it; links are laid out downward from the node's address and live with the arena.
        unsafe { &*node.cast::<Link>().sub(level) }
    }

    #[inline]
    fn pointer_of(&self, node: NodePtr, level: usize) -> &AtomicPtr<Node> {
        if level == 0 {
            // SAFETY: a node of this list lives with the arena.
            unsafe { &(*node).next }
        } else {
            &self.link_of(node, level).next
        }
    }

    #[inline]
    fn next_of(&self, node: NodePtr, level: usize) -> NodePtr {
        self.pointer_of(node, level).load(Ordering::Acquire)
    }

    /// Orders a node's key against the target.
    #[inline]
    fn compare(&self, node: NodePtr, target: Target<'_>) -> Order {
        let key = self.key(node);
        compare_user(user_key(key), target.user_key)
            .then_with(|| target.trailer.cmp(&crate::key::trailer(key)))
    }

    /// The neighbours of level 0 between which the target lies: the last node before it, maybe
    /// the root, and the first at or after it, maybe null.
    fn find(&self, target: Target<'_>) -> (NodePtr, NodePtr) {
        let mut prev: NodePtr = self.root.as_ptr();
        let mut turn = ptr::null();
        for level in (1..self.height.load(Ordering::Relaxed)).rev() {
            (prev, turn) = self.walk(target, prev, turn, level);
        }
        loop {
            let next = self.next_of(prev, 0);
            if next.is_null() || self.compare(next, target) != Order::Less {
                return (prev, next);
            }
            prev = next;
        }
    }

    /// Walks along a level from 1 up, from `prev`, which is before the target. Returns a node
    /// before the target and the node where the walk turned: the end, one whose head or key says
    /// that it is not before the target, or the one where the level above turned.
    #[inline]
    fn walk(
        &self,
        target: Target<'_>,
        mut prev: NodePtr,
        turned_above: NodePtr,
        level: usize,
    ) -> (NodePtr, NodePtr) {
        loop {
            let link = self.link_of(prev, level);
            let next: NodePtr = link.next.load(Ordering::Acquire);
            if next.is_null()
                || ptr::eq(next, turned_above)
                || link.head.load(Ordering::Relaxed) > target.head
                || self.compare(next, target) != Order::Less
            {
                return (prev, next);
            }
            prev = next;
        }
    }

    /// True where the target lies between two neighbours of level 0, `prev` maybe the root and
    /// `next` maybe null.
    fn is_between(&self, target: Target<'_>, prev: NodePtr, next: NodePtr) -> bool {
        (ptr::eq(prev, self.root.as_ptr()) || self.compare(prev, target) == Order::Less)
            && (next.is_null() || self.compare(next, target) == Order::Greater)
    }

    /// Fills the splice for a target. Levels above the list's height keep the root and null.
    fn find_splice(&self, target: Target<'_>, splice: &mut Splice) {
        let mut prev: NodePtr = self.root.as_ptr();
        let mut turn = ptr::null();
        for level in (1..MAX_HEIGHT).rev() {
            (prev, turn) = self.walk(target, prev, turn, level);
            splice.prev[level] = prev;
        }
        splice.prev[0] = prev;
    }

    /// Links a node that is whole at each of its levels, from the bottom up.
    fn link(&self, node: NonNull<Node>, height: usize, target: Target<'_>, splice: &mut Splice) {
        let node: NodePtr = node.as_ptr();
        for level in 0..height {
            let mut prev = splice.prev[level];
            loop {
                let next;
                (prev, next) = self.narrow(target, prev, level);
                self.pointer_of(node, level)
                    .store(next.cast_mut(), Ordering::Relaxed);
                if level > 0 && !next.is_null() {
                    let next_head = key_head(user_key(self.key(next)));
                    self.link_of(node, level)
                        .head
                        .store(next_head, Ordering::Relaxed);
                }
                let linked = self.pointer_of(prev, level).compare_exchange(
                    next.cast_mut(),
                    node.cast_mut(),
                    Ordering::Release,
                    Ordering::Relaxed,
                );
                if linked.is_ok() {
                    if level == 0 {
                        splice.next = next;
                    } else {
                        // Two inserts through one link may come here in either order: the
                        // smaller head, that of the nearer node, must stay.
                        let head = &self.link_of(prev, level).head;
                        head.fetch_min(target.head, Ordering::Relaxed);
                    }
                    break;
                }
            }
            splice.prev[level] = node;
        }
    }

    /// The neighbours of the target at `level`, looking at every node from `prev` on: a node is
    /// linked by what its neighbours are, not by what a head told of them.
    fn narrow(&self, target: Target<'_>, mut prev: NodePtr, level: usize) -> (NodePtr, NodePtr) {
        loop {
            let next = self.next_of(prev, level);
            if next.is_null() {
                return (prev, next);
            }
            match self.compare(next, target) {
                Order::Less => prev = next,
                Order::Greater => return (prev, next),
                Order::Equal => panic!("a key was inserted twice with one sequence number"),
            }
        }
    }

    fn new_node(
        &self,
        height: usize,
        user_key: &[u8],
        trailer: u64,
        value: &[u8],
        checksum: u64,
    ) -> NonNull<Node> {
        let key_len = user_key.len() + TRAILER_LEN;
        let extra = if self.protected { PROTECTION_LEN } else { 0 };
        let node = Self::alloc_node(&self.arena, height, key_len, value.len(), extra);
        // SAFETY: the node was allocated with room for all of it after its fixed part, and
        // nobody else can reach it yet.
        unsafe {
            let key = node.as_ptr().cast::<u8>().add(size_of::<Node>());
            ptr::copy_nonoverlapping(user_key.as_ptr(), key, user_key.len());
            let trailer_at = key.add(user_key.len());
            ptr::copy_nonoverlapping(trailer.to_le_bytes().as_ptr(), trailer_at, TRAILER_LEN);
            let value_at = key.add(key_len);
            ptr::copy_nonoverlapping(value.as_ptr(), value_at, value.len());
            let checksum = checksum.to_le_bytes();
            ptr::copy_nonoverlapping(checksum.as_ptr(), value_at.add(value.len()), extra);
        }
        node
    }

    /// A node with empty links and room for key and value.
    fn alloc_node(
        arena: &Arena,
        height: usize,
        key_len: usize,
        value_len: usize,
        extra: usize,
    ) -> NonNull<Node> {
        let tower = (height - 1) * size_of::<Link>();
        let memory = arena.alloc(tower + size_of::<Node>() + key_len + value_len + extra);
        // SAFETY: the memory holds the tower, the fixed part and the data, is aligned for them
        // and ours alone.
        unsafe {
            let node = memory.add(tower).cast::<Node>();
            for level in 1..height {
                node.cast::<Link>().sub(level).write(Link::empty());
            }
            node.write(Node {
                next: AtomicPtr::new(ptr::null_mut()),
                key_len: u32::try_from(key_len).expect("keys are below 4 GiB"),
                value_len: u32::try_from(value_len).expect("values are below 4 GiB"),
            });
            node
        }
    }
}

impl Link {
    fn empty() -> Self {
        Link {
            next: AtomicPtr::new(ptr::null_mut()),
            head: AtomicU64::new(NO_HEAD),
        }
    }
}
