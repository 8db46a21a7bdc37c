//! `lava`: the command-line tool.

fn main() {}
