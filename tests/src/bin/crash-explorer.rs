//! `crash-explorer`: explores worlds of crashes for a given time or number of states, prints
//! how fast, and how to repeat a violation.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use lavatests::crash::{Effort, Violation, explore, explore_engine, explore_mkfs, explore_threads};

/// Explores what LavaFS and LavaKV are after crashes at every device operation of random workloads.
#[derive(Debug, Parser)]
struct Arguments {
    /// Explore for this many seconds.
    #[arg(long, conflicts_with = "states")]
    duration: Option<u64>,
    /// Explore until this many states were checked; without any limit 1,000,000.
    #[arg(long)]
    states: Option<u64>,
    /// What is crashed.
    #[arg(long, default_value = "all")]
    kind: Kind,
    /// The first world; each further one has the next number.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Explore this many worlds only; 1 repeats a violation.
    #[arg(long)]
    worlds: Option<u64>,
    /// Lives of a world, each mounted on what a crash of the one before left.
    #[arg(long, default_value_t = Effort::default().lives)]
    lives: usize,
    /// Operations of a life.
    #[arg(long, default_value_t = Effort::default().steps)]
    steps: usize,
    /// Crashes at each device operation.
    #[arg(long, default_value_t = Effort::default().crashes)]
    crashes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    /// Every other kind: one world of threads, one of an engine and one of mkfs for eight plain ones.
    All,
    /// Worlds of one thread, which repeat exactly.
    Plain,
    /// Worlds of several threads, which need not.
    Threads,
    /// LavaKV on top, which need not either.
    Engine,
    /// Making a filesystem.
    Mkfs,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::All => "all",
            Kind::Plain => "plain",
            Kind::Threads => "threads",
            Kind::Engine => "engine",
            Kind::Mkfs => "mkfs",
        }
    }
}

/// Explores the world `seed` as each of the kinds that it is for.
fn explore_kinds(seed: u64, kind: Kind, effort: &Effort) -> Result<u64, Box<Violation>> {
    let eighth = kind == Kind::All && seed.is_multiple_of(8);
    let mut states = 0;
    if matches!(kind, Kind::All | Kind::Plain) {
        states += explore(seed, effort)?;
    }
    if eighth || kind == Kind::Threads {
        states += explore_threads(seed, effort.steps, effort.crashes)?;
    }
    if eighth || kind == Kind::Engine {
        states += explore_engine(seed, effort)?;
    }
    if eighth || kind == Kind::Mkfs {
        states += explore_mkfs(seed, 4 * effort.crashes)?;
    }
    Ok(states)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let effort = Effort {
        lives: arguments.lives,
        steps: arguments.steps,
        crashes: arguments.crashes,
    };
    let duration = arguments.duration.map(Duration::from_secs);
    let most = match (arguments.states, duration, arguments.worlds) {
        (Some(states), ..) => states,
        (None, None, None) => 1_000_000,
        _ => u64::MAX,
    };
    let begin = Instant::now();
    let (mut states, mut worlds, mut violations) = (0, 0, 0);
    let mut said = begin;
    while states < most
        && duration.is_none_or(|limit| begin.elapsed() < limit)
        && arguments.worlds.is_none_or(|limit| worlds < limit)
    {
        let seed = arguments.seed + worlds;
        match explore_kinds(seed, arguments.kind, &effort) {
            Ok(seen) => states += seen,
            Err(violation) => {
                violations += 1;
                println!("{violation}");
                println!(
                    "  to repeat: crash-explorer --kind {} --seed {seed} --worlds 1 --lives {} --steps {} --crashes {}",
                    arguments.kind.name(),
                    effort.lives,
                    effort.steps,
                    effort.crashes
                );
            }
        }
        worlds += 1;
        if said.elapsed() > Duration::from_secs(10) {
            said = Instant::now();
            print_speed(states, worlds, begin.elapsed());
        }
    }
    print_speed(states, worlds, begin.elapsed());
    println!("{violations} violations");
    if violations == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn print_speed(states: u64, worlds: u64, elapsed: Duration) {
    let speed = states as f64 / elapsed.as_secs_f64();
    println!("{states} states of {worlds} worlds, {speed:.0} states/s");
}
