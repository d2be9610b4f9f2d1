//! Everything else that is in a cluster.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use limosa_api::agent;
use limosa_model::{Millis, Name};

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show the cluster
    Show,
    /// After a restore from a backup: let the server work again
    ConfirmRestore {
        /// No host has joined since the backup, other than those that the server shows
        #[arg(long, required = true)]
        no_other_hosts: bool,
    },
}

/// The kinds of datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DatastoreKind {
    /// A folder of one host
    Dir,
    /// A folder that several hosts mount: NFS, CephFS, GFS2
    Shared,
}

impl From<DatastoreKind> for agent::DatastoreKind {
    fn from(kind: DatastoreKind) -> Self {
        match kind {
            DatastoreKind::Dir => Self::Dir,
            DatastoreKind::Shared => Self::Shared,
        }
    }
}

/// What to do with datastores.
#[derive(Debug, Subcommand)]
pub enum DatastoreCommand {
    /// Make a datastore known
    Add {
        /// Its name in specs
        name: Name,
        /// Whether one host has it or several share it
        #[arg(long, value_enum, default_value_t = DatastoreKind::Shared)]
        kind: DatastoreKind,
        /// The folder on every host that `--on` does not name
        #[arg(long, value_name = "FOLDER", required_unless_present = "on")]
        path: Option<PathBuf>,
        /// The folder on one host; may be given several times
        #[arg(long, value_name = "HOST=FOLDER")]
        on: Vec<String>,
    },
    /// List all datastores
    List,
    /// Show one datastore
    Show {
        /// Its name or id
        datastore: String,
    },
    /// Forget a datastore that no VM uses; its files stay
    Remove {
        /// Its name or id
        datastore: String,
    },
}

/// What to do with networks.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Make a network known
    Add {
        /// Its name in specs
        name: Name,
        /// The bridge on every host that `--on` does not name
        #[arg(long, value_name = "BRIDGE")]
        bridge: String,
        /// The bridge on one host; may be given several times
        #[arg(long, value_name = "HOST=BRIDGE")]
        on: Vec<String>,
    },
    /// List all networks
    List,
    /// Forget a network that no VM uses; its bridges stay
    Remove {
        /// Its name or id
        network: String,
    },
}

/// What to do with tasks.
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// List tasks, the latest last
    List,
    /// Show one task
    Show {
        /// Its id
        task: String,
    },
    /// Follow a task to its end
    Watch {
        /// Its id
        task: String,
    },
    /// Cancel a task; a migration can be cancelled until the handover
    Cancel {
        /// Its id
        task: String,
    },
}

/// `limosa events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on with what happens from here
    #[arg(long, short)]
    pub follow: bool,
    /// Begin at this revision
    #[arg(long, value_name = "REVISION")]
    pub from: Option<u64>,
}

/// What to do with join tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token with which one host joins, once
    Create {
        /// The name that the host will have
        host: Name,
        /// For how long it can be used, at most a day
        #[arg(long, value_name = "TIME", default_value = "1h")]
        valid_for: Millis,
    },
}
