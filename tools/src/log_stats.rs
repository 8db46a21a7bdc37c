//! The figures of `lava log stats`, as text and as JSON.

use lavalog::{FileStats, LogStats};
use serde_json::{Value, json};

use crate::cli::{Table, human_bytes, human_count};

/// Sums over the files of one physical log.
#[derive(Default)]
struct Sum {
    len: u64,
    allocated: u64,
    live_bytes: u64,
    dead_records: u64,
    dead_bytes: u64,
}

impl Sum {
    fn of(files: &[FileStats]) -> Sum {
        let mut sum = Sum::default();
        for file in files {
            sum.len += file.len;
            sum.allocated += file.allocated;
            sum.live_bytes += file.live_bytes;
            sum.dead_records += file.dead_records;
            sum.dead_bytes += file.dead_bytes;
        }
        sum
    }
}

/// One JSON object.
pub(crate) fn object(stats: &LogStats) -> Value {
    let (data, meta) = (Sum::of(&stats.data_files), Sum::of(&stats.meta_files));
    json!({
        "logs": stats.logs,
        "records": stats.records,
        "lsns": stats.lsns,
        "missing_lsns": missing(stats),
        "live_bytes": stats.live_bytes(),
        "disk_bytes": stats.allocated(),
        "space_amplification": stats.space_amplification(),
        "dead_records": data.dead_records,
        "dead_bytes": data.dead_bytes,
        "unproven_records": stats.unproven_records,
        "datalog": {
            "live_bytes": data.live_bytes,
            "dead_bytes": data.dead_bytes,
            "file_bytes": data.len,
            "disk_bytes": data.allocated,
            "files": stats.data_files.iter().map(file).collect::<Vec<_>>(),
        },
        "metalog": {
            "live_bytes": stats.snapshot_bytes,
            "file_bytes": meta.len,
            "disk_bytes": meta.allocated,
            "files": stats.meta_files.iter().map(file).collect::<Vec<_>>(),
        },
    })
}

fn file(file: &FileStats) -> Value {
    json!({
        "file": name(file),
        "sealed": file.sealed,
        "file_bytes": file.len,
        "durable_bytes": file.durable_len,
        "disk_bytes": file.allocated,
        "live_records": file.live_records,
        "live_bytes": file.live_bytes,
        "dead_records": file.dead_records,
        "dead_bytes": file.dead_bytes,
    })
}

/// A summary and a table of the physical files.
pub(crate) fn text(stats: &LogStats) -> String {
    let (data, meta) = (Sum::of(&stats.data_files), Sum::of(&stats.meta_files));
    let unproven = match stats.unproven_records {
        0 => "all records".to_owned(),
        count => format!("all but the last {} records", human_count(count)),
    };
    let mut table = Table::new(&[
        "file",
        "bytes",
        "durable",
        "on disk",
        "live records",
        "live bytes",
        "dead records",
        "dead bytes",
    ]);
    for file in stats.data_files.iter().chain(&stats.meta_files) {
        let durable = if file.sealed {
            "sealed".to_owned()
        } else {
            human_count(file.durable_len)
        };
        table.row(&[
            name(file),
            human_count(file.len),
            durable,
            human_bytes(file.allocated),
            human_count(file.live_records),
            human_count(file.live_bytes),
            human_count(file.dead_records),
            human_count(file.dead_bytes),
        ]);
    }
    format!(
        "{} records in {} logs; {} LSNs from first to last, {} of them missing\n\
         datalog: {} live, {} dead and not reclaimed yet ({} records), {} on disk in {} files\n\
         metalog: {} live, {} on disk in {} files\n\
         space amplification: {:.2}\n\
         proven durable: {unproven}\n\
         {table}",
        human_count(stats.records),
        human_count(stats.logs),
        human_count(stats.lsns),
        human_count(missing(stats)),
        human_bytes(data.live_bytes),
        human_bytes(data.dead_bytes),
        human_count(data.dead_records),
        human_bytes(data.allocated),
        stats.data_files.len(),
        human_bytes(stats.snapshot_bytes),
        human_bytes(meta.allocated),
        stats.meta_files.len(),
        stats.space_amplification(),
    )
}

/// LSNs between the first and the last record of a log that have no record.
fn missing(stats: &LogStats) -> u64 {
    stats.lsns.saturating_sub(stats.records)
}

fn name(file: &FileStats) -> String {
    let name = file.path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
