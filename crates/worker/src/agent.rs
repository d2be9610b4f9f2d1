//! The worker's end of the conversation with the agent.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crate::control::{Lines, Message, UNREAD_MAX, encode};

/// The one agent that is connected.
pub(crate) struct Agent {
    stream: UnixStream,
    lines: Lines,
    unsent: Vec<u8>,
    /// It wants to be told of events.
    pub(crate) watches: bool,
}

impl Agent {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, lines: Lines::default(), unsent: Vec::new(), watches: false }
    }

    /// What has come, by lines; as an error if nothing more will come after it.
    pub(crate) fn requests(&mut self) -> Result<Vec<Vec<u8>>, Vec<Vec<u8>>> {
        let mut bytes = [0; 4096];
        let mut requests = Vec::new();
        let gone = match (&self.stream).read(&mut bytes) {
            Ok(0) => true,
            Ok(count) => {
                self.lines.push(&bytes[..count]);
                false
            }
            Err(error) => !is_passing(&error),
        };
        loop {
            match self.lines.next_line() {
                Ok(Some(line)) => requests.push(line),
                Ok(None) if gone => return Err(requests),
                Ok(None) => return Ok(requests),
                Err(error) => {
                    tracing::warn!(%error, "the agent is cut off");
                    return Err(requests);
                }
            }
        }
    }

    /// Queues a message and sends what can be sent.
    ///
    /// # Errors
    /// The connection is broken, or the agent does not read.
    pub(crate) fn send(&mut self, message: &Message) -> io::Result<()> {
        self.unsent.extend(encode(message));
        self.flush()?;
        if self.unsent.len() > UNREAD_MAX {
            return Err(io::Error::other("it does not read its messages"));
        }
        Ok(())
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends as much as the socket takes.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match (&self.stream).write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if is_passing(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl AsFd for Agent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
