//! A bump allocator shared by many threads, freed all at once.
//!
//! Memory comes in chunks. An allocation is one `fetch_add` on the current chunk; whoever finds
//! the chunk full takes the lock and puts a new one in its place. What remains at the end of a
//! chunk is lost. A request of over a quarter of the next chunk gets a chunk of its own, so that
//! little is. Chunks grow with the arena up to a huge page of their own: a search in a large memtable
//! jumps about, and with small pages each jump costs a walk of the page tables as well.
//!
//! Chunks of [`MAPPED_MIN`] bytes and more are mapped from the system and unmapped with the arena, not
//! taken from the process's allocator: a memtable lives about as long as what is allocated beside
//! it, and what a general allocator gets back in between such neighbours it keeps. (With glibc a
//! process under a limit of 64 MiB grew to 156 MiB with at most 48 MiB allocated.)
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

/// Bytes from which a chunk is a mapping of its own.
const MAPPED_MIN: usize = 64 << 10;

/// Chunks are mapped. Elsewhere, and under Miri, they come from the allocator.
const MAPS: bool = cfg!(all(target_os = "linux", not(miri)));

const _: () = assert!(FIRST_CHUNK.is_power_of_two() && FULL_CHUNK.is_power_of_two());
const _: () = assert!(FIRST_CHUNK < MAPPED_MIN && MAPPED_MIN <= FULL_CHUNK);

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
    /// Bytes that the ledger was told to be immutable.
    sealed: AtomicUsize,
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
            sealed: AtomicUsize::new(0),
        }
    }

    /// Tells the ledger that nothing more will be allocated. Called once.
    pub(super) fn seal(&self) {
        let bytes = self.reserved.load(Ordering::Relaxed);
        let before = self.sealed.swap(bytes, Ordering::Relaxed);
        assert_eq!(before, 0, "a memtable is sealed once");
        if let Some(ledger) = &self.ledger {
            ledger.seal(bytes);
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
        // As much again as there is, chunks for one request included: large requests make chunks grow
        // until they share them.
        let reserved = self.reserved.load(Ordering::Relaxed);
        let next_len = (reserved + 1).next_power_of_two().min(FULL_CHUNK);
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
        let base = if Self::is_mapped(len) {
            Self::map(len)
        } else {
            // SAFETY: no chunk is empty.
            NonNull::new(unsafe { alloc(Self::layout(len)) })
        };
        let Some(base) = base else {
            handle_alloc_error(Self::layout(len))
        };
        let chunk = Box::new(Chunk {
            base,
            len,
            used: AtomicUsize::new(0),
        });
        NonNull::from(Box::leak(chunk))
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, ALIGN).expect("a chunk fits in the address space")
    }

    fn is_mapped(len: usize) -> bool {
        MAPS && len >= MAPPED_MIN
    }

    /// A mapping of `len` bytes; one of a huge page's length lies on a huge page.
    fn map(len: usize) -> Option<NonNull<u8>> {
        let huge = len == FULL_CHUNK;
        let mapped = if huge { 2 * len } else { len };
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping, at a place that the system chooses.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), mapped, access, kind, -1, 0) };
        if base == libc::MAP_FAILED {
            return None;
        }
        let base: NonNull<u8> = NonNull::new(base.cast())?;
        if !huge {
            return Some(base);
        }
        let before = base.addr().get().next_multiple_of(FULL_CHUNK) - base.addr().get();
        // SAFETY: both ends lie within the mapping, outside of the huge page in it, and nobody has
        // seen them. The advice changes no byte; a system without huge pages goes on with small ones.
        unsafe {
            let chunk = base.add(before);
            if before > 0 {
                libc::munmap(base.as_ptr().cast(), before);
            }
            if before < len {
                libc::munmap(chunk.add(len).as_ptr().cast(), len - before);
            }
            libc::madvise(chunk.as_ptr().cast(), len, libc::MADV_HUGEPAGE);
            Some(chunk)
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
        if let Some(ledger) = &self.ledger {
            ledger.unseal(*self.sealed.get_mut());
        }
        for chunk in self.chunks.get_mut().drain(..) {
            // SAFETY: made by `Chunk::new` from a box, and given up only here.
            drop(unsafe { Box::from_raw(chunk.as_ptr()) });
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if Self::is_mapped(self.len) {
            // SAFETY: mapped in `new` with this length and unmapped only here.
            let outcome = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
            assert_eq!(outcome, 0, "a chunk is a mapping of its own");
            return;
        }
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
