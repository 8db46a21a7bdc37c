//! Blob files whole: written on a filesystem, read back, damaged.

use std::path::Path;
use std::sync::Arc;

use lavafs::{CreateOptions, FileSystem, HostFs};

use super::*;
use crate::key::{InternalKey, ValueKind};

fn internal(user_key: &[u8], seq: u64) -> Vec<u8> {
    InternalKey::new(user_key, seq, ValueKind::BlobReference).into_bytes()
}

/// A filesystem in a directory that is removed with it.
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

    fn create(&self, number: u64, options: BlobFileOptions) -> BlobFileBuilder {
        let path = file_name(number);
        let file = self.fs.create(Path::new(&path), &CreateOptions::default());
        BlobFileBuilder::create(file.unwrap(), number, options).unwrap()
    }

    fn open(&self, number: u64) -> crate::Result<Arc<BlobFileReader>> {
        BlobFileReader::open(self.fs.open(Path::new(&file_name(number))).unwrap(), number)
    }
}

fn zstd() -> BlobFileOptions {
    BlobFileOptions {
        compression: Compression::Zstd { level: 1 },
        ..BlobFileOptions::default()
    }
}

/// Values of which some shrink and some do not, of many lengths.
fn value(index: usize) -> Vec<u8> {
    let len = [0, 1, 511, 600, 5000, 9001, 70_000][index % 7] + index;
    let mut state = index as u64;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(99);
        (state >> 56) as u8
    };
    (0..len)
        .map(|at| match index % 3 {
            0 => 7,
            1 => random(),
            _ => {
                if at % 2 == 0 {
                    random()
                } else {
                    0
                }
            }
        })
        .collect()
}

#[test]
fn every_value_comes_back_with_and_without_compression() {
    let scratch = Scratch::new();
    let dictionary: Arc<[u8]> = (0..5000).map(|at| (at / 7) as u8).collect();
    let with_dictionary = BlobFileOptions {
        dictionary: Some(dictionary),
        ..zstd()
    };
    for (number, options) in [BlobFileOptions::default(), zstd(), with_dictionary]
        .into_iter()
        .enumerate()
    {
        let number = number as u64 + 5;
        let mut builder = scratch.create(number, options);
        let mut stored = 0;
        let keys: Vec<_> = (0..300)
            .map(|i| internal(format!("key{i:05}").as_bytes(), i))
            .collect();
        for (index, key) in keys.iter().enumerate() {
            stored += builder.add(key, &value(index)).unwrap();
        }
        let properties = builder.finish().unwrap();
        assert_eq!((properties.records, properties.stored_bytes), (300, stored));
        let reader = scratch.open(number).unwrap();
        assert_eq!(reader.properties(), &properties);
        for (index, key) in keys.iter().enumerate() {
            assert_eq!(reader.get(key).unwrap().as_ref(), Some(&value(index)));
        }
        for absent in ["", "key", "key00000x", "key00100 ", "zzz"] {
            assert_eq!(reader.get(&internal(absent.as_bytes(), 5)).unwrap(), None);
        }
        assert_eq!(reader.get(&internal(b"key00005", 6)).unwrap(), None);
        let wanted: Vec<_> = keys.iter().map(|key| (&*reader, &key[..])).collect();
        let batch = BlobFileReader::get_batch(&scratch.fs, &wanted, 16).unwrap();
        for (index, found) in batch.into_iter().enumerate() {
            assert_eq!(found.unwrap(), Some(value(index)));
        }
        let mut iter = reader.iter();
        for (index, key) in keys.iter().enumerate() {
            assert!(iter.advance().unwrap());
            assert_eq!(
                (iter.key(), iter.value().unwrap()),
                (&key[..], value(index))
            );
        }
        assert!(!iter.advance().unwrap());
        reader.verify().unwrap();
    }
}

