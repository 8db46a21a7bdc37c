//! The model that a crashed filesystem is compared with: what was asked of it, what it
//! acknowledged, and at which recorded device operation.
//!
//! Times are counts of recorded device operations. Something *begun* at `n` can have caused
//! operation `n` and later ones; something *acknowledged* at `n` rests on operations before `n`.
//! So a crash at operation `at` must keep whatever was acknowledged at or before `at`, and may show
//! only what was begun at or before `at`.
//!
//! - The namespace is a history of states, one an event, since changes are durable in order.
//! - Contents are kept by generation; within one, each cut by `settle` begins a new [`Branch`],
//!   which from there on only grows.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use lavafs::FileKind;

/// Everything in the namespace: names and what they name. Files unlinked while open are not in it.
#[derive(Clone, Default, Debug, PartialEq, Eq, Hash)]
pub(super) struct Names {
    /// (directory, name) to inode number.
    pub(super) entries: BTreeMap<(u64, String), u64>,
    /// Inodes that have names, and the root.
    pub(super) nodes: BTreeMap<u64, Node>,
}

/// Attributes of an inode that are compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    /// True for a directory.
    pub(super) directory: bool,
    /// Target of a symbolic link, which has one.
    pub(super) target: Option<String>,
    /// Generation; 0 for what is no file.
    pub(super) generation: u64,
    /// Number of names.
    pub(super) links: u32,
    /// Permission bits.
    pub(super) mode: u32,
    /// Extended attributes.
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
}

impl Node {
    /// A new file or directory with one name.
    pub(super) fn new(kind: FileKind, generation: u64, mode: u32) -> Node {
        Node {
            directory: kind == FileKind::Directory,
            target: None,
            generation,
            links: 1,
            mode,
            xattrs: BTreeMap::new(),
        }
    }

    /// True for a regular file.
    pub(super) fn is_file(&self) -> bool {
        !self.directory && self.target.is_none()
    }
}

impl Names {
    /// A number that equal namespaces share.
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// Takes one name from an inode, and the inode with its last.
    pub(super) fn drop_name(&mut self, ino: u64) {
        let node = self.nodes.get_mut(&ino).expect("names lead to inodes");
        node.links -= 1;
        if node.links == 0 {
            self.nodes.remove(&ino);
        }
    }

    /// Names below `dir`, or none.
    pub(super) fn is_empty_directory(&self, dir: u64) -> bool {
        let below = (dir, String::new())..(dir + 1, String::new());
        self.entries.range(below).next().is_none()
    }

    /// The first difference from `other`, as a sentence.
    pub(super) fn difference(&self, other: &Names) -> String {
        for (key, ino) in &self.entries {
            if other.entries.get(key) != Some(ino) {
                let found = other.entries.get(key);
                return format!("entry {key:?} should be {ino}, is {found:?}");
            }
        }
        for (key, ino) in &other.entries {
            if !self.entries.contains_key(key) {
                return format!("entry {key:?} -> {ino} should not exist");
            }
        }
        for (ino, node) in &self.nodes {
            if other.nodes.get(ino) != Some(node) {
                let found = other.nodes.get(ino);
                return format!("inode {ino} should be {node:?}, is {found:?}");
            }
        }
        "none".to_owned()
    }
}

/// A state of the namespace.
#[derive(Debug)]
pub(super) struct Event {
    /// When the change that led to it was begun.
    pub(super) begun: usize,
    /// Of `names`.
    pub(super) digest: u64,
    /// The state.
    pub(super) names: Arc<Names>,
    /// What was done.
    pub(super) what: String,
}

/// A size that the journal was told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sized {
    /// When it was acknowledged.
    pub(super) acked: usize,
    /// The size: from then on the lower bound at least.
    pub(super) size: u64,
    /// The size is exact unless one of `issued` from this index on was begun.
    pub(super) exact_until: Option<usize>,
}

