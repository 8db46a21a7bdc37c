//! A read-only mount beside the process that owns the device: a moving view.
//!
//! The mount shows the state of one moment: the records that were readable then, durable or about to
//! be. [`LavaFs::refresh`] moves it on, by replaying the records written since, or from a new
//! checkpoint if the journal switched its region meanwhile. Between refreshes names, sizes and extents
//! stand still while the owner goes on: what is read of a file that was removed or truncated since
//! may be another file's bytes. An engine's checksums, seeded with the generation, tell.
//!
//! Open files keep their handles across a refresh. One that was removed has no bytes afterwards.
//!
//! `refresh` holds `view`, then `open`, the gates of all open files, and the tables, across
//! the reads that tell whether the last record's sizes hold; nothing else of a read-only mount waits for the device
//! with one of these held.

use parking_lot::Mutex;

use crate::codec::Decoder;
use crate::error::{Error, Result};
use crate::format::op::Op;
use crate::format::owner::Owner;
use crate::fs::{LavaFs, free_space};
use crate::meta::inode::Inode;
use crate::meta::journal::JournalEnd;
use crate::meta::recovery::{
    Recovered, apply_checked, choose_region, read_headers, read_on, read_owner, recover_moving,
};
use crate::meta::superblocks;
use crate::meta::tables::Tables;
use crate::types::Ino;

/// How far a read-only mount has followed the journal.
#[derive(Debug)]
pub(crate) struct View {
    position: Mutex<Position>,
}

#[derive(Debug)]
struct Position {
    end: JournalEnd,
    /// The last record, where sizes in it were not believed for want of their data.
    unbelieved: Option<Vec<u8>>,
}

impl View {
    pub(crate) fn new(recovered: &Recovered) -> View {
        View {
            position: Mutex::new(Position {
                end: recovered.end,
                unbelieved: recovered.unbelieved.clone(),
            }),
        }
    }
}

impl LavaFs {
    /// The process that has the filesystem mounted for writing, as its owner record says; it may be
    /// gone without having unmounted ([`Owner::may_live`]).
    pub fn owner(&self) -> Result<Option<Owner>> {
        read_owner(&self.core.disk)
    }

    /// True for a read-only mount while a process that may live owns the device: then names, sizes
    /// and contents change underneath, and [`LavaFs::refresh`] shows how far.
    pub fn is_moving_view(&self) -> Result<bool> {
        Ok(self.core.view.is_some() && self.owner()?.is_some_and(|owner| owner.may_live()))
    }

    /// Moves a read-only mount on to the journal's present end, and returns whether anything changed.
    /// Where nothing did it reads the headers of both journal regions twice, 32 KiB together, and up to 1 MiB
    /// of the journal from where it stands, and no superblock. On a filesystem mounted for writing it does nothing.
    ///
    /// # Errors
    /// `Io`; `InUse` where the journal moves too fast to be read; `Corrupt` where it is damaged, and
    /// where the filesystem was expanded beyond the size that the device had when it was opened
    /// (open and mount it again). The view then stays at the last good state.
    pub fn refresh(&self) -> Result<bool> {
        let Some(view) = &self.core.view else {
            return Ok(false);
        };
        let mut position = view.position.lock();
        if !self.is_same_journal(&position.end)? {
            self.reload(&mut position)?;
            return Ok(true);
        }
        let mut changed = false;
        loop {
            let superblock = self.superblock();
            let (records, end) = read_on(&self.core.disk, &superblock, &position.end)?;
            if records.is_empty() {
                break;
            }
            // An expansion is durable before anything lies in what it added.
            if superblocks::read(&self.core.disk)?.superblock != superblock {
                self.reload(&mut position)?;
                return Ok(true);
            }
            self.follow(&mut position, &records, end)?;
            changed = true;
        }
        if !self.is_same_journal(&position.end)? {
            self.reload(&mut position)?;
            changed = true;
        }
        Ok(changed)
    }

    /// True where the journal still goes on in the region and epoch of `end`.
    fn is_same_journal(&self, end: &JournalEnd) -> Result<bool> {
        let headers = read_headers(&self.core.disk, &self.superblock())?;
        let active = choose_region(headers).region;
        Ok(
            active
                .is_some_and(|(region, header)| (region, header.epoch) == (end.region, end.epoch)),
        )
    }

