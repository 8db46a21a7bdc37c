//! Which versions of a key survive a merge. Pure: fed internal keys in order, it says keep or drop.
//!
//! Snapshots cut history into stripes: versions of a key in one stripe look the same to every
//! reader, so only the newest of them is kept. A deletion in the oldest stripe hides nothing
//! once no older table can hold its key, and is dropped too. A single deletion and the put that
//! it ends, in one stripe, go together wherever they meet ([`VersionFilter::ends`]). Until then a newer put does
//! not drop a single deletion: that put may go with a newer single deletion of its own, and what the
//! older one was to end, further down, would come back.

use crate::key::{InternalKeyRef, SeqNo, ValueKind};

/// What a merge must keep.
#[derive(Clone, Debug)]
pub(crate) struct Retention {
    /// Sequence numbers of the snapshots, ascending.
    pub(crate) snapshots: Vec<SeqNo>,
}

/// Decides on one entry after another of a merge.
#[derive(Debug)]
pub(crate) struct VersionFilter {
    snapshots: Vec<SeqNo>,
    last_key: Vec<u8>,
    /// Stripe of the last entry of `last_key`; `None` before the first entry.
    last_stripe: Option<usize>,
}

impl VersionFilter {
    pub(crate) fn new(retention: Retention) -> Self {
        debug_assert!(retention.snapshots.is_sorted());
        VersionFilter {
            snapshots: retention.snapshots,
            last_key: Vec::new(),
            last_stripe: None,
        }
    }

    /// True where the last entry offered had this user key.
    pub(crate) fn is_same_key(&self, user_key: &[u8]) -> bool {
        self.last_stripe.is_some() && self.last_key == user_key
    }

    /// True where `older`, the next entry after the single deletion that was kept last, is the put
    /// that it ends, and no snapshot sees the one without the other: both are dropped. Ask before
    /// `older` is offered to [`VersionFilter::keep`].
    pub(crate) fn ends(&self, older: InternalKeyRef<'_>) -> bool {
        let puts = matches!(older.kind, ValueKind::Value | ValueKind::BlobReference);
        puts && self.is_same_key(older.user_key) && self.last_stripe == Some(self.stripe(older.seq))
    }

    /// The number of snapshots that do not see an entry of this sequence number.
    fn stripe(&self, seq: SeqNo) -> usize {
        self.snapshots.partition_point(|&snapshot| snapshot < seq)
    }

    /// True where `entry` must be kept. `is_oldest` says whether no table outside the merge can
    /// hold an older version of the key; it is asked for deletions only.
    pub(crate) fn keep(
        &mut self,
        entry: InternalKeyRef<'_>,
        is_oldest: impl FnOnce(&[u8]) -> bool,
    ) -> bool {
        // The first snapshot that sees the entry; those below do not.
        let stripe = self.stripe(entry.seq);
        let shadowed = self.is_same_key(entry.user_key) && self.last_stripe == Some(stripe);
        if !self.is_same_key(entry.user_key) {
            self.last_key.clear();
            self.last_key.extend_from_slice(entry.user_key);
        }
        self.last_stripe = Some(stripe);
        if shadowed && entry.kind != ValueKind::SingleDelete {
            return false;
        }
        !(entry.kind.is_delete() && stripe == 0 && is_oldest(entry.user_key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survivors(
        snapshots: &[SeqNo],
        entries: &[(&'static str, SeqNo, ValueKind)],
        is_oldest: bool,
    ) -> Vec<SeqNo> {
        let mut filter = VersionFilter::new(Retention {
            snapshots: snapshots.to_vec(),
        });
        let kept = entries.iter().filter(|(key, seq, kind)| {
            let entry = InternalKeyRef {
                user_key: key.as_bytes(),
                seq: *seq,
                kind: *kind,
            };
            filter.keep(entry, |_| is_oldest)
        });
        kept.map(|(_, seq, _)| *seq).collect()
    }

    const PUT: ValueKind = ValueKind::Value;
    const DEL: ValueKind = ValueKind::Delete;

    #[test]
    fn only_the_newest_version_of_each_stripe_survives() {
        let entries = [("a", 9, PUT), ("a", 7, PUT), ("a", 5, PUT), ("b", 3, PUT)];
        assert_eq!(survivors(&[], &entries, true), [9, 3]);
        assert_eq!(survivors(&[7], &entries, true), [9, 7, 3]);
        assert_eq!(survivors(&[6], &entries, true), [9, 5, 3]);
        assert_eq!(survivors(&[5, 8], &entries, true), [9, 7, 5, 3]);
    }

    #[test]
    fn a_deletion_goes_only_when_nothing_older_is_left_and_every_snapshot_sees_it() {
        let entries = [("a", 9, DEL), ("a", 5, PUT)];
        assert_eq!(survivors(&[], &entries, true), [] as [SeqNo; 0]);
        assert_eq!(survivors(&[], &entries, false), [9]);
        assert_eq!(survivors(&[6], &entries, true), [9, 5]);
        assert_eq!(survivors(&[9], &entries, true), [] as [SeqNo; 0]);
    }

    const SINGLE: ValueKind = ValueKind::SingleDelete;

    #[test]
    fn a_newer_put_leaves_a_single_deletion_whose_put_is_further_down() {
        let entries = [("a", 5, PUT), ("a", 4, SINGLE)];
        assert_eq!(survivors(&[], &entries, false), [5, 4]);
        assert_eq!(survivors(&[], &entries, true), [5]);
        let entries = [("a", 5, SINGLE), ("a", 4, SINGLE)];
        assert_eq!(survivors(&[], &entries, false), [5, 4]);
    }

    #[test]
    fn a_single_deletion_ends_its_put_unless_a_snapshot_stands_between() {
        let offer = |snapshots: &[SeqNo], older| {
            let mut filter = VersionFilter::new(Retention {
                snapshots: snapshots.to_vec(),
            });
            let entry = |seq, kind| InternalKeyRef {
                user_key: b"a",
                seq,
                kind,
            };
            assert!(filter.keep(entry(9, SINGLE), |_| false));
            filter.ends(entry(5, older))
        };
        assert!(offer(&[], PUT) && offer(&[4, 9], PUT));
        assert!(offer(&[], ValueKind::BlobReference));
        assert!(!offer(&[5], PUT) && !offer(&[7], PUT));
        assert!(!offer(&[], DEL) && !offer(&[], SINGLE));
    }
}
