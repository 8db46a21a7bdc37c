//! Block compression: none or zstd, with contexts that are made once per thread or builder.
//!
//! A compressed block is the length of its contents as a varint, then one zstd frame. A block
//! that saves less than an eighth is kept as it is: reading it would cost more than it saves.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{DCtx, DDict};

use crate::error::{Error, Result};
use crate::sstable::varint;

/// How the blocks of a new table are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// Blocks are stored as they are.
    #[default]
    None,
    /// Zstandard.
    Zstd {
        /// 1 to 22; 1 is the fastest. Negative levels are faster still.
        level: i32,
    },
}

/// The number of a compression on disk.
pub(crate) const CODE_NONE: u8 = 0;
/// See [`CODE_NONE`].
pub(crate) const CODE_ZSTD: u8 = 1;
/// Zstandard with the file's dictionary; see [`CODE_NONE`].
pub(crate) const CODE_ZSTD_DICTIONARY: u8 = 2;

/// What one compressed byte can become at most: zstd spends at least four bytes on a run of
/// 128 KiB. Bounds what a damaged length can make us allocate.
const MAX_RATIO: u64 = 32 << 10;

/// Slack of the bound for very short frames.
const RATIO_SLACK: u64 = 128 << 10;

/// Compresses blocks one after another with one context and one buffer.
pub(crate) struct BlockCompressor {
    context: Option<Compressor<'static>>,
    buf: Vec<u8>,
}

impl BlockCompressor {
    pub(crate) fn new(compression: Compression) -> Result<Self> {
        let context = match compression {
            Compression::None => None,
            Compression::Zstd { level } => Some(Compressor::new(level).map_err(|error| {
                Error::invalid_argument(format!("zstd level {level}: {error}"))
            })?),
        };
        Ok(BlockCompressor {
            context,
            buf: Vec::new(),
        })
    }

    /// Compresses with zstd and a dictionary, which decompression must be given too.
    pub(crate) fn with_dictionary(level: i32, dictionary: &[u8]) -> Result<Self> {
        let context = Compressor::with_dictionary(level, dictionary).map_err(|error| {
            Error::invalid_argument(format!("zstd level {level} with a dictionary: {error}"))
        })?;
        Ok(BlockCompressor {
            context: Some(context),
            buf: Vec::new(),
        })
    }

    /// A dictionary of at most `len` bytes of what `samples`, concatenated pieces of these lengths, have
    /// in common; `None` where there is too little of it to gain by.
    pub(crate) fn train(samples: &[u8], lens: &[usize], len: usize) -> Option<Vec<u8>> {
        let trained = zstd::dict::from_continuous(samples, lens, len).ok()?;
        (!trained.is_empty()).then_some(trained)
    }

    /// False where nothing is ever compressed.
    pub(crate) fn is_active(&self) -> bool {
        self.context.is_some()
    }

    /// The compressed form of `raw` if it is small enough to be worth it.
    pub(crate) fn compress(&mut self, raw: &[u8]) -> Option<&[u8]> {
        let context = self.context.as_mut()?;
        self.buf.clear();
        varint::put(&mut self.buf, raw.len() as u64);
        let head = self.buf.len();
        // An output that would not be kept does not fit, and zstd gives up on it early.
        let limit = raw.len() - raw.len() / 8;
        self.buf.resize(limit.max(head), 0);
        let written = context
            .compress_to_buffer(raw, &mut self.buf[head..])
            .ok()?;
        Some(&self.buf[..head + written])
    }
}

