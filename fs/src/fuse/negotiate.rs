//! What the kernel and the mount agree on when it begins.

use std::io;

use fuser::{InitFlags, KernelConfig};

use super::ops::REQUEST_LEN_MAX;

/// What is asked of the kernel, where it knows it.
///
/// - Not FUSE_ASYNC_DIO: the kernel would send the pieces of one large write through io_submit(2) at
///   once, and they would arrive in any order; only the one at the end of the file could be taken.
/// - Not FUSE_READDIRPLUS_AUTO: programs that walk a tree read a directory's names first and ask about
///   each name then. The kernel would take the first for a lack of interest in attributes, and ask
///   for each of them by itself.
const CAPABILITIES: [InitFlags; 6] = [
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_PARALLEL_DIROPS,
];

/// Requests that the kernel may have in flight in the background: readahead, mostly.
const BACKGROUND_MAX: u16 = 64;

/// Asks for capabilities and sizes; what the kernel lacks is done without.
pub(super) fn negotiate(config: &mut KernelConfig) -> io::Result<()> {
    for capability in CAPABILITIES {
        if config.add_capabilities(capability).is_err() {
            tracing::debug!(?capability, "the kernel does not know");
        }
    }
    let fits = "within fuser's bounds";
    config
        .set_max_write(REQUEST_LEN_MAX as u32)
        .map_err(|_| io::Error::other(fits))?;
    config
        .set_max_background(BACKGROUND_MAX)
        .map_err(|_| io::Error::other(fits))?;
    // The most that the kernel offers, if that is less.
    if let Err(most) = config.set_max_readahead(REQUEST_LEN_MAX as u32) {
        let _ = config.set_max_readahead(most);
    }
    Ok(())
}
