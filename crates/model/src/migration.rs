//! The words of a migration: its kind, phases, facts, progress and report.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Outcome};
use crate::id::{Epoch, HostId, MigrationId, VmId};
use crate::units::{Bandwidth, ByteSize, Millis};

/// What moves, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationKind {
    /// Memory moves while the VM runs; both hosts reach the disks.
    Live,
}

/// Which mechanism carries the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// QEMU's own migration stream, carried over our transport.
    Qemu,
}

/// The steps of a migration, in order. A migration's phase never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Checks, prediction, choice of the destination.
    Prepare,
    /// The destination sets aside what the VM needs and starts QEMU, paused.
    Reserve,
    /// Memory is sent while the VM runs.
    Transfer,
    /// The VM stands still; the last pages and the device state are sent and loaded.
    Switchover,
    /// The right to run passes to the destination.
    Handover,
    /// The source lets go; the report is made.
    Finish,
}

impl Phase {
    /// All phases in order.
    pub const ALL: [Self; 6] =
        [Self::Prepare, Self::Reserve, Self::Transfer, Self::Switchover, Self::Handover, Self::Finish];

    /// The name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Reserve => "reserve",
            Self::Transfer => "transfer",
            Self::Switchover => "switchover",
            Self::Handover => "handover",
            Self::Finish => "finish",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Something that is so for good: durable where it was decided before anybody else hears of it.
///
/// A fact is always told together with the migration and the epoch that it is about; a fact of another
/// migration or epoch is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fact {
    /// The source gave the right to run away. (Said by the source.)
    HandedOver {
        /// Whether the guest ran before it was stopped for the move, and so is to run on.
        run: bool,
    },
    /// The source keeps the right to run and will not hand over in this migration. (Said by the source.)
    Resumed,
    /// The source has no QEMU of this VM any more and will not run it in this migration. (Said by the source.)
    Released,
    /// The destination has taken the right to run. (Said by the destination.)
    Running,
    /// The destination has killed its QEMU and will not run the VM in this migration. (Said by the destination.)
    Refused,
    /// The destination has lost its journal and finds no QEMU: it will not run the VM in this migration, but
    /// cannot tell whether it did. (Said by the destination.)
    Lost,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HandedOver { .. } => "handed-over",
            Self::Resumed => "resumed",
            Self::Released => "released",
            Self::Running => "running",
            Self::Refused => "refused",
            Self::Lost => "lost",
        })
    }
}

/// How far a migration is. All figures are measured; `percent` never goes back within one migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// The phase that it is in.
    pub phase: Phase,
    /// How much of the whole is done, 0 to 100.
    pub percent: u8,
    /// Bytes that went over the wire so far, both directions, encryption included.
    pub wire: ByteSize,
    /// Guest memory still to be sent.
    pub remaining: ByteSize,
    /// The rate at which memory was sent lately.
    pub rate: Bandwidth,
    /// The rate at which the guest dirties its memory.
    pub dirty_rate: Bandwidth,
    /// How long it will take at this rate. `None` while it cannot be known.
    pub left_ms: Option<Millis>,
    /// How long the guest would stand still if it were switched over at once. `None` while it cannot be known.
    pub expected_downtime_ms: Option<Millis>,
    /// How far QEMU slows the guest down so that the migration converges, 0 to 99 percent.
    pub throttle_percent: u8,
}

/// How long one phase took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseTime {
    /// The phase.
    pub phase: Phase,
    /// Its length in microseconds.
    pub micros: u64,
}

/// What a migration did, once it has ended. Every figure was measured in that migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// Which migration.
    pub migration: MigrationId,
    /// Which VM.
    pub vm: VmId,
    /// The epoch that the migration was given.
    pub epoch: Epoch,
    /// From where.
    pub source: HostId,
    /// To where.
    pub destination: HostId,
    /// What carried the memory.
    pub stream: Stream,
    /// Where the VM is.
    pub outcome: Outcome,
    /// Why it did not succeed, where it did not.
    pub failure: Option<Failure>,
    /// The phases that were gone through, in order.
    pub phases: Vec<PhaseTime>,
    /// From the acceptance of the order to the end.
    pub total_ms: Millis,
    /// How long the guest stood still, in microseconds: from the source's stop to the destination's go, by the
    /// clocks of the two hosts, their difference measured and taken out.
    pub downtime_us: Option<u64>,
    /// Bytes on the wire, both directions.
    pub wire: ByteSize,
    /// The guest's memory.
    pub memory: ByteSize,
    /// How often QEMU went over the dirty pages.
    pub passes: u64,
    /// Whether the two memories were compared whole before the handover, and were the same.
    pub memory_compared: bool,
}
