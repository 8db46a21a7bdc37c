//! Journal: makes metadata operations durable, in order, many in one write.
//!
//! Two static regions; the active one holds a checkpoint and the records since (`region.rs`,
//! `record.rs`). An operation is applied to the tables and enqueued under the same lock, and gets
//! a ticket; [`Journal::commit`] returns when the ticket is durable. Whoever gets the writer first
//! writes everything that is queued as one record, so all who wait share one write (group
//! commit, no timer).
//!
//! What a commit costs: one durable (FUA) write; if it names sizes whose data is not flushed yet,
//! a flush before it ("metadata durable before its data", ceph#41501); but if that data is
//! covered by a checksum in the operation (`SetSize` with `check_from`), the record is written
//! volatile and one flush makes both durable: recovery believes such a size in the last record
//! only if the data matches, and no later record is written before the flush has returned.
//!
//! Space: the committer asks for a checkpoint when half of the record area is used, and makes one
//! itself when a record does not fit. Growth that could make the next checkpoint too large is
//! refused beforehand by [`Journal::admit`]; removal never is. Appended bytes that wait in memory have a
//! promise of room for their extent, so that the close that writes them out finds it.
//!
//! Locks, in order: `transacting` (held across the commits before a large transaction and until it is
//! enqueued), `checkpointing` (one checkpoint at a time, held across device I/O), `writer` (held
//! across device I/O), the tables and an inode's state (never held by a caller of `commit`),
//! `queue` (leaf, never across I/O).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};
use uuid::Uuid;

use crate::device::{AlignedBuf, DeviceWrite, Durability};
use crate::disk::{Disk, WriteTicket};
use crate::error::{Error, Result};
use crate::format::record::{self, BODY_LEN_MAX, RECORD_HEADER_LEN};
use crate::format::region::RegionHeader;
use crate::format::superblock::Superblock;
use crate::meta::checkpoint::{self, Written};
use crate::meta::pace::{Hurry, Pace};
use crate::meta::tables::Tables;
use crate::types::{BLOCK_SIZE, align_up};

/// How many inode numbers and generations are reserved at a time.
const ID_GRANT: u64 = 1 << 16;

/// Queued operations of more than this many bytes are committed before more are accepted.
const QUEUE_LEN_MAX: u64 = 1 << 20;

/// The journal of a filesystem that is mounted read-write.
#[derive(Debug)]
pub(crate) struct Journal {
    disk: Arc<Disk>,
    tables: Arc<RwLock<Tables>>,
    superblock: Superblock,
    queue: Mutex<Queue>,
    writer: Mutex<Writer>,
    checkpointing: Mutex<()>,
    hurry: Hurry,
    /// One large enqueuing at a time.
    transacting: Mutex<()>,
    durable: AtomicU64,
    /// Next inode number or generation to give out.
    next_id: AtomicU64,
    /// Numbers below this are covered by durable metadata.
    id_limit: AtomicU64,
    /// Upper bound of the next checkpoint's length: the last one's, and all operations since.
    checkpoint_len_bound: AtomicU64,
    /// Bytes of operations to come that [`Journal::promise`] has admitted.
    promised: AtomicU64,
}

/// Operations that wait for a record.
#[derive(Debug, Default)]
struct Queue {
    ops: Vec<u8>,
    last_ticket: u64,
    /// Data that must be flushed before the record is written.
    flush_first: WriteTicket,
    /// Some operation covers its unflushed data by checksum: flush after the record.
    flush_after: bool,
    /// The limit of numbers that the record shall raise, if it is to.
    id_limit: u64,
}

/// The place of the next record.
#[derive(Debug)]
struct Writer {
    region: usize,
    epoch: u64,
    /// Byte offset in the region.
    position: u64,
    records_offset: u64,
    seq: u64,
    prev_crc: u32,
    id_limit: u64,
    buf: AlignedBuf,
    /// Bodies of the records written since a checkpoint in progress began.
    carry: Option<Vec<u8>>,
}

/// How an operation's data stands when it is enqueued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DataState {
    /// Nothing depends on unflushed data.
    Durable,
    /// The data up to this ticket must be durable before the record.
    FlushBefore(WriteTicket),
    /// The operation carries a checksum of the data; one flush for both will do.
    Checked,
}

/// Where replay ended and the journal goes on. See `recovery.rs`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JournalEnd {
    pub(crate) region: usize,
    pub(crate) epoch: u64,
    pub(crate) position: u64,
    pub(crate) records_offset: u64,
    pub(crate) seq: u64,
    pub(crate) prev_crc: u32,
    pub(crate) next_id: u64,
    /// Bytes of the checkpoint and of all operations since.
    pub(crate) ops_len: u64,
}

