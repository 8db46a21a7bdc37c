//! What failures leave: want of space, which ends, failed syncs, which do not, and a crash in the middle of a seal.

use lavafs::{FileSize, FileSystem, FileSystemRef};

use crate::look_tests::open_after_a_look;
use crate::tests::{DENSE, data, dir, entries, mem, open, sparse};
use crate::*;

fn is_no_space<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Fs(lavafs::Error::NoSpace { .. })))
}

/// An append that found no space was final: trims and syncs failed with it, the files that the trims had emptied
/// stayed, and with space again nothing could be appended until the engine was opened anew.
#[test]
fn appends_that_find_no_space_go_on_when_a_trim_has_given_some_back() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    let (mut next, mut floor) = (1, 1);
    for _ in 0..5 {
        mem.set_room(300_000);
        loop {
            match log.append(next, &data(next, 0, 2000), next % 3 == 0) {
                Ok(_) => next += 1,
                refused => {
                    assert!(is_no_space(&refused), "{refused:?}");
                    break;
                }
            }
        }
        assert_eq!(log.last(), Some(next - 1));
        // What was appended before can still be made durable.
        engine.sync().unwrap();
        assert!(is_no_space(&log.append(next, &data(next, 0, 2000), true)));
        let files = engine.data_files();
        floor = next - 40;
        // A little for the metalog.
        mem.set_room(100);
        log.trim_before(floor).unwrap();
        assert!(engine.data_files() < files, "trimmed files are removed");
        engine.sync().unwrap();
        for _ in 0..20 {
            log.append(next, &data(next, 0, 2000), true).unwrap();
            next += 1;
        }
    }
    let check = |log: &Log| {
        let lsns: Vec<u64> = entries(log).into_keys().collect();
        assert!(lsns.iter().copied().eq(floor..next), "{lsns:?}");
        for lsn in lsns {
            assert_eq!(log.read(lsn).unwrap(), data(lsn, 0, 2000));
        }
    };
    check(&log);
    drop((log, engine));
    let fs: FileSystemRef = mem.crash(|_, bytes, synced| bytes.truncate(synced));
    check(&open(&fs).unwrap().open_log("a").unwrap());
}

/// A file of the datalog was made, and its header found no space.
#[test]
fn a_data_file_that_found_no_space_for_its_header_is_begun_again() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    mem.set_full(true);
    for _ in 0..3 {
        assert!(is_no_space(&log.append(1, b"one", true)));
        let list = fs.list(dir()).unwrap();
        let data = |name: &str| name.starts_with("data-");
        assert!(!list.iter().any(|e| data(e.name.to_str().unwrap())));
    }
    mem.set_full(false);
    log.append(1, b"one", true).unwrap();
    drop((log, engine));
    let log = open(&fs).unwrap().open_log("a").unwrap();
    assert_eq!(log.read(1).unwrap(), b"one");
}

/// Recovery sealed the last file first, and what that left was too little for the metalog: with less space, where
/// the seal found none, the engine opened. Each attempt left a file of the metalog.
#[test]
fn an_engine_opens_with_just_the_space_that_its_metalog_needs() {
    let mut opened = 0;
    for room in (0..6000).step_by(97) {
        let (mem, fs) = mem();
        let engine = open(&fs).unwrap();
        let log = engine.create("a", DENSE).unwrap();
        for lsn in 0..300 {
            log.append(lsn, &data(lsn, 0, 100), lsn % 50 == 49).unwrap();
        }
        drop((log, engine));
        mem.set_room(room);
        let files = fs.list(dir()).unwrap().len();
        for _ in 0..2 {
            match open(&fs) {
                Ok(engine) => {
                    assert_eq!(entries(&engine.open_log("a").unwrap()).len(), 300);
                    opened += 1;
                }
                refused => {
                    assert!(is_no_space(&refused) && room < 200, "{room}: {refused:?}");
                    assert_eq!(fs.list(dir()).unwrap().len(), files);
                }
            }
            if opened > 0 {
                break;
            }
        }
    }
    assert!(opened > 0);
}

