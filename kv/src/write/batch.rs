//! `WriteBatch`: changes applied atomically, in the one encoding used by the caller's buffer, the
//! write-ahead log and the memtable's input.
//!
//!  off  len  field
//!    0    8  sequence  of the first entry; entry i has sequence + i. 0 until written
//!    8    4  count     number of entries
//!   12    .  entries:  kind u8, column family varint32, key length varint32, key,
//!                      and for kinds with a value: value length varint32, value
//!
//! Invariants: a batch built here decodes; `count` equals the number of entries; a key is at most
//! [`MAX_KEY_LEN`] and a value at most [`MAX_VALUE_LEN`] bytes. Integers are little-endian.
//!
//! It carries no checksum: the log frames it with one (kv/FORMAT.md, "WAL").

use crate::error::{Error, Result};
use crate::key::{SeqNo, ValueKind};
use crate::write::protection;
use lavafs::codec::{Decoder, put_varint};

/// Longest key in bytes.
pub const MAX_KEY_LEN: usize = 65_535;

/// Longest value in bytes.
pub const MAX_VALUE_LEN: usize = 512 << 20;

/// Longest batch in bytes, as encoded.
pub(crate) const MAX_BATCH_LEN: usize = 1 << 29 | 1 << 20;

/// Bytes before the first entry.
pub(crate) const BATCH_HEADER_LEN: usize = 12;

/// Number of a column family: never reused within one database.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CfId(pub u32);

impl CfId {
    /// The column family that every database has, named "default".
    pub const DEFAULT: CfId = CfId(0);
}

/// A group of changes that are applied together or not at all, in order.
#[derive(Clone, Debug)]
pub struct WriteBatch {
    data: Vec<u8>,
    /// The first change that was over a limit; [`crate::Db::write`] reports it.
    refused: Option<String>,
    /// The column families it changes, each once.
    cfs: Vec<CfId>,
    /// A checksum for each change, in a protected batch.
    checksums: Option<Vec<u64>>,
}

/// One decoded change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchEntry<'a> {
    /// Column family it belongs to.
    pub cf: CfId,
    /// What it does.
    pub kind: ValueKind,
    /// User key.
    pub key: &'a [u8],
    /// The value; empty for deletions.
    pub value: &'a [u8],
}

impl Default for WriteBatch {
    fn default() -> Self {
        WriteBatch::new()
    }
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> Self {
        WriteBatch::with_capacity(0)
    }

