//! Keys: user keys, sequence numbers, and the internal keys that order every version of a key.
//!
//! ```text
//! internal key
//!  off  len  field
//!    0    n  user key   any bytes, ordered bytewise, a prefix before its extensions
//!    n    8  trailer    little-endian u64: sequence number << 8 | kind
//! ```
//!
//! Internal keys are ordered by user key ascending, then by trailer *descending*: the newest
//! version of a key comes first. A seek for what is visible at sequence number `s` therefore
//! looks for (user key, `s`, [`SEEK_KIND`]), and stops at the first key not before it.
//!
//! Functions here take internal keys that were checked where they entered (a block decoder, the
//! memtable); a shorter slice is a programmer's error and panics.

use std::cmp::Ordering;

/// Position of a write in the history of a database; 56 bits are used.
pub type SeqNo = u64;

/// The largest sequence number.
pub const MAX_SEQ: SeqNo = (1 << 56) - 1;

/// Bytes that an internal key adds to its user key.
pub const TRAILER_LEN: usize = 8;

/// The kind byte of seek targets: sorts before every real kind of the same sequence number.
/// Never stored.
pub const SEEK_KIND: u8 = 0xff;

/// What a version of a key says. The numbers are on disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum ValueKind {
    /// The key is deleted.
    Delete = 0,
    /// The key has the value that follows.
    Value = 1,
    /// The key's one earlier version is deleted.
    SingleDelete = 2,
    /// The key's value is in the blob file that the value names.
    BlobReference = 3,
}

impl ValueKind {
    /// The kind with this number, if there is one.
    pub fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            0 => Some(ValueKind::Delete),
            1 => Some(ValueKind::Value),
            2 => Some(ValueKind::SingleDelete),
            3 => Some(ValueKind::BlobReference),
            _ => None,
        }
    }

    /// True for kinds that end a key instead of giving it a value.
    pub fn is_delete(self) -> bool {
        matches!(self, ValueKind::Delete | ValueKind::SingleDelete)
    }
}

/// Packs a sequence number and a kind byte into a trailer.
#[inline]
pub fn pack_trailer(seq: SeqNo, kind: u8) -> u64 {
    debug_assert!(seq <= MAX_SEQ, "sequence numbers have 56 bits");
    seq << 8 | u64::from(kind)
}

/// The user key of an internal key.
#[inline]
pub fn user_key(internal_key: &[u8]) -> &[u8] {
    &internal_key[..internal_key.len() - TRAILER_LEN]
}

/// The trailer of an internal key.
#[inline]
pub fn trailer(internal_key: &[u8]) -> u64 {
    let (_, trailer) = internal_key
        .split_last_chunk::<TRAILER_LEN>()
        .expect("an internal key ends in a trailer");
    u64::from_le_bytes(*trailer)
}

/// The sequence number of an internal key.
#[inline]
pub fn sequence(internal_key: &[u8]) -> SeqNo {
    trailer(internal_key) >> 8
}

/// The kind of an internal key; `None` for a number that no kind has.
#[inline]
pub fn kind(internal_key: &[u8]) -> Option<ValueKind> {
    ValueKind::from_u8(trailer(internal_key) as u8)
}

/// The first eight bytes of a user key as a number, zero-padded: orders as the keys do wherever
/// two heads differ.
#[inline]
pub fn key_head(user_key: &[u8]) -> u64 {
    match user_key.first_chunk::<8>() {
        Some(head) => u64::from_be_bytes(*head),
        None => {
            let mut head = [0; 8];
            head[..user_key.len()].copy_from_slice(user_key);
            u64::from_be_bytes(head)
        }
    }
}

/// Orders user keys bytewise.
#[inline]
pub fn compare_user(a: &[u8], b: &[u8]) -> Ordering {
    if let (Some(head_a), Some(head_b)) = (a.first_chunk::<8>(), b.first_chunk::<8>()) {
        if head_a != head_b {
            return u64::from_be_bytes(*head_a).cmp(&u64::from_be_bytes(*head_b));
        }
        return a[8..].cmp(&b[8..]);
    }
    a.cmp(b)
}

/// Orders internal keys: user key ascending, then trailer descending.
#[inline]
pub fn compare_internal(a: &[u8], b: &[u8]) -> Ordering {
    compare_user(user_key(a), user_key(b)).then_with(|| trailer(b).cmp(&trailer(a)))
}

/// An owned internal key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct InternalKey(Vec<u8>);

impl InternalKey {
    /// The internal key of one version of `user_key`.
    pub fn new(user_key: &[u8], seq: SeqNo, kind: ValueKind) -> Self {
        let mut bytes = Vec::with_capacity(user_key.len() + TRAILER_LEN);
        append_internal(&mut bytes, user_key, seq, kind as u8);
        InternalKey(bytes)
    }

    /// Takes bytes from disk; `None` unless they end in a trailer with a known kind.
    pub fn decode(bytes: Vec<u8>) -> Option<Self> {
        InternalKeyRef::decode(&bytes)?;
        Some(InternalKey(bytes))
    }

    /// The encoded key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The encoded key.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The user key.
    pub fn user_key(&self) -> &[u8] {
        user_key(&self.0)
    }

