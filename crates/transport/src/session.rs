//! TLS without a socket: bytes in, bytes out.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};

use crate::Error;
use crate::buffer::Buffer;

/// Room that is kept free in the outgoing buffer for what TLS itself has to say: handshake flights, key
/// updates, alerts, and the rest of a record that is being sealed.
pub(crate) const TLS_ROOM: usize = 32 * 1024;

/// One end of a TLS connection and the bytes that wait on its two sides.
pub(crate) struct Session {
    end: End,
    /// Sealed, as it came from the peer.
    pub(crate) incoming: Buffer,
    /// Sealed, to go to the peer.
    pub(crate) outgoing: Buffer,
    /// Opened, for the local side. Never has less room than `incoming` has bytes.
    pub(crate) received: Buffer,
    /// The peer has said that it sends no more.
    pub(crate) peer_closed: bool,
    close_wanted: bool,
    close_sent: bool,
}

enum End {
    Source(UnbufferedClientConnection),
    Destination(UnbufferedServerConnection),
}

/// What [`Session::advance`] stopped at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Again,
    NeedsInput,
    Ready,
}

impl Session {
    pub(crate) fn source(end: UnbufferedClientConnection, chunk: usize) -> Self {
        Self::new(End::Source(end), chunk)
    }

    pub(crate) fn destination(end: UnbufferedServerConnection, chunk: usize) -> Self {
        Self::new(End::Destination(end), chunk)
    }

    fn new(end: End, chunk: usize) -> Self {
        Self {
            end,
            incoming: Buffer::with_capacity(chunk),
            outgoing: Buffer::with_capacity(2 * chunk + TLS_ROOM),
            received: Buffer::with_capacity(2 * chunk),
            peer_closed: false,
            close_wanted: false,
            close_sent: false,
        }
    }

    /// Opens all that has come in, seals all of `plain`, and says whether the handshake is done. While it is
    /// not, `plain` must be empty.
    ///
    /// # Errors
    /// [`Error::Tls`] if the peer breaks the protocol or is not the pinned one. An alert that tells it so may
    /// then be waiting in `outgoing`.
    pub(crate) fn advance(&mut self, mut plain: &[u8]) -> Result<bool, Error> {
        loop {
            let mut work = Work {
                plain: &mut plain,
                outgoing: &mut self.outgoing,
                received: &mut self.received,
                peer_closed: &mut self.peer_closed,
                close_wanted: self.close_wanted,
                close_sent: &mut self.close_sent,
            };
            let incoming = self.incoming.filled_mut();
            let (discard, step) = match &mut self.end {
                End::Source(end) => work.step(end.process_tls_records(incoming)),
                End::Destination(end) => work.step(end.process_tls_records(incoming)),
            };
            self.incoming.consume(discard);
            match step {
                Ok(Step::Again) => {}
                Ok(Step::NeedsInput) if self.incoming.room() == 0 => {
                    return Err(Error::Protocol("its handshake is longer than any can be"));
                }
                Ok(Step::NeedsInput) => return Ok(false),
                Ok(Step::Ready) => return Ok(!self.is_handshaking()),
                Err(error) => {
                    self.queue_alert();
                    return Err(error);
                }
            }
        }
    }

    /// Nothing will be sealed any more; the next [`Self::advance`] tells the peer.
    pub(crate) fn close(&mut self) {
        self.close_wanted = true;
    }

    /// Whether the peer has been told, at least as far as the outgoing buffer, that nothing follows.
    pub(crate) fn close_sent(&self) -> bool {
        self.close_sent
    }

    /// The application protocol that both ends have agreed on.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        match &self.end {
            End::Source(end) => end.alpn_protocol(),
            End::Destination(end) => end.alpn_protocol(),
        }
    }

    fn is_handshaking(&self) -> bool {
        match &self.end {
            End::Source(end) => end.is_handshaking(),
            End::Destination(end) => end.is_handshaking(),
        }
    }

    /// After an error: what TLS still has to tell the peer about it.
    fn queue_alert(&mut self) {
        let mut nothing: &[u8] = &[];
        let mut work = Work {
            plain: &mut nothing,
            outgoing: &mut self.outgoing,
            received: &mut self.received,
            peer_closed: &mut self.peer_closed,
            close_wanted: false,
            close_sent: &mut self.close_sent,
        };
        let incoming = self.incoming.filled_mut();
        // One step: an alert comes out before anything else. There may be none, and the session is over anyway.
        let _ = match &mut self.end {
            End::Source(end) => work.step(end.process_tls_records(incoming)),
            End::Destination(end) => work.step(end.process_tls_records(incoming)),
        };
    }
}

/// What one step of a session reads and writes, whichever end it is.
struct Work<'a, 'p> {
    plain: &'a mut &'p [u8],
    outgoing: &'a mut Buffer,
    received: &'a mut Buffer,
    peer_closed: &'a mut bool,
    close_wanted: bool,
    close_sent: &'a mut bool,
}

impl Work<'_, '_> {
    /// Answers one state of rustls. Returns how much of the incoming bytes is done with.
    fn step<Data>(&mut self, status: UnbufferedStatus<'_, '_, Data>) -> (usize, Result<Step, Error>) {
        let UnbufferedStatus { mut discard, state } = status;
        let step = match state {
            Err(source) => Err(Error::Tls { during: "the exchange of records", source }),
            Ok(state) => self.answer(state, &mut discard),
        };
        (discard, step)
    }

    fn answer<Data>(
        &mut self,
        state: ConnectionState<'_, '_, Data>,
        discard: &mut usize,
    ) -> Result<Step, Error> {
        const NO_ROOM: Error = Error::Protocol("it sends more than there is room for");
        match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record =
                        record.map_err(|source| Error::Tls { during: "the opening of a record", source })?;
                    *discard += record.discard;
                    if !self.received.append(record.payload) {
                        return Err(NO_ROOM);
                    }
                }
                Ok(Step::Again)
            }
            ConnectionState::EncodeTlsData(mut data) => {
                let size = data.encode(self.outgoing.spare()).map_err(|_| NO_ROOM)?;
                self.outgoing.commit(size);
                Ok(Step::Again)
            }
            ConnectionState::TransmitTlsData(sent) => {
                // The outgoing buffer keeps the order, so what is in it counts as sent.
                sent.done();
                Ok(Step::Again)
            }
            ConnectionState::PeerClosed => {
                *self.peer_closed = true;
                Ok(Step::Again)
            }
            ConnectionState::WriteTraffic(mut traffic) => {
                if !self.plain.is_empty() {
                    let size = traffic.encrypt(self.plain, self.outgoing.spare()).map_err(|_| NO_ROOM)?;
                    self.outgoing.commit(size);
                    *self.plain = &[];
                    return Ok(Step::Again);
                }
                if self.close_wanted && !*self.close_sent {
                    let size = traffic.queue_close_notify(self.outgoing.spare()).map_err(|_| NO_ROOM)?;
                    self.outgoing.commit(size);
                    *self.close_sent = true;
                    return Ok(Step::Again);
                }
                Ok(Step::Ready)
            }
            ConnectionState::Closed => Ok(Step::Ready),
            ConnectionState::BlockedHandshake => Ok(Step::NeedsInput),
            _ => Err(Error::Protocol("it sends early data, which was not offered")),
        }
    }
}
