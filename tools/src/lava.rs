//! The `lava` command: looks at and changes filesystems, logs and databases; benches; the demo.

use clap::{Parser, Subcommand};

use crate::bench::Bench;
use crate::cli::Outcome;
use crate::demo::{Demo, DemoLoad};
use crate::fs_command::FsCommand;
use crate::kv_command::KvCommand;
use crate::log_command::LogCommand;
use crate::manual::{CompletionsCommand, ManCommand};

/// LavaStore's tool: an append-only filesystem, a log engine and a key-value engine
#[derive(Debug, Parser)]
#[command(name = "lava", version)]
pub struct Lava {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look at and change a filesystem without mounting it
    #[command(subcommand)]
    Fs(FsCommand),
    /// Look at and change a key-value database
    #[command(subcommand)]
    Kv(KvCommand),
    /// Look at and change logs
    #[command(subcommand)]
    Log(LogCommand),
    /// Take the tour: load real files, crash, recover, verify every byte
    Demo(Demo),
    /// The demo's loading process
    #[command(hide = true)]
    DemoLoad(DemoLoad),
    /// Measure a filesystem, a database or logs
    #[command(subcommand)]
    Bench(Bench),
    /// Write the manual pages of all programs to a directory
    Man(ManCommand),
    /// Print completions for a shell
    Completions(CompletionsCommand),
}

impl Lava {
    /// Runs the chosen command.
    pub fn run(self) -> Outcome {
        match self.command {
            Command::Fs(command) => command.run(),
            Command::Kv(command) => command.run(),
            Command::Log(command) => command.run(),
            Command::Demo(demo) => demo.run(),
            Command::DemoLoad(load) => load.run(),
            Command::Bench(bench) => bench.run(),
            Command::Man(man) => man.run(),
            Command::Completions(completions) => completions.run(),
        }
    }
}
