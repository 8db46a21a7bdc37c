//! Builds a blob file's index from its keys in order. The layout is cbt.rs's.
//!
//! The crit-bit tree of sorted keys is the Cartesian tree of the bit positions at which neighbours
//! differ first: the root is the lowest position, and no subtree has its lowest position twice. So the builder
//! keeps twelve bytes per key and no keys.

use super::bits::{BitWriter, width_of};
use super::cbt::{BUCKET_MAX, NUMBER_WIDTH, SHIFT_MAX, Shape};
use super::key_bits::first_difference;

/// No inner node: a leaf.
const LEAF: u32 = u32::MAX;
/// Widest delta of a bucket that is not an exception.
const DELTA_WIDTH_MAX: u32 = 20;

/// Gathers what the index is made of.
#[derive(Default)]
pub(super) struct IndexBuilder {
    /// For each key but the first, the first bit at which it differs from the key before it.
    differences: Vec<u32>,
    /// Bytes of each record.
    lengths: Vec<u64>,
}

/// What the walk over the tree does next.
enum Step {
    /// Visit the subtree of an inner node or leaf, the leaves from..to, and the lowest bit
    /// position it can have.
    Visit(u32, usize, usize, u32),
    /// The left subtree of a top node is done; it had begun at this bucket.
    LeftDone(usize, usize),
}

impl IndexBuilder {
    /// Adds the next key, whose predecessor is `before`; the first one has none.
    pub(super) fn add(&mut self, before: Option<&[u8]>, internal_key: &[u8], len: u64) {
        assert_eq!(
            before.is_none(),
            self.lengths.is_empty(),
            "only the first is first"
        );
        if let Some(before) = before {
            self.differences
                .push(first_difference(before, internal_key));
        }
        self.lengths.push(len);
    }

    /// Bytes of the index, about.
    pub(super) fn estimated_size(&self) -> usize {
        64 + self.lengths.len() * 9 / 4
    }

    /// The index of the records, of which the first begins at `data_begin`.
    ///
    /// # Panics
    /// If there are none.
    pub(super) fn finish(self, data_begin: u64) -> Vec<u8> {
        let leaves = self.lengths.len();
        assert!(leaves > 0, "an index has records");
        let children = self.children();
        let root = match self.differences.is_empty() {
            true => LEAF,
            false => children.1,
        };
        let length_width = width_of(self.lengths.iter().copied().max().expect("not empty"));
        let mut buckets = BitWriter::default();
        // Each bucket's first leaf and first bit.
        let mut entries = Vec::new();
        // Each top node's bit position and number of top nodes on its left.
        let mut top = Vec::new();
        let mut steps = vec![Step::Visit(root, 0, leaves, 0)];
        while let Some(step) = steps.pop() {
            match step {
                Step::Visit(node, from, to, floor) if to - from <= BUCKET_MAX => {
                    entries.push((from, buckets.len()));
                    let bucket = self.bucket(&children.0, node, from, to, floor);
                    bucket.write(&mut buckets, length_width);
                }
                Step::Visit(node, from, to, _) => {
                    let split = node as usize + 1;
                    let position = self.differences[node as usize];
                    let [left, right] = children.0[node as usize];
                    steps.push(Step::Visit(right, split, to, position + 1));
                    steps.push(Step::LeftDone(top.len(), entries.len()));
                    steps.push(Step::Visit(left, from, split, position + 1));
                    top.push((position, 0));
                }
                Step::LeftDone(node, first) => top[node].1 = entries.len() - first - 1,
            }
        }
        self.assemble(data_begin, &top, &entries, buckets, length_width)
    }

    fn assemble(
        &self,
        data_begin: u64,
        top: &[(u32, usize)],
        entries: &[(usize, usize)],
        buckets: BitWriter,
        length_width: u32,
    ) -> Vec<u8> {
        let mut offsets = Vec::with_capacity(entries.len());
        let mut offset = 0;
        let mut next = entries.iter().peekable();
        for (leaf, len) in self.lengths.iter().enumerate() {
            if next.next_if(|entry| entry.0 == leaf).is_some() {
                offsets.push(offset);
            }
            offset += len;
        }
        let widest = |numbers: &mut dyn Iterator<Item = u64>| width_of(numbers.max().unwrap_or(0));
        let shape = Shape {
            records: u32::try_from(self.lengths.len()).expect("the builder limits records"),
            buckets: entries.len() as u32,
            data_begin,
            data_end: data_begin + offset,
            bucket_bits: buckets.len() as u64,
            position_width: widest(&mut top.iter().map(|node| u64::from(node.0))),
            left_width: widest(&mut top.iter().map(|node| node.1 as u64)),
            offset_width: widest(&mut offsets.iter().copied()),
            start_width: widest(&mut entries.iter().map(|entry| entry.1 as u64)),
            length_width,
        };
        let (mut nodes, mut directory) = (BitWriter::default(), BitWriter::default());
        for &(position, left) in top {
            nodes.put(u64::from(position), shape.position_width);
            nodes.put(left as u64, shape.left_width);
        }
        for (&(_, start), &offset) in entries.iter().zip(&offsets) {
            directory.put(offset, shape.offset_width);
            directory.put(start as u64, shape.start_width);
        }
        shape.assemble(nodes, directory, buckets)
    }

