//! Whole-system tests: models, crash explorer, scripts.
