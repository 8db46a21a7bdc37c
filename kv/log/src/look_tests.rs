//! Looking at an engine's files without changing them, and the figures of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use lavafs::{FileSystemRef, HostFs};

use crate::mem_fs::MemFs;
use crate::tests::{DENSE, data, dir, entries, mem, open, sparse};
use crate::*;

pub(crate) type Shown = BTreeMap<String, (u64, BTreeMap<u64, Vec<u8>>)>;

/// Floor and records of every log.
pub(crate) fn shown(engine: &LogEngine) -> Shown {
    let logs = engine.list().into_iter().map(|name| {
        let log = engine.open_log(&name).unwrap();
        let records = entries(&log);
        for (lsn, data) in &records {
            assert_eq!(log.read(*lsn).unwrap(), *data, "alone as in a scan");
        }
        (name, (log.floor(), records))
    });
    logs.collect()
}

fn look(fs: &FileSystemRef) -> Result<LogEngine> {
    LogEngine::open_read_only(fs.clone(), dir())
}

/// Opens the engine after it was looked at, which must show the same and change nothing.
pub(crate) fn open_after_a_look(mem: &MemFs, fs: &FileSystemRef) -> LogEngine {
    let before = mem.contents();
    let looked = shown(&look(fs).unwrap());
    let stats = LogStats::read(fs, dir()).unwrap();
    assert!(mem.contents() == before, "a look changed something");
    let engine = open(fs).unwrap();
    assert!(looked == shown(&engine), "a look shows something else");
    let records = looked.values().map(|(_, records)| records.len() as u64);
    assert_eq!(stats.records, records.sum::<u64>());
    engine
}

#[test]
fn every_change_of_an_engine_opened_for_reading_is_refused() {
    let (mem, fs) = mem();
    let owner = open(&fs).unwrap();
    for (name, config) in [("a", LogConfig::default()), ("b", DENSE)] {
        owner.create(name, config).unwrap();
        owner.open_log(name).unwrap().append(5, b"x", true).unwrap();
    }
    let before = mem.contents();
    let engine = look(&fs).unwrap();
    let refused = |result: Result<()>| assert!(matches!(result, Err(Error::ReadOnly)));
    for name in ["a", "b"] {
        let log = engine.open_log(name).unwrap();
        assert_eq!(log.read(5).unwrap(), b"x");
        refused(log.append(6, b"y", false).map(drop));
        refused(engine.append_batch(&[(log.id(), 6, b"y")], true).map(drop));
        refused(log.trim_before(6));
        refused(log.truncate_from(5));
        refused(engine.delete(name));
    }
    refused(engine.create("c", DENSE).map(drop));
    refused(engine.sync());
    engine.close().unwrap();
    assert!(mem.contents() == before);
    // The owner goes on, and is not followed.
    let log = owner.open_log("a").unwrap();
    log.append(6, b"y", true).unwrap();
    assert_eq!(engine.open_log("a").unwrap().last(), Some(5));
}

#[test]
fn a_look_at_a_torn_or_damaged_log_leaves_its_bytes() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    for lsn in 0..42 {
        log.append(lsn, &data(lsn, 0, 3000), lsn < 38).unwrap();
    }
    drop((log, engine));
    let path = dir().join("data-00000002.log");
    let torn = mem.crash(|at, bytes, synced| {
        if at == path {
            let half = synced + (bytes.len() - synced) / 2;
            bytes[half..].fill(0xA5);
        }
    });
    let torn_fs: FileSystemRef = torn.clone();
    let before = torn.contents();
    let looked = look(&torn_fs).unwrap();
    let log = looked.open_log("a").unwrap();
    let last = log.last().unwrap();
    assert!((38..41).contains(&last));
    // Of the last groups nothing tells that they were synced.
    let durable = |lsn| log.read_with(lsn, ReadLevel::Durable);
    assert_eq!(durable(37).unwrap(), data(37, 0, 3000));
    assert!(matches!(durable(last), Err(Error::Beyond { .. })));
    assert!(torn.contents() == before);
    open_after_a_look(&torn, &torn_fs);

    let hurt = mem.crash(|at, bytes, _| {
        if at == path {
            bytes[10_000] ^= 1;
        }
    });
    let hurt_fs: FileSystemRef = hurt.clone();
    let before = hurt.contents();
    for error in [
        look(&hurt_fs).map(drop).unwrap_err(),
        LogStats::read(&hurt_fs, dir()).map(drop).unwrap_err(),
    ] {
        assert!(error.is_corrupt(), "{error}");
    }
    assert!(hurt.contents() == before);
}

