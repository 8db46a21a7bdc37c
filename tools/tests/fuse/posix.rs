//! POSIX, call by call: the scripts of `posix/` do the same on a mount and on an ext4, and print what comes of
//! each call. Where the two differ, the difference is in the table here, with its reason.

use std::path::Path;
use std::process::Command;

use crate::fixture::{Fixture, MIB, run};
use crate::foreign::have;

/// Lines that differ, as (case, here, on ext4).
const DIFFERENCES: [(&str, &str, &str); 12] = [
    // Files have a name from the beginning.
    ("open/temporary file", "ENOTSUP", "ok"),
    // Access times are not kept; the time of the last change of contents is shown.
    ("times/set access", "1000000003000000004", "1000000002"),
    // Files, directories and symbolic links are all there is.
    ("special/pipe", "EPERM", "ok"),
    ("special/device", "EPERM", "ok"),
    ("special/socket", "EPERM", "ok"),
    // Extended attributes are those of users.
    ("xattr/trusted", "ENOTSUP", "ok"),
    // Append-only: no byte is written twice, and none goes but from the end.
    ("space/fallocate longer", "EINVAL", "20000"),
    ("space/punch a hole", "ENOTSUP", "0"),
    ("space/zero a range", "ENOTSUP", "0"),
    ("space/collapse a range", "ENOTSUP", "0"),
    ("io/overwrite", "ENOTSUP", "2"),
    ("mmap/shared for writing", "ENODEV", "109"),
];

fn results(dir: &Path) -> Vec<(String, String)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuse/posix/main.py");
    let output = run(
        "python3",
        ["-B".as_ref(), script.as_os_str(), dir.as_os_str()],
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| line.split_once(": ").unwrap());
    lines
        .map(|(case, result)| (case.to_owned(), result.to_owned()))
        .collect()
}

/// An ext4 on a loop device, unmounted when dropped.
struct Ext4 {
    root: tempfile::TempDir,
}

impl Ext4 {
    /// `None` where the machine cannot have one.
    fn new() -> Option<Ext4> {
        let root = tempfile::tempdir().unwrap();
        let image = root.path().join("img");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(64 * MIB)
            .unwrap();
        std::fs::create_dir(root.path().join("mnt")).unwrap();
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-b", "4096"])
            .arg(&image)
            .status();
        if !made.is_ok_and(|status| status.success()) {
            return None;
        }
        let mounted = Command::new("mount")
            .args(["-o", "loop"])
            .args([&image, &root.path().join("mnt")])
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Ext4 { root })
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.root.path().join("mnt"))
            .status();
    }
}

#[test]
fn every_call_has_the_result_it_has_on_ext4_but_those_listed() {
    if !have("python3") {
        return;
    }
    let Some(mut fixture) = Fixture::new(256 * MIB) else {
        return;
    };
    fixture.mount("allow_other");
    let Some(oracle) = Ext4::new() else {
        eprintln!("skipped: no ext4 to compare with");
        return;
    };
    // Root's temporary directories admit nobody else.
    for dir in [fixture.root.path(), oracle.root.path()] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir, open).unwrap();
    }
    let (ours, theirs) = (fixture.path("posix"), oracle.root.path().join("mnt/posix"));
    std::fs::create_dir(&ours).unwrap();
    std::fs::create_dir(&theirs).unwrap();
    let (ours, theirs) = (results(&ours), results(&theirs));
    assert!(ours.len() > 250, "{} cases", ours.len());
    assert_eq!(ours.len(), theirs.len());
    let mut listed = DIFFERENCES.to_vec();
    let mut unexpected = Vec::new();
    for ((case, here), (same, there)) in ours.iter().zip(&theirs) {
        assert_eq!(case, same);
        let known = listed.iter().position(|(name, ..)| name == case);
        let expected = match known {
            Some(index) => {
                let (_, us, them) = listed.remove(index);
                (here.as_str(), there.as_str()) == (us, them)
            }
            None => here == there,
        };
        if !expected {
            unexpected.push(format!("{case}: {here}, on ext4 {there}"));
        }
    }
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    assert!(listed.is_empty(), "no such cases: {listed:?}");
    fixture.umount();
    fixture.assert_clean();
}
