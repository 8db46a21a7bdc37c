//! What the engine refuses and what it survives without space: a refused open changes no byte, and a
//! disk that was full costs nothing that was acknowledged.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{WatchFs, host, image, tiny};
use lavafs::FileSystemRef;
use lavakv::{CompactionOptions, CompactionStyle, Db, Error, Options, ReadOptions, WriteOptions};

const AT: &str = "/db";

type Files = BTreeMap<OsString, Vec<u8>>;

/// A file's name and bytes.
type Named<'a> = (&'a str, &'a [u8]);

/// What is wrong, the option's name, and the change that makes it so.
type Wrong = (&'static str, &'static str, fn(&mut Options));

/// Every file of the database's directory with its bytes.
fn files(fs: &FileSystemRef) -> Files {
    let entries = fs.list(Path::new(AT)).unwrap();
    let read = |name: &OsString| {
        let file = fs.open(&Path::new(AT).join(name)).unwrap();
        let mut bytes = vec![0; file.size().upper() as usize];
        let read = file.read_at(0, &mut bytes).unwrap();
        assert_eq!(read, bytes.len());
        bytes
    };
    entries
        .into_iter()
        .map(|entry| (entry.name.clone(), read(&entry.name)))
        .collect()
}

/// The directory's files and bytes are those of before, and a message of one line names `parts`.
fn refused(
    fs: &FileSystemRef,
    what: &str,
    parts: &[&str],
    refuse: impl FnOnce() -> lavakv::Result<()>,
) {
    let before = files(fs);
    let message = refuse().expect_err(what).to_string();
    for part in parts {
        assert!(message.contains(part), "{what}: {message} lacks {part}");
    }
    assert_eq!(message.lines().count(), 1, "{what}: {message}");
    let after = files(fs);
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before), "{what}");
    assert!(after == before, "{what}: a file was changed");
}

fn open(fs: &FileSystemRef, options: Options) -> lavakv::Result<Db> {
    Db::open(fs.clone(), Path::new(AT), options)
}

fn on_host_and_image(test: impl Fn(FileSystemRef)) {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("host");
    std::fs::create_dir(&at).unwrap();
    test(host(&at));
    test(image(&dir.path().join("image"), 256 << 20));
}

/// A database with several levels, blob files and a log that is to be replayed.
fn fill(fs: &FileSystemRef) {
    let options = Options {
        min_blob_size: 300,
        ..tiny()
    };
    let db = open(fs, options).unwrap();
    for number in 0..600_u32 {
        let value = vec![number as u8; 100 + (number % 4 * 100) as usize];
        db.put(&number.to_be_bytes(), &value, &WriteOptions::default())
            .unwrap();
    }
    db.flush().unwrap();
    db.compact_range(None, None).unwrap();
    db.put(b"logged", &[1; 50], &WriteOptions::synced())
        .unwrap();
}

#[test]
fn a_wrong_option_is_refused_by_name_and_changes_no_byte() {
    on_host_and_image(|fs| {
        fill(&fs);
        let bad: [Wrong; 9] = [
            ("fewer levels than there are", "num_levels", |o| {
                o.num_levels = 2;
            }),
            ("no level", "num_levels", |o| o.num_levels = 0),
            ("a tiny block", "block_size", |o| o.block_size = 1),
            ("one memtable", "max_write_buffer_number", |o| {
                o.max_write_buffer_number = 1;
            }),
            ("no jobs", "max_background_jobs", |o| {
                o.max_background_jobs = 0;
            }),
            ("a shrinking tree", "max_bytes_for_level_multiplier", |o| {
                o.max_bytes_for_level_multiplier = 0.5;
            }),
            ("no runs", "fluid_runs", |o| {
                o.compaction = CompactionOptions {
                    style: CompactionStyle::Fluid,
                    fluid_runs: 0,
                    ..CompactionOptions::default()
                };
            }),
            ("a small blob file", "blob_file_size", |o| {
                o.blob_file_size = 1;
            }),
            ("what exists", "error_if_exists", |o| {
                o.error_if_exists = true;
            }),
        ];
        for (what, named, change) in bad {
            let mut options = tiny();
            change(&mut options);
            refused(&fs, what, &[named], || open(&fs, options).map(drop));
        }
        let db = open(&fs, tiny()).unwrap();
        let logged = db.get(b"logged", &ReadOptions::default()).unwrap();
        assert_eq!(logged, Some(vec![1; 50]));
    });
}

