//! `mkfs.lavafs`: makes a filesystem on a block device or in an image file.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use lavafs::MkfsOptions;
use lavafs::device::{self, BlockDevice, OpenMode};
use serde_json::json;
use uuid::Uuid;

use crate::cli::{Failure, Outcome, human_bytes, json_line, line, parse_size};

/// Make a LavaFS filesystem
///
/// A device that holds a known filesystem is left alone unless -f is given. Exit code 0 where the
/// filesystem was made (or, with -n, could be), 1 on a failure, 2 for a wrong command line.
#[derive(Debug, Parser)]
#[command(name = "mkfs.lavafs", version)]
pub struct Mkfs {
    /// Go on even if the device holds a known filesystem; with --size, even if the file exists
    #[arg(short = 'f', long)]
    force: bool,
    /// Show what would be made, and write nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Label, at most 64 bytes
    #[arg(short = 'L', long)]
    label: Option<String>,
    /// UUID; a random one by default
    #[arg(short = 'U', long)]
    uuid: Option<Uuid>,
    /// Make an image file of this size
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// Bytes of each of the two journal regions; chosen from the device's size by default
    #[arg(long, value_parser = parse_size)]
    journal_size: Option<u64>,
    /// Features to switch on, separated by commas
    #[arg(short = 'O', long, value_delimiter = ',', value_name = "FEATURE")]
    features: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Block device or image file
    device: PathBuf,
}

impl Mkfs {
    /// Makes the filesystem and says what was made.
    pub fn run(&self) -> Outcome {
        let Some(size) = self.size else {
            return self.format(self.open()?.as_ref());
        };
        let existed = self.device.symlink_metadata().is_ok();
        if existed && !self.force {
            return Err(Failure::new(format!(
                "{} exists; -f replaces it",
                self.device.display()
            )));
        }
        if self.dry_run {
            // In memory: nothing is written, not even an empty file.
            let size = lavafs::align_down(size, lavafs::BLOCK_SIZE);
            return self.format(&device::SimDevice::new(size, 512));
        }
        drop(device::create_image(&self.device, size, self.force)?);
        let formatted = self.open().and_then(|device| self.format(device.as_ref()));
        if formatted.is_err() && !existed {
            // Only what this command made is removed; the first error is the one to report.
            let _ = std::fs::remove_file(&self.device);
        }
        formatted
    }

    fn open(&self) -> Outcome<Arc<dyn BlockDevice>> {
        let mode = if self.dry_run {
            OpenMode::ReadOnly
        } else {
            OpenMode::ReadWrite
        };
        Ok(device::open(&self.device, mode)?)
    }

    fn format(&self, device: &dyn BlockDevice) -> Outcome {
        let path = &self.device;
        let options = MkfsOptions {
            label: self.label.clone(),
            uuid: self.uuid,
            journal_size: self.journal_size,
            features: self.features.clone(),
            force: self.force,
            dry_run: self.dry_run,
        };
        let superblock = lavafs::mkfs(device, &options)?;
        let size = superblock.total_blocks * lavafs::BLOCK_SIZE;
        // Two regions, A and B.
        let journal = 2 * superblock.journal_blocks * lavafs::BLOCK_SIZE;
        if self.json {
            json_line(&json!({
                "device": path.display().to_string(),
                "uuid": superblock.uuid.to_string(),
                "size": size,
                "label": superblock.label,
                "features": superblock.feature_names(),
                "journal": journal,
                "dry_run": self.dry_run,
            }))?;
        } else {
            line(format_args!(
                "{}: {} LavaFS of {}, journal {}, UUID {}",
                path.display(),
                if self.dry_run {
                    "would make a"
                } else {
                    "made a"
                },
                human_bytes(size),
                human_bytes(journal),
                superblock.uuid,
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
