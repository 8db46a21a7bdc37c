//! Copies the live values of several blob files into new ones, sorted by key across all of them.
//!
//! An output ends where it is large enough and the next user key is another one, so that outputs have disjoint
//! ranges of user keys. Values are copied as they are stored, not compressed again. Nothing is committed here: a crash
//! or an error leaves files without a name in the manifest, which the next open removes.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::blob::{BlobFileBuilder, BlobFileIterator, BlobFileProperties, BlobFileReader};
use crate::error::{Error, Result};
use crate::key::{compare_internal, user_key};

/// Tells which records are live.
pub(crate) trait Liveness {
    /// True if something refers to the record of `internal_key` in the input with this number.
    /// Called for every record, in ascending order of keys. An error ends the rewrite: this is
    /// also how it is cancelled.
    fn is_live(&mut self, internal_key: &[u8], input: u64) -> Result<bool>;

    /// So many more bytes were copied. An error ends the rewrite; waiting slows it.
    fn copied(&mut self, _bytes: u64) -> Result<()> {
        Ok(())
    }
}

impl<F: FnMut(&[u8], u64) -> Result<bool>> Liveness for F {
    fn is_live(&mut self, internal_key: &[u8], input: u64) -> Result<bool> {
        self(internal_key, input)
    }
}

/// A file that a rewrite wrote, which is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Rewritten {
    pub(crate) properties: BlobFileProperties,
    /// For each input, in the order they were given, what of it is here.
    pub(crate) counts: Vec<LiveCount>,
}

/// Live records of an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct LiveCount {
    pub(crate) records: u64,
    /// Before compression.
    pub(crate) value_bytes: u64,
}

/// Copies what is live in `inputs` into files that `create` begins when they are needed, each about
/// `output_bytes` long. None are written where nothing is live.
///
/// # Errors
/// The files', or those of liveness. New files, if there are any, are to be removed.
pub(crate) fn rewrite(
    inputs: &[Arc<BlobFileReader>],
    liveness: &mut dyn Liveness,
    output_bytes: u64,
    mut create: impl FnMut() -> Result<BlobFileBuilder>,
) -> Result<Vec<Rewritten>> {
    let nothing = || vec![LiveCount::default(); inputs.len()];
    let mut done = Vec::new();
    let mut open: Option<(BlobFileBuilder, Vec<LiveCount>)> = None;
    let mut merge = Merge::new(inputs)?;
    while let Some(at) = merge.first() {
        let iter = &merge.iters[at];
        if liveness.is_live(iter.key(), inputs[at].number())? {
            let is_full = |(output, _): &mut (BlobFileBuilder, _)| {
                output.estimated_size() >= output_bytes
                    && user_key(output.last_key()) != user_key(iter.key())
            };
            if let Some((output, counts)) = open.take_if(is_full) {
                let properties = output.finish()?;
                done.push(Rewritten { properties, counts });
            }
            let (output, counts) = match &mut open {
                Some(open) => open,
                None => open.insert((create()?, nothing())),
            };
            if output.last_key() == iter.key() {
                return Err(two_live(inputs[at].number(), iter));
            }
            let value = iter.stored();
            liveness.copied(output.add_stored(iter.key(), value)?)?;
            counts[at].records += 1;
            counts[at].value_bytes += value.value_len()?;
        }
        merge.advance(at)?;
    }
    if let Some((output, counts)) = open {
        let properties = output.finish()?;
        done.push(Rewritten { properties, counts });
    }
    Ok(done)
}

fn two_live(number: u64, iter: &BlobFileIterator) -> Error {
    let detail = "a version of a key is live in two blob files";
    Error::corrupt(
        crate::blob::file_name(number),
        iter.location().offset,
        detail,
    )
}

/// The records of several files in key order.
struct Merge {
    iters: Vec<BlobFileIterator>,
    /// Iterators that are at a record, as a binary heap: the first is at the smallest key.
    heap: Vec<usize>,
}

impl Merge {
    fn new(inputs: &[Arc<BlobFileReader>]) -> Result<Self> {
        let mut merge = Merge {
            iters: inputs.iter().map(|reader| reader.iter()).collect(),
            heap: Vec::with_capacity(inputs.len()),
        };
        for at in 0..inputs.len() {
            if merge.iters[at].advance()? {
                merge.heap.push(at);
            }
        }
        for root in (0..merge.heap.len() / 2).rev() {
            merge.sift_down(root);
        }
        Ok(merge)
    }

    /// The iterator at the smallest key.
    fn first(&self) -> Option<usize> {
        self.heap.first().copied()
    }

    /// Advances the iterator at the smallest key.
    fn advance(&mut self, at: usize) -> Result<()> {
        if !self.iters[at].advance()? {
            self.heap.swap_remove(0);
        }
        self.sift_down(0);
        Ok(())
    }

    fn before(&self, a: usize, b: usize) -> bool {
        let keys = compare_internal(self.iters[a].key(), self.iters[b].key());
        keys.then(a.cmp(&b)) == Ordering::Less
    }

    fn sift_down(&mut self, mut root: usize) {
        loop {
            let children = 2 * root + 1..(2 * root + 3).min(self.heap.len());
            let smallest = children.fold(root, |smallest, child| {
                match self.before(self.heap[child], self.heap[smallest]) {
                    true => child,
                    false => smallest,
                }
            });
            if smallest == root {
                return;
            }
            self.heap.swap(root, smallest);
            root = smallest;
        }
    }
}
