//! Why a worker cannot work at all. What befalls a channel is told to the agent instead.

use std::io;

/// Why a worker ends before its time.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The arguments are not those of a worker.
    #[error("limosa worker is started by the agent, not by hand: {0}")]
    Usage(String),

    /// A descriptor is not what it has to be.
    #[error(
        "the {0} descriptor is not a listening {1} socket: start the worker from an agent of the same version"
    )]
    Descriptor(&'static str, &'static str),

    /// No credential could be made, or TLS does not take it.
    #[error(transparent)]
    Transport(#[from] limosa_transport::Error),

    /// The process could not give up its rights, so it must not read what a peer sends.
    #[error("cannot {during} to close the sandbox: {reason}")]
    Sandbox {
        /// The step that failed.
        during: &'static str,
        /// Why.
        reason: String,
    },

    /// A system call failed.
    #[error("cannot {during}: {source}")]
    Io {
        /// What was being done.
        during: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io<E: Into<io::Error>>(during: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { during, source: source.into() }
    }
}
