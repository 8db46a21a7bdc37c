//! Recovery: from the bytes of a device to the tables and the place where the journal goes on.
//!
//! 1. The superblock copy of the highest epoch counts (`superblocks.rs`).
//! 2. The two regions' headers say which region is active; see [`choose_region`].
//! 3. The checkpoint is loaded (its hash must be right) and the records behind it are replayed.
//! 4. Replay ends at the first bad record. That is a torn tail, of a record nobody was told of,
//!    unless a later record of the same epoch is valid or the header says that more records were
//!    carried over: then acknowledged metadata is damaged, and writing is refused.
//! 5. Sizes in the last record that were written together with their data are believed only if
//!    the data matches (`journal.rs`).
//!
//! Nothing is written. Recovery may be repeated any number of times with the same outcome.

mod behind;
mod follow;
mod window;

use window::Window;

pub(crate) use follow::{check_owner, for_each_record, read_on, read_owner, recover_moving};

use xxhash_rust::xxh3::xxh3_64;

use crate::alloc::Run;
use crate::codec::Decoder;
use crate::device::AlignedBuf;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::op::Op;
use crate::format::record::{self, RECORD_HEADER_LEN, RecordHeader};
use crate::format::region::{HeaderCopy, RegionHeader};
use crate::format::superblock::Superblock;
use crate::meta::journal::JournalEnd;
use crate::meta::superblocks::{self, Found};
use crate::meta::tables::Tables;
use crate::types::{BLOCK_SIZE, align_down, align_up};

/// What recovery found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) superblock: Superblock,
    pub(crate) tables: Tables,
    pub(crate) end: JournalEnd,
    pub(crate) records: u64,
    /// A record that nobody was told of was found half-written and dropped.
    pub(crate) torn_tail: bool,
    /// The last record, where sizes in it were not believed: if a further one appears, they hold.
    pub(crate) unbelieved: Option<Vec<u8>>,
    /// Damage that forbids writing, as sentences. Empty on a healthy filesystem.
    pub(crate) damage: Vec<String>,
    /// Superblock copies that are not good, by block.
    pub(crate) bad_superblocks: Vec<u64>,
    /// Good superblock copies of an earlier epoch, by block. A mount replaces them.
    pub(crate) stale_superblocks: Vec<u64>,
    /// Region header copies that should be rewritten, as (region, copy).
    pub(crate) bad_headers: Vec<(usize, usize)>,
}

/// Reads a filesystem's metadata.
///
/// # Errors
/// `NotLavaFs`, `Unsupported` (newer format), `Corrupt` where no consistent state can be read.
pub(crate) fn recover(disk: &Disk) -> Result<Recovered> {
    let Found {
        superblock,
        damaged: bad_superblocks,
        stale: stale_superblocks,
    } = superblocks::read(disk)?;
    let headers = read_headers(disk, &superblock)?;
    let mut damage = Vec::new();
    let choice = choose_region(headers);
    if let Some(why) = choice.damage {
        damage.push(why.to_owned());
    }
    let Some((region, header)) = choice.region else {
        let offset = superblock.journal_start * BLOCK_SIZE;
        return Err(Error::corrupt(
            "journal",
            offset,
            "neither region has a readable header",
        ));
    };
    let mut tables = load_checkpoint(disk, &superblock, region, &header)?;
    let mut replay = Replay::new(disk, &superblock, region, &header);
    replay.run(&mut tables)?;
    tables.settle_extents();
    if let Some(sentence) = replay.damage() {
        damage.push(sentence);
    }
    for inode in tables.inodes.values() {
        let mut state = inode.state.write();
        state.size = state.durable_size;
    }
    Ok(Recovered {
        end: replay.end(),
        records: replay.records,
        torn_tail: replay.torn,
        unbelieved: replay.unbelieved,
        superblock,
        tables,
        damage,
        bad_superblocks,
        stale_superblocks,
        bad_headers: choice.rewrite,
    })
}

/// Both header copies of both regions.
pub(crate) fn read_headers(disk: &Disk, superblock: &Superblock) -> Result<[[HeaderCopy; 2]; 2]> {
    let mut copies = [[HeaderCopy::Blank; 2]; 2];
    let mut buf = AlignedBuf::zeroed(BLOCK_SIZE as usize);
    for (region, pair) in copies.iter_mut().enumerate() {
        let start = superblock.region_start(region);
        for (copy, block) in [(0, start), (1, start + superblock.journal_blocks - 1)] {
            disk.read(block * BLOCK_SIZE, &mut buf)?;
            pair[copy] = RegionHeader::decode(&buf, superblock.uuid, superblock.journal_blocks);
        }
    }
    Ok(copies)
}

