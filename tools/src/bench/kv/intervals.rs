//! Reports while a benchmark runs: lines on standard error, and a file of operations a second.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;

use crate::cli::{Context, Outcome};

/// How often the operations are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The flags of reports, db_bench's.
#[derive(Debug, Args)]
#[command(rename_all = "snake_case")]
pub(super) struct IntervalFlags {
    /// Operations of all threads between two reports of progress on standard error; 0: none.
    /// --stats_interval_seconds goes before it
    #[arg(long, default_value_t = 0)]
    stats_interval: u64,
    /// Seconds between two reports of progress on standard error; 0: none
    #[arg(long, default_value_t = 0)]
    stats_interval_seconds: u64,
    /// Seconds between two lines of --report_file; 0: no file
    #[arg(long, default_value_t = 0)]
    report_interval_seconds: u64,
    /// File of this machine that gets `secs_elapsed,interval_qps` lines, those of the last benchmark
    #[arg(long, default_value = "report.csv", value_name = "FILE")]
    report_file: PathBuf,
}

/// When a report was made, and the operations until then.
#[derive(Clone, Copy)]
struct Mark {
    at: Instant,
    ops: u64,
}

impl IntervalFlags {
    /// True where there is something to report.
    pub(super) fn is_asked_for(&self) -> bool {
        self.stats_interval > 0 || self.stats_interval_seconds > 0 || self.writes_file()
    }

    fn writes_file(&self) -> bool {
        self.report_interval_seconds > 0
    }

    /// Reports what `done` counts until `over`.
    pub(super) fn report(&self, done: &AtomicU64, over: &AtomicBool) -> Outcome<()> {
        let mut file = self.writes_file().then(|| self.begin_file()).transpose()?;
        let now = Instant::now();
        let begin = Mark { at: now, ops: 0 };
        let (mut told, mut filed) = (begin, begin);
        while !over.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
            let now = Mark {
                at: Instant::now(),
                ops: done.load(Ordering::Relaxed),
            };
            if self.is_due(told, now) {
                eprintln!("{}", progress_line(begin, told, now));
                told = now;
            }
            let interval = Duration::from_secs(self.report_interval_seconds);
            if let Some(file) = &mut file
                && now.at - filed.at >= interval
            {
                let rate = (now.ops - filed.ops) as f64 / (now.at - filed.at).as_secs_f64();
                let seconds = (now.at - begin.at).as_secs();
                writeln!(file, "{seconds},{rate:.0}").context(|| self.report_file.display())?;
                filed = now;
            }
        }
        Ok(())
    }

    fn begin_file(&self) -> Outcome<File> {
        let name = || self.report_file.display();
        let mut file = File::create(&self.report_file).context(name)?;
        writeln!(file, "secs_elapsed,interval_qps").context(name)?;
        Ok(file)
    }

    fn is_due(&self, last: Mark, now: Mark) -> bool {
        match (self.stats_interval_seconds, self.stats_interval) {
            (0, 0) => false,
            (0, ops) => now.ops - last.ops >= ops,
            (seconds, _) => now.at - last.at >= Duration::from_secs(seconds),
        }
    }
}

/// Progress since the last report and since the beginning, in db_bench's words.
fn progress_line(begin: Mark, last: Mark, now: Mark) -> String {
    let (passed, total) = (
        (now.at - last.at).as_secs_f64(),
        (now.at - begin.at).as_secs_f64(),
    );
    let (new, ops) = (now.ops - last.ops, now.ops);
    format!(
        "({new},{ops}) ops and ({:.1},{:.1}) ops/second in ({passed:.6},{total:.6}) seconds",
        new as f64 / passed,
        ops as f64 / total,
    )
}
