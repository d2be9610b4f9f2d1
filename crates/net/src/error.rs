//! What can go wrong with a host's network.

use std::io;

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
    #[error("there is no network device {name} on this host; create it, or correct the network's definition")]
    NotFound {
        /// The name that was looked for.
        name: String,
    },
    /// The device exists, and is something else than a bridge.
    #[error("the network device {name} is not a bridge; networks of kind `bridge` need one")]
    NotABridge {
        /// The device.
        name: String,
    },
    /// A tap with this name exists and something holds it.
    #[error("the tap {name} is in use by another process; end that process, or let it give the tap up")]
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
}
