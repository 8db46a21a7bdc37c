//! Standard output: lines that report a closed pipe instead of panicking, tables, human figures.

use std::fmt::{self, Display};
use std::io::{self, Write};

use serde::Serialize;

use super::{Failure, Outcome};

/// Prints one line to standard output.
///
/// # Errors
/// Standard output cannot be written, for instance because its reader has gone away.
pub fn line(text: impl Display) -> Outcome<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(())
}

/// Prints `value` as one line of JSON.
pub fn json_line(value: &impl Serialize) -> Outcome<()> {
    let text = serde_json::to_string(value).map_err(Failure::from)?;
    line(text)
}

/// `n` bytes with a binary unit and three significant digits or so.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `n` with commas between thousands.
pub fn human_count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Rows of text, printed in aligned columns: the first column to the left, the others to the
/// right.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a heading.
    pub fn new<S: Display>(heading: &[S]) -> Self {
        let mut table = Table::default();
        table.row(heading);
        table
    }

    /// Adds a row.
    pub fn row<S: Display>(&mut self, cells: &[S]) {
        self.rows.push(cells.iter().map(S::to_string).collect());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let mut text = String::new();
            for (column, cell) in row.iter().enumerate() {
                if column == 0 {
                    text.push_str(&format!("{cell:<width$}", width = widths[0]));
                } else {
                    text.push_str(&format!("  {cell:>width$}", width = widths[column]));
                }
            }
            f.write_str(text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        assert_eq!(human_count(0), "0");
        assert_eq!(human_count(999), "999");
        assert_eq!(human_count(1_234_567), "1,234,567");
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(3 << 40), "3.0 TiB");
    }

    #[test]
    fn table_columns_line_up() {
        let mut table = Table::new(&["name", "size"]);
        table.row(&["a", "1,000"]);
        assert_eq!(table.to_string(), "name   size\na     1,000");
    }
}
