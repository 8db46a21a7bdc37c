//! A change of the namespace in the making: any number of operations, checked one after the other,
//! applied and journaled as one.
//!
//! Staging an operation changes nothing: what it does to names and inodes is kept in a draft over
//! the tables, and the next operation is checked against tables and draft together. So there is
//! nothing to undo when one fails; the draft is dropped. [`Change::finish`] turns the
//! draft into journal operations, applies these to the tables by the code that replay uses, and
//! enqueues them, so that they are in one record.
//!
//! Order in the record: new inodes with their targets, names, inodes that go, attributes. An inode
//! that goes has no attributes, which on replay would bring it back.
//!
//! Locks: which files are open and the tables, both from the beginning to the end. The states of inodes whose
//! attributes change are locked, all together, from before they change until the operations are
//! enqueued: a truncation, which journals all attributes of its file without the tables' lock,
//! would otherwise put a link count into an earlier record than the name it counts. The tables are locked
//! alone, so nobody else locks more than one state.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::{MutexGuard, RwLockWriteGuard};

use crate::core::{Core, Opened};
use crate::error::{Error, PathError, Result};
use crate::format::op::{InodeRecord, Op};
use crate::meta::inode::{Inode, MODE_DIRECTORY, MODE_TYPE};
use crate::meta::journal::DataState;
use crate::meta::tables::Tables;
use crate::types::Ino;

/// Which files are open, locked.
pub(super) type OpenFiles<'a> = MutexGuard<'a, HashMap<Ino, Opened>>;

/// Operations staged; see the module's words.
pub(super) struct Change<'a> {
    core: &'a Core,
    open: OpenFiles<'a>,
    tables: RwLockWriteGuard<'a, Tables>,
    pub(super) now_ns: i64,
    /// Names that change, and what they will name.
    names: BTreeMap<(Ino, Vec<u8>), Option<Ino>>,
    /// Directories that are new or move, and where they will be.
    parents: BTreeMap<Ino, Ino>,
    drafts: BTreeMap<Ino, Draft>,
}

/// What an inode will be. Sizes and generation are left as they are when the change is finished.
struct Draft {
    origin: Origin,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    removed: bool,
    /// Attributes differ from the inode's.
    edited: bool,
    modified_ns: Option<i64>,
    changed_ns: Option<i64>,
    /// Operations on the inode beside its attributes, encoded.
    further: Vec<u8>,
}

enum Origin {
    New(InodeRecord),
    Present(Arc<Inode>),
}

impl<'a> Change<'a> {
    /// Begins a change. Whoever calls it has asked the journal for admission.
    pub(super) fn begin(core: &'a Core) -> Self {
        let open = core.open.lock();
        let tables = core.tables.write();
        Change {
            now_ns: core.now_ns(),
            core,
            open,
            tables,
            names: BTreeMap::new(),
            parents: BTreeMap::new(),
            drafts: BTreeMap::new(),
        }
    }

    // What is there, with the draft.

    /// The inode that `name` names in `dir`.
    pub(super) fn lookup(&self, dir: Ino, name: &OsStr) -> Option<Ino> {
        if self.names.is_empty() {
            return self.tables.lookup(dir, name.as_bytes());
        }
        let drafted = self.names.get(&(dir, name.as_bytes().to_vec())).copied();
        drafted.unwrap_or_else(|| self.tables.lookup(dir, name.as_bytes()))
    }

    /// The mode of an inode with its type; `None` where there is no such inode.
    pub(super) fn mode(&self, ino: Ino) -> Option<u32> {
        match self.drafts.get(&ino) {
            Some(draft) => (!draft.removed).then_some(draft.mode),
            None => Some(self.tables.inode(ino)?.state.read().mode),
        }
    }

    pub(super) fn is_directory(&self, ino: Ino) -> bool {
        self.mode(ino)
            .is_some_and(|mode| mode & MODE_TYPE == MODE_DIRECTORY)
    }

    /// Number of names of an inode that exists.
    pub(super) fn links(&self, ino: Ino) -> u32 {
        match self.drafts.get(&ino) {
            Some(draft) => draft.links,
            None => self
                .tables
                .inode(ino)
                .map_or(0, |inode| inode.state.read().links),
        }
    }

