//! The log engine as a whole: its model, its costs, recovery and damage.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lavafs::{FileSystem, FileSystemRef, HostFs};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::mem_fs::MemFs;
use crate::*;

pub(crate) fn dir() -> &'static Path {
    Path::new("/logs")
}

pub(crate) fn open(fs: &FileSystemRef) -> Result<LogEngine> {
    let options = LogOptions {
        data_file_size: 64 << 10,
        meta_file_size: 4 << 10,
    };
    LogEngine::open(fs.clone(), dir(), &options)
}

pub(crate) fn mem() -> (Arc<MemFs>, FileSystemRef) {
    let fs = MemFs::new(512);
    (fs.clone(), fs)
}

pub(crate) fn sparse(duplicates: Duplicates) -> LogConfig {
    LogConfig {
        mode: Mode::Sparse { duplicates },
    }
}

pub(crate) const DENSE: LogConfig = LogConfig { mode: Mode::Dense };

pub(crate) fn data(lsn: u64, tag: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (i * 3 + lsn * 7 + tag * 13) as u8)
        .collect()
}

pub(crate) fn entries(log: &Log) -> BTreeMap<u64, Vec<u8>> {
    let items = log.scan(..).map(|item| item.unwrap());
    items
        .filter_map(|item| match item {
            ScanItem::Entry { lsn, data } => Some((lsn, data)),
            ScanItem::Gap { .. } => None,
        })
        .collect()
}

