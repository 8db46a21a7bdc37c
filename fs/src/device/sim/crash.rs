//! What a power cut leaves of a simulated device, and the log of operations to cut at.
//!
//! The model: a block that was written since the last flush holds, after a crash, any of the
//! versions written since, or the one before. Pieces are kept in the order written and each one's
//! sectors are kept or dropped: a later overlapping write may survive while an earlier one is
//! lost, and the other way round. A completed durable write is whole, and no older piece can come
//! back over it. Of operations in flight, any part may have happened.
//!
//! Invariants: `Media::pending` holds no byte that a durable write has superseded; applying all of
//! it to `Media::durable` gives what the device reads.

use std::ops::Range;
use std::sync::Arc;

use super::super::Geometry;
use super::super::fault::Random;
use super::SimDevice;
use super::image::Image;

/// Operations between the states that a recording keeps, from which others are replayed.
const KEPT_EVERY: usize = 16;

/// One operation as it took effect on the device.
#[derive(Clone, Debug)]
pub enum SimOp {
    /// Writes that were in flight together.
    Write {
        /// The writes, in the order given.
        writes: Arc<[SimWrite]>,
        /// Durable when complete.
        durable: bool,
    },
    /// A completed flush.
    Flush,
    /// A flush that failed: any part of what was pending became durable, the rest never will.
    FailedFlush {
        /// Decides which part.
        seed: u64,
    },
    /// A discarded range.
    Discard {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// One write of a [`SimOp::Write`].
#[derive(Clone, Debug)]
pub struct SimWrite {
    /// Byte offset on the device.
    pub offset: u64,
    /// The bytes.
    pub data: Arc<[u8]>,
}

/// A part of a write or discard that is not durable yet.
#[derive(Clone, Debug)]
struct Piece {
    offset: u64,
    /// The bytes and where in them the piece begins; `None` for a discard.
    data: Option<(Arc<[u8]>, usize)>,
    len: u64,
}

impl Piece {
    fn write(write: &SimWrite) -> Piece {
        Piece {
            offset: write.offset,
            data: Some((Arc::clone(&write.data), 0)),
            len: write.data.len() as u64,
        }
    }

    /// The part of the piece within `range`, which lies inside it.
    fn part(&self, range: Range<u64>) -> Piece {
        let skip = (range.start - self.offset) as usize;
        Piece {
            offset: range.start,
            data: self
                .data
                .as_ref()
                .map(|(data, from)| (Arc::clone(data), from + skip)),
            len: range.end - range.start,
        }
    }

    fn apply(&self, image: &mut Image, range: Range<u64>) {
        match &self.data {
            Some((data, from)) => {
                let begin = from + (range.start - self.offset) as usize;
                let len = (range.end - range.start) as usize;
                image.write(range.start, &data[begin..begin + len]);
            }
            None => image.poison(range.start, range.end - range.start),
        }
    }

    fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// What is durable and what may still be lost.
#[derive(Clone, Debug)]
pub(super) struct Media {
    durable: Image,
    pending: Vec<Piece>,
}

impl Media {
    pub(super) fn new(durable: Image) -> Media {
        Media {
            durable,
            pending: Vec::new(),
        }
    }

    pub(super) fn flip_bit(&mut self, offset: u64, bit: u8) {
        self.durable.flip_bit(offset, bit);
        for piece in &mut self.pending {
            if let Some((data, from)) = &mut piece.data
                && (piece.offset..piece.offset + piece.len).contains(&offset)
            {
                let at = *from + (offset - piece.offset) as usize;
                let mut rotten = data.to_vec();
                rotten[at] ^= 1 << bit;
                *data = rotten.into();
            }
        }
    }

    /// Carries out one completed operation.
    pub(super) fn apply(&mut self, op: &SimOp, tear: u64) {
        match op {
            SimOp::Write { writes, durable } => {
                for write in &**writes {
                    if *durable {
                        self.supersede(write.offset..write.offset + write.data.len() as u64);
                        self.durable.write(write.offset, &write.data);
                    } else {
                        self.pending.push(Piece::write(write));
                    }
                }
            }
            SimOp::Flush => {
                for piece in self.pending.drain(..) {
                    piece.apply(&mut self.durable, piece.offset..piece.end());
                }
            }
            SimOp::FailedFlush { seed } => {
                let pieces = std::mem::take(&mut self.pending);
                scatter(&mut self.durable, &pieces, tear, &mut Random::new(*seed));
            }
            SimOp::Discard { offset, len } => self.pending.push(Piece {
                offset: *offset,
                data: None,
                len: *len,
            }),
        }
    }

    /// Cuts `range` out of everything pending.
    fn supersede(&mut self, range: Range<u64>) {
        let hit = |piece: &Piece| piece.offset < range.end && range.start < piece.end();
        if !self.pending.iter().any(hit) {
            return;
        }
        let mut kept = Vec::with_capacity(self.pending.len() + 1);
        for piece in self.pending.drain(..) {
            if !hit(&piece) {
                kept.push(piece);
                continue;
            }
            if piece.offset < range.start {
                kept.push(piece.part(piece.offset..range.start));
            }
            if range.end < piece.end() {
                kept.push(piece.part(range.end..piece.end()));
            }
        }
        self.pending = kept;
    }

    /// What a power cut leaves, with `in_flight` not completed.
    pub(super) fn crash(mut self, in_flight: Option<&SimOp>, tear: u64, seed: u64) -> Image {
        match in_flight {
            Some(SimOp::Write { writes, .. }) => {
                self.pending.extend(writes.iter().map(Piece::write));
            }
            Some(op @ SimOp::Discard { .. }) => self.apply(op, tear),
            Some(SimOp::Flush | SimOp::FailedFlush { .. }) | None => {}
        }
        scatter(
            &mut self.durable,
            &self.pending,
            tear,
            &mut Random::new(seed),
        );
        self.durable
    }
}

/// Carries out any part of `pieces`, chosen in one of several ways so that both the likely
/// outcomes and the odd ones are reached.
fn scatter(image: &mut Image, pieces: &[Piece], tear: u64, random: &mut Random) {
    let count = pieces.len() as u64;
    if count == 0 {
        return;
    }
    let way = random.below(8);
    let chosen = random.below(count);
    for (piece, index) in pieces.iter().zip(0..) {
        let (keep, torn) = match way {
            0 => (false, false),
            1 => (true, false),
            // Only one, or all but one.
            2 => (index == chosen, false),
            3 => (index != chosen, false),
            // In order up to one that is torn.
            4 => (index <= chosen, index == chosen),
            // All, one of them torn.
            5 => (true, index == chosen),
            // Each by chance, whole.
            6 => (random.below(2) == 0, false),
            // Each sector of each by chance.
            _ => (true, true),
        };
        if torn {
            tear_piece(image, piece, tear, random);
        } else if keep {
            piece.apply(image, piece.offset..piece.end());
        }
    }
}

/// Carries out some sectors of `piece`: a prefix, a suffix or any.
fn tear_piece(image: &mut Image, piece: &Piece, tear: u64, random: &mut Random) {
    let sectors = piece.len / tear;
    let cut = random.below(sectors + 1) * tear + piece.offset;
    match random.below(3) {
        0 => piece.apply(image, piece.offset..cut),
        1 => piece.apply(image, cut..piece.end()),
        _ => {
            for sector in 0..sectors {
                if random.below(2) == 0 {
                    let from = piece.offset + sector * tear;
                    piece.apply(image, from..from + tear);
                }
            }
        }
    }
}

/// The ordered log of a run, from which the device after a crash at any point is made.
#[derive(Debug)]
pub struct Recording {
    geometry: Geometry,
    tear: u64,
    ops: Vec<SimOp>,
    /// The media before operation `index * KEPT_EVERY`.
    kept: Vec<Media>,
}

impl Recording {
    pub(super) fn new(geometry: Geometry, tear: u64) -> Recording {
        Recording {
            geometry,
            tear,
            ops: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// Notes an operation that is about to be applied to `media`.
    pub(super) fn push(&mut self, op: &SimOp, media: &Media) {
        if self.ops.len().is_multiple_of(KEPT_EVERY) {
            self.kept.push(media.clone());
        }
        self.ops.push(op.clone());
    }

    /// Notes the media at the end, to crash after the last operation.
    pub(super) fn finish(&mut self, media: &Media) {
        if self.ops.len().is_multiple_of(KEPT_EVERY) {
            self.kept.push(media.clone());
        }
    }

    /// The operations in order.
    pub fn ops(&self) -> &[SimOp] {
        &self.ops
    }

    /// The device after a power cut at operation `at`: those before it have completed, it is in
    /// flight itself, and `seed` decides what becomes of everything that was not durable.
    ///
    /// `at` may equal the number of operations: then nothing is in flight.
    ///
    /// # Panics
    /// Where `at` is larger.
    pub fn crash(&self, at: usize, seed: u64) -> SimDevice {
        assert!(
            at <= self.ops.len(),
            "{at} of {} operations",
            self.ops.len()
        );
        let from = at - at % KEPT_EVERY;
        let mut media = self.kept[from / KEPT_EVERY].clone();
        for op in &self.ops[from..at] {
            media.apply(op, self.tear);
        }
        let image = media.crash(self.ops.get(at), self.tear, seed);
        SimDevice::from_image(self.geometry, self.tear, image)
    }
}
