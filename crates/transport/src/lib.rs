//! The connections on which a migration's bytes travel between two hosts.
//!
//! Each host's worker makes a [`Credential`] of its own and hands out the [`Fingerprint`] alone; the two agents
//! exchange the fingerprints over the channel on which they already know each other. A connection is accepted
//! if and only if the other end proves, in TLS 1.3 and on both sides, that it holds the key of the pinned
//! certificate. So a connection is bound to one migration, and neither a CA nor a clock is involved.
//!
//! # The protocol, version 1
//!
//! One TCP connection for each channel of the stream; the source connects. All integers are big-endian.
//!
//! ```text
//! source                                                       destination
//!   |  TCP connect: each address in its order, connect_limit_ms each     |
//!   |------------------------------------------------------------------->|
//!   |  TLS 1.3, ALPN "limosa-migration/1", both certificates, pinned     |
//!   |<------------------------------------------------------------------>|
//!   |  hello, 32 bytes:                                                  |
//!   |    "LIMOSAmg"  version u16  channel u16  zero u32  migration [16]  |
//!   |------------------------------------------------------------------->|
//!   |  answer, 16 bytes:                       (its QEMU is connected)   |
//!   |    "LIMOSAok"  version u16  code u16  zero u32                     |
//!   |<-------------------------------------------------------------------|
//!   |  the channel's bytes, unchanged, both ways at once                 |
//!   |<==================================================================>|
//!   |  close_notify: this direction has ended, the other goes on         |
//!   |------------------------------------------------------------------->|
//!   |<-------------------------------------------------------------------|
//!   |  TCP close                                                         |
//! ```
//!
//! TCP that ends without `close_notify` is a loss, never an end: it is reported as [`Error::Lost`], and the
//! local socket is closed once QEMU has taken what came before.
//!
//! | limit | value |
//! |---|---|
//! | TLS handshake and hello, together | [`HANDSHAKE_LIMIT`] |
//! | answer to a hello | [`ANSWER_LIMIT`] |
//! | channels of a migration | [`CHANNELS_MAX`] |
//! | buffers of a connection | about 1.3 MiB, allocated once |
//! | TLS record | 16 KiB (RFC 8446) |
//!
//! **Key use.** AES-GCM may seal 2^24 records under one key (RFC 8446, 5.5). rustls counts them and sends a
//! `KeyUpdate` by itself in time, so a stream may be of any length. Sessions are never resumed: no tickets, no
//! early data.
//!
//! **How it fails.** A peer with another certificate, protocol, version or migration is refused on its own
//! connection, which costs a thread for at most [`HANDSHAKE_LIMIT`] and touches no other connection.

mod buffer;
mod connection;
mod credential;
mod error;
mod hello;
mod pin;
mod relay;
mod session;
mod socket;

pub use connection::{ANSWER_LIMIT, Acceptor, Connection, Dialer, HANDSHAKE_LIMIT, Incoming};
pub use credential::{Credential, Fingerprint, InvalidFingerprint};
pub use error::{Error, Side};
pub use hello::{Answer, CHANNELS_MAX, Hello, PROTOCOL_VERSION};
pub use pin::ALPN;
pub use relay::{Count, relay};
pub use socket::TcpOptions;
