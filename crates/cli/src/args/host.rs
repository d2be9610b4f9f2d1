//! `limosa host …`

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::MigrationFlags;

/// What to do with hosts.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List all hosts
    List,
    /// Show one host
    Show {
        /// Its name or id
        host: String,
    },
    /// Make this machine a host of the cluster
    Join(JoinArgs),
    /// Say what this machine can do as a host, and what is missing
    Check {
        /// The agent's settings, where they exist
        #[arg(long, default_value = "/etc/limosa/agent.toml", value_name = "FILE")]
        config: PathBuf,
    },
    /// Give a host no more VMs
    Cordon {
        /// Its name or id
        host: String,
    },
    /// Give a host VMs again
    Uncordon {
        /// Its name or id
        host: String,
    },
    /// Move all VMs off a host, and give it no more
    Evacuate {
        /// Its name or id
        host: String,
        /// Follow it to its end
        #[arg(long, short)]
        watch: bool,
        /// How the VMs move.
        #[command(flatten)]
        flags: MigrationFlags,
    },
    /// Take an empty host out of the cluster
    Remove {
        /// Its name or id
        host: String,
    },
    /// Say that a host is gone for good, so that its VMs can be started elsewhere
    DeclareLost {
        /// Its name or id
        host: String,
        /// Do not ask: you are sure
        #[arg(long)]
        yes: bool,
    },
    /// Take a host back that was quarantined or declared lost
    Readmit {
        /// Its name or id
        host: String,
    },
}

/// `limosa host join`
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// What `limosa token create` printed
    pub token: String,
    /// Where the agent will listen, on the management network, as ADDRESS or ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", value_parser = listen_address)]
    pub listen: Option<SocketAddr>,
    /// The host's address on the migration network; the management address, where none is given
    #[arg(long, value_name = "ADDRESS")]
    pub migration_address: Option<IpAddr>,
    /// The agent's settings: written if there are none
    #[arg(long, default_value = "/etc/limosa/agent.toml", value_name = "FILE")]
    pub config: PathBuf,
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let with_port =
        || text.parse().map(|address: IpAddr| SocketAddr::new(address, limosa_api::agent::AGENT_PORT));
    text.parse()
        .or_else(|_| with_port())
        .map_err(|_| "an IP address, with or without a port, is expected".into())
}
