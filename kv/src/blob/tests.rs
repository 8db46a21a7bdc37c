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
        dictionary: None,
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
