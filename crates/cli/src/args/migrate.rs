//! `limosa migrate …`

use clap::Args;
use limosa_api::agent::MigrationOptions;
use limosa_model::{Bandwidth, Millis};

/// `limosa migrate`
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// The VMs, by name or id
    #[arg(required = true, value_name = "VM")]
    pub vms: Vec<String>,
    /// The destination
    #[arg(long, value_name = "HOST", conflicts_with = "best", required_unless_present_any = ["best", "dry_run"])]
    pub to: Option<String>,
    /// Let the server choose the destination: the host with the most room
    #[arg(long)]
    pub best: bool,
    /// Only check and predict
    #[arg(long, conflicts_with = "watch")]
    pub dry_run: bool,
    /// Follow the migrations to their end, and print their reports
    #[arg(long, short)]
    pub watch: bool,
    /// How they go.
    #[command(flatten)]
    pub flags: MigrationFlags,
}

/// How migrations go.
#[derive(Debug, Args)]
pub struct MigrationFlags {
    /// How long a guest may stand still
    #[arg(long, value_name = "TIME", default_value = "300ms")]
    pub max_downtime: Millis,
    /// How long a whole migration may take; as long as it makes progress, where nothing is given
    #[arg(long, value_name = "TIME")]
    pub deadline: Option<Millis>,
    /// The most that memory may take of the link, as in 200Mbit
    #[arg(long, value_name = "RATE")]
    pub bandwidth: Option<Bandwidth>,
    /// Never slow a guest down, even if it dirties memory faster than the link carries it
    #[arg(long)]
    pub no_throttle: bool,
    /// Compare the two memories whole before the handover; the guest stands still meanwhile
    #[arg(long)]
    pub compare_memory: bool,
}

impl MigrationFlags {
    /// The same as the server takes it.
    pub fn options(&self) -> MigrationOptions {
        MigrationOptions {
            downtime_limit_ms: self.max_downtime,
            deadline_ms: self.deadline,
            bandwidth: self.bandwidth,
            throttle: !self.no_throttle,
            compare_memory: self.compare_memory,
            ..MigrationOptions::default()
        }
    }
}
