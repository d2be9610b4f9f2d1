//! Migrations: asked for, planned, under way, done.

use jiff::Timestamp;
use limosa_model::{
    ByteSize, Epoch, Fact, Failure, HostId, MigrationId, MigrationKind, Millis, Name, Phase, Progress,
    Report, TaskId, VmId,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::agent::MigrationOptions;

/// Moves a VM while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MigrateRequest {
    /// The destination, by name or id.
    pub to: Option<String>,
    /// Choose the destination: the host with the most room. Either this or `to`.
    pub best: bool,
    /// Only check and predict: answered with a [`MigrationPlan`], nothing is changed.
    pub dry_run: bool,
    /// How it should go.
    pub options: MigrationOptions,
}

/// What a migration would be: the answer to a dry run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MigrationPlan {
    /// The VM.
    pub vm: VmRef,
    /// Where it runs.
    pub source: HostRef,
    /// Where it would go. None where no host would do.
    pub destination: Option<HostRef>,
    /// Why that one.
    pub why: String,
    /// The hosts that were considered and will not do.
    pub rejected: Vec<RejectedHost>,
    /// The checks that failed: with any, the migration would be refused.
    pub failed: Vec<Failure>,
    /// What does not stop the migration but should be known.
    pub warnings: Vec<String>,
    /// What is expected. None where it cannot be known.
    pub prediction: Option<Prediction>,
    /// The round trip between the two hosts, where it was measured, in microseconds.
    pub round_trip_us: Option<u64>,
    /// The largest packet that passes between the two hosts unbroken, where it was measured.
    pub path_mtu: Option<u32>,
}

/// A host that will not do as destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RejectedHost {
    /// The host.
    pub host: HostRef,
    /// Why not.
    pub why: String,
}

/// What is expected of a migration, from what was measured before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Prediction {
    /// How long it takes in all.
    pub total_ms: Millis,
    /// How long the guest stands still.
    pub downtime_ms: Millis,
    /// What goes over the wire.
    pub wire: ByteSize,
    /// From which measurements this was concluded.
    pub basis: String,
}

/// A host, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostRef {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: Name,
}

/// A VM, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmRef {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: Name,
}

/// A migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Migration {
    /// Its id.
    pub id: MigrationId,
    /// The VM.
    pub vm: VmRef,
    /// What moves.
    pub kind: MigrationKind,
    /// From where.
    pub source: HostRef,
    /// The epoch of the source's right.
    pub source_epoch: Epoch,
    /// To where.
    pub destination: HostRef,
    /// The epoch that this migration was given.
    pub epoch: Epoch,
    /// How it goes.
    pub options: MigrationOptions,
    /// The phase that it is in.
    pub phase: Phase,
    /// How far it is, as last reported.
    pub progress: Option<Progress>,
    /// What the source has decided.
    pub source_fact: Option<Fact>,
    /// What the destination has decided.
    pub destination_fact: Option<Fact>,
    /// Whether a user has asked to end it.
    pub cancel_asked: bool,
    /// What was expected before it began.
    pub prediction: Option<Prediction>,
    /// What it did, once it has ended.
    pub report: Option<Report>,
    /// The task that it belongs to.
    pub task: TaskId,
    /// When it was accepted.
    #[schemars(with = "String")]
    pub created: Timestamp,
    /// When it ended.
    #[schemars(with = "Option<String>")]
    pub ended: Option<Timestamp>,
}
