//! A connection to one QEMU's monitor.
//!
//! Any number of [`Qmp`] handles share it. Two tasks serve the socket: one writes commands, so that a caller
//! who gives up leaves no half line behind; one reads lines, and gives replies to those who wait and events
//! to all who listen. Nobody can hold the reader up: a listener who falls behind loses events and is told how
//! many ([`EventsError::Missed`]).
//!
//! QEMU serves one client per monitor. When the last handle is dropped the socket is shut down at once, so
//! that another process, or the next start of this one, can connect. Whatever ends the connection (QEMU's
//! end, rubbish, an I/O error), all who wait and all later callers get [`Error::ConnectionLost`] with the reason.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::Shutdown;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::protocol::{LineBuffer, Message, Refusal};
use crate::socket::{HANDSHAKE_ID, io_loss, receive, send, shake_hands};
use crate::{Error, Greeting, Loss, TimedEvent};

/// Events that a listener may lag behind before it loses some.
const EVENTS_KEPT: usize = 1024;
/// Commands that wait to be written before their callers have to.
const COMMANDS_QUEUED: usize = 64;

/// A handle to a QEMU's monitor. Clones share the connection.
#[derive(Clone)]
pub struct Qmp {
    connection: Arc<Connection>,
    command_timeout: Duration,
}

impl Qmp {
    /// Connects and shakes hands. `timeout` limits that, and from then on each command (see [`Self::with_timeout`]).
    ///
    /// # Errors
    /// [`Error::Connect`] if nobody listens, [`Error::NoGreeting`] if QEMU hangs or serves another client,
    /// [`Error::ConnectionLost`] if what listens is not a QEMU.
    pub async fn connect(path: &Path, timeout: Duration) -> Result<Self, Error> {
        let failed = |source| Error::Connect { path: path.to_owned(), source };
        let stream = tokio::time::timeout(timeout, UnixStream::connect(path))
            .await
            .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
            .map_err(failed)?;
        Self::over(stream, &path.display().to_string(), timeout).await
    }

    /// Shakes hands over a socket that is already connected to the monitor called `monitor`.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn over(stream: UnixStream, monitor: &str, timeout: Duration) -> Result<Self, Error> {
        let mut lines = LineBuffer::default();
        let greeting = tokio::time::timeout(timeout, shake_hands(&stream, &mut lines))
            .await
            .map_err(|_| Error::NoGreeting { monitor: monitor.to_owned(), after_ms: millis(timeout) })?
            .map_err(|loss| Error::ConnectionLost {
                doing: "handshake",
                monitor: monitor.to_owned(),
                loss,
            })?;

