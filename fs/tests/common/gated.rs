//! A simulated device whose writes to one place can be held back, for tests that force what runs beside what.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use lavafs::BLOCK_SIZE;
use lavafs::device::{
    AlignedBuf, BlockDevice, DeviceCounters, DeviceRead, DeviceWrite, Durability, Geometry,
    SimDevice,
};

const JOURNAL_START: u64 = 3;

/// A device that holds writes to one range back until it is told to let go.
#[derive(Debug)]
pub(crate) struct Gated {
    device: Arc<SimDevice>,
    gate: Mutex<Gate>,
    moved: Condvar,
    /// Length in bytes of the longest transfer.
    pub(crate) longest: AtomicUsize,
}

#[derive(Debug, Default)]
struct Gate {
    closed: Option<Range<u64>>,
    /// Where the writes go that were held back and have not gone on.
    held: Vec<u64>,
}

impl Gated {
    pub(crate) fn new(device: &Arc<SimDevice>) -> Arc<Gated> {
        Arc::new(Gated {
            device: device.clone(),
            gate: Mutex::default(),
            moved: Condvar::new(),
            longest: AtomicUsize::new(0),
        })
    }

    /// Holds writes to `range` back from here on, and no others any more.
    pub(crate) fn close(&self, range: Range<u64>) {
        self.gate.lock().unwrap().closed = Some(range);
        self.moved.notify_all();
    }

    pub(crate) fn open(&self) {
        self.gate.lock().unwrap().closed = None;
        self.moved.notify_all();
    }

    fn pass(&self, offset: u64) {
        let mut gate = self.gate.lock().unwrap();
        if !gate.holds(offset) {
            return;
        }
        gate.held.push(offset);
        self.moved.notify_all();
        while gate.holds(offset) {
            gate = self.moved.wait(gate).unwrap();
        }
        let at = gate.held.iter().position(|&held| held == offset);
        gate.held.swap_remove(at.unwrap());
    }

    /// Returns when some write waits at the gate, and where it goes.
    pub(crate) fn await_waiter(&self) -> u64 {
        let mut gate = self.gate.lock().unwrap();
        loop {
            // One that was let go may not have gone on yet.
            if let Some(&offset) = gate.held.iter().rev().find(|&&offset| gate.holds(offset)) {
                return offset;
            }
            gate = self.moved.wait(gate).unwrap();
        }
    }
}

impl Gate {
    fn holds(&self, offset: u64) -> bool {
        let closed = self.closed.as_ref();
        closed.is_some_and(|range| range.contains(&offset))
    }
}

impl BlockDevice for Gated {
    fn name(&self) -> &str {
        "gated"
    }

    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.longest.fetch_max(buf.len(), Ordering::Relaxed);
        self.device.read(offset, buf)
    }

    fn read_batch(&self, reads: &mut [DeviceRead<'_>], queue_depth: usize) {
        self.device.read_batch(reads, queue_depth);
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> io::Result<()> {
        self.pass(offset);
        self.longest.fetch_max(data.len(), Ordering::Relaxed);
        self.device.write(offset, data, durability)
    }

    fn write_batch(&self, writes: &[DeviceWrite<'_>], durability: Durability) -> io::Result<()> {
        writes.iter().for_each(|write| self.pass(write.offset));
        self.device.write_batch(writes, durability)
    }

    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device.discard(offset, len)
    }

    fn counters(&self) -> DeviceCounters {
        self.device.counters()
    }
}

/// The epoch of a journal region.
pub(crate) fn epoch(device: &SimDevice, region: &Range<u64>) -> u64 {
    let mut block = AlignedBuf::zeroed(BLOCK_SIZE as usize);
    device.read(region.start, &mut block).unwrap();
    u64::from_le_bytes(block[32..40].try_into().unwrap())
}

/// The journal's regions in bytes: the one in use, and the one that the next checkpoint goes to.
pub(crate) fn regions(device: &SimDevice, blocks: u64) -> [Range<u64>; 2] {
    let region = |index: u64| {
        let start = (JOURNAL_START + index * blocks) * BLOCK_SIZE;
        start..start + blocks * BLOCK_SIZE
    };
    let mut regions = [region(0), region(1)];
    regions.sort_by_key(|range| std::cmp::Reverse(epoch(device, range)));
    regions
}