#[test]
fn a_foreign_directory_is_refused_and_gets_not_even_a_lock_file() {
    let foreign: [(&str, &[Named<'_>]); 5] = [
        (
            "what another engine left without CURRENT",
            &[
                ("OPTIONS-000007", b"# This is a RocksDB option file.\n"),
                ("MANIFEST-000005", b"\x56\xf9\xb8\xf8\x1c\x00\x01\x01"),
            ],
        ),
        (
            "another engine's database",
            &[
                ("CURRENT", b"MANIFEST-000005\n"),
                (
                    "MANIFEST-000005",
                    b"\x56\xf9\xb8\xf8\x1c\x00\x01\x01\x1aleveldb.",
                ),
                ("000004.log", b""),
            ],
        ),
        (
            "a file of that name",
            &[("CURRENT", b"current affairs, page 1 of 3")],
        ),
        ("an empty one", &[("CURRENT", b"")]),
        ("tables of nobody", &[("000007.sst", b"what is this")]),
    ];
    on_host_and_image(|fs| {
        for (what, contents) in foreign {
            fs.create_dir_all(Path::new(AT)).unwrap();
            for (name, bytes) in contents {
                let path = Path::new(AT).join(name);
                let file = fs.create(&path, &lavafs::CreateOptions::default()).unwrap();
                if !bytes.is_empty() {
                    file.append(bytes).unwrap();
                }
                file.fdatasync().unwrap();
            }
            // The pointer, where what it points to is not there either.
            let name = contents.get(1).map_or(contents[0].0, |(name, _)| name);
            refused(&fs, what, &[name], || open(&fs, tiny()).map(drop));
            refused(&fs, what, &["/db"], || {
                Db::open_read_only(fs.clone(), Path::new(AT), tiny()).map(drop)
            });
            let at = Path::new(AT);
            refused(&fs, what, &["another program"], || Db::destroy(&fs, at));
            refused(&fs, what, &["another program"], || {
                Db::repair(&fs, at, &tiny()).map(drop)
            });
            for (name, _) in contents {
                fs.unlink(&Path::new(AT).join(name)).unwrap();
            }
        }
    });
}

#[test]
fn logged_writes_without_current_are_not_taken_for_an_empty_database() {
    on_host_and_image(|fs| {
        let db = open(&fs, tiny()).unwrap();
        db.put(b"logged", b"value", &WriteOptions::synced())
            .unwrap();
        db.close().unwrap();
        drop(db);
        fs.unlink(&Path::new(AT).join("CURRENT")).unwrap();
        let parts = ["logged writes in a directory without CURRENT", ".wal"];
        refused(&fs, "a lost CURRENT", &parts, || {
            open(&fs, tiny()).map(drop)
        });
        Db::repair(&fs, Path::new(AT), &tiny()).unwrap();
        let db = open(&fs, tiny()).unwrap();
        let logged = db.get(b"logged", &ReadOptions::default()).unwrap();
        assert_eq!(logged, Some(b"value".to_vec()));
        db.close().unwrap();
        drop(db);
        Db::destroy(&fs, Path::new(AT)).unwrap();
        assert!(fs.metadata(Path::new(AT)).unwrap_err().is_not_found());
    });
}

#[test]
fn a_lost_manifest_is_named_and_not_taken_for_an_owner_at_work() {
    on_host_and_image(|fs| {
        fill(&fs);
        let names = fs.list(Path::new(AT)).unwrap();
        let names = names.iter().map(|entry| entry.name.to_string_lossy());
        let manifest = names.into_iter().find(|name| name.starts_with("MANIFEST"));
        let manifest = manifest.unwrap();
        fs.unlink(&Path::new(AT).join(&*manifest)).unwrap();
        let opened = Db::open_read_only(fs.clone(), Path::new(AT), tiny());
        let told = opened.map(drop).unwrap_err().to_string();
        assert!(
            told.contains(&*manifest) && !told.contains("busy"),
            "{told}"
        );
        fs.unlink(&Path::new(AT).join("CURRENT")).unwrap();
        let _ = Db::destroy(&fs, Path::new(AT));
    });
}

#[test]
fn a_second_opener_is_refused_while_the_owner_goes_on() {
    on_host_and_image(|fs| {
        fill(&fs);
        let owner = open(&fs, tiny()).unwrap();
        owner.wait_for_background_work().unwrap();
        refused(&fs, "a second opener", &["/db", "open elsewhere"], || {
            open(&fs, tiny()).map(drop)
        });
        refused(&fs, "removal beside the owner", &["/db"], || {
            Db::destroy(&fs, Path::new(AT))
        });
        refused(&fs, "repair beside the owner", &["/db"], || {
            Db::repair(&fs, Path::new(AT), &tiny()).map(drop)
        });
        owner.put(b"k", b"v", &WriteOptions::synced()).unwrap();
    });
}

#[test]
fn damage_behind_replayed_tables_leaves_no_table_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let fs = host(dir.path());
    let large = Options {
        write_buffer_size: 1 << 20,
        ..tiny()
    };
    let db = open(&fs, large).unwrap();
    for number in 0..400_u32 {
        let value = [number as u8; 400];
        db.put(&number.to_be_bytes(), &value, &WriteOptions::default())
            .unwrap();
    }
    // What comes after the sync says that all before it was durable: damage there is no torn end.
    db.sync_wal().unwrap();
    db.put(b"last", b"", &WriteOptions::synced()).unwrap();
    drop(db);
    let log = std::fs::read_dir(dir.path().join("db")).unwrap();
    let log = log.map(|entry| entry.unwrap().path());
    let log = log
        .into_iter()
        .find(|path| path.extension().is_some_and(|kind| kind == "wal"));
    let log = log.unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    // In one of the last groups; sixteen memtables of the smaller size come before it.
    let at = bytes
        .windows(8)
        .rposition(|window| window == [(390 & 0xff) as u8; 8]);
    bytes[at.unwrap()] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let before = files(&fs);
    for _ in 0..2 {
        refused(&fs, "damage", &[".wal", "corrupt"], || {
            open(&fs, tiny()).map(drop)
        });
    }
    assert!(files(&fs) == before);
}

/// A database on a disk that is filled for one kind of file, and what was acknowledged.
struct Full {
    fs: Arc<WatchFs>,
    db: Db,
    model: BTreeMap<Vec<u8>, Vec<u8>>,
    next: u32,
    _dir: tempfile::TempDir,
}

impl Full {
    fn new(change: fn(&mut Options)) -> Full {
        let dir = tempfile::tempdir().unwrap();
        let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
        let mut options = tiny();
        change(&mut options);
        let db = open(&(fs.clone() as FileSystemRef), options).unwrap();
        Full {
            fs,
            db,
            model: BTreeMap::new(),
            next: 0,
            _dir: dir,
        }
    }

    /// Writes pairs until one is refused, at most `limit`.
    fn write(&mut self, limit: u32, value_len: usize) -> Option<Error> {
        for _ in 0..limit {
            self.next += 1;
            // Half of the writes replace an older value.
            let number = if self.next.is_multiple_of(2) {
                self.next / 4
            } else {
                self.next
            };
            let (key, value) = (number.to_be_bytes(), vec![self.next as u8; value_len]);
            match self.db.put(&key, &value, &WriteOptions::default()) {
                Ok(()) => self.model.insert(key.to_vec(), value),
                Err(error) => return Some(error),
            };
        }
        None
    }

    fn check(&self) {
        for (key, value) in &self.model {
            let found = self.db.get(key, &ReadOptions::default()).unwrap();
            assert_eq!(found.as_ref(), Some(value));
        }
    }

    /// Space returns: without a call, background work and writes go on, and nothing is lost.
    fn goes_on(mut self, phase: &str) {
        assert!(self.fs.refused() > 0, "{phase}: nothing was refused");
        self.check();
        self.fs.fill_for(None);
        wait_until(&format!("{phase}: background work to go on"), || {
            self.db.wait_for_background_work().is_ok()
        });
        // The thread that resumes looks from time to time.
        wait_until(&format!("{phase}: writes to go on"), || {
            self.write(300, 200).is_none()
        });
        self.db.flush().unwrap();
        self.check();
        self.db.verify().unwrap();
        self.db.verify_garbage().unwrap();
        self.db.close().unwrap();
        self.db = open(&(self.fs.clone() as FileSystemRef), tiny()).unwrap();
        self.check();
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "waited for {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::Fs(lavafs::Error::NoSpace { .. }))
        || error.to_string().contains("no space")
}

#[test]
fn a_log_without_space_refuses_writes_until_space_returns() {
    let mut full = Full::new(|_| {});
    assert!(full.write(50, 200).is_none());
    full.fs.fill_for(Some(".wal"));
    let error = full.write(50, 200).unwrap();
    assert!(is_full(&error), "{error}");
    full.goes_on("log");
}

#[test]
fn a_flush_without_space_is_done_when_space_returns() {
    let mut full = Full::new(|_| {});
    assert!(full.write(50, 100).is_none());
    full.fs.fill_for(Some(".sst"));
    let error = full.db.flush().unwrap_err();
    assert!(is_full(&error), "{error}");
    full.goes_on("flush");
}

#[test]
fn a_compaction_without_space_is_done_when_space_returns() {
    let mut full = Full::new(|options| {
        options.disable_auto_compactions = true;
        options.level0_slowdown_writes_trigger = 1000;
        options.level0_stop_writes_trigger = 1000;
    });
    assert!(full.write(400, 200).is_none());
    full.db.flush().unwrap();
    full.fs.fill_for(Some(".sst"));
    let error = full.db.compact_range(None, None).unwrap_err();
    assert!(is_full(&error), "{error}");
    full.goes_on("compaction");
}

#[test]
fn a_manifest_without_space_takes_its_change_when_space_returns() {
    let mut full = Full::new(|_| {});
    assert!(full.write(50, 100).is_none());
    full.fs.fill_for(Some("MANIFEST"));
    let error = full.db.flush().unwrap_err();
    assert!(is_full(&error), "{error}");
    full.goes_on("manifest");
}

#[test]
fn a_collection_without_space_keeps_every_value() {
    let mut full = Full::new(|options| {
        options.min_blob_size = 100;
        options.blob_file_size = 8 << 10;
        options.enable_blob_garbage_collection = false;
        options.blob_correlated_compaction_bytes = 0;
    });
    assert!(full.write(600, 400).is_none());
    full.db.flush().unwrap();
    full.db.compact_range(None, None).unwrap();
    full.fs.fill_for(Some(".blob"));
    // Told, or held until there is more space: either way nothing is lost.
    if let Err(error) = full.db.collect_blob_garbage() {
        assert!(is_full(&error), "{error}");
    }
    full.goes_on("collection");
}

#[test]
fn an_open_without_space_fails_alike_however_often_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fs = WatchFs::new(host(dir.path()), Box::new(|_, _| {}));
    let as_fs = fs.clone() as FileSystemRef;
    fill(&as_fs);
    fs.set_space(300);
    for _ in 0..3 {
        refused(&as_fs, "a full disk", &["no space"], || {
            open(&as_fs, tiny()).map(drop)
        });
    }
    fs.set_space(u64::MAX / 2);
    let db = open(&as_fs, tiny()).unwrap();
    let logged = db.get(b"logged", &ReadOptions::default()).unwrap();
    assert_eq!(logged, Some(vec![1; 50]));
    db.verify().unwrap();
}
