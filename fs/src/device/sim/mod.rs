//! `SimDevice`: a device in memory that loses power, lies and fails on request.
//!
//! It keeps what it reads (the volatile image) apart from what a power cut leaves (see `crash`).
//! A run can be recorded, and then the device after a crash at each of its operations is made in
//! microseconds; see [`SimDevice::record`] and [`Recording::crash`]. Faults follow a
//! [`FaultPlan`].
//!
//! What it does not do: keep time, or reorder calls of several threads; each call takes effect at
//! once, under one lock. Only a write behind takes effect as late as it can: when it is waited for.

mod crash;
mod image;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use self::crash::Media;
pub use self::crash::{Recording, SimOp, SimWrite};
use self::image::Image;
use super::counters::AtomicCounters;
use super::fault::{Fault, FaultOn, FaultPlan};
use super::{
    AlignedBuf, BlockDevice, DeviceCounters, DevicePart, DeviceRead, DeviceWrite, Durability,
    Geometry, PendingWrite, check_aligned, check_range, write_parts,
};

/// Smallest unit that a crash tears by default: what any disk writes whole.
const SECTOR: u64 = 512;

/// A simulated device. See the module's words.
#[derive(Debug)]
pub struct SimDevice {
    sim: Arc<Sim>,
}

/// What the device shares with writes in flight.
#[derive(Debug)]
struct Sim {
    geometry: Geometry,
    tear: u64,
    counters: AtomicCounters,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What reads see.
    volatile: Image,
    media: Media,
    faults: Option<FaultPlan>,
    recording: Option<Recording>,
}

impl SimDevice {
    /// A device of `size` zero bytes with a volatile cache, torn by a crash at 512 bytes.
    ///
    /// # Panics
    /// Where `logical_block` is not a power of two from 512 to 4096 or does not divide `size`.
    pub fn new(size: u64, logical_block: u64) -> SimDevice {
        assert!(logical_block.is_power_of_two() && (512..=4096).contains(&logical_block));
        assert!(size.is_multiple_of(logical_block));
        let geometry = Geometry {
            size,
            logical_block,
            volatile_cache: true,
        };
        SimDevice::from_image(geometry, SECTOR, Image::zeroed(size))
    }

    /// The same device, torn by a crash at multiples of `tear` bytes: a power of two from 512 to
    /// the logical block. The default of 512 is harsher than the rules of
    /// [`BlockDevice`], by which a logical block is atomic.
    #[must_use]
    pub fn with_tear(mut self, tear: u64) -> SimDevice {
        assert!(
            tear.is_power_of_two() && (SECTOR..=self.sim.geometry.logical_block).contains(&tear)
        );
        let sim = Arc::get_mut(&mut self.sim).expect("nothing is in flight on a new device");
        sim.tear = tear;
        self
    }

    fn from_image(geometry: Geometry, tear: u64, image: Image) -> SimDevice {
        let state = State {
            volatile: image.clone(),
            media: Media::new(image),
            faults: None,
            recording: None,
        };
        SimDevice {
            sim: Arc::new(Sim {
                geometry,
                tear,
                counters: AtomicCounters::default(),
                state: Mutex::new(state),
            }),
        }
    }

    /// Sets the faults to come; `None` for none.
    pub fn set_faults(&self, plan: Option<FaultPlan>) {
        self.sim.state.lock().faults = plan;
    }

    /// Begins a recording with the next operation, dropping an unfinished one.
    pub fn record(&self) {
        self.sim.state.lock().recording = Some(Recording::new(self.sim.geometry, self.sim.tear));
    }

    /// Ends the recording and returns it.
    ///
    /// # Panics
    /// Where none was begun.
    pub fn take_recording(&self) -> Recording {
        let mut state = self.sim.state.lock();
        let mut recording = state.recording.take().expect("a recording was begun");
        recording.finish(&state.media);
        recording
    }

    /// Operations recorded so far; 0 without a recording. A caller notes it when something is
    /// acknowledged, to know which crashes must keep it: those at this index and later.
    pub fn recorded_ops(&self) -> usize {
        self.sim
            .state
            .lock()
            .recording
            .as_ref()
            .map_or(0, |recording| recording.ops().len())
    }

    /// The device after a power cut now; `seed` decides what becomes of unflushed writes.
    pub fn crash(&self, seed: u64) -> SimDevice {
        let media = self.sim.state.lock().media.clone();
        SimDevice::from_image(
            self.sim.geometry,
            self.sim.tear,
            media.crash(None, self.sim.tear, seed),
        )
    }

    /// A copy of the device as it reads now, all of it durable.
    pub fn duplicate(&self) -> SimDevice {
        let image = self.sim.state.lock().volatile.clone();
        SimDevice::from_image(self.sim.geometry, self.sim.tear, image)
    }

    /// A copy of the device as it reads now, all of it durable, that has grown to `size` bytes.
    ///
    /// # Panics
    /// Where `size` is smaller or no multiple of the logical block.
    pub fn grown(&self, size: u64) -> SimDevice {
        assert!(
            size >= self.sim.geometry.size && size.is_multiple_of(self.sim.geometry.logical_block)
        );
        let mut image = self.sim.state.lock().volatile.clone();
        image.grow(size);
        let geometry = Geometry {
            size,
            ..self.sim.geometry
        };
        SimDevice::from_image(geometry, self.sim.tear, image)
    }

    /// Flips one bit (0 to 7) of the byte at `offset`, at rest and in the cache.
    pub fn flip_bit(&self, offset: u64, bit: u8) {
        let mut state = self.sim.state.lock();
        state.volatile.flip_bit(offset, bit);
        state.media.flip_bit(offset, bit);
    }
}