    pub(super) fn is_empty_directory(&self, dir: Ino) -> bool {
        let first = (dir, Vec::new());
        let mut drafted = self
            .names
            .range(first..)
            .take_while(|((of, _), _)| *of == dir);
        if drafted.any(|(_, names)| names.is_some()) {
            return false;
        }
        let mut present = self.tables.entries(dir, None);
        present.all(|(name, _)| self.names.contains_key(&(dir, name.to_vec())))
    }

    /// The directory that holds `dir`; the root holds itself.
    pub(super) fn parent(&self, dir: Ino) -> Option<Ino> {
        let drafted = self.parents.get(&dir).copied();
        drafted.or_else(|| self.tables.parent(dir))
    }

    // Staging.

    /// A new inode, without a name yet.
    pub(super) fn add_inode(&mut self, record: InodeRecord, target: Option<&OsStr>) {
        let mut further = Vec::new();
        if let Some(target) = target {
            Op::SetTarget {
                ino: record.ino,
                target: target.as_bytes(),
            }
            .encode(&mut further);
        }
        let draft = Draft {
            mode: record.mode,
            uid: record.uid,
            gid: record.gid,
            links: record.links,
            removed: false,
            edited: false,
            modified_ns: None,
            changed_ns: None,
            further,
            origin: Origin::New(record),
        };
        let earlier = self.drafts.insert(record.ino, draft);
        assert!(earlier.is_none(), "an inode number is given out once");
    }

    /// Lets `name` in `dir` name `ino`, or nothing. Link counts are the caller's.
    pub(super) fn set_name(&mut self, dir: Ino, name: &OsStr, ino: Option<Ino>) {
        if let Some(ino) = ino
            && self.is_directory(ino)
        {
            self.parents.insert(ino, dir);
        }
        self.names.insert((dir, name.as_bytes().to_vec()), ino);
    }

    /// The draft of an inode.
    fn draft(&mut self, ino: Ino) -> Result<&mut Draft> {
        if !self.drafts.contains_key(&ino) {
            let inode = self.tables.inode(ino).ok_or_else(|| missing(ino))?.clone();
            let state = inode.state.read();
            let draft = Draft {
                mode: state.mode,
                uid: state.uid,
                gid: state.gid,
                links: state.links,
                removed: false,
                edited: false,
                modified_ns: None,
                changed_ns: None,
                further: Vec::new(),
                origin: Origin::Present(inode.clone()),
            };
            drop(state);
            self.drafts.insert(ino, draft);
        }
        let draft = self.drafts.get_mut(&ino).filter(|draft| !draft.removed);
        draft.ok_or_else(|| missing(ino))
    }

    /// Gives `ino` one name more or less; without names and handles it goes.
    pub(super) fn count_names(&mut self, ino: Ino, difference: i32) -> Result<()> {
        let is_open = self.open.contains_key(&ino);
        let now_ns = self.now_ns;
        let draft = self.draft(ino)?;
        draft.links = draft
            .links
            .checked_add_signed(difference)
            .ok_or_else(|| Error::corrupt("inode", 0, format!("inode {ino} has too few links")))?;
        draft.changed_ns = Some(now_ns);
        draft.edited = true;
        draft.removed = draft.links == 0 && !is_open;
        Ok(())
    }

    /// Removes an inode.
    pub(super) fn remove_inode(&mut self, ino: Ino) -> Result<()> {
        self.draft(ino)?.removed = true;
        Ok(())
    }

    /// The entries of `dir` changed, if it is still there.
    pub(super) fn touch(&mut self, dir: Ino) {
        let now_ns = self.now_ns;
        if let Ok(draft) = self.draft(dir) {
            draft.modified_ns = Some(now_ns);
            draft.changed_ns = Some(now_ns);
            draft.edited = true;
        }
    }

    /// Something about `ino` changed, but not its contents.
    pub(super) fn touch_attributes(&mut self, ino: Ino) -> Result<()> {
        let now_ns = self.now_ns;
        let draft = self.draft(ino)?;
        draft.changed_ns = Some(now_ns);
        draft.edited = true;
        Ok(())
    }

