//! The contract of `FileSystem` and `File` as tests over any implementation.
//!
//! Each function takes a filesystem in which the directory `/` is empty, and leaves it in any
//! state. [`run_all`] calls a function with a new filesystem for each.

use std::io::IoSlice;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lavafs::{
    CreateOptions, Error, FileKind, FileRef, FileSize, FileSystem, PathError, ReadRequest,
    TailPolicy,
};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

type Case = (&'static str, fn(&dyn FileSystem));

/// Every case, by name.
pub(crate) const CASES: &[Case] = &[
    ("appends_are_read_back", appends_are_read_back),
    (
        "handles_on_one_file_share_the_tail",
        handles_on_one_file_share_the_tail,
    ),
    ("random_appends_equal_a_model", random_appends_equal_a_model),
    (
        "files_reopen_with_their_bytes",
        files_reopen_with_their_bytes,
    ),
    (
        "sealed_files_end_on_the_write_unit",
        sealed_files_end_on_the_write_unit,
    ),
    (
        "generations_are_never_repeated",
        generations_are_never_repeated,
    ),
    (
        "truncate_cuts_and_appends_go_on",
        truncate_cuts_and_appends_go_on,
    ),
    (
        "settle_refuses_what_is_out_of_bounds",
        settle_refuses_what_is_out_of_bounds,
    ),
    ("names_follow_their_rules", names_follow_their_rules),
    ("paths_cannot_leave_the_root", paths_cannot_leave_the_root),
    ("rename_replaces_atomically", rename_replaces_atomically),
    ("links_share_one_file", links_share_one_file),
    (
        "unlinked_files_live_while_open",
        unlinked_files_live_while_open,
    ),
    ("locks_exclude_each_other", locks_exclude_each_other),
    (
        "batches_read_what_single_reads_do",
        batches_read_what_single_reads_do,
    ),
    (
        "concurrent_appends_are_whole_and_readable",
        concurrent_appends_are_whole_and_readable,
    ),
    (
        "counters_count_what_is_synced",
        counters_count_what_is_synced,
    ),
];

/// Runs every case, each on a filesystem of its own.
pub(crate) fn run_all<G>(mut make: impl FnMut() -> (Box<dyn FileSystem>, G)) {
    for (name, case) in CASES {
        eprintln!("conformance: {name}");
        let (fs, _guard) = make();
        case(&*fs);
    }
}

fn path(text: &str) -> &Path {
    Path::new(text)
}

fn create(fs: &dyn FileSystem, name: &str) -> FileRef {
    fs.create(path(name), &CreateOptions::default()).unwrap()
}

fn contents(file: &FileRef) -> Vec<u8> {
    let FileSize::Exact(size) = file.size() else {
        panic!("a size is exact in the process that appended");
    };
    // One byte more than there is: the read must stop by itself.
    let mut bytes = vec![0xee; size as usize + 1];
    let read = file.read_at(0, &mut bytes).unwrap();
    bytes.truncate(read);
    assert_eq!(read as u64, size);
    bytes
}

fn noise(rng: &mut StdRng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill_bytes(&mut bytes);
    bytes
}

#[track_caller]
fn assert_path_error<T: std::fmt::Debug>(result: lavafs::Result<T>, expected: PathError) {
    match result {
        Err(Error::Path { kind, .. }) if kind == expected => {}
        other => panic!("expected {expected:?}, got {other:?}"),
    }
}

fn appends_are_read_back(fs: &dyn FileSystem) {
    let file = create(fs, "/a");
    assert_eq!(file.size(), FileSize::Exact(0));
    assert_eq!(file.append(b"hello").unwrap(), 0);
    let parts = [
        IoSlice::new(b", "),
        IoSlice::new(b""),
        IoSlice::new(b"world"),
    ];
    assert_eq!(file.append_vectored(&parts).unwrap(), 5);
    assert_eq!(file.append(b"").unwrap(), 12);
    assert_eq!(contents(&file), b"hello, world");
    file.fdatasync().unwrap();
    assert_eq!(contents(&file), b"hello, world");
    let mut middle = [0; 4];
    assert_eq!(file.read_at(3, &mut middle).unwrap(), 4);
    assert_eq!(&middle, b"lo, ");
    assert_eq!(file.read_at(10, &mut middle).unwrap(), 2);
    assert_eq!(file.read_at(12, &mut middle).unwrap(), 0);
    assert_eq!(file.read_at(u64::MAX, &mut middle).unwrap(), 0);
    assert_eq!(file.read_unverified(3, &mut middle).unwrap(), 4);
}

fn handles_on_one_file_share_the_tail(fs: &dyn FileSystem) {
    let writer = create(fs, "/a");
    writer.append(b"unsynced").unwrap();
    let reader = fs.open(path("/a")).unwrap();
    assert_eq!(contents(&reader), b"unsynced");
    assert_eq!(reader.append(b" both").unwrap(), 8);
    assert_eq!(contents(&writer), b"unsynced both");
    assert_eq!(fs.metadata(path("/a")).unwrap().size, FileSize::Exact(13));
    assert_eq!(reader.generation(), writer.generation());
}

fn random_appends_equal_a_model(fs: &dyn FileSystem) {
    for seed in 0..4 {
        eprintln!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let name = format!("/file{seed}");
        let mut file = create(fs, &name);
        let mut model = Vec::new();
        for _ in 0..200 {
            match rng.random_range(0..20) {
                0..10 => {
                    let largest = *[1, 512, 4096, 10_000, 400_000]
                        .get(rng.random_range(0..5))
                        .unwrap();
                    let len = rng.random_range(0..=largest);
                    let bytes = noise(&mut rng, len);
                    assert_eq!(file.append(&bytes).unwrap(), model.len() as u64);
                    model.extend_from_slice(&bytes);
                }
                10..12 => file.fdatasync().unwrap(),
                12 => file.fsync().unwrap(),
                13 => {
                    file.fsync().unwrap();
                    drop(file);
                    file = fs.open(path(&name)).unwrap();
                }
                14 => {
                    let size = rng.random_range(0..=model.len());
                    file.truncate(size as u64).unwrap();
                    model.truncate(size);
                }
                _ => {
                    let offset = rng.random_range(0..=model.len() + 10);
                    let mut bytes = vec![0; rng.random_range(0..20_000)];
                    let read = file.read_at(offset as u64, &mut bytes).unwrap();
                    let expected = model.get(offset..).unwrap_or_default();
                    assert_eq!(read, expected.len().min(bytes.len()));
                    assert!(
                        bytes[..read] == expected[..read],
                        "read at {offset} differs"
                    );
                }
            }
            assert_eq!(file.size(), FileSize::Exact(model.len() as u64));
        }
        assert!(contents(&file) == model, "contents differ");
    }
}

fn files_reopen_with_their_bytes(fs: &dyn FileSystem) {
    let mut rng = StdRng::seed_from_u64(7);
    for len in [0, 1, 511, 512, 4095, 4096, 4097, 300_000] {
        let name = format!("/len{len}");
        let bytes = noise(&mut rng, len);
        let options = CreateOptions {
            expected_size: 1 << 20,
            ..CreateOptions::default()
        };
        let file = fs.create(path(&name), &options).unwrap();
        file.append(&bytes).unwrap();
        file.fsync().unwrap();
        let generation = file.generation();
        drop(file);
        assert_eq!(
            fs.metadata(path(&name)).unwrap().size,
            FileSize::Exact(len as u64)
        );
        let file = fs.open(path(&name)).unwrap();
        assert!(contents(&file) == bytes);
        assert_eq!(file.generation(), generation);
        file.append(b"more").unwrap();
        file.fdatasync().unwrap();
        assert!(contents(&file) == [&bytes[..], b"more"].concat());
    }
}

fn sealed_files_end_on_the_write_unit(fs: &dyn FileSystem) {
    let unit = fs.write_unit();
    assert!(unit.is_power_of_two() && (512..=4096).contains(&unit));
    let options = CreateOptions {
        tail: TailPolicy::Seal,
        ..CreateOptions::default()
    };
    let file = fs.create(path("/sealed"), &options).unwrap();
    assert_eq!(file.append(b"one").unwrap(), 0);
    file.fdatasync().unwrap();
    assert_eq!(file.size(), FileSize::Exact(unit));
    file.fdatasync().unwrap();
    assert_eq!(file.append(b"two").unwrap(), unit);
    file.fsync().unwrap();
    assert_eq!(file.size(), FileSize::Exact(2 * unit));
    let mut expected = vec![0; 2 * unit as usize];
    expected[..3].copy_from_slice(b"one");
    expected[unit as usize..unit as usize + 3].copy_from_slice(b"two");
    assert_eq!(contents(&file), expected);
    drop(file);
    let file = fs.open(path("/sealed")).unwrap();
    assert_eq!(file.append(b"three").unwrap(), 2 * unit);
    file.fsync().unwrap();
    assert_eq!(
        file.size(),
        FileSize::Exact(3 * unit),
        "the policy is kept with the file"
    );
}

fn generations_are_never_repeated(fs: &dyn FileSystem) {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..200 {
        // Creating and removing one name at full speed reuses inode numbers within a clock tick.
        let file = create(fs, "/again");
        assert!(seen.insert(file.generation()), "repeated by create");
        fs.unlink(path("/again")).unwrap();
    }
    let file = create(fs, "/cut");
    file.append(b"0123456789").unwrap();
    assert!(seen.insert(file.generation()));
    file.truncate(10).unwrap();
    let before = file.generation();
    assert!(
        !seen.insert(before),
        "a cut to the present size changes nothing"
    );
    file.truncate(5).unwrap();
    assert!(seen.insert(file.generation()), "repeated by truncate");
    let cut = file.generation();
    file.fsync().unwrap();
    drop(file);
    assert_eq!(fs.open(path("/cut")).unwrap().generation(), cut);
}

fn truncate_cuts_and_appends_go_on(fs: &dyn FileSystem) {
    let mut rng = StdRng::seed_from_u64(3);
    let bytes = noise(&mut rng, 700_001);
    for (at, synced) in [
        (0, true),
        (1, false),
        (4096, true),
        (300_123, false),
        (300_123, true),
    ] {
        let name = format!("/cut{at}{synced}");
        let file = create(fs, &name);
        file.append(&bytes).unwrap();
        if synced {
            file.fsync().unwrap();
        }
        file.truncate(at).unwrap();
        assert!(contents(&file) == bytes[..at as usize]);
        assert_eq!(file.append(b"after").unwrap(), at);
        file.fsync().unwrap();
        let expected = [&bytes[..at as usize], b"after"].concat();
        assert!(contents(&file) == expected);
        drop(file);
        assert!(contents(&fs.open(path(&name)).unwrap()) == expected);
    }
    let file = create(fs, "/short");
    assert!(matches!(file.truncate(1), Err(Error::Invalid { .. })));
}

fn settle_refuses_what_is_out_of_bounds(fs: &dyn FileSystem) {
    let file = create(fs, "/a");
    file.append(b"12345").unwrap();
    file.settle(5).unwrap();
    assert!(matches!(file.settle(6), Err(Error::Invalid { .. })));
    assert_eq!(file.size(), FileSize::Exact(5));
}

fn names_follow_their_rules(fs: &dyn FileSystem) {
    assert_path_error(fs.open(path("/none")), PathError::NotFound);
    assert_path_error(fs.metadata(path("/none")), PathError::NotFound);
    assert_path_error(fs.unlink(path("/none")), PathError::NotFound);
    assert_path_error(
        fs.rename(path("/none"), path("/other")),
        PathError::NotFound,
    );
    assert_path_error(fs.link(path("/none"), path("/other")), PathError::NotFound);
    assert_path_error(fs.list(path("/none")), PathError::NotFound);
    assert_path_error(fs.sync_dir(path("/none")), PathError::NotFound);
    let options = CreateOptions::default();
    assert_path_error(fs.create(path("/none/file"), &options), PathError::NotFound);

    fs.create_dir_all(path("/dir/sub")).unwrap();
    fs.create_dir_all(path("dir/sub")).unwrap();
    create(fs, "/dir/b").append(b"x").unwrap();
    create(fs, "dir/a");
    assert_path_error(
        fs.create(path("/dir/a"), &options),
        PathError::AlreadyExists,
    );
    assert_path_error(
        fs.create(path("/dir/sub"), &options),
        PathError::AlreadyExists,
    );
    assert_path_error(fs.open(path("/dir/sub")), PathError::IsADirectory);
    assert_path_error(fs.unlink(path("/dir/sub")), PathError::IsADirectory);
    assert_path_error(fs.remove_dir(path("/dir")), PathError::NotEmpty);
    assert_path_error(fs.remove_dir(path("/dir/a")), PathError::NotADirectory);
    assert_path_error(fs.list(path("/dir/a")), PathError::NotADirectory);
    assert_path_error(
        fs.create(path("/dir/a/x"), &options),
        PathError::NotADirectory,
    );
    assert_path_error(fs.create_dir_all(path("/dir/a")), PathError::NotADirectory);
    assert_path_error(
        fs.rename(path("/dir/a"), path("/dir/sub")),
        PathError::IsADirectory,
    );
    assert_path_error(
        fs.rename(path("/dir"), path("/dir/sub/x")),
        PathError::IntoItself,
    );
    assert_path_error(
        fs.link(path("/dir/sub"), path("/x")),
        PathError::IsADirectory,
    );
    let long = format!("/{}", "n".repeat(256));
    assert_path_error(fs.create(path(&long), &options), PathError::NameTooLong);

    let entries = fs.list(path("/dir")).unwrap();
    let names: Vec<_> = entries
        .iter()
        .map(|entry| entry.name.to_str().unwrap())
        .collect();
    assert_eq!(names, ["a", "b", "sub"]);
    assert_eq!(entries[0].kind, FileKind::File);
    assert_eq!(entries[2].kind, FileKind::Directory);
    let stat = fs.metadata(path("/dir/b")).unwrap();
    assert_eq!((stat.kind, stat.links), (FileKind::File, 1));
    assert!(stat.modified_ns > 0);
    assert_eq!(fs.metadata(path("/")).unwrap().kind, FileKind::Directory);
    fs.sync_dir(path("/dir")).unwrap();
    fs.unlink(path("/dir/a")).unwrap();
    fs.unlink(path("/dir/b")).unwrap();
    fs.remove_dir(path("/dir/sub")).unwrap();
    fs.remove_dir(path("/dir")).unwrap();
    fs.sync_dir(path("/")).unwrap();
    assert!(fs.list(path("/")).unwrap().is_empty());
}

fn paths_cannot_leave_the_root(fs: &dyn FileSystem) {
    let options = CreateOptions::default();
    for outside in ["/../x", "..", "a/../../x"] {
        assert_path_error(fs.create(path(outside), &options), PathError::InvalidName);
        assert_path_error(fs.open(path(outside)), PathError::InvalidName);
        assert_path_error(fs.unlink(path(outside)), PathError::InvalidName);
        assert_path_error(fs.create_dir_all(path(outside)), PathError::InvalidName);
    }
    assert_path_error(fs.create(path("/"), &options), PathError::InvalidName);
    assert_path_error(fs.create(path("/nul\0"), &options), PathError::InvalidName);
}

fn rename_replaces_atomically(fs: &dyn FileSystem) {
    let old = create(fs, "/current");
    old.append(b"old").unwrap();
    let new = create(fs, "/next");
    new.append(b"new").unwrap();
    new.fsync().unwrap();
    fs.rename(path("/next"), path("/current")).unwrap();
    assert_eq!(contents(&fs.open(path("/current")).unwrap()), b"new");
    assert_eq!(
        contents(&old),
        b"old",
        "an open handle keeps the replaced file"
    );
    assert_path_error(fs.metadata(path("/next")), PathError::NotFound);
    new.append(b"er").unwrap();
    new.fdatasync().unwrap();
    assert_eq!(contents(&fs.open(path("/current")).unwrap()), b"newer");
    fs.create_dir_all(path("/a/b")).unwrap();
    create(fs, "/a/b/file");
    fs.rename(path("/a/b"), path("/c")).unwrap();
    assert_eq!(fs.list(path("/c")).unwrap().len(), 1);
    fs.sync_dir(path("/")).unwrap();
}

fn links_share_one_file(fs: &dyn FileSystem) {
    let file = create(fs, "/one");
    file.append(b"shared").unwrap();
    fs.link(path("/one"), path("/two")).unwrap();
    assert_path_error(
        fs.link(path("/one"), path("/two")),
        PathError::AlreadyExists,
    );
    assert_eq!(contents(&fs.open(path("/two")).unwrap()), b"shared");
    let (one, two) = (
        fs.metadata(path("/one")).unwrap(),
        fs.metadata(path("/two")).unwrap(),
    );
    assert_eq!((one.ino, one.links), (two.ino, 2));
    fs.unlink(path("/one")).unwrap();
    assert_eq!(fs.metadata(path("/two")).unwrap().links, 1);
    drop(file);
    assert_eq!(contents(&fs.open(path("/two")).unwrap()), b"shared");
}

fn unlinked_files_live_while_open(fs: &dyn FileSystem) {
    let file = create(fs, "/gone");
    file.append(b"still").unwrap();
    fs.unlink(path("/gone")).unwrap();
    let other = create(fs, "/gone");
    other.append(b"another").unwrap();
    file.append(b" here").unwrap();
    file.fdatasync().unwrap();
    assert_eq!(contents(&file), b"still here");
    assert_eq!(contents(&other), b"another");
    assert_ne!(file.generation(), other.generation());
}

fn locks_exclude_each_other(fs: &dyn FileSystem) {
    let lock = fs.lock(path("/LOCK")).unwrap();
    assert_path_error(fs.lock(path("/LOCK")), PathError::Locked);
    let other = fs.lock(path("/OTHER")).unwrap();
    drop(lock);
    let lock = fs.lock(path("/LOCK")).unwrap();
    drop((lock, other));
    assert!(fs.metadata(path("/LOCK")).is_ok());
}

fn batches_read_what_single_reads_do(fs: &dyn FileSystem) {
    let mut rng = StdRng::seed_from_u64(11);
    let bytes: Vec<Vec<u8>> = (0..3).map(|_| noise(&mut rng, 100_000)).collect();
    let files: Vec<FileRef> = (0..3).map(|i| create(fs, &format!("/f{i}"))).collect();
    for (file, bytes) in files.iter().zip(&bytes) {
        file.append(&bytes[..60_000]).unwrap();
        file.fdatasync().unwrap();
        file.append(&bytes[60_000..]).unwrap();
    }
    let places: Vec<(usize, usize, usize)> = (0..100)
        .map(|_| {
            (
                rng.random_range(0..3),
                rng.random_range(0..110_000),
                rng.random_range(0..9000),
            )
        })
        .collect();
    let mut buffers: Vec<Vec<u8>> = places.iter().map(|&(_, _, len)| vec![0; len]).collect();
    let mut requests: Vec<ReadRequest<'_>> = places
        .iter()
        .zip(&mut buffers)
        .map(|(&(file, offset, _), buf)| ReadRequest {
            file: &files[file],
            offset: offset as u64,
            buf,
            read: usize::MAX,
        })
        .collect();
    fs.read_batch(&mut requests, 8).unwrap();
    for (request, &(file, offset, _)) in requests.iter().zip(&places) {
        let expected = bytes[file].get(offset..).unwrap_or_default();
        assert_eq!(request.read, expected.len().min(request.buf.len()));
        assert!(request.buf[..request.read] == expected[..request.read]);
    }
}

fn concurrent_appends_are_whole_and_readable(fs: &dyn FileSystem) {
    const RECORD: usize = 777;
    let file = create(fs, "/shared");
    let done = AtomicBool::new(false);
    let checked = AtomicU64::new(0);
    // Every record is one byte value repeated, so a torn or mixed one shows.
    let whole = |record: &[u8]| record.iter().all(|&byte| byte == record[0] && byte != 0);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (1..=4u8)
            .map(|id| {
                let file = &file;
                scope.spawn(move || {
                    for i in 0..150 {
                        let at = file.append(&[id; RECORD]).unwrap();
                        assert!(at.is_multiple_of(RECORD as u64));
                        if i % 10 == 0 {
                            file.fdatasync().unwrap();
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut rng = StdRng::seed_from_u64(5);
            let mut record = [0; RECORD];
            while !done.load(Ordering::Acquire) || checked.load(Ordering::Relaxed) == 0 {
                let records = file.size().lower() / RECORD as u64;
                if records > 0 {
                    let at = rng.random_range(0..records) * RECORD as u64;
                    assert_eq!(file.read_at(at, &mut record).unwrap(), RECORD);
                    assert!(whole(&record), "a completed append is seen whole");
                    checked.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Release);
    });
    let bytes = contents(&file);
    assert_eq!(bytes.len(), 600 * RECORD);
    assert!(bytes.chunks(RECORD).all(whole));
}

fn counters_count_what_is_synced(fs: &dyn FileSystem) {
    let file = create(fs, "/a");
    file.append(&[1; 4096]).unwrap();
    file.fdatasync().unwrap();
    let before = fs.counters();
    for _ in 0..10 {
        file.append(&[2; 4096]).unwrap();
        file.fdatasync().unwrap();
    }
    let sent = fs.counters() - before;
    assert_eq!(
        sent.write_bytes, 40_960,
        "a block-sized append writes its bytes only"
    );
    assert_eq!((sent.write_ios, sent.flushes), (10, 10));
    assert_eq!(sent.read_bytes, 0);
    let space = fs.space();
    assert!(space.free > 0 && space.free <= space.total);
}
