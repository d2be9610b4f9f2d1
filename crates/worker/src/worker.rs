//! The worker's main thread: takes orders from the agent, hands out sockets to channels, keeps the score.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use limosa_model::MigrationId;
use limosa_transport::{Acceptor, CHANNELS_MAX, Count, Credential, Dialer};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::AddressFamily;

use crate::agent::Agent;
use crate::channel::{Destination, Notice, Shared, Source};
use crate::control::{Event, Message, Reply, Request, Start, Status, VERSION, WorkerPhase, decode};
use crate::listening::{Listening, family};
use crate::sandbox::{self, Policy, Sandbox};
use crate::{Descriptors, Error, Limits};

/// Serves one migration, until it is told to stop or is not needed any more.
///
/// The sandbox that a `start` brings holds for the whole process and for good: run this in a process of its own.
///
/// # Errors
/// [`Error`] if the worker cannot work at all. A failed channel is no error here; the agent is told.
pub fn run(descriptors: Descriptors, limits: Limits) -> Result<(), Error> {
    Worker::new(descriptors, limits)?.serve()
}

struct Worker {
    control: UnixListener,
    listening: Listening,
    limits: Limits,
    credential: Credential,
    agent: Option<Agent>,
    shared: Arc<Shared>,
    notices: Receiver<Notice>,
    started: Option<Started>,
    /// When the worker was last of use to anyone.
    needed_at: Instant,
    opened: u32,
    closed: u32,
    connected: u32,
    refused: u64,
    error: Option<String>,
}

/// What a `start` has made.
struct Started {
    orders: Start,
    sandbox: Sandbox,
    channels: Channels,
}

enum Channels {
    Source(Source),
    Destination(Destination),
}

/// What the worker's wait has found.
struct Ready {
    control: bool,
    agent: bool,
    notices: bool,
    stream: bool,
}