impl Journal {
    pub(crate) fn new(
        disk: Arc<Disk>,
        tables: Arc<RwLock<Tables>>,
        superblock: Superblock,
        end: &JournalEnd,
    ) -> Self {
        Journal {
            disk,
            tables,
            superblock,
            queue: Mutex::new(Queue::default()),
            writer: Mutex::new(Writer {
                region: end.region,
                epoch: end.epoch,
                position: end.position,
                records_offset: end.records_offset,
                seq: end.seq,
                prev_crc: end.prev_crc,
                id_limit: end.next_id,
                buf: AlignedBuf::zeroed(0),
                carry: None,
            }),
            checkpointing: Mutex::new(()),
            hurry: Hurry::default(),
            transacting: Mutex::new(()),
            durable: AtomicU64::new(0),
            next_id: AtomicU64::new(end.next_id),
            id_limit: AtomicU64::new(end.next_id),
            checkpoint_len_bound: AtomicU64::new(end.ops_len),
            promised: AtomicU64::new(0),
        }
    }

    /// Enqueues operations and returns their ticket. The caller holds the lock under which it
    /// applied them.
    pub(crate) fn enqueue(&self, ops: &[u8], data: DataState) -> u64 {
        let mut queue = self.queue.lock();
        queue.ops.extend_from_slice(ops);
        match data {
            DataState::Durable => {}
            DataState::FlushBefore(ticket) => queue.flush_first = queue.flush_first.max(ticket),
            DataState::Checked => queue.flush_after = true,
        }
        queue.last_ticket += 1;
        self.checkpoint_len_bound
            .fetch_add(ops.len() as u64, Ordering::Relaxed);
        queue.last_ticket
    }

    /// The highest ticket that is durable.
    pub(crate) fn durable_ticket(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// The ticket of the last operation enqueued.
    pub(crate) fn last_ticket(&self) -> u64 {
        self.queue.lock().last_ticket
    }

    /// Makes the operations up to `ticket` durable. Returns true where the record area is half full, so that a checkpoint
    /// should be made soon.
    pub(crate) fn commit(&self, ticket: u64) -> Result<bool> {
        while self.durable_ticket() < ticket {
            self.disk.check_writable()?;
            let mut writer = self.writer.lock();
            if self.durable_ticket() >= ticket {
                break;
            }
            if self.write_group(&mut writer)? {
                return Ok(self.is_half_full(&writer));
            }
            drop(writer);
            self.hurry.during(|| self.checkpoint_if_full())?;
        }
        Ok(false)
    }

    /// Refuses growth by `len` bytes of operations if a checkpoint could then not be written,
    /// and commits what is queued if that has become much. Called before anything is changed.
    pub(crate) fn admit(&self, len: u64) -> Result<()> {
        let promised = self.promised.load(Ordering::Relaxed);
        self.admit_below(self.region_len() / 16 * 10, promised + len)
    }

    /// Refuses like [`Journal::admit`], and keeps room for `len` bytes from whoever asks later, until
    /// [`Journal::take_back`].
    pub(crate) fn promise(&self, len: u64) -> Result<()> {
        self.admit(len)?;
        self.promised.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    /// Ends a promise.
    pub(crate) fn take_back(&self, len: u64) {
        self.promised.fetch_sub(len, Ordering::Relaxed);
    }

    /// Admits growth that was promised. There is a little more room than was promised in all, for
    /// what is cut into more pieces than was thought of.
    pub(crate) fn admit_promised(&self, len: u64) -> Result<()> {
        self.admit_below(self.region_len() / 16 * 11, len)
    }

    fn admit_below(&self, limit: u64, len: u64) -> Result<()> {
        self.drain()?;
        if self.checkpoint_len_bound.load(Ordering::Relaxed) + len <= limit {
            return Ok(());
        }
        // What is queued while a checkpoint is made counts twice, in the tables and in the record
        // behind it: that would refuse what fits.
        self.commit(self.last_ticket())?;
        self.hurry.during(|| self.checkpoint())?;
        let bound = self.checkpoint_len_bound.load(Ordering::Relaxed);
        if bound + len <= limit {
            return Ok(());
        }
        Err(Error::NoSpace {
            needed: len,
            free: limit.saturating_sub(bound),
        })
    }

    /// The most bytes of operations that may be enqueued at once: with as much queued before them
    /// they still fit behind any checkpoint that [`Journal::admit`] lets grow.
    pub(crate) fn transaction_len_max(&self) -> u64 {
        QUEUE_LEN_MAX.min(self.region_len() / 8)
    }

    /// Commits what is queued, so that up to [`Journal::transaction_len_max`] bytes may be enqueued
    /// at once while the guard is held. Whoever enqueues kilobytes holds it from before it asks for admission:
    /// several of them, each admitted for itself, would not fit together.
    pub(crate) fn begin_transaction(&self) -> Result<MutexGuard<'_, ()>> {
        let guard = self.transacting.lock();
        self.drain()?;
        Ok(guard)
    }

    /// Commits what is queued if that has become much. Called before a removal, truncation or
    /// close, which are never refused for want of space but must not let the queue outgrow a
    /// region either.
    pub(crate) fn drain(&self) -> Result<()> {
        self.disk.check_writable()?;
        if self.queue.lock().ops.len() as u64 > self.transaction_len_max() {
            self.commit(self.last_ticket())?;
        }
        Ok(())
    }

    /// A number never given out before, for an inode or as a generation. Durably reserved.
    pub(crate) fn new_id(&self) -> Result<u64> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        while id >= self.id_limit.load(Ordering::Acquire) {
            let ticket = {
                let mut queue = self.queue.lock();
                queue.id_limit = queue.id_limit.max(id + ID_GRANT);
                queue.last_ticket += 1;
                queue.last_ticket
            };
            self.commit(ticket)?;
        }
        Ok(id)
    }

