//! Tasks and events: what is being done, and what has happened.

use jiff::Timestamp;
use limosa_model::{Failure, MigrationId, Name, Phase, Progress, Report, TaskId, VmId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something long that is being done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// What is done.
    pub kind: TaskKind,
    /// With what.
    pub subject: Subject,
    /// How it stands.
    pub state: TaskState,
    /// The phase that it is in, of a migration.
    pub phase: Option<Phase>,
    /// How much is done, 0 to 100. Never goes back.
    pub percent: u8,
    /// How far a migration is, as last reported.
    pub progress: Option<Progress>,
    /// What it waits for, or what it does, in words.
    pub message: Option<String>,
    /// Whether a user has asked to end it.
    pub cancel_asked: bool,
    /// The migration that it is about.
    pub migration: Option<MigrationId>,
    /// The task that it is a part of.
    pub parent: Option<TaskId>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// What came of it.
    pub result: Option<TaskResult>,
    /// When it was accepted.
    #[schemars(with = "String")]
    pub created: Timestamp,
    /// When it ended.
    #[schemars(with = "Option<String>")]
    pub ended: Option<Timestamp>,
}

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// Makes a VM.
    Create,
    /// Starts it.
    Start,
    /// Stops it.
    Stop,
    /// Ends its QEMU.
    Kill,
    /// Restarts its guest.
    Reboot,
    /// Stops its CPUs.
    Pause,
    /// Lets its CPUs go on.
    Resume,
    /// Removes it with its disks.
    Delete,
    /// Moves it.
    Migrate,
    /// Empties a host.
    Evacuate,
}

impl TaskKind {
    /// The word that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Reboot => "reboot",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Delete => "delete",
            Self::Migrate => "migrate",
            Self::Evacuate => "evacuate",
        }
    }
}

/// What a task or an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subject {
    /// Which kind of object.
    pub kind: SubjectKind,
    /// Its id.
    pub id: String,
    /// Its name, as it was then.
    pub name: Option<Name>,
}

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SubjectKind {
    /// The cluster.
    Cluster,
    /// A host.
    Host,
    /// A VM.
    Vm,
    /// A migration.
    Migration,
    /// A datastore.
    Datastore,
    /// A network.
    Network,
}

/// How a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// It waits for others to end: its `message` says for what.
    Queued,
    /// It is at work.
    Running,
    /// It has done what was asked.
    Succeeded,
    /// It has not: `failure` says why, and what to do.
    Failed,
    /// A user ended it.
    Cancelled,
}

impl TaskState {
    /// Whether nothing more happens.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// What came of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskResult {
    /// The VM that was made.
    Created(VmId),
    /// What a migration did.
    Migrated(Report),
    /// How many VMs an evacuation moved.
    Evacuated(u32),
}

/// Something that has happened. Kept for a time, so that a watch can begin in the past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// The revision of the state at which it happened: a watch goes on from the next one.
    pub revision: u64,
    /// When.
    #[schemars(with = "String")]
    pub time: Timestamp,
    /// What, as a stable code, such as `vm-started`.
    pub code: String,
    /// With what.
    pub subject: Subject,
    /// In words.
    pub message: String,
}
