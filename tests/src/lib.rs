//! Whole-system tests: models, crash explorer, scripts.

pub mod crash;
pub mod fuzz;

/// The README, whose example is compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