/// The bytes of a file from a cut to the next one. They only grow.
#[derive(Clone, Debug, Default)]
pub(super) struct Branch {
    /// When the cut was begun.
    pub(super) begun: usize,
    /// When it was acknowledged, so that what was before cannot come back.
    pub(super) acked: Option<usize>,
    /// All bytes ever appended.
    pub(super) data: Vec<u8>,
    /// Growth: when begun, and the end it led to. The first is the beginning.
    pub(super) issued: Vec<(usize, u64)>,
    /// Syncs: when acknowledged, and the size synced.
    pub(super) synced: Vec<(usize, u64)>,
    /// Sizes journaled.
    pub(super) sized: Vec<Sized>,
}

/// Everything known of a run.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// The namespace's states; the first is that at the beginning.
    pub(super) events: Vec<Event>,
    /// Acknowledged prefixes: (when, index of the last durable event). Both only grow.
    pub(super) acks: Vec<(usize, usize)>,
    /// Contents by generation.
    pub(super) contents: BTreeMap<u64, Vec<Branch>>,
    /// Generations given out, and when.
    pub(super) generations: Vec<(usize, u64)>,
    /// What was done, and when it was begun. For people.
    pub(super) log: Vec<(usize, String)>,
}

impl Branch {
    /// A branch that begins with `data`.
    pub(super) fn new(begun: usize, data: Vec<u8>) -> Branch {
        Branch {
            begun,
            issued: vec![(begun, data.len() as u64)],
            data,
            ..Branch::default()
        }
    }

    /// The present size.
    pub(super) fn len(&self) -> u64 {
        self.data.len() as u64
    }

    /// Notes growth begun at `now`.
    pub(super) fn grow(&mut self, now: usize, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
        self.issued.push((now, self.len()));
    }

    /// Notes that the size is journaled as it is now, acknowledged at `acked`.
    pub(super) fn note_size(&mut self, acked: usize) {
        self.sized.push(Sized {
            acked,
            size: self.len(),
            exact_until: Some(self.issued.len()),
        });
    }
}

impl Model {
    /// The present namespace.
    pub(super) fn names(&self) -> &Arc<Names> {
        &self.events.last().expect("there is a first state").names
    }

    /// Adds an event that was begun at `begun`.
    pub(super) fn push(&mut self, begun: usize, what: String, change: impl FnOnce(&mut Names)) {
        let mut names = (**self.names()).clone();
        change(&mut names);
        self.push_state(begun, what, names);
    }

    /// Adds a state.
    pub(super) fn push_state(&mut self, begun: usize, what: String, names: Names) {
        self.log.push((begun, what.clone()));
        self.events.push(Event {
            begun,
            digest: names.digest(),
            names: Arc::new(names),
            what,
        });
    }

    /// Notes at `now` that the events up to `event` are durable.
    pub(super) fn ack(&mut self, now: usize, event: usize) {
        let last = self.acks.last().map_or(0, |ack| ack.1);
        self.acks.push((now, last.max(event)));
    }

    /// The contents of the file of this generation as they are now.
    pub(super) fn branch(&mut self, generation: u64) -> &mut Branch {
        let branches = self.contents.get_mut(&generation);
        branches
            .and_then(|branches| branches.last_mut())
            .expect("every generation has contents")
    }

    /// The last things done before a crash at `at`, one a line.
    pub(super) fn story(&self, at: usize) -> String {
        const LINES: usize = 25;
        let begun = self.log.partition_point(|entry| entry.0 <= at);
        let lines = self.log[begun.saturating_sub(LINES)..begun].iter();
        lines
            .map(|(when, what)| format!("\n    {when:>4} {what}"))
            .collect()
    }

    /// The events that may be the last durable one after a crash at `at`.
    pub(super) fn possible(&self, at: usize) -> std::ops::RangeInclusive<usize> {
        let acked = self.acks.partition_point(|ack| ack.0 <= at);
        let first = acked.checked_sub(1).map_or(0, |index| self.acks[index].1);
        let begun = self.events.partition_point(|event| event.begun <= at);
        first..=begun - 1
    }
}