        let shared = Arc::new(Shared {
            monitor: monitor.to_owned(),
            stream,
            next_id: AtomicU64::new(HANDSHAKE_ID + 1),
            state: Mutex::new(State {
                waiting: HashMap::new(),
                events: Some(broadcast::Sender::new(EVENTS_KEPT)),
                loss: None,
            }),
        });
        let (outgoing, queue) = mpsc::channel(COMMANDS_QUEUED);
        tokio::spawn(read_lines(Arc::clone(&shared), lines));
        tokio::spawn(write_commands(Arc::clone(&shared), queue));
        Ok(Self { connection: Arc::new(Connection { shared, outgoing, greeting }), command_timeout: timeout })
    }

    /// A handle to the same connection whose commands wait this long for their replies.
    pub fn with_timeout(&self, command_timeout: Duration) -> Self {
        Self { connection: Arc::clone(&self.connection), command_timeout }
    }

    /// What QEMU said of itself when we connected.
    pub fn greeting(&self) -> &Greeting {
        &self.connection.greeting
    }

    /// The events from now on. Whoever needs the state as well asks for it after this.
    pub fn subscribe(&self) -> Events {
        let receiver = match &self.connection.shared.state().events {
            Some(events) => events.subscribe(),
            None => broadcast::channel(1).1,
        };
        Events { receiver }
    }

    /// Why the connection is no more, if it is.
    pub fn loss(&self) -> Option<Loss> {
        self.connection.shared.state().loss.clone()
    }

    /// Runs a command that has no method of its own. `arguments` become a JSON object.
    ///
    /// # Errors
    /// [`Error::Refused`] by QEMU, [`Error::Timeout`], [`Error::ConnectionLost`], or what QEMU answered is no `R`.
    pub async fn execute<A: Serialize + ?Sized, R: DeserializeOwned>(
        &self,
        command: &'static str,
        arguments: &A,
    ) -> Result<R, Error> {
        self.exchange(command, Some(arguments), None).await
    }

    /// Runs a command without arguments.
    pub(crate) async fn query<R: DeserializeOwned>(&self, command: &'static str) -> Result<R, Error> {
        self.exchange::<(), R>(command, None, None).await
    }

    /// Runs a command without arguments whose answer says nothing.
    pub(crate) async fn order(&self, command: &'static str) -> Result<(), Error> {
        self.exchange::<(), Value>(command, None, None).await.map(drop)
    }

    /// Runs a command whose answer says nothing.
    pub(crate) async fn order_with<A: Serialize + ?Sized>(
        &self,
        command: &'static str,
        arguments: &A,
    ) -> Result<(), Error> {
        self.exchange::<A, Value>(command, Some(arguments), None).await.map(drop)
    }

    /// Runs a command whose answer says nothing, and passes QEMU a duplicate of the descriptor with it.
    pub(crate) async fn pass<A: Serialize + ?Sized>(
        &self,
        command: &'static str,
        arguments: &A,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let descriptor =
            descriptor.try_clone_to_owned().map_err(|source| Error::Descriptor { command, source })?;
        self.exchange::<A, Value>(command, Some(arguments), Some(descriptor)).await.map(drop)
    }

    async fn exchange<A: Serialize + ?Sized, R: DeserializeOwned>(
        &self,
        command: &'static str,
        arguments: Option<&A>,
        descriptor: Option<OwnedFd>,
    ) -> Result<R, Error> {
        #[derive(Serialize)]
        struct Request<'a, A: ?Sized> {
            execute: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            arguments: Option<&'a A>,
            id: u64,
        }

        let shared = &self.connection.shared;
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Request { execute: command, arguments, id })
            .map_err(|source| Error::Encode { command, source })?;
        line.push(b'\n');

        let mut ticket = shared.wait_for(id).map_err(|loss| shared.lost(command, loss))?;
        let reply = async {
            let sent = self.connection.outgoing.send(Outgoing { id, line, descriptor }).await;
            sent.map_err(|_| ())?;
            (&mut ticket.reply).await.map_err(|_| ())
        };
        let outcome = tokio::time::timeout(self.command_timeout, reply)
            .await
            .map_err(|_| Error::Timeout { command, after_ms: millis(self.command_timeout) })?
            .map_err(|()| shared.lost(command, self.loss().unwrap_or(Loss::ClosedByUs)))?;
        let value = outcome.map_err(|Refusal { class, description }| Error::Refused {
            command,
            class,
            description,
        })?;
        serde_json::from_value(value).map_err(|source| Error::Reply { command, source })
    }
}

impl std::fmt::Debug for Qmp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qmp").field("monitor", &self.connection.shared.monitor).finish_non_exhaustive()
    }
}

/// The events of one QEMU, from the moment of [`Qmp::subscribe`]. Holding it does not keep the connection open.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<TimedEvent>,
}

/// Why there is no next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventsError {
    /// This listener was too slow; the stream goes on behind the gap. Ask QEMU for its state.
    #[error("{0} events of QEMU were missed")]
    Missed(u64),
    /// The connection is no more; [`Qmp::loss`] says why.
    #[error("the connection to QEMU is closed")]
    Closed,
}

