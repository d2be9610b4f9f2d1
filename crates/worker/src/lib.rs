//! One migration's data plane, as a process that can do nothing else.
//!
//! The agent starts a worker on each of the two hosts and hands it two listening sockets. From then on the
//! worker needs nobody: it outlives its agent, and a restarted agent finds it by the control socket.
//!
//! ```text
//!            agent                                   agent
//!              | control socket (NDJSON)               | control socket
//!              v                                       v
//! QEMU ==> worker =====  TLS 1.3, one TCP  =====> worker ==> QEMU
//!  source  listens       connection a channel     listens    connects to -incoming
//!          on a Unix                              on TCP
//!          socket
//! ```
//!
//! QEMU's own stream passes unchanged, in both directions, over as many channels as QEMU opens; the destination
//! connects to its QEMU in the order in which the source's QEMU opened them. [`limosa_transport`] has the wire
//! protocol, [`control`] the conversation with the agent, [`sandbox`] what the process may still do once it has
//! its orders.
//!
//! **What the worker says about its channels is advice.** QEMU closes sockets as it likes once a migration is
//! over: whether it has succeeded is for the two QEMUs to say.
//!
//! **How it ends.** On `stop`; when no `start` comes within [`Limits::start_ms`]; when no channel has been open
//! and no agent connected for [`Limits::linger_ms`]. Its sockets are then closed without a goodbye, which the
//! other side sees as a loss.

mod agent;
mod channel;
pub mod control;
mod error;
mod listening;
pub mod sandbox;
mod worker;

use std::ffi::OsString;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

pub use error::Error;
pub use worker::run;

/// What the agent has opened for the worker.
#[derive(Debug)]
pub struct Descriptors {
    /// A listening Unix socket, on which agents connect.
    pub control: OwnedFd,
    /// Where the stream comes from: on the source a listening Unix socket for QEMU, on the destination a
    /// listening TCP socket for the other worker. Its family decides the role.
    pub listen: OwnedFd,
}

/// How long a worker stays without being needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long the worker waits for its `start`, in milliseconds.
    pub start_ms: u64,
    /// How long it stays, in milliseconds, once no channel is open and no agent is connected.
    pub linger_ms: u64,
    /// How much address space the process may have, in bytes.
    pub memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { start_ms: 5 * 60_000, linger_ms: 10 * 60_000, memory_bytes: 8 << 30 }
    }
}

/// `limosa worker --control-fd N --listen-fd N [--start-limit-ms N] [--linger-ms N] [--memory-limit-bytes N]`,
/// without its first two words.
///
/// The named descriptors become the worker's own: call this once, from `main`.
///
/// # Errors
/// [`Error::Usage`] if the arguments are not these, or what [`run`] returns.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Error> {
    let mut limits = Limits::default();
    let (mut control, mut listen) = (None, None);
    let mut arguments = arguments.into_iter();
    while let Some(name) = arguments.next() {
        let name = name.to_string_lossy().into_owned();
        let value = arguments.next().and_then(|value| value.to_str()?.parse::<u64>().ok());
        let value = value.ok_or_else(|| Error::Usage(format!("{name} needs a number")))?;
        match name.as_str() {
            "--control-fd" => control = Some(value),
            "--listen-fd" => listen = Some(value),
            "--start-limit-ms" => limits.start_ms = value,
            "--linger-ms" => limits.linger_ms = value,
            "--memory-limit-bytes" => limits.memory_bytes = value,
            _ => return Err(Error::Usage(format!("{name} is not known"))),
        }
    }
    match (control, listen) {
        (Some(control), Some(listen)) if control != listen => {
            run(Descriptors { control: inherited(control)?, listen: inherited(listen)? }, limits)
        }
        _ => Err(Error::Usage("--control-fd and --listen-fd are both needed, and differ".into())),
    }
}

/// The descriptor that the agent has left open across its exec.
fn inherited(number: u64) -> Result<OwnedFd, Error> {
    let raw = RawFd::try_from(number).ok().filter(|raw| *raw > 2);
    let raw = raw.ok_or_else(|| Error::Usage(format!("{number} is no descriptor to hand over")))?;
    // SAFETY: the call only looks at the number, and says whether something is open there.
    if unsafe { libc::fcntl(raw, libc::F_GETFD) } < 0 {
        return Err(Error::Usage(format!("descriptor {number} is not open")));
    }
    // SAFETY: it is open, and nothing here opened it: the agent passed it on for us to own. `main` takes each
    // number once, as the two differ, and is called before anything else opens or adopts descriptors.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(arguments: &str) -> String {
        match main(arguments.split_whitespace().map(OsString::from)) {
            Err(Error::Usage(reason)) => reason,
            other => panic!("{arguments:?} was taken: {other:?}"),
        }
    }

    #[test]
    fn arguments_that_no_agent_gives_are_refused_with_the_reason() {
        assert!(usage("").contains("--control-fd"));
        assert!(usage("--control-fd 3").contains("--listen-fd"));
        assert!(usage("--control-fd 3 --listen-fd 3").contains("differ"));
        assert!(usage("--control-fd").contains("number"));
        assert!(usage("--control-fd three --listen-fd 4").contains("number"));
        assert!(usage("--colour 1").contains("--colour"));
        assert!(usage("--control-fd 2 --listen-fd 4").contains('2'));
        assert!(usage("--control-fd 900001 --listen-fd 900002").contains("not open"));
        assert!(usage("--control-fd 99999999999 --listen-fd 4").contains("99999999999"));
    }

    #[test]
    fn a_descriptor_that_does_not_listen_is_refused() {
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let error = run(Descriptors { control: file(), listen: file() }, Limits::default()).unwrap_err();
        assert!(matches!(error, Error::Descriptor(..)), "{error}");
    }
}
