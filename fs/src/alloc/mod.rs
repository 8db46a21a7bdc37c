//! Space allocation: which runs of blocks are free, and which one to take.

mod free_map;
mod space;

pub(crate) use free_map::FreeMap;
pub(crate) use space::{Allocator, Run};
