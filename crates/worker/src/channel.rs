//! The threads: one for each channel, from its connect to its end.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use limosa_transport::{Acceptor, Answer, Connection, Count, Dialer, Error, relay};

/// How long a channel waits at the destination for those that QEMU opened before it.
const TURN_LIMIT: Duration = Duration::from_secs(30);

/// How many connections may be in their TLS handshake. One more, and the oldest is dropped: the true source is
/// through after a round trip, whoever else knocks.
const PENDING_MAX: usize = 64;

const STACK_BYTES: usize = 1024 * 1024;

/// What a channel's thread tells the worker.
#[derive(Debug)]
pub(crate) enum Notice {
    /// A TCP connection has become this channel.
    Arrived { connection: u64, channel: u16 },
    /// A TCP connection has become nothing.
    Refused { connection: u64, reason: String },
    /// A channel stands from QEMU to QEMU.
    Connected { channel: u16 },
    /// A channel is gone.
    Closed { channel: u16, result: Result<(), String> },
}

/// What every thread has of the worker.
pub(crate) struct Shared {
    pub(crate) count: Count,
    pub(crate) notices: Sender<Notice>,
    /// An eventfd that wakes the worker for the notices.
    pub(crate) wake: OwnedFd,
}

impl Shared {
    fn tell(&self, notice: Notice) {
        // A worker that does not listen any more is about to exit.
        let _ = self.notices.send(notice);
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Runs a channel to its end in a thread of its own, and tells of it whatever happens.
    fn spawn(
        self: &Arc<Self>,
        name: String,
        work: impl FnOnce(&Self) -> Option<Notice> + Send + 'static,
        lost: impl FnOnce() -> Notice + Send + 'static,
    ) -> std::io::Result<()> {
        let shared = self.clone();
        let body = move || {
            let notice = catch_unwind(AssertUnwindSafe(|| work(&shared))).unwrap_or_else(|_| Some(lost()));
            if let Some(notice) = notice {
                shared.tell(notice);
            }
        };
        thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(body).map(drop)
    }

    fn relay(&self, channel: u16, qemu: UnixStream, peer: Connection) -> Result<(), String> {
        self.tell(Notice::Connected { channel });
        relay(qemu, peer, &self.count).map_err(|error| error.to_string())
    }
}

/// The source's channels.
pub(crate) struct Source {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) next: u16,
}

impl Source {
    /// Begins the channel that QEMU has just opened, and returns its number.
    pub(crate) fn open(&mut self, qemu: UnixStream, shared: &Arc<Shared>) -> std::io::Result<u16> {
        let (channel, dialer) = (self.next, self.dialer.clone());
        let work = move |shared: &Shared| {
            let result = match dialer.connect(channel) {
                Ok(peer) => shared.relay(channel, qemu, peer),
                Err(error) => Err(error.to_string()),
            };
            Some(Notice::Closed { channel, result })
        };
        shared.spawn(format!("channel-{channel}"), work, move || panicked(channel))?;
        self.next += 1;
        Ok(channel)
    }
}

/// The destination's channels.
pub(crate) struct Destination {
    acceptor: Arc<Acceptor>,
    qemu_socket: Arc<PathBuf>,
    turns: Arc<Turns>,
    pending: VecDeque<(u64, TcpStream)>,
    next: u64,
}

impl Destination {
    pub(crate) fn new(acceptor: Acceptor, qemu_socket: PathBuf) -> Self {
        Self {
            acceptor: Arc::new(acceptor),
            qemu_socket: Arc::new(qemu_socket),
            turns: Arc::default(),
            pending: VecDeque::new(),
            next: 0,
        }
    }

