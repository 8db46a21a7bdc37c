//! The simulated device against its rules: crashes, recordings and faults.

use std::collections::HashSet;

use super::super::{
    AlignedBuf, BlockDevice, DeviceRead, DeviceWrite, Durability, Fault, FaultOn, FaultPlan,
    FaultWhen,
};
use super::SimDevice;
use super::image::POISON;

const SIZE: u64 = 16 << 20;

fn filled(len: usize, byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    buf.fill(byte);
    buf
}

fn write(device: &SimDevice, offset: u64, len: usize, byte: u8, durability: Durability) {
    device
        .write(offset, &filled(len, byte), durability)
        .unwrap();
}

/// The bytes at `offset`, one for each sector; a sector of mixed bytes fails the test.
fn sectors(device: &SimDevice, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = AlignedBuf::zeroed(len);
    device.read(offset, &mut buf).unwrap();
    let uniform = |sector: &[u8]| {
        assert!(
            sector.iter().all(|&byte| byte == sector[0]),
            "a sector is torn"
        );
        sector[0]
    };
    buf.chunks(512).map(uniform).collect()
}

/// Every outcome of crashes at operation `at` over many seeds.
fn outcomes(recording: &super::Recording, at: usize, offset: u64, len: usize) -> HashSet<Vec<u8>> {
    (0..2000)
        .map(|seed| sectors(&recording.crash(at, seed), offset, len))
        .collect()
}

fn set<const N: usize>(outcomes: [&[u8]; N]) -> HashSet<Vec<u8>> {
    outcomes.into_iter().map(<[u8]>::to_vec).collect()
}

#[test]
fn unflushed_writes_are_kept_dropped_or_torn_in_any_combination() {
    let device = SimDevice::new(SIZE, 512);
    write(&device, 0, 1024, 1, Durability::Durable);
    device.record();
    write(&device, 0, 1024, 2, Durability::Volatile);
    write(&device, 0, 512, 3, Durability::Volatile);
    let recording = device.take_recording();
    assert_eq!(sectors(&device, 0, 1024), [3, 2]);
    let expected = set([&[1, 1], &[1, 2], &[2, 1], &[2, 2], &[3, 1], &[3, 2]]);
    assert_eq!(outcomes(&recording, 2, 0, 1024), expected);
    assert_eq!(
        outcomes(&recording, 1, 0, 1024),
        expected,
        "the second write is in flight"
    );
    let first = set([&[1, 1], &[1, 2], &[2, 1], &[2, 2]]);
    assert_eq!(outcomes(&recording, 0, 0, 1024), first);
}

#[test]
fn flushed_and_durable_writes_are_whole_and_old_ones_cannot_return() {
    let device = SimDevice::new(SIZE, 512);
    device.record();
    write(&device, 0, 2048, 1, Durability::Volatile);
    write(&device, 512, 1024, 2, Durability::Durable);
    write(&device, 4096, 512, 3, Durability::Volatile);
    device.flush().unwrap();
    write(&device, 8192, 512, 4, Durability::Volatile);
    let recording = device.take_recording();
    for outcome in outcomes(&recording, 2, 0, 2048) {
        assert_eq!(outcome[1..3], [2, 2]);
    }
    assert_eq!(
        outcomes(&recording, 1, 512, 1024).len(),
        9,
        "in flight it may be torn"
    );
    assert_eq!(outcomes(&recording, 3, 4096, 512), set([&[0], &[3]]));
    for at in 4..=5 {
        assert_eq!(outcomes(&recording, at, 0, 2048), set([&[1, 2, 2, 1]]));
        assert_eq!(outcomes(&recording, at, 4096, 512), set([&[3]]));
    }
}

