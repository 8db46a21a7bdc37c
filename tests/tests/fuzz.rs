//! Every decoder's fuzz target for a moment: valid bytes, valid bytes changed, and noise. The long
//! runs, guided by coverage, are those of `tests/fuzz`; what they find becomes a file of
//! `tests/testdata/fuzz/TARGET`, and is run here ever after.

use std::path::Path;

use lavafs::{CheckMode, check};
use lavatests::fuzz::{TARGETS, Target, device_with_checkpoint};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

const ROUNDS: u64 = 3_000;

fn mutate(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..6) {
            0 => bytes.insert(at, rng.random()),
            1 => bytes.truncate(at),
            2 => {
                // The longest varint, wherever it may fall.
                let longest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
                let end = (at + rng.random_range(0..=longest.len())).min(bytes.len());
                bytes.splice(at..end, longest);
            }
            3 => {
                let from = rng.random_range(0..=at);
                let copy = bytes[from..at].to_vec();
                bytes.extend_from_slice(&copy[..copy.len().min(1000)]);
            }
            4 if at < bytes.len() => bytes[at] = rng.random(),
            _ if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            _ => {}
        }
    }
}

fn try_bytes(target: &Target, bytes: &[u8], what: &str) {
    let outcome = std::panic::catch_unwind(|| (target.run)(bytes));
    assert!(outcome.is_ok(), "{}: {what}: {bytes:02x?}", target.name);
}

#[test]
fn no_bytes_make_a_decoder_panic() {
    for target in TARGETS.iter().flat_map(|targets| targets.iter()) {
        let seed = (target.seed)();
        try_bytes(target, &seed, "seed");
        for round in 0..ROUNDS {
            let mut rng = StdRng::seed_from_u64(round);
            let mut bytes = seed.clone();
            mutate(&mut bytes, &mut rng);
            try_bytes(target, &bytes, &format!("mutation {round}"));
            let mut noise = vec![0; rng.random_range(0..300)];
            rng.fill_bytes(&mut noise);
            try_bytes(target, &noise, &format!("noise {round}"));
        }
    }
}

#[test]
fn what_fuzzing_once_found_stays_fixed() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/fuzz");
    let mut tried = 0;
    for target in TARGETS.iter().flat_map(|targets| targets.iter()) {
        let Ok(entries) = std::fs::read_dir(corpus.join(target.name)) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("a directory entry").path();
            let bytes = std::fs::read(&path).expect("a corpus file");
            try_bytes(target, &bytes, &path.display().to_string());
            tried += 1;
        }
    }
    assert!(tried > 0, "no files below {}", corpus.display());
}

#[test]
fn the_seed_of_the_image_target_is_a_whole_filesystem() {
    let seed = lavafs::fuzzing::checkpoint_seed();
    let device = device_with_checkpoint(&seed).expect("it fits");
    let report = check(device, CheckMode::ReadOnly).expect("it is readable");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(
        (report.files, report.directories, report.extents),
        (1, 2, 1)
    );
}
