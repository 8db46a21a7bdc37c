//! Rewrites alone, over files on a filesystem, with liveness decided by the test.

use std::path::Path;
use std::sync::Arc;

use lavafs::{CreateOptions, FileSystem, HostFs};

use super::rewrite::LiveCount;
use super::*;
use crate::blob::{BlobFileBuilder, BlobFileOptions, BlobFileReader, file_name};
use crate::error::{Error, Result};
use crate::key::{InternalKey, ValueKind, user_key};
use crate::sstable::compression::Compression;

const INPUTS: u64 = 5;
const RECORDS: u64 = 500;

fn key(record: u64) -> Vec<u8> {
    let user_key = format!("key{:06}", record * 7919 % 1_000_003);
    InternalKey::new(user_key.as_bytes(), record, ValueKind::BlobReference).into_bytes()
}

fn value(record: u64) -> Vec<u8> {
    vec![record as u8; 100 + record as usize]
}

fn create(fs: &HostFs, number: u64) -> Result<BlobFileBuilder> {
    let file = fs.create(Path::new(&file_name(number)), &CreateOptions::default())?;
    let options = BlobFileOptions {
        compression: Compression::Zstd { level: 1 },
        ..BlobFileOptions::default()
    };
    BlobFileBuilder::create(file, number, options)
}

fn open(fs: &HostFs, number: u64) -> Arc<BlobFileReader> {
    let file = fs.open(Path::new(&file_name(number))).unwrap();
    BlobFileReader::open(file, number).unwrap()
}

/// Files 1 to `INPUTS`; record r is in file 1 + r % INPUTS.
fn inputs(fs: &HostFs) -> Vec<Arc<BlobFileReader>> {
    let build = |number: u64| {
        let mut records: Vec<u64> = (0..RECORDS).filter(|r| 1 + r % INPUTS == number).collect();
        records.sort_by_key(|record| key(*record));
        let mut builder = create(fs, number).unwrap();
        for record in records {
            builder.add(&key(record), &value(record)).unwrap();
        }
        builder.finish().unwrap();
        open(fs, number)
    };
    (1..=INPUTS).map(build).collect()
}

#[test]
fn what_is_live_comes_back_sorted_and_what_is_not_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let fs = HostFs::open(dir.path()).unwrap();
    let inputs = inputs(&fs);
    let is_live = |record: u64| record.is_multiple_of(3);
    let live: Vec<_> = (0..RECORDS)
        .filter(|record| is_live(*record))
        .map(key)
        .collect();
    let mut asked = Vec::new();
    let mut liveness = |key: &[u8], input: u64| {
        asked.push(user_key(key).to_vec());
        assert!(inputs[input as usize - 1].get(key)?.is_some());
        Ok(live.iter().any(|live| live == key))
    };
    let mut done = rewrite(&inputs, &mut liveness, u64::MAX, || create(&fs, 9)).unwrap();
    assert!(asked.is_sorted() && asked.len() as u64 == RECORDS);
    let Rewritten { properties, counts } = done.pop().unwrap();
    assert!(done.is_empty(), "one file is enough");
    assert_eq!(properties.records, live.len() as u64);
    for (at, count) in counts.iter().enumerate() {
        let of_input = (0..RECORDS).filter(|r| is_live(*r) && (r % INPUTS) as usize == at);
        let bytes = of_input.clone().map(|record| 100 + record).sum();
        let expected = LiveCount {
            records: of_input.count() as u64,
            value_bytes: bytes,
        };
        assert_eq!(*count, expected);
    }
    let output = open(&fs, 9);
    output.verify().unwrap();
    for record in 0..RECORDS {
        let expected = is_live(record).then(|| value(record));
        assert_eq!(output.get(&key(record)).unwrap(), expected);
    }
}

#[test]
fn outputs_are_bounded_and_have_ranges_of_their_own_across_all_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let fs = HostFs::open(dir.path()).unwrap();
    let inputs = inputs(&fs);
    let mut all = |_: &[u8], _: u64| Ok(true);
    let mut next = 8;
    let done = rewrite(&inputs, &mut all, 4096, || {
        next += 1;
        create(&fs, next)
    });
    let done = done.unwrap();
    assert!(done.len() > 3, "{} outputs", done.len());
    for pair in done.windows(2) {
        let (left, right) = (&pair[0].properties, &pair[1].properties);
        assert!(user_key(&left.largest) < user_key(&right.smallest));
        assert!(left.file_bytes < 2 * 4096, "{} bytes", left.file_bytes);
    }
    let records: u64 = done.iter().map(|output| output.properties.records).sum();
    assert_eq!(records, RECORDS);
    for (at, input) in inputs.iter().enumerate() {
        let counts = done.iter().map(|output| output.counts[at].records);
        assert_eq!(counts.sum::<u64>(), input.properties().records);
    }
}

#[test]
fn versions_of_a_key_are_not_parted() {
    let dir = tempfile::tempdir().unwrap();
    let fs = HostFs::open(dir.path()).unwrap();
    let version = |seq| InternalKey::new(b"key", seq, ValueKind::BlobReference).into_bytes();
    let mut builder = create(&fs, 1).unwrap();
    for seq in (1..=100).rev() {
        builder.add(&version(seq), &[seq as u8; 200]).unwrap();
    }
    builder.add(&key(7), b"next").unwrap();
    builder.finish().unwrap();
    let mut all = |_: &[u8], _: u64| Ok(true);
    let mut next = 8;
    let done = rewrite(&[open(&fs, 1)], &mut all, 4096, || {
        next += 1;
        create(&fs, next)
    });
    let records = done.unwrap();
    let records: Vec<u64> = records.iter().map(|one| one.properties.records).collect();
    assert_eq!(records, [100, 1]);
}

#[test]
fn nothing_live_makes_no_file_and_a_cancelled_rewrite_makes_none_that_opens() {
    let dir = tempfile::tempdir().unwrap();
    let fs = HostFs::open(dir.path()).unwrap();
    let inputs = inputs(&fs);
    let mut dead = |_: &[u8], _: u64| Ok(false);
    let done = rewrite(&inputs, &mut dead, u64::MAX, || create(&fs, 9)).unwrap();
    assert_eq!(done, []);
    assert!(fs.open(Path::new(&file_name(9))).is_err());
    let mut seen = 0;
    let mut stop = |_: &[u8], _: u64| {
        seen += 1;
        match seen {
            100 => Err(Error::invalid_argument("stop")),
            _ => Ok(true),
        }
    };
    assert!(rewrite(&inputs, &mut stop, u64::MAX, || create(&fs, 9)).is_err());
    assert_eq!(seen, 100);
    let file = fs.open(Path::new(&file_name(9))).unwrap();
    assert!(BlobFileReader::open(file, 9).unwrap_err().is_corrupt());
}

#[test]
fn one_version_live_in_two_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fs = HostFs::open(dir.path()).unwrap();
    for number in [1, 2] {
        let mut builder = create(&fs, number).unwrap();
        builder.add(&key(5), b"value").unwrap();
        builder.finish().unwrap();
    }
    let inputs = [open(&fs, 1), open(&fs, 2)];
    let mut all = |_: &[u8], _: u64| Ok(true);
    let error = rewrite(&inputs, &mut all, u64::MAX, || create(&fs, 9)).unwrap_err();
    assert!(error.is_corrupt());
    let mut second = |_: &[u8], input: u64| Ok(input == 2);
    let done = rewrite(&inputs, &mut second, u64::MAX, || create(&fs, 10)).unwrap();
    assert_eq!(done.len(), 1);
    assert_eq!(done[0].properties.records, 1);
}