    /// Sets attributes.
    pub(super) fn set_attributes(&mut self, ino: Ino, set: &super::SetAttributes) -> Result<()> {
        self.touch_attributes(ino)?;
        let draft = self.draft(ino)?;
        if let Some(mode) = set.mode {
            draft.mode = draft.mode & MODE_TYPE | mode & 0o7777;
        }
        draft.uid = set.uid.unwrap_or(draft.uid);
        draft.gid = set.gid.unwrap_or(draft.gid);
        draft.modified_ns = set.modified_ns.or(draft.modified_ns);
        Ok(())
    }

    /// Adds an operation on `ino` that is neither about its attributes nor about its extents.
    pub(super) fn add_op(&mut self, ino: Ino, op: &Op<'_>) -> Result<()> {
        op.encode(&mut self.draft(ino)?.further);
        Ok(())
    }

    // The end.

    /// Applies and enqueues everything. Returns the ticket.
    pub(super) fn finish(self) -> u64 {
        self.finish_and_open().0
    }

    /// Like [`Change::finish`]. Which files are open stays locked, so that a new file can be
    /// opened before anybody removes it.
    pub(super) fn finish_and_open(self) -> (u64, OpenFiles<'a>) {
        let Change {
            core,
            open,
            mut tables,
            names,
            drafts,
            ..
        } = self;
        let mut freed = Vec::new();
        let mut ops = first_operations(&names, &drafts);
        let applied = tables.apply_all(&ops, &mut freed);
        applied.expect("what was encoded just now is well-formed");
        let edited: Vec<_> = drafts
            .values()
            .filter_map(|draft| match &draft.origin {
                Origin::Present(inode) if !draft.removed => Some((draft, inode)),
                _ => None,
            })
            .collect();
        let mut states: Vec<_> = edited
            .iter()
            .map(|(_, inode)| inode.state.write())
            .collect();
        for ((draft, inode), state) in edited.iter().zip(&mut states) {
            if draft.edited {
                let op = Op::SetInode(draft.record(state.record(inode.ino)));
                state.apply(&op, &mut freed);
                op.encode(&mut ops);
            }
            let applied = state.apply_all(&draft.further, &mut freed);
            applied.expect("what was encoded just now is well-formed");
            ops.extend_from_slice(&draft.further);
        }
        let ticket = if ops.is_empty() {
            core.last_ticket()
        } else {
            core.enqueue_encoded(&ops, DataState::Durable)
        };
        drop(states);
        drop(tables);
        core.quarantine(freed, ticket);
        (ticket, open)
    }
}

impl Draft {
    /// Puts what is drafted over what the inode says now.
    fn record(&self, now: InodeRecord) -> InodeRecord {
        InodeRecord {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            links: self.links,
            modified_ns: self.modified_ns.unwrap_or(now.modified_ns),
            changed_ns: self.changed_ns.unwrap_or(now.changed_ns),
            ..now
        }
    }
}

/// The operations of all that nobody but the holder of the tables can change meanwhile: new
/// inodes, names, and inodes that go.
fn first_operations(
    names: &BTreeMap<(Ino, Vec<u8>), Option<Ino>>,
    drafts: &BTreeMap<Ino, Draft>,
) -> Vec<u8> {
    let mut ops = Vec::with_capacity(256);
    for draft in drafts.values().filter(|draft| !draft.removed) {
        if let Origin::New(record) = draft.origin {
            Op::SetInode(draft.record(record)).encode(&mut ops);
            ops.extend_from_slice(&draft.further);
        }
    }
    for ((dir, name), ino) in names {
        // The names in a directory go with it.
        if drafts.get(dir).is_some_and(|draft| draft.removed) {
            continue;
        }
        match *ino {
            Some(ino) => Op::Link {
                dir: *dir,
                name,
                ino,
            },
            None => Op::Unlink { dir: *dir, name },
        }
        .encode(&mut ops);
    }
    for (&ino, draft) in drafts.iter().filter(|(_, draft)| draft.removed) {
        if let Origin::Present(_) = draft.origin {
            Op::RemoveInode { ino }.encode(&mut ops);
        }
    }
    ops
}

/// What is said of an inode that does not exist.
pub(super) fn missing(ino: Ino) -> Error {
    Error::path(format!("inode {ino}"), PathError::NotFound)
}