    /// Applies the records that were written since. After a failure they can be applied once more.
    fn follow(&self, position: &mut Position, records: &[Vec<u8>], end: JournalEnd) -> Result<()> {
        let core = &self.core;
        let open = core.open.lock();
        let mut files: Vec<_> = open.values().map(|opened| opened.file.clone()).collect();
        files.sort_by_key(|file| file.ino());
        let _gates: Vec<_> = files.iter().map(|file| file.keep_readers_out()).collect();
        let mut tables = core.tables.write();
        tables.allow_gaps(self.superblock().total_blocks);
        let (last, earlier) = records.split_last().expect("a caller has records");
        let mut touched = Vec::new();
        for ops in position.unbelieved.iter().chain(earlier) {
            tables
                .apply_all(ops, &mut Vec::new())
                .ok_or_else(|| malformed(&position.end))?;
            add_inodes(ops, &mut touched);
        }
        let all = apply_checked(&core.disk, &mut tables, last).ok_or_else(|| malformed(&end))??;
        tables.settle_extents();
        position.unbelieved = (!all).then(|| last.clone());
        add_inodes(last, &mut touched);
        position.end = end;
        for ino in touched {
            if let Some(inode) = tables.inode(ino) {
                settle_size(inode);
            }
        }
        for file in &files {
            if tables.inode(file.ino()).is_none() {
                empty(&file.inode);
            }
            file.follow_inode();
        }
        self.count_free(&tables)
    }

    /// Reads everything anew.
    fn reload(&self, position: &mut Position) -> Result<()> {
        let recovered = recover_moving(&self.core.disk)?;
        if let Some(sentence) = recovered.damage.first() {
            return Err(Error::corrupt("journal", 0, sentence.clone()));
        }
        free_space(&recovered.superblock, &recovered.tables)?;
        let core = &self.core;
        let open = core.open.lock();
        let mut files: Vec<_> = open.values().map(|opened| opened.file.clone()).collect();
        files.sort_by_key(|file| file.ino());
        let _gates: Vec<_> = files.iter().map(|file| file.keep_readers_out()).collect();
        let mut tables = core.tables.write();
        position.end = recovered.end;
        position.unbelieved = recovered.unbelieved;
        *core.superblock.write() = recovered.superblock;
        *tables = recovered.tables;
        for file in &files {
            // The handle's inode goes on to stand for the file.
            match tables.inodes.get_mut(&file.ino()) {
                Some(inode) => {
                    std::mem::swap(&mut *file.inode.state.write(), &mut *inode.state.write());
                    *inode = file.inode.clone();
                }
                None => empty(&file.inode),
            }
            file.follow_inode();
        }
        self.count_free(&tables)
    }

    fn count_free(&self, tables: &Tables) -> Result<()> {
        let alloc = free_space(&self.core.superblock.read(), tables)?;
        *self.core.alloc.lock() = alloc;
        Ok(())
    }
}

fn malformed(end: &JournalEnd) -> Error {
    let detail = format!(
        "one before record {} holds an impossible operation",
        end.seq
    );
    Error::corrupt("journal record", end.position, detail)
}

/// Adds the inodes whose sizes or extents `ops` change.
fn add_inodes(ops: &[u8], touched: &mut Vec<Ino>) {
    let mut decoder = Decoder::new(ops);
    while let Some(op) = Op::decode(&mut decoder) {
        match op {
            Op::SetInode(record) => touched.push(record.ino),
            Op::SetSize { ino, .. } | Op::KeepExtents { ino, .. } => touched.push(ino),
            _ => {}
        }
    }
}

/// What the journal says of the size is what readers see.
fn settle_size(inode: &Inode) {
    let mut state = inode.state.write();
    state.size = state.durable_size;
}

/// Leaves nothing to read of a file that is gone.
fn empty(inode: &Inode) {
    let mut state = inode.state.write();
    state.extents.keep(0, 0);
    state.size = 0;
    state.durable_size = 0;
    state.exact = true;
    state.links = 0;
}
