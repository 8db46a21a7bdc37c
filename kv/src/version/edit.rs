//! `VersionEdit`: one atomic change of the database's structure, and its encoding.
//!
//! A record is a sequence of fields, each `tag varint, length varint, body`. A tag of 64 or more
//! that is unknown is skipped; an unknown lower one refuses the manifest. Fields:
//!
//!  tag  body
//!    1  comparator name                         in the first record
//!    2  next file number varint
//!    3  last sequence varint                    at least that of every table named
//!    4  cf varint, name bytes                   column family created
//!    5  cf varint                               column family dropped
//!    6  cf varint, log number varint            logs below hold nothing unflushed of it
//!    7  cf varint, level varint, file number varint          table removed
//!    8  cf varint, level varint, run varint, table           table added
//!    9  next column family number varint
//!   80  cf varint, file number varint, seconds since 1970 varint     when a table added before it was made
//!   81  cf varint, number varint                            a scan found the blob file scattered
//!   82  cf varint, file number varint, entries varint, value bytes varint
//!                                                           what a table added before it keeps for snapshots
//!   16  as 8, then to the end: blob file number, references, value bytes varints
//!   17  cf varint, blob file                                blob file added
//!   18  cf varint, number varint, number varint             the second inherits from the first
//!   19  cf varint, number varint, then pieces to the end: user key bytes, number varint
//!                                                           several inherit, each a range of keys
//!   20  cf varint, table varint, number varint, then to the end: blob file number, references, value bytes
//!       varints                                             what the table refers to under the number
//!
//! blob file: number, file size, records, value bytes varints, checksum u64, smallest and largest
//! internal key as bytes.
//!
//! table: number, file size, entries, deletions, smallest seq, largest seq varints, checksum u64,
//! smallest and largest internal key as bytes (varint length first).
//!
//! Invariant: blob files are added first, then inherited; then tables are removed, and added last,
//! so a move of a table between levels is both.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::file_names::FileNumber;
use crate::key::SeqNo;
use crate::write::batch::{CfId, MAX_KEY_LEN};
use lavafs::codec::{Decoder, put_bytes, put_varint};

use super::blob_file::BlobMeta;
use super::blobs::{BlobUse, Share, TableRefs};
use super::pieces::{Piece, Pieces};
use super::version::{Hidden, SstMeta};

/// Change of one column family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct CfEdit {
    /// Created, with this name.
    pub(crate) created: Option<String>,
    pub(crate) dropped: bool,
    /// Logs below this number hold nothing unflushed of it.
    pub(crate) log_number: Option<FileNumber>,
    /// Level and number.
    pub(crate) removed: Vec<(u32, FileNumber)>,
    /// Level, run id and table.
    pub(crate) added: Vec<(u32, u64, SstMeta)>,
    pub(crate) blobs: Vec<BlobMeta>,
    /// A number, and the blob file that has its live records from now on.
    pub(crate) heirs: Vec<(FileNumber, FileNumber)>,
    /// A number, and the blob files that have its live records from now on.
    pub(crate) splits: Vec<(FileNumber, Pieces)>,
    /// What tables refer to under numbers with several heirs.
    pub(crate) shares: Vec<Share>,
    /// Blob files that scans found scattered.
    pub(crate) scattered: Vec<FileNumber>,
}

/// One atomic change of the structure.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct VersionEdit {
    pub(crate) comparator: Option<String>,
    pub(crate) next_file_number: Option<FileNumber>,
    pub(crate) last_sequence: Option<SeqNo>,
    pub(crate) next_cf: Option<u32>,
    pub(crate) cfs: BTreeMap<CfId, CfEdit>,
}

