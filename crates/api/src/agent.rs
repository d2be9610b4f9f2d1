//! The agent's protocol: JSON over HTTP over mutual TLS.
//!
//! ```text
//! server                      source agent                    destination agent
//!   │ PUT  /v1/migrations/M (source)  │                               │
//!   ├────────────────────────────────▶│ starts its worker             │
//!   │◀─ status: worker's fingerprint ─┤                               │
//!   │ PUT  /v1/migrations/M (destination, source's fingerprint)       │
//!   ├─────────────────────────────────┼──────────────────────────────▶│ reserves, starts QEMU and worker
//!   │                                 │◀─ signal: ready(fingerprint) ─┤
//!   │                                 │═══════ workers: memory ══════▶│
//!   │                                 │◀─ signal: loaded ─────────────┤
//!   │◀─ fact: handed-over ────────────┼─ signal: told(handed-over) ──▶│
//!   │◀─ fact: running ────────────────┼──────────────────────────────-┤
//!   │                                 │◀─ signal: told(running) ──────┤
//!   │◀─ fact: released ───────────────┤                               │
//!   │ DELETE /v1/migrations/M, both                                   │
//! ```
//!
//! Every request may be repeated: it has the effect of one. Every signal is answered with the receiver's own
//! status, its fact included, so that a signal is a question as well. Orders name the journal that they are for and
//! are refused by any other with 409 (`conflict`). Bodies are at most [`BODY_LIMIT_BYTES`].

use std::net::SocketAddr;
use std::path::PathBuf;

use limosa_migration::{Ticket, Told};
use limosa_model::migration::PhaseTime;
use limosa_model::{
    Bandwidth, BootId, Capacity, DatastoreId, Epoch, Failure, HostFacts, HostId, Incarnation, JournalId,
    MigrationId, Millis, Name, NetworkId, Phase, PowerState, Progress, Stream, VmId, VmSpec,
};
use serde::{Deserialize, Serialize};

/// Longest body that either side reads, in bytes.
pub const BODY_LIMIT_BYTES: usize = 1 << 20;

/// The port that agents listen on, on the management network.
pub const AGENT_PORT: u16 = 7601;

/// An order of the server, for one journal of one host and from one incarnation of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order<T> {
    /// The journal that the server knows of. An agent with another one refuses.
    pub journal: JournalId,
    /// The server's incarnation. An agent that has seen a higher one refuses.
    pub incarnation: Incarnation,
    /// What to do.
    #[serde(flatten)]
    pub order: T,
}

/// Where disks live, as one host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatastoreAt {
    /// The datastore.
    pub id: DatastoreId,
    /// Its name in specs.
    pub name: Name,
    /// `dir` or `shared`.
    pub kind: DatastoreKind,
    /// The folder on this host. Disks are `vms/VM-ID/DISK.FORMAT` in it, images `templates/NAME`.
    pub path: PathBuf,
}

/// The kinds of datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DatastoreKind {
    /// A folder of one host.
    Dir,
    /// A folder that several hosts mount. That it is the same one is the administrator's word:
    /// a host only looks whether the VM's disks are in it.
    Shared,
}

/// A network, as one host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAt {
    /// The network.
    pub id: NetworkId,
    /// Its name in specs.
    pub name: Name,
    /// The bridge on this host.
    pub bridge: String,
}

/// A VM with everything that its spec names, as one host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmOnHost {
    /// The VM.
    pub vm: VmId,
    /// Its spec, with MACs filled in; the machine type is pinned unless this is its first start.
    pub spec: VmSpec,
    /// The datastores that the spec names.
    pub datastores: Vec<DatastoreAt>,
    /// The networks that the spec names.
    pub networks: Vec<NetworkAt>,
}

/// `PUT /v1/vms/VM`: run the VM under this epoch. Answered with [`VmStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartVm {
    /// The right.
    pub epoch: Epoch,
    /// What to run.
    pub target: VmOnHost,
}

/// `PUT /v1/vms/VM/disks`: make the disks of the spec that do not exist. Answered with [`DisksMade`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeDisks {
    /// The VM whose disks to make.
    pub target: VmOnHost,
}

/// The answer to [`MakeDisks`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisksMade {
    /// The names of the disks that were made.
    pub made: Vec<Name>,
}

/// `POST /v1/vms/VM/delete-disks`: remove the disks of a VM that runs nowhere. Answered with an empty object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteDisks {
    /// The VM whose disks to remove.
    pub target: VmOnHost,
}

