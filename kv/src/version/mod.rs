//! Versions: which tables hold the data, and how that is made durable.
//!
//! `version` is the immutable picture, `edit` a change of it and its encoding, `manifest` the file
//! of edits, `set` the current versions of all column families and the one way to change them.

mod blob_file;
mod blobs;
mod edit;
mod manifest;
mod obsolete;
mod pieces;
mod set;
mod shared_map;
#[expect(
    clippy::module_inception,
    reason = "the module is named after its type, as its neighbours are"
)]
mod version;

pub(crate) use blob_file::{BlobFile, BlobMeta, BlobOpener, OpenBlob};
pub use blobs::BlobUse;
pub(crate) use blobs::{BlobSet, LiveBlob, Share, TableRefs};
pub(crate) use edit::{CfEdit, VersionEdit, put_refs, take_refs};
pub(crate) use manifest::ManifestWriter;
pub(crate) use obsolete::ObsoleteFiles;
pub(crate) use pieces::{Parts, Piece, Pieces};
pub(crate) use set::{COMPARATOR, Recovered, RecoveredCf, VersionSet};
pub(crate) use version::{Hidden, Level, Run, SstFile, SstMeta, TableOpener, Version};
