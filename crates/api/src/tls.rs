//! Who is who in a cluster, and the TLS settings that hold everybody to it.
//!
//! A cluster has one certificate authority, kept by its server. It vouches for [`Identity`]s: the server and each
//! host. Users have none; they know the server by the authority and bring a token.
//!
//! ```text
//! host                                                   server
//!   │ token: address, secret, fingerprint of the CA         │
//!   │ TLS, trusting only a CA with that fingerprint ───────▶│   client_config_pinned
//!   │ POST join: secret, certificate request ──────────────▶│   Ca::sign_request: the names asked for are ignored
//!   │◀── the host's certificate, the CA's certificate ──────┤
//! ```
//!
//! The private key of a host never leaves it. Afterwards every connection between server and agents is mutual, and
//! each side is held to **the one identity that is expected of it, whatever address was dialled**: an agent that
//! took over another's address gets no orders meant for it.
//!
//! TLS 1.3 alone, no resumption (each connection is judged anew), HTTP/2 and HTTP/1.1 by ALPN. A wrong peer fails
//! the handshake, before a byte of HTTP.

mod authority;
mod config;
mod file;
mod identity;

pub use authority::{Ca, CaCertificate, CaFingerprint, CertificateRequest, Credential, InvalidFingerprint};
pub use config::{ClientAuth, client_config, client_config_pinned, server_config};
pub use identity::{Identity, peer_identity};

use std::io;
use std::path::PathBuf;

/// Why a certificate, a key or a TLS setting cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A text is not the certificate, key or request that it should be.
    #[error("this is no valid {what}: {why}")]
    Malformed {
        /// What was expected.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate names somebody else, or was not issued by the cluster's authority.
    #[error("the certificate is not one of this cluster for {expected}: {why}")]
    WrongCertificate {
        /// Whose it should be.
        expected: Identity,
        /// What is wrong with it.
        why: String,
    },
    /// A key or certificate could not be made.
    #[error("cannot make a {what}: {source}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// Why it failed.
        source: rcgen::Error,
    },
    /// The settings of a connection do not fit together.
    #[error("these TLS settings cannot be used: {0}")]
    Settings(rustls::Error),
}
