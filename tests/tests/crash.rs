//! The crash explorer at the length that every run of the tests can afford.

use lavatests::crash::{Effort, explore, explore_engine, explore_mkfs, explore_threads};

/// Explores worlds from `first` on until `least` states were seen.
fn explore_from(first: u64, least: u64, effort: &Effort) {
    let mut states = 0;
    let mut seed = first;
    while states < least {
        match explore(seed, effort) {
            Ok(seen) => states += seen,
            Err(violation) => panic!("{violation}"),
        }
        seed += 1;
    }
    println!("{states} states of {} worlds", seed - first);
}

#[test]
fn synced_things_survive_any_crash_and_nothing_is_invented() {
    explore_from(0, 70_000, &Effort::default());
}

#[test]
fn short_lives_survive_crash_after_crash() {
    // Most of a short life is the mount and its checkpoint: recovery crashed again and again.
    let effort = Effort {
        lives: 12,
        steps: 15,
        crashes: 8,
    };
    explore_from(1_000_000, 30_000, &effort);
}

#[test]
fn a_crashed_mkfs_leaves_no_filesystem_or_a_whole_one() {
    for seed in 0..60 {
        let explored = explore_mkfs(seed, 16);
        explored.unwrap_or_else(|violation| panic!("mkfs {violation}"));
    }
}

#[test]
fn threads_lose_nothing_acknowledged_and_keep_their_order() {
    for seed in 0..12 {
        let explored = explore_threads(seed, 40, 2);
        explored.unwrap_or_else(|violation| panic!("threads {violation}"));
    }
}

#[test]
fn engines_keep_what_was_durable_and_every_batch_whole() {
    let mut states = 0;
    for seed in 0..6 {
        let explored = explore_engine(seed, &Effort::default());
        states += explored.unwrap_or_else(|violation| panic!("engine {violation}"));
    }
    println!("{states} states");
}
