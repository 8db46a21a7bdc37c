//! `lava fs put` and `get` of trees, `label`, `mkfs -n --size`, manual pages and completions.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use common::{image, ok, program, run};

fn sh(line: &str) -> String {
    let output = Command::new("bash").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_tree_comes_back_as_it_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "128M");
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("a/b/c")).unwrap();
    fs::create_dir(source.join("empty")).unwrap();
    fs::write(source.join("a/one"), vec![1; 3_000_001]).unwrap();
    fs::write(source.join("a/b/none"), b"").unwrap();
    symlink("a/one", source.join("link")).unwrap();
    symlink("/no/where", source.join("a/dangling")).unwrap();
    fs::set_permissions(source.join("a/one"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(source.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    sh(&format!(
        "touch -d '2001-02-03 04:05:06.789' {0}/a/one {0}/a/b {0}/empty",
        source.display()
    ));
    let (i, copy) = (image.display(), dir.path().join("copy"));
    ok(&format!("lava fs put --fs {i} {} /tree", source.display()));
    ok(&format!("fsck.lavafs -n {i}"));
    ok(&format!("lava fs get --fs {i} /tree {}", copy.display()));
    sh(&format!(
        "diff -r --no-dereference {} {}",
        source.display(),
        copy.display()
    ));
    for name in ["a/one", "a/b", "empty", "a/b/none"] {
        let (before, after) = (
            fs::metadata(source.join(name)).unwrap(),
            fs::metadata(copy.join(name)).unwrap(),
        );
        assert_eq!(
            (before.mode(), before.mtime(), before.mtime_nsec()),
            (after.mode(), after.mtime(), after.mtime_nsec()),
            "{name}"
        );
    }
    // Nothing that is there is replaced.
    let again = run(&format!("lava fs put --fs {i} {} /tree", source.display()));
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    let again = run(&format!("lava fs get --fs {i} /tree {}", copy.display()));
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    // A single file, and what cannot be copied.
    ok(&format!(
        "lava fs put --fs {i} {}/a/one /one",
        source.display()
    ));
    assert_eq!(ok(&format!("lava fs cat --fs {i} /one")).len(), 3_000_001);
    sh(&format!("mkfifo {}/pipe", source.display()));
    let refused = run(&format!(
        "lava fs put --fs {i} {} /second",
        source.display()
    ));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("pipe cannot be copied") && said.lines().count() == 1,
        "{said}"
    );
    assert!(
        !run(&format!("lava fs stat --fs {i} /second"))
            .status
            .success()
    );
}

#[test]
fn a_label_is_shown_and_changed() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "16M");
    let label = |new: &str| ok(&format!("lava fs label --fs {} {new}", image.display()));
    assert_eq!(label(""), "\n");
    assert_eq!(label("first"), "");
    assert_eq!(label(""), "first\n");
    let long = run(&format!(
        "lava fs label --fs {} {}",
        image.display(),
        "x".repeat(65)
    ));
    assert_eq!(long.status.code(), Some(1));
    assert_eq!(label(""), "first\n");
    ok(&format!("fsck.lavafs -n {}", image.display()));
}

#[test]
fn a_dry_run_of_an_image_makes_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.img");
    let said = ok(&format!(
        "mkfs.lavafs -n --size 1T --json {}",
        path.display()
    ));
    let object: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(object["size"], 1_u64 << 40);
    assert_eq!(object["dry_run"], true);
    assert!(!path.exists());
    let small = run(&format!("mkfs.lavafs -n --size 64K {}", path.display()));
    assert_eq!(small.status.code(), Some(1));
}

#[test]
fn every_flag_of_the_help_is_in_the_manual_and_the_completions() {
    let dir = tempfile::tempdir().unwrap();
    ok(&format!("lava man {}", dir.path().display()));
    let page = |name: &str| {
        fs::read_to_string(dir.path().join(name))
            .unwrap()
            .replace('\\', "")
    };
    for (tool, name) in [
        ("lava", "lava-fs-put.1"),
        ("mkfs.lavafs", "mkfs.lavafs.8"),
        ("fsck.lavafs", "fsck.lavafs.8"),
        ("mount.lavafs", "mount.lavafs.8"),
    ] {
        let mut command = program(tool);
        if tool == "lava" {
            command.args(["fs", "put"]);
        }
        let help = String::from_utf8(command.arg("--help").output().unwrap().stdout).unwrap();
        let flags: Vec<&str> = help
            .split_whitespace()
            .filter(|word| word.starts_with("--"))
            .map(|word| word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()))
            .collect();
        assert!(flags.len() > 1, "{help}");
        let manual = page(name);
        let completions = ok(&format!("lava completions bash --program {tool}"));
        for flag in flags {
            assert!(manual.contains(flag), "{name} lacks {flag}");
            assert!(completions.contains(flag), "{tool} lacks {flag}");
        }
        let script = dir.path().join("script");
        fs::write(&script, &completions).unwrap();
        sh(&format!("bash -n {}", script.display()));
        for shell in ["zsh", "fish"] {
            assert!(ok(&format!("lava completions {shell} --program {tool}")).len() > 200);
        }
    }
    assert!(Path::new(&dir.path().join("lava-bench-kv.1")).exists());
    assert!(
        !dir.path().join("lava-demo-load.1").exists(),
        "it is hidden"
    );
}