    /// Makes a checkpoint in the idle region and switches to it, while operations go on. It takes its
    /// time beside synced appends, unless somebody waits for it (`pace.rs`).
    pub(crate) fn checkpoint(&self) -> Result<()> {
        let _checkpointing = self.checkpointing.lock();
        self.disk.check_writable()?;
        let idle = {
            let mut writer = self.writer.lock();
            writer.carry = Some(Vec::new());
            1 - writer.region
        };
        let written = self.write_checkpoint(idle);
        let mut writer = self.writer.lock();
        let outcome = written.and_then(|written| self.switch(&mut writer, idle, &written));
        writer.carry = None;
        outcome
    }

    /// Makes a checkpoint with the writer held, if the queued operations still do not fit.
    fn checkpoint_if_full(&self) -> Result<()> {
        let _checkpointing = self.checkpointing.lock();
        let mut writer = self.writer.lock();
        if self.record_fits(&writer, self.queue.lock().ops.len()) {
            return Ok(());
        }
        let idle = 1 - writer.region;
        let written = self.write_checkpoint(idle)?;
        self.switch(&mut writer, idle, &written)
    }

    fn write_checkpoint(&self, idle: usize) -> Result<Written> {
        let base = self.superblock.region_start(idle) * BLOCK_SIZE + BLOCK_SIZE;
        let len_max = self.region_len() - 2 * BLOCK_SIZE;
        let mut pace = Pace::new(&self.disk, &self.hurry);
        checkpoint::write(&self.disk, &self.tables, base, len_max, &mut pace)
    }

    /// Writes what is queued as one record. False where it does not fit in the region.
    fn write_group(&self, writer: &mut Writer) -> Result<bool> {
        let (group, ticket) = {
            let mut queue = self.queue.lock();
            if !self.record_fits(writer, queue.ops.len()) {
                return Ok(false);
            }
            let ticket = queue.last_ticket;
            (
                std::mem::replace(
                    &mut *queue,
                    Queue {
                        last_ticket: ticket,
                        ..Queue::default()
                    },
                ),
                ticket,
            )
        };
        writer.id_limit = writer.id_limit.max(group.id_limit);
        self.disk.flush_through(group.flush_first)?;
        let base = self.superblock.region_start(writer.region) * BLOCK_SIZE;
        let durability = if group.flush_after {
            Durability::Volatile
        } else {
            Durability::Durable
        };
        let written = self.write_record(writer, base, &group.ops, durability)?;
        if group.flush_after {
            self.disk.flush_through(written)?;
        }
        if let Some(carry) = &mut writer.carry {
            carry.extend_from_slice(&group.ops);
        }
        self.id_limit.store(writer.id_limit, Ordering::Release);
        self.durable.store(ticket, Ordering::Release);
        Ok(true)
    }

    /// Writes one record at the writer's position, in the region that begins at byte `base`.
    fn write_record(
        &self,
        writer: &mut Writer,
        base: u64,
        ops: &[u8],
        durability: Durability,
    ) -> Result<WriteTicket> {
        let len = RECORD_HEADER_LEN + ops.len();
        let padded = self.padded(ops.len()) as usize;
        if writer.buf.len() < padded {
            writer.buf = AlignedBuf::zeroed(padded.next_power_of_two());
        }
        let buf = &mut writer.buf[..padded];
        buf[RECORD_HEADER_LEN..len].copy_from_slice(ops);
        buf[len..].fill(0);
        let crc = record::seal(
            &mut buf[..len],
            self.uuid(),
            writer.epoch,
            writer.seq,
            writer.prev_crc,
            writer.id_limit,
        );
        let write = DeviceWrite {
            offset: base + writer.position,
            data: buf,
        };
        let ticket = self.disk.write(&[write], durability)?;
        writer.position += padded as u64;
        writer.seq += 1;
        writer.prev_crc = crc;
        Ok(ticket)
    }

