//! Speed of the storage leaves, each alone: memtable, filter, blocks, tables, merge.
//!
//! `cargo bench -p lavakv --bench leaves [-- NAME]` prints one line per measurement whose name
//! begins with NAME (filter, memtable, table, merge or blob, and on): the best of three rounds. Tables
//! lie in a temporary directory and are read through the block cache.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lavafs::{CreateOptions, FileSystem, HostFs};
use lavakv::blob::{BlobFileBuilder, BlobFileOptions, BlobFileReader};
use lavakv::cache::BlockCache;
use lavakv::iter::{InternalIterator, MergingIterator};
use lavakv::key::{InternalKey, LookupKey, MAX_SEQ, ValueKind};
use lavakv::memtable::MemTable;
use lavakv::sstable::{
    Compression, OpenOptions, Table, TableBuilder, TableOptions, TableReadOptions, filter_hash,
};

const VALUE_LEN: usize = 100;
const MEMTABLE_ENTRIES: u64 = 400_000;
const TABLE_ENTRIES: u64 = 400_000;

/// db_bench's keys: eight bytes of number, then zeros.
fn key(number: u64) -> [u8; 16] {
    let mut key = [b'0'; 16];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key
}

fn random(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 24
}

/// The measurements asked for, if not all.
fn wanted() -> Option<String> {
    std::env::args().nth(1).filter(|arg| !arg.starts_with('-'))
}

/// Runs `round` three times and prints the best; `round` returns what it timed and did.
fn measure(name: &str, mut round: impl FnMut() -> (Duration, u64)) {
    if !wanted().is_none_or(|wanted| name.starts_with(&wanted)) {
        return;
    }
    let best = (0..3)
        .map(|_| {
            let (elapsed, count) = round();
            elapsed.as_nanos() as f64 / count as f64
        })
        .min_by(f64::total_cmp)
        .expect("three rounds");
    println!("{name:<44} {best:>9.1} ns  {:>9.3} M/s", 1e3 / best);
}

fn timed(count: u64, work: impl FnOnce()) -> (Duration, u64) {
    let start = Instant::now();
    work();
    (start.elapsed(), count)
}

fn memtables() {
    let value = [7; VALUE_LEN];
    let fill = |table: &MemTable, from: u64, step: u64, order: fn(u64, &mut u64) -> u64| {
        let mut state = from + 1;
        let mut i = from;
        while i < MEMTABLE_ENTRIES {
            table.insert(i, ValueKind::Value, &key(order(i, &mut state)), &value);
            i += step;
        }
    };
    let in_order = |i: u64, _: &mut u64| i;
    let at_random = |_: u64, state: &mut u64| random(state) % 10_000_000;
    measure("memtable insert, ascending", || {
        let table = MemTable::new(1);
        timed(MEMTABLE_ENTRIES, || fill(&table, 0, 1, in_order))
    });
    measure("memtable insert, random", || {
        let table = MemTable::new(1);
        timed(MEMTABLE_ENTRIES, || fill(&table, 0, 1, at_random))
    });
    measure("memtable insert, random, 2 threads", || {
        let table = MemTable::new(1);
        timed(MEMTABLE_ENTRIES, || {
            std::thread::scope(|scope| {
                for thread in 0..2 {
                    let table = &table;
                    scope.spawn(move || fill(table, thread, 2, at_random));
                }
            });
        })
    });
    let table = MemTable::new(1);
    fill(&table, 0, 1, at_random);
    println!(
        "  memory per entry: {} bytes",
        table.approximate_memory() as u64 / MEMTABLE_ENTRIES
    );
    measure("memtable get, random, mostly absent", || {
        let mut state = 99;
        timed(500_000, || {
            for _ in 0..500_000 {
                black_box(table.get(&key(random(&mut state) % 10_000_000), MAX_SEQ));
            }
        })
    });
    measure("memtable iterator next", || {
        let mut iter = table.iter();
        iter.seek_to_first();
        timed(MEMTABLE_ENTRIES, || {
            while iter.valid() {
                black_box(iter.value());
                iter.next();
            }
        })
    });
}