#[test]
fn errors_tell_trimmed_missing_beyond_and_deleted_apart() {
    let (_, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", LogConfig::default()).unwrap();
    for lsn in [3, 5, 6, 9] {
        log.append(lsn, &data(lsn, 0, 50), false).unwrap();
    }
    log.trim_before(4).unwrap();
    assert_eq!(log.read(5).unwrap(), data(5, 0, 50));
    assert!(matches!(
        log.read(3),
        Err(Error::Trimmed { lsn: 3, floor: 4 })
    ));
    assert!(matches!(
        log.append(2, b"", false),
        Err(Error::Trimmed { .. })
    ));
    assert!(matches!(log.read(4), Err(Error::Missing { lsn: 4 })));
    assert!(matches!(
        log.read(10),
        Err(Error::Beyond { last: Some(9), .. })
    ));
    assert_eq!(
        (log.first(), log.last(), log.contiguous_upto()),
        (Some(5), Some(9), Some(6))
    );
    let gap = |kind, lsns| ScanItem::Gap { kind, lsns };
    let entry = |lsn| ScanItem::Entry {
        lsn,
        data: data(lsn, 0, 50),
    };
    let items: Vec<_> = log.scan(1..=20).map(|item| item.unwrap()).collect();
    let expected = [
        gap(GapKind::Trimmed, 1..=3),
        gap(GapKind::Missing, 4..=4),
        entry(5),
        entry(6),
        gap(GapKind::Missing, 7..=8),
        entry(9),
    ];
    assert_eq!(items, expected);
    let items: Vec<_> = log.scan(6..8).map(|item| item.unwrap()).collect();
    assert_eq!(items, [entry(6), gap(GapKind::Missing, 7..=7)]);
    engine.delete("a").unwrap();
    assert!(matches!(log.read(5), Err(Error::Deleted { .. })));
    assert!(matches!(
        log.append(20, b"", true),
        Err(Error::Deleted { .. })
    ));
    assert!(matches!(engine.open_log("a"), Err(Error::NoSuchLog { .. })));
    let again = engine.create("a", DENSE).unwrap();
    assert!(again.id() != log.id() && again.is_empty());
    assert!(matches!(
        engine.create("a", DENSE),
        Err(Error::LogExists { .. })
    ));
}

#[test]
fn modes_take_the_lsns_they_promise() {
    let (_, fs) = mem();
    let engine = open(&fs).unwrap();
    let keep = engine
        .create("keep", sparse(Duplicates::KeepFirst))
        .unwrap();
    let reject = engine.create("reject", sparse(Duplicates::Reject)).unwrap();
    let last = engine.create("last", sparse(Duplicates::LastWins)).unwrap();
    let dense = engine.create("dense", DENSE).unwrap();
    for log in [&keep, &reject, &last, &dense] {
        assert_eq!(log.append(7, b"one", false).unwrap(), Appended::Stored);
    }
    assert_eq!(keep.append(7, b"two", true).unwrap(), Appended::Duplicate);
    assert!(matches!(
        reject.append(7, b"two", true),
        Err(Error::Duplicate { lsn: 7 })
    ));
    assert_eq!(last.append(7, b"two", true).unwrap(), Appended::Stored);
    for lsn in [6, 7, 9] {
        assert!(matches!(
            dense.append(lsn, b"", true),
            Err(Error::OutOfOrder { expected: 8, .. })
        ));
    }
    for lsn in 8..=20 {
        dense.append(lsn, b"x", false).unwrap();
    }
    dense.truncate_from(21).unwrap();
    dense.truncate_from(15).unwrap();
    dense.append(15, b"new", true).unwrap();
    assert_eq!(dense.last(), Some(15));
    dense.trim_before(40).unwrap();
    assert!(matches!(
        dense.append(16, b"", true),
        Err(Error::Trimmed { .. })
    ));
    dense.append(40, b"after a snapshot", true).unwrap();
    drop((keep, reject, last, dense, engine));
    let engine = open(&fs).unwrap();
    let read = |name, lsn| engine.open_log(name).unwrap().read(lsn).unwrap();
    assert_eq!(read("keep", 7), b"one");
    assert_eq!(read("reject", 7), b"one");
    assert_eq!(read("last", 7), b"two");
    assert_eq!(read("dense", 40), b"after a snapshot");
    assert_eq!(engine.list(), ["dense", "keep", "last", "reject"]);
}

#[test]
fn nothing_follows_the_last_lsn_of_all_in_a_dense_log() {
    let (_, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    log.append(u64::MAX, b"kept", true).unwrap();
    for lsn in [u64::MAX, 5] {
        let refused = log.append(lsn, b"other", true);
        assert!(matches!(refused, Err(Error::OutOfOrder { .. })), "{lsn}");
    }
    let other = engine.create("b", DENSE).unwrap();
    let batch = [(other.id(), u64::MAX, &b"x"[..]), (other.id(), 5, b"y")];
    let refused = engine.append_batch(&batch, true);
    assert!(matches!(refused, Err(Error::OutOfOrder { .. })));
    assert_eq!(log.read(u64::MAX).unwrap(), b"kept");
    assert!(other.is_empty());
}

#[test]
fn a_batch_is_all_or_nothing() {
    let (_, fs) = mem();
    let engine = open(&fs).unwrap();
    let a = engine.create("a", DENSE).unwrap();
    let b = engine.create("b", sparse(Duplicates::Reject)).unwrap();
    let (x, y) = (a.id(), b.id());
    engine
        .append_batch(&[(x, 1, b"1"), (y, 9, b"9"), (x, 2, b"2")], true)
        .unwrap();
    assert!(
        engine
            .append_batch(&[(x, 3, b"3"), (y, 9, b"9")], true)
            .is_err()
    );
    assert!(
        engine
            .append_batch(&[(y, 10, b""), (x, 4, b"")], true)
            .is_err()
    );
    assert!(
        engine
            .append_batch(&[(y, 10, b""), (y, 10, b"")], true)
            .is_err()
    );
    assert!(
        engine
            .append_batch(&[(y, 10, b""), (LogId(77), 1, b"")], true)
            .is_err()
    );
    assert_eq!(
        (a.last(), b.last(), a.len(), b.len()),
        (Some(2), Some(9), 2, 1)
    );
}

#[test]
fn synced_4_kib_appends_cost_at_most_1_13_and_one_flush_each() {
    let (mem, fs) = mem();
    let engine = LogEngine::open(fs, dir(), &LogOptions::default()).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    let before = mem.counters();
    let count = 1000;
    for lsn in 0..count {
        log.append(lsn, &data(lsn, 0, 4096), true).unwrap();
    }
    let cost = mem.counters() - before;
    let amplification = cost.write_bytes as f64 / (count * 4096) as f64;
    println!(
        "write amplification {amplification:.4}, flushes {}",
        cost.flushes
    );
    assert!(amplification <= 1.13);
    assert_eq!(cost.flushes, count);
    // The directory included.
    engine.close().unwrap();
    let cost = mem.counters() - before;
    assert!(cost.write_bytes as f64 / (count * 4096) as f64 <= 1.13);
}

#[test]
fn a_batch_of_16_records_costs_at_most_1_03_and_one_flush() {
    let (mem, fs) = mem();
    let engine = LogEngine::open(fs, dir(), &LogOptions::default()).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    let before = mem.counters();
    let payload = data(0, 0, 4096);
    for group in 0..100 {
        let batch: Vec<_> = (0..16)
            .map(|i| (log.id(), group * 16 + i, &payload[..]))
            .collect();
        engine.append_batch(&batch, true).unwrap();
    }
    let cost = mem.counters() - before;
    let amplification = cost.write_bytes as f64 / (1600.0 * 4096.0);
    println!(
        "write amplification {amplification:.4}, flushes {}",
        cost.flushes
    );
    assert!(amplification <= 1.03 && cost.flushes == 100);
}

#[test]
fn a_sealed_engine_reopens_without_reading_payload() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    for lsn in 0..500 {
        log.append(lsn, &data(lsn, 0, 4000), false).unwrap();
    }
    let files = engine.data_files() as u64;
    assert!(files > 20);
    engine.close().unwrap();
    assert!(matches!(log.append(500, b"", false), Err(Error::Closed)));
    assert_eq!(log.read(499).unwrap(), data(499, 0, 4000));
    drop((log, engine));
    let before = mem.counters();
    let engine = open(&fs).unwrap();
    let read = (mem.counters() - before).read_bytes;
    assert!(read < files * 6000, "{read} bytes read for {files} files");
    let log = engine.open_log("a").unwrap();
    assert!(log.len() == 500 && log.read(250).unwrap() == data(250, 0, 4000));
}

#[test]
fn dead_files_are_removed_also_after_a_restart() {
    let (_, fs) = mem();
    let engine = open(&fs).unwrap();
    let a = engine.create("a", DENSE).unwrap();
    let b = engine.create("b", DENSE).unwrap();
    for lsn in 0..400 {
        a.append(lsn, &data(lsn, 1, 2000), false).unwrap();
        b.append(lsn, &data(lsn, 2, 2000), lsn % 50 == 0).unwrap();
    }
    let before = engine.data_files();
    a.trim_before(390).unwrap();
    assert_eq!(
        engine.data_files(),
        before,
        "the other log still lives there"
    );
    b.trim_before(200).unwrap();
    assert!(engine.data_files() <= before / 2 + 2);
    b.truncate_from(300).unwrap();
    engine.delete("a").unwrap();
    let left = engine.data_files();
    assert!(left <= before / 4 + 3);
    assert!(b.read(250).unwrap() == data(250, 2, 2000));
    drop((a, b, engine));
    let engine = open(&fs).unwrap();
    assert!(engine.data_files() <= left);
    engine.delete("b").unwrap();
    assert_eq!(engine.data_files(), 0);
}

/// The next file of the metalog was made and its snapshot found no space: the file stayed, and from then on
/// each create, trim and delete failed, with space again too, because it was there already.
#[test]
fn logs_are_trimmed_and_deleted_though_the_metalog_finds_no_space_for_its_next_file() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", LogConfig::default()).unwrap();
    let metalogs = || {
        let entries = fs.list(dir()).unwrap().into_iter();
        let names = entries.map(|entry| entry.name.into_string().unwrap());
        names
            .filter(|name| name.starts_with("meta-"))
            .collect::<Vec<_>>()
    };
    let first = metalogs();
    mem.set_full(true);
    for floor in 1..200 {
        log.trim_before(floor).unwrap();
    }
    engine.create("b", LogConfig::default()).unwrap();
    assert_eq!(metalogs(), first);
    mem.set_full(false);
    engine.delete("a").unwrap();
    assert!(metalogs().len() == 1 && metalogs() != first);
    drop((log, engine));
    assert_eq!(open(&fs).unwrap().list(), ["b"]);
}

