//! One channel: a Unix socket on this host, a connection to the other host, and every byte between them.
//!
//! ```text
//!              read          seal          write
//!   local  ----------> plain -----> outgoing ----> peer      each arrow stops while its
//!   local  <---------- received <----- incoming <- peer      right-hand side is full
//!              write         open          read
//! ```
//!
//! The two directions do not wait for each other: a full one only stops its own reads. One thread serves one
//! channel; it sleeps in `poll` and nowhere else.
//!
//! Ends are passed on as they are: an end of file from QEMU becomes `close_notify`, and `close_notify` becomes a
//! `shutdown` of QEMU's socket for writing, each after the last byte. A loss is passed on as one: the other
//! socket is closed, at once or, as TCP itself would do it, when QEMU has taken what came before the loss.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::connection::{CHUNK, Connection, retry};
use crate::{Error, Side};

/// Reads shorter than this are not worth a record: wait until more fits.
const LEAST_READ: usize = 16 * 1024;

/// How long QEMU may take nothing of what came before a loss.
const REST_LIMIT: Duration = Duration::from_secs(5);

/// How much has passed, in the bytes that QEMU sees. Shared by the channels of a migration; only ever grows.
#[derive(Debug, Default)]
pub struct Count {
    to_peer: AtomicU64,
    from_peer: AtomicU64,
}

impl Count {
    /// Bytes read from the local QEMUs and sealed for the other host.
    pub fn to_peer(&self) -> u64 {
        self.to_peer.load(Relaxed)
    }

    /// Bytes from the other host that the local QEMU has taken.
    pub fn from_peer(&self) -> u64 {
        self.from_peer.load(Relaxed)
    }
}

/// Carries bytes both ways until both directions have ended, then closes both sockets.
///
/// # Errors
/// [`Error::Lost`] says which side went away without an end, [`Error::Tls`] that a record was forged or broken.
/// Both sockets are closed then too.
pub fn relay(local: UnixStream, peer: Connection, count: &Count) -> Result<(), Error> {
    local.set_nonblocking(true).map_err(Error::io("set up QEMU's socket"))?;
    let mut relay =
        Relay { local, peer, count, plain: vec![0; CHUNK], local_ended: false, local_told: false };
    let result = relay.run();
    if let Err(Error::Lost { side: Side::Peer, .. }) = &result {
        // The loss is what counts, whether QEMU takes the rest or not.
        let _ = relay.deliver();
    }
    result
}

struct Relay<'a> {
    local: UnixStream,
    peer: Connection,
    count: &'a Count,
    plain: Vec<u8>,
    /// QEMU sends no more.
    local_ended: bool,
    /// QEMU has been told that the peer sends no more.
    local_told: bool,
}