const TAG_COMPARATOR: u64 = 1;
const TAG_NEXT_FILE: u64 = 2;
const TAG_LAST_SEQUENCE: u64 = 3;
const TAG_CF_CREATED: u64 = 4;
const TAG_CF_DROPPED: u64 = 5;
const TAG_LOG_NUMBER: u64 = 6;
const TAG_REMOVED: u64 = 7;
const TAG_ADDED: u64 = 8;
const TAG_NEXT_CF: u64 = 9;
const TAG_CREATED: u64 = 80;
const TAG_SCATTERED: u64 = 81;
const TAG_HIDDEN: u64 = 82;
const TAG_ADDED_WITH_REFS: u64 = 16;
const TAG_BLOB: u64 = 17;
const TAG_HEIR: u64 = 18;
const TAG_SPLIT: u64 = 19;
const TAG_SHARE: u64 = 20;
/// Unknown tags from here on are skipped.
const TAG_FIRST_SKIPPABLE: u64 = 64;

/// An internal key is a user key and 8 bytes.
const MAX_INTERNAL_KEY_LEN: usize = MAX_KEY_LEN + 8;

impl VersionEdit {
    /// An edit of one column family.
    pub(crate) fn of_cf(cf: CfId, edit: CfEdit) -> Self {
        VersionEdit {
            cfs: BTreeMap::from([(cf, edit)]),
            ..VersionEdit::default()
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(name) = &self.comparator {
            put_field(&mut out, TAG_COMPARATOR, |body| {
                body.extend_from_slice(name.as_bytes());
            });
        }
        let numbers = [
            (TAG_NEXT_FILE, self.next_file_number),
            (TAG_LAST_SEQUENCE, self.last_sequence),
            (TAG_NEXT_CF, self.next_cf.map(u64::from)),
        ];
        for (tag, number) in numbers {
            if let Some(number) = number {
                put_field(&mut out, tag, |body| put_varint(body, number));
            }
        }
        for (cf, edit) in &self.cfs {
            edit.encode(u64::from(cf.0), &mut out);
        }
        out
    }

    /// Decodes a record; `Err` tells what disagrees.
    pub(crate) fn decode(data: &[u8]) -> Result<VersionEdit, String> {
        let mut edit = VersionEdit::default();
        let mut decoder = Decoder::new(data);
        while !decoder.is_empty() {
            let tag = decoder.varint().ok_or("cut in a tag")?;
            let body = decoder.bytes_at_most(data.len()).ok_or("cut in a field")?;
            let known = edit.decode_field(tag, &mut Decoder::new(body));
            match known {
                Some(true) => {}
                Some(false) if tag >= TAG_FIRST_SKIPPABLE => {}
                Some(false) => return Err(format!("field {tag} is of a newer format")),
                None => return Err(format!("bad field {tag}")),
            }
        }
        Ok(edit)
    }

    /// `None` for a bad body, `Some(false)` for an unknown tag.
    fn decode_field(&mut self, tag: u64, body: &mut Decoder<'_>) -> Option<bool> {
        match tag {
            TAG_COMPARATOR => {
                self.comparator = Some(String::from_utf8(body.rest().to_vec()).ok()?);
                return Some(true);
            }
            TAG_NEXT_FILE => self.next_file_number = Some(body.varint()?),
            TAG_LAST_SEQUENCE => self.last_sequence = Some(body.varint()?),
            TAG_NEXT_CF => self.next_cf = Some(u32::try_from(body.varint()?).ok()?),
            TAG_CF_CREATED..=TAG_ADDED | TAG_ADDED_WITH_REFS..=TAG_SHARE => {
                let cf = CfId(u32::try_from(body.varint()?).ok()?);
                self.cfs.entry(cf).or_default().decode_field(tag, body)?;
            }
            TAG_CREATED => {
                let cf = CfId(u32::try_from(body.varint()?).ok()?);
                let (number, created) = (body.varint()?, body.varint()?);
                if let Some(meta) = self.added_before(cf, number) {
                    meta.created = created;
                }
            }
            TAG_HIDDEN => {
                let cf = CfId(u32::try_from(body.varint()?).ok()?);
                let number = body.varint()?;
                let hidden = Hidden {
                    entries: body.varint()?,
                    value_bytes: body.varint()?,
                };
                if let Some(meta) = self.added_before(cf, number) {
                    meta.hidden = hidden;
                }
            }
            TAG_SCATTERED => {
                let cf = CfId(u32::try_from(body.varint()?).ok()?);
                let number = body.varint()?;
                self.cfs.entry(cf).or_default().scattered.push(number);
            }
            _ => return Some(false),
        }
        body.is_empty().then_some(true)
    }

    /// A table that this very edit adds; what is said of any other says nothing.
    fn added_before(&mut self, cf: CfId, number: FileNumber) -> Option<&mut SstMeta> {
        let added = self.cfs.get_mut(&cf)?.added.iter_mut().rev();
        added
            .map(|(.., meta)| meta)
            .find(|meta| meta.number == number)
    }
}

impl CfEdit {
    /// True where numbers get heirs.
    pub(crate) fn has_heirs(&self) -> bool {
        !self.heirs.is_empty() || !self.splits.is_empty()
    }