thread_local! {
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    static DICTIONARY_CONTEXT: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

thread_local! {
    static PACKER: RefCell<Option<BlockCompressor>> = const { RefCell::new(None) };
}

/// `raw` as [`decompress`] takes it, compressed for memory: fast rather than well. `None` where
/// that is not worth it.
pub(crate) fn pack(raw: &[u8]) -> Option<Vec<u8>> {
    PACKER.with_borrow_mut(|slot| {
        let packer = match slot {
            Some(packer) => packer,
            None => slot.insert(BlockCompressor::new(Compression::Zstd { level: 1 }).ok()?),
        };
        packer.compress(raw).map(<[u8]>::to_vec)
    })
}

/// A dictionary as it was read from a file, ready for decompression.
pub(crate) struct Dictionary(DDict<'static>);

impl Dictionary {
    /// Copies the dictionary. zstd refuses one that begins as trained ones do and is damaged.
    pub(crate) fn new(bytes: &[u8]) -> Result<Self, &'static str> {
        DDict::try_create(bytes)
            .map(Dictionary)
            .ok_or("damaged dictionary")
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        self.0.sizeof()
    }
}

/// The contents of a block compressed with zstd, or what is wrong with it.
pub(crate) fn decompress(stored: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (len, frame) = compressed_parts(stored)?;
    let mut raw = Vec::with_capacity(len);
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let context = match slot {
            Some(context) => context,
            None => slot.insert(Decompressor::new().map_err(|_| "no memory for zstd")?),
        };
        let written = context
            .decompress_to_buffer(frame, &mut raw)
            .map_err(|_| "compressed block does not decompress")?;
        if written != len {
            return Err("compressed block of another length than it says");
        }
        Ok(())
    })?;
    Ok(raw)
}

/// Like [`decompress`], of a block compressed with a dictionary.
pub(crate) fn decompress_with(
    stored: &[u8],
    dictionary: &Dictionary,
) -> Result<Vec<u8>, &'static str> {
    let (len, frame) = compressed_parts(stored)?;
    let mut raw: Vec<u8> = Vec::with_capacity(len);
    DICTIONARY_CONTEXT.with_borrow_mut(|slot| {
        let context = match slot {
            Some(context) => context,
            None => slot.insert(DCtx::try_create().ok_or("no memory for zstd")?),
        };
        let written = context
            .decompress_using_ddict(&mut raw, frame, &dictionary.0)
            .map_err(|_| "compressed block does not decompress")?;
        if written != len {
            return Err("compressed block of another length than it says");
        }
        Ok(())
    })?;
    Ok(raw)
}

/// The length that the contents have, and the frame. A length that no frame of that size can
/// have is refused.
fn compressed_parts(stored: &[u8]) -> Result<(usize, &[u8]), &'static str> {
    let mut at = 0;
    let len = varint::get(stored, &mut at).ok_or("compressed block without a length")?;
    let frame = &stored[at..];
    if len > (frame.len() as u64).saturating_mul(MAX_RATIO) + RATIO_SLACK {
        return Err("compressed block with an impossible length");
    }
    Ok((len as usize, frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressible_blocks_come_back_and_others_are_left_alone() {
        let mut zstd = BlockCompressor::new(Compression::Zstd { level: 1 }).unwrap();
        for len in [0usize, 1, 100, 4096, 3 << 20] {
            let zeros = vec![0; len];
            if let Some(stored) = zstd.compress(&zeros) {
                assert!(stored.len() <= len - len / 8);
                assert_eq!(decompress(stored).unwrap(), zeros);
            } else {
                assert!(len <= 100, "zeros compress");
            }
        }
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .take(4096)
        .collect();
        assert!(zstd.compress(&noise).is_none());
        let mut none = BlockCompressor::new(Compression::None).unwrap();
        assert!(none.compress(&[0; 4096]).is_none());
    }

    #[test]
    fn a_damaged_dictionary_is_an_error_and_no_panic() {
        // The magic of a trained dictionary, and no tables behind it.
        assert!(Dictionary::new(&[0x37, 0xa4, 0x30, 0xec, 1, 2, 3, 4, 5, 6]).is_err());
        assert!(Dictionary::new(b"any bytes that values may have").is_ok());
    }

    #[test]
    fn damaged_lengths_do_not_allocate() {
        let mut stored = Vec::new();
        varint::put(&mut stored, u64::MAX);
        stored.extend_from_slice(&[0; 20]);
        assert!(decompress(&stored).is_err());
        assert!(decompress(&[0x80; 12]).is_err());
        assert!(decompress(&[]).is_err());
    }
}
