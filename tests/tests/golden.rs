//! Images as earlier versions left them, in `testdata/golden`: every version reads and changes them.
//!
//! Each is a device of 4 MiB at a moment at which its owner was killed: a checkpoint with journal
//! records behind it, and LavaLog's files in a directory. `cargo test -p lavatests --test golden -- --ignored`
//! writes the present version's as `testdata/golden/lavafs-new.img.zst`; a change of a format adds it
//! under the next number, and LavaKV has databases of its own in `kv/tests/testdata`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lavafs::device::{AlignedBuf, BlockDevice, Durability, SimDevice};
use lavafs::{
    CheckMode, CreateOptions, FileSystem, FileSystemRef, LavaFs, MkfsOptions, MountOptions,
    Ownership, TailPolicy, check, mkfs,
};
use lavalog::{LogConfig, LogEngine, LogOptions, ScanItem};

const NAMES: [&str; 1] = ["lavafs-1.img.zst"];
const DEVICE_SIZE: usize = 4 << 20;

fn testdata(name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("testdata/golden").join(name)
}

fn options() -> MountOptions {
    MountOptions {
        background: false,
        ..MountOptions::default()
    }
}

fn log_options() -> LogOptions {
    LogOptions {
        data_file_size: 256 << 10,
        meta_file_size: 64 << 10,
    }
}

/// The bytes of file `number`.
fn bytes_of(number: usize) -> Vec<u8> {
    (0..number * 997 % 20_000)
        .map(|at| (at * 31 + number) as u8)
        .collect()
}

fn fill(fs: &LavaFs, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let tail = match number % 2 {
            0 => TailPolicy::Pack,
            _ => TailPolicy::Seal,
        };
        let options = CreateOptions {
            tail,
            ..CreateOptions::default()
        };
        let path = format!("/dir/{number}");
        let file = fs.create(Path::new(&path), &options).unwrap();
        file.append(&bytes_of(number)).unwrap();
        file.fsync().unwrap();
    }
}

/// The device of an owner that is killed at the end.
fn make() -> SimDevice {
    let device = Arc::new(SimDevice::new(DEVICE_SIZE as u64, 512));
    let mkfs_options = MkfsOptions {
        label: Some("golden".to_owned()),
        ..MkfsOptions::default()
    };
    mkfs(device.as_ref(), &mkfs_options).unwrap();
    let fs = LavaFs::mount(device.clone(), &options()).unwrap();
    fs.create_dir_all(Path::new("/dir")).unwrap();
    fill(&fs, 0..20);
    fs.unlink(Path::new("/dir/3")).unwrap();
    fs.checkpoint().unwrap();
    // From here on in the journal's records.
    fill(&fs, 20..40);
    fs.unlink(Path::new("/dir/4")).unwrap();
    fs.rename(Path::new("/dir/5"), Path::new("/dir/renamed"))
        .unwrap();
    fs.link(Path::new("/dir/6"), Path::new("/linked")).unwrap();
    let owner = Ownership {
        mode: 0o777,
        uid: 7,
        gid: 8,
    };
    fs.symlink_at(LavaFs::ROOT, OsStr::new("link"), OsStr::new("dir/6"), owner)
        .unwrap();
    let ino = fs.resolve(Path::new("/dir/6")).unwrap();
    fs.set_xattr(ino, OsStr::new("user.key"), b"value").unwrap();
    let shared: FileSystemRef = Arc::new(fs.clone());
    let logs = LogEngine::open(shared, Path::new("/logs"), &log_options()).unwrap();
    let log = logs.create("orders", LogConfig::default()).unwrap();
    for lsn in 1..=50 {
        log.append(lsn, &bytes_of(lsn as usize % 7), true).unwrap();
    }
    log.trim_before(11).unwrap();
    logs.close().unwrap();
    fs.commit().unwrap();
    device.duplicate()
}

