//! `lava log` looks without changing anything, and its figures are right.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{image, ok, run};
use lavafs::device::{self, OpenMode};
use lavafs::{FileSystemRef, HostFs, LavaFs, MountOptions};
use lavalog::{LogConfig, LogEngine, LogOptions, Mode};
use serde_json::Value;

/// Every command that only looks.
const LOOKS: [&str; 5] = ["ls", "stats", "verify", "scan a", "read a 7"];

/// An engine with a sealed file, and one that is written to.
fn engine(fs: FileSystemRef) -> LogEngine {
    let options = LogOptions {
        data_file_size: 64 << 10,
        ..LogOptions::default()
    };
    let engine = LogEngine::open(fs, Path::new("/log"), &options).unwrap();
    let dense = LogConfig { mode: Mode::Dense };
    let log = engine.create("a", dense).unwrap();
    for lsn in 1..=30 {
        log.append(lsn, &[lsn as u8; 3000], true).unwrap();
    }
    log.trim_before(6).unwrap();
    engine.sync().unwrap();
    engine
}

/// The bytes of every file in a directory.
fn bytes(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect()
}

#[test]
fn looking_at_torn_and_damaged_logs_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("log");
    // Not closed: the last file is not sealed.
    drop(engine(Arc::new(HostFs::open(dir.path()).unwrap())));
    let place = format!("--fs host:{} --log /log", dir.path().display());
    let active = at.join("data-00000002.log");
    let whole = fs::read(&active).unwrap();
    let mut torn = whole.clone();
    torn.extend_from_slice(&[0xA5; 700]);
    fs::write(&active, &torn).unwrap();
    let before = bytes(&at);
    for look in LOOKS {
        ok(&format!("lava log {look} {place}"));
    }
    assert!(bytes(&at) == before, "a torn log");
    let mut damaged = whole;
    damaged[5000] ^= 1;
    fs::write(&active, &damaged).unwrap();
    let before = bytes(&at);
    for look in LOOKS {
        let failed = run(&format!("lava log {look} {place}"));
        let told = String::from_utf8(failed.stderr).unwrap();
        assert_eq!(failed.status.code(), Some(1), "{look}: {told}");
        assert!(told.contains("data-00000002.log is corrupt"), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    assert!(bytes(&at) == before, "a damaged log");
}

#[test]
fn logs_are_looked_at_beside_their_owner() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "64M");
    let device = device::open(&image, OpenMode::ReadWrite).unwrap();
    let options = MountOptions {
        background: false,
        ..MountOptions::default()
    };
    let lava = LavaFs::mount(device, &options).unwrap();
    let engine = engine(Arc::new(lava.clone()));
    let place = format!("--fs {} --log /log", image.display());
    let before = fs::read(&image).unwrap();
    for look in LOOKS {
        ok(&format!("lava log {look} {place}"));
    }
    let scanned = ok(&format!("lava log scan {place} a"));
    assert_eq!(scanned.matches("3000 bytes").count(), 25, "{scanned}");
    let refused = run(&format!("lava log trim {place} a 9"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(fs::read(&image).unwrap() == before, "the image changed");
    let log = engine.open_log("a").unwrap();
    log.append(31, b"the owner goes on", true).unwrap();
    assert_eq!(
        ok(&format!("lava log read {place} a 31")),
        "the owner goes on"
    );
    engine.close().unwrap();
    drop((log, engine));
    lava.unmount().unwrap();
    let verified = ok(&format!("lava log verify {place}"));
    assert!(verified.contains("26 records in 1 logs"), "{verified}");
}

#[test]
fn the_figures_tell_what_is_alive_dead_and_durable() {
    let dir = tempfile::tempdir().unwrap();
    let owner = engine(Arc::new(HostFs::open(dir.path()).unwrap()));
    let place = format!("--fs host:{} --log /log", dir.path().display());
    let figures = |text: String| -> Value { serde_json::from_str(&text).unwrap() };
    let stats = figures(ok(&format!("lava log stats {place} --json")));
    for (name, expected) in [
        ("logs", 1),
        ("records", 25),
        ("lsns", 25),
        ("missing_lsns", 0),
        ("dead_records", 5),
        ("unproven_records", 1),
    ] {
        assert_eq!(stats[name], expected, "{name}: {stats}");
    }
    let number = |value: &Value| value.as_u64().unwrap();
    let (live, dead) = (&stats["datalog"]["live_bytes"], &stats["dead_bytes"]);
    assert!((75_000..76_000).contains(&number(live)), "{stats}");
    assert!((15_000..15_200).contains(&number(dead)), "{stats}");
    let files = stats["datalog"]["files"].as_array().unwrap();
    assert_eq!((files.len(), &files[0]["sealed"]), (2, &true.into()));
    assert_eq!(files[0]["dead_records"], 5);
    assert!(number(&files[1]["durable_bytes"]) < number(&files[1]["file_bytes"]));
    let disk = number(&stats["disk_bytes"]);
    let parts = number(&stats["datalog"]["disk_bytes"]) + number(&stats["metalog"]["disk_bytes"]);
    assert_eq!(disk, parts);
    let factor = stats["space_amplification"].as_f64().unwrap();
    assert!((disk as f64 / number(&stats["live_bytes"]) as f64 - factor).abs() < 1e-9);
    let text = ok(&format!("lava log stats {place}"));
    for part in [
        "25 records in 1 logs",
        "data-00000001.log",
        "meta-00000001.log",
        "all but the last 1 records",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    owner.close().unwrap();
    let stats = figures(ok(&format!("lava log stats {place} --json")));
    assert_eq!(stats["unproven_records"], 0, "{stats}");
}