    /// Switches to the idle region, whose checkpoint is `written`: carries over the records since
    /// it began and everything queued, then makes the header durable.
    ///
    /// A crash before the header's write leaves the old region active, whole and with everything
    /// acknowledged; one after it, the new one.
    fn switch(&self, writer: &mut Writer, idle: usize, written: &Written) -> Result<()> {
        let mut carry = writer.carry.take().unwrap_or_default();
        let records_offset = BLOCK_SIZE + align_up(written.len, BLOCK_SIZE);
        let queue = {
            let mut queue = self.queue.lock();
            let end = records_offset + self.padded(carry.len() + queue.ops.len());
            if end > self.records_end() || carry.len() + queue.ops.len() > BODY_LEN_MAX {
                let free = self.records_end().saturating_sub(records_offset);
                return Err(Error::NoSpace {
                    needed: end - records_offset,
                    free,
                });
            }
            let bound = written.len + (carry.len() + queue.ops.len()) as u64;
            self.checkpoint_len_bound.store(bound, Ordering::Relaxed);
            let last_ticket = queue.last_ticket;
            std::mem::replace(
                &mut *queue,
                Queue {
                    last_ticket,
                    ..Queue::default()
                },
            )
        };
        carry.extend_from_slice(&queue.ops);
        let id_limit = writer
            .id_limit
            .max(queue.id_limit)
            .max(self.next_id.load(Ordering::Relaxed) + ID_GRANT);
        let header = RegionHeader {
            uuid: self.uuid(),
            epoch: writer.epoch + 1,
            first_seq: writer.seq,
            checkpoint_len: written.len,
            checkpoint_hash: written.hash,
            next_id: id_limit,
            carried: u64::from(!carry.is_empty()),
        };
        let mut next = Writer {
            region: idle,
            epoch: header.epoch,
            position: records_offset,
            records_offset,
            seq: header.first_seq,
            prev_crc: header.crc(),
            id_limit,
            buf: std::mem::replace(&mut writer.buf, AlignedBuf::zeroed(0)),
            carry: None,
        };
        let base = self.superblock.region_start(idle) * BLOCK_SIZE;
        let mut last_write = queue.flush_first;
        if !carry.is_empty() {
            last_write = self
                .write_record(&mut next, base, &carry, Durability::Volatile)?
                .max(last_write);
        }
        self.disk.flush_through(last_write)?;
        self.write_header(&header, base)?;
        *writer = next;
        self.id_limit.store(writer.id_limit, Ordering::Release);
        self.durable.store(queue.last_ticket, Ordering::Release);
        self.write_header(
            &header,
            base + (self.superblock.journal_blocks - 1) * BLOCK_SIZE,
        )
    }

    fn write_header(&self, header: &RegionHeader, offset: u64) -> Result<()> {
        let mut block = AlignedBuf::zeroed(BLOCK_SIZE as usize);
        block.copy_from_slice(&header.encode());
        self.disk.write(
            &[DeviceWrite {
                offset,
                data: &block,
            }],
            Durability::Durable,
        )?;
        Ok(())
    }

    fn record_fits(&self, writer: &Writer, ops_len: usize) -> bool {
        ops_len <= BODY_LEN_MAX && writer.position + self.padded(ops_len) <= self.records_end()
    }

    /// True where a checkpoint should be made soon.
    pub(crate) fn is_due(&self) -> bool {
        self.is_half_full(&self.writer.lock())
    }

    fn is_half_full(&self, writer: &Writer) -> bool {
        let used = writer.position - writer.records_offset;
        let free = self.records_end() - writer.position;
        used > free
    }

    /// Length of a record with `ops_len` bytes of operations on the device.
    fn padded(&self, ops_len: usize) -> u64 {
        align_up((RECORD_HEADER_LEN + ops_len) as u64, self.disk.unit())
    }

    /// End of the record area, in bytes from a region's start.
    fn records_end(&self) -> u64 {
        self.region_len() - BLOCK_SIZE
    }

    fn region_len(&self) -> u64 {
        self.superblock.journal_blocks * BLOCK_SIZE
    }

    fn uuid(&self) -> Uuid {
        self.superblock.uuid
    }
}
