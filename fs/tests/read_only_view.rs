//! A read-only mount beside the owner that goes on writing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use lavafs::device::{
    BlockDevice, DeviceCounters, DeviceRead, DeviceWrite, Durability, Geometry, SimDevice,
};
use lavafs::{
    BLOCK_SIZE, CreateOptions, Error, FileSize, FileSystem, LavaFs, MkfsOptions, MountOptions, mkfs,
};

const MIB: u64 = 1 << 20;

fn device() -> Arc<SimDevice> {
    let device = Arc::new(SimDevice::new(16 * MIB, 512));
    mkfs(&*device, &MkfsOptions::default()).unwrap();
    device
}

fn mount(device: &Arc<SimDevice>, read_only: bool) -> LavaFs {
    let options = MountOptions {
        background: false,
        read_only,
        ..MountOptions::default()
    };
    LavaFs::mount(device.clone(), &options).unwrap()
}

fn write(fs: &LavaFs, path: &str, bytes: &[u8]) {
    let path = Path::new(path);
    let file = match fs.create(path, &CreateOptions::default()) {
        Err(error) if error.is_already_exists() => fs.open(path).unwrap(),
        created => created.unwrap(),
    };
    file.append(bytes).unwrap();
    file.fsync().unwrap();
}

fn read(fs: &LavaFs, path: &str) -> Vec<u8> {
    let file = fs.open(Path::new(path)).unwrap();
    let mut bytes = vec![0; file.size().lower() as usize];
    let len = file.read_at(0, &mut bytes).unwrap();
    assert_eq!(len, bytes.len());
    bytes
}

#[test]
fn a_refresh_shows_what_the_owner_has_made_durable() {
    let device = device();
    let owner = mount(&device, false);
    write(&owner, "/a", b"one");
    let view = mount(&device, true);
    assert!(view.is_moving_view().unwrap());
    assert!(!owner.is_moving_view().unwrap());
    assert!(!view.refresh().unwrap());
    let handle = view.open(Path::new("/a")).unwrap();
    write(&owner, "/a", b" two");
    write(&owner, "/b", &[7; 10_000]);
    assert_eq!(handle.size(), FileSize::Exact(3));
    assert!(view.refresh().unwrap());
    assert!(!view.refresh().unwrap());
    let mut buf = [0; 20];
    assert_eq!(handle.read_at(0, &mut buf).unwrap(), 7);
    assert_eq!(&buf[..7], b"one two");
    assert_eq!(read(&view, "/b"), [7; 10_000]);
    assert_eq!(view.space(), mount(&device, true).space());
    assert!(matches!(handle.append(b"x"), Err(Error::ReadOnly { .. })));
    owner.unlink(Path::new("/a")).unwrap();
    owner.rename(Path::new("/b"), Path::new("/c")).unwrap();
    owner.commit().unwrap();
    assert!(view.refresh().unwrap());
    assert_eq!(handle.read_at(0, &mut buf).unwrap(), 0);
    assert!(view.open(Path::new("/b")).unwrap_err().is_not_found());
    assert_eq!(read(&view, "/c"), [7; 10_000]);
    owner.unmount().unwrap();
    assert!(view.refresh().unwrap());
    assert!(!view.is_moving_view().unwrap());
}

#[test]
fn handles_stay_with_their_files_across_checkpoints() {
    let device = device();
    let owner = mount(&device, false);
    write(&owner, "/kept", b"first");
    write(&owner, "/gone", b"soon");
    let view = mount(&device, true);
    let kept = view.open(Path::new("/kept")).unwrap();
    let gone = view.open(Path::new("/gone")).unwrap();
    owner.unlink(Path::new("/gone")).unwrap();
    for round in 0..3 {
        write(&owner, "/kept", format!(" {round}").as_bytes());
        owner.checkpoint().unwrap();
    }
    assert!(view.refresh().unwrap());
    let mut buf = [0; 32];
    assert_eq!(kept.read_at(0, &mut buf).unwrap(), 11);
    assert_eq!(&buf[..11], b"first 0 1 2");
    assert_eq!(gone.read_at(0, &mut buf).unwrap(), 0);
    write(&owner, "/kept", b" 3");
    assert!(view.refresh().unwrap());
    assert_eq!(kept.read_at(0, &mut buf).unwrap(), 13);
    assert_eq!(read(&view, "/kept"), b"first 0 1 2 3");
}

#[test]
fn what_was_synced_without_its_size_is_between_bounds() {
    let device = device();
    let owner = mount(&device, false);
    let file = owner
        .create(Path::new("/wal"), &CreateOptions::default())
        .unwrap();
    let view = mount(&device, true);
    for record in 0..50u8 {
        file.append(&[record; 100]).unwrap();
        file.fdatasync().unwrap();
    }
    view.refresh().unwrap();
    let seen = view.open(Path::new("/wal")).unwrap();
    assert!(matches!(
        seen.size(),
        FileSize::Between {
            lower: 0,
            upper: 5000..
        }
    ));
    assert_eq!(seen.generation(), file.generation());
    let mut buf = [0; 5000];
    assert_eq!(seen.read_unverified(0, &mut buf).unwrap(), 5000);
    assert!(
        buf.chunks(100)
            .enumerate()
            .all(|(at, bytes)| bytes == [at as u8; 100])
    );
    file.fsync().unwrap();
    view.refresh().unwrap();
    assert_eq!(seen.size(), FileSize::Exact(5000));
}

