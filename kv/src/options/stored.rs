//! The stored form of the options: the text file `OPTIONS-NNNNNN` beside the data.
//!
//! One `name=value` a line after a first line that names the format; lines with an unknown name are
//! ignored, so that an older program reads what a newer one wrote. The file informs and is a starting
//! point ([`Options::load`]); what a database needs to be correct is in its manifest.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use lavafs::FileSystemRef;

use super::compaction::{CompactionStyle, STYLE_NAMES};
use super::{Options, PrepopulateBlockCache, WalRecoveryMode};
use crate::error::{Error, Result};
use crate::file_names::{self, FileName};
use crate::sstable::Compression;
use crate::write::batch::CfId;

const OPTIONS_HEADER: &str = "lavakv-options 1";

/// Longest options file: a column family with options of its own takes about 2 KiB of it.
const OPTIONS_MAX: u64 = 256 << 20;

/// What the first line of every version of the format begins with.
pub(crate) const OPTIONS_NAME: &str = "lavakv-options ";

impl Options {
    /// The options stored most recently in the database at `dir`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without an options file, [`Error::Unsupported`] for one of a newer
    /// format, [`Error::Corrupt`] where a known option has a
    /// value that does not parse.
    pub fn load(fs: &FileSystemRef, dir: &Path) -> Result<Options> {
        let none = || Error::invalid_argument(format!("no options file in {}", dir.display()));
        Options::find(fs, dir)?.ok_or_else(none)
    }

    /// The options stored most recently, if there are any.
    pub(crate) fn find(fs: &FileSystemRef, dir: &Path) -> Result<Option<Options>> {
        let Some((path, text)) = newest_text(fs, dir)? else {
            return Ok(None);
        };
        let first = text.lines().next().unwrap_or_default();
        if first != OPTIONS_HEADER && first.starts_with(OPTIONS_NAME) {
            return Err(Error::Unsupported {
                what: format!("{} has the format {first:?}", path.display()),
            });
        }
        Options::parse(&text)
            .map(Some)
            .map_err(|detail| Error::corrupt(path.display().to_string(), 0_u64, detail))
    }

