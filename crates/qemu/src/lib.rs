//! Talks to one QEMU: its QMP monitor, and the command line that starts it.
//!
//! - [`Qmp`] is a connection to a monitor: typed commands (see [`commands`]), and events as a stream
//!   ([`Events`]). QEMUs from 7.2 on are spoken to; what they say beyond what is known here is kept
//!   ([`Event::Other`], the `Other` variant of every enum), never an error.
//! - [`Schema`] says what this QEMU can do, and what a missing ability means for the user.
//! - [`CommandLine`] builds the arguments of a new QEMU; [`Identity`] is the part by which an agent
//!   recognises its QEMUs after a restart.
//!
//! The crate knows nothing of processes, files or cgroups: that is `limosa-vm`.

mod client;
pub mod command_line;
pub mod commands;
mod error;
mod event;
mod identity;
mod open_enum;
mod protocol;
mod schema;
mod socket;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use client::{Events, EventsError, Qmp};
pub use command_line::CommandLine;
pub use error::{Error, ErrorClass, Loss};
pub use event::{
    BlockErrorAction, BlockIoError, Event, IoOperation, PanicAction, ShutdownCause, TimedEvent, Timestamp,
};
pub use identity::{Identity, parse_identity};
pub use protocol::{Greeting, Version};
pub use schema::{MINIMUM_VERSION, Missing, Need, Schema, Severity, check_version};
