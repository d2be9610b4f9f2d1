//! What travels between the processes of a cluster: types, and the TLS and HTTP that carry them.
//!
//! * [`agent`]: what a server orders of an agent, what agents tell each other, and what they report.
//! * [`rest`]: what users see.
//! * [`problem`]: how a refusal is told.
//! * [`tls`]: the cluster's authority, identities, and who is let in.
//! * [`http`]: the listening side. * [`client`]: the calling side.

pub mod agent;
pub mod client;
pub mod http;
pub mod problem;
pub mod rest;
mod socket;
pub mod tls;

pub use problem::Problem;
