//! Open files: appending, syncing, reading, closing.

mod appender;
mod end;
mod growth;
mod handle;
mod pipeline;
mod reader;
mod sync;
mod tail;
mod view;

pub(crate) use handle::{LavaFile, OpenFile};
pub(crate) use reader::read_batch;
