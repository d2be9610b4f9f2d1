//! The `limosa` command.
//!
//! * [`args`] is the command line, [`command`] does what it says.
//! * [`cluster`] is the server's REST API as typed calls, [`connection`] how it is found and trusted.
//! * [`render`] turns the API's objects into text and does nothing else; [`watch`] shows what moves.
//! * [`error`] and [`exit`]: how a failure is told, and with which code the command ends.

pub mod args;
pub mod cluster;
pub mod command;
pub mod connection;
pub mod error;
pub mod exit;
pub mod output;
pub mod render;
pub mod watch;
