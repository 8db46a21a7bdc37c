//! Dictionaries of blob files: trained where they pay, and of no effect where none is wanted.

use std::path::Path;
use std::sync::Arc;

use lavafs::{CreateOptions, FileRef, FileSystem, HostFs};

use super::footer::{HEADER_LEN, Header};
use super::held::Held;
use super::record::{CODEC_RAW, CODEC_ZSTD, encode_head, encode_tail};
use super::*;
use crate::key::{InternalKey, ValueKind};
use crate::sstable::varint;

const ZSTD: Compression = Compression::Zstd { level: 1 };

fn internal(number: u64) -> Vec<u8> {
    let key = format!("key{number:06}");
    InternalKey::new(key.as_bytes(), number, ValueKind::BlobReference).into_bytes()
}

fn mixed(number: u64) -> u64 {
    let mixed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// A record of some service: most of it is the same in all.
fn alike(number: u64) -> Vec<u8> {
    let names = ["anna", "boris", "chen", "dalia", "emeka"];
    let pick = |salt: u64| mixed(number * 7 + salt);
    format!(
        "{{\"account_identifier\":\"{:016x}\",\"display_name\":\"{}\",\"registration_country\":\"NL\",\
         \"notification_preferences\":{{\"electronic_mail\":true,\"text_message\":{},\"telephone\":false}},\
         \"subscription_level\":\"professional\",\"postal_address\":{{\"street\":\"Keizersgracht {}\",\
         \"city\":\"Amsterdam\",\"postal_code\":\"1015 C{}\"}},\"last_login_at\":\"2024-0{}-11T08:{}:00Z\"}}",
        pick(0),
        names[pick(1) as usize % 5],
        pick(2) % 2 == 0,
        pick(3) % 900,
        pick(4) % 10,
        1 + pick(5) % 9,
        10 + pick(6) % 50,
    )
    .into_bytes()
}

struct Scratch {
    fs: HostFs,
    _dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Scratch {
            fs: HostFs::open(dir.path()).unwrap(),
            _dir: dir,
        }
    }

    fn create(&self, number: u64) -> FileRef {
        let path = file_name(number);
        let file = self.fs.create(Path::new(&path), &CreateOptions::default());
        file.unwrap()
    }

    fn builder(&self, number: u64, zstd_dict_bytes: usize) -> BlobFileBuilder {
        let options = BlobFileOptions {
            compression: ZSTD,
            zstd_dict_bytes,
            ..BlobFileOptions::default()
        };
        BlobFileBuilder::create(self.create(number), number, options).unwrap()
    }

    fn open(&self, number: u64) -> Arc<BlobFileReader> {
        let file = self.fs.open(Path::new(&file_name(number))).unwrap();
        BlobFileReader::open(file, number).unwrap()
    }
}

/// Reads all that was written, each way that values are read.
fn check(scratch: &Scratch, number: u64, values: &[Vec<u8>]) {
    let reader = scratch.open(number);
    reader.verify().unwrap();
    assert_eq!(reader.properties().records, values.len() as u64);
    let mut iter = reader.iter();
    for (at, value) in values.iter().enumerate() {
        let key = internal(at as u64);
        assert_eq!(reader.get(&key).unwrap().as_ref(), Some(value), "{at}");
        assert_eq!(
            reader.value_len(&key).unwrap(),
            Some(value.len() as u64),
            "{at}"
        );
        assert!(iter.advance().unwrap());
        assert_eq!((iter.key(), &iter.value().unwrap()), (&key[..], value));
    }
    assert!(!iter.advance().unwrap());
}

