//! The end of a file that its kernel file does not hold yet.
//!
//! ```text
//!  0 ......................... base ............................... size
//!  in the kernel's file         in `buf[..len]`
//! ```
//!
//! Invariants: `base` is a multiple of the I/O unit, or equals `size` with `len` 0: the partial
//! block at the end of an opened or cut file is loaded by the first append, not before.
//! `base + len == size` except within an append, which publishes the size when it is whole.

use crate::device::AlignedBuf;

/// Most bytes held in memory, and the length of the writes of a file that grows by small appends.
pub(super) const CHUNK: usize = 256 << 10;

/// First allocation of a file's buffer; it doubles up to [`CHUNK`].
const FIRST: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct Tail {
    /// Size of the file as readers see it.
    pub(super) size: u64,
    /// Where `buf` begins in the file.
    pub(super) base: u64,
    buf: AlignedBuf,
    len: usize,
}

impl Tail {
    /// The tail of a file of `size` bytes that the kernel's file holds whole.
    pub(super) fn at(size: u64) -> Tail {
        Tail {
            size,
            base: size,
            buf: AlignedBuf::zeroed(0),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_full(&self) -> bool {
        self.len == CHUNK
    }

    /// Takes as much of `data` as fits and returns how much that was.
    pub(super) fn fill(&mut self, data: &[u8]) -> usize {
        let took = data.len().min(CHUNK - self.len);
        self.reserve(self.len + took);
        self.buf[self.len..self.len + took].copy_from_slice(&data[..took]);
        self.len += took;
        took
    }

    /// The bytes held, padded with zeros to a multiple of `unit`.
    pub(super) fn pad(&mut self, unit: u64) {
        let padded = self.len.next_multiple_of(unit as usize);
        self.reserve(padded);
        self.buf[self.len..padded].fill(0);
    }

    /// The bytes held and, after [`Tail::pad`], the zeros up to a multiple of `unit`.
    pub(super) fn padded(&self, unit: u64) -> &[u8] {
        &self.buf[..self.len.next_multiple_of(unit as usize)]
    }

    /// Forgets whole units that the kernel's file holds; keeps the partial one.
    pub(super) fn drop_whole(&mut self, unit: u64) {
        let whole = self.len - self.len % unit as usize;
        self.buf.copy_within(whole..self.len, 0);
        self.base += whole as u64;
        self.len -= whole;
    }

    /// Forgets all bytes at and after `size`, which the kernel's file holds below `base`.
    pub(super) fn cut(&mut self, size: u64) {
        if size >= self.base {
            self.len = (size - self.base) as usize;
        } else {
            self.base = size;
            self.len = 0;
        }
        self.size = size;
    }

    /// Moves the beginning down to `base`, with `head` the bytes from there.
    pub(super) fn load(&mut self, base: u64, head: &[u8]) {
        assert_eq!(self.len, 0, "only an empty tail is loaded");
        assert_eq!(
            base + head.len() as u64,
            self.base,
            "the head ends where the tail begins"
        );
        self.base = base;
        self.fill(head);
    }

    /// Moves the beginning up past `bytes` that went to the kernel's file by another way.
    pub(super) fn skip(&mut self, bytes: u64) {
        assert_eq!(self.len, 0, "nothing held is skipped");
        self.base += bytes;
    }

    /// Copies what is held at file offset `offset` and after it.
    pub(super) fn copy_to(&self, offset: u64, out: &mut [u8]) {
        let from = (offset - self.base) as usize;
        out.copy_from_slice(&self.buf[from..from + out.len()]);
    }

    fn reserve(&mut self, len: usize) {
        if self.buf.len() < len {
            let mut larger = AlignedBuf::zeroed(len.next_power_of_two().max(FIRST));
            larger[..self.len].copy_from_slice(&self.buf[..self.len]);
            self.buf = larger;
        }
    }
}
