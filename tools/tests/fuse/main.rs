//! `mount.lavafs` as foreign programs use it. Needs root and /dev/fuse; without them each test says
//! so and passes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod basics;
mod fixture;
mod foreign;
mod gaps;
mod helper;
mod posix;
mod views;
