//! Why a command failed, as one line and an exit code.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::process::ExitCode;

/// What a command returns: its exit code, or why it failed.
pub type Outcome<T = ExitCode> = Result<T, Failure>;

/// A failure: one line for the user and the exit code. Not an [`StdError`] itself, so that any
/// error converts into it with `?`.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
    broken_pipe: bool,
}

impl Failure {
    /// A failure with exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Failure {
            message: message.into(),
            code: 1,
            broken_pipe: false,
        }
    }

    /// A wrong command line; exit code 2, as clap's own.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure::new(message).with_code(2)
    }

    /// The same failure with another exit code.
    #[must_use]
    pub fn with_code(mut self, code: u8) -> Self {
        if !self.broken_pipe {
            self.code = code;
        }
        self
    }

    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        self.code
    }

    /// True where standard output's reader has gone away; nothing needs to be said.
    pub fn is_broken_pipe(&self) -> bool {
        self.broken_pipe
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, whatever the cause's text holds.
        f.write_str(&self.message.replace('\n', " "))
    }
}

impl<E: StdError + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut broken_pipe = is_broken_pipe(&error);
        let mut cause = error.source();
        while let Some(source) = cause {
            // Most errors name their cause already; those that do not get it appended.
            let text = source.to_string();
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            broken_pipe |= is_broken_pipe(source);
            cause = source.source();
        }
        Failure {
            message,
            code: if broken_pipe { 141 } else { 1 },
            broken_pipe,
        }
    }
}

fn is_broken_pipe(error: &(dyn StdError + 'static)) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Adds to an error what was being done.
pub trait Context<T> {
    /// Puts `what()` and a colon before the error's text.
    fn context<S: fmt::Display>(self, what: impl FnOnce() -> S) -> Outcome<T>;
}

impl<T, E: Into<Failure>> Context<T> for Result<T, E> {
    fn context<S: fmt::Display>(self, what: impl FnOnce() -> S) -> Outcome<T> {
        self.map_err(|error| {
            let mut failure: Failure = error.into();
            failure.message = format!("{}: {}", what(), failure.message);
            failure
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_always_one_line() {
        let failure = Failure::new("first\nsecond");
        assert_eq!(failure.to_string(), "first second");
        assert_eq!(failure.exit_code(), 1);
    }

    #[test]
    fn context_names_the_file_and_keeps_the_cause() {
        let error: Result<(), io::Error> = Err(io::Error::other("disk on fire"));
        let failure = error.context(|| "a/b").unwrap_err();
        assert_eq!(failure.to_string(), "a/b: disk on fire");
    }

    #[test]
    fn a_closed_pipe_is_quiet_and_exits_as_sigpipe_would() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(failure.is_broken_pipe());
        assert_eq!(failure.with_code(8).exit_code(), 141);
    }
}
