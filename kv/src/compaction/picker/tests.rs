//! The picker as a function: versions in, choices out, no database.

use super::*;
use crate::env::Env;
use crate::key::{InternalKey, ValueKind};
use crate::version::{CfEdit, ObsoleteFiles, SstMeta};
use lavafs::{FileSystemRef, HostFs};

const OPTIONS: PickerOptions = PickerOptions {
    l0_trigger: 4,
    base_bytes: 1000,
    multiplier: 10.0,
    dynamic: true,
    target_file_size: 100,
};

const STATIC: PickerOptions = PickerOptions {
    dynamic: false,
    ..OPTIONS
};

/// A version of seven levels with tables (level, run, number, first key, last key, bytes).
fn version(tables: &[(u32, u64, u64, &str, &str, u64)]) -> Version {
    let dir = tempfile::tempdir().unwrap();
    let fs: FileSystemRef = Arc::new(HostFs::open(dir.path()).unwrap());
    let remover = ObsoleteFiles::new(fs, "/".into(), Env::new(1, 1));
    let added = tables
        .iter()
        .map(|&(level, run, number, low, high, file_size)| {
            let meta = SstMeta {
                blob_refs: Vec::new(),
                number,
                file_size,
                smallest: InternalKey::new(low.as_bytes(), 9, ValueKind::Value).into_bytes(),
                largest: InternalKey::new(high.as_bytes(), 9, ValueKind::Value).into_bytes(),
                entries: 1,
                deletions: 0,
                checksum: 0,
                smallest_seq: 9,
                largest_seq: 9,
            };
            (level, run, meta)
        });
    let edit = CfEdit {
        added: added.collect(),
        ..CfEdit::default()
    };
    Version::empty(7).apply(&edit, &remover).unwrap()
}

fn numbers(choice: &Choice) -> Vec<u64> {
    let mut numbers: Vec<u64> = choice.files().map(|(_, file)| file.meta.number).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn nothing_is_due_below_the_triggers() {
    assert!(pick(&version(&[]), &OPTIONS, &[]).is_none());
    let three = version(&[
        (0, 1, 1, "a", "z", 10),
        (0, 2, 2, "a", "z", 10),
        (0, 3, 3, "a", "z", 10),
    ]);
    assert!(pick(&three, &OPTIONS, &[]).is_none());
}

#[test]
fn level_0_goes_to_the_base_level_with_all_its_runs_and_what_they_overlap() {
    let tables = [
        (0, 1, 1, "a", "c", 10),
        (0, 2, 2, "b", "d", 10),
        (0, 3, 3, "a", "b", 10),
        (0, 4, 4, "c", "e", 10),
        (6, 0, 5, "a", "b", 50),
        (6, 0, 6, "d", "f", 50),
        (6, 0, 7, "g", "h", 50),
    ];
    let choice = pick(&version(&tables), &OPTIONS, &[]).unwrap();
    assert_eq!(
        (choice.output_level, numbers(&choice)),
        (6, vec![1, 2, 3, 4, 5, 6])
    );
    // Inputs come from new to old: runs of level 0 by falling id, then the level below.
    let order: Vec<u64> = choice
        .inputs
        .iter()
        .map(|input| input.files[0].meta.number)
        .collect();
    assert_eq!(order, [4, 3, 2, 1, 5]);
    let choice = pick(&version(&tables), &STATIC, &[]).unwrap();
    assert_eq!(
        (choice.output_level, numbers(&choice)),
        (1, vec![1, 2, 3, 4])
    );
}

#[test]
fn dynamic_targets_follow_the_last_level() {
    let score_of = |last: u64| score(&version(&[(6, 0, 1, "a", "z", last)]), &OPTIONS);
    assert_eq!(score_of(500).base_level, 6);
    // Once the last level exceeds the base size, one more level is used above it.
    let score = score_of(5000);
    assert_eq!((score.base_level, score.targets[6]), (5, 5000));
    assert_eq!(score_of(50_000).base_level, 4);
    assert!(score_of(50_000).scores.iter().all(|&score| score < 1.0));
}

#[test]
fn a_level_over_its_target_gives_the_table_with_the_least_overlap() {
    let tables = [
        (1, 0, 1, "a", "c", 600),
        (1, 0, 2, "d", "f", 600),
        (2, 0, 3, "a", "c", 500),
        (2, 0, 4, "d", "d", 100),
    ];
    let choice = pick(&version(&tables), &STATIC, &[]).unwrap();
    assert_eq!((choice.output_level, numbers(&choice)), (2, vec![2, 4]));
}

#[test]
fn a_table_without_overlap_is_moved() {
    let choice = pick(&version(&[(1, 0, 1, "a", "c", 1100)]), &STATIC, &[]).unwrap();
    assert!(choice.is_trivial_move());
    assert_eq!(choice.output_level, 2);
}

#[test]
fn what_is_in_flight_is_not_touched() {
    let tables = [
        (1, 0, 1, "a", "c", 600),
        (1, 0, 2, "d", "f", 600),
        (2, 0, 3, "a", "c", 500),
    ];
    let version = version(&tables);
    let first = pick(&version, &STATIC, &[]).unwrap();
    assert_eq!(numbers(&first), [2]);
    let second = pick(&version, &STATIC, &[first.in_flight()]).unwrap();
    assert_eq!(numbers(&second), [1, 3]);
    assert!(pick(&version, &STATIC, &[first.in_flight(), second.in_flight()]).is_none());
}

#[test]
fn outputs_in_flight_at_a_level_never_overlap() {
    // Level 0 is being merged into level 2, where it has no inputs; a table of level 1 in the same
    // range must wait, or both would put tables there.
    let busy = InFlight {
        inputs: HashSet::from([90]),
        output_level: 2,
        smallest: b"b".to_vec(),
        largest: b"c".to_vec(),
    };
    let version = version(&[(1, 0, 1, "a", "d", 1100)]);
    assert!(pick(&version, &STATIC, &[]).is_some());
    assert!(pick(&version, &STATIC, &[busy]).is_none());
}

#[test]
fn level_0_waits_while_any_of_its_runs_is_in_flight() {
    let tables: Vec<_> = (1..=8).map(|n| (0, n, n, "a", "z", 10)).collect();
    let version = version(&tables);
    let mut busy = pick(&version, &OPTIONS, &[]).unwrap().in_flight();
    busy.inputs.retain(|&number| number == 3);
    assert!(pick(&version, &OPTIONS, &[busy]).is_none());
}

#[test]
fn a_manual_range_takes_only_what_overlaps() {
    let tables = [
        (1, 0, 1, "a", "c", 10),
        (1, 0, 2, "d", "f", 10),
        (2, 0, 3, "e", "g", 10),
    ];
    let version = version(&tables);
    let range = (Some(&b"e"[..]), Some(&b"z"[..]));
    let choice = pick_range(&version, 1, range, &STATIC, &[])
        .unwrap()
        .unwrap();
    assert_eq!(numbers(&choice), [2, 3]);
    let busy = choice.in_flight();
    assert!(
        pick_range(&version, 1, range, &STATIC, &[busy])
            .unwrap()
            .is_err()
    );
    assert!(pick_range(&version, 3, range, &STATIC, &[]).is_none());
}