#[test]
fn a_trained_dictionary_makes_values_that_are_alike_half_as_large() {
    let scratch = Scratch::new();
    let values: Vec<Vec<u8>> = (0..4000).map(alike).collect();
    let mut sizes = Vec::new();
    for (number, dict_bytes) in [(1, 0), (2, 4096)] {
        let mut builder = scratch.builder(number, dict_bytes);
        let mut written = 0;
        for (at, value) in values.iter().enumerate() {
            let key = internal(at as u64);
            written += builder.add(&key, value).unwrap();
            assert_eq!(builder.last_key(), key, "held or not");
            assert_eq!(builder.records(), at as u64 + 1);
        }
        let properties = builder.finish().unwrap();
        assert_eq!(properties.stored_bytes, written);
        sizes.push(properties.file_bytes);
        check(&scratch, number, &values);
    }
    assert!(sizes[1] * 2 < sizes[0], "{sizes:?}");
}

#[test]
fn few_or_long_or_empty_values_are_written_whether_they_give_a_dictionary_or_not() {
    let scratch = Scratch::new();
    let long = |len: usize| (0..len).map(|at| mixed(at as u64 / 9) as u8).collect();
    let cases: Vec<Vec<Vec<u8>>> = vec![
        vec![alike(0)],
        (0..7).map(alike).collect(),
        vec![Vec::new(); 50],
        (0..3).map(|_| long(200_000)).collect(),
        // A value without room ends the sampling in the middle.
        (0..200)
            .map(|at| match at {
                100 => long(1 << 20),
                _ => alike(at),
            })
            .collect(),
        (0..500)
            .map(|at| mixed(at).to_le_bytes().to_vec())
            .collect(),
    ];
    for (at, values) in cases.iter().enumerate() {
        let number = at as u64 + 1;
        let mut builder = scratch.builder(number, 1024);
        for (at, value) in values.iter().enumerate() {
            builder.add(&internal(at as u64), value).unwrap();
        }
        builder.finish().unwrap();
        check(&scratch, number, values);
    }
}

#[test]
fn copies_between_files_with_other_dictionaries_and_none_read_back() {
    let scratch = Scratch::new();
    let values: Vec<Vec<u8>> = (0..1000).map(alike).collect();
    let mut sizes = Vec::new();
    for (from, dict_bytes) in [(10, 0), (20, 1024), (30, 4096)] {
        let mut builder = scratch.builder(from, dict_bytes);
        for (at, value) in values.iter().enumerate() {
            builder.add(&internal(at as u64), value).unwrap();
        }
        sizes.push(builder.finish().unwrap().stored_bytes);
    }
    for from in [10, 20, 30] {
        for (to, dict_bytes) in [(1, 0), (2, 1024), (3, 4096)] {
            let mut copy = scratch.builder(from + to, dict_bytes);
            let mut iter = scratch.open(from).iter();
            while iter.advance().unwrap() {
                let written = copy.add_stored(iter.key(), iter.stored()).unwrap();
                // Without dictionaries, what is stored is what is written.
                assert!((from, to) != (10, 1) || written == iter.location().len);
            }
            let copied = copy.finish().unwrap();
            assert_eq!(
                copied.stored_bytes,
                sizes[to as usize - 1],
                "{from} to {to}"
            );
            check(&scratch, from + to, &values);
        }
    }
}