    /// The stored form.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{OPTIONS_HEADER}\n{}", self.family_text());
        for (cf, options) in &self.cf_options {
            let cf = escaped(cf);
            for (name, value) in options.fields() {
                writeln!(text, "cf/{cf}/{name}={value}").expect("a string takes any text");
            }
        }
        text
    }

    /// The stored form of what a column family has of its own.
    pub(crate) fn family_text(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.fields() {
            writeln!(text, "{name}={value}").expect("a string takes any text");
        }
        text
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let mut copy = self.clone();
        let mut fields = Vec::new();
        for (name, field) in copy.stored() {
            fields.push((name, field.text()));
        }
        fields
    }

    pub(crate) fn parse(text: &str) -> Result<Options, String> {
        let mut lines = text.lines();
        if lines.next() != Some(OPTIONS_HEADER) {
            return Err(format!("first line is not \"{OPTIONS_HEADER}\""));
        }
        let mut options = Options::default();
        for line in lines {
            let Some((name, value)) = line.split_once('=') else {
                continue;
            };
            let (target, name) = match name.strip_prefix("cf/").map(|rest| rest.split_once('/')) {
                Some(Some((cf, name))) => {
                    let cf = unescaped(cf).ok_or("a column family's name does not parse")?;
                    (options.cf_options.entry(cf).or_default(), name)
                }
                _ => (&mut options, name),
            };
            let mut stored = target.stored();
            if let Some((_, field)) = stored.iter_mut().find(|(known, _)| *known == name)
                && !field.set(value)
            {
                return Err(format!("{name} has the value {value:?}"));
            }
        }
        Ok(options)
    }

    /// Every stored option by name: the one list that writing and reading share.
    fn stored(&mut self) -> Vec<(&'static str, Field<'_>)> {
        let policy = &mut self.compaction;
        vec![
            (
                "write_buffer_size",
                Field::Usize(&mut self.write_buffer_size),
            ),
            (
                "max_write_buffer_number",
                Field::Usize(&mut self.max_write_buffer_number),
            ),
            (
                "level0_file_num_compaction_trigger",
                Field::Usize(&mut self.level0_file_num_compaction_trigger),
            ),
            (
                "level0_slowdown_writes_trigger",
                Field::Usize(&mut self.level0_slowdown_writes_trigger),
            ),
            (
                "level0_stop_writes_trigger",
                Field::Usize(&mut self.level0_stop_writes_trigger),
            ),
            (
                "target_file_size_base",
                Field::U64(&mut self.target_file_size_base),
            ),
            (
                "max_bytes_for_level_base",
                Field::U64(&mut self.max_bytes_for_level_base),
            ),
            (
                "max_bytes_for_level_multiplier",
                Field::F64(&mut self.max_bytes_for_level_multiplier),
            ),
            ("num_levels", Field::Usize(&mut self.num_levels)),
            (
                "level_compaction_dynamic_level_bytes",
                Field::Bool(&mut self.level_compaction_dynamic_level_bytes),
            ),
            ("compaction_style", Field::Style(&mut policy.style)),
            ("fluid_runs", Field::Usize(&mut policy.fluid_runs)),
            ("fluid_last_runs", Field::Usize(&mut policy.fluid_last_runs)),
            ("bush_growth", Field::F64(&mut policy.bush_growth)),
            ("bush_last_ratio", Field::F64(&mut policy.bush_last_ratio)),
            (
                "universal_size_ratio",
                Field::U64(&mut policy.universal_size_ratio),
            ),
            (
                "universal_min_merge_width",
                Field::Usize(&mut policy.universal_min_merge_width),
            ),
            (
                "universal_max_merge_width",
                Field::Usize(&mut policy.universal_max_merge_width),
            ),
            (
                "universal_max_size_amplification_percent",
                Field::U64(&mut policy.universal_max_size_amplification_percent),
            ),
            (
                "fifo_max_table_files_size",
                Field::U64(&mut policy.fifo_max_table_files_size),
            ),
            ("fifo_ttl", Field::U64(&mut policy.fifo_ttl)),
            ("tombstone_ratio", Field::F64(&mut policy.tombstone_ratio)),
            (
                "disable_auto_compactions",
                Field::Bool(&mut self.disable_auto_compactions),
            ),
            (
                "max_background_jobs",
                Field::Usize(&mut self.max_background_jobs),
            ),
            (
                "soft_pending_compaction_bytes_limit",
                Field::U64(&mut self.soft_pending_compaction_bytes_limit),
            ),
            (
                "hard_pending_compaction_bytes_limit",
                Field::U64(&mut self.hard_pending_compaction_bytes_limit),
            ),
            (
                "delayed_write_rate",
                Field::U64(&mut self.delayed_write_rate),
            ),
            ("delete_rate", Field::U64(&mut self.delete_rate)),
            (
                "max_total_wal_size",
                Field::U64(&mut self.max_total_wal_size),
            ),
            (
                "max_manifest_file_size",
                Field::U64(&mut self.max_manifest_file_size),
            ),
            (
                "wal_recovery_mode",
                Field::WalRecovery(&mut self.wal_recovery_mode),
            ),
            (
                "max_subcompactions",
                Field::Usize(&mut self.max_subcompactions),
            ),
            (
                "compression_per_level",
                Field::Compressions(&mut self.compression_per_level),
            ),
            ("compression", Field::Compression(&mut self.compression)),
            ("zstd_dict_bytes", Field::Usize(&mut self.zstd_dict_bytes)),
            ("min_blob_size", Field::Usize(&mut self.min_blob_size)),
            ("blob_file_size", Field::U64(&mut self.blob_file_size)),
            (
                "blob_compression",
                Field::Compression(&mut self.blob_compression),
            ),
            (
                "blob_zstd_dict_bytes",
                Field::Usize(&mut self.blob_zstd_dict_bytes),
            ),
            (
                "enable_blob_garbage_collection",
                Field::Bool(&mut self.enable_blob_garbage_collection),
            ),
            (
                "max_blob_collections",
                Field::Usize(&mut self.max_blob_collections),
            ),
            (
                "blob_correlated_compaction_bytes",
                Field::U64(&mut self.blob_correlated_compaction_bytes),
            ),
            (
                "blob_collection_idle_millis",
                Field::U64(&mut self.blob_collection_idle_millis),
            ),
            ("block_size", Field::Usize(&mut self.block_size)),
            (
                "index_partition_threshold",
                Field::Usize(&mut self.index_partition_threshold),
            ),
            (
                "index_partition_size",
                Field::Usize(&mut self.index_partition_size),
            ),
            (
                "bloom_bits_per_key",
                Field::F64(&mut self.bloom_bits_per_key),
            ),
            ("filters_by_level", Field::Bool(&mut self.filters_by_level)),
            ("block_cache_size", Field::Usize(&mut self.block_cache_size)),
            (
                "cache_index_and_filter_blocks",
                Field::Bool(&mut self.cache_index_and_filter_blocks),
            ),
            (
                "prepopulate_block_cache",
                Field::Prepopulate(&mut self.prepopulate_block_cache),
            ),
            (
                "protection_bytes_per_key",
                Field::Usize(&mut self.protection_bytes_per_key),
            ),
            (
                "allow_concurrent_memtable_write",
                Field::Bool(&mut self.allow_concurrent_memtable_write),
            ),
            ("histograms", Field::Bool(&mut self.histograms)),
        ]
    }
}

