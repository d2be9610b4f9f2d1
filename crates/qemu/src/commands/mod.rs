//! The commands that Limosa uses, as methods of [`Qmp`](crate::Qmp), by what they act on.
//!
//! Every one of them can fail as [`Qmp::execute`](crate::Qmp::execute) does; only what is special is
//! documented with each. Numbers keep QEMU's units, which the names of the fields say.

pub mod block;
pub mod device;
pub mod host;
pub mod migration;
pub mod run;
