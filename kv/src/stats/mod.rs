//! What a database tells of itself: counters and histograms of its operations, sizes of its structure, events of
//! its background work, and all of them as a metrics text.

pub(crate) mod histogram;
pub(crate) mod listener;
pub(crate) mod metrics;
pub(crate) mod perf;
pub(crate) mod prometheus;
pub(crate) mod properties;
