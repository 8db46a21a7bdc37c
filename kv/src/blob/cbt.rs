//! The index of a blob file: a crit-bit tree over its internal keys, with the records' places at
//! the leaves, in about two bytes per key (LavaStore paper, section 3.4).
//!
//! A crit-bit tree has an inner node for each bit at which two neighbouring keys differ first. A
//! walk from the root asks the key looked for for the node's bit, and goes left or right. Keys are not
//! stored: the walk ends at the only leaf that can be the key's, and the record there tells.
//!
//! The tree is cut: a subtree of at most [`BUCKET_MAX`] leaves is a *bucket*, coded succinctly and walked in
//! its coded form; the nodes above are the *top*, an array.
//!
//! ```text
//! index
//!   off  len  field
//!     0    4  records n, at least 1
//!     4    4  buckets m; the top has m - 1 nodes
//!     8    8  where the first record begins in the file
//!    16    8  where the last record ends
//!    24    8  bits of all buckets
//!    32    1  width of a top node's bit position (DB)
//!    33    1  width of a top node's left count   (LB)
//!    34    1  width of a bucket's record offset  (OB)
//!    35    1  width of a bucket's bit offset     (SB)
//!    36    1  width of a shortest length         (MB)
//!    37    3  zero
//!    40    .  top nodes in preorder: DB bit position, LB number of top nodes in the left subtree
//!          .  directory: for each bucket in key order
//!               OB  offset of its first record from the first record of the file
//!               SB  where its bits begin in the buckets' area
//!          .  buckets' area
//!          8  zero
//!   top, directory and buckets begin at whole bytes
//!
//! bucket of k leaves, in bits
//!   7  k - 1
//!   4  shift        lengths are multiples of 2^shift
//!   5  DW           width of a delta
//!   5  XW           width of an exception's value
//!   7  exceptions
//!   6  LW           width of a length
//!   MB shortest length >> shift
//!   2k - 1          nodes in preorder: 1 inner, 0 leaf
//!   (k - 1) DW      for each inner node in preorder: its bit position - its parent's - 1 (a root
//!                   of the whole tree: its bit position); all ones: see the exceptions
//!   exceptions      7 number of the inner node in the bucket, XW its delta; numbers ascend
//!   k LW            for each leaf in key order: (length - shortest) >> shift
//! ```
//!
//! Invariants, checked once by [`BlobIndex::parse`]: each part lies within its area; top and
//! topologies are whole trees; lengths add up to the records' area. Hence a walk needs no checks and
//! always ends at a leaf whose place lies within the records' area.
//!
//! Deliberately not here: ordered seeks. A walk's candidate says nothing of the order of keys that
//! are not in the file, and readers come with a key that an SST told.

use super::bits::{self, BitWriter, MAX_WIDTH, SLACK, width_of};
use super::key_bits::KeyBits;

/// Leaves of the largest bucket.
pub(super) const BUCKET_MAX: usize = 128;

const HEADER_LEN: usize = 40;
/// Bits of a bucket before the shortest length.
const BUCKET_HEAD: usize = 34;
/// Width of an exception's number of an inner node.
pub(super) const NUMBER_WIDTH: u32 = 7;
/// The largest number of zeros at the end of a length that are left out.
pub(super) const SHIFT_MAX: u32 = 12;

/// Where a record lies in its file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RecordLocation {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its bytes, padding included.
    pub len: u64,
}

/// Widths and counts of an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub(super) records: u32,
    pub(super) buckets: u32,
    pub(super) data_begin: u64,
    pub(super) data_end: u64,
    pub(super) bucket_bits: u64,
    pub(super) position_width: u32,
    pub(super) left_width: u32,
    pub(super) offset_width: u32,
    pub(super) start_width: u32,
    pub(super) length_width: u32,
}