/// Recovery sealed the file that was being written, for which a full device has no space: the engine could not be
/// opened, and so nothing be trimmed, ever again.
#[test]
fn an_engine_on_a_full_device_opens_and_trims_give_its_space_back() {
    let (mut mem, mut fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    let append = |log: &Log, end: u64| {
        let begin = log.last().map_or(1, |last| last + 1);
        for lsn in begin..end {
            log.append(lsn, &data(lsn, 1, 30), lsn % 64 == 0).unwrap();
        }
    };
    append(&log, 4000);
    drop((log, engine));
    for end in [6000, 8000] {
        // What was not synced is lost in part.
        mem = mem.crash(|_, bytes, synced| bytes.truncate(bytes.len().midpoint(synced)));
        fs = mem.clone();
        // The metalog's next file has space, a directory has none.
        mem.set_room(500);
        let engine = open(&fs).unwrap();
        let log = engine.open_log("a").unwrap();
        let begin = log.last().unwrap() + 1;
        for level in [ReadLevel::Durable, ReadLevel::Visible] {
            assert_eq!(
                log.read_with(begin - 1, level).unwrap(),
                data(begin - 1, 1, 30)
            );
        }
        let files = engine.data_files();
        let floor = begin - 500;
        log.trim_before(floor).unwrap();
        assert!(engine.data_files() < files);
        mem.set_room(10 << 20);
        append(&log, end);
        for lsn in floor..end {
            assert_eq!(log.read(lsn).unwrap(), data(lsn, 1, 30));
        }
    }
    let engine = open(&fs).unwrap();
    let log = engine.open_log("a").unwrap();
    assert_eq!(log.last(), Some(7999));
    let entries = entries(&log);
    assert!(
        entries
            .iter()
            .all(|(lsn, bytes)| *bytes == data(*lsn, 1, 30))
    );
}

#[test]
fn a_flipped_bit_is_corruption_wherever_a_witness_exists_and_never_served() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    for lsn in 0..40 {
        log.append(lsn, &data(lsn, 0, 3000), true).unwrap();
    }
    drop((log, engine));
    let list = fs.list(dir()).unwrap();
    let names: Vec<_> = list.iter().filter_map(|e| e.name.to_str()).collect();
    assert!(names.contains(&"data-00000001.log") && names.contains(&"data-00000002.log"));
    for (name, at, refused) in [
        ("data-00000001.log", 10_000, false), // sealed: found when it is read
        ("data-00000002.log", 10_000, true),  // the active file, far from its end
        ("data-00000002.log", 20, true),
        ("meta-00000001.log", 20, true),
        ("meta-00000001.log", 560, true), // its last group: the records are the witness
    ] {
        let path = dir().join(name);
        let hurt: Arc<MemFs> = mem.crash(|p, bytes, _| {
            if p == path && at < bytes.len() {
                bytes[at] ^= 0x10;
            }
        });
        let hurt: FileSystemRef = hurt;
        match open(&hurt) {
            Err(error) => {
                assert!(refused, "{name} {at}: {error}");
                assert!(error.is_corrupt(), "{error}");
                assert!(error.to_string().contains(name), "{error}");
            }
            Ok(engine) => {
                assert!(!refused, "{name} {at}");
                let log = engine.open_log("a").unwrap();
                let bad = (0..40).filter(|lsn| match log.read(*lsn) {
                    Ok(read) => {
                        assert_eq!(read, data(*lsn, 0, 3000));
                        false
                    }
                    Err(error) => {
                        assert!(error.is_corrupt() && error.to_string().contains(name));
                        true
                    }
                });
                assert_eq!(bad.count(), 1);
            }
        }
    }
}

