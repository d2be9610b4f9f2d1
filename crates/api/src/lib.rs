//! What travels between the processes of a cluster: types, and the TLS and HTTP that carry them.
//!
//! * [`agent`]: what a server orders of an agent, what agents tell each other, and what they report.
//! * [`rest`]: what users see.

pub mod agent;
pub mod rest;
