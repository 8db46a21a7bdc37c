//! Discards of freed space: when, how fast, and never in the way of an allocation.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lavafs::device::{BlockDevice, SimDevice};
use lavafs::{
    CheckMode, CreateOptions, Error, FileSystem, LavaFs, MkfsOptions, MountOptions, check, mkfs,
};

const MIB: u64 = 1 << 20;

fn device(feature: &str) -> Arc<SimDevice> {
    let device = Arc::new(SimDevice::new(64 * MIB, 512));
    let options = MkfsOptions {
        features: vec![feature.to_owned()],
        ..MkfsOptions::default()
    };
    mkfs(&*device, &options).unwrap();
    device
}

fn mount(device: &Arc<SimDevice>, options: MountOptions) -> LavaFs {
    LavaFs::mount(device.clone(), &options).unwrap()
}

fn rate(discard_rate: u64) -> MountOptions {
    MountOptions {
        discard_rate,
        ..MountOptions::default()
    }
}

/// Files of `len` bytes, made by a mount of their own: a thread in the background would give some of them
/// a further extent, and give it back, at a time of its own.
fn make_before(device: &Arc<SimDevice>, names: &[&str], len: u64) {
    let options = MountOptions {
        background: false,
        ..MountOptions::default()
    };
    let fs = mount(device, options);
    names.iter().for_each(|name| make(&fs, name, len));
    fs.unmount().unwrap();
}

fn make(fs: &LavaFs, name: &str, len: u64) {
    let options = CreateOptions {
        expected_size: len,
        ..CreateOptions::default()
    };
    let file = fs.create(Path::new(name), &options).unwrap();
    file.append(&vec![3; len as usize]).unwrap();
    file.fsync().unwrap();
}

fn remove(fs: &LavaFs, name: &str) {
    fs.unlink(Path::new(name)).unwrap();
}

fn wait(what: impl Fn() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "it never happened"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn freed_space_is_discarded_only_when_the_unlink_is_durable() {
    let device = device("discard");
    make_before(&device, &["/f"], 10 * MIB);
    let fs = mount(&device, rate(1 << 40));
    let before = fs.counters().discard_bytes;
    let discarded = || fs.counters().discard_bytes - before;
    remove(&fs, "/f");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(discarded(), 0);
    fs.commit().unwrap();
    wait(|| discarded() == 10 * MIB);
    assert_eq!(fs.discard_backlog(), (0, 0));
}

#[test]
fn nothing_is_discarded_without_the_feature() {
    let device = device("^discard");
    let fs = mount(&device, rate(1 << 40));
    make(&fs, "/f", 10 * MIB);
    remove(&fs, "/f");
    fs.unmount().unwrap();
    assert_eq!(device.counters().discard_bytes, 0);
}

#[test]
fn the_rate_holds_and_an_unmount_discards_the_rest() {
    let device = device("discard");
    make_before(&device, &["/f"], 40 * MIB);
    let before = device.counters().discard_bytes;
    // At this rate the rest takes half a minute.
    let fs = mount(&device, rate(MIB));
    let discarded = || device.counters().discard_bytes - before;
    remove(&fs, "/f");
    let begin = Instant::now();
    fs.commit().unwrap();
    wait(|| discarded() > 0);
    std::thread::sleep(Duration::from_millis(300));
    let (done, elapsed) = (discarded(), begin.elapsed());
    // The first piece goes at once, each further one when the rate allows.
    let allowed = 4 * MIB + (elapsed.as_secs_f64() * MIB as f64) as u64 + 4 * MIB;
    assert!(done > 0 && done <= allowed, "{done} bytes in {elapsed:?}");
    let begin = Instant::now();
    fs.unmount().unwrap();
    // It does not go on for longer than two seconds.
    assert!(discarded() == 40 * MIB || begin.elapsed() >= Duration::from_secs(2));
}

#[test]
fn space_that_waits_for_a_discard_is_free_for_files() {
    let device = device("discard");
    let fs = mount(&device, rate(MIB));
    let free = fs.space().free;
    let begin = Instant::now();
    for round in 0..20 {
        let name = format!("/{round}");
        make(&fs, &name, free - MIB);
        remove(&fs, &name);
        fs.commit().unwrap();
        assert_eq!(fs.space().free, free);
    }
    // Waiting for the discards would have taken twenty minutes.
    assert!(
        begin.elapsed() < Duration::from_secs(600),
        "{:?}",
        begin.elapsed()
    );
    assert!(fs.discard_backlog().0 > 0);
    // All of it, to the last block, and nothing of it is discarded under the file.
    let file = fs
        .create(Path::new("/all"), &CreateOptions::default())
        .unwrap();
    file.append(&vec![9; free as usize]).unwrap();
    file.fsync().unwrap();
    assert!(matches!(file.append(b"x"), Err(Error::NoSpace { .. })));
    drop(file);
    fs.unmount().unwrap();
    let fs = mount(&device, MountOptions::default());
    let file = fs.open(Path::new("/all")).unwrap();
    let mut bytes = vec![0; free as usize];
    assert_eq!(file.read_at(0, &mut bytes).unwrap() as u64, free);
    assert!(bytes.iter().all(|&byte| byte == 9));
}

#[test]
fn the_backlog_is_bounded_in_bytes() {
    let device = device("discard");
    let options = MountOptions {
        discard_backlog: 8 * MIB,
        ..rate(MIB)
    };
    let names = ["/a", "/b", "/c", "/d"];
    make_before(&device, &names, 6 * MIB);
    let fs = mount(&device, options);
    names.iter().for_each(|name| remove(&fs, name));
    fs.commit().unwrap();
    let (waiting, forgotten) = fs.discard_backlog();
    assert!(
        waiting <= 8 * MIB && forgotten >= 12 * MIB,
        "{waiting} {forgotten}"
    );
    drop(fs);
    let options = rate(1);
    assert!(matches!(
        LavaFs::mount(device, &options),
        Err(Error::Invalid { .. })
    ));
}

#[test]
fn discards_beside_a_writer_never_hit_a_file() {
    let device = device("discard");
    let fs = mount(&device, rate(1 << 40));
    let free = fs.space().free;
    for round in 0..300u64 {
        let name = format!("/{}", round % 7);
        if round >= 7 {
            remove(&fs, &name);
        }
        make(&fs, &name, free / 7 - 5000 * (round % 13) - 8192);
    }
    for name in 0..7 {
        let file = fs.open(Path::new(&format!("/{name}"))).unwrap();
        let mut bytes = vec![0; file.size().upper() as usize];
        file.read_at(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 3), "file {name}");
    }
    fs.unmount().unwrap();
    assert!(check(device, CheckMode::ReadOnly).unwrap().is_clean());
}
