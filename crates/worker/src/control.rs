//! The conversation between the agent and a worker: JSON, one message a line, over a Unix socket.
//!
//! The agent sends a [`Request`] a line; the worker answers each in its turn with a [`Message::Reply`]. After
//! [`Request::Watch`] it also sends [`Message::Event`]s, between replies, as they happen. One agent at a time: a
//! new connection ends the one before it, so a restarted agent always gets through.
//!
//! ```text
//! agent                                                       worker
//!   | {"hello":{}}                                               |
//!   |----------------------------------------------------------->|
//!   |     {"reply":{"hello":{"version":1,"role":"source",        |
//!   |                        "fingerprint":"…"}}}                |
//!   |<-----------------------------------------------------------|
//!   | {"start":{"source":{"migration":"…","peer":"…",            |
//!   |                     "addresses":["192.0.2.2:4444"]}}}      |
//!   |----------------------------------------------------------->|
//!   |     {"reply":{"started":{…what the sandbox achieved…}}}    |
//!   |<-----------------------------------------------------------|
//!   | {"watch":{}}                                               |
//!   |----------------------------------------------------------->|
//!   |     {"reply":{"watching":{…status…}}}                      |
//!   |     {"event":{"connected":{"channel":0}}}                  |
//!   |<-----------------------------------------------------------|
//! ```
//!
//! Limits: a line has at most [`LINE_MAX`] bytes; an agent that does not read its messages is dropped when
//! [`UNREAD_MAX`] bytes wait for it. A line that is no request is answered with [`Reply::Refused`].

use std::net::SocketAddr;
use std::path::PathBuf;

use limosa_model::MigrationId;
use limosa_transport::{Fingerprint, TcpOptions};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::sandbox::Sandbox;

/// The version of this conversation.
pub const VERSION: u32 = 1;

/// How long a line may be, in bytes, without its end.
pub const LINE_MAX: usize = 64 * 1024;

/// How many bytes may wait for an agent that does not read.
pub const UNREAD_MAX: usize = 256 * 1024;

/// What an agent asks of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Who are you?
    Hello {},
    /// Begin. Sent again with the same content, it is answered in the same way and changes nothing.
    Start(Start),
    /// How does it go?
    Status {},
    /// As [`Request::Status`], and tell every event from now on.
    Watch {},
    /// Close every channel without a goodbye, and exit.
    Stop {},
}

/// A worker's orders. It takes them once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Start {
    /// Take channels from QEMU and connect each to the destination.
    Source {
        /// The migration; the destination's worker refuses any other.
        migration: MigrationId,
        /// The fingerprint of the destination's worker.
        peer: Fingerprint,
        /// Where the destination's worker listens; the first that answers is used.
        addresses: Vec<SocketAddr>,
        /// How to set up TCP.
        #[serde(default)]
        tcp: TcpOptions,
    },
    /// Take connections from the source and connect each to QEMU.
    Destination {
        /// The migration; a source that names another is refused.
        migration: MigrationId,
        /// The fingerprint of the source's worker.
        peer: Fingerprint,
        /// The Unix socket of QEMU's `migrate-incoming`. It must be there when the first channel comes.
        qemu_socket: PathBuf,
        /// How to set up TCP.
        #[serde(default)]
        tcp: TcpOptions,
    },
}

impl Start {
    /// Which end these orders are for.
    pub fn role(&self) -> Role {
        match self {
            Self::Source { .. } => Role::Source,
            Self::Destination { .. } => Role::Destination,
        }
    }

    /// The migration that these orders are for.
    pub fn migration(&self) -> MigrationId {
        match self {
            Self::Source { migration, .. } | Self::Destination { migration, .. } => *migration,
        }
    }
}

/// Which end of the migration a worker serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The host that the VM leaves.
    Source,
    /// The host that the VM comes to.
    Destination,
}

/// One line from the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// The answer to the oldest request that has none.
    Reply(Reply),
    /// Something has happened.
    Event(Event),
}

