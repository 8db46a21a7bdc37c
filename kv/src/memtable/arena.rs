//! A bump allocator shared by many threads, freed all at once.
//!
//! Memory comes in chunks. An allocation is one `fetch_add` on the current chunk; whoever finds
//! the chunk full takes the lock and puts a new one in its place. What remains at the end of a
//! chunk is lost. A request of over a quarter of the next chunk gets a chunk of its own, so that
//! little is. Chunks double in size up to a huge page of their own: a search in a large memtable
//! jumps about, and with small pages each jump costs a walk of the page tables as well.
//!
//! Invariants: chunks never move and live until the arena is dropped; a byte range is handed out
//! once; every range is aligned to [`ALIGN`]. Memory is handed out uninitialised.
#![expect(unsafe_code, reason = "a bump allocator hands out raw memory")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::env::ledger::{Charge, MemoryKind, MemoryLedger};

/// Alignment in bytes of every allocation.
pub(super) const ALIGN: usize = 8;

/// Sizes of chunks in bytes: the first is small, because many memtables stay almost empty; the
/// largest is a huge page.
const FIRST_CHUNK: usize = 16 << 10;
const FULL_CHUNK: usize = 2 << 20;

const _: () = assert!(FIRST_CHUNK.is_power_of_two() && FULL_CHUNK.is_power_of_two());

/// A chunk's header; its memory is a separate allocation.
struct Chunk {
    base: NonNull<u8>,
    len: usize,
    /// Bytes asked for so far; goes beyond `len` once the chunk is full.
    used: AtomicUsize,
}

/// The allocator.
pub(super) struct Arena {
    /// One of `chunks`.
    current: AtomicPtr<Chunk>,
    /// Bytes of every chunk.
    reserved: AtomicUsize,
    /// Every chunk, from `Box::into_raw`, freed when the arena is dropped. (A box that is moved,
    /// as a vector moves its elements, may not be pointed into.) The lock is held to add one.
    chunks: Mutex<Vec<NonNull<Chunk>>>,
    /// The charge for each chunk, and where further ones are charged. Taken after `chunks`.
    charges: Mutex<Vec<Charge>>,
    ledger: Option<Arc<MemoryLedger>>,
}

// SAFETY: chunks are reached through atomics and the lock, and a byte range is handed out once.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// An empty arena, whose chunks are charged to the ledger if there is one.
    pub(super) fn new(ledger: Option<Arc<MemoryLedger>>) -> Self {
        let charge = |ledger: &Arc<MemoryLedger>| ledger.charge(MemoryKind::Memtable, FIRST_CHUNK);
        let charges = ledger.iter().map(charge).collect();
        let first = Chunk::new(FIRST_CHUNK);
        Arena {
            current: AtomicPtr::new(first.as_ptr()),
            reserved: AtomicUsize::new(FIRST_CHUNK),
            chunks: Mutex::new(vec![first]),
            charges: Mutex::new(charges),
            ledger,
        }
    }

    /// `size` bytes, aligned to [`ALIGN`], uninitialised, valid while the arena lives.
    #[inline]
    pub(super) fn alloc(&self, size: usize) -> NonNull<u8> {
        let size = size.next_multiple_of(ALIGN);
        // SAFETY: `current` always points at a chunk that the arena owns until it is dropped.
        let chunk = unsafe { &*self.current.load(Ordering::Acquire) };
        match chunk.take(size) {
            Some(ptr) => ptr,
            None => self.alloc_slow(size),
        }
    }

    /// Bytes taken from the system, less what the current chunk has left.
    pub(super) fn memory(&self) -> usize {
        // SAFETY: as in `alloc`.
        let chunk = unsafe { &*self.current.load(Ordering::Acquire) };
        let left = chunk.len.saturating_sub(chunk.used.load(Ordering::Relaxed));
        self.reserved.load(Ordering::Relaxed).saturating_sub(left)
    }

    #[cold]
    fn alloc_slow(&self, size: usize) -> NonNull<u8> {
        let mut chunks = self.chunks.lock();
        // SAFETY: as in `alloc`.
        let chunk = unsafe { &*self.current.load(Ordering::Acquire) };
        // Another thread may have brought a new chunk while this one waited for the lock.
        if let Some(ptr) = chunk.take(size) {
            return ptr;
        }
        let next_len = (chunk.len * 2).min(FULL_CHUNK);
        if size > next_len / 4 {
            let own = self.add_chunk(&mut chunks, size);
            // SAFETY: as in `alloc`.
            return unsafe { &*own }
                .take(size)
                .expect("the chunk was made for it");
        }
        let fresh = self.add_chunk(&mut chunks, next_len);
        // SAFETY: as in `alloc`.
        let ptr = unsafe { &*fresh }.take(size).expect("the chunk is fresh");
        self.current.store(fresh, Ordering::Release);
        ptr
    }

    fn add_chunk(&self, chunks: &mut Vec<NonNull<Chunk>>, len: usize) -> *mut Chunk {
        self.reserved.fetch_add(len, Ordering::Relaxed);
        if let Some(ledger) = &self.ledger {
            let charge = ledger.charge(MemoryKind::Memtable, len);
            self.charges.lock().push(charge);
        }
        let chunk = Chunk::new(len);
        chunks.push(chunk);
        chunk.as_ptr()
    }
}

