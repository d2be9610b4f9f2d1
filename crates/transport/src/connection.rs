//! Connections from the TCP connect to the answered hello.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{IpAddr, Ipv4Addr, ServerName};

use crate::hello::{Answer, CHANNELS_MAX, Hello, PROTOCOL_VERSION};
use crate::pin::{ALPN, client_config, server_config};
use crate::session::{Session, TLS_ROOM};
use crate::{Credential, Error, Fingerprint, TcpOptions};

/// How long a peer may take from the TCP connect to the end of its hello.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// How long the destination may take to answer a hello: it waits for the channels before this one and connects
/// to its QEMU first.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// How many bytes are read, sealed or opened at a time.
pub(crate) const CHUNK: usize = 256 * 1024;

/// The source's end: makes connections to one destination, for one migration.
pub struct Dialer {
    tls: Arc<ClientConfig>,
    migration: [u8; 16],
    addresses: Vec<SocketAddr>,
    options: TcpOptions,
}

impl Dialer {
    /// Binds `own` to the `peer` whose fingerprint came over the agents' own channel.
    ///
    /// # Errors
    /// [`Error::Tls`] if TLS does not take the credential.
    pub fn new(
        own: &Credential,
        peer: Fingerprint,
        migration: [u8; 16],
        addresses: Vec<SocketAddr>,
        options: TcpOptions,
    ) -> Result<Self, Error> {
        Ok(Self { tls: client_config(own, peer)?, migration, addresses, options })
    }

    /// Connects one channel, and returns when the destination has accepted it.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Tls`], [`Error::Protocol`], [`Error::Refused`], [`Error::Timeout`] or
    /// [`Error::Lost`]. Nothing has then reached the other side's QEMU.
    pub fn connect(&self, channel: u16) -> Result<Connection, Error> {
        let tcp = self.options.connect(&self.addresses)?;
        // No name is sent, and the pin looks at none; TLS wants one all the same.
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0; 4])));
        let tls = UnbufferedClientConnection::new(self.tls.clone(), name)
            .map_err(|source| Error::Tls { during: "its start", source })?;
        let mut connection = Connection::new(tcp, Session::source(tls, CHUNK))?;

        let deadline = Deadline::after(HANDSHAKE_LIMIT);
        connection.handshake(&deadline)?;
        let hello = Hello { version: PROTOCOL_VERSION, channel, migration: self.migration };
        connection.send(&hello.encode(), &deadline)?;
        let mut answer = [0; Answer::SIZE];
        connection.receive(&mut answer, "the answer to the hello", &Deadline::after(ANSWER_LIMIT))?;
        match Answer::decode(&answer)? {
            Answer::Accepted => Ok(connection),
            refusal => Err(Error::Refused(refusal)),
        }
    }
}

/// The destination's end: takes connections from one source, for one migration.
pub struct Acceptor {
    tls: Arc<ServerConfig>,
    migration: [u8; 16],
    options: TcpOptions,
}

impl Acceptor {
    /// Binds `own` to the `peer` whose fingerprint came over the agents' own channel.
    ///
    /// # Errors
    /// [`Error::Tls`] if TLS does not take the credential.
    pub fn new(
        own: &Credential,
        peer: Fingerprint,
        migration: [u8; 16],
        options: TcpOptions,
    ) -> Result<Self, Error> {
        Ok(Self { tls: server_config(own, peer)?, migration, options })
    }

    /// Brings an accepted TCP connection through TLS and its hello. It still needs an answer.
    ///
    /// # Errors
    /// [`Error::Tls`], [`Error::Protocol`], [`Error::Refused`], [`Error::Timeout`] or [`Error::Lost`]: the peer
    /// is not the source, or not for this migration. It has been told so, as far as it listens.
    pub fn accept(&self, tcp: TcpStream) -> Result<Incoming, Error> {
        self.options.apply_to(&tcp).map_err(Error::io("set up a TCP connection"))?;
        let tls = UnbufferedServerConnection::new(self.tls.clone())
            .map_err(|source| Error::Tls { during: "its start", source })?;
        let mut connection = Connection::new(tcp, Session::destination(tls, CHUNK))?;

        let deadline = Deadline::after(HANDSHAKE_LIMIT);
        connection.handshake(&deadline)?;
        let mut hello = [0; Hello::SIZE];
        connection.receive(&mut hello, "the hello", &deadline)?;
        let hello = Hello::decode(&hello)?;
        let incoming = Incoming { connection, channel: hello.channel };
        if hello.version != PROTOCOL_VERSION {
            return Err(incoming.refuse(Answer::OtherVersion));
        }
        if hello.migration != self.migration {
            return Err(incoming.refuse(Answer::OtherMigration));
        }
        if hello.channel >= CHANNELS_MAX {
            return Err(incoming.refuse(Answer::NoSuchChannel));
        }
        Ok(incoming)
    }
}

/// A channel that the source has asked for and that has no answer yet.
pub struct Incoming {
    connection: Connection,
    channel: u16,
}

impl Incoming {
    /// The number that the source has given the channel; below [`CHANNELS_MAX`].
    pub fn channel(&self) -> u16 {
        self.channel
    }