impl Shape {
    fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&self.records.to_le_bytes());
        out[4..8].copy_from_slice(&self.buckets.to_le_bytes());
        out[8..16].copy_from_slice(&self.data_begin.to_le_bytes());
        out[16..24].copy_from_slice(&self.data_end.to_le_bytes());
        out[24..32].copy_from_slice(&self.bucket_bits.to_le_bytes());
        let widths = [
            self.position_width,
            self.left_width,
            self.offset_width,
            self.start_width,
            self.length_width,
        ];
        for (out, width) in out[32..].iter_mut().zip(widths) {
            *out = width as u8;
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let head = bytes.first_chunk::<HEADER_LEN>()?;
        let half = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
        let width = |at: usize| u32::from(head[at]);
        Some(Shape {
            records: half(0),
            buckets: half(4),
            data_begin: word(8),
            data_end: word(16),
            bucket_bits: word(24),
            position_width: width(32),
            left_width: width(33),
            offset_width: width(34),
            start_width: width(35),
            length_width: width(36),
        })
    }

    fn top_node_bits(&self) -> usize {
        (self.position_width + self.left_width) as usize
    }

    fn entry_bits(&self) -> usize {
        (self.offset_width + self.start_width) as usize
    }

    /// Where directory and buckets begin, and where the slack ends, in bytes.
    fn areas(&self) -> Option<(usize, usize, usize)> {
        let bytes = |count: usize, bits: usize| Some(count.checked_mul(bits)?.div_ceil(8));
        let top = bytes(self.buckets as usize - 1, self.top_node_bits())?;
        let directory = bytes(self.buckets as usize, self.entry_bits())?;
        let buckets = bytes(usize::try_from(self.bucket_bits).ok()?, 1)?;
        let directory_at = HEADER_LEN.checked_add(top)?;
        let buckets_at = directory_at.checked_add(directory)?;
        let end = buckets_at.checked_add(buckets)?.checked_add(SLACK)?;
        Some((directory_at, buckets_at, end))
    }

    /// Puts the areas together.
    pub(super) fn assemble(
        &self,
        top: BitWriter,
        directory: BitWriter,
        buckets: BitWriter,
    ) -> Vec<u8> {
        let mut out = self.encode().to_vec();
        for area in [top, directory, buckets] {
            out.extend_from_slice(&area.into_bytes());
        }
        out.extend_from_slice(&[0; SLACK]);
        let areas = self.areas().expect("an index fits in memory");
        assert_eq!(
            out.len(),
            areas.2,
            "areas have the sizes that their shape tells"
        );
        out
    }
}

/// An index in memory, in its coded form. Any thread may look up.
pub struct BlobIndex {
    bytes: Box<[u8]>,
    shape: Shape,
    directory_at: usize,
    buckets_at: usize,
}

impl std::fmt::Debug for BlobIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlobIndex: {:?}, {} bytes", self.shape, self.bytes.len())
    }
}