/// Which region is active.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Choice {
    pub(crate) region: Option<(usize, RegionHeader)>,
    /// Why it may not be the right one, so that writing must be refused.
    pub(crate) damage: Option<&'static str>,
    /// Copies that differ from what they should be, as (region, copy).
    pub(crate) rewrite: Vec<(usize, usize)>,
}

/// Decides from the headers which region is active.
///
/// Epochs grow by one a switch, and switches alternate between the regions: if region X is active
/// with epoch e, the other has epoch e-1, or is blank where e is 1. The first copy of a header
/// is written before the second, so the second never is newer than what the first once was.
///
/// | first copy | second copy | the region is known to have reached |
/// | --- | --- | --- |
/// | valid e | anything | e (or e' of the second, if higher: the first was lost) |
/// | blank | blank | nothing |
/// | damaged or blank | valid e | e, or unseen e+2 |
/// | damaged | blank or damaged | unseen anything |
///
/// The highest epoch seen is the active region. It is in doubt if the other region may have reached
/// an unseen higher one: when its first copy is lost, when it should have epoch e-1 and shows
/// something else, or when it is blank and the active region's own first copy is lost.
pub(crate) fn choose_region(headers: [[HeaderCopy; 2]; 2]) -> Choice {
    let seen = headers.map(|pair| pair.into_iter().filter_map(valid).max_by_key(|h| h.epoch));
    let first_lost = headers.map(|[first, second]| match (first, second) {
        (HeaderCopy::Valid(_), _) | (HeaderCopy::Blank, HeaderCopy::Blank) => false,
        (HeaderCopy::Blank | HeaderCopy::Damaged, _) => true,
    });
    let active = match (seen[0], seen[1]) {
        (Some(a), Some(b)) if b.epoch > a.epoch => Some((1, b)),
        (Some(a), _) => Some((0, a)),
        (None, Some(b)) => Some((1, b)),
        (None, None) => None,
    };
    let Some((region, header)) = active else {
        return Choice {
            region: None,
            damage: Some("no journal header is readable"),
            rewrite: vec![],
        };
    };
    let other = 1 - region;
    let expected = seen[other].map_or(0, |h| h.epoch) + 1 == header.epoch;
    let damage = if first_lost[other] || (first_lost[region] && seen[other].is_none()) {
        Some("a journal region's header is damaged, and might have been the newer one")
    } else if !expected {
        Some("the journal regions' epochs do not follow each other")
    } else {
        None
    };
    let rewrite = (0..2)
        .filter(|&copy| headers[region][copy] != HeaderCopy::Valid(header))
        .map(|copy| (region, copy));
    Choice {
        region: active,
        damage,
        rewrite: rewrite.collect(),
    }
}

fn valid(copy: HeaderCopy) -> Option<RegionHeader> {
    match copy {
        HeaderCopy::Valid(header) => Some(header),
        HeaderCopy::Blank | HeaderCopy::Damaged => None,
    }
}

pub(crate) fn load_checkpoint(
    disk: &Disk,
    superblock: &Superblock,
    region: usize,
    header: &RegionHeader,
) -> Result<Tables> {
    let offset = (superblock.region_start(region) + 1) * BLOCK_SIZE;
    let mut buf = AlignedBuf::zeroed(align_up(header.checkpoint_len, BLOCK_SIZE) as usize);
    disk.read(offset, &mut buf)?;
    let bytes = &buf[..header.checkpoint_len as usize];
    if xxh3_64(bytes) != header.checkpoint_hash {
        return Err(Error::corrupt("checkpoint", offset, "its hash is wrong"));
    }
    let mut tables = Tables::default();
    tables.allow_gaps(superblock.total_blocks);
    let mut freed = Vec::new();
    tables
        .apply_all(bytes, &mut freed)
        .ok_or_else(|| Error::corrupt("checkpoint", offset, "it holds an impossible operation"))?;
    Ok(tables)
}

