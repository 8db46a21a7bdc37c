//! A progress bar that shows itself only where somebody looks and the work is long.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar on stderr, drawn from one second on, and only on a terminal. Any thread may advance it.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    shown: AtomicBool,
}

impl Progress {
    /// A bar over `total` items; `what` says what is being done.
    pub fn items(what: &'static str, total: u64) -> Self {
        Self::styled(
            what,
            total,
            "{msg} [{bar:30}] {human_pos}/{human_len} {eta}",
        )
    }

    /// A bar over `total` bytes.
    pub fn bytes(what: &'static str, total: u64) -> Self {
        Self::styled(
            what,
            total,
            "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        )
    }

    fn styled(what: &'static str, total: u64, template: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(template)
            .expect("the templates of this file are valid")
            .progress_chars("=> ");
        bar.set_style(style);
        bar.set_message(what);
        Progress {
            bar,
            started: Instant::now(),
            shown: AtomicBool::new(false),
        }
    }

    /// Advances by `count`.
    pub fn add(&self, count: u64) {
        self.bar.inc(count);
        if self.started.elapsed() > Duration::from_secs(1)
            && !self.shown.swap(true, Ordering::Relaxed)
        {
            // Hides itself where stderr is not a terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