impl Chunk {
    fn new(len: usize) -> NonNull<Self> {
        let layout = Self::layout(len);
        // SAFETY: no chunk is empty.
        let Some(base) = NonNull::new(unsafe { alloc(layout) }) else {
            handle_alloc_error(layout)
        };
        if len == FULL_CHUNK {
            Self::ask_for_huge_pages(base, len);
        }
        let chunk = Box::new(Chunk {
            base,
            len,
            used: AtomicUsize::new(0),
        });
        NonNull::from(Box::leak(chunk))
    }

    fn layout(len: usize) -> Layout {
        let align = if len == FULL_CHUNK { FULL_CHUNK } else { ALIGN };
        Layout::from_size_align(len, align).expect("a chunk fits in the address space")
    }

    /// A hint; a system without huge pages goes on with small ones.
    fn ask_for_huge_pages(base: NonNull<u8>, len: usize) {
        if cfg!(all(target_os = "linux", not(miri))) {
            // SAFETY: the range is ours, and the advice changes no byte of it.
            unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        }
    }

    #[inline]
    fn take(&self, size: usize) -> Option<NonNull<u8>> {
        // A full chunk is left alone, so that `used` cannot creep up to an overflow.
        if self.used.load(Ordering::Relaxed) > self.len {
            return None;
        }
        let start = self.used.fetch_add(size, Ordering::Relaxed);
        if start > self.len || size > self.len - start {
            return None;
        }
        // SAFETY: `start + size` lies within the chunk, and `fetch_add` gave it to us alone.
        Some(unsafe { self.base.add(start) })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for chunk in self.chunks.get_mut().drain(..) {
            // SAFETY: made by `Chunk::new` from a box, and given up only here.
            drop(unsafe { Box::from_raw(chunk.as_ptr()) });
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout and freed only here.
        unsafe { dealloc(self.base.as_ptr(), Self::layout(self.len)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_aligned_and_disjoint_across_threads() {
        let arena = Arena::new(None);
        let rounds: usize = if cfg!(miri) { 40 } else { 3000 };
        let mut ranges: Vec<(usize, usize)> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4usize)
                .map(|worker| {
                    let arena = &arena;
                    scope.spawn(move || {
                        (0..rounds)
                            .map(|round| {
                                let size = match round % 500 {
                                    7 => 400 << 10,
                                    odd => 1 + (odd * 37 + worker) % 900,
                                };
                                let ptr = arena.alloc(size);
                                // SAFETY: the range is ours.
                                unsafe { ptr.write_bytes(worker as u8, size) };
                                (ptr.addr().get(), size)
                            })
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().expect("no panic"))
                .collect()
        });
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "ranges overlap");
            assert!(pair[0].0.is_multiple_of(ALIGN));
        }
        let total: usize = ranges.iter().map(|range| range.1).sum();
        assert!(
            arena.memory() >= total,
            "memory counts all that was handed out"
        );
        assert!(
            arena.memory() < total + total / 2 + (4 << 20),
            "and little else"
        );
    }
}