/// A worker's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// The version of this conversation that the worker speaks.
        version: u32,
        /// The end that it serves.
        role: Role,
        /// What the other worker has to pin.
        fingerprint: Fingerprint,
    },
    /// To [`Request::Start`]: it listens, within this sandbox.
    Started(Sandbox),
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Watch`].
    Watching(Status),
    /// To [`Request::Stop`]; the last line.
    Stopping {},
    /// The request is not done, and nothing has changed.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
}

/// How a migration's data plane stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The step that it is in.
    pub phase: WorkerPhase,
    /// The end that it serves.
    pub role: Role,
    /// The migration, once started.
    pub migration: Option<MigrationId>,
    /// Channels that exist now, those being connected included.
    pub channels_open: u32,
    /// Channels that have come and gone.
    pub channels_closed: u32,
    /// TLS connections to the other worker that have stood so far.
    pub tls_connections: u32,
    /// Connections that were refused: not TLS, another certificate, another migration.
    pub connections_refused: u64,
    /// Bytes taken from the local QEMU for the other host. Never goes back.
    pub bytes_to_peer: u64,
    /// Bytes from the other host that the local QEMU has taken. Never goes back.
    pub bytes_from_peer: u64,
    /// Why the first channel failed that did.
    pub error: Option<String>,
    /// What the process has given up, once started.
    pub sandbox: Option<Sandbox>,
}

/// The steps of a worker's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerPhase {
    /// No `start` yet.
    Idle,
    /// Started; no channel yet.
    Waiting,
    /// Channels are open.
    Relaying,
    /// A channel has failed; others may still be open.
    Failed,
    /// Every channel has come to its end.
    Ended,
}

/// What a worker tells by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A channel stands from QEMU to QEMU.
    Connected {
        /// Its number.
        channel: u16,
    },
    /// A channel is gone.
    ChannelClosed {
        /// Its number.
        channel: u16,
        /// Why, if it did not come to its end.
        error: Option<String>,
    },
    /// The first channel has failed.
    Failed {
        /// Why.
        reason: String,
    },
    /// No channel is open any more.
    Ended {},
}

/// A message as its line, with the line's end.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("these types have nothing that JSON lacks");
    line.push(b'\n');
    line
}

/// Reads one line as a message.
///
/// # Errors
/// What serde found wrong, for people.
pub fn decode<M: DeserializeOwned>(line: &[u8]) -> Result<M, String> {
    serde_json::from_slice(line).map_err(|error| error.to_string())
}

/// Cuts a stream of bytes into lines of bounded length.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    searched: usize,
}

/// The other end has sent a line longer than [`LINE_MAX`]: hang up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {LINE_MAX} bytes")]
pub struct LineTooLong;

impl Lines {
    /// Takes what has been read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    ///
    /// # Errors
    /// [`LineTooLong`]; what follows then cannot be trusted.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineTooLong> {
        let end = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
        let length = end.map_or(self.bytes.len(), |end| self.searched + end);
        if length > LINE_MAX {
            return Err(LineTooLong);
        }
        if end.is_none() {
            self.searched = length;
            return Ok(None);
        }
        let mut line: Vec<u8> = self.bytes.drain(..=length).collect();
        line.pop();
        self.searched = 0;
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lines_come_out_whole_however_they_are_cut(lines: Vec<Vec<u8>>, cut in 1usize..9) {
            let lines: Vec<Vec<u8>> = lines.into_iter()
                .map(|line| line.into_iter().filter(|byte| *byte != b'\n').collect()).collect();
            let mut stream = Vec::new();
            for line in &lines {
                stream.extend_from_slice(line);
                stream.push(b'\n');
            }
            let (mut cutter, mut found) = (Lines::default(), Vec::new());
            for piece in stream.chunks(cut) {
                cutter.push(piece);
                while let Some(line) = cutter.next_line().unwrap() {
                    found.push(line);
                }
            }
            prop_assert_eq!(found, lines);
        }

        #[test]
        fn rubbish_is_no_request_and_no_panic(bytes: Vec<u8>) {
            prop_assert!(decode::<Request>(&bytes).is_err());
        }
    }

    #[test]
    fn a_line_that_never_ends_is_refused_at_the_limit() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; LINE_MAX]);
        assert_eq!(lines.next_line(), Ok(None));
        lines.push(b"x");
        assert_eq!(lines.next_line(), Err(LineTooLong));
    }

    #[test]
    fn a_request_reads_as_documented_and_a_typo_is_refused() {
        let migration = MigrationId::from_u128(1);
        let peer = "ab".repeat(32);
        let line = format!(
            r#"{{"start":{{"source":{{"migration":"{migration}","peer":"{peer}","addresses":["192.0.2.2:4444"]}}}}}}"#
        );
        let start = Start::Source {
            migration,
            peer: peer.parse().unwrap(),
            addresses: vec!["192.0.2.2:4444".parse().unwrap()],
            tcp: TcpOptions::default(),
        };
        assert_eq!(decode(line.as_bytes()), Ok(Request::Start(start)));
        assert!(decode::<Request>(line.replace("addresses", "adresses").as_bytes()).is_err());
        assert_eq!(decode(br#"{"hello":{}}"#), Ok(Request::Hello {}));
        assert_eq!(encode(&Request::Watch {}), b"{\"watch\":{}}\n");
    }
}
