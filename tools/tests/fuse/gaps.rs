//! Files that grow by zeros: writes beyond the end and truncate, and what foreign programs
//! make of them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};

use crate::fixture::{Fixture, MIB, errno};
use crate::foreign::{have, script};

#[test]
fn a_gap_reads_as_zeros_and_an_overwrite_is_refused() {
    let Some(mut fixture) = Fixture::mounted(128 * MIB) else {
        return;
    };
    let path = fixture.path("f");
    let file = File::create(&path).unwrap();
    let mut model = Vec::new();
    for (offset, len) in [
        (5_usize, 3),
        (4096, 10),
        (4107, 1),
        (300_000, 200_000),
        (1 << 20, 1),
        (5 << 20, 3 << 20),
    ] {
        let bytes = vec![7; len];
        assert_eq!(file.write_at(&bytes, offset as u64).unwrap(), len);
        model.resize(offset, 0);
        model.extend(bytes);
        assert_eq!(file.metadata().unwrap().len(), model.len() as u64);
        assert_eq!(
            errno(file.write_at(b"x", offset as u64 - 1)),
            libc::EOPNOTSUPP
        );
        assert!(fs::read(&path).unwrap() == model, "after {offset}");
    }
    // Who reserves a length means to write over it.
    let none = FallocateFlags::empty();
    assert_eq!(
        fallocate(&file, none, 0, 9 << 20),
        Err(nix::errno::Errno::EINVAL)
    );
    file.set_len(9 << 20).unwrap();
    model.resize(9 << 20, 0);
    assert!(fs::read(&path).unwrap() == model);
    drop(file);
    fixture.remount();
    assert!(fs::read(&path).unwrap() == model);
    fixture.umount();
    fixture.assert_clean();
}

#[test]
fn a_gap_that_does_not_fit_is_refused_before_anything_is_written() {
    let Some(mut fixture) = Fixture::mounted(64 * MIB) else {
        return;
    };
    let path = fixture.path("f");
    fs::write(&path, b"abc").unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let free = || nix::sys::statvfs::statvfs(&path).unwrap().blocks_free();
    let before = free();
    for size in [65 * MIB, 1 << 40, i64::MAX as u64] {
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        assert_eq!(errno(file.set_len(size)), libc::ENOSPC, "{size}");
        assert_eq!(
            fallocate(&file, keep, 0, size as i64),
            Err(nix::errno::Errno::ENOSPC)
        );
        assert_eq!(errno(file.write_at(b"x", size - 1)), libc::ENOSPC);
    }
    // What a file has ahead of its end returns when it is closed, so there may be more by now.
    assert_eq!(fs::read(&path).unwrap(), b"abc");
    assert!(free() >= before);
    // All that is free can be had.
    let most = free() * 4096;
    file.set_len(most).unwrap();
    assert_eq!(errno(file.write_at(b"x", most + MIB)), libc::ENOSPC);
    assert_eq!(fs::metadata(&path).unwrap().len(), most);
    file.set_len(3).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"abc");
    drop(file);
    fixture.umount();
    fixture.assert_clean();
}

#[test]
fn programs_that_leave_holes_find_zeros() {
    let Some(mut fixture) = Fixture::mounted(256 * MIB) else {
        return;
    };
    script(
        &fixture,
        "truncate -s 20M $T/sparse; echo in the middle | dd of=$T/sparse bs=1 seek=9999999 conv=notrunc status=none
         printf end >>$T/sparse; truncate -s +300001 $T/sparse
         cp $T/sparse $M/auto; cp --sparse=always $T/sparse $M/always; cp --sparse=never $T/sparse $M/never
         tar -C $T -Scf - sparse | tar -C $M -Sxf -
         for f in auto always never sparse; do cmp $T/sparse $M/$f; done
         echo x >$M/t; echo x >$T/t; for f in $M/t $T/t; do truncate -s +1M $f; truncate -s %4096 $f; echo y >>$f; done
         cmp $M/t $T/t
         for d in $M $T; do rm -f $d/dd; dd if=/dev/zero bs=1 count=1 seek=777777 of=$d/dd status=none
           printf tail | dd of=$d/dd bs=1 seek=900000 conv=notrunc status=none; truncate -s 1M $d/dd; done
         cmp $M/dd $T/dd
         ! printf no | dd of=$M/dd bs=1 seek=5 conv=notrunc status=none 2>$T/err; grep -q 'not supported' $T/err",
    );
    fixture.remount();
    script(
        &fixture,
        "for f in auto always never; do cmp $T/sparse $M/$f; done; cmp $M/dd $T/dd; cmp $M/t $T/t",
    );
    fixture.umount();
    fixture.assert_clean();
}

#[test]
fn the_pieces_of_one_asynchronous_write_arrive_in_order() {
    if !have("fio") {
        return;
    }
    let Some(mut fixture) = Fixture::mounted(256 * MIB) else {
        return;
    };
    // The kernel splits 4 MiB into requests; sent at once they would be gaps and overwrites. And a
    // program that cannot reserve a length goes on without.
    for (engine, allocation) in [("libaio", "none"), ("psync", "posix"), ("psync", "native")] {
        script(
            &fixture,
            &format!(
                "cd $T; fio --name={engine}-{allocation} --directory=$M --rw=write --bs=4M --size=32M --direct=1 \
                 --iodepth=4 --ioengine={engine} --create_on_open=1 --fallocate={allocation} --verify=crc32c \
                 --do_verify=1 --output=$T/out || {{ cat $T/out >&2; exit 1; }}"
            ),
        );
    }
    fixture.umount();
    fixture.assert_clean();
}
