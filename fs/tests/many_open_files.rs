//! Many open files on a small device: what is free can be written, by any of them.

use std::path::Path;
use std::sync::Arc;

use lavafs::device::SimDevice;
use lavafs::{
    BLOCK_SIZE, CheckMode, CreateOptions, Error, FileRef, FileSystem, LavaFs, MkfsOptions,
    MountOptions, check, mkfs,
};

const FILES: u64 = 1000;

/// Each open file once held 64 blocks in store for its next appends: 300 of them had a device of 64 MiB
/// among themselves, and everybody else was told that it was full.
#[test]
fn all_free_space_can_be_written_beside_many_open_files() {
    let device = Arc::new(SimDevice::new(64 << 20, 512));
    mkfs(&*device, &MkfsOptions::default()).unwrap();
    let fs = LavaFs::mount(device.clone(), &MountOptions::default()).unwrap();
    let create = |name: String| -> FileRef {
        fs.create(Path::new(&name), &CreateOptions::default())
            .unwrap()
    };
    let free = fs.space().free / BLOCK_SIZE;
    let files: Vec<_> = (0..FILES).map(|at| create(format!("/{at}"))).collect();
    for (file, at) in files.iter().zip(0u64..) {
        file.append(&at.to_le_bytes()).unwrap();
    }
    let filler = create("/filler".to_owned());
    let mut written = 0;
    let error = loop {
        match filler.append(&[7; BLOCK_SIZE as usize]) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert_eq!(written, free - FILES, "each small file needs one block");
    // What was accepted has its space.
    filler.fsync().unwrap();
    drop((files, filler));
    for at in 0..FILES {
        let file = fs.open(Path::new(&format!("/{at}"))).unwrap();
        let mut buf = [0; 9];
        assert_eq!(file.read_at(0, &mut buf).unwrap(), 8);
        assert_eq!(buf[..8], at.to_le_bytes());
    }
    fs.unmount().unwrap();
    let report = check(device, CheckMode::ReadOnly).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
}
