//! A kernel file whose write fails: final for that file, and for that file only. Alone in its
//! process, since the fault is the process's limit on the size of files.

use std::path::Path;

use lavafs::{CreateOptions, Error, FileSystem, HostFs};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

const LIMIT: u64 = 64 << 10;

#[test]
fn a_failed_write_of_a_kernel_file_is_final_and_never_tried_again() {
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGXFSZ);
    blocked.thread_block().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let fs = HostFs::open(dir.path()).unwrap();
    let create = |name: &str| {
        let options = CreateOptions::default();
        fs.create(Path::new(name), &options).unwrap()
    };
    let (file, other) = (create("/file"), create("/other"));
    file.append(&[1; 4096]).unwrap();
    file.fsync().unwrap();

    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, LIMIT, hard).unwrap();
    let data = vec![2; 2 * LIMIT as usize];
    let failed = file.append(&data).and_then(|_| file.fdatasync());
    setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
    let first = failed.unwrap_err();
    assert!(matches!(first, Error::Io { .. }), "{first}");

    // The cause is gone, but what the kernel kept of that write is unknown.
    let before = fs.counters();
    let later = [
        file.append(&[3]).err(),
        file.append_durable(&[std::io::IoSlice::new(&[3])]).err(),
        file.fdatasync().err(),
        file.fsync().err(),
        file.truncate(0).err(),
    ];
    for error in later {
        assert_eq!(error.unwrap().to_string(), first.to_string());
    }
    let spent = fs.counters() - before;
    assert_eq!((spent.write_ios, spent.flushes), (0, 0));
    let mut bytes = [0; 4096];
    assert_eq!(file.read_at(0, &mut bytes).unwrap(), 4096);
    assert_eq!(bytes, [1; 4096]);

    other.append(&data).unwrap();
    other.fsync().unwrap();
}
