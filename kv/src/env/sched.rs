//! How the system schedules background threads beside the threads of those who read and write.
//!
//! They are batch threads: one that wakes, because its device read has come or a task has, does not take the
//! processor from a thread that is at work. A writer's 20 us would else become the few milliseconds
//! of a background thread's turn; in one of a hundred writes they did. Low threads are nicer besides. Only Linux
//! has either for single threads; neither needs a privilege. Where the system refuses, threads run as
//! all others do.

#![expect(
    unsafe_code,
    reason = "the scheduling policy of a thread has no safe wrapper"
)]

/// By how much low threads are nicer than the process: they get a third of the processor time that a
/// thread of the process gets where both want more than there is.
const LOW_NICENESS: i32 = 5;

/// Makes the calling thread one of the background, for tasks of low priority if `low`.
#[cfg(target_os = "linux")]
pub(super) fn enter_background(low: bool) {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters live for the call, and 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "background threads are no batch threads");
    }
    if low && let Err(error) = rustix::process::nice(LOW_NICENESS) {
        tracing::debug!(%error, "background threads run at the process's priority");
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn enter_background(_low: bool) {}

#[cfg(all(test, target_os = "linux", not(lava_loom)))]
mod tests {
    use super::*;

    /// Niceness and policy of the calling thread, as proc(5) tells them.
    fn scheduling() -> (i32, i32) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("it is Linux");
        let (_, fields) = stat.rsplit_once(") ").expect("the name is in parentheses");
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // The first of these is the third of all.
        let field = |number: usize| fields[number - 3].parse().expect("it is a number");
        (field(19), field(41))
    }

    #[test]
    fn background_threads_are_batch_threads_and_low_ones_nicer() {
        let (niceness, _) = scheduling();
        for (low, nicer) in [(false, 0), (true, LOW_NICENESS)] {
            let thread = std::thread::spawn(move || {
                enter_background(low);
                scheduling()
            });
            let expected = ((niceness + nicer).min(19), libc::SCHED_BATCH);
            assert_eq!(thread.join().unwrap(), expected);
        }
    }
}