impl BlobIndex {
    /// Takes the contents of an index block, and checks all of it.
    pub(super) fn parse(bytes: Vec<u8>) -> Result<Self, &'static str> {
        let shape = Shape::decode(&bytes).ok_or("index shorter than its header")?;
        if shape.records == 0 || !(1..=shape.records).contains(&shape.buckets) {
            return Err("index with an impossible number of buckets");
        }
        if shape.data_begin >= shape.data_end {
            return Err("index of no bytes of records");
        }
        let widths = [
            shape.position_width,
            shape.left_width,
            shape.offset_width,
            shape.start_width,
            shape.length_width,
        ];
        if widths.iter().any(|&width| width > MAX_WIDTH) || shape.position_width > u32::BITS {
            return Err("index with an impossible width");
        }
        let areas = shape.areas().ok_or("index with impossible areas")?;
        let (directory_at, buckets_at, end) = areas;
        if bytes.len() != end {
            return Err("index of another length than it says");
        }
        if u64::from(shape.buckets) * (BUCKET_HEAD as u64 + 1) > shape.bucket_bits {
            return Err("index with more buckets than it has room for");
        }
        let index = BlobIndex {
            bytes: bytes.into_boxed_slice(),
            shape,
            directory_at,
            buckets_at,
        };
        index.check_top()?;
        index.check_buckets()?;
        Ok(index)
    }

    /// Every subtree of the top is as large as its parent says: then walks stay within it.
    fn check_top(&self) -> Result<(), &'static str> {
        // Subtrees whose root was not yet met: the nodes each of them has, in preorder.
        let mut waiting = vec![self.shape.buckets as usize - 1];
        for node in 0..self.shape.buckets as usize - 1 {
            let nodes = loop {
                match waiting.pop() {
                    Some(0) => continue,
                    Some(nodes) => break nodes,
                    None => return Err("index whose top is not one tree"),
                }
            };
            let (_, left) = self.top_node(node);
            let Some(right) = (nodes - 1).checked_sub(left) else {
                return Err("index with a subtree larger than its parent");
            };
            waiting.push(right);
            waiting.push(left);
        }
        Ok(())
    }

    fn check_buckets(&self) -> Result<(), &'static str> {
        let mut records = 0;
        let mut offset = 0;
        let mut start = 0;
        let mut at = 0;
        for bucket in 0..self.shape.buckets as usize {
            (offset, start) = self.entry(bucket);
            if (bucket == 0 && offset != 0) || start != at {
                return Err("index whose buckets do not follow one another");
            }
            let parsed = Bucket::parse(self, start, offset)?;
            records += parsed.leaves;
            at = parsed.end();
            let next = match bucket + 1 < self.shape.buckets as usize {
                true => self.entry(bucket + 1).0,
                false => self.shape.data_end - self.shape.data_begin,
            };
            if parsed.check()? != next {
                return Err("index whose lengths do not add up");
            }
            offset = next;
            start = at;
        }
        let whole = offset == self.shape.data_end - self.shape.data_begin
            && start as u64 == self.shape.bucket_bits
            && records == self.shape.records as usize;
        whole
            .then_some(())
            .ok_or("index of another size than it says")
    }

    /// Records in the file.
    pub fn records(&self) -> u32 {
        self.shape.records
    }

    /// Where the records begin and end in the file.
    pub(super) fn data_range(&self) -> std::ops::Range<u64> {
        self.shape.data_begin..self.shape.data_end
    }

    /// Bytes of memory it takes; about 2 per record.
    pub fn memory(&self) -> usize {
        self.bytes.len() + size_of::<Self>()
    }

    /// The place of the only record that can have this internal key. If the key is not in the
    /// file, that of some other record: the caller compares.
    ///
    /// # Panics
    /// If `internal_key` is shorter than a trailer.
    pub fn locate(&self, internal_key: &[u8]) -> RecordLocation {
        let key = KeyBits::new(internal_key);
        let (mut node, mut bucket) = (0, 0);
        let mut nodes = self.shape.buckets as usize - 1;
        // The lowest bit position that the next node can have.
        let mut floor = 0;
        while nodes > 0 {
            let (position, left) = self.top_node(node);
            floor = position.wrapping_add(1);
            if key.bit(position) {
                node += 1 + left;
                bucket += 1 + left;
                nodes -= 1 + left;
            } else {
                node += 1;
                nodes = left;
            }
        }
        let (offset, start) = self.entry(bucket);
        let bucket = Bucket::parse(self, start, offset).expect("checked when it was parsed");
        let leaf = bucket.walk(&key, floor);
        let mut location = bucket.location(leaf);
        location.offset += self.shape.data_begin;
        location
    }

    /// A top node's bit position and the number of nodes in its left subtree.
    #[inline]
    fn top_node(&self, node: usize) -> (u32, usize) {
        let at = HEADER_LEN * 8 + node * self.shape.top_node_bits();
        let position = bits::get(&self.bytes, at, self.shape.position_width);
        let at = at + self.shape.position_width as usize;
        let left = bits::get(&self.bytes, at, self.shape.left_width);
        (position as u32, left as usize)
    }

    /// A bucket's first record's offset, and where its bits begin.
    #[inline]
    fn entry(&self, bucket: usize) -> (u64, usize) {
        let at = self.directory_at * 8 + bucket * self.shape.entry_bits();
        let offset = bits::get(&self.bytes, at, self.shape.offset_width);
        let at = at + self.shape.offset_width as usize;
        let start = bits::get(&self.bytes, at, self.shape.start_width);
        (offset, start as usize)
    }
}

/// A bucket's parts; positions in bits.
struct Bucket<'a> {
    /// The buckets' area and its slack.
    area: &'a [u8],
    /// Offset of the first record.
    offset: u64,
    leaves: usize,
    shift: u32,
    delta_width: u32,
    exception_width: u32,
    exceptions: usize,
    length_width: u32,
    shortest: u64,
    topology_at: usize,
    deltas_at: usize,
    exceptions_at: usize,
    lengths_at: usize,
}

impl<'a> Bucket<'a> {
    #[inline]
    fn parse(index: &'a BlobIndex, start: usize, offset: u64) -> Result<Self, &'static str> {
        let area = &index.bytes[index.buckets_at..];
        let area_bits = (area.len() - SLACK) * 8;
        let head_len = BUCKET_HEAD + index.shape.length_width as usize;
        if start > area_bits || area_bits - start < head_len {
            return Err("index with a bucket outside of its area");
        }
        let head = bits::get(area, start, BUCKET_HEAD as u32);
        let leaves = (head & 0x7f) as usize + 1;
        let delta_width = (head >> 11 & 0x1f) as u32;
        let exception_width = (head >> 16 & 0x1f) as u32;
        let exceptions = (head >> 21 & 0x7f) as usize;
        let length_width = (head >> 28 & 0x3f) as u32;
        let topology_at = start + head_len;
        let deltas_at = topology_at + 2 * leaves - 1;
        let exceptions_at = deltas_at + (leaves - 1) * delta_width as usize;
        let lengths_at = exceptions_at + exceptions * (NUMBER_WIDTH + exception_width) as usize;
        let bucket = Bucket {
            area,
            offset,
            leaves,
            shift: (head >> 7 & 0xf) as u32,
            delta_width,
            exception_width,
            exceptions,
            length_width,
            shortest: bits::get(area, start + BUCKET_HEAD, index.shape.length_width),
            topology_at,
            deltas_at,
            exceptions_at,
            lengths_at,
        };
        if length_width > MAX_WIDTH || bucket.end() > area_bits {
            return Err("index with a bucket outside of its area");
        }
        Ok(bucket)
    }

    fn end(&self) -> usize {
        self.lengths_at + self.leaves * self.length_width as usize
    }

    /// Checks what a walk relies on. Returns where the last record ends.
    fn check(&self) -> Result<u64, &'static str> {
        if self.skip(self.topology_at) != self.deltas_at {
            return Err("index with a bucket that is not one tree");
        }
        let mut end = self.offset;
        for leaf in 0..self.leaves {
            let len = self.length(leaf).ok_or("index with an impossible length")?;
            end = end
                .checked_add(len)
                .ok_or("index with an impossible length")?;
        }
        Ok(end)
    }

