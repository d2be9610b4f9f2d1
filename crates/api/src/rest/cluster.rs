//! The cluster as a whole, and what its hosts share.

use std::collections::BTreeMap;
use std::path::PathBuf;

use limosa_model::{DatastoreId, Incarnation, Name, NetworkId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent::DatastoreKind;

/// The cluster as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Whether it works.
    pub state: ClusterState,
    /// Which life of the state this is.
    pub incarnation: Incarnation,
    /// The server's version.
    pub version: String,
    /// While restoring: the hosts that have not reported to this incarnation yet.
    pub missing: Vec<Name>,
}

/// Whether the cluster works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterState {
    /// It does.
    Running,
    /// The server's state was restored from a backup. Nothing is started, moved or restarted until every known host
    /// has reported or is declared lost, and an operator has confirmed.
    Restoring,
}

/// An operator's word after a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmRestore {
    /// That no host has joined since the backup was made, other than those that the server knows of. Must be true.
    pub no_other_hosts: bool,
}

/// A place where disks live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Datastore {
    /// Its id.
    pub id: DatastoreId,
    /// Its name in specs.
    pub name: Name,
    /// Whether one host has it or several share it.
    pub kind: DatastoreKind,
    /// The folder on every host that `hosts` does not name. None: only the hosts named there have it.
    pub path: Option<PathBuf>,
    /// The folder on single hosts, by the host's name.
    pub hosts: BTreeMap<Name, PathBuf>,
}

/// Makes a datastore known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDatastore {
    /// Its name in specs, unique in the cluster.
    pub name: Name,
    /// `dir`: one host's own folder; `shared`: the same folder, mounted on several hosts.
    pub kind: DatastoreKind,
    /// The folder on every host that `hosts` does not name. Only for `shared`.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// The folder on single hosts, by the host's name. Exactly one for `dir`.
    #[serde(default)]
    pub hosts: BTreeMap<Name, PathBuf>,
}

/// What NICs attach to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Its name in specs.
    pub name: Name,
    /// How it is made.
    pub kind: NetworkKind,
    /// The bridge on every host that `hosts` does not name.
    pub bridge: String,
    /// The bridge on single hosts, by the host's name.
    pub hosts: BTreeMap<Name, String>,
}

/// How a network is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkKind {
    /// A bridge that exists on each host.
    Bridge,
}

/// Makes a network known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Its name in specs, unique in the cluster.
    pub name: Name,
    /// How it is made. `bridge` where nothing is said.
    #[serde(default = "CreateNetwork::default_kind")]
    pub kind: NetworkKind,
    /// The bridge on every host that `hosts` does not name.
    pub bridge: String,
    /// The bridge on single hosts, by the host's name.
    #[serde(default)]
    pub hosts: BTreeMap<Name, String>,
}

impl CreateNetwork {
    fn default_kind() -> NetworkKind {
        NetworkKind::Bridge
    }
}
