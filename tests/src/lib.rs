//! Whole-system tests: models, crash explorer, scripts.

pub mod crash;