impl Sim {
    fn do_read(&self, state: &mut State, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_aligned(self.geometry, buf);
        check_range(self.geometry, offset, buf.len() as u64);
        let fault = state.fault(FaultOn::Read, offset, buf.len() as u64);
        if fault == Some(Fault::Eio) {
            return Err(eio());
        }
        state.volatile.read(offset, buf);
        if fault == Some(Fault::BitFlip) && !buf.is_empty() {
            let random = state.random();
            buf[(random % buf.len() as u64) as usize] ^= 1 << (random >> 61);
        }
        self.counters.read(buf.len() as u64);
        Ok(())
    }

    fn do_writes(&self, writes: &[DeviceWrite<'_>], durability: Durability) -> io::Result<()> {
        let mut state = self.state.lock();
        let mut done = Vec::with_capacity(writes.len());
        let mut failed = false;
        for write in writes {
            check_aligned(self.geometry, write.data);
            check_range(self.geometry, write.offset, write.data.len() as u64);
            let fault = state.fault(FaultOn::Write, write.offset, write.data.len() as u64);
            failed |= fault == Some(Fault::Eio);
            if let Some(write) = self.distort(&mut state, write, fault) {
                done.push(write);
            }
            if fault != Some(Fault::Eio) {
                self.counters.wrote(write.data.len() as u64);
                if durability == Durability::Durable {
                    self.counters.flushed();
                }
            }
        }
        // A write that failed is never durable, and neither are those that failed with it.
        let durable =
            !failed && (durability == Durability::Durable || !self.geometry.volatile_cache);
        if !done.is_empty() {
            let writes = done.into();
            state.perform(&SimOp::Write { writes, durable }, self.tear);
        }
        if failed { Err(eio()) } else { Ok(()) }
    }

    /// The write that takes effect in place of `write`.
    fn distort(
        &self,
        state: &mut State,
        write: &DeviceWrite<'_>,
        fault: Option<Fault>,
    ) -> Option<SimWrite> {
        let mut data = write.data.to_vec();
        let mut offset = write.offset;
        match fault {
            None => {}
            Some(Fault::Lost) => return None,
            Some(Fault::Eio) => {
                let kept = state.random() % (data.len() as u64 / self.tear + 1);
                data.truncate((kept * self.tear) as usize);
            }
            Some(Fault::BitFlip) if data.is_empty() => {}
            Some(Fault::BitFlip) => {
                let random = state.random();
                let at = (random % data.len() as u64) as usize;
                data[at] ^= 1 << (random >> 61);
            }
            Some(Fault::Misdirect { to }) => {
                let fits = to + data.len() as u64 <= self.geometry.size;
                offset = if fits { to } else { offset };
            }
        }
        let data: Arc<[u8]> = data.into();
        (!data.is_empty()).then_some(SimWrite { offset, data })
    }
}

impl State {
    fn fault(&mut self, on: FaultOn, offset: u64, len: u64) -> Option<Fault> {
        self.faults.as_mut()?.decide(on, offset, len)
    }

    /// Random bits, asked for only where a fault takes effect.
    fn random(&mut self) -> u64 {
        let plan = self.faults.as_mut().expect("only a plan causes faults");
        plan.random().next()
    }

    /// Records an operation and carries it out.
    fn perform(&mut self, op: &SimOp, tear: u64) {
        if let Some(recording) = &mut self.recording {
            recording.push(op, &self.media);
        }
        match op {
            SimOp::Write { writes, .. } => {
                for write in &**writes {
                    self.volatile.write(write.offset, &write.data);
                }
            }
            SimOp::Discard { offset, len } => self.volatile.poison(*offset, *len),
            SimOp::Flush | SimOp::FailedFlush { .. } => {}
        }
        self.media.apply(op, tear);
    }
}

impl BlockDevice for SimDevice {
    fn name(&self) -> &str {
        "sim"
    }

    fn geometry(&self) -> Geometry {
        self.sim.geometry
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.sim.do_read(&mut self.sim.state.lock(), offset, buf)
    }

    fn read_batch(&self, reads: &mut [DeviceRead<'_>], queue_depth: usize) {
        assert!(queue_depth > 0, "a batch needs a queue");
        let mut state = self.sim.state.lock();
        for read in reads {
            read.result = self.sim.do_read(&mut state, read.offset, read.buf);
        }
    }

    fn write_behind(&self, parts: &[DevicePart], buf: Arc<AlignedBuf>) -> PendingWrite {
        let (device, parts) = (
            SimDevice {
                sim: self.sim.clone(),
            },
            parts.to_vec(),
        );
        PendingWrite::deferred(move || write_parts(&device, &parts, &buf))
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> io::Result<()> {
        self.sim
            .do_writes(&[DeviceWrite { offset, data }], durability)
    }

    fn write_batch(&self, writes: &[DeviceWrite<'_>], durability: Durability) -> io::Result<()> {
        self.sim.do_writes(writes, durability)
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.sim.state.lock();
        match state.fault(FaultOn::Flush, 0, 0) {
            Some(Fault::Eio) => {
                let seed = state.random();
                state.perform(&SimOp::FailedFlush { seed }, self.sim.tear);
                return Err(eio());
            }
            Some(Fault::Lost) => {}
            _ => state.perform(&SimOp::Flush, self.sim.tear),
        }
        self.sim.counters.flushed();
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.sim.geometry, offset, len);
        if len > 0 {
            let op = SimOp::Discard { offset, len };
            self.sim.state.lock().perform(&op, self.sim.tear);
            self.sim.counters.discarded(len);
        }
        Ok(())
    }

    fn counters(&self) -> DeviceCounters {
        self.sim.counters.snapshot()
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}