    /// The children of each inner node, and the root. Node `i` lies between leaves `i` and
    /// `i + 1`.
    fn children(&self) -> (Vec<[u32; 2]>, u32) {
        let mut children = vec![[LEAF; 2]; self.differences.len()];
        // The rightmost path from the root, positions ascending.
        let mut path: Vec<u32> = Vec::new();
        for (node, &position) in self.differences.iter().enumerate() {
            let mut left = LEAF;
            while let Some(&last) = path.last() {
                if self.differences[last as usize] < position {
                    break;
                }
                left = last;
                path.pop();
            }
            children[node][0] = left;
            if let Some(&parent) = path.last() {
                children[parent as usize][1] = node as u32;
            }
            path.push(node as u32);
        }
        (children, path.first().copied().unwrap_or(LEAF))
    }

    fn bucket(
        &self,
        children: &[[u32; 2]],
        root: u32,
        from: usize,
        to: usize,
        floor: u32,
    ) -> BucketParts<'_> {
        let mut parts = BucketParts {
            topology: Vec::with_capacity(2 * (to - from)),
            deltas: Vec::with_capacity(to - from),
            lengths: &self.lengths[from..to],
        };
        let mut waiting = vec![(root, floor)];
        while let Some((node, floor)) = waiting.pop() {
            parts.topology.push(node != LEAF);
            if node != LEAF {
                let position = self.differences[node as usize];
                parts.deltas.push(position - floor);
                let [left, right] = children[node as usize];
                waiting.push((right, position + 1));
                waiting.push((left, position + 1));
            }
        }
        parts
    }
}

/// A bucket before it is coded.
struct BucketParts<'a> {
    topology: Vec<bool>,
    deltas: Vec<u32>,
    lengths: &'a [u64],
}

impl BucketParts<'_> {
    fn write(&self, out: &mut BitWriter, length_width: u32) {
        let leaves = self.lengths.len();
        assert_eq!(self.topology.len(), 2 * leaves - 1, "a whole tree");
        let delta_width = self.best_delta_width();
        let escape = (1_u64 << delta_width) - 1;
        let is_exception = |delta: u32| u64::from(delta) >= escape;
        let exceptions = self.deltas.iter().filter(|delta| is_exception(**delta));
        let exception_width = exceptions.clone().map(|delta| width_of(u64::from(*delta)));
        let exception_width = exception_width.max().unwrap_or(0);
        let all = self.lengths.iter().fold(0, |all, len| all | len);
        let shift = all.trailing_zeros().min(SHIFT_MAX);
        let shortest = *self.lengths.iter().min().expect("a bucket has a leaf");
        let longest = *self.lengths.iter().max().expect("a bucket has a leaf");
        let spread_width = width_of((longest - shortest) >> shift);
        out.put(leaves as u64 - 1, 7);
        out.put(u64::from(shift), 4);
        out.put(u64::from(delta_width), 5);
        out.put(u64::from(exception_width), 5);
        out.put(exceptions.count() as u64, 7);
        out.put(u64::from(spread_width), 6);
        out.put(shortest >> shift, length_width);
        for &inner in &self.topology {
            out.put(u64::from(inner), 1);
        }
        for &delta in &self.deltas {
            out.put(u64::from(delta).min(escape), delta_width);
        }
        for (number, &delta) in self.deltas.iter().enumerate() {
            if is_exception(delta) {
                out.put(number as u64, NUMBER_WIDTH);
                out.put(u64::from(delta), exception_width);
            }
        }
        for len in self.lengths {
            out.put((len - shortest) >> shift, spread_width);
        }
    }

    /// The width that makes deltas and exceptions smallest.
    fn best_delta_width(&self) -> u32 {
        // Deltas by their width: all below an escape of `w` bits have at most `w` bits.
        let cost = |width: u32| {
            let escape = (1_u64 << width) - 1;
            let exceptions = self.deltas.iter().map(|delta| u64::from(*delta));
            let exceptions = exceptions.filter(|delta| *delta >= escape);
            let widest = exceptions.clone().map(width_of).max().unwrap_or(0);
            let each = u64::from(NUMBER_WIDTH + widest);
            exceptions.count() as u64 * each + self.deltas.len() as u64 * u64::from(width)
        };
        (0..=DELTA_WIDTH_MAX)
            .min_by_key(|width| cost(*width))
            .expect("there are widths")
    }
}