/// Each of them was to be gone on with, and there can be only one such.
#[test]
fn files_with_damaged_ends_open_on_a_full_device() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    for lsn in 0..3000 {
        log.append(lsn, &data(lsn, 0, 50), lsn % 100 == 0).unwrap();
    }
    assert!(engine.data_files() > 2);
    engine.close().unwrap();
    drop((log, engine));
    for number in 1..=2 {
        mem.tamper(&dir().join(format!("data-{number:08}.log")), |bytes| {
            let last_unit = bytes.len() - 512;
            bytes[last_unit + 8] ^= 1;
        });
    }
    // Space for the metalog's next file, and for no directory.
    mem.set_room(500);
    let engine = open(&fs).unwrap();
    let log = engine.open_log("a").unwrap();
    assert_eq!(entries(&log).len(), 3000);
    mem.set_room(1 << 20);
    log.append(3000, b"more", true).unwrap();
    drop((log, engine));
    let log = open(&fs).unwrap().open_log("a").unwrap();
    assert_eq!(entries(&log).len(), 3001);
}

/// The second close said that all was well.
#[test]
fn a_close_that_failed_fails_again() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    log.append(1, b"one", false).unwrap();
    mem.fail_syncs();
    let first = engine.close().unwrap_err().to_string();
    mem.mend_syncs();
    assert_eq!(engine.close().unwrap_err().to_string(), first);
    assert!(matches!(log.append(2, b"two", true), Err(Error::Closed)));
    // It went on to create and trim.
    assert!(matches!(engine.create("b", DENSE), Err(Error::Closed)));
    assert!(matches!(log.trim_before(1), Err(Error::Closed)));
}

/// The file whose seal failed was forgotten. What it held counted as durable, though its sync had failed, and
/// the files of the records that it replaced were removed.
#[test]
fn records_stay_until_those_that_replaced_them_are_durable() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", sparse(Duplicates::LastWins)).unwrap();
    let other = engine.create("b", DENSE).unwrap();
    other.append(1, b"keeps the first file", true).unwrap();
    for tag in 0..2 {
        for lsn in 1..=15 {
            log.append(lsn, &data(lsn, tag, 4500), tag == 0).unwrap();
        }
    }
    assert_eq!(engine.data_files(), 2);
    mem.fail_syncs();
    assert!(log.append(18, b"seals the second file", false).is_err());
    mem.mend_syncs();
    assert!(matches!(
        log.read_with(15, ReadLevel::Durable),
        Err(Error::Beyond { .. })
    ));
    assert!(other.trim_before(2).is_err());
    assert!(log.read_with(15, ReadLevel::Durable).is_err());
    drop((log, other, engine));
    let fs: FileSystemRef = mem.crash(|_, bytes, synced| bytes.truncate(synced));
    let log = open(&fs).unwrap().open_log("a").unwrap();
    assert_eq!(entries(&log).len(), 15);
    assert_eq!(log.read(1).unwrap(), data(1, 0, 4500));
}

/// A crash came between a file's closing group and its size: the file counted as sealed with a size that nobody
/// settled, and what lies behind the size that was certain could not be read, ever again.
#[test]
fn a_file_whose_seal_outlived_its_size_is_read_and_gets_its_size() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    for lsn in 0..10 {
        log.append(lsn, &data(lsn, 0, 3000), true).unwrap();
    }
    // The directory is synced, its closing group is not.
    mem.fail_syncs_after(1);
    assert!(engine.close().is_err());
    let path = dir().join("data-00000001.log");
    // What LavaFS knows of such a file's size is older still.
    let after = mem.crash(|_, _, _| ());
    after.lower_size(&path, 4096);
    let fs: FileSystemRef = after.clone();
    assert!(matches!(
        after.contents()[&path].1,
        FileSize::Between { .. }
    ));
    let engine = open_after_a_look(&after, &fs);
    assert!(matches!(after.contents()[&path].1, FileSize::Exact(_)));
    let log = engine.open_log("a").unwrap();
    for lsn in 0..10 {
        assert_eq!(log.read(lsn).unwrap(), data(lsn, 0, 3000));
    }
    drop((log, engine));
    let before = after.counters();
    open(&fs).unwrap();
    let read = (after.counters() - before).read_bytes;
    assert!(read < 10_000, "its payload is not read again: {read}");
}