    /// The sequence number.
    pub fn seq(&self) -> SeqNo {
        sequence(&self.0)
    }
}

impl Ord for InternalKey {
    fn cmp(&self, other: &Self) -> Ordering {
        compare_internal(&self.0, &other.0)
    }
}

impl PartialOrd for InternalKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl std::fmt::Debug for InternalKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match InternalKeyRef::decode(&self.0) {
            Some(key) => write!(f, "{key:?}"),
            None => write!(f, "{}", self.0.escape_ascii()),
        }
    }
}

/// The parts of an internal key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InternalKeyRef<'a> {
    /// The user key.
    pub user_key: &'a [u8],
    /// The sequence number.
    pub seq: SeqNo,
    /// What this version says.
    pub kind: ValueKind,
}

impl<'a> InternalKeyRef<'a> {
    /// Splits an internal key; `None` if it is too short or its kind is unknown.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (user_key, trailer) = bytes.split_last_chunk::<TRAILER_LEN>()?;
        let trailer = u64::from_le_bytes(*trailer);
        Some(InternalKeyRef {
            user_key,
            seq: trailer >> 8,
            kind: ValueKind::from_u8(trailer as u8)?,
        })
    }
}

impl std::fmt::Debug for InternalKeyRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = self.user_key.escape_ascii();
        write!(f, "{key}@{}:{:?}", self.seq, self.kind)
    }
}

/// Appends an internal key to `out`.
pub fn append_internal(out: &mut Vec<u8>, user_key: &[u8], seq: SeqNo, kind: u8) {
    out.extend_from_slice(user_key);
    out.extend_from_slice(&pack_trailer(seq, kind).to_le_bytes());
}

/// Bytes of a lookup key that need no allocation.
const LOOKUP_INLINE: usize = 72;

/// The target of a point lookup: a user key as seen at a snapshot.
#[derive(Clone)]
pub struct LookupKey {
    inline: [u8; LOOKUP_INLINE],
    heap: Vec<u8>,
    len: usize,
}

impl LookupKey {
    /// Looks for the newest version of `user_key` at or below `snapshot`.
    pub fn new(user_key: &[u8], snapshot: SeqNo) -> Self {
        let len = user_key.len() + TRAILER_LEN;
        let mut key = LookupKey {
            inline: [0; LOOKUP_INLINE],
            heap: Vec::new(),
            len,
        };
        if len <= LOOKUP_INLINE {
            let trailer = pack_trailer(snapshot, SEEK_KIND).to_le_bytes();
            key.inline[..user_key.len()].copy_from_slice(user_key);
            key.inline[user_key.len()..len].copy_from_slice(&trailer);
        } else {
            key.heap.reserve_exact(len);
            append_internal(&mut key.heap, user_key, snapshot, SEEK_KIND);
        }
        key
    }

    /// The internal key to seek to.
    #[inline]
    pub fn internal(&self) -> &[u8] {
        if self.len <= LOOKUP_INLINE {
            &self.inline[..self.len]
        } else {
            &self.heap
        }
    }

    /// The user key looked for.
    #[inline]
    pub fn user_key(&self) -> &[u8] {
        user_key(self.internal())
    }

    /// The newest sequence number that the lookup may see.
    #[inline]
    pub fn snapshot(&self) -> SeqNo {
        sequence(self.internal())
    }
}

impl std::fmt::Debug for LookupKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = self.user_key().escape_ascii();
        write!(f, "{key}@{}", self.snapshot())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn newer_versions_come_first_and_seek_targets_before_all_kinds() {
        let newer = InternalKey::new(b"k", 9, ValueKind::Value);
        let older = InternalKey::new(b"k", 8, ValueKind::BlobReference);
        assert!(newer < older);
        let target = LookupKey::new(b"k", 9);
        assert!(compare_internal(target.internal(), newer.as_bytes()).is_lt());
        let target = LookupKey::new(b"k", 8);
        assert!(compare_internal(newer.as_bytes(), target.internal()).is_lt());
        assert!(compare_internal(target.internal(), older.as_bytes()).is_lt());
    }

    #[test]
    fn malformed_keys_do_not_decode() {
        assert!(InternalKeyRef::decode(b"1234567").is_none());
        assert!(InternalKeyRef::decode(&[0; 8]).is_some());
        assert!(InternalKey::decode(vec![0xff; 8]).is_none());
    }

    proptest! {
        #[test]
        fn user_keys_are_ordered_bytewise_at_every_length(
            a in prop::collection::vec(0u8..3, 0..20),
            b in prop::collection::vec(0u8..3, 0..20),
        ) {
            prop_assert_eq!(compare_user(&a, &b), a.cmp(&b));
            let (head_a, head_b) = (key_head(&a), key_head(&b));
            prop_assert!(head_a == head_b || head_a.cmp(&head_b) == a.cmp(&b));
        }

        #[test]
        fn lookup_keys_keep_their_parts(
            key in prop::collection::vec(any::<u8>(), 0..200), snapshot in 0..=MAX_SEQ,
        ) {
            let lookup = LookupKey::new(&key, snapshot);
            prop_assert_eq!(lookup.user_key(), &key[..]);
            prop_assert_eq!(lookup.snapshot(), snapshot);
        }
    }
}