#[test]
fn a_damaged_footer_is_replaced_by_a_scan() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    for lsn in 0..40 {
        log.append(lsn, &data(lsn, 0, 3000), true).unwrap();
    }
    engine.close().unwrap();
    drop((log, engine));
    mem.tamper(&dir().join("data-00000001.log"), |bytes| {
        let last_unit = bytes.len() - 512;
        bytes[last_unit + 8] ^= 1;
    });
    let engine = open(&fs).unwrap();
    let log = engine.open_log("a").unwrap();
    assert_eq!(entries(&log).len(), 40);
}

#[test]
fn writers_and_readers_run_side_by_side_and_share_flushes() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let logs: Vec<_> = (0..4)
        .map(|i| engine.create(&format!("log-{i}"), DENSE).unwrap())
        .collect();
    let before = mem.counters().flushes;
    let acked: Vec<_> = logs.iter().map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for (log, acked) in logs.iter().zip(&acked) {
            scope.spawn(move || {
                for lsn in 1..=500 {
                    log.append(lsn, &data(lsn, log.id().0, 300), true).unwrap();
                    acked.store(lsn, Ordering::Release);
                }
            });
            scope.spawn(move || {
                loop {
                    let upto = acked.load(Ordering::Acquire);
                    if upto > 0 {
                        let read = log.read_with(upto, ReadLevel::Durable).unwrap();
                        assert_eq!(read, data(upto, log.id().0, 300));
                        assert!(log.last() >= Some(upto));
                    }
                    if upto == 500 {
                        return;
                    }
                    std::thread::yield_now();
                }
            });
        }
    });
    let flushes = mem.counters().flushes - before;
    println!("{flushes} flushes for 2000 appends");
    assert!(flushes <= 2000 + 3 * engine.data_files() as u64);
    for log in &logs {
        let expected = (1..=500).map(|lsn| (lsn, data(lsn, log.id().0, 300)));
        assert!(entries(log).into_iter().eq(expected));
    }
}

