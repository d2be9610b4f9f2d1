//! What can go wrong between us and a QEMU.

use std::path::PathBuf;
use std::sync::Arc;

use crate::Version;
use crate::open_enum::open_enum;

open_enum! {
    /// QEMU's classes of refusal.
    pub enum ErrorClass {
        /// Everything without a class of its own; the description says what.
        Generic = "GenericError",
        /// This QEMU does not have the command, or not in its present state.
        CommandNotFound = "CommandNotFound",
        /// The device is not ready for this, or none was made.
        DeviceNotActive = "DeviceNotActive",
        /// There is no device, node or id of that name.
        DeviceNotFound = "DeviceNotFound",
        /// The host's KVM lacks what the command needs.
        KvmMissingCapability = "KVMMissingCap",
    }
}

/// Why a connection to a monitor is no more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Loss {
    /// The other end was closed: QEMU ended, or dropped us.
    #[error("QEMU closed it")]
    ClosedByQemu,
    /// The last handle was dropped.
    #[error("we closed it")]
    ClosedByUs,
    /// QEMU sent what is not QMP.
    #[error("QEMU sent what is not QMP: {0}")]
    Malformed(String),
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(Arc<std::io::Error>),
}

/// A failure of this crate. None of them says anything about whether the guest runs: ask for that.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection came about. `NotFound` and `ConnectionRefused` mean that no QEMU listens there.
    #[error("cannot connect to the QEMU monitor {path}: is its QEMU running?")]
    Connect {
        /// The monitor's socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nothing greeted us. QEMU serves one client per monitor, so another one may hold it.
    #[error(
        "the QEMU monitor {monitor} did not greet within {after_ms} ms: \
         QEMU hangs, or another client holds the monitor"
    )]
    NoGreeting {
        /// Whose.
        monitor: String,
        /// How long was waited.
        after_ms: u64,
    },
    /// No reply in time. The command may have been executed, may be under way, may never be.
    #[error("QEMU did not answer {command} within {after_ms} ms: ask for the state before trying again")]
    Timeout {
        /// The command.
        command: &'static str,
        /// How long was waited.
        after_ms: u64,
    },
    /// The connection is gone. What was sent before may have been executed.
    #[error("{doing}: the connection to the QEMU monitor {monitor} is lost ({loss}); connect again")]
    ConnectionLost {
        /// The command, or the handshake.
        doing: &'static str,
        /// Whose.
        monitor: String,
        /// Why.
        loss: Loss,
    },
    /// QEMU said no; nothing else has changed on the connection.
    #[error("QEMU refused {command}: {description} ({class})")]
    Refused {
        /// The command.
        command: &'static str,
        /// The class, for deciding.
        class: ErrorClass,
        /// The text, for people.
        description: String,
    },
    /// QEMU answered in a form that this crate does not understand.
    #[error("QEMU's answer to {command} is not understood")]
    Reply {
        /// The command.
        command: &'static str,
        /// What did not fit.
        source: serde_json::Error,
    },
    /// The arguments cannot be put into a command.
    #[error("the arguments of {command} cannot be encoded")]
    Encode {
        /// The command.
        command: &'static str,
        /// What did not fit.
        source: serde_json::Error,
    },
    /// A descriptor to pass could not be duplicated.
    #[error("cannot duplicate the descriptor to pass with {command}")]
    Descriptor {
        /// The command.
        command: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A capability was asked for that this QEMU does not have.
    #[error("this QEMU has no migration capability {capability}: a newer QEMU is needed on this host")]
    NoCapability {
        /// Which.
        capability: String,
    },
    /// The QEMU is older than any that is supported.
    #[error(
        "QEMU {found} is too old: {}.{} or later is needed",
        crate::MINIMUM_VERSION.0,
        crate::MINIMUM_VERSION.1
    )]
    TooOld {
        /// What was found.
        found: Version,
    },
    /// A value cannot be put on a command line.
    #[error("{what} {value:?} cannot be put on QEMU's command line: {why}")]
    Invalid {
        /// What the value is.
        what: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it, or expected.
        why: &'static str,
    },
}

impl Error {
    /// Is it that QEMU does not have the command?
    pub fn is_command_not_found(&self) -> bool {
        matches!(self, Self::Refused { class: ErrorClass::CommandNotFound, .. })
    }

    /// Is it that there is no device, node or id of that name?
    pub fn is_device_not_found(&self) -> bool {
        matches!(self, Self::Refused { class: ErrorClass::DeviceNotFound, .. })
    }

    /// Is it that the monitor cannot be spoken to (any more), as opposed to a command that failed?
    pub fn is_connection_lost(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::NoGreeting { .. } | Self::ConnectionLost { .. })
    }

    pub(crate) fn invalid(what: &'static str, value: impl Into<String>, why: &'static str) -> Self {
        Self::Invalid { what, value: value.into(), why }
    }
}
