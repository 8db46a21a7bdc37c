//! Whole commands on a whole system: the demo, the benches, the mount.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{PATIENCE, image, ok, run};

/// The last JSON object of some output.
fn object(output: &str) -> serde_json::Value {
    serde_json::from_str(output.lines().last().unwrap()).unwrap()
}

#[test]
fn the_demo_ends_with_every_byte_equal() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("demo.img").display().to_string();
    let output = ok(&format!("lava demo --data ../kv --image {image}"));
    assert!(output.contains("fsck after the crash: clean"), "{output}");
    assert!(
        output.lines().last().unwrap().contains("every byte of"),
        "{output}"
    );
    ok(&format!("fsck.lavafs -n {image}"));
    let lib = ok(&format!(
        "lava kv get --fs {image} --db /demo/db src/lib.rs"
    ));
    assert_eq!(lib, fs::read_to_string("../kv/src/lib.rs").unwrap());
    ok(&format!("lava log verify --fs {image} --log /demo/log"));
}

#[test]
fn a_synced_4k_append_is_one_block_and_one_flush() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "64M");
    let output = ok(&format!(
        "lava bench fs --fs {} --workload append --bs 4K --file-size 16M --sync fdatasync --json",
        image.display()
    ));
    let report = object(&output);
    let (ops, device) = (report["ops"].as_u64().unwrap(), &report["device"]);
    assert_eq!(ops, 4096);
    // Beside the appends: the file's first extents are journaled, doubling from 1 MiB.
    let journal = 16;
    assert!(
        device["flushes"].as_u64().unwrap() <= ops + journal,
        "{report}"
    );
    let blocks = device["write_bytes"].as_u64().unwrap() / 4096;
    assert!((ops..=ops + journal).contains(&blocks), "{report}");
}

#[test]
fn the_kv_bench_prints_an_object_for_each_workload() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "256M");
    let output = ok(&format!(
        "lava bench kv --fs {} --db /db --num=2000 --reads 500 --threads=2 --json \
         --benchmarks fillrandom,readrandom,seekrandom,compact,fillsync",
        image.display()
    ));
    let names: Vec<String> = output
        .lines()
        .map(|line| object(line)["workload"].as_str().unwrap().to_string())
        .collect();
    assert_eq!(
        names,
        [
            "fillrandom",
            "readrandom",
            "seekrandom",
            "compact",
            "fillsync"
        ]
    );
    let read = object(output.lines().nth(1).unwrap());
    assert_eq!(read["ops"], 1000, "each thread reads 500 keys");
    assert!(read["found"].as_u64().unwrap() > 0);
    ok(&format!("fsck.lavafs -n {}", image.display()));
}

#[test]
fn the_log_bench_counts_every_record() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "1G");
    let output = ok(&format!(
        "lava bench log --fs {} --log /log --logs 8 --writers 3 --record 1000 --records 100 \
         --sync true --json",
        image.display()
    ));
    let report = object(&output);
    assert_eq!(
        (&report["ops"], &report["user_bytes"]),
        (&100.into(), &100_000.into())
    );
    ok(&format!(
        "lava log verify --fs {} --log /log",
        image.display()
    ));
}

#[test]
fn what_dump_prints_load_reads() {
    let dir = tempfile::tempdir().unwrap();
    let target = format!("host:{}", dir.path().display());
    ok(&format!("lava kv load --fs {target} --db /a src"));
    for format in ["tsv", "jsonl"] {
        let dump = ok(&format!(
            "lava kv dump --fs {target} --db /a --format {format}"
        ));
        let file = dir.path().join(format!("dump.{format}"));
        fs::write(&file, &dump).unwrap();
        ok(&format!(
            "lava kv load --fs {target} --db /{format} {}",
            file.display()
        ));
        let again = ok(&format!(
            "lava kv dump --fs {target} --db /{format} --format {format}"
        ));
        assert_eq!(again, dump);
    }
}

/// Unmounts when it is dropped, so that a failed assertion leaves no mount behind.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let tool = if nix::unistd::geteuid().is_root() {
            ("umount", &[][..])
        } else {
            ("fusermount3", &["-u"][..])
        };
        let status = std::process::Command::new(tool.0)
            .args(tool.1)
            .arg(self.0)
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "cannot unmount"
        );
    }
}

#[test]
fn a_mount_takes_appends_and_refuses_overwrites() {
    if !Path::new("/dev/fuse").exists() {
        eprintln!("no /dev/fuse on this machine: nothing to test");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "64M").display().to_string();
    let at = dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let mount = format!("mount.lavafs {image} {}", at.display());
    ok(&mount);
    {
        let _mounted = Mounted(&at);
        fs::create_dir(at.join("d")).unwrap();
        fs::write(at.join("d/a"), "one").unwrap();
        let mut a = fs::OpenOptions::new()
            .append(true)
            .open(at.join("d/a"))
            .unwrap();
        a.write_all(b" two").unwrap();
        a.sync_all().unwrap();
        let in_place = fs::OpenOptions::new()
            .write(true)
            .open(at.join("d/a"))
            .unwrap();
        let refused = std::os::unix::fs::FileExt::write_at(&in_place, b"X", 0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(nix::libc::EOPNOTSUPP));
        fs::rename(at.join("d/a"), at.join("b")).unwrap();
        fs::hard_link(at.join("b"), at.join("c")).unwrap();
        fs::remove_file(at.join("b")).unwrap();
        assert_eq!(fs::read(at.join("c")).unwrap(), b"one two");
        // Unlinked while open: readable until the last close.
        let open = fs::File::open(at.join("c")).unwrap();
        fs::remove_file(at.join("c")).unwrap();
        assert_eq!(std::io::read_to_string(&open).unwrap(), "one two");
        fs::write(at.join("kept"), vec![9; 100_000]).unwrap();
        let second = run(&format!("lava fs mkdir --fs {image} /x"));
        assert!(!second.status.success(), "the mount owns the device");
    }
    // The process that served the mount finishes just after; a second mount waits for it, though not for
    // ever.
    let began = Instant::now();
    let mut tried = Instant::now();
    while !run(&mount).status.success() {
        assert!(tried.elapsed() > Duration::from_secs(2), "it did not wait");
        assert!(began.elapsed() < PATIENCE, "the image was never free");
        tried = Instant::now();
    }
    {
        let _mounted = Mounted(&at);
        assert_eq!(fs::read(at.join("kept")).unwrap(), vec![9; 100_000]);
        let names: Vec<_> = fs::read_dir(&at)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
    let began = Instant::now();
    while !run(&format!("fsck.lavafs -y {image}")).status.success() {
        assert!(
            began.elapsed() < PATIENCE,
            "fsck never found the image free and clean"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_image_that_grew_is_expanded_and_shows_its_inside() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), "64M");
    let path = image.display();
    ok(&format!("lava fs put --fs {path} ../kv/src/lib.rs /lib.rs"));
    assert!(ok(&format!("lava fs expand --fs {path}")).contains("already"));
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(128 << 20).unwrap();
    let added = object(&ok(&format!("lava fs expand --fs {path} --json")));
    assert!(added["added_bytes"].as_u64().unwrap() > 60 << 20, "{added}");
    ok(&format!("fsck.lavafs -n {path}"));
    let frag = object(&ok(&format!("lava fs frag --fs {path} --json")));
    assert_eq!(frag["files"], 1, "{frag}");
    assert!(frag["free_blocks"].as_u64().unwrap() > 30_000, "{frag}");
    let dump = ok(&format!("lava fs dump --fs {path}"));
    assert!(dump.contains("superblock"), "{dump}");
}
