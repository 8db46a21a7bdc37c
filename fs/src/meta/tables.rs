//! Tables: every inode and every directory entry, in memory.
//!
//! Changed only through [`Tables::apply`], by the same operations that the journal holds, so that
//! replay and live changes are one code. Invariants of a consistent state (checked by
//! [`Tables::problems`], not during replay, where a fuzzy checkpoint may be half-way): every entry
//! names an inode that exists; every inode but the root and the orphans (links = 0) is named;
//! directories form a tree.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::alloc::Run;
use crate::codec::Decoder;
use crate::format::op::{FLAG_EXACT, InodeRecord, Op};
use crate::meta::inode::{Inode, MODE_DIRECTORY};
use crate::types::Ino;
use crate::vfs::FileKind;

/// The root directory's inode number.
pub(crate) const ROOT: Ino = Ino(1);

/// First number given out to an inode or as a generation.
pub(crate) const FIRST_ID: u64 = 2;

type Entries = BTreeMap<Box<[u8]>, Ino>;

/// All inodes and names.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) inodes: BTreeMap<Ino, Arc<Inode>>,
    dirs: HashMap<Ino, Directory>,
    /// How many extents may yet appear with earlier ones of the same file missing; see
    /// [`Tables::allow_gaps`].
    gaps_left: u64,
    /// Inodes whose extents a replay has left loose; see [`Tables::settle_extents`].
    loose: Vec<Ino>,
}

/// A directory's entries.
#[derive(Debug, Default)]
struct Directory {
    parent: Option<Ino>,
    entries: Entries,
    /// How many directories have this one as their parent.
    subdirectories: u32,
}

impl Tables {
    /// Prepares for a replay of the journal of a device of `blocks` blocks.
    ///
    /// While a journal is replayed, a file may get an extent whose predecessors are missing: the
    /// checkpoint saw the file after it was cut, the record is from before, and the cut
    /// follows. All extents that are missed like that were there together when the checkpoint
    /// began, so they are no more than the device has blocks. Whatever goes beyond is no true history, and
    /// would fill the memory.
    pub(crate) fn allow_gaps(&mut self, blocks: u64) {
        self.gaps_left = blocks;
    }

    /// False for an operation that no true history holds at this point.
    pub(crate) fn admits(&mut self, op: &Op<'_>) -> bool {
        let Op::SetExtent { ino, index, .. } = *op else {
            return true;
        };
        let Some(inode) = self.inodes.get(&ino) else {
            return true;
        };
        let len = inode.state.read().extents.len() as u64;
        let missing = index.saturating_sub(len);
        let admitted = missing <= self.gaps_left;
        self.gaps_left -= if admitted { missing } else { 0 };
        admitted
    }

    /// Ends a replay: what it has changed in the middle of extent lists is added up, once for each list
    /// (`extents.rs`).
    pub(crate) fn settle_extents(&mut self) {
        for ino in std::mem::take(&mut self.loose) {
            if let Some(inode) = self.inodes.get(&ino) {
                inode.state.write().extents.settle();
            }
        }
    }

    /// The operations that make an empty filesystem.
    pub(crate) fn initial(now_ns: i64) -> Vec<u8> {
        let mut out = Vec::new();
        Op::SetInode(InodeRecord {
            ino: ROOT,
            generation: ROOT.0,
            mode: MODE_DIRECTORY | 0o755,
            uid: 0,
            gid: 0,
            links: 1,
            flags: FLAG_EXACT,
            size: 0,
            modified_ns: now_ns,
            changed_ns: now_ns,
        })
        .encode(&mut out);
        out
    }

    /// Applies encoded operations; the runs that they free are added to `freed`. `None` where the
    /// bytes are malformed or no true history (operations before that point are applied).
    pub(crate) fn apply_all(&mut self, bytes: &[u8], freed: &mut Vec<Run>) -> Option<()> {
        let mut decoder = Decoder::new(bytes);
        while !decoder.is_empty() {
            let op = Op::decode(&mut decoder)?;
            if !self.admits(&op) {
                return None;
            }
            self.apply(&op, freed);
        }
        Some(())
    }

    /// Applies one operation. On an inode or directory that does not exist it does nothing: the
    /// checkpoint was then taken after a later operation that removed it.
    pub(crate) fn apply(&mut self, op: &Op<'_>, freed: &mut Vec<Run>) {
        match *op {
            Op::SetInode(ref record) => match self.inodes.get(&record.ino) {
                Some(inode) => {
                    inode.state.write().apply(op, freed);
                }
                None => self.insert(record),
            },
            Op::RemoveInode { ino } => {
                if let Some(inode) = self.inodes.remove(&ino) {
                    freed.extend(inode.state.write().extents.keep(0, 0));
                }
                if let Some(Directory { parent, .. }) = self.dirs.remove(&ino) {
                    self.count_subdirectory(parent, -1);
                }
            }
            Op::Link { dir, name, ino } => {
                if let Some(directory) = self.dirs.get_mut(&dir) {
                    directory.entries.insert(name.into(), ino);
                    if let Some(child) = self.dirs.get_mut(&ino) {
                        let before = child.parent.replace(dir);
                        self.count_subdirectory(before, -1);
                        self.count_subdirectory(Some(dir), 1);
                    }
                }
            }
            Op::Unlink { dir, name } => {
                if let Some(directory) = self.dirs.get_mut(&dir) {
                    directory.entries.remove(name);
                }
            }
            Op::SetExtent { ino, .. }
            | Op::KeepExtents { ino, .. }
            | Op::SetSize { ino, .. }
            | Op::SetTarget { ino, .. }
            | Op::SetXattr { ino, .. }
            | Op::RemoveXattr { ino, .. } => {
                if let Some(inode) = self.inodes.get(&ino) {
                    let mut state = inode.state.write();
                    let was_loose = state.extents.is_loose();
                    state.apply(op, freed);
                    if state.extents.is_loose() && !was_loose {
                        self.loose.push(ino);
                    }
                }
            }
        }
    }

