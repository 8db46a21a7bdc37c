//! What every command shares: errors and exit codes, argument types, progress, output.
//!
//! A command is a function `fn(Args) -> Outcome`. [`run`] is the one place where a failure becomes
//! one line on stderr and an exit code, and where the log subscriber is installed.

mod args;
mod failure;
mod output;
mod progress;
mod target;

pub use args::{Flag, Size, parse_flag, parse_size};
pub use failure::{Context, Failure, Outcome};
pub use output::{Table, human_bytes, human_count, json_line, line};
pub use progress::Progress;
pub use target::{Access, Mounted, Target};

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::EnvFilter;

/// A whole program: parses the command line, installs logging, runs `command`, and turns the
/// outcome into an exit code. A wrong command line exits with `usage_code`.
///
/// Log lines go to stderr; `RUST_LOG` chooses which, by default warnings and errors. A failure
/// is printed as `program: message`, on one line. A reader of standard output that has gone away
/// ends the command quietly: Rust ignores SIGPIPE, so the write fails, the filesystem is still
/// unmounted, and the shell's usual code 141 is returned.
pub fn run<T: Parser>(
    program: &str,
    usage_code: u8,
    command: impl FnOnce(T) -> Outcome,
) -> ExitCode {
    run_with(program, usage_code, std::env::args_os().collect(), command)
}

/// As [`run`], on these arguments; the first is the program's name.
pub fn run_with<T: Parser>(
    program: &str,
    usage_code: u8,
    arguments: Vec<OsString>,
    command: impl FnOnce(T) -> Outcome,
) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false)
        .without_time()
        .init();
    let outcome = match T::try_parse_from(arguments) {
        Ok(arguments) => command(arguments),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error
                .print()
                .map(|()| ExitCode::SUCCESS)
                .map_err(Failure::from),
            _ => Err(Failure::new(usage_line(&error)).with_code(usage_code)),
        },
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            if !failure.is_broken_pipe() {
                eprintln!("{program}: {failure}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

/// What is wrong with the command line, in one line.
fn usage_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is missing (--help lists them)".to_string();
    }
    let text = error.to_string();
    let words = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    format!("{line} (see --help)")
}