/// `POST /v1/vms/VM/actions`: answered with [`VmStatus`] once the action is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActOnVm {
    /// The right under which the VM is thought to run. Under another one, the action is refused.
    pub epoch: Epoch,
    /// What to do.
    pub action: VmAction,
}

/// What can be done with a running VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmAction {
    /// Ask the guest to power off; after the time, end it by force.
    Stop {
        /// How long the guest has.
        timeout_ms: Millis,
    },
    /// End QEMU at once.
    Kill,
    /// Reset the machine. The guest is not asked.
    Reboot {
        /// Not used: a guest that is reset has no time.
        timeout_ms: Millis,
    },
    /// Stop the CPUs.
    Pause,
    /// Let the CPUs go on.
    Resume,
    /// Change what QEMU can change in a running VM; what it cannot waits for the next start.
    Set {
        /// The whole spec as it should be.
        target: Box<VmOnHost>,
    },
}

/// A VM on a host, as its agent sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmStatus {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: Name,
    /// The right under which it is here.
    pub epoch: Epoch,
    /// What it does.
    pub power: PowerState,
    /// Why it does not run, where that is known and not a user's wish.
    pub reason: Option<String>,
    /// The migration that it is in.
    pub migration: Option<MigrationId>,
    /// The pinned machine type that it was started with.
    pub machine_type: Option<String>,
    /// The process of its QEMU.
    pub pid: Option<u32>,
    /// Keys of the spec that differ from what runs, and wait for the next start.
    pub pending: Vec<String>,
}

/// How a migration should go. Every limit has a default that suits most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationOptions {
    /// What carries the memory.
    pub stream: Stream,
    /// How long the guest may stand still.
    pub downtime_limit_ms: Millis,
    /// How long the guest may at most stand still in the switchover before it is resumed on the source.
    pub switchover_limit_ms: Millis,
    /// How long the whole migration may take. None: as long as it makes progress.
    pub deadline_ms: Option<Millis>,
    /// The most that memory may take of the link. None: all of it.
    pub bandwidth: Option<Bandwidth>,
    /// How many parallel channels carry memory beside the main one. 0: all goes through the main one.
    pub channels: u8,
    /// Whether the guest may be slowed down where it dirties memory faster than the link carries it.
    pub throttle: bool,
    /// Whether the two memories are compared whole before the handover. The guest stands still meanwhile: some
    /// 0.4 s for a GiB.
    pub compare_memory: bool,
}

impl Default for MigrationOptions {
    fn default() -> Self {
        Self {
            stream: Stream::Qemu,
            downtime_limit_ms: Millis::new(300),
            switchover_limit_ms: Millis::new(10_000),
            deadline_ms: None,
            bandwidth: None,
            channels: 2,
            throttle: true,
            compare_memory: false,
        }
    }
}

/// The other end of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The host.
    pub host: HostId,
    /// Where its agent listens.
    pub address: SocketAddr,
}

/// `PUT /v1/migrations/M`: take part in a migration. Answered with [`MigrationStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationOrder {
    /// The server's word.
    pub ticket: Ticket,
    /// The VM as this host sees it.
    pub target: VmOnHost,
    /// The other end.
    pub peer: Peer,
    /// How it should go.
    pub options: MigrationOptions,
    /// For the destination: the fingerprint of the source's worker.
    pub peer_fingerprint: Option<String>,
    /// The agent does not know this migration any more, or never took the order, and its part is to be found out
    /// from what its QEMU does. Nothing is begun.
    #[serde(default)]
    pub recover: bool,
}

/// `POST /v1/migrations/M/signals`. Answered with [`MigrationStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signal {
    /// Destination to source: the stream may come.
    Ready {
        /// The migration, whole.
        ticket: Ticket,
        /// Where the destination's worker listens, on the migration network.
        addresses: Vec<SocketAddr>,
        /// The fingerprint of the destination's worker.
        fingerprint: String,
    },
    /// Destination to source: everything is loaded.
    Loaded {
        /// The migration, whole.
        ticket: Ticket,
        /// The digest of the destination's memory, where it was asked for.
        memory: Option<String>,
    },
    /// Anybody: a fact.
    Told(Told),
    /// Source to destination: refuse, unless you run the VM.
    GiveUp,
    /// Server to destination: the source is gone for good, and nobody knows of a handover.
    SourceLost,
    /// Server to source: the destination will never tell; take the VM as crashed.
    Abandon,
    /// Server to either: a user wants it ended.
    Cancel,
}