impl Relay<'_> {
    fn run(&mut self) -> Result<(), Error> {
        // Bytes may have come right behind the hello.
        self.write_local()?;
        loop {
            let session = &self.peer.session;
            if session.peer_closed && session.received.is_empty() && !self.local_told {
                self.local_told = true;
                // It fails only if QEMU is gone, which the next read or write tells.
                let _ = self.local.shutdown(Shutdown::Write);
            }
            if self.local_told && session.close_sent() && session.outgoing.is_empty() {
                return Ok(());
            }
            self.turn()?;
        }
    }

    /// Waits until something can be done, and does it.
    fn turn(&mut self) -> Result<(), Error> {
        let read_local = !self.local_ended && self.peer.room_to_send() >= LEAST_READ;
        let read_peer = !self.peer.session.peer_closed && self.peer.has_room_to_receive();
        let local_events = events(read_local, !self.peer.session.received.is_empty());
        let peer_events = events(read_peer, !self.peer.session.outgoing.is_empty());

        // A socket that has hung up is always ready: leave QEMU's out while nothing is wanted of it.
        let (local, peer) = {
            let mut descriptors =
                [PollFd::new(&self.peer, peer_events), PollFd::new(&self.local, local_events)];
            let polled = if local_events.is_empty() { 1 } else { 2 };
            retry(|| Ok(poll(&mut descriptors[..polled], None)?)).map_err(Error::io("wait for a socket"))?;
            let [peer, local] = descriptors.each_ref().map(PollFd::revents);
            (local, peer)
        };
        let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;

        if peer.intersects(broken) && !read_peer {
            // More may have come before the loss than there was room for.
            self.deliver()?;
            if self.peer.session.peer_closed || !self.peer.has_room_to_receive() {
                return Err(self.peer.socket_error());
            }
            return Ok(());
        }
        let received = read_peer && peer.intersects(broken | PollFlags::IN) && self.peer.fill()?;
        if received || local.intersects(broken | PollFlags::OUT) {
            self.write_local()?;
        }
        if local.intersects(broken | PollFlags::IN) && read_local {
            self.read_local()?;
        }
        self.peer.flush()
    }

    fn read_local(&mut self) -> Result<(), Error> {
        let room = self.peer.room_to_send();
        match retry(|| (&self.local).read(&mut self.plain[..room])) {
            Ok(0) => {
                self.local_ended = true;
                self.peer.session.close();
                self.peer.advance(&[])?;
                Ok(())
            }
            Ok(count) => {
                self.peer.advance(&self.plain[..count])?;
                self.count.to_peer.fetch_add(count as u64, Relaxed);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(Error::local_lost(error)),
        }
    }

    /// Gives QEMU what has been received, and waits for it while it takes some of it every [`REST_LIMIT`].
    fn deliver(&mut self) -> Result<(), Error> {
        let set_up = Error::io("set up QEMU's socket");
        self.local
            .set_write_timeout(Some(REST_LIMIT))
            .and(self.local.set_nonblocking(false))
            .map_err(set_up)?;
        self.write_local()?;
        self.local.set_nonblocking(true).map_err(Error::io("set up QEMU's socket"))
    }

    /// Gives QEMU what has been received, as far as it takes it.
    fn write_local(&mut self) -> Result<(), Error> {
        let received = &mut self.peer.session.received;
        while !received.is_empty() {
            match retry(|| (&self.local).write(received.filled())) {
                Ok(count) => {
                    received.consume(count);
                    self.count.from_peer.fetch_add(count as u64, Relaxed);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(Error::local_lost(error)),
            }
        }
        Ok(())
    }
}

fn events(read: bool, write: bool) -> PollFlags {
    let mut events = PollFlags::empty();
    events.set(PollFlags::IN, read);
    events.set(PollFlags::OUT, write);
    events
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::{Acceptor, Credential, Dialer, TcpOptions};

    /// Both ends of one connection.
    fn connections() -> (Connection, Connection) {
        let [source, destination] = [(); 2].map(|()| Credential::generate().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addresses, options) = (vec![listener.local_addr().unwrap()], TcpOptions::default());
        let dialer =
            Dialer::new(&source, destination.fingerprint(), [7; 16], addresses, options.clone()).unwrap();
        let acceptor = Acceptor::new(&destination, source.fingerprint(), [7; 16], options).unwrap();
        thread::scope(|scope| {
            let accepting =
                scope.spawn(|| acceptor.accept(listener.accept().unwrap().0).unwrap().accept().unwrap());
            (dialer.connect(0).unwrap(), accepting.join().unwrap())
        })
    }

    #[test]
    fn what_came_before_a_loss_reaches_a_slow_qemu() {
        let (mut source, destination) = connections();
        let (mut qemu, local) = UnixStream::pair().unwrap();
        let sent: Vec<u8> = (0..400_000_u32).map(|number| (number % 251) as u8).collect();
        thread::scope(|scope| {
            let relaying = scope.spawn(|| relay(local, destination, &Count::default()));
            let mut rest = sent.as_slice();
            while !rest.is_empty() || !source.session.outgoing.is_empty() {
                let count = rest.len().min(source.room_to_send());
                source.advance(&rest[..count]).unwrap();
                rest = &rest[count..];
                poll(&mut [PollFd::new(&source, PollFlags::OUT)], None).unwrap();
                source.flush().unwrap();
            }
            drop(source);
            let (mut received, mut chunk) = (Vec::new(), [0; 64]);
            while let count @ 1.. = qemu.read(&mut chunk).unwrap() {
                received.extend_from_slice(&chunk[..count]);
            }
            assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
            let error = relaying.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::Lost { side: Side::Peer, .. }), "{error}");
        });
    }
}