    /// The end of the subtree that begins at a bit of the topology: there are more leaves than inner
    /// nodes for the first time. Stops at the topology's end.
    #[inline]
    fn skip(&self, mut at: usize) -> usize {
        let mut open = 1_i32;
        loop {
            let width = (self.deltas_at - at).min(56) as u32;
            let mut word = bits::get(self.area, at, width);
            let mut left = width;
            while left >= 8 {
                let (change, lowest) = EXCESS[(word & 0xff) as usize];
                if open + i32::from(lowest) <= 0 {
                    break;
                }
                open += i32::from(change);
                word >>= 8;
                left -= 8;
                at += 8;
            }
            let bits = left.min(8);
            for _ in 0..bits {
                open += if word & 1 == 1 { 1 } else { -1 };
                word >>= 1;
                at += 1;
                if open == 0 {
                    return at;
                }
            }
            if at >= self.deltas_at {
                return if open == 0 { at } else { usize::MAX };
            }
        }
    }

    /// The leaf that the key's bits lead to.
    #[inline]
    fn walk(&self, key: &KeyBits<'_>, mut floor: u32) -> usize {
        let mut at = self.topology_at;
        // Inner nodes before `at`.
        let mut inner = 0;
        while bits::get(self.area, at, 1) == 1 {
            let position = floor.wrapping_add(self.delta(inner));
            floor = position.wrapping_add(1);
            at += 1;
            inner += 1;
            if key.bit(position) {
                let right = self.skip(at);
                inner += (right - at) / 2;
                at = right;
            }
        }
        at - self.topology_at - inner
    }

    #[inline]
    fn delta(&self, inner: usize) -> u32 {
        let at = self.deltas_at + inner * self.delta_width as usize;
        let delta = bits::get(self.area, at, self.delta_width);
        if self.exceptions == 0 || delta != (1 << self.delta_width) - 1 {
            return delta as u32;
        }
        let width = (NUMBER_WIDTH + self.exception_width) as usize;
        for exception in 0..self.exceptions {
            let at = self.exceptions_at + exception * width;
            if bits::get(self.area, at, NUMBER_WIDTH) as usize == inner {
                let at = at + NUMBER_WIDTH as usize;
                return bits::get(self.area, at, self.exception_width) as u32;
            }
        }
        delta as u32
    }

    /// Bytes of a leaf's record; `None` where they do not fit in 64 bits or are none.
    #[inline]
    fn length(&self, leaf: usize) -> Option<u64> {
        let at = self.lengths_at + leaf * self.length_width as usize;
        let units = self.shortest + bits::get(self.area, at, self.length_width);
        let len = units << self.shift;
        (len > 0 && len >> self.shift == units).then_some(len)
    }

    #[inline]
    fn location(&self, leaf: usize) -> RecordLocation {
        let mut units = self.shortest * leaf as u64;
        let mut at = self.lengths_at;
        for _ in 0..leaf {
            units += bits::get(self.area, at, self.length_width);
            at += self.length_width as usize;
        }
        let len = self.shortest + bits::get(self.area, at, self.length_width);
        RecordLocation {
            offset: self.offset + (units << self.shift),
            len: len << self.shift,
        }
    }
}

/// For each byte of topology: ones minus zeros, and the lowest that difference is on the way.
const EXCESS: [(i8, i8); 256] = {
    let mut table = [(0, 0); 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut excess, mut lowest, mut bit) = (0_i8, 0_i8, 0);
        while bit < 8 {
            excess += if byte >> bit & 1 == 1 { 1 } else { -1 };
            if excess < lowest {
                lowest = excess;
            }
            bit += 1;
        }
        table[byte] = (excess, lowest);
        byte += 1;
    }
    table
};

const _: () = assert!(BUCKET_MAX - 1 < 1 << NUMBER_WIDTH);
const _: () = assert!(width_of(SHIFT_MAX as u64) <= 4);