#[test]
fn writes_of_a_durable_batch_complete_in_any_order() {
    let device = SimDevice::new(SIZE, 4096).with_tear(4096);
    let data = filled(4096, 1);
    device.record();
    let batch = [0, 8192].map(|offset| DeviceWrite {
        offset,
        data: &data,
    });
    device.write_batch(&batch, Durability::Durable).unwrap();
    let recording = device.take_recording();
    let seen: HashSet<(u8, u8)> = (0..500)
        .map(|seed| {
            let crashed = recording.crash(0, seed);
            (
                sectors(&crashed, 0, 4096)[0],
                sectors(&crashed, 8192, 4096)[0],
            )
        })
        .collect();
    assert_eq!(seen, HashSet::from([(0, 0), (0, 1), (1, 0), (1, 1)]));
    assert_eq!(outcomes(&recording, 1, 8192, 4096), set([&[1; 8]]));
}

#[test]
fn crash_states_replay_by_seed_and_leave_the_recording_alone() {
    let device = SimDevice::new(SIZE, 512);
    device.record();
    for i in 0..100u64 {
        write(&device, i % 7 * 4096, 4096, i as u8, Durability::Volatile);
        if i % 10 == 9 {
            device.flush().unwrap();
        }
    }
    let recording = device.take_recording();
    assert_eq!(recording.ops().len(), 110);
    for at in 0..=110 {
        let one = recording.crash(at, 5);
        write(&one, 0, 4096, 0xaa, Durability::Durable);
        let again = recording.crash(at, 5);
        assert_eq!(
            sectors(&again, 4096, 6 * 4096),
            sectors(&one, 4096, 6 * 4096)
        );
        assert_ne!(sectors(&again, 0, 512), [0xaa]);
    }
}

#[test]
fn discarded_bytes_are_old_or_poison_after_a_crash() {
    let device = SimDevice::new(SIZE, 512);
    write(&device, 0, 512, 1, Durability::Durable);
    device.record();
    device.discard(0, 4096).unwrap();
    let recording = device.take_recording();
    assert_eq!(sectors(&device, 0, 512), [POISON]);
    assert_eq!(outcomes(&recording, 1, 0, 512), set([&[1], &[POISON]]));
}

#[test]
fn counters_are_exact() {
    let device = SimDevice::new(SIZE, 512);
    write(&device, 0, 4096, 1, Durability::Volatile);
    write(&device, 0, 512, 1, Durability::Durable);
    device.flush().unwrap();
    sectors(&device, 0, 1024);
    device.discard(0, 8192).unwrap();
    let counters = device.counters();
    assert_eq!((counters.write_bytes, counters.write_ios), (4608, 2));
    assert_eq!((counters.read_bytes, counters.read_ios), (1024, 1));
    assert_eq!((counters.flushes, counters.discard_bytes), (2, 8192));
}

fn faulty(on: FaultOn, when: FaultWhen, fault: Fault) -> SimDevice {
    let device = SimDevice::new(SIZE, 512);
    device.set_faults(Some(FaultPlan::new(1).rule(on, when, fault)));
    device
}

#[test]
fn a_failed_write_leaves_any_part_and_is_not_durable() {
    let device = faulty(FaultOn::Write, FaultWhen::Nth(1), Fault::Eio);
    write(&device, 0, 4096, 1, Durability::Durable);
    let error = device
        .write(0, &filled(4096, 2), Durability::Durable)
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(
        sectors(&device, 0, 4096).is_sorted_by(|a, b| a >= b),
        "a prefix was written"
    );
    assert!((0..100).any(|seed| sectors(&device.crash(seed), 0, 4096) == [1; 8]));
}

#[test]
fn a_failed_flush_is_not_healed_by_the_next_one() {
    let device = faulty(FaultOn::Flush, FaultWhen::Nth(0), Fault::Eio);
    for i in 0..64 {
        write(&device, i * 4096, 4096, 1, Durability::Volatile);
    }
    device.flush().unwrap_err();
    device.flush().unwrap();
    let all = vec![1; 64 * 8];
    assert_eq!(
        sectors(&device, 0, 64 * 4096),
        all,
        "the cache still shows the bytes"
    );
    assert_ne!(
        sectors(&device.crash(0), 0, 64 * 4096),
        all,
        "but some are lost for good"
    );
}