/// One stored option, to be written or set.
enum Field<'a> {
    Bool(&'a mut bool),
    Usize(&'a mut usize),
    U64(&'a mut u64),
    F64(&'a mut f64),
    Style(&'a mut CompactionStyle),
    WalRecovery(&'a mut WalRecoveryMode),
    Prepopulate(&'a mut PrepopulateBlockCache),
    Compression(&'a mut Compression),
    Compressions(&'a mut Vec<Compression>),
}

/// Path and text of the newest options file, if there is one.
fn newest_text(fs: &FileSystemRef, dir: &Path) -> Result<Option<(PathBuf, String)>> {
    let newest = fs
        .list(dir)?
        .iter()
        .filter_map(|entry| match FileName::parse(&entry.name) {
            Some(FileName::Options(number)) => Some(number),
            _ => None,
        })
        .max();
    let Some(number) = newest else {
        return Ok(None);
    };
    let path = dir.join(FileName::Options(number).to_string());
    let data = file_names::read_small_file(fs, &path, OPTIONS_MAX)?;
    let text = String::from_utf8_lossy(&data).into_owned();
    Ok(Some((path, text)))
}

/// The line that tells the name of a column family: for a repair without manifest.
pub(crate) fn family_line(id: CfId, name: &str) -> String {
    format!("family/{}={}\n", id.0, escaped(name))
}

/// The column families that the newest options file names; none where it does not read back.
pub(crate) fn stored_families(fs: &FileSystemRef, dir: &Path) -> Vec<(CfId, String)> {
    let Ok(Some((_, text))) = newest_text(fs, dir) else {
        return Vec::new();
    };
    let family = |line: &str| {
        let (id, name) = line.strip_prefix("family/")?.split_once('=')?;
        Some((CfId(id.parse().ok()?), unescaped(name)?))
    };
    text.lines().filter_map(family).collect()
}

/// A column family's name as a part of an option's: bytes that are no letters, digits, `_`, `-`
/// or `.` are `%` and two hexadecimal digits.
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' => {
                text.push(char::from(byte));
            }
            other => write!(text, "%{other:02x}").expect("a string takes any text"),
        }
    }
    text
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

const PREPOPULATE_NAMES: [(&str, PrepopulateBlockCache); 2] = [
    ("disable", PrepopulateBlockCache::Disable),
    ("flush_only", PrepopulateBlockCache::FlushOnly),
];

const WAL_RECOVERY_NAMES: [(&str, WalRecoveryMode); 3] = [
    ("point_in_time", WalRecoveryMode::PointInTime),
    (
        "tolerate_corrupted_tail",
        WalRecoveryMode::TolerateCorruptedTail,
    ),
    ("absolute", WalRecoveryMode::Absolute),
];

fn compression_text(value: Compression) -> String {
    match value {
        Compression::None => "none".to_owned(),
        Compression::Zstd { level } => format!("zstd:{level}"),
    }
}

fn parse_compression(text: &str) -> Option<Compression> {
    match text.split_once(':') {
        None if text == "none" => Some(Compression::None),
        Some(("zstd", level)) => Some(Compression::Zstd {
            level: level.parse().ok()?,
        }),
        _ => None,
    }
}

impl Field<'_> {
    fn text(&self) -> String {
        match self {
            Field::Bool(value) => value.to_string(),
            Field::Usize(value) => value.to_string(),
            Field::U64(value) => value.to_string(),
            Field::F64(value) => value.to_string(),
            Field::Style(value) => name_of(&STYLE_NAMES, **value),
            Field::WalRecovery(value) => name_of(&WAL_RECOVERY_NAMES, **value),
            Field::Prepopulate(value) => name_of(&PREPOPULATE_NAMES, **value),
            Field::Compression(value) => compression_text(**value),
            Field::Compressions(values) => {
                let texts: Vec<String> = values.iter().copied().map(compression_text).collect();
                texts.join(",")
            }
        }
    }

    /// False where `text` does not parse.
    fn set(&mut self, text: &str) -> bool {
        match self {
            Field::Bool(value) => assign(*value, text.parse().ok()),
            Field::Usize(value) => assign(*value, text.parse().ok()),
            Field::U64(value) => assign(*value, text.parse().ok()),
            Field::F64(value) => assign(*value, text.parse().ok()),
            Field::Style(value) => assign(*value, CompactionStyle::parse(text)),
            Field::WalRecovery(value) => assign(*value, value_of(&WAL_RECOVERY_NAMES, text)),
            Field::Prepopulate(value) => assign(*value, value_of(&PREPOPULATE_NAMES, text)),
            Field::Compression(value) => assign(*value, parse_compression(text)),
            Field::Compressions(values) => {
                let texts = text.split(',').filter(|text| !text.is_empty());
                assign(*values, texts.map(parse_compression).collect())
            }
        }
    }
}

fn assign<T>(target: &mut T, value: Option<T>) -> bool {
    value.map(|value| *target = value).is_some()
}

fn name_of<T: PartialEq + Copy>(names: &[(&str, T)], value: T) -> String {
    let found = names.iter().find(|(_, known)| *known == value);
    found.expect("every value has a name").0.to_owned()
}

fn value_of<T: Copy>(names: &[(&str, T)], text: &str) -> Option<T> {
    names
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::options::CompactionOptions;

    #[test]
    fn stored_options_read_back_and_unknown_ones_are_ignored() {
        let options = Options {
            write_buffer_size: 12_345,
            max_bytes_for_level_multiplier: 7.5,
            compression: Compression::None,
            compression_per_level: vec![Compression::None, Compression::Zstd { level: 9 }],
            wal_recovery_mode: WalRecoveryMode::Absolute,
            prepopulate_block_cache: PrepopulateBlockCache::FlushOnly,
            level_compaction_dynamic_level_bytes: false,
            compaction: CompactionOptions {
                style: CompactionStyle::Bush,
                bush_growth: 1.5,
                ..CompactionOptions::default()
            },
            cf_options: BTreeMap::from([(
                "a/b=c\nd%".to_owned(),
                Options {
                    block_size: 777,
                    ..Options::default()
                },
            )]),
            ..Options::default()
        };
        let text = options.to_text() + "an_option_of_the_future=[1, 2]\n\n# remark\n";
        let read = Options::parse(&text).unwrap();
        assert_eq!(read.to_text(), options.to_text());
        assert!(Options::parse("lavakv-options 1\nnum_levels=many\n").is_err());
        assert_eq!(read.for_cf("a/b=c\nd%").block_size, 777);
        assert_eq!(read.for_cf("other").write_buffer_size, 12_345);
        assert!(Options::parse("").is_err());
        assert!(Options::parse("lavakv-options 2\n").is_err());
    }
}
