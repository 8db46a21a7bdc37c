//! The picker as a function: versions in, choices out, no database.

use super::super::split::split;
use super::*;
use crate::env::Env;
use crate::key::{InternalKey, ValueKind};
use crate::version::{CfEdit, Hidden, ObsoleteFiles, SstMeta};
use lavafs::{FileSystemRef, HostFs};
use std::collections::HashSet;

fn options() -> PickerOptions {
    PickerOptions {
        l0_trigger: 4,
        base_bytes: 1000,
        multiplier: 10.0,
        target_file_size: 100,
        ..PickerOptions::of(&Options::default())
    }
}

fn fixed() -> PickerOptions {
    PickerOptions {
        dynamic: false,
        ..options()
    }
}

/// A version of seven levels with tables (level, run, number, first key, last key, bytes).
fn version(tables: &[(u32, u64, u64, &str, &str, u64)]) -> Version {
    let dir = tempfile::tempdir().unwrap();
    let fs: FileSystemRef = Arc::new(HostFs::open(dir.path()).unwrap());
    let remover = ObsoleteFiles::new(fs, "/".into(), Env::new(1, 1), 0);
    let added = tables
        .iter()
        .map(|&(level, run, number, low, high, file_size)| {
            let meta = SstMeta {
                blob_refs: Vec::new(),
                hidden: Hidden {
                    entries: if number == 88 { 4 } else { 0 },
                    value_bytes: 0,
                },
                number,
                file_size,
                smallest: InternalKey::new(low.as_bytes(), 9, ValueKind::Value).into_bytes(),
                largest: InternalKey::new(high.as_bytes(), 9, ValueKind::Value).into_bytes(),
                entries: 100,
                deletions: if number == 77 { 90 } else { 0 },
                checksum: 0,
                smallest_seq: 9,
                largest_seq: 9,
                created: number * 10,
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
    assert!(pick(&version(&[]), &options(), &[]).is_none());
    let three = version(&[
        (0, 1, 1, "a", "z", 10),
        (0, 2, 2, "a", "z", 10),
        (0, 3, 3, "a", "z", 10),
    ]);
    assert!(pick(&three, &options(), &[]).is_none());
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
    let choice = pick(&version(&tables), &options(), &[]).unwrap();
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
    let choice = pick(&version(&tables), &fixed(), &[]).unwrap();
    assert_eq!(
        (choice.output_level, numbers(&choice)),
        (1, vec![1, 2, 3, 4])
    );
}

#[test]
fn dynamic_targets_follow_the_last_level() {
    let score_of = |last: u64| score(&version(&[(6, 0, 1, "a", "z", last)]), &options());
    assert_eq!(score_of(500).shape.base_level, 6);
    // Once the last level exceeds the base size, one more level is used above it.
    let score = score_of(5000);
    assert_eq!(
        (score.shape.base_level, score.shape.levels[6].capacity),
        (5, 5000)
    );
    assert_eq!(score_of(50_000).shape.base_level, 4);
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
    let choice = pick(&version(&tables), &fixed(), &[]).unwrap();
    assert_eq!((choice.output_level, numbers(&choice)), (2, vec![2, 4]));
}

#[test]
fn a_table_without_overlap_is_moved() {
    let choice = pick(&version(&[(1, 0, 1, "a", "c", 1100)]), &fixed(), &[]).unwrap();
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
    let first = pick(&version, &fixed(), &[]).unwrap();
    assert_eq!(numbers(&first), [2]);
    let second = pick(&version, &fixed(), &[first.in_flight()]).unwrap();
    assert_eq!(numbers(&second), [1, 3]);
    assert!(pick(&version, &fixed(), &[first.in_flight(), second.in_flight()]).is_none());
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
    assert!(pick(&version, &fixed(), &[]).is_some());
    assert!(pick(&version, &fixed(), &[busy]).is_none());
}

#[test]
fn level_0_waits_while_any_of_its_runs_is_in_flight() {
    let tables: Vec<_> = (1..=8).map(|n| (0, n, n, "a", "z", 10)).collect();
    let version = version(&tables);
    let mut busy = pick(&version, &options(), &[]).unwrap().in_flight();
    busy.inputs.retain(|&number| number == 3);
    assert!(pick(&version, &options(), &[busy]).is_none());
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
    let choice = pick_range(&version, 1, range, &fixed(), &[])
        .unwrap()
        .unwrap();
    assert_eq!(numbers(&choice), [2, 3]);
    let busy = choice.in_flight();
    assert!(
        pick_range(&version, 1, range, &fixed(), &[busy])
            .unwrap()
            .is_err()
    );
    assert!(pick_range(&version, 3, range, &fixed(), &[]).is_none());
}

fn of_style(style: CompactionStyle) -> PickerOptions {
    PickerOptions {
        policy: CompactionOptions {
            style,
            ..CompactionOptions::default()
        },
        multiplier: 4.0,
        l0_trigger: 2,
        ..options()
    }
}

/// What a choice does, as text: inputs as level/run, then the output.
fn told(choice: Option<Choice>) -> String {
    let Some(choice) = choice else {
        return "nothing".to_owned();
    };
    let place = |level: usize, run: u64| format!("{level}/{run}");
    let inputs: Vec<String> = choice
        .inputs
        .iter()
        .map(|input| place(input.level, input.run))
        .collect();
    let output = place(choice.output_level, choice.output_run);
    format!("{:?} {} -> {output}", choice.action, inputs.join(" "))
}

type Table = (u32, u64, u64, &'static str, &'static str, u64);

#[test]
fn policies_of_whole_runs_choose_as_their_papers_say() {
    use CompactionStyle::{Bush, Fluid, LazyLevel, Tiered};
    // At T = 4 a tiered level has three runs, a lazily leveled last level one.
    let cases: [(&str, CompactionStyle, &[Table], &str); 9] = [
        (
            "one run of level 0 is none too many",
            Tiered,
            &[(0, 1, 1, "a", "z", 100)],
            "nothing",
        ),
        (
            "level 0 becomes a run of its own beside a large one",
            Tiered,
            &[
                (0, 8, 8, "a", "z", 100),
                (0, 7, 7, "a", "z", 100),
                (6, 0, 1, "a", "z", 600),
            ],
            "Merge 0/8 0/7 -> 6/1",
        ),
        (
            "a full last level takes everything into one run",
            Tiered,
            &[
                (0, 8, 8, "a", "z", 100),
                (0, 7, 7, "a", "z", 100),
                (6, 5, 3, "a", "z", 300),
                (6, 4, 2, "a", "z", 300),
                (6, 0, 1, "a", "z", 300),
            ],
            "Merge 0/8 0/7 6/5 6/4 6/0 -> 6/5",
        ),
        (
            "the one run of a lazily leveled last level takes what comes",
            LazyLevel,
            &[
                (0, 8, 8, "a", "z", 100),
                (0, 7, 7, "a", "z", 100),
                (6, 0, 1, "a", "z", 900),
            ],
            "Merge 0/8 0/7 6/0 -> 6/0",
        ),
        (
            "above it runs lie side by side",
            LazyLevel,
            &[
                (0, 8, 8, "a", "z", 100),
                (0, 7, 7, "a", "z", 100),
                (5, 2, 2, "a", "z", 300),
                (6, 0, 1, "a", "z", 5000),
            ],
            "Merge 0/8 0/7 -> 5/3",
        ),
        (
            "a level with all its runs goes down with what came",
            LazyLevel,
            &[
                (0, 8, 8, "a", "z", 100),
                (0, 7, 7, "a", "z", 100),
                (5, 4, 4, "a", "z", 300),
                (5, 3, 3, "a", "z", 300),
                (5, 2, 2, "a", "z", 300),
                (6, 0, 1, "a", "z", 5000),
            ],
            "Merge 0/8 0/7 5/4 5/3 5/2 6/0 -> 6/0",
        ),
        (
            "a fluid level's newest run grows to its share",
            Fluid,
            &[
                (0, 8, 8, "a", "z", 50),
                (0, 7, 7, "a", "z", 50),
                (5, 2, 2, "a", "z", 100),
                (6, 0, 1, "a", "z", 5000),
            ],
            "Merge 0/8 0/7 5/2 -> 5/2",
        ),
        (
            "a level over its capacity goes down",
            Bush,
            &[
                (5, 4, 4, "a", "z", 1500),
                (5, 3, 3, "a", "z", 1500),
                (6, 0, 1, "a", "z", 8000),
            ],
            "Merge 5/4 5/3 6/0 -> 6/0",
        ),
        (
            "level 0 never passes by what is newer",
            LazyLevel,
            &[
                (0, 8, 8, "a", "z", 100),
                (0, 7, 7, "a", "z", 100),
                (3, 0, 2, "a", "z", 10),
            ],
            "Merge 3/0 -> 4/0",
        ),
    ];
    for (what, style, tables, wanted) in cases {
        let choice = pick(&version(tables), &of_style(style), &[]);
        assert_eq!(told(choice), wanted, "{what}");
    }
}

#[test]
fn universal_compaction_chooses_as_rocksdbs() {
    let options = PickerOptions {
        l0_trigger: 4,
        ..of_style(CompactionStyle::Universal)
    };
    let runs = |sizes: &[u64]| {
        let tables: Vec<Table> = sizes
            .iter()
            .zip(1..)
            .map(|(&size, number)| (0, 100 - number, number, "a", "z", size))
            .collect();
        told(pick(&version(&tables), &options, &[]))
    };
    assert_eq!(runs(&[1, 1, 1]), "nothing");
    // Three times the oldest run is too much space.
    assert_eq!(runs(&[1, 1, 1, 1]), "Merge 0/99 0/98 0/97 0/96 -> 6/0");
    assert_eq!(runs(&[10, 10, 20, 1000]), "Merge 0/99 0/98 0/97 -> 0/99");
    assert_eq!(runs(&[10, 50, 50, 1000]), "Merge 0/98 0/97 -> 0/98");
    // No two alike: the two newest, so that three are left.
    assert_eq!(runs(&[10, 50, 200, 1000]), "Merge 0/99 0/98 -> 0/99");
}

#[test]
fn a_fifo_drops_the_oldest_by_size_and_age_and_merges_nothing() {
    let mut options = of_style(CompactionStyle::Fifo);
    options.policy.fifo_max_table_files_size = 250;
    let tables: Vec<Table> = (1..=4).map(|n| (0, n, n, "a", "z", 100)).collect();
    let full = version(&tables);
    assert_eq!(told(pick(&full, &options, &[])), "Drop 0/2 0/1 -> 0/1");
    options.policy.fifo_max_table_files_size = 400;
    assert_eq!(told(pick(&full, &options, &[])), "nothing");
    // The test's tables were made at their number times ten seconds.
    options.policy.fifo_ttl = 100;
    options.now = 129;
    assert_eq!(told(pick(&full, &options, &[])), "Drop 0/2 0/1 -> 0/1");
    options.now = 109;
    assert_eq!(told(pick(&full, &options, &[])), "nothing");
}

#[test]
fn a_change_of_policy_moves_surplus_runs_only_while_there_is_credit() {
    // Three tiered runs in what is a leveled database now.
    let tables = [
        (6, 3, 6, "a", "m", 100),
        (6, 3, 5, "n", "z", 100),
        (6, 2, 4, "a", "m", 100),
        (6, 2, 3, "n", "z", 100),
        (6, 0, 2, "a", "m", 500),
        (6, 0, 1, "n", "z", 400),
    ];
    let version = version(&tables);
    assert!(pick(&version, &options(), &[]).is_none());
    let credit = PickerOptions {
        migration_credit: 1,
        ..options()
    };
    let choice = pick(&version, &credit, &[]).unwrap();
    assert_eq!(
        (choice.action, numbers(&choice)),
        (Action::Migrate, vec![1, 3])
    );
    assert_eq!((choice.output_level, choice.output_run), (6, 0));
    // One at a time.
    assert!(pick(&version, &credit, &[choice.in_flight()]).is_none());
}

#[test]
fn a_table_of_deletions_sinks_until_they_are_gone() {
    let options = PickerOptions {
        oldest_snapshot: 9,
        ..options()
    };
    // Table 77 is mostly deletions in the tests' versions.
    let above = version(&[(5, 0, 77, "a", "c", 10), (6, 0, 2, "b", "z", 10)]);
    let choice = pick(&above, &options, &[]).unwrap();
    assert_eq!((choice.output_level, numbers(&choice)), (6, vec![2, 77]));
    let bottom = version(&[(6, 0, 77, "a", "c", 10), (6, 0, 2, "d", "z", 10)]);
    let choice = pick(&bottom, &options, &[]).unwrap();
    assert_eq!((choice.output_level, numbers(&choice)), (6, vec![77]));
    assert!(!choice.is_trivial_move());
    // A snapshot that does not see them keeps them, and rewriting would gain nothing.
    let held = PickerOptions {
        oldest_snapshot: 8,
        ..options
    };
    assert!(pick(&bottom, &held, &[]).is_none());
}

#[test]
fn a_table_of_the_last_level_is_written_anew_when_no_snapshot_needs_what_it_keeps() {
    let seen = |oldest_snapshot| PickerOptions {
        oldest_snapshot,
        ..options()
    };
    // Of table 88 a twenty-fifth is hidden in the tests' versions.
    let bottom = version(&[(6, 0, 88, "a", "c", 10), (6, 0, 2, "d", "z", 10)]);
    assert_eq!(
        told(pick(&bottom, &seen(9), &[])),
        "Merge 6/0 -> 6/0",
        "in its place"
    );
    assert!(pick(&bottom, &seen(8), &[]).is_none(), "nothing to gain");
    let awaited = |oldest| awaited(&bottom, &CompactionOptions::default(), oldest);
    assert_eq!((awaited(8), awaited(9)), (Some(9), None));
    let everything = (None, None);
    let by_hand = pick_range(&bottom, 6, everything, &seen(9), &[]).unwrap();
    assert_eq!(numbers(&by_hand.unwrap()), [88]);
    let beside = (Some(&b"d"[..]), None);
    assert!(pick_range(&bottom, 6, beside, &seen(9), &[]).is_none());
    // Above the last level it is compacted anyway.
    let above = version(&[(5, 0, 88, "a", "c", 10), (6, 0, 2, "b", "z", 10)]);
    assert!(pick(&above, &seen(9), &[]).is_none());
}

#[test]
fn disjoint_tables_of_any_number_of_runs_are_moved() {
    let tables = [
        (0, 1, 1, "a", "b", 10),
        (0, 2, 2, "c", "d", 10),
        (0, 3, 3, "e", "f", 10),
        (0, 4, 4, "g", "h", 10),
    ];
    let choice = pick(&version(&tables), &options(), &[]).unwrap();
    assert!(choice.is_trivial_move());
}

#[test]
fn parts_of_a_compaction_cover_every_key_once_with_similar_bytes() {
    let names: Vec<String> = (0..40).map(|number| format!("{number:02}")).collect();
    let tables: Vec<(u32, u64, u64, &str, &str, u64)> = names
        .iter()
        .zip(1..)
        .map(|(name, number)| {
            let level = 5 + u32::from(number % 4 > 0);
            (level, 0, number, name.as_str(), name.as_str(), 100)
        })
        .collect();
    let version = version(&tables);
    let whole = |level: usize| Input::whole(level, &version.levels[level].runs[0]);
    let choice = Choice {
        action: Action::Merge,
        inputs: vec![whole(5), whole(6)],
        output_level: 6,
        output_run: 0,
    };
    for (parts, bytes_min, wanted) in [(1, 1, 1), (4, 1, 4), (4, 2000, 2), (64, 9000, 1), (7, 1, 7)]
    {
        let split = split(&choice, parts, bytes_min);
        assert_eq!(split.len(), wanted, "{parts} parts of at least {bytes_min}");
        assert!(split[0].0.is_none() && split[wanted - 1].1.is_none());
        for pair in split.windows(2) {
            assert_eq!(pair[0].1, pair[1].0);
        }
        let bytes = split.iter().map(|(begin, end)| {
            let inside = |name: &&String| {
                let name = name.as_bytes();
                begin.as_deref().is_none_or(|begin| name >= begin)
                    && end.as_deref().is_none_or(|end| name < end)
            };
            names.iter().filter(inside).count() as u64 * 100
        });
        let bytes: Vec<u64> = bytes.collect();
        assert_eq!(bytes.iter().sum::<u64>(), 4000);
        assert!(
            bytes
                .iter()
                .all(|&bytes| bytes <= 4000 / wanted as u64 + 100),
            "{bytes:?}"
        );
    }
}
