//! Pairs as text: TSV with backslash escapes, and JSON lines. What `dump` prints, `load` reads.

use serde_json::{Map, Value, json};

/// One key and its value.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// `bytes` with backslash, control characters and what is not UTF-8 escaped.
pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\t' => text.push_str("\\t"),
                '\n' => text.push_str("\\n"),
                c if c.is_ascii_control() => text.push_str(&format!("\\x{:02x}", c as u32)),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Undoes [`escaped`].
pub(super) fn unescaped(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'\\' {
            bytes.push(byte);
            rest = tail;
            continue;
        }
        let (byte, used) = match tail {
            [b'\\', ..] => (b'\\', 1),
            [b't', ..] => (b'\t', 1),
            [b'n', ..] => (b'\n', 1),
            [b'x', high, low, ..] => (hex_byte(*high, *low)?, 3),
            _ => return Err("a backslash is followed by none of \\ t n xHH".to_string()),
        };
        bytes.push(byte);
        rest = &tail[used..];
    }
    Ok(bytes)
}

fn hex_byte(high: u8, low: u8) -> Result<u8, String> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    match (digit(high), digit(low)) {
        (Some(high), Some(low)) => Ok((high * 16 + low) as u8),
        _ => Err("two hexadecimal digits are needed".to_string()),
    }
}

/// A pair as one TSV line, without the newline.
pub(super) fn tsv_line(key: &[u8], value: &[u8]) -> String {
    format!("{}\t{}", escaped(key), escaped(value))
}

/// A pair from a TSV line.
pub(super) fn parse_tsv(line: &[u8]) -> Result<Pair, String> {
    let tab = line.iter().position(|byte| *byte == b'\t');
    let Some(tab) = tab else {
        return Err("there is no tab between key and value".to_string());
    };
    Ok((unescaped(&line[..tab])?, unescaped(&line[tab + 1..])?))
}

/// A pair as a JSON object.
pub(super) fn json_object(key: &[u8], value: &[u8]) -> Value {
    let mut object = Map::new();
    insert(&mut object, "key", key);
    insert(&mut object, "value", value);
    Value::Object(object)
}

/// A key and its value's length as a JSON object.
pub(super) fn json_key(key: &[u8], value_len: usize) -> Value {
    let mut object = Map::new();
    insert(&mut object, "key", key);
    object.insert("value_len".to_string(), json!(value_len));
    Value::Object(object)
}

fn insert(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_string(), json!(text)),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            object.insert(format!("{name}_hex"), json!(hex))
        }
    };
}

/// A pair from a line of JSON.
pub(super) fn parse_json(line: &[u8]) -> Result<Pair, String> {
    let object: Map<String, Value> =
        serde_json::from_slice(line).map_err(|error| error.to_string())?;
    Ok((field(&object, "key")?, field(&object, "value")?))
}

fn field(object: &Map<String, Value>, name: &str) -> Result<Vec<u8>, String> {
    if let Some(text) = object.get(name).and_then(Value::as_str) {
        return Ok(text.as_bytes().to_vec());
    }
    let hex = object.get(&format!("{name}_hex")).and_then(Value::as_str);
    let Some(hex) = hex else {
        return Err(format!("there is no string \"{name}\" or \"{name}_hex\""));
    };
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return Err(format!("\"{name}_hex\" has an odd number of digits"));
    }
    pairs
        .iter()
        .map(|[high, low]| hex_byte(*high, *low))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_bytes_survives_both_text_forms() {
        let every: Vec<u8> = (0..=255).collect();
        let texts: [&[u8]; 6] = [
            b"",
            b"plain",
            b"a\tb\nc\\d\r",
            "ü\u{1F30B}".as_bytes(),
            b"\xff",
            &every,
        ];
        for key in texts {
            for value in texts {
                let tsv = tsv_line(key, value);
                assert!(!tsv.contains('\n'));
                assert_eq!(
                    parse_tsv(tsv.as_bytes()).unwrap(),
                    (key.to_vec(), value.to_vec())
                );
                let json = json_object(key, value).to_string();
                assert_eq!(
                    parse_json(json.as_bytes()).unwrap(),
                    (key.to_vec(), value.to_vec())
                );
            }
        }
    }

    #[test]
    fn malformed_lines_say_what_is_wrong() {
        for line in ["no tab", "a\\q\tb", "a\\\tb", "a\\xZZ\tb", "a\\x1\tb"] {
            assert!(parse_tsv(line.as_bytes()).is_err(), "{line}");
        }
        for line in [
            "",
            "[]",
            "{\"key\":1}",
            "{\"key\":\"a\",\"value_hex\":\"1\"}",
        ] {
            assert!(parse_json(line.as_bytes()).is_err(), "{line}");
        }
    }
}
