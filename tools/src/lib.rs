//! The command-line tools as a library; the binaries are thin mains over it.
