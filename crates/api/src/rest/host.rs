//! Hosts, and how they join.

use std::net::SocketAddr;

use jiff::Timestamp;
use limosa_model::{Capacity, Epoch, HostFacts, HostId, Millis, Name, TaskId, VmId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: Name,
    /// Whether it can be used.
    pub state: HostState,
    /// Whether it takes no more VMs.
    pub cordoned: bool,
    /// Why it is in this state, where it is not online.
    pub reason: Option<String>,
    /// What it is, as it last reported.
    pub facts: Option<HostFacts>,
    /// What it has for guests.
    pub capacity: Capacity,
    /// What VMs and migrations under way take of it.
    pub taken: Capacity,
    /// Where its agent listens.
    #[schemars(with = "Option<String>")]
    pub address: Option<SocketAddr>,
    /// Its address on the migration network.
    #[schemars(with = "Option<String>")]
    pub migration_address: Option<SocketAddr>,
    /// When it was last heard of.
    #[schemars(with = "Option<String>")]
    pub last_report: Option<Timestamp>,
    /// How many VMs are on it, or may be.
    pub vms: u32,
    /// VMs that run on it without the server's knowing of a right.
    pub strays: Vec<Stray>,
    /// The task that evacuates it, while it is evacuated.
    pub evacuation: Option<TaskId>,
}

/// Whether a host can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// It has joined and not reported yet.
    Joined,
    /// It reports.
    Online,
    /// It has not been heard of lately. Nothing is concluded from that about its VMs.
    Offline,
    /// Two machines report as this host: neither is given orders.
    Quarantined,
    /// An operator declared it gone for good.
    Lost,
}

/// A VM that runs on a host without the server's knowing of a right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stray {
    /// The VM's id.
    pub vm: VmId,
    /// Its name, as its host knows it.
    pub name: Name,
    /// The epoch under which it runs.
    pub epoch: Epoch,
}

/// Asks for a token with which one host joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// The name that the host will have. No other host can join with the token.
    pub host: Name,
    /// For how long it can be used, at most a day. One hour where nothing is said.
    #[serde(default = "CreateToken::default_valid_for_ms")]
    pub valid_for_ms: Millis,
}

impl CreateToken {
    fn default_valid_for_ms() -> Millis {
        Millis::new(3_600_000)
    }
}

/// A token with which one host joins, once. It is shown here only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinToken {
    /// The secret.
    pub token: String,
    /// The name of the host that it is for.
    pub host: Name,
    /// Until when it can be used.
    #[schemars(with = "String")]
    pub expires: Timestamp,
    /// Where the server listens, as hosts reach it.
    #[schemars(with = "String")]
    pub server: SocketAddr,
    /// The SHA-256 fingerprint of the cluster's CA certificate, by which the joining host knows the server.
    pub ca_fingerprint: String,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken")
            .field("host", &self.host)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Empties a host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvacuateHost {
    /// How its VMs move.
    pub options: crate::agent::MigrationOptions,
}

/// An operator's word that a host is gone for good: it does not run, and will never again run, any VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeclareLost {
    /// Must be true: a host that only cannot be reached would run its VMs twice.
    pub confirmed: bool,
}

/// `POST /agent/v1/join`: a host asks to be one of the cluster. Answered with [`JoinedHost`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinHost {
    /// The name for which the token was made.
    pub name: Name,
    /// The secret of the [`JoinToken`].
    pub token: String,
    /// The host's certificate request. Its key never leaves the host.
    pub request_pem: String,
}

impl std::fmt::Debug for JoinHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinHost").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The host is one of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinedHost {
    /// Its id from here on.
    pub host: HostId,
    /// Its certificate.
    pub certificate_pem: String,
    /// The certificate of the cluster's authority.
    pub ca_pem: String,
    /// The cluster's name.
    pub cluster: String,
}
