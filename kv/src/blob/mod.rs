//! Blob files: large values apart from the tree, each with its full internal key (LavaStore paper,
//! sections 3.2.1 and 3.4).
//!
//! ```text
//! blob file
//!   header              footer.rs, 64 bytes
//!   records             record.rs, in ascending order of internal keys
//!   dictionary          unless there is none: bytes that zstd was given
//!   index               cbt.rs: where the record of a key is
//!   properties          properties.rs
//!   list of sections    the three above
//!   footer              footer.rs, 96 bytes
//! ```
//!
//! Dictionary, index, properties and list are blocks with a seal each (footer.rs). Prose owner of the format:
//! FORMAT.md of this crate.
//!
//! A file is written once by [`BlobFileBuilder`], which makes it durable, and read by any number of threads
//! through [`BlobFileReader`]. The index is in memory while a reader is open; a Get is one read of exactly the
//! record. A reference to a value is the file's number and the version's internal key, nothing else: which
//! record that is, the index tells, and the key in the record confirms.
//!
//! Invariants: keys ascend strictly; the key asked for is the key that was added, with the same trailer, so a
//! version whose value is in a blob file keeps its sequence number.

mod bits;
mod builder;
mod cbt;
mod cbt_builder;
#[cfg(test)]
mod cbt_tests;
mod footer;
#[cfg(feature = "fuzzing")]
mod fuzzing;
pub(crate) mod garbage;
pub(crate) mod gc;
mod held;
mod iter;
mod key_bits;
mod properties;
mod reader;
mod record;
pub(crate) mod reference;
mod salvage;
pub(crate) mod values;

#[cfg(test)]
mod dictionary_tests;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::builder::BlobFileBuilder;
pub use self::cbt::{BlobIndex, RecordLocation};
pub(crate) use self::footer::HEADER_MAGIC as FILE_MAGIC;
#[cfg(feature = "fuzzing")]
pub(crate) use self::fuzzing::sealed;
pub use self::iter::{BlobFileIterator, StoredValue};
pub use self::properties::BlobFileProperties;
pub use self::reader::BlobFileReader;
pub(crate) use self::salvage::SalvagedFile;
use crate::sstable::compression::Compression;

/// How a blob file is written. Files written with different options can be read side by side.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct BlobFileOptions {
    /// How each value is compressed, alone. A value that would not shrink by an eighth is stored
    /// as it is. Default none.
    pub compression: Compression,
    /// Bytes that values have in common, which zstd then need not repeat in each: a trained
    /// dictionary or any typical content. Stored in the file. Default none; at most 1 MiB.
    pub dictionary: Option<Arc<[u8]>>,
    /// Bytes at most of a dictionary for zstd, trained on the file's first values where `dictionary` gives
    /// none; 0: none. Default 0; at most 1 MiB.
    pub zstd_dict_bytes: usize,
}

/// Longest dictionary in bytes.
pub const MAX_DICTIONARY_LEN: usize = 1 << 20;

/// What messages call a blob file.
fn file_name(number: u64) -> String {
    format!("{number:06}.blob")
}
