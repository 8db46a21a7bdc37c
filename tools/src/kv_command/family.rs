//! `--cf`: the column family that a command is about.

use clap::Args;
use lavakv::{CfId, Db};

use crate::cli::{Failure, Outcome};

/// The column family that a command is about.
#[derive(Debug, Args)]
pub struct Family {
    /// Column family
    #[arg(long, value_name = "NAME", default_value = "default")]
    cf: String,
}

impl Family {
    /// Its id in `db`.
    pub(super) fn of(&self, db: &Db) -> Outcome<CfId> {
        let none = || {
            let names: Vec<String> = db.cfs().into_iter().map(|(_, name)| name).collect();
            Failure::new(format!(
                "no column family '{}'; there are {}",
                self.cf,
                names.join(", ")
            ))
        };
        db.cf(&self.cf).ok_or_else(none)
    }
}