    fn count_subdirectory(&mut self, parent: Option<Ino>, change: i32) {
        if let Some(parent) = parent.and_then(|parent| self.dirs.get_mut(&parent)) {
            parent.subdirectories = parent.subdirectories.saturating_add_signed(change);
        }
    }

    fn insert(&mut self, record: &InodeRecord) {
        let inode = Inode::new(record);
        if inode.state.read().kind() == FileKind::Directory {
            self.dirs.insert(record.ino, Directory::default());
        }
        self.inodes.insert(record.ino, Arc::new(inode));
    }

    pub(crate) fn inode(&self, ino: Ino) -> Option<&Arc<Inode>> {
        self.inodes.get(&ino)
    }

    pub(crate) fn is_directory(&self, ino: Ino) -> bool {
        self.dirs.contains_key(&ino)
    }

    /// The inode that `name` names in `dir`.
    pub(crate) fn lookup(&self, dir: Ino, name: &[u8]) -> Option<Ino> {
        self.dirs.get(&dir)?.entries.get(name).copied()
    }

    /// The entries of `dir` after `after`, in byte order. Nothing for what is no directory.
    pub(crate) fn entries(
        &self,
        dir: Ino,
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = (&[u8], Ino)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let lower = after.map_or(Unbounded, Excluded);
        self.dirs.get(&dir).into_iter().flat_map(move |directory| {
            directory
                .entries
                .range::<[u8], _>((lower, Unbounded))
                .map(|(name, &ino)| (&**name, ino))
        })
    }

    /// The directory that holds `dir`; the root holds itself.
    pub(crate) fn parent(&self, dir: Ino) -> Option<Ino> {
        if dir == ROOT {
            return Some(ROOT);
        }
        self.dirs.get(&dir)?.parent
    }

    /// How many directories `dir` holds; 0 for what is no directory.
    pub(crate) fn subdirectories(&self, dir: Ino) -> u32 {
        self.dirs.get(&dir).map_or(0, |dir| dir.subdirectories)
    }

    /// All directories' numbers, in no order.
    pub(crate) fn directories(&self) -> Vec<Ino> {
        self.dirs.keys().copied().collect()
    }

    /// Inodes without a name: files that were open when they were removed.
    pub(crate) fn orphans(&self) -> Vec<Ino> {
        let nameless = |inode: &&Arc<Inode>| inode.state.read().links == 0;
        self.inodes
            .values()
            .filter(nameless)
            .map(|inode| inode.ino)
            .collect()
    }

    /// Every extent in use as (start, blocks, inode), in no order.
    pub(crate) fn used_runs(&self) -> Vec<(u64, u64, Ino)> {
        let mut runs = Vec::with_capacity(self.inodes.len());
        for inode in self.inodes.values() {
            let state = inode.state.read();
            runs.extend(
                state
                    .extents
                    .runs()
                    .map(|run| (run.start, run.blocks, inode.ino)),
            );
        }
        runs
    }

    /// What is inconsistent between inodes and names, as sentences.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut names: HashMap<Ino, u32> = HashMap::new();
        for (&dir, directory) in &self.dirs {
            for (name, ino) in &directory.entries {
                *names.entry(*ino).or_default() += 1;
                if !self.inodes.contains_key(ino) {
                    let name = String::from_utf8_lossy(name);
                    problems.push(format!(
                        "entry {name:?} of directory {dir} names no inode ({ino})"
                    ));
                }
            }
        }
        for inode in self.inodes.values() {
            let state = inode.state.read();
            let named = names.get(&inode.ino).copied().unwrap_or(0) + u32::from(inode.ino == ROOT);
            if named != state.links {
                let (ino, links) = (inode.ino, state.links);
                problems.push(format!("inode {ino} has {named} names but says {links}"));
            }
            if state.kind() == FileKind::Directory && !self.reaches_root(inode.ino) {
                problems.push(format!(
                    "directory {} is not reachable from the root",
                    inode.ino
                ));
            }
            if state.extents.runs().any(|run| run.blocks == 0) {
                problems.push(format!("inode {} has an empty extent", inode.ino));
            }
            if state.durable_size > state.allocated() {
                let (size, allocated) = (state.durable_size, state.allocated());
                problems.push(format!(
                    "inode {} has a size of {size} bytes in {allocated} allocated",
                    inode.ino
                ));
            }
        }
        if !self.is_directory(ROOT) {
            problems.push("there is no root directory".to_owned());
        }
        problems
    }

    fn reaches_root(&self, mut dir: Ino) -> bool {
        for _ in 0..=self.dirs.len() {
            if dir == ROOT {
                return true;
            }
            match self.parent(dir) {
                Some(parent) => dir = parent,
                None => return false,
            }
        }
        false
    }
}
