//! `lava man` and `lava completions`: manual pages and shell completions of all four programs, made from
//! the definition that parses their command lines.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::{Context, Outcome, line};
use crate::fsck::Fsck;
use crate::fuse::MountCommand;
use crate::lava::Lava;
use crate::mkfs::Mkfs;

/// `lava man`.
#[derive(Debug, Args)]
pub struct ManCommand {
    /// Directory for the pages; made if it is missing
    dir: PathBuf,
}

/// `lava completions`.
#[derive(Debug, Args)]
pub struct CompletionsCommand {
    /// The shell
    shell: Shell,
    /// The program
    #[arg(long, default_value = "lava")]
    program: Program,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Program {
    Lava,
    #[value(name = "mkfs.lavafs")]
    Mkfs,
    #[value(name = "fsck.lavafs")]
    Fsck,
    #[value(name = "mount.lavafs")]
    Mount,
}

impl Program {
    /// Its command line and the section of its manual.
    fn definition(self) -> (Command, &'static str) {
        match self {
            Program::Lava => (Lava::command(), "1"),
            Program::Mkfs => (Mkfs::command(), "8"),
            Program::Fsck => (Fsck::command(), "8"),
            Program::Mount => (MountCommand::command(), "8"),
        }
    }
}

impl ManCommand {
    /// Writes a page for each program and each of its commands, and says how many.
    pub(crate) fn run(&self) -> Outcome {
        fs::create_dir_all(&self.dir).context(|| self.dir.display())?;
        let mut pages = 0;
        for program in Program::value_variants() {
            let (command, section) = program.definition();
            let mut command = command.disable_help_subcommand(true);
            command.build();
            pages += write_pages(&command, section, &self.dir)?;
        }
        line(format_args!("{pages} pages in {}", self.dir.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes the page of `command`, and those of the commands in it.
fn write_pages(command: &Command, section: &str, dir: &Path) -> Outcome<usize> {
    let man = Man::new(command.clone()).section(section);
    let path = dir.join(man.get_filename());
    let mut file = File::create(&path).context(|| path.display())?;
    man.render(&mut file).context(|| path.display())?;
    let mut pages = 1;
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        pages += write_pages(below, section, dir)?;
    }
    Ok(pages)
}

impl CompletionsCommand {
    /// Prints the shell's script.
    pub(crate) fn run(&self) -> Outcome {
        let (mut command, _) = self.program.definition();
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        line(String::from_utf8_lossy(&script).trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}