#[test]
fn an_owners_expansion_is_told_and_not_read_beyond() {
    let small = device();
    let device = Arc::new(small.grown(32 * MIB));
    let owner = mount(&device, false);
    let view = mount(&device, true);
    owner.set_label("x").unwrap();
    owner.expand().unwrap();
    write(&owner, "/big", &vec![5; 20 * MIB as usize]);
    assert!(view.refresh().unwrap());
    assert_eq!(view.superblock().label, "x");
    assert_eq!(read(&view, "/big").len() as u64, 20 * MIB);
}

/// A writer appends, renames, unlinks and checkpoints while two readers mount and refresh. What a reader
/// sees must be a state that was: counters that only grow, in files that exist together.
#[test]
fn a_view_beside_a_running_writer_is_always_a_state_that_was() {
    let device = device();
    let owner = mount(&device, false);
    write(&owner, "/counter", b"");
    write(&owner, "/pair-0", b"x");
    let stop = AtomicBool::new(false);
    let moves = [AtomicU32::new(0), AtomicU32::new(0)];
    std::thread::scope(|scope| {
        for moves in &moves {
            let (device, stop) = (&device, &stop);
            scope.spawn(move || {
                let mut view = mount(device, true);
                let mut seen = 0;
                for round in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if round % 50 == 0 {
                        view = mount(device, true);
                    }
                    moves.fetch_add(u32::from(view.refresh().unwrap()), Ordering::Relaxed);
                    seen = assert_is_a_state(&view, seen);
                }
            });
        }
        let fewest = || {
            moves
                .iter()
                .map(|m| m.load(Ordering::Relaxed))
                .min()
                .unwrap()
        };
        let mut round = 0;
        while fewest() < 100 && round < 100_000 {
            write(&owner, "/counter", &[round as u8]);
            let (from, to) = (format!("/pair-{round}"), format!("/pair-{}", round + 1));
            owner.rename(Path::new(&from), Path::new(&to)).unwrap();
            let junk = format!("/junk-{round}");
            write(&owner, &junk, &[9; 3000]);
            owner.unlink(Path::new(&junk)).unwrap();
            if round % 100 == 99 {
                owner.checkpoint().unwrap();
            }
            round += 1;
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(fewest() >= 100, "{moves:?} in {round} rounds");
    });
}

/// Returns how far the counter is, at least `seen`.
fn assert_is_a_state(view: &LavaFs, seen: usize) -> usize {
    let bytes = read(view, "/counter");
    assert!(bytes.len() >= seen, "{} after {seen}", bytes.len());
    assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == at as u8));
    let names = view.list(Path::new("/")).unwrap();
    let is_pair = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b"pair");
    let pairs = names.iter().filter(|entry| is_pair(&entry.name)).count();
    assert_eq!(pairs, 1, "{names:?}");
    bytes.len()
}

/// A device whose owner writes two checkpoints before each read behind the header of a region, for so many
/// reads.
#[derive(Debug)]
struct Restless {
    device: Arc<SimDevice>,
    owner: LavaFs,
    left: AtomicU32,
}

impl Restless {
    fn before_read(&self, offset: u64) {
        let superblock = self.owner.superblock();
        let [start, blocks] = [superblock.journal_start, superblock.journal_blocks];
        let behind_header = |region| offset == (start + region * blocks + 1) * BLOCK_SIZE;
        let left = self.left.load(Ordering::Relaxed);
        if left > 0 && (behind_header(0) || behind_header(1)) {
            self.left.store(left - 1, Ordering::Relaxed);
            write(&self.owner, &format!("/{left}"), b"x");
            self.owner.checkpoint().unwrap();
            self.owner.checkpoint().unwrap();
        }
    }
}

impl BlockDevice for Restless {
    fn name(&self) -> &str {
        "restless"
    }

    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.before_read(offset);
        self.device.read(offset, buf)
    }

    fn read_batch(&self, reads: &mut [DeviceRead<'_>], queue_depth: usize) {
        reads.iter().for_each(|read| self.before_read(read.offset));
        self.device.read_batch(reads, queue_depth);
    }

    fn write(&self, _: u64, _: &[u8], _: Durability) -> io::Result<()> {
        unreachable!("a view writes nothing")
    }

    fn write_batch(&self, _: &[DeviceWrite<'_>], _: Durability) -> io::Result<()> {
        unreachable!("a view writes nothing")
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        unreachable!("a view writes nothing")
    }

    fn counters(&self) -> DeviceCounters {
        self.device.counters()
    }
}

/// What a reader found overwritten six times was damage, however much had moved: a slow reader beside a
/// busy owner was told that a sound filesystem is corrupt.
#[test]
fn what_moves_while_it_is_read_is_no_damage() {
    const TIMES: u32 = 12;
    let device = device();
    let owner = mount(&device, false);
    let restless = Arc::new(Restless {
        device,
        owner,
        left: AtomicU32::new(TIMES),
    });
    let options = MountOptions {
        read_only: true,
        ..MountOptions::default()
    };
    let view = LavaFs::mount(restless.clone(), &options).unwrap();
    assert_eq!(restless.left.load(Ordering::Relaxed), 0);
    assert_eq!(view.list(Path::new("/")).unwrap().len(), TIMES as usize);
}