/// Which end of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The host that the VM leaves.
    Source,
    /// The host that the VM comes to.
    Destination,
}

/// One end's part of a migration. `GET /v1/migrations/M`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MigrationStatus {
    /// The migration.
    pub ticket: Ticket,
    /// Which end this is.
    pub role: Role,
    /// The state of its machine, in words.
    pub state: String,
    /// The phase that the migration is in, as far as this end knows.
    pub phase: Phase,
    /// What this end has decided.
    pub fact: Option<Told>,
    /// Whether nothing more happens at this end.
    pub ended: bool,
    /// Source, while it sends: how far it is.
    pub progress: Option<Progress>,
    /// The fingerprint of this end's worker, once there is one.
    pub fingerprint: Option<String>,
    /// Why it failed, where it did.
    pub failure: Option<Failure>,
    /// What was measured at this end.
    pub measured: Measured,
    /// This end's clock when it answered, in microseconds since 1970.
    pub now_us: u64,
}

/// What one end of a migration measures. Times are in microseconds since 1970 by its own clock.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Measured {
    /// The phases that this end timed.
    pub phases: Vec<PhaseTime>,
    /// When the guest was stopped for the switchover (source).
    pub stopped_us: Option<u64>,
    /// When the guest was let go (destination, or source after a failure).
    pub continued_us: Option<u64>,
    /// How much the peer's clock is ahead of this one, measured over the control connection (destination).
    pub peer_clock_ahead_us: Option<i64>,
    /// Bytes on the wire, both directions.
    pub wire_bytes: u64,
    /// Memory passes.
    pub passes: u64,
    /// Whether the two memories were compared whole, and were the same.
    pub memory_compared: bool,
    /// What went wrong without stopping anything.
    pub warnings: Vec<String>,
}

/// `POST /v1/migrations/M/check`: would this host do as an end of this migration? Answered with [`CheckReport`].
/// Nothing is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckOrder {
    /// Which end.
    pub role: Role,
    /// The VM as this host sees it.
    pub target: VmOnHost,
    /// The epoch under which it runs on the source.
    pub epoch: Epoch,
    /// The other end.
    pub peer: Peer,
    /// What the other end's agent is, so that the two can be compared.
    pub peer_facts: HostFacts,
    /// The other end's address on the migration network.
    pub peer_migration_address: SocketAddr,
}

/// What the prepare checks found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// The checks that failed: each names the object, the two values and the remedy.
    pub failed: Vec<Failure>,
    /// What does not stop the migration but should be known.
    pub warnings: Vec<String>,
    /// The round trip to the peer.
    pub round_trip_us: Option<u64>,
    /// The largest packet that reaches the peer unbroken on the migration network.
    pub path_mtu: Option<u32>,
    /// Source: the rate at which the guest dirties memory. `None`: agents do not measure it before a migration.
    pub dirty_rate: Option<Bandwidth>,
}

/// `GET /v1/host`, and what an agent reports to the server by `POST /agent/v1/reports`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// The host.
    pub host: HostId,
    /// Its journal.
    pub journal: JournalId,
    /// Its boot.
    pub boot: BootId,
    /// What it is.
    pub facts: HostFacts,
    /// What its VMs and reservations take.
    pub taken: Capacity,
    /// Where its agent listens.
    pub address: SocketAddr,
    /// Its address on the migration network.
    pub migration_address: SocketAddr,
    /// The highest epoch that it has seen, of any VM.
    pub highest_epoch: Epoch,
    /// The VMs here.
    pub vms: Vec<VmStatus>,
    /// The migrations that it has a part in.
    pub migrations: Vec<MigrationStatus>,
    /// Counts reports; a later one has a higher number.
    pub sequence: u64,
}

/// The answer to a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAnswer {
    /// The server's incarnation.
    pub incarnation: Incarnation,
    /// The hosts that this one may hear signals from, with their agents' addresses.
    pub peers: Vec<Peer>,
}

/// `POST /agent/v1/facts` at the server: one end has decided something. Answered with [`FactAnswer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FactReport {
    /// Who says so.
    pub host: HostId,
    /// Its part, whole.
    pub status: MigrationStatus,
}

/// What the server knows of the other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactAnswer {
    /// The other end's fact, where the server has heard one.
    pub other: Option<Told>,
}
