//! What can go wrong on a connection, and what to do about it.

use std::io;
use std::time::Duration;

use crate::hello::Answer;

/// Which neighbour of a relay was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The QEMU on this host.
    Local,
    /// The worker on the other host.
    Peer,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Local => "the local QEMU",
            Self::Peer => "the other host",
        })
    }
}

/// Why there is no connection, or no connection any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No key or certificate could be made.
    #[error("cannot make a credential for this migration: {0}")]
    Credential(#[source] rcgen::Error),

    /// None of the destination's addresses answered.
    #[error(
        "no address of the destination can be reached ({tried}): check the migration network and its firewall"
    )]
    Unreachable {
        /// Each address with its own reason.
        tried: String,
    },

    /// TLS said no: another certificate, another protocol, or bytes that are not TLS.
    #[error("TLS failed during {during}: {source}")]
    Tls {
        /// The step that failed.
        during: &'static str,
        /// What TLS found.
        source: rustls::Error,
    },

    /// The peer speaks TLS with the right key but not our protocol.
    #[error("the other end does not speak our protocol: {0}")]
    Protocol(&'static str),

    /// The destination has refused the channel.
    #[error("the destination has refused the channel: {0}")]
    Refused(Answer),

    /// A step took longer than it may.
    #[error("{during} took longer than {} ms", .limit.as_millis())]
    Timeout {
        /// The step that took too long.
        during: &'static str,
        /// How long it may take.
        limit: Duration,
    },

    /// A neighbour went away without a goodbye.
    #[error("{side} was lost: {source}")]
    Lost {
        /// Which one.
        side: Side,
        /// How that was seen.
        source: io::Error,
    },

    /// A system call failed that has nothing to do with either neighbour.
    #[error("cannot {during}: {source}")]
    Io {
        /// What was being done.
        during: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn peer_lost(source: impl Into<io::Error>) -> Self {
        Self::Lost { side: Side::Peer, source: source.into() }
    }

    pub(crate) fn local_lost(source: impl Into<io::Error>) -> Self {
        Self::Lost { side: Side::Local, source: source.into() }
    }

    pub(crate) fn closed_without_goodbye() -> Self {
        Self::peer_lost(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the connection ended without close_notify",
        ))
    }

    pub(crate) fn io(during: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { during, source }
    }
}
