//! Several changes of names as one: all or nothing, for other threads, after a failing step and
//! after any crash.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{formatted, mount};
use lavafs::device::SimDevice;
use lavafs::{
    BLOCK_SIZE, CheckMode, CreateOptions, Error, FileKind, FileSystem, LavaFs, MkfsOptions,
    RenameMode, TailPolicy, Transaction, check,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn device() -> Arc<SimDevice> {
    let options = MkfsOptions {
        journal_size: Some(64 * BLOCK_SIZE),
        ..MkfsOptions::default()
    };
    formatted(4 << 20, &options)
}

fn assert_clean(device: &Arc<SimDevice>, what: &str) {
    let report = check(device.clone(), CheckMode::ReadOnly).unwrap();
    assert!(report.is_clean(), "{what}: {report:?}");
}

/// Every path with what it names and that inode's number of names.
fn tree(fs: &LavaFs) -> BTreeMap<PathBuf, (FileKind, u32)> {
    let mut tree = BTreeMap::new();
    let mut dirs = vec![PathBuf::from("/")];
    while let Some(dir) = dirs.pop() {
        for entry in fs.list(&dir).unwrap() {
            let path = dir.join(entry.name);
            let metadata = fs.metadata(&path).unwrap();
            tree.insert(path.clone(), (metadata.kind, metadata.links));
            if entry.kind == FileKind::Directory {
                dirs.push(path);
            }
        }
    }
    tree
}

fn create(fs: &LavaFs, path: &str) {
    fs.create(Path::new(path), &CreateOptions::default())
        .unwrap();
}

/// What an engine does when it replaces one generation of its files by the next.
fn turn_over(change: &mut Transaction<'_>) {
    change
        .rename("/manifest.new", "/manifest")
        .unlink("/log.1")
        .create("/log.2", TailPolicy::Seal)
        .create_dir("/blobs")
        .link("/table", "/blobs/table")
        .unlink("/table")
        .remove_dir("/empty");
}

#[test]
fn any_crash_leaves_all_of_a_transaction_or_nothing() {
    let device = device();
    let fs = mount(&device);
    for path in ["/manifest", "/manifest.new", "/log.1", "/table"] {
        create(&fs, path);
    }
    fs.create_dir_all(Path::new("/empty")).unwrap();
    fs.commit().unwrap();
    let before = tree(&fs);
    device.record();
    let mut change = fs.transaction();
    turn_over(&mut change);
    change.commit().unwrap();
    let acked = device.recorded_ops();
    fs.checkpoint().unwrap();
    let after = tree(&fs);
    assert_eq!(after.len(), 4);
    assert_ne!(before, after);
    let recording = device.take_recording();
    let mut seen = [0, 0];
    for at in 0..=recording.ops().len() {
        for seed in 0..16 {
            let crashed = Arc::new(recording.crash(at, seed));
            assert_clean(&crashed, "after the crash");
            let found = tree(&mount(&crashed));
            assert!(found == after || found == before && at < acked, "{found:?}");
            seen[usize::from(found == after)] += 1;
        }
    }
    assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
}

#[test]
fn a_transaction_is_one_durable_write() {
    let device = device();
    let fs = mount(&device);
    for path in ["/manifest", "/manifest.new", "/log.1", "/table"] {
        create(&fs, path);
    }
    fs.create_dir_all(Path::new("/empty")).unwrap();
    fs.commit().unwrap();
    let before = fs.counters();
    let mut change = fs.transaction();
    turn_over(&mut change);
    change.commit().unwrap();
    let spent = fs.counters() - before;
    assert_eq!((spent.write_ios, spent.flushes), (1, 1), "{spent:?}");
}

#[test]
fn a_step_that_fails_leaves_nothing_of_those_before_it() {
    let device = device();
    let fs = mount(&device);
    create(&fs, "/file");
    create(&fs, "/other");
    fs.create_dir_all(Path::new("/full/sub")).unwrap();
    fs.commit().unwrap();
    let (before, spent) = (tree(&fs), fs.counters());
    type Fail = fn(&mut Transaction<'_>);
    let failing: [(Fail, &str); 9] = [
        (|t| _ = t.unlink("/none").create_dir("/x"), "/none: no such"),
        (
            |t| _ = t.create("/file", TailPolicy::Pack),
            "/file: already",
        ),
        (
            |t| _ = t.create("/new/y", TailPolicy::Pack),
            "/new/y: not a",
        ),
        (|t| _ = t.remove_dir("/full"), "/full: directory not empty"),
        (|t| _ = t.unlink("/full"), "/full: is a directory"),
        (|t| _ = t.rename("/full", "/full/sub/x"), "into itself"),
        (
            |t| _ = t.unlink("/moved").link("/moved", "/y"),
            "/moved: no",
        ),
        (
            |t| _ = t.rename_as("/other", "/new", RenameMode::NoReplace),
            "/new: already",
        ),
        (|t| _ = t.link("/other", "/../y"), "invalid name"),
    ];
    for (fail, expected) in failing {
        let mut change = fs.transaction();
        change
            .create("/new", TailPolicy::Pack)
            .rename("/file", "/moved")
            .link("/other", "/file2");
        if expected.starts_with("/file:") {
            change.rename("/moved", "/file");
        }
        fail(&mut change);
        change.unlink("/other");
        let error = change.commit().unwrap_err();
        assert!(matches!(error, Error::Path { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(tree(&fs), before, "{expected}");
    }
    assert_eq!((fs.counters() - spent).write_ios, 0);
    fs.commit().unwrap();
    let crashed = Arc::new(device.crash(1));
    assert_clean(&crashed, "after failing transactions");
    assert_eq!(tree(&mount(&crashed)), before);
}

/// One step, done alone or as part of a transaction.
#[derive(Clone, Debug)]
enum Step {
    Create(String),
    CreateDir(String),
    Link(String, String),
    Unlink(String),
    RemoveDir(String),
    Rename(String, String),
    Exchange(String, String),
}

impl Step {
    fn random(rng: &mut StdRng) -> Step {
        let mut path = || {
            let depth = rng.random_range(1..4);
            (0..depth).fold(String::new(), |path, _| {
                format!("{path}/{}", ["a", "b", "c"][rng.random_range(0..3)])
            })
        };
        let (one, two) = (path(), path());
        match rng.random_range(0..8) {
            0 => Step::Create(one),
            1 | 2 => Step::CreateDir(one),
            3 => Step::Link(one, two),
            4 => Step::Unlink(one),
            5 => Step::RemoveDir(one),
            6 => Step::Rename(one, two),
            _ => Step::Exchange(one, two),
        }
    }

    fn alone(&self, fs: &LavaFs) -> lavafs::Result<()> {
        let path = Path::new;
        match self {
            Step::Create(at) => fs.create(path(at), &CreateOptions::default()).map(drop),
            Step::CreateDir(at) => {
                let (dir, name) = fs.resolve_parent(path(at))?;
                let ownership = lavafs::Ownership {
                    mode: 0o755,
                    uid: 0,
                    gid: 0,
                };
                fs.mkdir_at(dir, name, ownership).map(drop)
            }
            Step::Link(from, to) => fs.link(path(from), path(to)),
            Step::Unlink(at) => fs.unlink(path(at)),
            Step::RemoveDir(at) => fs.remove_dir(path(at)),
            Step::Rename(from, to) => fs.rename(path(from), path(to)),
            Step::Exchange(from, to) => {
                let (from_dir, from) = fs.resolve_parent(path(from))?;
                let (to_dir, to) = fs.resolve_parent(path(to))?;
                fs.rename_at(from_dir, from, to_dir, to, RenameMode::Exchange)
            }
        }
    }

    fn stage(&self, change: &mut Transaction<'_>) {
        match self {
            Step::Create(at) => change.create(at, TailPolicy::Pack),
            Step::CreateDir(at) => change.create_dir(at),
            Step::Link(from, to) => change.link(from, to),
            Step::Unlink(at) => change.unlink(at),
            Step::RemoveDir(at) => change.remove_dir(at),
            Step::Rename(from, to) => change.rename(from, to),
            Step::Exchange(from, to) => change.rename_as(from, to, RenameMode::Exchange),
        };
    }
}

/// The same random steps, one by one on one filesystem and as a transaction on another: what the
/// first says is what the second must come to, in memory and after a crash.
#[test]
fn a_transaction_is_its_steps_one_after_the_other() {
    let (mut done, mut refused) = (0, 0);
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (singly, together) = (mount(&device()), device());
        let fs = mount(&together);
        for round in 0..60 {
            let mut steps = Vec::new();
            let mut error = None;
            let wanted = rng.random_range(1..7);
            // Steps that succeed, and in one round of four one at the end that does not.
            let fails = rng.random_range(0..4) == 0;
            for _ in 0..200 {
                let step = Step::random(&mut rng);
                let outcome = step.alone(&singly);
                let ends = steps.len() == wanted;
                match outcome {
                    Ok(()) if !ends => steps.push(step),
                    Ok(()) => {
                        steps.push(step);
                        break;
                    }
                    Err(e) if ends && fails => {
                        steps.push(step);
                        error = Some(e);
                        break;
                    }
                    Err(_) => {}
                }
            }
            let what = format!("seed {seed} round {round} {steps:?}");
            let before = tree(&fs);
            let mut change = fs.transaction();
            steps.iter().for_each(|step| step.stage(&mut change));
            let outcome = change.commit();
            if let Some(error) = error {
                let said = outcome.expect_err(&what);
                let kind = |error: &Error| match error {
                    Error::Path { kind, .. } => *kind,
                    other => panic!("{what}: {other}"),
                };
                assert_eq!(kind(&said), kind(&error), "{what}");
                assert_eq!(tree(&fs), before, "{what}");
                steps.pop();
                let mut change = fs.transaction();
                steps.iter().for_each(|step| step.stage(&mut change));
                change.commit().expect(&what);
                refused += 1;
            } else {
                outcome.expect(&what);
                done += 1;
            }
            assert_eq!(tree(&fs), tree(&singly), "{what}");
            if round % 10 == 0 {
                let crashed = Arc::new(together.crash(round));
                assert_clean(&crashed, &what);
                assert_eq!(tree(&mount(&crashed)), tree(&singly), "{what}");
            }
        }
    }
    assert!(
        done > 500 && refused > 100,
        "{done} done, {refused} refused"
    );
}

/// Each of several threads moves its own token and a common one round, always together. Whoever
/// looks, at any time or after any crash, finds every token exactly once.
#[test]
fn concurrent_transactions_never_mix() {
    const THREADS: usize = 3;
    let device = device();
    let fs = mount(&device);
    for thread in 0..THREADS {
        create(&fs, &format!("/{thread}-here"));
    }
    create(&fs, "/shared-0");
    fs.commit().unwrap();
    device.record();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let fs = &fs;
            scope.spawn(move || {
                let (mut from, mut to) = ("here", "there");
                let mut moved = 0;
                while moved < 150 {
                    let shared = fs.list(Path::new("/")).unwrap();
                    let name = shared
                        .iter()
                        .map(|entry| entry.name.to_str().unwrap())
                        .find(|name| name.starts_with("shared-"))
                        .unwrap();
                    let turn: u32 = name["shared-".len()..].parse().unwrap();
                    let mut change = fs.transaction();
                    change
                        .rename(format!("/{name}"), format!("/shared-{}", turn + 1))
                        .rename(format!("/{thread}-{from}"), format!("/{thread}-{to}"));
                    match change.commit() {
                        Ok(()) => {
                            std::mem::swap(&mut from, &mut to);
                            moved += 1;
                        }
                        Err(error) => assert!(error.is_not_found(), "{error}"),
                    }
                }
            });
        }
    });
    let recording = device.take_recording();
    let turns = THREADS * 150;
    for at in 0..=recording.ops().len() {
        let crashed = Arc::new(recording.crash(at, at as u64));
        let tree = tree(&mount(&crashed));
        assert_eq!(tree.len(), THREADS + 1, "crash at {at}: {tree:?}");
        let shared = tree.keys().filter_map(|path| {
            let name = path.to_str().unwrap().strip_prefix("/shared-")?;
            name.parse::<usize>().ok()
        });
        let turn = shared.sum::<usize>();
        assert!(turn <= turns);
        // As many moves of own tokens as of the common one: the parities agree.
        let there = tree
            .keys()
            .filter(|path| path.to_str().unwrap().ends_with("-there"));
        assert_eq!(there.count() % 2, turn % 2, "crash at {at}");
    }
    drop(recording);
    assert_eq!(tree(&fs).len(), THREADS + 1);
}

#[test]
fn a_transaction_of_the_most_steps_fits_and_one_more_is_refused() {
    let device = device();
    let fs = mount(&device);
    let most = fs.transaction_steps_max().unwrap();
    assert!(most >= 32);
    let name = |round: usize, at: usize| format!("/{round}-{at:0200}");
    for round in 0..3 {
        let mut change = fs.transaction();
        for at in 0..most {
            change.create(name(round, at), TailPolicy::Pack);
        }
        if round == 0 {
            let mut over = fs.transaction();
            for at in 0..=most {
                over.create(name(9, at), TailPolicy::Pack);
            }
            let error = over.commit().unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{error}");
        }
        change.commit().unwrap();
        assert_eq!(tree(&fs).len(), (round + 1) * most);
    }
    let crashed = Arc::new(device.crash(1));
    assert_eq!(tree(&mount(&crashed)).len(), 3 * most);
    let mut change = fs.transaction();
    for at in 0..most {
        change.unlink(name(1, at));
    }
    change.commit().unwrap();
    assert_eq!(tree(&fs).len(), 2 * most);
}

#[test]
fn a_file_unlinked_in_a_transaction_while_open_stays_readable() {
    let device = device();
    let fs = mount(&device);
    let free = fs.space().free;
    create(&fs, "/log");
    let file = fs.open(Path::new("/log")).unwrap();
    file.append(&[7; 5000]).unwrap();
    file.fsync().unwrap();
    let mut change = fs.transaction();
    change
        .link("/log", "/log.old")
        .unlink("/log")
        .unlink("/log.old");
    change.commit().unwrap();
    assert!(tree(&fs).is_empty());
    let mut bytes = [0; 5000];
    assert_eq!(file.read_at(0, &mut bytes).unwrap(), 5000);
    assert_eq!(bytes, [7; 5000]);
    drop(file);
    fs.commit().unwrap();
    assert_eq!(fs.space().free, free);
    fs.unmount().unwrap();
    assert_clean(&device, "after the unmount");
}
