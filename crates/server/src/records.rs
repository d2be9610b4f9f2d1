//! What is kept in the store, and under which keys.
//!
//! | key | value |
//! |---|---|
//! | `cluster` | [`ClusterRecord`] |
//! | `hosts/ID`, `vms/ID`, `migrations/ID`, `tasks/ID` | [`HostRecord`], [`VmRecord`], [`MigrationRecord`], [`TaskRecord`] |
//! | `datastores/ID`, `networks/ID` | as the API shows them |
//! | `names/KIND/NAME` | the id that has the name |
//! | `macs/MAC` | the id of the VM that has the address |
//! | `tokens/DIGEST` | [`TokenRecord`] |
//! | `events/ID` | [`EventRecord`], in the order of their ids |
//!
//! Names and MACs are keys of their own so that the store itself keeps them unique.

use std::net::SocketAddr;

use jiff::Timestamp;
use limosa_api::agent::MigrationOptions;
use limosa_api::rest::{DesiredPower, Prediction, Subject, SubjectKind, Task, TaskState};
use limosa_migration::Custody;
use limosa_migration::custody::{At, Passage};
use limosa_model::{
    BootId, Capacity, Epoch, Failure, HostFacts, HostId, Incarnation, JournalId, MigrationId, Millis, Name,
    Report, TaskId, VmId, VmSpec,
};
use serde::{Deserialize, Serialize};

use crate::secret::Digest;

/// The keys.
pub(crate) mod keys {
    use std::fmt::Display;

    use limosa_model::{Mac, Name};

    pub(crate) const CLUSTER: &str = "cluster";
    pub(crate) const HOSTS: &str = "hosts/";
    pub(crate) const DATASTORES: &str = "datastores/";
    pub(crate) const NETWORKS: &str = "networks/";
    pub(crate) const VMS: &str = "vms/";
    pub(crate) const MIGRATIONS: &str = "migrations/";
    pub(crate) const TASKS: &str = "tasks/";
    pub(crate) const EVENTS: &str = "events/";
    pub(crate) const TOKENS: &str = "tokens/";

    /// The key of one object.
    pub(crate) fn of(prefix: &str, id: impl Display) -> String {
        format!("{prefix}{id}")
    }

    /// The key that keeps a name unique among its kind.
    pub(crate) fn name(prefix: &str, name: &Name) -> String {
        format!("names/{prefix}{name}")
    }

    /// The key that keeps a MAC unique.
    pub(crate) fn mac(mac: Mac) -> String {
        format!("macs/{mac}")
    }
}

/// The cluster as a whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ClusterRecord {
    pub(crate) name: String,
    /// The incarnation for which this was written. A higher one of the store means that it was restored.
    pub(crate) incarnation: Incarnation,
    /// Restored, and not yet confirmed.
    pub(crate) restoring: bool,
    pub(crate) admin_token: Digest,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    pub(crate) id: HostId,
    pub(crate) name: Name,
    pub(crate) joined: Timestamp,
    pub(crate) cordoned: bool,
    pub(crate) lost: bool,
    pub(crate) quarantined: Option<String>,
    /// The journal that orders are for. None until the host has reported.
    pub(crate) journal: Option<JournalId>,
    pub(crate) boot: Option<BootId>,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) migration_address: Option<SocketAddr>,
    pub(crate) facts: Option<HostFacts>,
    pub(crate) evacuation: Option<TaskId>,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct VmRecord {
    pub(crate) id: VmId,
    pub(crate) spec: VmSpec,
    pub(crate) desired: DesiredPower,
    pub(crate) custody: Custody,
    pub(crate) created: Timestamp,
    /// The task that alone may change it.
    pub(crate) task: Option<TaskId>,
    pub(crate) disks_made: bool,
    /// The host that a user wants it on.
    pub(crate) wanted_on: Option<HostId>,
    /// The journal that knows of the right under which the VM runs. A host with another one that does not show the
    /// VM does not have it, and no order on its way can bring it about.
    pub(crate) journal: Option<JournalId>,
    /// Whether the right was given by a start, which may be ordered again, rather than by a migration.
    pub(crate) by_start: bool,
    /// Whether the host has said that the VM is there under its right.
    pub(crate) confirmed: bool,
    /// Whether it has said so in a report. Only then does a later report without the VM mean that it is gone: one
    /// that was on its way while the VM was started knows nothing of it.
    pub(crate) reported: bool,
    /// The boot of the host under which it was last shown.
    pub(crate) boot: Option<BootId>,
    /// It is started again once this host has booted anew.
    pub(crate) at_boot: Option<(HostId, BootId)>,
    /// When the restart policy started it again, lately.
    pub(crate) restarts: Vec<Timestamp>,
    /// Why it does not run.
    pub(crate) reason: Option<String>,
    /// The spec has changed and the host has yet to hear of it.
    pub(crate) changed: bool,
}