fn check_contents(fs: &LavaFs) {
    for number in 0..40 {
        let path = match number {
            5 => "/dir/renamed".to_owned(),
            _ => format!("/dir/{number}"),
        };
        let path = Path::new(&path);
        if number == 3 || number == 4 {
            assert!(fs.metadata(path).unwrap_err().is_not_found());
            continue;
        }
        let file = fs.open(path).unwrap();
        let mut expected = bytes_of(number);
        if number % 2 == 1 {
            // A sealed file's sync fills the logical block.
            expected.resize(expected.len().next_multiple_of(512), 0);
        }
        assert_eq!(file.size().lower(), expected.len() as u64, "{number}");
        let mut found = vec![0; expected.len() + 1];
        assert_eq!(file.read_at(0, &mut found).unwrap(), expected.len());
        assert_eq!(found[..expected.len()], expected, "{number}");
    }
    let ino = fs.resolve(Path::new("/linked")).unwrap();
    assert_eq!(ino, fs.resolve(Path::new("/dir/6")).unwrap());
    let value = fs.xattr(ino, OsStr::new("user.key")).unwrap();
    assert_eq!(value.as_deref(), Some(&b"value"[..]));
    let link = fs.lookup(LavaFs::ROOT, OsStr::new("link")).unwrap();
    assert_eq!(fs.read_link(link).unwrap(), "dir/6");
    let attributes = fs.attributes(link).unwrap();
    assert_eq!((attributes.uid, attributes.gid), (7, 8));
    assert_eq!(fs.superblock().label, "golden");
}

fn check_log(fs: &LavaFs) {
    let shared: FileSystemRef = Arc::new(fs.clone());
    let logs = LogEngine::open(shared, Path::new("/logs"), &log_options()).unwrap();
    let log = logs.open_log("orders").unwrap();
    let items: Vec<ScanItem> = log.scan(11..).collect::<Result<_, _>>().unwrap();
    let expected: Vec<ScanItem> = (11..=50)
        .map(|lsn| ScanItem::Entry {
            lsn,
            data: bytes_of(lsn as usize % 7),
        })
        .collect();
    assert_eq!(items, expected);
    log.append(51, b"of this version", true).unwrap();
    logs.close().unwrap();
}

fn load(name: &str) -> Arc<SimDevice> {
    let packed = std::fs::read(testdata(name)).unwrap();
    let bytes = zstd::bulk::decompress(&packed, DEVICE_SIZE).unwrap();
    assert_eq!(bytes.len(), DEVICE_SIZE);
    let device = SimDevice::new(DEVICE_SIZE as u64, 512);
    let mut image = AlignedBuf::zeroed(DEVICE_SIZE);
    image.copy_from_slice(&bytes);
    device.write(0, &image, Durability::Durable).unwrap();
    Arc::new(device)
}

#[test]
fn every_golden_image_is_read_and_changed_by_this_version() {
    for name in NAMES {
        let device = load(name);
        let report = check(device.clone(), CheckMode::ReadOnly).unwrap();
        assert!(report.is_clean(), "{name}: {report:?}");
        let fs = LavaFs::mount(device.clone(), &options()).unwrap();
        check_contents(&fs);
        check_log(&fs);
        fill(&fs, 40..50);
        fs.unmount().unwrap();
        let report = check(device.clone(), CheckMode::ReadOnly).unwrap();
        assert!(report.is_clean(), "{name}: {report:?}");
        check_contents(&LavaFs::mount(device, &options()).unwrap());
    }
}

#[test]
fn the_image_that_would_be_golden_next_passes_too() {
    let device = Arc::new(make());
    let fs = LavaFs::mount(device, &options()).unwrap();
    check_contents(&fs);
    check_log(&fs);
}

#[test]
#[ignore = "writes a new golden image"]
fn make_golden() {
    let device = make();
    let mut image = AlignedBuf::zeroed(DEVICE_SIZE);
    device.read(0, &mut image).unwrap();
    let packed = zstd::bulk::compress(&image, 19).unwrap();
    std::fs::write(testdata("lavafs-new.img.zst"), packed).unwrap();
}
