//! Listeners that call back into the database, and that panic.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a failed step is a failed test"
)]

mod common;

use std::path::Path;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use common::{WatchFs, mount, sim_device, tiny};
use lavafs::FileSystemRef;
use lavakv::{
    Db, Error, EventListener, FileEvent, FileKind, Options, ReadOptions, Severity, WriteOptions,
};
use parking_lot::Mutex;

const AT: &str = "/db";
const PATIENCE: Duration = Duration::from_secs(60);

/// Keeps a record in the database itself.
#[derive(Debug, Default)]
struct Recorder {
    db: OnceLock<Db>,
    outcomes: Mutex<Vec<(&'static str, bool)>>,
}

impl Recorder {
    fn record(&self, what: &'static str) {
        let Some(db) = self.db.get() else { return };
        let written = db.put(what.as_bytes(), b"seen", &WriteOptions::default());
        let _ = db.get(what.as_bytes(), &ReadOptions::default());
        self.outcomes.lock().push((what, written.is_ok()));
    }
}

impl EventListener for Recorder {
    fn on_file_created(&self, file: &FileEvent) {
        if file.kind == FileKind::Wal {
            self.record("log");
        }
    }

    fn on_background_error(&self, _: &Error, _: Severity) {
        self.record("error");
    }
}

/// The thread that leads the writers told of the next log, and of a failed one, while it led: a listener that wrote
/// waited for itself, and every writer for it.
#[test]
fn a_listener_may_write_when_it_is_told_of_a_log() {
    let fs = WatchFs::new(mount(sim_device(256 << 20, 512)), Box::new(|_, _| {}));
    let recorder = Arc::new(Recorder::default());
    let options = Options {
        listeners: vec![Arc::clone(&recorder) as Arc<dyn EventListener>],
        ..tiny()
    };
    let db = Db::open(fs.clone() as FileSystemRef, Path::new(AT), options).unwrap();
    assert!(recorder.db.set(db.clone()).is_ok());
    let (tell, done) = mpsc::channel();
    let (writer, faults) = (db.clone(), Arc::clone(&fs));
    std::thread::spawn(move || {
        for number in 0..500_u64 {
            let unsynced = WriteOptions::default();
            writer
                .put(&number.to_be_bytes(), &[5; 200], &unsynced)
                .unwrap();
        }
        faults.break_syncs();
        tell.send(writer.put(b"k", b"v", &WriteOptions::synced()))
            .unwrap();
    });
    let failed = done
        .recv_timeout(PATIENCE)
        .expect("no writer waits for itself");
    assert!(failed.is_err());
    let outcomes = recorder.outcomes.lock();
    assert!(outcomes.contains(&("log", true)), "{outcomes:?}");
    assert!(outcomes.contains(&("error", false)), "{outcomes:?}");
    assert!(db.get(b"log", &ReadOptions::default()).unwrap().is_some());
}

/// Panics when a table goes, or when a log comes; and when that is told.
#[derive(Debug)]
struct Panics {
    of_logs: bool,
}

impl EventListener for Panics {
    fn on_file_created(&self, file: &FileEvent) {
        assert!(!self.of_logs || file.kind != FileKind::Wal, "on purpose");
    }

    fn on_file_deleted(&self, file: &FileEvent) {
        assert!(self.of_logs || file.kind != FileKind::Table, "on purpose");
    }

    fn on_background_error(&self, error: &Error, _: Severity) {
        panic!("on purpose, told of {error}");
    }
}

/// The thread that removed files ended, and a close waited for it for ever; without a rate the panic came out of the
/// close. That of a new log came out of a write. The database was not poisoned.
#[test]
fn a_panic_of_a_listener_poisons_the_database_and_it_can_be_closed() {
    for (of_logs, delete_rate) in [(false, 0), (false, 1 << 20), (true, 0)] {
        let fs = mount(sim_device(256 << 20, 512));
        let options = Options {
            listeners: vec![Arc::new(Panics { of_logs })],
            delete_rate,
            ..tiny()
        };
        let db = Db::open(fs, Path::new(AT), options).unwrap();
        let (tell, done) = mpsc::channel();
        let writer = db.clone();
        std::thread::spawn(move || {
            let mut number = 0_u64;
            let failed = loop {
                let key = (number % 100).to_be_bytes();
                number += 1;
                if let Err(error) = writer.put(&key, &[5; 200], &WriteOptions::default()) {
                    break error;
                }
            };
            tell.send(failed).unwrap();
            let _ = writer.close();
            tell.send(Error::Busy {
                what: "closed".to_owned(),
            })
            .unwrap();
        });
        let failed = done.recv_timeout(PATIENCE).expect("poisoned");
        assert!(matches!(failed, Error::Poisoned { .. }), "{failed}");
        done.recv_timeout(PATIENCE).expect("the close ends");
    }
}
