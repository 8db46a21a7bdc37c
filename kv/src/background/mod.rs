//! Background work on one database: flushes, compactions and blob collections, how each installs its change of
//! the structure, and what writers wait for meanwhile.
//!
//! [`scheduler`] decides what runs when, on the threads of an [`Env`](crate::Env); [`flush`] and [`compact`] run
//! one job each, blob collection is in [`crate::blob::gc`]; all of them end in [`install`]: manifest first,
//! memory second, deletions last. [`warm`] then makes ready what readers will ask for.

pub(crate) mod compact;
pub(crate) mod flush;
pub(crate) mod install;
pub(crate) mod scheduler;
mod shares;
pub(crate) mod space;
pub(crate) mod warm;