/// Replay of the records behind a checkpoint.
struct Replay<'a> {
    disk: &'a Disk,
    superblock: &'a Superblock,
    region: usize,
    header: RegionHeader,
    position: u64,
    seq: u64,
    prev_crc: u32,
    next_id: u64,
    ops_len: u64,
    records: u64,
    torn: bool,
    /// The last record, where sizes in it were not believed.
    unbelieved: Option<Vec<u8>>,
    /// Position of a valid record behind a bad one.
    later: Option<u64>,
}

impl<'a> Replay<'a> {
    fn new(
        disk: &'a Disk,
        superblock: &'a Superblock,
        region: usize,
        header: &RegionHeader,
    ) -> Self {
        Replay {
            disk,
            superblock,
            region,
            header: *header,
            position: header.records_offset(),
            seq: header.first_seq,
            prev_crc: header.crc(),
            next_id: header.next_id,
            ops_len: header.checkpoint_len,
            records: 0,
            torn: false,
            unbelieved: None,
            later: None,
        }
    }

    fn run(&mut self, tables: &mut Tables) -> Result<()> {
        let base = self.superblock.region_start(self.region) * BLOCK_SIZE;
        let area = (self.superblock.journal_blocks - 1) * BLOCK_SIZE;
        let mut window = Window::new(self.disk, base, area);
        let mut pending: Option<Vec<u8>> = None;
        while let Some((header, body)) = self.next_record(&mut window)? {
            if let Some(ops) = pending.replace(body) {
                self.apply(tables, &ops)?;
            }
            self.step_over(&header);
        }
        if let Some(ops) = pending
            && !self.apply_last(tables, &ops)?
        {
            self.unbelieved = Some(ops);
        }
        self.look_behind(&mut window)
    }

    /// Goes on behind the record at the present position.
    fn step_over(&mut self, header: &RecordHeader) {
        self.position += align_up((RECORD_HEADER_LEN + header.body_len) as u64, self.unit());
        self.seq += 1;
        self.prev_crc = header.crc;
        self.next_id = self.next_id.max(header.next_id);
        self.ops_len += header.body_len as u64;
        self.records += 1;
    }

    fn unit(&self) -> u64 {
        self.disk.unit()
    }

    /// The record at the present position, if it is the expected one and whole.
    fn next_record(&self, window: &mut Window<'_>) -> Result<Option<(RecordHeader, Vec<u8>)>> {
        let Some(bytes) = window.at(self.position, RECORD_HEADER_LEN)? else {
            return Ok(None);
        };
        let Some(header) = record::peek(bytes) else {
            return Ok(None);
        };
        let expected = header.epoch == self.header.epoch
            && header.seq == self.seq
            && header.prev_crc == self.prev_crc;
        if !expected {
            return Ok(None);
        }
        let len = RECORD_HEADER_LEN + header.body_len;
        let Some(bytes) = window.at(self.position, len)? else {
            return Ok(None);
        };
        let body = record::verified_body(bytes, &header, self.superblock.uuid);
        Ok(body.map(|body| (header, body.to_vec())))
    }

    fn apply(&self, tables: &mut Tables, ops: &[u8]) -> Result<()> {
        tables
            .apply_all(ops, &mut Vec::new())
            .ok_or_else(|| self.malformed())
    }

    fn malformed(&self) -> Error {
        let offset = self.superblock.region_start(self.region) * BLOCK_SIZE + self.position;
        Error::corrupt("journal record", offset, "it holds an impossible operation")
    }

    /// Applies the last record; see [`apply_checked`].
    fn apply_last(&self, tables: &mut Tables, ops: &[u8]) -> Result<bool> {
        apply_checked(self.disk, tables, ops).ok_or_else(|| self.malformed())?
    }

    fn damage(&self) -> Option<String> {
        let offset = self.superblock.region_start(self.region) * BLOCK_SIZE + self.position;
        if let Some(later) = self.later {
            let later = later - self.position + offset;
            return Some(format!(
                "journal record {} at byte {offset} is damaged: a later one at byte {later} is whole",
                self.seq
            ));
        }
        (self.records < self.header.carried).then(|| {
            format!(
                "journal record {} at byte {offset} is damaged: it was durable before its header",
                self.seq
            )
        })
    }

    fn end(&self) -> JournalEnd {
        JournalEnd {
            region: self.region,
            epoch: self.header.epoch,
            position: self.position,
            records_offset: self.header.records_offset(),
            seq: self.seq,
            prev_crc: self.prev_crc,
            next_id: self.next_id,
            ops_len: self.ops_len,
        }
    }
}

