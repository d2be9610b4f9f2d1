//! The agent: the process on a host that starts, watches and moves its VMs.
//!
//! It takes orders from the server ([`limosa_api::agent`]) and speaks with the other hosts' agents during a
//! migration. Whatever it has accepted is in its journal; killed at any moment and started again, it finds its VMs
//! and its migrations and goes on. VMs and the workers that carry their memory live on without it.
//!
//! ```text
//!              http ──▶ life      a VM started, acted on, stopped
//!                   ──▶ disks     made and removed
//!                   ──▶ orders ──▶ migration   one end of a migration: core, journal, effects
//!                   ──▶ check     would this host do?
//!  start ──▶ recovery ───────────▶ migration
//!        ──▶ report    what the server is told unasked
//! ```

mod agent;
mod check;
mod config;
mod disks;
mod error;
mod guest;
mod http;
mod ledger;
mod life;
mod migration;
mod orders;
mod recovery;
mod report;
mod resolve;
mod shutdown;
mod start;
mod worker;

pub use config::{Config, UserConfig};
pub use error::AgentError;
pub use shutdown::{Stopped, stop_guests};
pub use start::{CA, CREDENTIAL, run};