#[test]
fn without_a_dictionary_every_record_is_what_it_always_was() {
    let scratch = Scratch::new();
    let noise = |at: u64| -> Vec<u8> { (0..300).map(|i| mixed(at * 1000 + i) as u8).collect() };
    let values: Vec<Vec<u8>> = (0..50)
        .map(|at| if at % 4 == 0 { noise(at) } else { alike(at) })
        .collect();
    let mut builder = scratch.builder(1, 0);
    let mut written = Vec::new();
    for (at, value) in values.iter().enumerate() {
        written.push(builder.add(&internal(at as u64), value).unwrap());
    }
    builder.finish().unwrap();
    let file = scratch.fs.open(Path::new(&file_name(1))).unwrap();
    let header = Header {
        seed: file.generation().0,
        number: 1,
    };
    let mut expected = header.encode().to_vec();
    for (at, value) in values.iter().enumerate() {
        let mut stored = Vec::new();
        varint::put(&mut stored, value.len() as u64);
        stored.extend(zstd::bulk::compress(value, 1).unwrap());
        let codec = match at % 4 {
            0 => CODEC_RAW,
            _ => CODEC_ZSTD,
        };
        if codec == CODEC_RAW {
            stored.clone_from(value);
        }
        let offset = expected.len();
        let mut head = Vec::new();
        encode_head(&internal(at as u64), stored.len(), codec, &mut head);
        let tail = encode_tail(header.seed, offset as u64, &head, &stored);
        expected.extend([head, stored, tail].concat());
        assert_eq!(written[at], (expected.len() - offset) as u64);
    }
    let mut found = vec![0; expected.len()];
    file.read_at(0, &mut found).unwrap();
    assert_eq!(found[..HEADER_LEN], expected[..HEADER_LEN]);
    assert!(found == expected, "the records differ");
    assert_eq!(scratch.open(1).data_range().end, expected.len() as u64);
    check(&scratch, 1, &values);
}

#[test]
fn what_waits_for_a_dictionary_is_bounded_whatever_comes() {
    for dict_bytes in [256, 1 << 20] {
        let enough = (dict_bytes * 100).min(4 << 20);
        let mut held = Held::wanted(ZSTD, dict_bytes).unwrap();
        for value_len in [1, 0, 5000, 1 << 20] {
            let mut at = 0;
            while held.push(&internal(at), &vec![7; value_len]) {
                at += 1;
                assert!(held.memory() <= enough);
            }
        }
        assert!(!held.push(&internal(1), &vec![7; enough]));
        assert_eq!(held.entries().count(), held.len());
    }
    assert!(Held::wanted(ZSTD, 0).is_none());
    assert!(Held::wanted(Compression::None, 4096).is_none());
}

#[test]
fn a_dictionary_that_is_too_long_is_refused() {
    let scratch = Scratch::new();
    let options = BlobFileOptions {
        compression: ZSTD,
        zstd_dict_bytes: MAX_DICTIONARY_LEN + 1,
        ..BlobFileOptions::default()
    };
    let refused = BlobFileBuilder::create(scratch.create(1), 1, options);
    assert!(matches!(refused, Err(crate::Error::InvalidArgument { .. })));
}

#[test]
fn values_of_a_file_with_a_damaged_end_are_salvaged_with_the_dictionary_behind_the_records() {
    let scratch = Scratch::new();
    let values: Vec<Vec<u8>> = (0..1000).map(alike).collect();
    let mut builder = scratch.builder(1, 1024);
    for (at, value) in values.iter().enumerate() {
        builder.add(&internal(at as u64), value).unwrap();
    }
    builder.finish().unwrap();
    let reader = scratch.open(1);
    let records_end = reader.data_range().end as usize;
    let mut bytes = vec![0; reader.properties().file_bytes as usize];
    reader.file().read_at(0, &mut bytes).unwrap();
    let salvaged = |bytes: &[u8], number: u64| -> Vec<Option<Vec<u8>>> {
        let file = scratch.create(number);
        file.append(bytes).unwrap();
        let file = SalvagedFile::read(file, 1).unwrap();
        let keys = (0..values.len()).map(|at| internal(at as u64));
        keys.map(|key| file.get(&key).unwrap()).collect()
    };
    // Without all that is behind the dictionary, whose length nothing tells then.
    let found = salvaged(&bytes[..records_end + 1024 + 5], 2);
    assert!(found.iter().flatten().eq(&values));
    // With a byte of it wrong, or without its end: nothing is made up.
    let mut bad = bytes.clone();
    bad[records_end + 100] ^= 1;
    for (number, bytes) in [(3, &bad[..]), (4, &bytes[..records_end + 50])] {
        let found = salvaged(bytes, number);
        assert_eq!(found.iter().flatten().count(), 0);
    }
}
