//! Holds a TCP connection to a guest's echo server: every number sent must come back, in order, on the very same
//! connection.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Seen, Watch, micros};
use crate::error::{Error, Result};
use crate::namespace::Namespace;

const PORT: u16 = 7;
const INTERVAL: Duration = Duration::from_millis(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Numbers on their way beyond this many wait until some have come back.
const ON_THEIR_WAY_LIMIT: u64 = 64 * 1024;

/// What the connection showed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EchoSummary {
    /// Numbers sent.
    pub sent: u64,
    /// Numbers that came back as they were sent.
    pub received: u64,
    /// The longest time in which something was on its way and nothing came back, in microseconds.
    pub longest_stall_us: u64,
    /// Why the connection ended, or what came back wrong; none while all is well.
    pub error: Option<String>,
}

/// A TCP connection that is used all the time and never made anew.
#[derive(Debug)]
pub struct EchoConnection {
    watch: Watch<EchoSummary>,
}

impl EchoConnection {
    /// Connects from a namespace to the echo server at an address, and begins.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the server does not answer.
    pub fn start(namespace: &Namespace, address: Ipv4Addr) -> Result<Self> {
        let server = SocketAddr::from((address, PORT));
        let connecting = || Error::io(format!("connect to the echo server at {server}"));
        let stream =
            namespace.run(|| TcpStream::connect_timeout(&server, CONNECT_LIMIT))?.map_err(connecting())?;
        stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).map_err(connecting())?;
        let watch = Watch::start("echo", move |seen| {
            if let Err(error) = Echo::new(&stream).run(seen) {
                seen.update(|summary| summary.error = Some(error.to_string()));
            }
        })?;
        Ok(Self { watch })
    }

    /// What it has seen so far.
    pub fn snapshot(&self) -> EchoSummary {
        self.watch.snapshot()
    }

    /// Closes the connection and says what it has seen.
    pub fn stop(mut self) -> EchoSummary {
        self.watch.stop()
    }
}

struct Echo<'a> {
    stream: &'a TcpStream,
    start: Instant,
    sent: u64,
    received: u64,
    /// Bytes that did not go out yet, and that came in but are no whole number yet.
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    /// Since when something is on its way and nothing came back.
    waiting_since: Option<Instant>,
}

impl<'a> Echo<'a> {
    fn new(stream: &'a TcpStream) -> Self {
        let (outgoing, incoming) = (Vec::new(), Vec::new());
        Self { stream, start: Instant::now(), sent: 0, received: 0, outgoing, incoming, waiting_since: None }
    }

    fn run(&mut self, seen: &Seen<EchoSummary>) -> io::Result<()> {
        let mut next = self.start;
        while !seen.is_over(self.start) {
            let now = Instant::now();
            if now >= next {
                if self.sent - self.received < ON_THEIR_WAY_LIMIT {
                    self.outgoing.extend_from_slice(&self.sent.to_be_bytes());
                    self.sent += 1;
                    self.waiting_since.get_or_insert(now);
                }
                next = (next + INTERVAL).max(now);
            }
            self.write()?;
            self.wait_until(next)?;
            let progressed = self.read()?;
            self.publish(progressed, seen);
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait_until(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(self.stream, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut polled, Some(&timeout)))?;
        Ok(())
    }

    /// Reads what came back and checks it; says whether anything did.
    fn read(&mut self) -> io::Result<bool> {
        let before = self.received;
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the guest closed the connection",
                    ));
                }
                Ok(count) => self.incoming.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.received += check(&mut self.incoming, self.received)?;
        Ok(self.received > before)
    }

    fn publish(&mut self, progressed: bool, seen: &Seen<EchoSummary>) {
        let now = Instant::now();
        let stall_us = self.waiting_since.map_or(0, |since| micros(now - since));
        if progressed {
            self.waiting_since = (self.sent > self.received).then_some(now);
        }
        seen.update(|summary| {
            summary.sent = self.sent;
            summary.received = self.received;
            summary.longest_stall_us = summary.longest_stall_us.max(stall_us);
        });
    }
}

/// Takes the whole numbers off the front; they must go on from `expected`. Gives how many there were.
fn check(incoming: &mut Vec<u8>, expected: u64) -> io::Result<u64> {
    let mut count = 0;
    for number in incoming.chunks_exact(8) {
        let wanted = expected + count;
        if number != wanted.to_be_bytes() {
            return Err(io::Error::other(format!("{number:02x?} came back where {wanted} was sent")));
        }
        count += 1;
    }
    let whole = incoming.len() - incoming.len() % 8;
    drop(incoming.drain(..whole));
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked_in_order_however_they_are_cut() {
        let bytes: Vec<u8> = (5_u64..9).flat_map(u64::to_be_bytes).collect();
        let (mut incoming, mut received) = (Vec::new(), 5);
        for piece in bytes.chunks(3) {
            incoming.extend_from_slice(piece);
            received += check(&mut incoming, received).unwrap();
        }
        assert_eq!(received, 9);
        assert!(incoming.is_empty());
    }

    #[test]
    fn a_number_that_was_lost_or_repeated_is_noticed() {
        assert!(check(&mut 6_u64.to_be_bytes().to_vec(), 5).is_err());
        assert!(check(&mut 4_u64.to_be_bytes().to_vec(), 5).is_err());
    }
}
