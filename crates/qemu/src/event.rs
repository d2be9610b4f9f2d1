//! The events that QEMU sends. Those of which Limosa makes use have a type; all others are kept as they came.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::commands::migration::MigrationStatus;
use crate::open_enum::open_enum;

/// QEMU's wall clock when the event happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970; -1 if QEMU had no clock.
    pub seconds: i64,
    /// And microseconds.
    pub microseconds: i64,
}

/// An event and its time.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "RawEvent")]
pub struct TimedEvent {
    /// When, by QEMU's wall clock.
    pub at: Timestamp,
    /// What.
    pub event: Event,
}

/// What happened in QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The state of a migration has changed.
    Migration(MigrationStatus),
    /// QEMU's pre-copy begins another pass over memory.
    MigrationPass(u64),
    /// The virtual CPUs stand still.
    Stop,
    /// The virtual CPUs run.
    Resume,
    /// The VM is switched off; QEMU ends, unless it was started to stay.
    Shutdown(ShutdownCause),
    /// The VM starts over.
    Reset(ShutdownCause),
    /// The guest was asked to power off (the ACPI button).
    Powerdown,
    /// The guest says that its kernel has crashed.
    GuestPanicked(PanicAction),
    /// A disk failed.
    BlockIoError(BlockIoError),
    /// A device is gone after `device_del`.
    DeviceDeleted {
        /// Its id, if it had one.
        device: Option<String>,
        /// Its QOM path.
        path: String,
    },
    /// The guest wants other packets from a NIC. QEMU says so once; `query-rx-filter` arms it again.
    NicRxFilterChanged {
        /// The id of the NIC, if it has one.
        name: Option<String>,
        /// Its QOM path.
        path: String,
    },
    /// Anything else.
    Other {
        /// QEMU's name for it.
        name: String,
        /// Its data, null if there is none.
        data: Value,
    },
}

/// Who had the VM switched off or reset, and why.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ShutdownCause {
    /// Was it the guest, and not we?
    pub guest: bool,
    /// QEMU's word for it, such as `guest-shutdown`, `guest-reset`, `host-qmp-quit`, `host-signal`.
    #[serde(default)]
    pub reason: String,
}

/// A failed read or write of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockIoError {
    /// The disk's backend or device; may be empty.
    #[serde(default)]
    pub device: String,
    /// The block node.
    pub node_name: Option<String>,
    /// Reading or writing.
    pub operation: IoOperation,
    /// What QEMU has done about it.
    pub action: BlockErrorAction,
    /// Was it for lack of space?
    #[serde(default)]
    pub nospace: bool,
    /// The system's text, for people.
    #[serde(default)]
    pub reason: String,
}

open_enum! {
    /// What a disk was doing.
    pub enum IoOperation {
        /// Reading.
        Read = "read",
        /// Writing.
        Write = "write",
    }
}

open_enum! {
    /// What became of a disk error.
    pub enum BlockErrorAction {
        /// Nothing: the guest was told that it succeeded.
        Ignore = "ignore",
        /// The guest was told.
        Report = "report",
        /// The VM was paused (`io-error`).
        Stop = "stop",
    }
}

open_enum! {
    /// What QEMU does about a guest that panicked.
    pub enum PanicAction {
        /// The VM was paused.
        Pause = "pause",
        /// QEMU ends.
        Poweroff = "poweroff",
        /// The VM runs on.
        Run = "run",
    }
}

#[derive(Deserialize)]
struct RawEvent {
    event: String,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    timestamp: Timestamp,
}

impl From<RawEvent> for TimedEvent {
    fn from(raw: RawEvent) -> Self {
        let event = known(&raw.event, &raw.data).unwrap_or(Event::Other { name: raw.event, data: raw.data });
        Self { at: raw.timestamp, event }
    }
}

/// The typed form, if the event is known and its data are as expected.
fn known(name: &str, data: &Value) -> Option<Event> {
    #[derive(Deserialize)]
    struct Status {
        status: MigrationStatus,
    }
    #[derive(Deserialize)]
    struct Pass {
        pass: u64,
    }
    #[derive(Deserialize)]
    struct Panic {
        action: PanicAction,
    }
    #[derive(Deserialize)]
    struct Deleted {
        device: Option<String>,
        path: String,
    }
    #[derive(Deserialize)]
    struct RxFilter {
        name: Option<String>,
        path: String,
    }

    Some(match name {
        "MIGRATION" => Event::Migration(read::<Status>(data)?.status),
        "MIGRATION_PASS" => Event::MigrationPass(read::<Pass>(data)?.pass),
        "STOP" => Event::Stop,
        "RESUME" => Event::Resume,
        "SHUTDOWN" => Event::Shutdown(read(data)?),
        "RESET" => Event::Reset(read(data)?),
        "POWERDOWN" => Event::Powerdown,
        "GUEST_PANICKED" => Event::GuestPanicked(read::<Panic>(data)?.action),
        "BLOCK_IO_ERROR" => Event::BlockIoError(read(data)?),
        "DEVICE_DELETED" => {
            let Deleted { device, path } = read(data)?;
            Event::DeviceDeleted { device, path }
        }
        "NIC_RX_FILTER_CHANGED" => {
            let RxFilter { name, path } = read(data)?;
            Event::NicRxFilterChanged { name, path }
        }
        _ => return None,
    })
}

fn read<T: DeserializeOwned>(data: &Value) -> Option<T> {
    T::deserialize(data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(line: Value) -> Event {
        serde_json::from_value::<TimedEvent>(line).unwrap().event
    }

    #[test]
    fn known_events_are_typed_and_timed() {
        let shutdown: TimedEvent = serde_json::from_value(json!({
            "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"},
            "timestamp": {"seconds": 1267040730, "microseconds": 682951}
        }))
        .unwrap();
        assert_eq!(shutdown.at, Timestamp { seconds: 1267040730, microseconds: 682951 });
        assert_eq!(
            shutdown.event,
            Event::Shutdown(ShutdownCause { guest: true, reason: "guest-shutdown".into() })
        );
        assert_eq!(
            event(json!({"event": "MIGRATION", "data": {"status": "pre-switchover"}})),
            Event::Migration(MigrationStatus::PreSwitchover)
        );
        assert_eq!(
            event(json!({"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/nic1/virtio"}})),
            Event::DeviceDeleted { device: None, path: "/machine/peripheral/nic1/virtio".into() }
        );
        assert_eq!(
            event(
                json!({"event": "BLOCK_IO_ERROR", "data": {"device": "", "node-name": "disk0", "operation": "write",
                "action": "stop", "nospace": true, "reason": "No space left on device", "qom-path": "x"}})
            ),
            Event::BlockIoError(BlockIoError {
                device: String::new(),
                node_name: Some("disk0".into()),
                operation: IoOperation::Write,
                action: BlockErrorAction::Stop,
                nospace: true,
                reason: "No space left on device".into(),
            })
        );
    }

    #[test]
    fn unknown_events_and_unknown_forms_are_kept() {
        let data = json!({"x": [1, 2]});
        assert_eq!(
            event(json!({"event": "VSERPORT_CHANGE", "data": data})),
            Event::Other { name: "VSERPORT_CHANGE".into(), data: data.clone() }
        );
        assert_eq!(
            event(json!({"event": "MIGRATION_PASS", "data": data})),
            Event::Other { name: "MIGRATION_PASS".into(), data }
        );
        assert_eq!(
            event(json!({"event": "MIGRATION", "data": {"status": "teleporting"}})),
            Event::Migration(MigrationStatus::Other("teleporting".into()))
        );
    }
}