impl Worker {
    fn new(descriptors: Descriptors, limits: Limits) -> Result<Self, Error> {
        let listening = Listening::new(descriptors.listen)?;
        if family(&descriptors.control) != Some(AddressFamily::UNIX) {
            return Err(Error::Descriptor("control", "Unix"));
        }
        let control = UnixListener::from(descriptors.control);
        control.set_nonblocking(true).map_err(Error::io("set up the control socket"))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Error::io("make an eventfd"))?;
        let (sender, notices) = mpsc::channel();
        Ok(Self {
            control,
            listening,
            limits,
            credential: Credential::generate()?,
            agent: None,
            shared: Arc::new(Shared { count: Count::default(), notices: sender, wake }),
            notices,
            started: None,
            needed_at: Instant::now(),
            opened: 0,
            closed: 0,
            connected: 0,
            refused: 0,
            error: None,
        })
    }

    fn serve(mut self) -> Result<(), Error> {
        tracing::info!(role = ?self.listening.role(), fingerprint = %self.credential.fingerprint(), "worker ready");
        loop {
            let Some(ready) = self.wait()? else {
                tracing::info!("nobody needs this worker any more");
                return Ok(());
            };
            if ready.notices {
                self.take_notices();
            }
            if ready.agent && self.serve_agent() {
                tracing::info!("stopped by the agent");
                return Ok(());
            }
            if ready.control {
                self.accept_agent();
            }
            if ready.stream {
                self.accept_stream();
            }
        }
    }

    /// Waits until there is something to do; `None` once the worker is not needed any more.
    fn wait(&mut self) -> Result<Option<Ready>, Error> {
        if self.agent.is_some() || self.open() > 0 {
            self.needed_at = Instant::now();
        }
        let limit_ms = if self.started.is_some() { self.limits.linger_ms } else { self.limits.start_ms };
        let idle = self.needed_at.elapsed();
        let Some(left) = Duration::from_millis(limit_ms).checked_sub(idle) else { return Ok(None) };
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });

        let mut descriptors =
            vec![PollFd::new(&self.control, PollFlags::IN), PollFd::new(&self.shared.wake, PollFlags::IN)];
        let agent = self.agent.as_ref().map(|agent| {
            let mut events = PollFlags::IN;
            events.set(PollFlags::OUT, agent.has_unsent());
            descriptors.push(PollFd::new(agent, events));
            descriptors.len() - 1
        });
        let stream = self.takes_stream().then(|| {
            descriptors.push(PollFd::from_borrowed_fd(self.listening.as_fd(), PollFlags::IN));
            descriptors.len() - 1
        });
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::io("wait for the agent")(error)),
        }
        let is_ready = |index: usize| !descriptors[index].revents().is_empty();
        Ok(Some(Ready {
            control: is_ready(0),
            notices: is_ready(1),
            agent: agent.is_some_and(is_ready),
            stream: stream.is_some_and(is_ready),
        }))
    }

    fn open(&self) -> u32 {
        self.opened - self.closed
    }

    fn takes_stream(&self) -> bool {
        match &self.started {
            None => false,
            Some(Started { channels: Channels::Source(source), .. }) => source.next < CHANNELS_MAX,
            Some(Started { channels: Channels::Destination(_), .. }) => true,
        }
    }

    // --- the stream ---

    fn accept_stream(&mut self) {
        let Some(started) = &mut self.started else { return };
        let result = match (&self.listening, &mut started.channels) {
            (Listening::Qemu(listener), Channels::Source(source)) => {
                listener.accept().and_then(|(qemu, _)| {
                    let channel = source.open(qemu, &self.shared)?;
                    self.opened += 1;
                    tracing::info!(channel, "QEMU has opened a channel");
                    Ok(())
                })
            }
            (Listening::Peer(listener), Channels::Destination(destination)) => {
                listener.accept().and_then(|(tcp, address)| {
                    tracing::debug!(%address, "a connection to be examined");
                    destination.open(tcp, &self.shared)
                })
            }
            _ => unreachable!("a start has the role of the listening socket"),
        };
        match result {
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                tracing::warn!(%error, "a connection could not be taken");
            }
            _ => {}
        }
    }

    fn take_notices(&mut self) {
        let mut wakes = [0; 8];
        // Only resets the eventfd; what woke the worker is in the queue.
        let _ = rustix::io::read(&self.shared.wake, &mut wakes);
        while let Ok(notice) = self.notices.try_recv() {
            self.take(notice);
        }
    }

    fn take(&mut self, notice: Notice) {
        match notice {
            Notice::Arrived { connection, channel } => {
                self.settle(connection);
                self.opened += 1;
                tracing::info!(channel, "the source has opened a channel");
            }
            Notice::Refused { connection, reason } => {
                self.settle(connection);
                self.refused += 1;
                tracing::warn!(reason, "a connection was refused");
            }
            Notice::Connected { channel } => {
                self.connected += 1;
                tracing::info!(channel, "a channel stands");
                self.tell(Event::Connected { channel });
            }
            Notice::Closed { channel, result } => {
                self.closed += 1;
                let error = result.err();
                tracing::info!(channel, error, "a channel is gone");
                self.tell(Event::ChannelClosed { channel, error: error.clone() });
                if let Some(reason) = error
                    && self.error.is_none()
                {
                    self.error = Some(reason.clone());
                    self.tell(Event::Failed { reason });
                }
                if self.open() == 0 {
                    self.tell(Event::Ended {});
                }
            }
        }
    }

    fn settle(&mut self, connection: u64) {
        if let Some(Started { channels: Channels::Destination(destination), .. }) = &mut self.started {
            destination.settled(connection);
        }
    }

    // --- the agent ---

    fn accept_agent(&mut self) {
        let accepted = self.control.accept().and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        match accepted {
            Ok(stream) => {
                tracing::info!(replaces = self.agent.is_some(), "an agent has connected");
                self.agent = Some(Agent::new(stream));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => tracing::warn!(%error, "an agent could not connect"),
        }
    }

    /// Answers what the agent asks. Returns whether it asks to stop.
    fn serve_agent(&mut self) -> bool {
        let Some(mut agent) = self.agent.take() else { return false };
        let requests = agent.requests();
        // Back in its place before anything can be told to it.
        let still_there = requests.is_ok();
        self.agent = Some(agent);
        for line in requests.unwrap_or_else(|lines| lines) {
            let request = decode::<Request>(&line);
            let stop = request == Ok(Request::Stop {});
            let reply = match request {
                Ok(request) => self.answer(request),
                Err(reason) => Reply::Refused { reason: format!("this is no request: {reason}") },
            };
            self.send(&Message::Reply(reply));
            if stop {
                return true;
            }
        }
        let flushed = self.agent.as_mut().is_some_and(|agent| agent.flush().is_ok());
        if !still_there || !flushed {
            tracing::info!("the agent has gone");
            self.agent = None;
        }
        false
    }

    fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Hello {} => Reply::Hello {
                version: VERSION,
                role: self.listening.role(),
                fingerprint: self.credential.fingerprint(),
            },
            Request::Start(orders) => match self.start(orders) {
                Ok(sandbox) => Reply::Started(sandbox),
                Err(reason) => {
                    tracing::error!(reason, "not started");
                    Reply::Refused { reason }
                }
            },
            Request::Status {} => Reply::Status(self.status()),
            Request::Watch {} => {
                if let Some(agent) = &mut self.agent {
                    agent.watches = true;
                }
                Reply::Watching(self.status())
            }
            Request::Stop {} => Reply::Stopping {},
        }
    }

    /// Follows the orders: enters the sandbox, and from then on takes what comes from the stream's socket.
    fn start(&mut self, orders: Start) -> Result<Sandbox, String> {
        if let Some(started) = &self.started {
            let again = started.orders == orders;
            return again.then_some(started.sandbox).ok_or("it has other orders already".into());
        }
        if orders.role() != self.listening.role() {
            return Err(format!("this worker is the {:?}'s", self.listening.role()).to_lowercase());
        }
        let (channels, policy) = self.prepare(&orders).map_err(|error| error.to_string())?;
        let sandbox = sandbox::enter(&policy, self.limits.memory_bytes).map_err(|error| error.to_string())?;
        tracing::info!(migration = %orders.migration(), landlock = ?sandbox.landlock, "started");
        self.started = Some(Started { orders, sandbox, channels });
        Ok(sandbox)
    }

    fn prepare(&self, orders: &Start) -> Result<(Channels, Policy), limosa_transport::Error> {
        Ok(match orders.clone() {
            Start::Source { migration, peer, addresses, tcp } => {
                let ports = addresses.iter().map(|address| address.port()).collect();
                let dialer = Dialer::new(&self.credential, peer, octets(migration), addresses, tcp)?;
                (Channels::Source(Source { dialer: Arc::new(dialer), next: 0 }), Policy::Source { ports })
            }
            Start::Destination { migration, peer, qemu_socket, tcp } => {
                let acceptor = Acceptor::new(&self.credential, peer, octets(migration), tcp)?;
                let channels = Destination::new(acceptor, qemu_socket.clone());
                (Channels::Destination(channels), Policy::Destination { qemu_socket })
            }
        })
    }

    fn status(&self) -> Status {
        let phase = match &self.started {
            None => WorkerPhase::Idle,
            Some(_) if self.error.is_some() => WorkerPhase::Failed,
            Some(_) if self.opened == 0 => WorkerPhase::Waiting,
            Some(_) if self.open() == 0 => WorkerPhase::Ended,
            Some(_) => WorkerPhase::Relaying,
        };
        Status {
            phase,
            role: self.listening.role(),
            migration: self.started.as_ref().map(|started| started.orders.migration()),
            channels_open: self.open(),
            channels_closed: self.closed,
            tls_connections: self.connected,
            connections_refused: self.refused,
            bytes_to_peer: self.shared.count.to_peer(),
            bytes_from_peer: self.shared.count.from_peer(),
            error: self.error.clone(),
            sandbox: self.started.as_ref().map(|started| started.sandbox),
        }
    }

    fn tell(&mut self, event: Event) {
        if self.agent.as_ref().is_some_and(|agent| agent.watches) {
            self.send(&Message::Event(event));
        }
    }

    fn send(&mut self, message: &Message) {
        if let Some(agent) = &mut self.agent
            && let Err(error) = agent.send(message)
        {
            tracing::warn!(%error, "the agent is cut off");
            self.agent = None;
        }
    }
}

/// An id as it goes onto the wire.
fn octets(migration: MigrationId) -> [u8; 16] {
    let text = migration.to_string();
    uuid::Uuid::try_parse(&text).expect("a migration id prints as a UUID").into_bytes()
}
