//! Views for reading alone, opened while their owner replaces files.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::{WatchFs, mount, on_each_fs, sim_device, tiny};
use lavafs::{FileSystem, FileSystemRef};
use lavakv::{Db, Error, Options, ReadOptions, WriteOptions};

const AT: &str = "/db";

fn options() -> Options {
    Options {
        disable_auto_compactions: true,
        ..tiny()
    }
}

fn put(db: &Db, key: &[u8]) {
    db.put(key, &[1; 60], &WriteOptions::default()).unwrap();
}

fn has(db: &Db, key: &[u8]) -> bool {
    let found = db.get(key, &ReadOptions::default()).unwrap();
    found.is_some_and(|value| value == [1; 60])
}

fn view(fs: &FileSystemRef) -> lavakv::Result<Db> {
    Db::open_read_only(fs.clone(), Path::new(AT), options())
}

#[test]
fn read_only_views_open_while_the_owner_replaces_files_all_the_time() {
    on_each_fs(|fs| {
        let db = Db::open(fs.clone(), Path::new(AT), tiny()).unwrap();
        put(&db, b"first");
        let writer = db;
        let opened = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let (until, opened) = (Instant::now() + Duration::from_secs(60), &opened);
            let work = scope.spawn(move || {
                for number in 0_u64.. {
                    put(&writer, &(number % 500).to_be_bytes());
                    if number < 8000 {
                        continue;
                    }
                    // It may have been done before the other thread ran at all, or have been too fast for it.
                    if opened.load(SeqCst) > 0 || Instant::now() > until {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            while !work.is_finished() {
                match Db::open_read_only(fs.clone(), Path::new(AT), tiny()) {
                    Ok(view) => {
                        assert!(has(&view, b"first"));
                        opened.fetch_add(1, SeqCst);
                    }
                    Err(error) => assert!(matches!(error, Error::Busy { .. }), "{error}"),
                }
            }
        });
        assert!(
            opened.into_inner() > 0,
            "no view was opened beside the owner"
        );
    });
}

/// Each time that a view opens a table the owner has just merged it away: the view was told of damage, a table that is
/// missing, instead of an owner that is too busy.
#[test]
fn an_owner_that_replaces_every_table_before_it_is_opened_is_busy_and_not_damaged() {
    let watched = WatchFs::new(mount(sim_device(64 << 20, 512)), Box::new(|_, _| {}));
    let fs: FileSystemRef = watched.clone();
    let owner = Db::open(fs.clone(), Path::new(AT), options()).unwrap();
    let replace = |owner: &Db| {
        put(owner, b"k");
        owner.compact_range(None, None).unwrap();
    };
    replace(&owner);
    let viewer = std::thread::current().id();
    let left = Arc::new(AtomicU64::new(1000));
    let (worker, below, times) = (owner.clone(), fs.clone(), left.clone());
    watched.fail_where(move |op, path| {
        let is_table = path.extension().is_some_and(|kind| kind == "sst");
        let is_view = std::thread::current().id() == viewer;
        if !is_view || op != "open" || !is_table || times.load(SeqCst) == 0 {
            return None;
        }
        times.fetch_sub(1, SeqCst);
        let owner = worker.clone();
        std::thread::spawn(move || replace(&owner)).join().unwrap();
        while below.metadata(path).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    });
    let busy = view(&fs).unwrap_err();
    assert!(matches!(busy, Error::Busy { .. }), "{busy}");
    assert!(left.load(SeqCst) < 1000, "a table was opened");
    // It gets through when the owner rests.
    left.store(0, SeqCst);
    let db = view(&fs).unwrap();
    assert!(has(&db, b"k"));
    // A table that is lost is damage all the same.
    drop(db);
    owner.close().unwrap();
    let names = fs.list(Path::new(AT)).unwrap().into_iter();
    let names = names.map(|entry| entry.name.into_string().unwrap());
    for name in names.filter(|name| name.ends_with(".sst")) {
        watched.unlink(&Path::new(AT).join(name)).unwrap();
    }
    let lost = view(&fs).unwrap_err();
    assert!(lost.is_corrupt(), "{lost}");
}
