//! Open files: appending, syncing, reading, closing.

mod appender;
mod behind;
mod end;
mod growth;
mod handle;
mod pipeline;
mod readahead;
mod reader;
mod sync;
mod tail;
mod view;

pub(crate) use behind::Budget as WriteBehindBudget;
pub(crate) use handle::{LavaFile, OpenFile};
pub(crate) use readahead::Budget as ReadaheadBudget;
pub(crate) use reader::read_batch;
