//! Hosts as network namespaces: where Limosa is tried out, tested and measured on one machine.
//!
//! A [`Lab`] is a switch, a server, a client and some hosts, each a network namespace, joined by three
//! networks. Hosts run daemons ([`Lab::spawn`]) and guests; links are slowed, delayed, made lossy
//! ([`Lab::shape`]) and cut ([`Lab::partition`]); a client outside watches what a guest's users would notice
//! ([`Pinger`], [`EchoConnection`]).
//!
//! ```text
//!  client ── guest ─┐          ┌─ mgmt ── mgmt0 ┐
//!  (10.77.0.2)      ├─ switch ─┼─ migr ── migr0 ├ h1 … hN
//!  server ── mgmt ──┘          └─ guest ─ guest0┘ (guest0 is a port of the host's br0, as are its guests' taps)
//! ```
//!
//! ```no_run
//! use std::process::Command;
//! use limosa_lab::{Config, Lab, Network, Room};
//!
//! let lab = Lab::up_until_dropped(&Config::new("example".parse()?, 2))?;
//! let mut command = Command::new("limosa");
//! command.arg("agent").arg(lab.room_directory(Room::Host(1))?);
//! let agent = lab.spawn(Room::Host(1), "agent", command)?;
//! lab.partition(Room::Host(1), Network::Management)?;
//! agent.kill()?;
//! # Ok::<(), limosa_lab::Error>(())
//! ```
//!
//! Nothing outside the lab's namespaces is touched: no interface, route or rule of the machine. Everything that
//! the lab makes carries its name, so that [`Lab::down`] finds it again whoever made it and however that ended.
//! A failure names what was being done and what to do about it ([`Error`]); what was half made by then is taken
//! away by the next `down` or `up`.

pub mod assets;
pub mod bare;
pub mod bench;
pub mod cluster;
mod command;
pub mod demo;
pub mod emulator;
mod error;
pub mod guest;
mod lab;
mod link;
pub mod names;
mod namespace;
pub mod observe;
pub mod postgres;
mod process;
pub mod runtime;
pub mod soak;
mod topology;
pub mod wait;

pub use assets::Assets;
pub use error::{Error, Result};
pub use guest::{BootedGuest, GuestConfig, GuestConnection};
pub use lab::{Config, Lab, LabGuard, default_state_root};
pub use link::Shape;
pub use names::{LabName, Network, Room};
pub use namespace::Namespace;
pub use observe::{Announcements, EchoConnection, EchoSummary, PingSummary, Pinger};
pub use process::{Process, ProcessRecord};