#[test]
fn sixteen_writers_of_4_kib_records_share_flushes_at_1_03() {
    let (mem, fs) = mem();
    let engine = LogEngine::open(fs, dir(), &LogOptions::default()).unwrap();
    let logs: Vec<_> = (0..16)
        .map(|i| engine.create(&format!("log-{i}"), DENSE).unwrap())
        .collect();
    mem.slow_syncs(2000);
    let before = mem.counters();
    std::thread::scope(|scope| {
        for log in &logs {
            scope.spawn(move || {
                for lsn in 0..100 {
                    log.append(lsn, &data(lsn, 0, 4096), true).unwrap();
                }
            });
        }
    });
    let cost = mem.counters() - before;
    let amplification = cost.write_bytes as f64 / (1600.0 * 4096.0);
    println!(
        "write amplification {amplification:.4}, flushes {}",
        cost.flushes
    );
    assert!(amplification <= 1.03 && cost.flushes <= 400);
}

#[test]
fn durable_reads_see_nothing_that_a_crash_can_lose() {
    let (_, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    log.append(1, b"one", false).unwrap();
    assert_eq!(log.read(1).unwrap(), b"one");
    assert!(matches!(
        log.read_with(1, ReadLevel::Durable),
        Err(Error::Beyond { .. })
    ));
    engine.sync().unwrap();
    assert_eq!(log.read_with(1, ReadLevel::Durable).unwrap(), b"one");
}

#[test]
fn a_failed_flush_is_final_for_every_writer() {
    let (mem, fs) = mem();
    let engine = open(&fs).unwrap();
    let log = engine.create("a", DENSE).unwrap();
    log.append(1, b"one", true).unwrap();
    mem.fail_syncs();
    assert!(log.append(2, b"two", true).is_err());
    assert!(log.append(2, b"two", false).is_err());
    assert!(log.append(3, b"three", true).is_err());
}

/// What the engine must hold: the state at the last sync, and every later operation.
#[derive(Clone, Default)]
struct Model {
    logs: BTreeMap<String, ModelLog>,
}

#[derive(Clone, Default)]
struct ModelLog {
    floor: u64,
    /// The highest floor that is certainly durable.
    durable_floor: u64,
    records: BTreeMap<u64, Vec<u8>>,
    unsynced: BTreeSet<u64>,
}

fn run_model(seed: u64, steps: usize) {
    println!("LAVA_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut mem = MemFs::new(512);
    let mut fs: FileSystemRef = mem.clone();
    let mut engine = open(&fs).unwrap();
    let mut model = Model::default();
    for step in 0..steps {
        let name = format!("log-{}", rng.random_range(0..5));
        let Some(log) = model.logs.get_mut(&name) else {
            engine.create(&name, sparse(Duplicates::LastWins)).unwrap();
            model.logs.insert(name, ModelLog::default());
            continue;
        };
        let handle = engine.open_log(&name).unwrap();
        let near = handle.last().unwrap_or(log.floor);
        match rng.random_range(0..100) {
            0..60 => {
                let lsn = near.saturating_sub(10).max(log.floor) + rng.random_range(0..14);
                let bytes = data(lsn, step as u64, rng.random_range(0..3000));
                let sync = rng.random_bool(0.3);
                // The model knows one outcome of a crash for each LSN: what was acknowledged
                // without sync must not hide a synced record.
                let sync = sync || log.records.contains_key(&lsn);
                handle.append(lsn, &bytes, sync).unwrap();
                log.records.insert(lsn, bytes);
                log.unsynced.insert(lsn);
                if sync {
                    model.logs.values_mut().for_each(|log| log.unsynced.clear());
                }
            }
            60..70 => {
                let lsn = log.floor + rng.random_range(0..8);
                handle.trim_before(lsn).unwrap();
                log.floor = log.floor.max(lsn);
                log.records = log.records.split_off(&log.floor);
            }
            70..75 => {
                let lsn = near.saturating_sub(rng.random_range(0..6)).max(log.floor);
                handle.truncate_from(lsn).unwrap();
                log.records.split_off(&lsn);
                log.unsynced.retain(|unsynced| *unsynced < lsn);
            }
            75 => {
                engine.delete(&name).unwrap();
                model.logs.remove(&name);
            }
            76..78 => {
                engine.sync().unwrap();
                for log in model.logs.values_mut() {
                    log.unsynced.clear();
                    log.durable_floor = log.floor;
                }
            }
            78..81 => {
                drop((handle, engine));
                let kind = rng.random_range(0..3);
                if kind > 0 {
                    mem = mem.crash(|_, bytes, synced| {
                        let keep = rng.random_range(synced..=bytes.len());
                        if kind == 1 {
                            bytes.truncate(keep);
                        } else {
                            let end = (keep + 700).min(bytes.len());
                            bytes[keep..end].fill(0xA5);
                        }
                    });
                    fs = mem.clone();
                }
                engine = crate::look_tests::open_after_a_look(&mem, &fs);
                after_crash(&engine, &mut model);
            }
            81..83 => {
                engine.close().unwrap();
                drop((handle, engine));
                engine = open(&fs).unwrap();
                for log in model.logs.values_mut() {
                    log.unsynced.clear();
                    log.durable_floor = log.floor;
                }
                after_crash(&engine, &mut model);
            }
            _ => {
                let lsn = near.saturating_sub(rng.random_range(0..12));
                match log.records.get(&lsn) {
                    Some(bytes) => assert_eq!(handle.read(lsn).unwrap(), *bytes),
                    None => assert!(handle.read(lsn).is_err()),
                }
            }
        }
        if step % 50 == 0 {
            for (name, log) in &model.logs {
                let handle = engine.open_log(name).unwrap();
                assert!(entries(&handle) == log.records, "step {step} {name}");
            }
        }
    }
}

/// Checks what a crash left and makes the model agree with it.
fn after_crash(engine: &LogEngine, model: &mut Model) {
    let names: Vec<_> = model.logs.keys().cloned().collect();
    assert_eq!(engine.list(), names);
    for (name, log) in &mut model.logs {
        let handle = engine.open_log(name).unwrap();
        assert!((log.durable_floor..=log.floor).contains(&handle.floor()));
        let found = entries(&handle);
        for (lsn, bytes) in log.records.clone() {
            match found.get(&lsn) {
                Some(read) => assert_eq!(*read, bytes, "{name} {lsn}"),
                None => {
                    assert!(
                        log.unsynced.contains(&lsn),
                        "{name}: synced LSN {lsn} is lost"
                    );
                    log.records.remove(&lsn);
                }
            }
        }
        // A trim that was not durable may be undone; nothing else comes back.
        for (lsn, bytes) in found {
            assert!(
                lsn < log.floor || log.records.contains_key(&lsn),
                "{name} {lsn}"
            );
            log.records.insert(lsn, bytes);
        }
        log.floor = handle.floor();
        log.unsynced.clear();
    }
}

#[test]
fn random_operations_and_crashes_agree_with_a_model() {
    let seed: u64 = std::env::var("LAVA_SEED").map_or(1, |seed| seed.parse().unwrap());
    for seed in seed..seed + 12 {
        run_model(seed, 1500);
    }
}

#[test]
fn it_runs_on_a_kernel_filesystem_and_survives_a_stop_without_close() {
    let root = tempfile::tempdir().unwrap();
    for round in 0..4u64 {
        let fs: FileSystemRef = Arc::new(HostFs::open(root.path()).unwrap());
        let engine = open(&fs).unwrap();
        let log = match engine.open_log("a") {
            Ok(log) => log,
            Err(_) => engine.create("a", DENSE).unwrap(),
        };
        assert_eq!(log.len(), round * 30);
        for lsn in round * 30..(round + 1) * 30 {
            log.append(lsn, &data(lsn, 0, 4096), lsn % 7 == 6).unwrap();
        }
        log.truncate_from((round + 1) * 30 - 2).unwrap();
        for lsn in (round + 1) * 30 - 2..(round + 1) * 30 {
            log.append(lsn, &data(lsn, 0, 4096), true).unwrap();
        }
        let all: BTreeMap<_, _> = (0..(round + 1) * 30)
            .map(|l| (l, data(l, 0, 4096)))
            .collect();
        assert!(entries(&log) == all);
        if round % 2 == 1 {
            engine.close().unwrap();
        }
    }
}