#[test]
fn a_lost_write_is_acknowledged_and_changes_nothing() {
    let device = faulty(FaultOn::Write, FaultWhen::Nth(0), Fault::Lost);
    write(&device, 0, 512, 1, Durability::Durable);
    assert_eq!(sectors(&device, 0, 512), [0]);
    assert_eq!(device.counters().write_bytes, 512);
}

#[test]
fn a_lost_flush_is_acknowledged_and_makes_nothing_durable() {
    let device = faulty(FaultOn::Flush, FaultWhen::Nth(0), Fault::Lost);
    write(&device, 0, 512, 1, Durability::Volatile);
    device.flush().unwrap();
    assert!((0..100).any(|seed| sectors(&device.crash(seed), 0, 512) == [0]));
}

#[test]
fn a_misdirected_write_lands_elsewhere() {
    let device = faulty(
        FaultOn::Write,
        FaultWhen::Nth(0),
        Fault::Misdirect { to: 8192 },
    );
    write(&device, 0, 512, 1, Durability::Durable);
    assert_eq!(sectors(&device, 0, 512), [0]);
    assert_eq!(sectors(&device, 8192, 512), [1]);
}

#[test]
fn bit_flips_change_one_bit() {
    let ones = |bytes: &[u8]| bytes.iter().map(|byte| byte.count_ones()).sum::<u32>();
    let mut buf = AlignedBuf::zeroed(4096);
    let device = faulty(FaultOn::Read, FaultWhen::Nth(0), Fault::BitFlip);
    device.read(0, &mut buf).unwrap();
    assert_eq!(ones(&buf), 1);
    device.read(0, &mut buf).unwrap();
    assert_eq!(ones(&buf), 0, "the read was wrong, not the disk");
    let device = faulty(FaultOn::Write, FaultWhen::Nth(0), Fault::BitFlip);
    write(&device, 0, 4096, 0, Durability::Durable);
    device.read(0, &mut buf).unwrap();
    assert_eq!(ones(&buf), 1, "the disk is wrong");
    device.flip_bit(5000, 3);
    device.crash(0).read(4096, &mut buf).unwrap();
    assert_eq!(buf[5000 - 4096], 8, "rot at rest survives a crash");
}

#[test]
fn reads_within_a_bad_range_fail_alone() {
    let bad = FaultWhen::Within {
        offset: 8192,
        len: 512,
    };
    let device = faulty(FaultOn::Read, bad, Fault::Eio);
    let (mut one, mut two) = (filled(4096, 1), filled(4096, 1));
    let mut reads = [(4096, &mut one), (8192, &mut two)]
        .map(|(offset, buf)| DeviceRead::new(offset, &mut buf[..]));
    device.read_batch(&mut reads, 2);
    assert!(reads[0].result.is_ok());
    assert!(reads[1].result.is_err());
}

#[test]
#[should_panic(expected = "aligned")]
fn an_unaligned_offset_is_a_programmers_error() {
    SimDevice::new(SIZE, 512)
        .read(100, &mut filled(512, 0))
        .unwrap();
}

/// The explorer makes 100,000 states in CI. Were the device copied for each, this would take
/// minutes and 2.5 TB of copying instead of a fraction of a second; it prints what one costs.
#[test]
fn crash_states_of_a_large_device_share_its_contents() {
    let device = SimDevice::new(256 << 20, 4096);
    device.record();
    for i in 0..1000u64 {
        write(
            &device,
            i * 37 % 60_000 * 4096,
            4096,
            i as u8,
            Durability::Volatile,
        );
        if i % 8 == 7 {
            device.flush().unwrap();
        }
    }
    let recording = device.take_recording();
    let begin = std::time::Instant::now();
    for i in 0..10_000u64 {
        let crashed = recording.crash(i as usize % 1125, i);
        assert_eq!(crashed.geometry().size, 256 << 20);
    }
    eprintln!("{:?} per crash state", begin.elapsed() / 10_000);
}
