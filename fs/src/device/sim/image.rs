//! The contents of a simulated device: sparse, and cheap to copy.
//!
//! A tree of two levels: nodes of [`NODE_CHUNKS`] chunks of [`CHUNK`] bytes, both shared between
//! copies until one is written to. A copy of a 64 MiB image costs 64 reference counts. What was
//! never written reads as zeros; what was discarded reads as [`POISON`] bytes, so that nothing
//! can come to rely on a discarded range.

use std::sync::Arc;

/// Bytes of a chunk, the unit that is copied when a shared one is written to.
const CHUNK: usize = 4096;
const NODE_CHUNKS: usize = 256;
const NODE: usize = CHUNK * NODE_CHUNKS;

/// What a discarded byte reads as.
pub(super) const POISON: u8 = 0xd5;

type Chunk = Arc<[u8; CHUNK]>;
type Node = Arc<[Option<Chunk>; NODE_CHUNKS]>;

#[derive(Clone)]
pub(super) struct Image {
    nodes: Vec<Option<Node>>,
}

impl Image {
    /// An image of at least `size` zero bytes.
    pub(super) fn zeroed(size: u64) -> Image {
        Image {
            nodes: vec![None; (size as usize).div_ceil(NODE)],
        }
    }

    /// Adds zero bytes up to at least `size`.
    pub(super) fn grow(&mut self, size: u64) {
        self.nodes.resize((size as usize).div_ceil(NODE), None);
    }

    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) {
        let mut at = offset as usize;
        let mut rest = buf;
        while !rest.is_empty() {
            let skip = at % CHUNK;
            let len = rest.len().min(CHUNK - skip);
            let (head, tail) = rest.split_at_mut(len);
            let node = self.nodes[at / NODE].as_ref();
            match node.and_then(|node| node[at % NODE / CHUNK].as_ref()) {
                Some(chunk) => head.copy_from_slice(&chunk[skip..skip + len]),
                None => head.fill(0),
            }
            at += len;
            rest = tail;
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut rest = data;
        self.for_each_part(offset, data.len(), |part| {
            let (head, tail) = rest.split_at(part.len());
            part.copy_from_slice(head);
            rest = tail;
        });
    }

    pub(super) fn poison(&mut self, offset: u64, len: u64) {
        self.for_each_part(offset, len as usize, |part| part.fill(POISON));
    }

    /// Flips one bit of the byte at `offset`.
    pub(super) fn flip_bit(&mut self, offset: u64, bit: u8) {
        self.for_each_part(offset, 1, |part| part[0] ^= 1 << bit);
    }

    /// Calls `change` with the parts of a range, in order, each within one chunk.
    fn for_each_part(&mut self, offset: u64, len: usize, mut change: impl FnMut(&mut [u8])) {
        let mut at = offset as usize;
        let end = at + len;
        while at < end {
            let skip = at % CHUNK;
            let part = (end - at).min(CHUNK - skip);
            let node = self.nodes[at / NODE]
                .get_or_insert_with(|| Arc::new([const { None }; NODE_CHUNKS]));
            let chunk =
                Arc::make_mut(node)[at % NODE / CHUNK].get_or_insert_with(|| Arc::new([0; CHUNK]));
            change(&mut Arc::make_mut(chunk)[skip..skip + part]);
            at += part;
        }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let used = self.nodes.iter().flatten().count();
        write!(f, "Image({used} of {} MiB touched)", self.nodes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_independent_and_holes_read_as_zeros() {
        let mut one = Image::zeroed(4 << 20);
        one.write(CHUNK as u64 - 3, &[1; 10]);
        let mut two = one.clone();
        two.write(CHUNK as u64, &[2; 2]);
        two.poison((2 << 20) - 1, 3);
        two.flip_bit(0, 7);
        let read = |image: &Image, offset: u64, len: usize| {
            let mut bytes = vec![9; len];
            image.read(offset, &mut bytes);
            bytes
        };
        let at = CHUNK as u64 - 4;
        assert_eq!(read(&one, at, 12), [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
        assert_eq!(read(&two, at, 12), [0, 1, 1, 1, 2, 2, 1, 1, 1, 1, 1, 0]);
        assert_eq!(read(&two, (2 << 20) - 2, 5), [0, POISON, POISON, POISON, 0]);
        assert_eq!((read(&one, 0, 1), read(&two, 0, 1)), (vec![0], vec![128]));
    }
}