fn build(fs: &HostFs, number: u64, options: TableOptions, keys: impl Iterator<Item = u64>) {
    let path = format!("/{number:06}.sst");
    let file = fs
        .create(Path::new(&path), &CreateOptions::default())
        .expect("a fresh directory");
    let mut builder = TableBuilder::new(file, options);
    let mut state = number;
    let mut value = [0; VALUE_LEN];
    for number in keys {
        // Half of the value is random, as db_bench's compression ratio of 0.5.
        value[..VALUE_LEN / 2].fill_with(|| random(&mut state) as u8);
        let key = InternalKey::new(&key(number), 100 + number, ValueKind::Value);
        builder
            .add(key.as_bytes(), &value)
            .expect("the disk has room");
    }
    builder.finish().expect("the disk has room");
}

fn open(fs: &HostFs, number: u64, cache: &Arc<BlockCache>, pin: bool) -> Arc<Table> {
    let file = fs
        .open(Path::new(&format!("/{number:06}.sst")))
        .expect("just built");
    let options = OpenOptions {
        pin_index_and_filter: pin,
    };
    Table::open(file, number, Arc::clone(cache), options).expect("just built")
}

fn get_all(table: &Table, count: u64, spread: u64, odd: u64) {
    let mut state = 5;
    for _ in 0..count {
        let key = key(random(&mut state) % TABLE_ENTRIES * spread + odd);
        let hash = filter_hash(&key);
        let found = table
            .get(&LookupKey::new(&key, MAX_SEQ), hash)
            .expect("readable");
        assert_eq!(found.is_some(), odd == 0);
        black_box(found);
    }
}

fn tables(fs: &HostFs) {
    let names = [
        ("plain", Compression::None, true),
        ("no hash index", Compression::None, false),
        ("zstd", Compression::Zstd { level: 1 }, true),
    ];
    let cache = BlockCache::new(256 << 20);
    let mut number = 0;
    for (name, compression, hash_index) in names {
        let options = TableOptions {
            compression,
            hash_index,
            ..TableOptions::default()
        };
        measure(&format!("table build, {name}"), || {
            number += 1;
            let keys = (0..TABLE_ENTRIES).map(|i| i * 2);
            timed(TABLE_ENTRIES, || build(fs, number, options.clone(), keys))
        });
        number += 1;
        build(fs, number, options, (0..TABLE_ENTRIES).map(|i| i * 2));
        let table = open(fs, number, &cache, false);
        measure(&format!("table get from the disk, {name}"), || {
            let cold = open(fs, number, &BlockCache::new(0), true);
            timed(20_000, || get_all(&cold, 20_000, 2, 0))
        });
        get_all(&table, 3_000_000, 2, 0);
        measure(&format!("table get from the cache, {name}"), || {
            timed(500_000, || get_all(&table, 500_000, 2, 0))
        });
        let pinned = open(fs, number, &cache, true);
        get_all(&pinned, 3_000_000, 2, 0);
        measure(
            &format!("table get, index and filter pinned, {name}"),
            || timed(500_000, || get_all(&pinned, 500_000, 2, 0)),
        );
        measure(&format!("table get of absent keys, {name}"), || {
            timed(500_000, || get_all(&table, 500_000, 2, 1))
        });
        walks(&table, name);
    }
}

fn walks(table: &Arc<Table>, name: &str) {
    let options = TableReadOptions::default();
    measure(&format!("table iterator next, cached, {name}"), || {
        let mut iter = table.iter(options);
        iter.seek_to_first();
        timed(TABLE_ENTRIES, || {
            while iter.valid() {
                black_box((iter.key(), iter.value()));
                iter.next();
            }
        })
    });
    measure(&format!("table iterator prev, cached, {name}"), || {
        let mut iter = table.iter(options);
        iter.seek_to_last();
        timed(TABLE_ENTRIES, || {
            while iter.valid() {
                black_box((iter.key(), iter.value()));
                iter.prev();
            }
        })
    });
    measure(
        &format!("table iterator next, from the disk, {name}"),
        || {
            let mut iter = table.iter(TableReadOptions {
                bypass_cache: true,
                readahead_bytes: 1 << 20,
                ..options
            });
            iter.seek_to_first();
            timed(TABLE_ENTRIES, || {
                while iter.valid() {
                    black_box((iter.key(), iter.value()));
                    iter.next();
                }
            })
        },
    );
    measure(&format!("table iterator seek, cached, {name}"), || {
        let mut iter = table.iter(options);
        let mut state = 3;
        timed(300_000, || {
            for _ in 0..300_000 {
                let key = key(random(&mut state) % (2 * TABLE_ENTRIES));
                iter.seek(LookupKey::new(&key, MAX_SEQ).internal());
                black_box(iter.valid());
            }
        })
    });
}

