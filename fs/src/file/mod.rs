//! Open files: appending, syncing, reading, closing.

mod appender;
mod end;
mod growth;
mod handle;
mod pipeline;
mod readahead;
mod reader;
mod sync;
mod tail;
mod view;

pub(crate) use handle::{LavaFile, OpenFile};
pub(crate) use readahead::Budget as ReadaheadBudget;
pub(crate) use reader::read_batch;
