//! The process's allocator under a memory limit, and what the limit leaves it.
//!
//! glibc's allocator keeps freed memory in one arena for each thread, and takes large buffers from the arenas too
//! once it has seen one freed. A process that keeps to a limit cannot have that: few arenas, buffers
//! mapped one by one, and what the block cache frees given back when the engine asks for it.
//! With another libc all of this does nothing.
#![expect(unsafe_code, reason = "the allocator's settings are C functions")]

/// Arenas at most.
const ARENAS_MAX: libc::c_int = 2;

/// Bytes from which an allocation is a mapping of its own.
const MAPPED_MIN: libc::c_int = 128 << 10;

/// Sets the allocator up for a memory limit. To be called before threads are started.
#[cfg(target_env = "gnu")]
pub(super) fn prepare() {
    // SAFETY: the settings are documented for any time, and take effect for later allocations.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_MIN);
        libc::mallopt(libc::M_TRIM_THRESHOLD, MAPPED_MIN);
    }
}

/// What a limit of a process leaves when its code is resident: the engine's ledger does not know of that. At least
/// half of the limit.
pub(super) fn left_beside_code(limit: u64) -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split_whitespace()
        .nth(3)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    // SAFETY: asks for a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let code = pages * u64::try_from(page).unwrap_or(0);
    (limit - code.min(limit / 2)) as usize
}

/// Gives freed memory back to the system.
#[cfg(target_env = "gnu")]
pub(super) fn trim() {
    // SAFETY: may be called at any time, from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// See above.
#[cfg(not(target_env = "gnu"))]
pub(super) fn prepare() {}

/// See above.
#[cfg(not(target_env = "gnu"))]
pub(super) fn trim() {}
