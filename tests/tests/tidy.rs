//! The style rules that a program can check: how files open, how long they are, where unsafe code
//! is, what the top folder holds, and that the formats' prose knows every magic on disk.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

/// Lines of a file, its unit tests aside; past it, the file stands in [`LONG`] with its reason.
const LINES_MAX: usize = 550;

/// Files that are longer, how long they may be, and why.
const LONG: [(&str, usize, &str); 9] = [
    (
        "fs/tests/conformance/mod.rs",
        600,
        "one list of what every filesystem promises",
    ),
    (
        "kv/log/src/tests.rs",
        760,
        "one list of what the log promises",
    ),
    (
        "kv/src/sstable/reader.rs",
        610,
        "one table, opened and read",
    ),
    (
        "kv/tests/collection_races.rs",
        600,
        "one list of what meets what",
    ),
    (
        "kv/tests/collection.rs",
        600,
        "one list of what collections promise",
    ),
    ("kv/tests/durability.rs", 690, "one list of what survives"),
    (
        "kv/tests/log_faults.rs",
        680,
        "one list of what a slow or failing log thread leaves",
    ),
    (
        "kv/tests/api.rs",
        660,
        "one list of what the handle promises",
    ),
    (
        "tools/tests/bench_kv.rs",
        590,
        "one list of what db_bench's scripts expect",
    ),
];

/// The only files with unsafe code.
const UNSAFE: [&str; 13] = [
    "fs/examples/mount_cost.rs",
    "fs/src/device/buf.rs",
    "fs/src/device/ring.rs",
    "fs/src/device/ring/begun.rs",
    "fs/src/device/sys.rs",
    "kv/src/cache/slot.rs",
    "kv/src/env/sched.rs",
    "kv/src/memtable/arena.rs",
    "kv/src/memtable/mod.rs",
    "kv/src/memtable/skiplist.rs",
    "kv/tests/memory.rs",
    "tools/src/bench/kv/allocator.rs",
    "tools/src/fuse/daemon.rs",
];

const CRATES: [&str; 4] = ["fs", "kv", "tools", "tests"];

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().unwrap()
}

/// Every Rust source: path from the root, and text.
fn sources() -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    for name in CRATES {
        let files = walkdir::WalkDir::new(root.join(name))
            .into_iter()
            .filter_entry(|entry| entry.file_name() != "target")
            .map(Result::unwrap)
            .filter(|entry| entry.path().extension().is_some_and(|ext| ext == "rs"));
        for file in files {
            let path = file.path().strip_prefix(&root).unwrap();
            let text = std::fs::read_to_string(file.path()).unwrap();
            found.push((path.display().to_string(), text));
        }
    }
    assert!(found.len() > 100, "{} sources", found.len());
    found
}

#[test]
fn every_file_opens_with_what_it_is() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|(path, text)| !text.starts_with("//! ") && !path.contains("/fuzz_targets/"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "{silent:#?}");
}

/// Lines before the unit tests.
fn lines(text: &str) -> usize {
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
    code.lines().count()
}

#[test]
fn files_are_short_or_say_why_not() {
    let limit = |path: &str| {
        let long = LONG.iter().find(|(long, ..)| *long == path);
        long.map_or(LINES_MAX, |(_, lines, _)| *lines)
    };
    let sources = sources();
    let too_long: Vec<String> = sources
        .iter()
        .filter(|(path, text)| lines(text) > limit(path))
        .map(|(path, text)| format!("{path}: {} lines", lines(text)))
        .collect();
    assert!(too_long.is_empty(), "{too_long:#?}");
    for (path, limit, reason) in LONG {
        let (_, text) = sources.iter().find(|(name, _)| name == path).expect(path);
        let present = lines(text);
        assert!(present > LINES_MAX, "{path} is short now: strike it off");
        assert!(
            limit - present < 60,
            "{path}: its limit of {limit} is too generous"
        );
        assert!(!reason.is_empty());
    }
}

#[test]
fn unsafe_code_is_in_the_listed_files_only() {
    let mut found: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| text.contains("unsafe {") || text.contains("unsafe impl"))
        .map(|(path, _)| path)
        .filter(|path| path != "tests/tests/tidy.rs")
        .collect();
    found.sort();
    assert_eq!(found, UNSAFE);
}

#[test]
fn the_top_folder_holds_the_crates_and_little_else() {
    let expected = [
        "CHANGELOG.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "clippy.toml",
        "fs",
        "kv",
        "rustfmt.toml",
        "target",
        "tests",
        "tools",
    ];
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = name.starts_with('.') || name.ends_with(".img");
        assert!(known || expected.contains(&&*name), "{name} at the top");
    }
}

#[test]
fn every_magic_is_in_the_prose_of_the_formats() {
    let formats: String = ["fs/FORMAT.md", "kv/FORMAT.md", "kv/log/FORMAT.md"]
        .iter()
        .map(|path| std::fs::read_to_string(root().join(path)).unwrap())
        .collect();
    let mut magics = 0;
    for (path, text) in sources() {
        for line in text.lines().filter(|line| line.contains("MAGIC")) {
            let Some((_, rest)) = line.split_once("b\"") else {
                continue;
            };
            let Some((magic, _)) = rest.split_once('"') else {
                continue;
            };
            magics += 1;
            let (_, place) = path.split_once("src/").unwrap_or(("", &path));
            let told = formats.contains(magic) || formats.contains(&format!("src/{place}"));
            assert!(told, "{path}: {magic} is in no FORMAT.md");
        }
    }
    assert!(magics >= 4, "{magics} magics found");
}