    /// An empty batch with room for `bytes` of entries.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut data = Vec::with_capacity(BATCH_HEADER_LEN + bytes);
        data.resize(BATCH_HEADER_LEN, 0);
        WriteBatch {
            data,
            refused: None,
            cfs: Vec::new(),
            checksums: None,
        }
    }

    /// An empty batch each of whose changes gets a checksum as it is added, to be checked when the
    /// batch is written: what changes its memory in between is found. See
    /// [`crate::Options::protection_bytes_per_key`].
    pub fn with_protection() -> Self {
        WriteBatch {
            checksums: Some(Vec::new()),
            ..WriteBatch::new()
        }
    }

    /// Sets `key` to `value` in the default column family.
    ///
    /// A key or value over its limit makes the whole batch fail when it is written.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.put_cf(CfId::DEFAULT, key, value);
    }

    /// Removes `key` from the default column family.
    pub fn delete(&mut self, key: &[u8]) {
        self.delete_cf(CfId::DEFAULT, key);
    }

    /// Ends `key` in the default column family, where it was put at most once since it last ended.
    ///
    /// Cheaper than a deletion: the first merge that meets both the put and this drops the two
    /// together. After two puts the older one may come back, and what deletions and single deletions
    /// of one key do together is not promised either.
    pub fn single_delete(&mut self, key: &[u8]) {
        self.single_delete_cf(CfId::DEFAULT, key);
    }

    /// Sets `key` to `value` in column family `cf`.
    pub fn put_cf(&mut self, cf: CfId, key: &[u8], value: &[u8]) {
        self.push(cf, ValueKind::Value, key, Some(value));
    }

    /// Removes `key` from column family `cf`.
    pub fn delete_cf(&mut self, cf: CfId, key: &[u8]) {
        self.push(cf, ValueKind::Delete, key, None);
    }

    /// As [`WriteBatch::single_delete`], in column family `cf`.
    pub fn single_delete_cf(&mut self, cf: CfId, key: &[u8]) {
        self.push(cf, ValueKind::SingleDelete, key, None);
    }

    /// Number of changes.
    pub fn count(&self) -> u32 {
        u32::from_le_bytes(self.data[8..12].try_into().expect("four bytes"))
    }

    /// True without changes.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// Encoded size in bytes, as the log will hold it.
    pub fn data_size(&self) -> usize {
        self.data.len()
    }

    /// Forgets all changes; keeps the memory.
    pub fn clear(&mut self) {
        self.data.truncate(BATCH_HEADER_LEN);
        self.data.fill(0);
        self.refused = None;
        self.cfs.clear();
        if let Some(checksums) = &mut self.checksums {
            checksums.clear();
        }
    }

    /// The changes in order.
    pub fn iter(&self) -> impl Iterator<Item = BatchEntry<'_>> {
        BatchReader::new(&self.data)
            .expect("a batch has a header")
            .map(|entry| entry.expect("a batch built here decodes"))
    }

    fn push(&mut self, cf: CfId, kind: ValueKind, key: &[u8], value: Option<&[u8]>) {
        if key.len() > MAX_KEY_LEN || value.is_some_and(|value| value.len() > MAX_VALUE_LEN) {
            self.refused.get_or_insert_with(|| {
                format!(
                    "key of {} and value of {} bytes: at most {MAX_KEY_LEN} and {MAX_VALUE_LEN}",
                    key.len(),
                    value.map_or(0, <[u8]>::len),
                )
            });
            return;
        }
        self.data
            .reserve(16 + key.len() + value.map_or(0, <[u8]>::len));
        self.data.push(kind as u8);
        put_varint(&mut self.data, u64::from(cf.0));
        put_varint(&mut self.data, key.len() as u64);
        self.data.extend_from_slice(key);
        if let Some(value) = value {
            put_varint(&mut self.data, value.len() as u64);
            self.data.extend_from_slice(value);
        }
        if self.cfs.last() != Some(&cf) && !self.cfs.contains(&cf) {
            self.cfs.push(cf);
        }
        if let Some(checksums) = &mut self.checksums {
            let entry = protection::of_entry(kind, key, value.unwrap_or_default());
            checksums.push(protection::in_batch(entry, cf));
        }
        let count = self.count() + 1;
        self.data[8..12].copy_from_slice(&count.to_le_bytes());
    }

    /// The limit that the batch broke, if any.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.refused {
            Some(what) => Err(Error::invalid_argument(what.clone())),
            None => Ok(()),
        }
    }

    /// The column families that it changes.
    pub(crate) fn cfs(&self) -> &[CfId] {
        &self.cfs
    }

    /// Gives each change its checksum, if it has none.
    pub(crate) fn protect(&mut self) {
        if self.checksums.is_none() {
            let of = |entry: BatchEntry<'_>| protection::in_batch(entry.checksum(), entry.cf);
            self.checksums = Some(self.iter().map(of).collect());
        }
    }

    /// Checks the checksums of a protected batch.
    pub(crate) fn check_protection(&self) -> Result<()> {
        let Some(checksums) = &self.checksums else {
            return Ok(());
        };
        let bad = |detail| Error::corrupt("write batch in memory", 0_u64, detail);
        let mut entries = BatchReader::new(&self.data).map_err(bad)?;
        for checksum in checksums {
            let entry = entries
                .next()
                .unwrap_or(Err("entry missing"))
                .map_err(bad)?;
            if protection::in_batch(entry.checksum(), entry.cf) != *checksum {
                return Err(bad("an entry has changed since it was added"));
            }
        }
        match entries.next() {
            None => Ok(()),
            Some(_) => Err(bad("entries beyond those added")),
        }
    }

    /// Gives the batch its sequence number.
    pub(crate) fn set_sequence(&mut self, sequence: SeqNo) {
        self.data[..8].copy_from_slice(&sequence.to_le_bytes());
    }

    /// The sequence number of the first change.
    pub(crate) fn sequence(&self) -> SeqNo {
        SeqNo::from_le_bytes(self.data[..8].try_into().expect("eight bytes"))
    }

    /// The encoded batch.
    pub(crate) fn data(&self) -> &[u8] {
        &self.data
    }
}

impl BatchEntry<'_> {
    /// The checksum of kind, key and value.
    pub(crate) fn checksum(&self) -> u64 {
        protection::of_entry(self.kind, self.key, self.value)
    }
}

/// Decodes a batch that may come from a log: bad bytes give an error and end the iteration.
pub(crate) struct BatchReader<'a> {
    decoder: Decoder<'a>,
    sequence: SeqNo,
    count: u32,
    left: u32,
}

