//! The words of Limosa as types: identities, epochs, units, VM specs, phases, outcomes and failures.
//!
//! Everything else depends on this crate and it depends on nothing of ours. Values are checked where they
//! enter (`FromStr`, `Deserialize`), once; a value of one of these types is a valid one.

pub mod failure;
pub mod host;
pub mod id;
pub mod machine;
pub mod migration;
pub mod spec;
pub mod toml_spec;
pub mod units;

pub use failure::{Failure, FailureKind, Outcome};
pub use host::{Capacity, HostFacts, PowerState};
pub use id::{
    BootId, DatastoreId, Epoch, HostId, Incarnation, JournalId, Mac, MigrationId, Name, NetworkId, TaskId,
    VmId,
};
pub use machine::{Machine, Step};
pub use migration::{Fact, MigrationKind, Phase, Progress, Report, Stream};
pub use spec::{DiskFormat, VmSpec};
pub use units::{Bandwidth, ByteSize, Millis};
