//! What went wrong, where the VM is now, and what to do next: every failure carries all three.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::migration::Phase;

/// The kind of a failure. It decides what is tried next, and the code that users see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The two ends do not fit each other: CPU features, machine type, devices.
    Incompatible,
    /// Not enough memory, CPU, disk space, ports or descriptors.
    Resource,
    /// The other host, or the way to it, does not work.
    Peer,
    /// QEMU refused or died.
    Qemu,
    /// A disk or a datastore does not work.
    Storage,
    /// The guest dirties memory faster than the link carries it.
    NotConverging,
    /// Something took longer than its limit.
    Timeout,
    /// A user ended it.
    Cancelled,
    /// Whoever asked may not do this.
    Denied,
    /// The request makes no sense as it stands.
    Invalid,
    /// What the request names does not exist.
    NotFound,
    /// The request collides with something that exists or is under way.
    Conflict,
}

impl FailureKind {
    /// The stable code that the API and the CLI show.
    pub fn code(self) -> &'static str {
        match self {
            Self::Incompatible => "incompatible",
            Self::Resource => "resource",
            Self::Peer => "peer",
            Self::Qemu => "qemu",
            Self::Storage => "storage",
            Self::NotConverging => "not-converging",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// Where the VM is after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It runs on the source, as if nothing had been tried.
    RunningOnSource,
    /// It runs on the destination.
    RunningOnDestination,
    /// It stands still until the two hosts agree who may run it.
    PausedInDoubt,
    /// It does not run anywhere.
    Stopped,
    /// Nothing was touched: the request was refused before anything began.
    Unchanged,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RunningOnSource => "the VM runs on the source",
            Self::RunningOnDestination => "the VM runs on the destination",
            Self::PausedInDoubt => "the VM is paused, in doubt",
            Self::Stopped => "the VM is stopped",
            Self::Unchanged => "nothing was changed",
        })
    }
}

/// One failure, told whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{what} ({kind}); {remedy}")]
pub struct Failure {
    /// What kind of failure this is.
    pub kind: FailureKind,
    /// The phase of the migration in which it happened, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// What was being done and what happened, naming the object and its values.
    pub what: String,
    /// What to do next.
    pub remedy: String,
}

impl Failure {
    /// A failure outside any phase.
    pub fn new(kind: FailureKind, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind, phase: None, what: what.into(), remedy: remedy.into() }
    }

    /// The same failure with texts of at most so many characters each: one that comes from elsewhere is of no length
    /// that can be relied on.
    pub fn clipped(self, characters: usize) -> Self {
        let clip = |text: String| match text.char_indices().nth(characters) {
            Some((end, _)) => text[..end].to_owned(),
            None => text,
        };
        Self { what: clip(self.what), remedy: clip(self.remedy), ..self }
    }

    /// The same failure, with the phase in which it happened.
    pub fn during(mut self, phase: Phase) -> Self {
        self.phase = Some(phase);
        self
    }
}