    /// Numbers with the blob files that they lead to from now on.
    pub(crate) fn all_heirs(&self) -> impl Iterator<Item = (FileNumber, Cow<'_, Pieces>)> {
        let one = self.heirs.iter();
        let one = one.map(|&(number, heir)| (number, Cow::Owned(Pieces::one(heir))));
        let several = self.splits.iter();
        one.chain(several.map(|(number, pieces)| (*number, Cow::Borrowed(pieces))))
    }

    fn encode(&self, cf: u64, out: &mut Vec<u8>) {
        if let Some(name) = &self.created {
            put_field(out, TAG_CF_CREATED, |body| {
                put_varint(body, cf);
                put_bytes(body, name.as_bytes());
            });
        }
        if self.dropped {
            put_field(out, TAG_CF_DROPPED, |body| put_varint(body, cf));
        }
        if let Some(number) = self.log_number {
            put_field(out, TAG_LOG_NUMBER, |body| {
                put_varint(body, cf);
                put_varint(body, number);
            });
        }
        for &(level, number) in &self.removed {
            put_field(out, TAG_REMOVED, |body| {
                put_varint(body, cf);
                put_varint(body, u64::from(level));
                put_varint(body, number);
            });
        }
        for (level, run, meta) in &self.added {
            let tag = match meta.blob_refs.is_empty() {
                true => TAG_ADDED,
                false => TAG_ADDED_WITH_REFS,
            };
            put_field(out, tag, |body| {
                put_varint(body, cf);
                put_varint(body, u64::from(*level));
                put_varint(body, *run);
                put_table(body, meta);
                put_refs(body, &meta.blob_refs);
            });
            if meta.created > 0 {
                put_field(out, TAG_CREATED, |body| {
                    put_varint(body, cf);
                    put_varint(body, meta.number);
                    put_varint(body, meta.created);
                });
            }
            if meta.hidden != Hidden::default() {
                put_field(out, TAG_HIDDEN, |body| {
                    put_varint(body, cf);
                    put_varint(body, meta.number);
                    put_varint(body, meta.hidden.entries);
                    put_varint(body, meta.hidden.value_bytes);
                });
            }
        }
        for meta in &self.blobs {
            put_field(out, TAG_BLOB, |body| {
                put_varint(body, cf);
                put_blob(body, meta);
            });
        }
        for &(number, heir) in &self.heirs {
            put_field(out, TAG_HEIR, |body| {
                put_varint(body, cf);
                put_varint(body, number);
                put_varint(body, heir);
            });
        }
        for (number, pieces) in &self.splits {
            put_field(out, TAG_SPLIT, |body| {
                put_varint(body, cf);
                put_varint(body, *number);
                for piece in pieces.as_slice() {
                    put_bytes(body, &piece.from);
                    put_varint(body, piece.file);
                }
            });
        }
        for &number in &self.scattered {
            put_field(out, TAG_SCATTERED, |body| {
                put_varint(body, cf);
                put_varint(body, number);
            });
        }
        for share in &self.shares {
            put_field(out, TAG_SHARE, |body| {
                put_varint(body, cf);
                put_varint(body, share.table);
                put_varint(body, share.number);
                put_refs(body, &share.parts);
            });
        }
    }