    /// Begins to find out who has just connected.
    pub(crate) fn open(&mut self, tcp: TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
        if self.pending.len() >= PENDING_MAX
            && let Some((_, oldest)) = self.pending.pop_front()
        {
            // Its thread sees the end and says so; if it is gone already, all the better.
            let _ = oldest.shutdown(Shutdown::Both);
        }
        let connection = self.next;
        self.next += 1;
        self.pending.push_back((connection, tcp.try_clone()?));

        let (acceptor, qemu_socket, turns) =
            (self.acceptor.clone(), self.qemu_socket.clone(), self.turns.clone());
        let work = move |shared: &Shared| {
            let incoming = match acceptor.accept(tcp) {
                Ok(incoming) => incoming,
                Err(error) => return Some(Notice::Refused { connection, reason: error.to_string() }),
            };
            let channel = incoming.channel();
            shared.tell(Notice::Arrived { connection, channel });
            let result = catch_unwind(AssertUnwindSafe(|| {
                let connected = match turns.take(channel, || UnixStream::connect(&*qemu_socket)) {
                    Ok(qemu) => incoming.accept().map(|peer| (qemu, peer)),
                    Err(answer) => Err(incoming.refuse(answer)),
                };
                connected
                    .map_err(|error: Error| error.to_string())
                    .and_then(|(qemu, peer)| shared.relay(channel, qemu, peer))
            }));
            match result {
                Ok(result) => Some(Notice::Closed { channel, result }),
                Err(_) => Some(panicked(channel)),
            }
        };
        let lost = move || Notice::Refused { connection, reason: "its thread failed".into() };
        let spawned = shared.spawn(format!("connection-{connection}"), work, lost);
        if spawned.is_err() {
            self.settled(connection);
        }
        spawned
    }

    /// A connection is not in its handshake any more.
    pub(crate) fn settled(&mut self, connection: u64) {
        self.pending.retain(|(pending, _)| *pending != connection);
    }
}

fn panicked(channel: u16) -> Notice {
    Notice::Closed { channel, result: Err("its thread failed: this is a defect, please report it".into()) }
}

/// Lets the channels to QEMU in the order of their numbers, which is that in which the source's QEMU opened them.
#[derive(Default)]
struct Turns {
    state: Mutex<Turn>,
    changed: Condvar,
}

#[derive(Default)]
struct Turn {
    next: u16,
    /// The channel `next` is being connected.
    busy: bool,
}

impl Turns {
    /// Waits for the channel's turn, connects it, and lets the next one go, even if it could not be connected.
    fn take(
        &self,
        channel: u16,
        connect: impl FnOnce() -> std::io::Result<UnixStream>,
    ) -> Result<UnixStream, Answer> {
        let waits = |turn: &mut Turn| turn.next < channel || (turn.next == channel && turn.busy);
        let (mut turn, timeout) = self
            .changed
            .wait_timeout_while(self.lock(), TURN_LIMIT, waits)
            .unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() || turn.next != channel {
            return Err(Answer::NoSuchChannel);
        }
        turn.busy = true;
        drop(turn);

        let qemu = connect();
        *self.lock() = Turn { next: channel + 1, busy: false };
        self.changed.notify_all();
        qemu.map_err(|error| {
            tracing::warn!(channel, %error, "QEMU does not take the connection");
            Answer::QemuUnreachable
        })
    }

    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_reach_qemu_in_their_order_whatever_order_they_arrive_in() {
        let turns = Turns::default();
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for channel in [3, 1, 4, 0, 2] {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    turns.take(channel, || {
                        order.lock().unwrap().push(channel);
                        Ok(UnixStream::pair()?.0)
                    })
                });
            }
        });
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_number_is_given_once_and_a_failed_connect_stops_nobody() {
        let turns = Turns::default();
        let refuse = || Err(std::io::ErrorKind::ConnectionRefused.into());
        assert_eq!(turns.take(0, refuse).unwrap_err(), Answer::QemuUnreachable);
        assert!(turns.take(1, || Ok(UnixStream::pair()?.0)).is_ok());
        assert_eq!(turns.take(1, || Ok(UnixStream::pair()?.0)).unwrap_err(), Answer::NoSuchChannel);
    }
}
