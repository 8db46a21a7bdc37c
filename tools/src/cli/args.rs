//! Argument types: sizes with binary suffixes and db_bench's booleans.

/// Bytes, from `4096`, `4K`, `16M`, `2G`, `1T`.
pub type Size = u64;

/// A boolean given as 1/0, true/false, yes/no or on/off.
pub type Flag = bool;

/// Parses a size in bytes: digits with an optional suffix K, M, G or T (powers of 1,024, either
/// case, optionally followed by `iB` or `B`).
pub fn parse_size(text: &str) -> Result<Size, String> {
    let bad = || format!("'{text}' is not a size: use digits with an optional K, M, G or T");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, suffix) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let suffix = suffix.to_ascii_uppercase();
    let unit = suffix.strip_suffix("IB").unwrap_or(&suffix);
    let unit = if unit.len() > 1 {
        unit.strip_suffix('B').unwrap_or(unit)
    } else {
        unit
    };
    let shift = match unit {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(bad()),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("'{text}' is larger than 16 EiB"))
}

/// Parses a boolean as db_bench does.
pub fn parse_flag(text: &str) -> Result<Flag, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" | "t" | "y" => Ok(true),
        "0" | "false" | "no" | "off" | "f" | "n" => Ok(false),
        _ => Err(format!(
            "'{text}' is not a boolean: use 1, 0, true or false"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_overflow_is_refused() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("4K"), Ok(4096));
        assert_eq!(parse_size("4k"), Ok(4096));
        assert_eq!(parse_size("4KiB"), Ok(4096));
        assert_eq!(parse_size("4KB"), Ok(4096));
        assert_eq!(parse_size("7B"), Ok(7));
        assert_eq!(parse_size("2G"), Ok(2 << 30));
        assert_eq!(parse_size("1T"), Ok(1 << 40));
        for bad in ["", "K", "-1", "4X", "1.5G", "4KK", "99999999999T"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn booleans_are_those_of_db_bench() {
        assert_eq!(parse_flag("1"), Ok(true));
        assert_eq!(parse_flag("FALSE"), Ok(false));
        assert!(parse_flag("2").is_err());
    }
}
