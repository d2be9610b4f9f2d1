//! The REST API of the server, under [`ROOT`]: what users, the CLI and the console see.
//!
//! Every request carries `Authorization: Bearer TOKEN`. Bodies are JSON, at most [`BODY_LIMIT_BYTES`] long; unknown
//! keys in them are errors. Where a path names an object, its name and its id both do. Anything that takes time
//! answers `202 Accepted` with a [`Task`]; what could be decided at once answers with the object. Every error is an
//! RFC 9457 problem document.
//!
//! | path | method | body | answer |
//! |---|---|---|---|
//! | `/v1/cluster` | GET | | [`Cluster`] |
//! | `/v1/cluster/confirm-restore` | POST | [`ConfirmRestore`] | [`Cluster`] |
//! | `/v1/tokens` | POST | [`CreateToken`] | [`JoinToken`] |
//! | `/v1/hosts`, `/v1/hosts/HOST` | GET | | [`List`] of [`Host`], [`Host`] |
//! | `/v1/hosts/HOST` | DELETE | | 204 |
//! | `/v1/hosts/HOST/cordon`, `…/uncordon` | POST | | [`Host`] |
//! | `/v1/hosts/HOST/evacuate` | POST | [`EvacuateHost`] | [`Task`] |
//! | `/v1/hosts/HOST/declare-lost` | POST | [`DeclareLost`] | [`Host`] |
//! | `/v1/hosts/HOST/readmit` | POST | | [`Host`] |
//! | `/v1/datastores` | GET, POST | [`CreateDatastore`] | [`List`] of [`Datastore`], [`Datastore`] |
//! | `/v1/datastores/DATASTORE` | GET, DELETE | | [`Datastore`], 204 |
//! | `/v1/networks` | GET, POST | [`CreateNetwork`] | [`List`] of [`Network`], [`Network`] |
//! | `/v1/networks/NETWORK` | GET, DELETE | | [`Network`], 204 |
//! | `/v1/vms` | GET, POST | [`CreateVm`] | [`List`] of [`Vm`], [`Task`] |
//! | `/v1/vms/VM` | GET, PATCH, DELETE | [`SetVm`] | [`Vm`], [`Vm`], [`Task`] |
//! | `/v1/vms/VM/start` | POST | [`StartVm`] | [`Task`] |
//! | `/v1/vms/VM/stop`, `…/reboot` | POST | [`StopVm`] | [`Task`] |
//! | `/v1/vms/VM/kill`, `…/pause`, `…/resume` | POST | | [`Task`] |
//! | `/v1/vms/VM/migrate` | POST | [`MigrateRequest`] | [`Task`], or [`MigrationPlan`] with `dry_run` |
//! | `/v1/vms/VM/resolve` | POST | [`ResolveVm`] | [`Vm`] |
//! | `/v1/vms/VM/console/serial`, `…/console/vnc` | GET, upgrade | | the bytes |
//! | `/v1/migrations`, `/v1/migrations/MIGRATION` | GET | | [`List`] of [`Migration`], [`Migration`] |
//! | `/v1/tasks`, `/v1/tasks/TASK` | GET | | [`List`] of [`Task`], [`Task`] |
//! | `/v1/tasks/TASK?watch=true` | GET | | server-sent events `task`, each a [`Task`], until it has ended |
//! | `/v1/tasks/TASK/cancel` | POST | | [`Task`] |
//! | `/v1/events?from=REV` | GET | | [`List`] of [`Event`] |
//! | `/v1/events?watch=true&from=REV` | GET | | server-sent events `event`, each an [`Event`]; a `problem` ends them |
//! | `/v1/support-bundle` | GET | | the whole state without secrets |
//! | `/v1/openapi.json` | GET | | this, for programs; needs no token |

mod cluster;
mod host;
mod migration;
mod task;
mod vm;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use cluster::{
    Cluster, ClusterState, ConfirmRestore, CreateDatastore, CreateNetwork, Datastore, Network, NetworkKind,
};
pub use host::{
    CreateToken, DeclareLost, EvacuateHost, Host, HostState, JoinHost, JoinToken, JoinedHost, Stray,
};
pub use migration::{HostRef, MigrateRequest, Migration, MigrationPlan, Prediction, RejectedHost, VmRef};
pub use task::{Event, Subject, SubjectKind, Task, TaskKind, TaskResult, TaskState};
pub use vm::{CreateVm, DesiredPower, ResolveVm, SetVm, StartVm, StopVm, Vm};

/// What every path begins with.
pub const ROOT: &str = "/v1";

/// The port that the server listens on.
pub const SERVER_PORT: u16 = 7600;

/// Longest body that the server reads, in bytes.
pub const BODY_LIMIT_BYTES: usize = 1 << 20;

/// Several objects, and the revision of the state in which they were so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct List<T> {
    /// The objects.
    pub items: Vec<T>,
    /// The revision. A watch from the next one misses nothing.
    pub revision: u64,
}
