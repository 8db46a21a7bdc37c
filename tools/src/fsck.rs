//! `fsck.lavafs`: checks a filesystem that nobody has mounted.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use lavafs::device::{self, OpenMode};
use lavafs::{BLOCK_SIZE, CheckMode, CheckReport, Problem};
use serde_json::json;

use crate::cli::{Failure, Outcome, human_bytes, human_count, json_line, line};

/// Exit code: problems were found and all are corrected.
pub const CORRECTED: u8 = 1;
/// Exit code: problems are left.
pub const UNCORRECTED: u8 = 4;
/// Exit code: the check could not be made.
pub const OPERATIONAL: u8 = 8;
/// Exit code: wrong command line.
pub const USAGE: u8 = 16;

/// Check a LavaFS filesystem: structure, checksums, and that every block is owned exactly once
///
/// Exit code 0: clean; 1: problems corrected; 4: problems left; 8: the check could not be made;
/// 16: wrong command line. Without -n, -p or -y nothing is changed, as with -n.
#[derive(Debug, Parser)]
#[command(name = "fsck.lavafs", version)]
pub struct Fsck {
    /// Only look; write nothing
    #[arg(short = 'n', long, group = "mode")]
    no_change: bool,
    /// Correct what can be corrected without losing anything
    #[arg(short = 'p', long, visible_short_alias = 'a', group = "mode")]
    preen: bool,
    /// Correct everything that can be corrected, even where another machine may have it mounted
    #[arg(short = 'y', long, group = "mode")]
    yes: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Block device or image file
    device: PathBuf,
}

impl Fsck {
    /// Checks, prints what was found, and returns the exit code.
    pub fn run(&self) -> Outcome {
        let report = self
            .check()
            .map_err(|failure| failure.with_code(OPERATIONAL))?;
        self.print(&report)
            .map_err(|failure| failure.with_code(OPERATIONAL))?;
        Ok(ExitCode::from(exit_code(&report)))
    }

    fn check(&self) -> Result<CheckReport, Failure> {
        let (mode, access) = match (self.preen, self.yes) {
            (true, _) => (CheckMode::Preen, OpenMode::ReadWrite),
            (_, true) => (CheckMode::Yes, OpenMode::ReadWrite),
            _ => (CheckMode::ReadOnly, OpenMode::ReadOnly),
        };
        let device = device::open(&self.device, access)?;
        Ok(lavafs::check(device, mode)?)
    }

    fn print(&self, report: &CheckReport) -> Outcome<()> {
        let used = report.used_blocks * BLOCK_SIZE;
        if self.json {
            let problem =
                |problem: &Problem| json!({ "what": problem.what, "corrected": problem.corrected });
            return json_line(&json!({
                "device": self.device.display().to_string(),
                "clean": report.is_clean(),
                "problems": report.problems.iter().map(problem).collect::<Vec<_>>(),
                "remarks": report.remarks,
                "files": report.files,
                "directories": report.directories,
                "symlinks": report.symlinks,
                "extents": report.extents,
                "used_bytes": used,
                "total_bytes": report.total_blocks * BLOCK_SIZE,
            }));
        }
        for remark in &report.remarks {
            line(format_args!("remark: {remark}"))?;
        }
        for problem in &report.problems {
            let state = if problem.corrected {
                "corrected"
            } else {
                "left"
            };
            line(format_args!("{} ({state})", problem.what))?;
        }
        let verdict = match exit_code(report) {
            0 => "clean".to_string(),
            CORRECTED => format!("{} problems, all corrected", report.problems.len()),
            _ => format!("{} problems, not all corrected", report.problems.len()),
        };
        line(format_args!(
            "{}: {verdict}; {} files, {} directories, {} symbolic links, {} extents, {} used",
            self.device.display(),
            human_count(report.files),
            human_count(report.directories),
            human_count(report.symlinks),
            human_count(report.extents),
            human_bytes(used),
        ))
    }
}

/// fsck(8)'s exit code for what was found.
fn exit_code(report: &CheckReport) -> u8 {
    match (report.is_clean(), report.has_uncorrected()) {
        (true, _) => 0,
        (false, false) => CORRECTED,
        (false, true) => UNCORRECTED,
    }
}
