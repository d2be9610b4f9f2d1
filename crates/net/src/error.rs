//! What can go wrong with a host's network.

use std::error::Error as _;
use std::io;

use limosa_model::{Failure, FailureKind};

/// Why something could not be done to the host's network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A text that cannot be the name of a network device.
    #[error("{name:?} cannot name a network device: {why}")]
    InvalidName {
        /// The text.
        name: String,
        /// What a name must be.
        why: &'static str,
    },
    /// No device has this name.
    #[error("there is no network device {name} on this host")]
    NotFound {
        /// The name that was looked for.
        name: String,
    },
    /// The device exists, and is something else than a bridge.
    #[error("the network device {name} is not a bridge")]
    NotABridge {
        /// The device.
        name: String,
    },
    /// A tap with this name exists and something holds it.
    #[error("the tap {name} is in use by another process")]
    Busy {
        /// The tap.
        name: String,
    },
    /// The kernel refused.
    #[error("could not {doing}")]
    Kernel {
        /// What was being done, and to which device.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl NetError {
    pub(crate) fn kernel(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Kernel { doing: doing.into(), source: source.into() }
    }

    /// The kind that users see and that decides what is tried next.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::InvalidName { .. } => FailureKind::Invalid,
            Self::NotFound { .. } | Self::NotABridge { .. } => FailureKind::NotFound,
            Self::Busy { .. } => FailureKind::Conflict,
            Self::Kernel { .. } => FailureKind::Resource,
        }
    }
}

impl From<NetError> for Failure {
    fn from(error: NetError) -> Self {
        let remedy = match &error {
            NetError::InvalidName { .. } => "correct the name",
            NetError::NotFound { .. } | NetError::NotABridge { .. } => {
                "correct the network's definition, or make the bridge on this host"
            }
            NetError::Busy { .. } => "wait until the VM's other QEMU has ended",
            NetError::Kernel { .. } => "run `limosa host check` on this host",
        };
        let what = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Failure::new(error.kind(), what, remedy)
    }
}