/// A migration, kept after its end so that a host that asks late is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MigrationRecord {
    pub(crate) passage: Passage,
    pub(crate) options: MigrationOptions,
    pub(crate) task: TaskId,
    pub(crate) vm_name: Name,
    pub(crate) spec: VmSpec,
    pub(crate) prediction: Option<Prediction>,
    pub(crate) created: Timestamp,
    pub(crate) ended: Option<Timestamp>,
    /// How long the prepare phase took, in microseconds.
    pub(crate) prepare_us: u64,
    pub(crate) cancel_asked: bool,
    /// Why the server gave it up.
    pub(crate) failure: Option<Failure>,
    pub(crate) report: Option<Report>,
    /// The journals that the first orders were for. Another journal is asked to find its part out.
    pub(crate) source_journal: Option<JournalId>,
    pub(crate) destination_journal: Option<JournalId>,
    /// Both hosts have been told to forget it.
    pub(crate) closed: bool,
}

/// A task, with what it takes to do it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TaskRecord {
    pub(crate) task: Task,
    pub(crate) work: Work,
}

/// What a task does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Work {
    Create { vm: VmId, start: bool },
    Start { vm: VmId },
    Stop { vm: VmId, timeout_ms: Millis },
    Kill { vm: VmId },
    Reboot { vm: VmId, timeout_ms: Millis },
    Pause { vm: VmId },
    Resume { vm: VmId },
    Delete { vm: VmId },
    Migrate { vm: VmId, migration: MigrationId, to: Option<HostId>, options: MigrationOptions },
    Evacuate { host: HostId, options: MigrationOptions },
}

/// A join token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    pub(crate) host: Name,
    pub(crate) expires: Timestamp,
}

/// An event; its revision is that of its key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct EventRecord {
    pub(crate) time: Timestamp,
    pub(crate) code: String,
    pub(crate) subject: Subject,
    pub(crate) message: String,
}

impl HostRecord {
    /// Why it takes no orders, if it does not.
    pub(crate) fn refusal(&self) -> Option<String> {
        if self.lost { Some("it was declared lost".into()) } else { self.quarantined.clone() }
    }

    pub(crate) fn subject(&self) -> Subject {
        Subject { kind: SubjectKind::Host, id: self.id.to_string(), name: Some(self.name.clone()) }
    }
}

impl VmRecord {
    pub(crate) fn subject(&self) -> Subject {
        Subject { kind: SubjectKind::Vm, id: self.id.to_string(), name: Some(self.spec.name.clone()) }
    }

    /// The host that has the right, and its epoch.
    pub(crate) fn on(&self) -> Option<(HostId, Epoch)> {
        match self.custody.at {
            At::On { host, epoch } => Some((host, epoch)),
            At::Nowhere | At::Moving(_) => None,
        }
    }

    pub(crate) fn moving(&self) -> Option<MigrationId> {
        match self.custody.at {
            At::Moving(migration) => Some(migration),
            At::Nowhere | At::On { .. } => None,
        }
    }

    /// What it takes of a host.
    pub(crate) fn takes(&self) -> Capacity {
        takes(&self.spec)
    }
}

/// What a VM of this spec takes of a host.
pub(crate) fn takes(spec: &VmSpec) -> Capacity {
    Capacity { memory: spec.memory, cpus: spec.cpus.into() }
}

impl MigrationRecord {
    pub(crate) fn id(&self) -> MigrationId {
        self.passage.ticket.migration
    }

    pub(crate) fn subject(&self) -> Subject {
        Subject { kind: SubjectKind::Migration, id: self.id().to_string(), name: Some(self.vm_name.clone()) }
    }

    /// Whether the server wants it to end where it began.
    pub(crate) fn is_given_up(&self) -> bool {
        self.cancel_asked || self.failure.is_some()
    }

    /// Whether it still takes room and link on both hosts.
    pub(crate) fn is_under_way(&self) -> bool {
        self.report.is_none()
    }
}

impl TaskRecord {
    pub(crate) fn has_ended(&self) -> bool {
        self.task.state.has_ended()
    }

    pub(crate) fn is_queued(&self) -> bool {
        self.task.state == TaskState::Queued
    }
}