    fn decode_field(&mut self, tag: u64, body: &mut Decoder<'_>) -> Option<()> {
        match tag {
            TAG_CF_CREATED => {
                let name = body.bytes_at_most(MAX_KEY_LEN)?.to_vec();
                self.created = Some(String::from_utf8(name).ok()?);
            }
            TAG_CF_DROPPED => self.dropped = true,
            TAG_LOG_NUMBER => self.log_number = Some(body.varint()?),
            TAG_REMOVED => {
                let level = u32::try_from(body.varint()?).ok()?;
                self.removed.push((level, body.varint()?));
            }
            TAG_BLOB => self.blobs.push(take_blob(body)?),
            TAG_HEIR => self.heirs.push((body.varint()?, body.varint()?)),
            TAG_SPLIT => self.splits.push((body.varint()?, take_pieces(body)?)),
            TAG_SHARE => self.shares.push(Share {
                table: body.varint()?,
                number: body.varint()?,
                parts: take_refs(body)?,
            }),
            _ => {
                let level = u32::try_from(body.varint()?).ok()?;
                let run = body.varint()?;
                let mut meta = take_table(body)?;
                if tag == TAG_ADDED_WITH_REFS {
                    meta.blob_refs = take_refs(body)?;
                }
                self.added.push((level, run, meta));
            }
        }
        Some(())
    }
}

fn put_field(out: &mut Vec<u8>, tag: u64, body: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = Vec::new();
    body(&mut bytes);
    put_varint(out, tag);
    put_bytes(out, &bytes);
}

fn put_table(out: &mut Vec<u8>, meta: &SstMeta) {
    for number in [
        meta.number,
        meta.file_size,
        meta.entries,
        meta.deletions,
        meta.smallest_seq,
        meta.largest_seq,
    ] {
        put_varint(out, number);
    }
    out.extend_from_slice(&meta.checksum.to_le_bytes());
    put_bytes(out, &meta.smallest);
    put_bytes(out, &meta.largest);
}

fn take_table(body: &mut Decoder<'_>) -> Option<SstMeta> {
    let number = body.varint()?;
    let file_size = body.varint()?;
    let entries = body.varint()?;
    let deletions = body.varint()?;
    let smallest_seq = body.varint()?;
    let largest_seq = body.varint()?;
    let checksum = body.u64()?;
    let smallest = body.bytes_at_most(MAX_INTERNAL_KEY_LEN)?.to_vec();
    let largest = body.bytes_at_most(MAX_INTERNAL_KEY_LEN)?.to_vec();
    if smallest.len() < 8 || largest.len() < 8 {
        return None;
    }
    Some(SstMeta {
        number,
        file_size,
        smallest,
        largest,
        entries,
        deletions,
        checksum,
        smallest_seq,
        largest_seq,
        created: 0,
        hidden: Hidden::default(),
        blob_refs: TableRefs::new(),
    })
}

/// Appends a table's references to blob files; they reach to the end of their field.
pub(crate) fn put_refs(out: &mut Vec<u8>, refs: &TableRefs) {
    for (number, used) in refs {
        put_varint(out, *number);
        put_varint(out, used.references);
        put_varint(out, used.value_bytes);
    }
}

/// Takes references until nothing is left; `None` where they do not ascend or one is empty.
pub(crate) fn take_refs(body: &mut Decoder<'_>) -> Option<TableRefs> {
    let mut refs = TableRefs::new();
    while !body.is_empty() {
        let number = body.varint()?;
        let used = BlobUse {
            references: body.varint()?,
            value_bytes: body.varint()?,
        };
        let ascends = refs.last().is_none_or(|&(last, _)| last < number);
        if !ascends || used.references == 0 {
            return None;
        }
        refs.push((number, used));
    }
    Some(refs)
}

/// Takes pieces until nothing is left; `None` where they are not in order, or fewer than two.
fn take_pieces(body: &mut Decoder<'_>) -> Option<Pieces> {
    let mut pieces = Vec::new();
    while !body.is_empty() {
        let from = body.bytes_at_most(MAX_KEY_LEN)?.to_vec();
        let file = body.varint()?;
        pieces.push(Piece { from, file });
    }
    Pieces::checked(pieces).filter(|pieces| pieces.single().is_none())
}

fn put_blob(out: &mut Vec<u8>, meta: &BlobMeta) {
    for number in [meta.number, meta.file_size, meta.records, meta.value_bytes] {
        put_varint(out, number);
    }
    out.extend_from_slice(&meta.checksum.to_le_bytes());
    put_bytes(out, &meta.smallest);
    put_bytes(out, &meta.largest);
}

fn take_blob(body: &mut Decoder<'_>) -> Option<BlobMeta> {
    let meta = BlobMeta {
        number: body.varint()?,
        file_size: body.varint()?,
        records: body.varint()?,
        value_bytes: body.varint()?,
        checksum: body.u64()?,
        smallest: body.bytes_at_most(MAX_INTERNAL_KEY_LEN)?.to_vec(),
        largest: body.bytes_at_most(MAX_INTERNAL_KEY_LEN)?.to_vec(),
    };
    let whole = meta.smallest.len() >= 8 && meta.largest.len() >= 8;
    whole.then_some(meta)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> VersionEdit {
        let meta = SstMeta {
            number: 9,
            file_size: 1 << 40,
            smallest: b"apple\0\0\0\0\0\0\0\x01".to_vec(),
            largest: b"pear\0\0\0\0\0\0\0\x01".to_vec(),
            entries: 1000,
            deletions: 3,
            checksum: u64::MAX,
            smallest_seq: 5,
            largest_seq: 500,
            created: 1_700_000_000,
            hidden: Hidden::default(),
            blob_refs: TableRefs::new(),
        };
        let used = |references, value_bytes| BlobUse {
            references,
            value_bytes,
        };
        let referring = SstMeta {
            number: 10,
            hidden: Hidden {
                entries: 40,
                value_bytes: 1 << 34,
            },
            blob_refs: vec![(3, used(1, 512)), (700, used(1 << 20, 1 << 40))],
            ..meta.clone()
        };
        let blob = BlobMeta {
            number: 11,
            file_size: 4096,
            records: 2,
            value_bytes: 8000,
            checksum: 77,
            smallest: meta.smallest.clone(),
            largest: meta.largest.clone(),
        };
        let piece = |from: &[u8], file| Piece {
            from: from.to_vec(),
            file,
        };
        let pieces = Pieces::of(vec![piece(b"", 11), piece(b"middle", 12)]);
        let default = CfEdit {
            log_number: Some(7),
            removed: vec![(0, 3), (6, 4)],
            added: vec![(1, 0, meta), (1, 0, referring)],
            blobs: vec![blob],
            heirs: vec![(3, 11), (700, 11)],
            splits: vec![(4, pieces)],
            scattered: vec![11, 700],
            shares: vec![Share {
                table: 10,
                number: 4,
                parts: vec![(11, used(1, 512)), (12, used(7, 1 << 33))],
            }],
            ..CfEdit::default()
        };
        let other = CfEdit {
            created: Some("other".to_owned()),
            dropped: true,
            ..CfEdit::default()
        };
        VersionEdit {
            comparator: Some("bytewise".to_owned()),
            next_file_number: Some(10),
            last_sequence: Some(501),
            next_cf: Some(2),
            cfs: BTreeMap::from([(CfId(0), default), (CfId(1), other)]),
        }
    }

    #[test]
    fn an_edit_reads_back() {
        let edit = sample();
        assert_eq!(VersionEdit::decode(&edit.encode()), Ok(edit));
    }

    #[test]
    fn unknown_high_tags_are_skipped_and_low_ones_refused() {
        let mut data = sample().encode();
        put_field(&mut data, 127, |body| body.extend_from_slice(b"future"));
        assert_eq!(VersionEdit::decode(&data), Ok(sample()));
        put_field(&mut data, 10, |body| body.push(0));
        assert!(VersionEdit::decode(&data).unwrap_err().contains("newer"));
    }

    #[test]
    fn damaged_edits_decode_or_error_but_never_panic() {
        let whole = sample().encode();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bad = whole.clone();
                bad[at] ^= 1 << bit;
                let _ = VersionEdit::decode(&bad);
            }
            let _ = VersionEdit::decode(&whole[..at]);
        }
    }
}
