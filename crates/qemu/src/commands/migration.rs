//! QEMU's own migration.

use serde::{Deserialize, Serialize};

use crate::open_enum::open_enum;
use crate::{Error, Qmp};

open_enum! {
    /// How far a migration is.
    pub enum MigrationStatus {
        /// There was none.
        None = "none",
        /// The channels are being made.
        Setup = "setup",
        /// Being cancelled.
        Cancelling = "cancelling",
        /// Cancelled.
        Cancelled = "cancelled",
        /// Pre-copy.
        Active = "active",
        /// Post-copy is being set up (QEMU 10.1 and later).
        PostcopyDevice = "postcopy-device",
        /// Post-copy.
        PostcopyActive = "postcopy-active",
        /// Post-copy has lost its connection.
        PostcopyPaused = "postcopy-paused",
        /// Post-copy's connection is being mended.
        PostcopyRecoverSetup = "postcopy-recover-setup",
        /// Post-copy resumes after a lost connection.
        PostcopyRecover = "postcopy-recover",
        /// Done: everything was sent, or received.
        Completed = "completed",
        /// Failed; `error-desc` says why.
        Failed = "failed",
        /// Under COLO.
        Colo = "colo",
        /// Paused before the switchover; waits for `migrate-continue`.
        PreSwitchover = "pre-switchover",
        /// Device state is being sent.
        Device = "device",
        /// Waits for the guest to let go of a device.
        WaitUnplug = "wait-unplug",
    }
}

impl MigrationStatus {
    /// Will QEMU do nothing more about this migration by itself?
    pub fn is_over(&self) -> bool {
        matches!(self, Self::None | Self::Cancelled | Self::Completed | Self::Failed)
    }
}

open_enum! {
    /// A switch of QEMU's migration.
    pub enum Capability {
        /// MIGRATION events are sent.
        Events = "events",
        /// The destination answers.
        ReturnPath = "return-path",
        /// Wait for `migrate-continue` once paused, before disks are let go.
        PauseBeforeSwitchover = "pause-before-switchover",
        /// The destination takes no image locks until it is continued.
        LateBlockActivate = "late-block-activate",
        /// Several connections.
        Multifd = "multifd",
        /// Throttle the guest until pre-copy converges.
        AutoConverge = "auto-converge",
        /// Delta encoding against a cache.
        Xbzrle = "xbzrle",
        /// Post-copy.
        PostcopyRam = "postcopy-ram",
        /// Leave out shared memory.
        IgnoreShared = "x-ignore-shared",
        /// Send pages without copying them.
        ZeroCopySend = "zero-copy-send",
        /// Free pages of the source as they were sent.
        ReleaseRam = "release-ram",
        /// Refuse a stream of a VM with another UUID.
        ValidateUuid = "validate-uuid",
        /// The destination agrees to the switchover (QEMU 8.1 and later).
        SwitchoverAck = "switchover-ack",
        /// Requested pages overtake others in post-copy.
        PostcopyPreempt = "postcopy-preempt",
        /// Throttle by dirty rate (QEMU 8.1 and later).
        DirtyLimit = "dirty-limit",
        /// Pages at fixed offsets of a file (QEMU 9.0 and later).
        MappedRam = "mapped-ram",
    }
}

open_enum! {
    /// How multifd compresses.
    pub enum MultifdCompression {
        /// Not at all.
        None = "none",
        /// With zlib.
        Zlib = "zlib",
        /// With zstd, if this QEMU was built with it.
        Zstd = "zstd",
    }
}

/// The answer to `query-migrate`, on the source or the destination.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// How far it is.
    #[serde(default = "no_migration")]
    pub status: MigrationStatus,
    /// Memory; on the source, once it is being sent.
    pub ram: Option<RamStats>,
    /// Since the beginning, or from the beginning to the end.
    #[serde(rename = "total-time")]
    pub total_time_ms: Option<u64>,
    /// How long the guest stood still, when completed.
    #[serde(rename = "downtime")]
    pub downtime_ms: Option<u64>,
    /// How long it would stand still if the switchover were now.
    #[serde(rename = "expected-downtime")]
    pub expected_downtime_ms: Option<u64>,
    /// How long the setup took.
    #[serde(rename = "setup-time")]
    pub setup_time_ms: Option<u64>,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// How much the guest is throttled.
    pub cpu_throttle_percentage: Option<u64>,
}

/// What was sent of memory.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RamStats {
    /// Bytes put on the wire.
    #[serde(rename = "transferred")]
    pub transferred_bytes: u64,
    /// Bytes still to be sent.
    #[serde(rename = "remaining")]
    pub remaining_bytes: u64,
    /// Bytes of guest memory.
    #[serde(rename = "total")]
    pub total_bytes: u64,
    /// Pages that were all zeros.
    #[serde(rename = "duplicate")]
    pub duplicate_pages: u64,
    /// Pages sent with their content.
    #[serde(rename = "normal")]
    pub normal_pages: u64,
    /// Pages that the guest dirties in a second.
    #[serde(rename = "dirty-pages-rate")]
    pub dirty_pages_per_second: u64,
    /// Bytes of a page.
    #[serde(rename = "page-size")]
    pub page_size_bytes: u64,
    /// Megabits sent in a second.
    #[serde(rename = "mbps")]
    pub throughput_mbit_per_second: f64,
    /// Passes over memory.
    pub dirty_sync_count: u64,
}

