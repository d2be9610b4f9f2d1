//! Why a server cannot be made or run.

use std::io;
use std::path::PathBuf;

use limosa_api::tls::TlsError;
use limosa_store::StoreError;

/// Why a server cannot be made or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A file could not be worked on.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The settings make no sense.
    #[error("{}: {why}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is a cluster already.
    #[error("{} holds a cluster already; start it with `limosa server`, or choose another state_dir", path.display())]
    Exists {
        /// The state directory.
        path: PathBuf,
    },
    /// There is no cluster yet.
    #[error("{} holds no cluster; make one with `limosa server init`", path.display())]
    NotInitialised {
        /// The state directory.
        path: PathBuf,
    },
    /// Another server runs on the state directory.
    #[error("another server uses {}; stop that one first", path.display())]
    InUse {
        /// The state directory.
        path: PathBuf,
    },
    /// The port is taken, or the address is not this machine's.
    #[error("cannot listen on {address}: {source}; choose another `listen`")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The authority or a certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store does not work.
    #[error(transparent)]
    Store(#[from] StoreError),
}