impl Events {
    /// Waits for the next event. Cancelling loses none.
    ///
    /// # Errors
    /// [`EventsError`]: after `Missed` it can be called again.
    pub async fn next(&mut self) -> Result<TimedEvent, EventsError> {
        self.receiver.recv().await.map_err(|error| match error {
            broadcast::error::RecvError::Lagged(count) => EventsError::Missed(count),
            broadcast::error::RecvError::Closed => EventsError::Closed,
        })
    }
}

/// What all handles hold together; dropped with the last of them.
struct Connection {
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<Outgoing>,
    greeting: Greeting,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.lose(Loss::ClosedByUs);
    }
}

/// What the handles and the two tasks hold together.
struct Shared {
    monitor: String,
    stream: UnixStream,
    next_id: AtomicU64,
    state: Mutex<State>,
}

struct State {
    waiting: HashMap<u64, oneshot::Sender<Result<Value, Refusal>>>,
    /// None once the connection is lost: that ends the listeners' streams.
    events: Option<broadcast::Sender<TimedEvent>>,
    loss: Option<Loss>,
}

struct Outgoing {
    id: u64,
    line: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

/// A caller's place among those who wait; given up when the caller is.
struct Ticket<'a> {
    shared: &'a Shared,
    id: u64,
    reply: oneshot::Receiver<Result<Value, Refusal>>,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.shared.state().waiting.remove(&self.id);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for(&self, id: u64) -> Result<Ticket<'_>, Loss> {
        let (reply_to, reply) = oneshot::channel();
        let mut state = self.state();
        if let Some(loss) = &state.loss {
            return Err(loss.clone());
        }
        state.waiting.insert(id, reply_to);
        Ok(Ticket { shared: self, id, reply })
    }

    fn dispatch(&self, message: Message) -> Result<(), Loss> {
        let mut state = self.state();
        match message {
            Message::Reply { id, outcome } => match state.waiting.remove(&id) {
                Some(reply_to) => drop(reply_to.send(outcome)),
                None if id < self.next_id.load(Ordering::Relaxed) => {
                    tracing::debug!(monitor = self.monitor, id, "a reply came after its caller had given up");
                }
                None => return Err(Loss::Malformed(format!("a reply with id {id}, which was never sent"))),
            },
            Message::Event(event) => {
                tracing::debug!(monitor = self.monitor, ?event, "event");
                if let Some(events) = &state.events {
                    // An error means that nobody listens.
                    let _ = events.send(event);
                }
            }
            Message::Greeting(_) => return Err(Loss::Malformed("a second greeting".to_owned())),
        }
        Ok(())
    }

    /// Ends the connection, for the first reason given.
    fn lose(&self, loss: Loss) {
        let mut state = self.state();
        state.loss.get_or_insert(loss);
        state.events = None;
        state.waiting.clear();
        drop(state);
        // It fails only if QEMU has closed its end: then there is nothing to shut down.
        let _ = rustix::net::shutdown(&self.stream, Shutdown::Both);
    }

    fn lost(&self, doing: &'static str, loss: Loss) -> Error {
        Error::ConnectionLost { doing, monitor: self.monitor.clone(), loss }
    }
}

async fn read_lines(shared: Arc<Shared>, mut lines: LineBuffer) {
    let loss = loop {
        let dispatched =
            receive(&shared.stream, &mut lines).await.and_then(|message| shared.dispatch(message));
        if let Err(loss) = dispatched {
            break loss;
        }
    };
    tracing::debug!(monitor = shared.monitor, %loss, "connection lost");
    shared.lose(loss);
}

/// Ends when the last handle is dropped, or when the socket is shut down.
async fn write_commands(shared: Arc<Shared>, mut queue: mpsc::Receiver<Outgoing>) {
    while let Some(Outgoing { id, line, descriptor }) = queue.recv().await {
        if !shared.state().waiting.contains_key(&id) {
            continue; // Its caller has given up: better not executed than unobserved.
        }
        if let Err(error) = send(&shared.stream, &line, descriptor).await {
            return shared.lose(io_loss(error));
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