/// Applies a record, but of the sizes that were written together with their data only those whose
/// data is there. False where some were left out; `None` where the record is malformed.
pub(crate) fn apply_checked(disk: &Disk, tables: &mut Tables, ops: &[u8]) -> Option<Result<bool>> {
    let mut decoder = Decoder::new(ops);
    let mut freed = Vec::new();
    let mut all = true;
    while !decoder.is_empty() {
        let op = Op::decode(&mut decoder)?;
        if !tables.admits(&op) {
            return None;
        }
        match data_is_there(disk, tables, &op) {
            Ok(true) => tables.apply(&op, &mut freed),
            Ok(false) => all = false,
            Err(error) => return Some(Err(error)),
        }
    }
    Some(Ok(all))
}

fn data_is_there(disk: &Disk, tables: &Tables, op: &Op<'_>) -> Result<bool> {
    let Op::SetSize {
        ino,
        size,
        check_from,
        check_crc,
        ..
    } = *op
    else {
        return Ok(true);
    };
    if check_from >= size {
        return Ok(true);
    }
    let Some(inode) = tables.inode(ino) else {
        return Ok(true);
    };
    let state = inode.state.read();
    let mut crc = 0;
    let mut at = check_from;
    while at < size {
        let first = align_down(at, BLOCK_SIZE);
        let Some(Run { start, blocks }) = state.extents.find(first / BLOCK_SIZE) else {
            return Ok(false);
        };
        let end = size.min(first + blocks.min(256) * BLOCK_SIZE);
        let len = align_up(end, BLOCK_SIZE) - first;
        if start * BLOCK_SIZE + len > disk.device().geometry().size {
            return Ok(false);
        }
        let mut buf = AlignedBuf::zeroed(len as usize);
        disk.read(start * BLOCK_SIZE, &mut buf)?;
        crc = crc32c::crc32c_append(crc, &buf[(at - first) as usize..(end - first) as usize]);
        at = end;
    }
    Ok(crc == check_crc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn header(epoch: u64) -> HeaderCopy {
        HeaderCopy::Valid(RegionHeader {
            uuid: Uuid::nil(),
            epoch,
            first_seq: 1,
            checkpoint_len: 0,
            checkpoint_hash: 0,
            next_id: 2,
            carried: 0,
        })
    }

    /// Every way in which one region can come to be: a true history of switches, then damage to
    /// any of its copies. Whatever region is then chosen without complaint is the right one.
    #[test]
    fn the_decision_table_never_silently_picks_an_older_region() {
        let mut cases = 0;
        for last in 1..=4u64 {
            for second_written in [false, true] {
                let mut truth = [[HeaderCopy::Blank; 2]; 2];
                for epoch in 1..=last {
                    let region = (epoch as usize + 1) % 2;
                    truth[region][0] = header(epoch);
                    if epoch < last || second_written {
                        truth[region][1] = header(epoch);
                    }
                }
                for damage in 0..81u32 {
                    let mut seen = truth;
                    let mut broken = 0;
                    for slot in 0..4 {
                        let kind = damage / 3u32.pow(slot) % 3;
                        let copy = &mut seen[slot as usize / 2][slot as usize % 2];
                        match kind {
                            1 => *copy = HeaderCopy::Damaged,
                            2 if matches!(copy, HeaderCopy::Valid(_)) => *copy = HeaderCopy::Blank,
                            _ => continue,
                        }
                        broken += 1;
                    }
                    let choice = choose_region(seen);
                    cases += 1;
                    if broken == 0 {
                        assert_eq!(choice.damage, None, "{seen:?}");
                    }
                    let (Some((region, chosen)), None) = (choice.region, choice.damage) else {
                        continue;
                    };
                    let active = (last as usize + 1) % 2;
                    let right = chosen.epoch == last && region == active;
                    // Where all that was written of the newest header reads as zeros, nothing is
                    // left that could tell. Anything less must never mislead.
                    let traceless = seen[active] == [HeaderCopy::Blank; 2];
                    assert!(
                        right || traceless,
                        "{seen:?} gave {chosen:?}, truth is {last}"
                    );
                }
            }
        }
        assert_eq!(cases, 4 * 2 * 81);
    }
}
