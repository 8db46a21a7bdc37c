//! LavaLog: many logical logs in two shared physical logs.