fn merges(fs: &HostFs) {
    let cache = BlockCache::new(256 << 20);
    for (number, ways) in [(100, 4), (200, 8)] {
        let tables: Vec<_> = (0..ways)
            .map(|way| {
                let keys = (0..TABLE_ENTRIES / ways).map(|i| i * ways + way);
                build(fs, number + way, TableOptions::default(), keys);
                open(fs, number + way, &cache, false)
            })
            .collect();
        measure(&format!("merge of {ways} tables, next, cached"), || {
            let children = tables.iter().map(|table| {
                Box::new(table.iter(TableReadOptions::default())) as Box<dyn InternalIterator>
            });
            let mut merge = MergingIterator::new(children.collect());
            merge.seek_to_first();
            let mut count = 0;
            let (elapsed, _) = timed(1, || {
                while merge.valid() {
                    black_box((merge.key(), merge.value()));
                    merge.next();
                    count += 1;
                }
            });
            (elapsed, count)
        });
    }
}

/// Lookups in the indexes of blob files, and reads of values of 512 bytes.
fn blobs(fs: &HostFs) {
    for (number, records) in [(300, 16_000_u64), (301, 100_000)] {
        let path = format!("/{number:06}.blob");
        let file = fs
            .create(Path::new(&path), &CreateOptions::default())
            .expect("a fresh directory");
        let internal_key = |record: u64| {
            let mut key = [b'0'; 36];
            key[..8].copy_from_slice(&(record * 40 + record % 37).to_be_bytes());
            InternalKey::new(&key, record, ValueKind::BlobReference)
        };
        let mut state = number;
        let mut builder = BlobFileBuilder::create(file, number, BlobFileOptions::default())
            .expect("the options are in range");
        for record in 0..records {
            let value = vec![7; 450 + random(&mut state) as usize % 64];
            builder
                .add(internal_key(record).as_bytes(), &value)
                .expect("the disk has room");
        }
        builder.finish().expect("the disk has room");
        let file = fs.open(Path::new(&path)).expect("just built");
        let reader = BlobFileReader::open(file, number).expect("just built");
        let per_key = reader.index().memory() as f64 / records as f64;
        measure(
            &format!("blob locate, {records} records, {per_key:.3} B/key"),
            || {
                let keys: Vec<_> = (0..100_000)
                    .map(|_| internal_key(random(&mut state) % records))
                    .collect();
                timed(100_000, || {
                    for key in &keys {
                        black_box(reader.locate(key.as_bytes()));
                    }
                })
            },
        );
        measure(
            &format!("blob get from the disk, {records} records"),
            || {
                timed(20_000, || {
                    for _ in 0..20_000 {
                        let key = internal_key(random(&mut state) % records);
                        black_box(reader.get(key.as_bytes()).expect("readable"));
                    }
                })
            },
        );
    }
}

fn hashes() {
    measure("filter hash of a 16-byte key", || {
        timed(5_000_000, || {
            for i in 0..5_000_000 {
                black_box(filter_hash(&key(i)));
            }
        })
    });
}

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let fs = HostFs::open(dir.path()).expect("the directory is fresh");
    let is_wanted = |section: &str| wanted().is_none_or(|wanted| wanted.starts_with(section));
    if is_wanted("filter") {
        hashes();
    }
    if is_wanted("memtable") {
        memtables();
    }
    if is_wanted("table") {
        tables(&fs);
    }
    if is_wanted("merge") {
        merges(&fs);
    }
    if is_wanted("blob") {
        blobs(&fs);
    }
}
