//! `Samples`: the first pieces of a file that is being written, blocks of a table or values of a blob file,
//! kept in memory until they are enough to train a dictionary for zstd on. The builder then writes them like
//! those that follow.
//!
//! Memory is bounded: [`Samples::wanted_bytes`] says by how much, before there are any.

use super::compression::{BlockCompressor, Compression};

/// Bytes of samples per byte of dictionary, as zstd's authors advise (zdict.h: "about 100 times").
const SAMPLES_PER_BYTE: usize = 100;
/// Bytes of samples at most: they are held in memory.
const SAMPLES_MAX: usize = 4 << 20;
/// Fewer samples than this make no dictionary.
const SAMPLES_MIN: usize = 8;

/// Pieces one after another, as they are before compression.
pub(crate) struct Samples {
    bytes: Vec<u8>,
    lens: Vec<usize>,
    dict_bytes: usize,
}

impl Samples {
    /// Begins to sample for a dictionary of `dict_bytes` at most; `None` where the file gets none.
    pub(crate) fn wanted(compression: Compression, dict_bytes: usize) -> Option<Samples> {
        (Samples::wanted_bytes(compression, dict_bytes) > 0).then(|| Samples {
            bytes: Vec::new(),
            lens: Vec::new(),
            dict_bytes,
        })
    }

    /// Bytes of samples that are enough for a dictionary of `dict_bytes`; 0 where the file gets none.
    pub(crate) fn wanted_bytes(compression: Compression, dict_bytes: usize) -> usize {
        match compression {
            Compression::None => 0,
            Compression::Zstd { .. } => (dict_bytes * SAMPLES_PER_BYTE).min(SAMPLES_MAX),
        }
    }

    /// Bytes that are enough.
    pub(crate) fn enough(&self) -> usize {
        (self.dict_bytes * SAMPLES_PER_BYTE).min(SAMPLES_MAX)
    }

    /// Adds the concatenation of `parts` as one piece.
    pub(crate) fn push(&mut self, parts: &[&[u8]]) {
        let before = self.bytes.len();
        parts
            .iter()
            .for_each(|part| self.bytes.extend_from_slice(part));
        self.lens.push(self.bytes.len() - before);
    }

    /// Bytes of all pieces.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Pieces.
    pub(crate) fn len(&self) -> usize {
        self.lens.len()
    }

    /// The dictionary of what the pieces have in common; `None` where that is too little, or they are.
    pub(crate) fn train(&self) -> Option<Vec<u8>> {
        let lens: Vec<usize> = self.lens.iter().copied().filter(|&len| len > 0).collect();
        if lens.len() < SAMPLES_MIN {
            return None;
        }
        BlockCompressor::train(&self.bytes, &lens, self.dict_bytes)
    }

    /// The pieces in the order they were added.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[..];
        self.lens.iter().map(move |&len| {
            let (piece, after) = rest.split_at(len);
            rest = after;
            piece
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZSTD: Compression = Compression::Zstd { level: 1 };

    #[test]
    fn pieces_come_back_in_order_empty_ones_too_and_train() {
        let mut samples = Samples::wanted(ZSTD, 1024).unwrap();
        let pieces: Vec<String> = (0..300)
            .map(|at| match at % 9 {
                0 => String::new(),
                _ => format!(
                    "the words that all of them have in common, and {}",
                    at * 7919
                ),
            })
            .collect();
        for piece in &pieces {
            let (head, tail) = piece.as_bytes().split_at(piece.len() / 2);
            samples.push(&[head, tail]);
        }
        assert_eq!(samples.len(), 300);
        let bytes: usize = pieces.iter().map(String::len).sum();
        assert_eq!(samples.bytes(), bytes);
        assert!(samples.pieces().eq(pieces.iter().map(String::as_bytes)));
        let dictionary = samples.train().expect("they share much");
        assert!(!dictionary.is_empty() && dictionary.len() <= 1024);
    }

    #[test]
    fn nothing_is_sampled_where_no_dictionary_is_wanted_and_few_pieces_train_none() {
        assert!(Samples::wanted(ZSTD, 0).is_none());
        assert!(Samples::wanted(Compression::None, 1024).is_none());
        assert_eq!(Samples::wanted_bytes(ZSTD, 1 << 20), SAMPLES_MAX);
        let mut samples = Samples::wanted(ZSTD, 1024).unwrap();
        for _ in 1..SAMPLES_MIN {
            samples.push(&[&[7; 2000]]);
        }
        samples.push(&[]);
        assert_eq!(samples.train(), None);
    }
}
