//! `lava fs dump`, `frag`, `expand` and `label`: the inside of a LavaFS, for those who look after it.

use std::process::ExitCode;

use clap::Args;
use lavafs::device::{self, OpenMode};
use lavafs::{Bucket, Dump, Fragmentation};
use serde_json::{Value, json};

use crate::cli::{Access, Failure, Outcome, Target, human_bytes, json_line, line};

/// `lava fs dump`.
#[derive(Debug, Args)]
pub struct DumpCommand {
    /// Block device or image file; a damaged one will do
    #[arg(long, value_name = "TARGET")]
    fs: Target,
}

/// `lava fs frag`.
#[derive(Debug, Args)]
pub struct Frag {
    /// Block device or image file
    #[arg(long, value_name = "TARGET")]
    fs: Target,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `lava fs expand`.
#[derive(Debug, Args)]
pub struct Expand {
    /// Block device or image file that has grown
    #[arg(long, value_name = "TARGET")]
    fs: Target,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// `lava fs label`.
#[derive(Debug, Args)]
pub struct Label {
    /// Block device or image file
    #[arg(long, value_name = "TARGET")]
    fs: Target,
    /// The new label, at most 64 bytes; empty for none
    label: Option<String>,
}

impl Label {
    /// Prints the label, or sets it.
    pub(crate) fn run(&self) -> Outcome {
        device_of(&self.fs)?;
        let access = match self.label {
            Some(_) => Access::ReadWrite,
            None => Access::ReadOnly,
        };
        self.fs.open(access)?.with(|_, mounted| {
            let lava = mounted.lava().expect("a device holds a LavaFS");
            match &self.label {
                Some(label) => Ok(lava.set_label(label)?),
                None => line(lava.superblock().label),
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl DumpCommand {
    /// Prints every structure, then the journal's records.
    pub(crate) fn run(&self) -> Outcome {
        let dump = read(&self.fs)?;
        line(&dump)?;
        for region in 0..dump.regions.len() {
            let mut closed = None;
            dump.for_each_record(region, |record| {
                if closed.is_none() {
                    closed = line(record).err();
                }
                Ok(())
            })?;
            if let Some(failure) = closed {
                return Err(failure);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Frag {
    /// Prints in which pieces free space and files lie.
    pub(crate) fn run(&self) -> Outcome {
        let fragmentation = read(&self.fs)?.fragmentation;
        if self.json {
            json_line(&as_json(&fragmentation))?;
        } else {
            line(&fragmentation)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Expand {
    /// Grows the filesystem to the size of its device.
    pub(crate) fn run(&self) -> Outcome {
        device_of(&self.fs)?;
        self.fs.open(Access::ReadWrite)?.with(|_, mounted| {
            let lava = mounted.lava().expect("a device holds a LavaFS");
            let added = lava.expand()?;
            if self.json {
                json_line(&json!({ "added_bytes": added }))
            } else if added == 0 {
                line("the filesystem fills its device already")
            } else {
                line(format_args!("{} added", human_bytes(added)))
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn read(target: &Target) -> Outcome<Dump> {
    let path = device_of(target)?;
    Ok(Dump::read(device::open(path, OpenMode::ReadOnly)?)?)
}

fn device_of(target: &Target) -> Outcome<&std::path::Path> {
    match target {
        Target::Device(path) => Ok(path),
        Target::Host(_) => Err(Failure::new(format!("{target} is not a LavaFS"))),
    }
}

fn as_json(fragmentation: &Fragmentation) -> Value {
    let buckets = |buckets: &[Bucket]| -> Vec<Value> {
        let one = |b: &Bucket| json!({ "least": b.least, "count": b.count, "total": b.total });
        buckets.iter().map(one).collect()
    };
    json!({
        "free_blocks": fragmentation.free_blocks(),
        "free_runs": buckets(&fragmentation.free),
        "files": fragmentation.files(),
        "extents": fragmentation.extents(),
        "files_by_extents": buckets(&fragmentation.extents_per_file),
    })
}
