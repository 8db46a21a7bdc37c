//! What the cache tells of itself, by kind of what is looked up in it.

/// What kind of thing is looked up or kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockKind {
    /// Keys and values.
    Data = 0,
    /// Where the data blocks are.
    Index = 1,
    /// A Bloom filter.
    Filter = 2,
    /// A separated value.
    Value = 3,
    /// A data block of a table that mostly refers to blob files; these are cached compressed.
    Packed = 4,
    /// The index of a blob file, which the open file has beside the cache.
    BlobIndex = 5,
}

/// Kinds there are.
pub(crate) const KINDS: usize = BlockKind::NAMES.len();

impl BlockKind {
    /// Every kind, in the order of [`CacheStats`], with its name in statistics.
    pub const NAMES: [(BlockKind, &'static str); 6] = [
        (BlockKind::Data, "data"),
        (BlockKind::Index, "index"),
        (BlockKind::Filter, "filter"),
        (BlockKind::Value, "value"),
        (BlockKind::Packed, "packed"),
        (BlockKind::BlobIndex, "blob_index"),
    ];

    /// True where a block of this kind is what is looked for as `wanted`: a data block may be cached as it is or
    /// compressed.
    #[inline]
    pub(super) fn is_form_of(self, wanted: BlockKind) -> bool {
        let is_data = |kind| matches!(kind, BlockKind::Data | BlockKind::Packed);
        self == wanted || (is_data(self) && is_data(wanted))
    }
}

/// What a cache did so far and what it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheStats {
    /// Lookups that found something, by [`BlockKind`].
    pub hits: [u64; KINDS],
    /// Lookups that did not.
    pub misses: [u64; KINDS],
    /// Entries put in.
    pub inserts: u64,
    /// Entries that had to go, or that nobody could ask for any more.
    pub evictions: u64,
    /// Bytes read from the device for what was put in, by [`BlockKind`].
    pub read_bytes: [u64; KINDS],
    /// Bytes charged now: entries, and the cache's own tables.
    pub charged: usize,
    /// Of them for index and filter blocks.
    pub index_charged: usize,
    /// Of them for data blocks.
    pub data_charged: usize,
    /// Of them for separated values.
    pub value_charged: usize,
    /// Bytes that values may have now, where data blocks want all they can get.
    pub value_target: usize,
    /// Data blocks and values put in that had gone so short a time before that a little more of the
    /// budget would have kept them.
    pub ghost_hits: [u64; 2],
    /// Bytes reserved now beside the entries.
    pub reserved: usize,
    /// Of them for open blob files with their indexes.
    pub blob_index_reserved: usize,
    /// Entries held now.
    pub blocks: usize,
}

impl CacheStats {
    /// The sizes with their names.
    pub fn sizes(&self) -> [(&'static str, u64); 10] {
        [
            ("charged_bytes", self.charged as u64),
            ("reserved_bytes", self.reserved as u64),
            ("blob_index_bytes", self.blob_index_reserved as u64),
            ("index_and_filter_bytes", self.index_charged as u64),
            ("data_bytes", self.data_charged as u64),
            ("value_bytes", self.value_charged as u64),
            ("value_target_bytes", self.value_target as u64),
            ("entries", self.blocks as u64),
            ("data_ghost_hits", self.ghost_hits[0]),
            ("value_ghost_hits", self.ghost_hits[1]),
        ]
    }
}
