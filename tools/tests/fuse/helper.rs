//! `mount -t lavafs`, fstab, `fsck -t lavafs` and `mkfs -t lavafs`: the helpers as mount(8), fsck(8) and
//! mkfs(8) run them. They look in /sbin, so each test works in a mount namespace of its own, in which
//! /usr/sbin has the helpers too; nothing outside is touched.

use std::path::Path;
use std::process::Command;

use crate::fixture::{Fixture, MIB};

/// What the script sees: `$I` the image, `$M` an empty directory, `$T` a directory for files.
const PRELUDE: &str = "mkdir $T/helpers
ln -s $MOUNT $T/helpers/mount.lavafs; ln -s $FSCK $T/helpers/fsck.lavafs; ln -s $MKFS $T/helpers/mkfs.lavafs
sbin=$(readlink -f /sbin)
mount -t overlay overlay -o lowerdir=$T/helpers:$sbin $sbin 2>/dev/null || exit 77
# Not the exit code alone: the daemon has let go of the image when fsck may have it.
gone() { for i in $(seq 1000); do fsck.lavafs -n $I >/dev/null 2>&1 && return; sleep 0.05; done; return 1; }
";

/// Runs the script in a namespace with the helpers; `None` where that cannot be had.
fn in_namespace(fixture: &Fixture, script: &str) -> Option<String> {
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private", "bash", "-ec"])
        .arg(format!("{PRELUDE}{script}"))
        .env("MOUNT", env!("CARGO_BIN_EXE_mount-lavafs"))
        .env("FSCK", env!("CARGO_BIN_EXE_fsck-lavafs"))
        .env("MKFS", env!("CARGO_BIN_EXE_mkfs-lavafs"))
        .env("T", fixture.root.path())
        .env("I", fixture.image())
        .env("M", fixture.dir())
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    if output.status.code() == Some(77) {
        eprintln!("skipped: no overlay in a mount namespace, or no loop device");
        return None;
    }
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{script}\n{out}\n{err}");
    Some(out)
}

#[test]
fn mount_and_fstab_work_through_the_helper() {
    let Some(fixture) = Fixture::new(64 * MIB) else {
        return;
    };
    let script = "
mount -t lavafs $I $M; grep -q \" $M fuse.lavafs rw,\" /proc/self/mounts
echo one >$M/f; cat $M/f; umount $M; gone
mount -t lavafs -o ro,noexec,nosuid $I $M; grep -q \" $M fuse.lavafs ro,nosuid,\" /proc/self/mounts
cat $M/f; ! touch $M/g 2>/dev/null; umount $M; gone
echo \"$I $M lavafs defaults,noauto,nofail,x-systemd.automount,commit=1 0 2\" >$T/fstab
mount --bind $T/fstab /etc/fstab
mount $M; echo two >>$M/f; umount $M; gone
mount -o sizefree $I; cat $M/f; umount $M; gone
mount -a; mount $M; mount -v -t lavafs $I $M 2>$T/err && exit 1; grep -q 'in use' $T/err; umount $M; gone
echo end";
    let Some(out) = in_namespace(&fixture, script) else {
        return;
    };
    assert_eq!(out, "one\none\none\ntwo\nend\n");
    fixture.assert_clean();
}

#[test]
fn fsck_and_mkfs_keep_the_conventions() {
    let Some(fixture) = Fixture::new(64 * MIB) else {
        return;
    };
    let script = "
L=$(losetup -f --show $I) || exit 77; trap 'losetup -d $L' EXIT
fsck -t lavafs $L >/dev/null; echo $?
fsck -t lavafs $L -- -n --json | grep -q '\"clean\":true'; echo $?
fsck -A -t lavafs -T -N >/dev/null; echo $?
code=0; mkfs -t lavafs $L >/dev/null 2>$T/err || code=$?; echo $code; grep -q -- -f $T/err
mkfs -t lavafs -f -L name $L >/dev/null; echo $?
# Every copy of the superblock is damaged: left uncorrected is 4, and nothing is changed.
size=$(stat -c %s $I); for at in 0 4096 $((size / 2)) $((size - 4096)); do
  printf '\\377\\377\\377\\377\\377\\377' | dd of=$I bs=1 seek=$((at + 20)) conv=notrunc status=none; done
code=0; fsck.lavafs -p $I >/dev/null 2>$T/err || code=$?; echo $code; wc -l <$T/err
code=0; fsck.lavafs --wibble $I >/dev/null 2>$T/err || code=$?; echo $code
code=0; mount -t lavafs $I $M 2>$T/err || code=$?; echo $code; grep -c lavafs $T/err";
    let Some(out) = in_namespace(&fixture, script) else {
        return;
    };
    assert_eq!(out, "0\n0\n0\n1\n0\n4\n1\n16\n32\n1\n");
}

#[test]
fn what_cannot_be_mounted_has_the_documented_code() {
    let Some(fixture) = Fixture::new(64 * MIB) else {
        return;
    };
    let script = "
head -c 4M /dev/zero >$T/zeros; echo text >$T/file
try() { code=0; \"$@\" >/dev/null 2>$T/err || code=$?; echo \"$code $(wc -l <$T/err)\"; }
try mount -t lavafs -o wibble $I $M
try mount -t lavafs $T/zeros $M
try mount -t lavafs $T/missing $M
try mount.lavafs $I $T/missing
try mount.lavafs $I $T/file
try mount.lavafs $I
try mount.lavafs -o commit=x $I $M
mount -t lavafs $I $M; mkdir $T/other; try mount.lavafs $I $T/other; umount $M; gone
try mount.lavafs -o remount,ro $I $M
mount -t tmpfs none /dev; try $MOUNT -f $I $M
rmdir $M; try $MOUNT -f $I $M; mkdir $M";
    let Some(out) = in_namespace(&fixture, script) else {
        return;
    };
    let codes: Vec<&str> = out.lines().collect();
    assert_eq!(
        codes,
        [
            "1 1", "32 1", "32 1", "32 1", "32 1", "1 1", "1 1", "32 1", "1 1", "2 1", "32 1"
        ]
    );
    assert!(Path::new("/dev/null").exists());
    fixture.assert_clean();
}
