//! VMs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use limosa_model::spec::{NicSpec, PolicySpec};
use limosa_model::{ByteSize, Epoch, MigrationId, Millis, Name, PowerState, TaskId, VmId, VmSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A VM: what its owner wants, and what is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: Name,
    /// What it should be, with MACs and machine type filled in.
    pub spec: VmSpec,
    /// Whether it should run.
    pub desired: DesiredPower,
    /// The host that has the right to run it; during a migration, the source.
    pub host: Option<Name>,
    /// The epoch of that right.
    pub epoch: Option<Epoch>,
    /// What it does, as last reported. None while its host has not been heard of lately.
    pub power: Option<PowerState>,
    /// Why it does not do what it should, where that is known.
    pub reason: Option<String>,
    /// Whether it stands still because two hosts have yet to agree who may run it.
    pub in_doubt: bool,
    /// The migration that it is in.
    pub migration: Option<MigrationId>,
    /// The task that works on it.
    pub task: Option<TaskId>,
    /// Keys of the spec that differ from what runs, and wait for the next start.
    pub pending: Vec<String>,
    /// The addresses of its NICs that its spec gives.
    pub addresses: Vec<IpAddr>,
    /// When it was made.
    #[schemars(with = "String")]
    pub created: Timestamp,
}

/// Whether a VM should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DesiredPower {
    /// It should.
    Running,
    /// It should not.
    Stopped,
}

/// Makes a VM with its disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// What it should be.
    pub spec: VmSpec,
    /// Whether it is started at once.
    #[serde(default)]
    pub start: bool,
    /// The host to start it on. The one with the most room, where none is named.
    #[serde(default)]
    pub host: Option<String>,
}

/// Starts a VM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StartVm {
    /// The host to start it on. The one with the most room, where none is named.
    pub host: Option<String>,
}

/// Stops or reboots a VM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopVm {
    /// How long the guest has until force is used. The VM's own `policy.stop_timeout_ms` where nothing is said.
    pub timeout_ms: Option<Millis>,
}

/// Changes a VM's spec. What is not named stays. What QEMU cannot change in a running VM waits for the next start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SetVm {
    /// Another name.
    pub name: Option<Name>,
    /// Virtual CPUs.
    pub cpus: Option<u16>,
    /// Memory.
    pub memory: Option<ByteSize>,
    /// The NICs, all of them.
    pub nics: Option<Vec<NicSpec>>,
    /// What happens by itself.
    pub policy: Option<PolicySpec>,
    /// Labels to set; null takes one away.
    pub labels: BTreeMap<String, Option<String>>,
}

/// An operator's word that a VM's host is gone for good, where no fact can ever come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveVm {
    /// The host that is gone: it does not run the VM, and never will again.
    pub host_lost: String,
    /// Must be true: a host that only cannot be reached would run the VM twice.
    pub confirmed: bool,
}
