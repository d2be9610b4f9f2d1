//! What stops an agent, or one of its requests.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use limosa_journal::JournalError;

/// What stops an agent from starting or going on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A file or folder.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The configuration makes no sense.
    #[error("the configuration {path} is not right: {why}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Another agent runs with this state directory.
    #[error(
        "another agent has the state directory {path}: two agents with one identity would harm each other; stop the other one, or give this one a directory and an identity of its own with `limosa host join`"
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The host has not joined a cluster.
    #[error("this host has not joined a cluster: {path} is missing; run `limosa host join` first")]
    NotJoined {
        /// The file that is missing.
        path: PathBuf,
    },
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; is another agent running, or is the address not this host's?"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// QEMU or the host's devices.
    #[error(transparent)]
    Vm(#[from] limosa_vm::VmError),
    /// The host's network.
    #[error(transparent)]
    Net(#[from] limosa_net::NetError),
    /// TLS, or what it needs.
    #[error("the host's identity in {path} cannot be used: {why}; join again with `limosa host join`")]
    Identity {
        /// The folder.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}