#[test]
fn any_flipped_bit_of_a_file_is_seen() {
    let scratch = Scratch::new();
    let dictionary: Arc<[u8]> = vec![7; 100].into();
    let options = BlobFileOptions {
        dictionary: Some(dictionary),
        ..zstd()
    };
    let mut builder = scratch.create(1, options);
    for index in 0..5 {
        let key = internal(format!("key{index}").as_bytes(), 3);
        let mut value = value(index);
        value.truncate(200);
        builder.add(&key, &value).unwrap();
    }
    builder.finish().unwrap();
    let read_all = |number: u64| -> crate::Result<()> { scratch.open(number)?.verify() };
    read_all(1).unwrap();
    let file = scratch.fs.open(Path::new("000001.blob")).unwrap();
    let mut bytes = vec![0; file.size().lower() as usize];
    file.read_at(0, &mut bytes).unwrap();
    for bit in 0..bytes.len() * 8 {
        let path = Path::new("copy");
        let copy = scratch.fs.create(path, &CreateOptions::default()).unwrap();
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        copy.append(&bad).unwrap();
        let found = BlobFileReader::open(copy, 1).and_then(|reader| reader.verify());
        let error = found.expect_err("a flipped bit is seen");
        assert!(error.is_corrupt(), "bit {bit}: {error}");
        scratch.fs.unlink(path).unwrap();
    }
}

#[test]
fn a_file_that_was_not_finished_cannot_be_opened() {
    let scratch = Scratch::new();
    let mut builder = scratch.create(3, zstd());
    builder.add(&internal(b"key", 1), &[1; 3 << 20]).unwrap();
    assert!(builder.estimated_size() > 0);
    builder.abandon();
    assert!(scratch.open(3).unwrap_err().is_corrupt());
}

#[test]
fn a_file_under_another_number_is_refused() {
    let scratch = Scratch::new();
    let mut builder = scratch.create(3, zstd());
    builder.add(&internal(b"key", 1), b"value").unwrap();
    builder.finish().unwrap();
    let file = scratch.fs.open(Path::new("000003.blob")).unwrap();
    assert!(BlobFileReader::open(file, 4).unwrap_err().is_corrupt());
}

#[test]
fn a_get_is_one_read_of_the_record_alone() {
    let scratch = Scratch::new();
    let mut builder = scratch.create(1, BlobFileOptions::default());
    let keys: Vec<_> = (0..50).map(|i| internal(&[i as u8; 30], 7)).collect();
    let lens: Vec<_> = keys
        .iter()
        .map(|key| builder.add(key, &[5; 9000]).unwrap())
        .collect();
    builder.finish().unwrap();
    let reader = scratch.open(1).unwrap();
    let mut offset = 64;
    for (key, len) in keys.iter().zip(lens) {
        assert_eq!(reader.locate(key), Some(RecordLocation { offset, len }));
        assert!(len <= 9000 + 64, "a record is not padded to a block");
        let before = scratch.fs.counters().read_ios;
        assert_eq!(reader.get(key).unwrap(), Some(vec![5; 9000]));
        assert_eq!(scratch.fs.counters().read_ios - before, 1);
        offset += len;
    }
}

#[test]
fn stored_values_are_copied_without_being_compressed_again() {
    let scratch = Scratch::new();
    let dictionary: Arc<[u8]> = vec![7; 100].into();
    for (number, dictionary) in [(10, None), (20, Some(dictionary))] {
        let options = BlobFileOptions {
            dictionary,
            ..zstd()
        };
        let mut builder = scratch.create(number, options);
        let keys: Vec<_> = (0..100_u64)
            .map(|i| internal(&i.to_be_bytes(), i))
            .collect();
        for (index, key) in keys.iter().enumerate() {
            builder.add(key, &value(index)).unwrap();
        }
        let properties = builder.finish().unwrap();
        let mut copy = scratch.create(number + 1, zstd());
        let mut iter = scratch.open(number).unwrap().iter();
        while iter.advance().unwrap() {
            let len = copy.add_stored(iter.key(), iter.stored()).unwrap();
            assert!(number == 20 || len == iter.location().len);
        }
        let copied = copy.finish().unwrap();
        assert_eq!(copied.raw_value_bytes, properties.raw_value_bytes);
        let reader = scratch.open(number + 1).unwrap();
        reader.verify().unwrap();
        for (index, key) in keys.iter().enumerate() {
            assert_eq!(reader.get(key).unwrap(), Some(value(index)));
        }
    }
}