    /// Tells the source that the channel stands.
    ///
    /// # Errors
    /// [`Error::Lost`] or [`Error::Timeout`] if the source does not wait any more.
    pub fn accept(mut self) -> Result<Connection, Error> {
        self.connection.send(&Answer::Accepted.encode(), &Deadline::after(HANDSHAKE_LIMIT))?;
        Ok(self.connection)
    }

    /// Tells the source why there is no channel. Returns the same as an error.
    pub fn refuse(mut self, answer: Answer) -> Error {
        if let Err(error) = self.connection.send(&answer.encode(), &Deadline::after(HANDSHAKE_LIMIT)) {
            tracing::debug!(%error, "the refusal could not be sent");
        }
        Error::Refused(answer)
    }
}

/// A channel's connection to the other host, with nothing but the channel's own bytes on it.
pub struct Connection {
    tcp: TcpStream,
    pub(crate) session: Session,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }
}

impl Connection {
    fn new(tcp: TcpStream, session: Session) -> Result<Self, Error> {
        tcp.set_nonblocking(true).map_err(Error::io("set up a TCP connection"))?;
        Ok(Self { tcp, session })
    }

    /// How many plain bytes can be sealed without waiting.
    pub(crate) fn room_to_send(&self) -> usize {
        // A record of 16 KiB grows by 22 bytes.
        let room = self.session.outgoing.room().saturating_sub(TLS_ROOM);
        (room - room / 256).min(CHUNK)
    }

    /// Whether all that one read can bring has room on the local side.
    pub(crate) fn has_room_to_receive(&self) -> bool {
        self.session.received.room() >= CHUNK && self.session.incoming.room() > 0
    }

    /// Reads once from the socket and opens what came. Returns whether there was anything.
    pub(crate) fn fill(&mut self) -> Result<bool, Error> {
        match retry(|| (&self.tcp).read(self.session.incoming.spare())) {
            Ok(0) => Err(Error::closed_without_goodbye()),
            Ok(count) => {
                self.session.incoming.commit(count);
                self.advance(&[])?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(Error::peer_lost(error)),
        }
    }

    /// Seals `plain`, which fits ([`Self::room_to_send`]).
    pub(crate) fn advance(&mut self, plain: &[u8]) -> Result<bool, Error> {
        let result = self.session.advance(plain);
        if result.is_err() {
            // The alert is a courtesy to the peer; the error is what counts.
            let _ = self.flush();
        }
        result
    }

    /// Writes sealed bytes until none are left or the socket takes no more.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        while !self.session.outgoing.is_empty() {
            match retry(|| (&self.tcp).write(self.session.outgoing.filled())) {
                Ok(count) => self.session.outgoing.consume(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(Error::peer_lost(error)),
            }
        }
        Ok(())
    }

    /// The error that the kernel holds for the socket, or that the connection is gone.
    pub(crate) fn socket_error(&self) -> Error {
        match self.tcp.take_error() {
            Ok(Some(error)) | Err(error) => Error::peer_lost(error),
            Ok(None) => Error::closed_without_goodbye(),
        }
    }

    fn handshake(&mut self, deadline: &Deadline) -> Result<(), Error> {
        loop {
            let done = self.advance(&[])?;
            self.flush()?;
            if done && self.session.outgoing.is_empty() {
                break;
            }
            self.wait("the TLS handshake", deadline)?;
            if !done {
                self.fill()?;
            }
        }
        // A peer that names no protocol at all gets through TLS.
        if self.session.alpn() == Some(ALPN) { Ok(()) } else { Err(Error::Protocol("it names no protocol")) }
    }

    fn send(&mut self, plain: &[u8], deadline: &Deadline) -> Result<(), Error> {
        self.advance(plain)?;
        loop {
            self.flush()?;
            if self.session.outgoing.is_empty() {
                return Ok(());
            }
            self.wait("the hello", deadline)?;
        }
    }

    fn receive(&mut self, plain: &mut [u8], during: &'static str, deadline: &Deadline) -> Result<(), Error> {
        while self.session.received.filled().len() < plain.len() {
            if self.session.peer_closed {
                return Err(Error::closed_without_goodbye());
            }
            self.wait(during, deadline)?;
            self.fill()?;
        }
        plain.copy_from_slice(&self.session.received.filled()[..plain.len()]);
        self.session.received.consume(plain.len());
        Ok(())
    }

    /// Waits until the socket has something, or takes what waits for it.
    fn wait(&self, during: &'static str, deadline: &Deadline) -> Result<(), Error> {
        let mut events = PollFlags::IN;
        events.set(PollFlags::OUT, !self.session.outgoing.is_empty());
        let mut descriptors = [PollFd::new(&self.tcp, events)];
        match retry(|| Ok(poll(&mut descriptors, Some(&deadline.remaining()))?)) {
            Ok(0) => Err(Error::Timeout { during, limit: deadline.limit }),
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Io { during: "wait for the other host", source: error }),
        }
    }
}

/// Runs a system call again when a signal came in between.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }

    fn remaining(&self) -> Timespec {
        let left = self.at.saturating_duration_since(Instant::now());
        Timespec::try_from(left).expect("a limit is far below what a time can hold")
    }
}