impl<'a> BatchReader<'a> {
    /// Reads the header. `Err` tells what disagrees.
    pub(crate) fn new(data: &'a [u8]) -> Result<Self, &'static str> {
        let mut decoder = Decoder::new(data);
        let sequence = decoder.u64().ok_or("batch shorter than its header")?;
        let count = decoder.u32().ok_or("batch shorter than its header")?;
        Ok(BatchReader {
            decoder,
            sequence,
            count,
            left: count,
        })
    }

    /// Sequence number of the first entry.
    pub(crate) fn sequence(&self) -> SeqNo {
        self.sequence
    }

    /// Number of entries that the header tells.
    pub(crate) fn entry_count(&self) -> u32 {
        self.count
    }

    fn entry(&mut self) -> Option<BatchEntry<'a>> {
        let kind = ValueKind::from_u8(self.decoder.u8()?)?;
        let cf = CfId(u32::try_from(self.decoder.varint()?).ok()?);
        let key = self.decoder.bytes_at_most(MAX_KEY_LEN)?;
        let value = match kind {
            ValueKind::Value => self.decoder.bytes_at_most(MAX_VALUE_LEN)?,
            ValueKind::Delete | ValueKind::SingleDelete => &[],
            ValueKind::BlobReference => return None,
        };
        Some(BatchEntry {
            cf,
            kind,
            key,
            value,
        })
    }
}

impl<'a> Iterator for BatchReader<'a> {
    type Item = Result<BatchEntry<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let rest = self.decoder.rest();
            self.decoder = Decoder::new(&[]);
            return (!rest.is_empty()).then_some(Err("bytes after a batch's last entry"));
        }
        match self.entry() {
            Some(entry) => {
                self.left -= 1;
                Some(Ok(entry))
            }
            None => {
                self.left = 0;
                self.decoder = Decoder::new(&[]);
                Some(Err("bad entry in a batch"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_reads_back_in_order() {
        let mut batch = WriteBatch::new();
        batch.put(b"a", b"1");
        batch.delete(b"b");
        batch.put_cf(CfId(300), b"", &[7; 70_000]);
        batch.set_sequence(42);
        let reader = BatchReader::new(batch.data()).unwrap();
        assert_eq!((reader.sequence(), reader.entry_count()), (42, 3));
        let entries: Vec<_> = reader.map(|entry| entry.unwrap()).collect();
        assert_eq!(entries[0].key, b"a");
        assert_eq!(entries[1].kind, ValueKind::Delete);
        assert_eq!(entries[2].cf, CfId(300));
        assert_eq!(entries[2].value.len(), 70_000);
        assert_eq!(batch.iter().count(), 3);
        batch.clear();
        assert!(batch.is_empty() && batch.iter().next().is_none());
    }

    #[test]
    fn an_oversized_key_fails_the_whole_batch() {
        let mut batch = WriteBatch::new();
        batch.put(b"fine", b"");
        batch.put(&vec![0; MAX_KEY_LEN + 1], b"");
        assert!(batch.check().is_err());
        assert_eq!(batch.count(), 1);
        batch.clear();
        assert!(batch.check().is_ok());
    }

    #[test]
    fn any_flipped_bit_of_a_protected_batch_is_found_before_it_is_written() {
        let mut batch = WriteBatch::with_protection();
        batch.put(b"key", b"value");
        batch.delete_cf(CfId(3), b"other");
        batch.check_protection().unwrap();
        let mut late = WriteBatch::new();
        late.put(b"key", b"value");
        late.delete_cf(CfId(3), b"other");
        late.protect();
        assert_eq!(late.checksums, batch.checksums);
        for at in 8..batch.data.len() {
            for bit in 0..8 {
                let mut bad = batch.clone();
                bad.data[at] ^= 1 << bit;
                let error = bad.check_protection().unwrap_err();
                assert!(error.is_corrupt(), "byte {at}, bit {bit}");
            }
        }
        assert_eq!(batch.cfs(), [CfId(0), CfId(3)]);
        batch.clear();
        assert!(batch.check_protection().is_ok() && batch.cfs().is_empty());
    }

    #[test]
    fn every_cut_and_every_flipped_byte_decodes_or_errors_but_never_panics() {
        let mut batch = WriteBatch::new();
        batch.put(b"key", b"value");
        batch.delete(b"other");
        batch.single_delete(b"once");
        let whole = batch.data().to_vec();
        for cut in 0..whole.len() {
            let outcome = BatchReader::new(&whole[..cut])
                .and_then(|reader| reader.collect::<Result<Vec<_>, _>>());
            assert!(outcome.is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bad = whole.clone();
                bad[at] ^= 1 << bit;
                if let Ok(reader) = BatchReader::new(&bad) {
                    assert!(reader.take(100).count() < 100);
                }
            }
        }
    }
}