/// QEMU's migration parameters. In [`Qmp::migrate_set_parameters`] those that are `None` stay as they are.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationParameters {
    /// The longest that the guest may stand still.
    #[serde(rename = "downtime-limit", skip_serializing_if = "Option::is_none")]
    pub downtime_limit_ms: Option<u64>,
    /// Bytes in a second; 0 is no limit.
    #[serde(rename = "max-bandwidth", skip_serializing_if = "Option::is_none")]
    pub max_bandwidth_bytes_per_second: Option<u64>,
    /// Bytes in a second for post-copy's background; 0 is no limit.
    #[serde(rename = "max-postcopy-bandwidth", skip_serializing_if = "Option::is_none")]
    pub max_postcopy_bandwidth_bytes_per_second: Option<u64>,
    /// Connections of multifd; the same on both ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_channels: Option<u8>,
    /// Compression of multifd; the same on both ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_compression: Option<MultifdCompression>,
    /// zstd's level, 0 to 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_zstd_level: Option<u8>,
    /// Auto-converge's first step.
    #[serde(rename = "cpu-throttle-initial", skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_initial_percent: Option<u8>,
    /// Auto-converge's further steps.
    #[serde(rename = "cpu-throttle-increment", skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_increment_percent: Option<u8>,
    /// Are the last steps of auto-converge made smaller?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_tailslow: Option<bool>,
    /// How far auto-converge may go.
    #[serde(rename = "max-cpu-throttle", skip_serializing_if = "Option::is_none")]
    pub max_cpu_throttle_percent: Option<u8>,
    /// Bytes of xbzrle's cache, a power of two.
    #[serde(rename = "xbzrle-cache-size", skip_serializing_if = "Option::is_none")]
    pub xbzrle_cache_bytes: Option<u64>,
    /// The pause before the second of QEMU's network announcements.
    #[serde(rename = "announce-initial", skip_serializing_if = "Option::is_none")]
    pub announce_initial_ms: Option<u64>,
    /// The longest pause between two of them.
    #[serde(rename = "announce-max", skip_serializing_if = "Option::is_none")]
    pub announce_max_ms: Option<u64>,
    /// How many there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_rounds: Option<u64>,
    /// How much longer each pause is.
    #[serde(rename = "announce-step", skip_serializing_if = "Option::is_none")]
    pub announce_step_ms: Option<u64>,
}

/// The rhythm of `announce-self`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Announcement {
    /// The first pause.
    #[serde(rename = "initial")]
    pub initial_ms: u64,
    /// The longest pause.
    #[serde(rename = "max")]
    pub max_ms: u64,
    /// How many announcements.
    pub rounds: u64,
    /// How much longer each pause is.
    #[serde(rename = "step")]
    pub step_ms: u64,
}

impl Default for Announcement {
    /// QEMU's own defaults.
    fn default() -> Self {
        Self { initial_ms: 50, max_ms: 550, rounds: 5, step_ms: 100 }
    }
}

/// A capability and whether it is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityState {
    /// Which.
    pub capability: Capability,
    /// On?
    pub state: bool,
}

impl Qmp {
    /// `query-migrate`.
    pub async fn query_migrate(&self) -> Result<MigrationInfo, Error> {
        self.query("query-migrate").await
    }

    /// `query-migrate-capabilities`: all that this QEMU has.
    pub async fn query_migrate_capabilities(&self) -> Result<Vec<CapabilityState>, Error> {
        self.query("query-migrate-capabilities").await
    }

    /// Turns exactly these capabilities on and all others that this QEMU has off: nothing is left over from an
    /// earlier migration.
    ///
    /// # Errors
    /// [`Error::NoCapability`], with nothing changed, if this QEMU lacks one of them.
    pub async fn migrate_set_capabilities(&self, on: &[Capability]) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Arguments {
            capabilities: Vec<CapabilityState>,
        }
        let mut capabilities = self.query_migrate_capabilities().await?;
        if let Some(lacking) = on.iter().find(|c| !capabilities.iter().any(|has| has.capability == **c)) {
            return Err(Error::NoCapability { capability: lacking.to_string() });
        }
        for has in &mut capabilities {
            has.state = on.contains(&has.capability);
        }
        self.order_with("migrate-set-capabilities", &Arguments { capabilities }).await
    }

    /// `query-migrate-parameters`.
    pub async fn query_migrate_parameters(&self) -> Result<MigrationParameters, Error> {
        self.query("query-migrate-parameters").await
    }

    /// `migrate-set-parameters`: sets those that are given.
    pub async fn migrate_set_parameters(&self, parameters: &MigrationParameters) -> Result<(), Error> {
        self.order_with("migrate-set-parameters", parameters).await
    }

    /// Begins to send the VM to a QEMU URI such as `unix:/run/x` or `fd:name`; it goes on behind the answer.
    pub async fn migrate(&self, uri: &str) -> Result<(), Error> {
        self.order_with("migrate", &Uri { uri }).await
    }

    /// Listens on a QEMU URI, in a QEMU that was started to receive.
    pub async fn migrate_incoming(&self, uri: &str) -> Result<(), Error> {
        self.order_with("migrate-incoming", &Uri { uri }).await
    }

    /// Goes on from `state`, in which QEMU waits ([`MigrationStatus::PreSwitchover`]).
    pub async fn migrate_continue(&self, state: &MigrationStatus) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Arguments<'a> {
            state: &'a MigrationStatus,
        }
        self.order_with("migrate-continue", &Arguments { state }).await
    }

    /// Asks QEMU to give the migration up; it succeeds also if there is none.
    pub async fn migrate_cancel(&self) -> Result<(), Error> {
        self.order("migrate_cancel").await
    }

    /// Has every NIC announce its address to the network.
    pub async fn announce_self(&self, announcement: &Announcement) -> Result<(), Error> {
        self.order_with("announce-self", announcement).await
    }
}

#[derive(Serialize)]
struct Uri<'a> {
    uri: &'a str,
}

fn no_migration() -> MigrationStatus {
    MigrationStatus::None
}