#[test]
fn a_look_beside_an_owner_who_changes_files_finds_a_state_of_his() {
    let (_, fs) = mem();
    let owner = open(&fs).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let both = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            both.wait();
            let mut looks = 0;
            loop {
                // The last look is one at what is left at the end, for a looker who was slow.
                let is_last = done.load(std::sync::atomic::Ordering::Acquire);
                match look(&fs) {
                    Ok(engine) => looks += usize::from(!engine.list().is_empty()),
                    // Each of ten attempts met another removal.
                    Err(Error::Fs(error)) => assert!(error.is_not_found(), "{error}"),
                    Err(error) => panic!("{error}"),
                }
                if is_last {
                    return looks;
                }
            }
        });
        both.wait();
        for round in 0..300 {
            let log = owner.create(&format!("log-{round}"), DENSE).unwrap();
            for lsn in 0..8 {
                log.append(lsn, &data(lsn, round, 3000), true).unwrap();
            }
            log.trim_before(4).unwrap();
            if round >= 5 {
                owner.delete(&format!("log-{}", round - 5)).unwrap();
            }
        }
        done.store(true, std::sync::atomic::Ordering::Release);
        assert!(looker.join().unwrap() > 0);
    });
}

#[test]
fn the_figures_of_an_engine_add_up() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let a = engine.create("a", DENSE).unwrap();
    let b = engine.create("b", sparse(Duplicates::LastWins)).unwrap();
    for lsn in 1..=20 {
        a.append(lsn, &data(lsn, 0, 1000), true).unwrap();
    }
    for lsn in [10, 10, 30] {
        b.append(lsn, &data(lsn, 1, 500), true).unwrap();
    }
    a.trim_before(6).unwrap();
    engine.sync().unwrap();
    let stats = LogStats::read(&fs, dir()).unwrap();
    assert_eq!((stats.logs, stats.records), (2, 17));
    assert_eq!(stats.lsns, 15 + 21, "6 to 20, and 10 to 30");
    let [file] = &stats.data_files[..] else {
        panic!("{stats:?}");
    };
    assert_eq!((file.live_records, file.dead_records), (17, 6));
    assert!((16_000..16_000 + 17 * 40).contains(&file.live_bytes));
    assert!((5500..5500 + 6 * 40).contains(&file.dead_bytes));
    assert!(!file.sealed && file.durable_len < file.len);
    assert_eq!(stats.unproven_records, 1, "the last group's");
    assert_eq!(stats.meta_files.len(), 1);
    assert!(stats.meta_files[0].len > stats.snapshot_bytes);
    let factor = stats.space_amplification();
    assert!((1.3..2.5).contains(&factor), "{factor}");
    engine.close().unwrap();
    let stats = LogStats::read(&fs, dir()).unwrap();
    let file = &stats.data_files[0];
    assert!(file.sealed && file.durable_len == file.len && stats.unproven_records == 0);
    let size = mem.contents()[&file.path].1;
    assert!(size.upper() - file.len < 512, "{size:?}, {}", file.len);
}

#[test]
fn an_engine_is_empty_where_nothing_is_and_nothing_is_made() {
    let (mem, fs) = mem();
    assert!(look(&fs).unwrap().list().is_empty());
    let stats = LogStats::read(&fs, dir()).unwrap();
    assert!(stats.data_files.is_empty() && stats.meta_files.is_empty());
    assert_eq!((stats.logs, stats.space_amplification()), (0, 0.0));
    assert!(mem.contents().is_empty());
    let root = tempfile::tempdir().unwrap();
    let host: FileSystemRef = Arc::new(HostFs::open(root.path()).unwrap());
    assert!(matches!(look(&host), Err(Error::Fs(error)) if error.is_not_found()));
    assert!(host.list(Path::new("/")).unwrap().is_empty());
}
