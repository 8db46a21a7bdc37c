//! Open files: appending, syncing, reading, closing.

mod appender;
mod handle;
mod pipeline;
mod reader;
mod view;

pub(crate) use handle::{LavaFile, OpenFile};
pub(crate) use reader::read_batch;
